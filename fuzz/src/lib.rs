//! Fuzz targets for everything that decodes bytes from a file. `fuzz_targets/` has them for `cargo fuzz run NAME`;
//! `snap-user/tests/hostile.rs` runs them on stable Rust.

pub mod small_targets;
pub mod targets;
