//! Durable snapshots by id.
