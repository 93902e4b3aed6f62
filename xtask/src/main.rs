//! `cargo xtask`: builds, runs, tests and measures ksnap.
fn main() {}
