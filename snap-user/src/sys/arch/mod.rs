//! What differs between processors, under the same names for each.

#[cfg(target_arch = "x86_64")]
mod x86_64;
#[cfg(target_arch = "x86_64")]
mod x86_64_batch;
#[cfg(target_arch = "x86_64")]
mod x86_64_features;
#[cfg(target_arch = "x86_64")]
mod x86_64_frame;
#[cfg(target_arch = "x86_64")]
mod x86_64_syscalls;
#[cfg(target_arch = "x86_64")]
mod x86_64_xstate;
#[cfg(target_arch = "x86_64")]
pub use {
    x86_64::*, x86_64_batch::batch_code, x86_64_features::PROGRAM_FEATURES, x86_64_frame::SigFrame,
    x86_64_syscalls::syscall_name, x86_64_xstate::*,
};

#[cfg(not(target_arch = "x86_64"))]
compile_error!(
    "ksnap knows the registers of x86-64 only; other processors need a file beside x86_64.rs"
);
