//! Types that cross the boundary between the eBPF programs and user space.
//!
//! Everything here is `#[repr(C)]` with fixed-width integers and explicit padding: the prebuilt
//! object and the loader come from different compilers.
#![no_std]

/// Layout version of everything in this crate. The loader refuses an object built with another one.
pub const ABI_VERSION: u32 = 1;
