//! Golden file.
