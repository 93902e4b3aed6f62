//! The `ksnap` command.
fn main() {}
