//! What it cost.
