//! Linux and nothing else: each function is one kernel interface with its traps handled.
#![allow(unsafe_code, reason = "system calls; each block says why it is sound")]

pub mod arch;
mod error;
pub mod fd;
mod freeze;
mod gadgets;
mod guarded;
mod handle;
mod interrupted;
mod kcmp;
mod memory;
mod namespace;
mod open;
mod pagemap;
mod pidfd;
pub mod proc;
pub mod ptrace;
mod remote;
mod scratch;
mod transfer;
mod uffd;

pub use error::SysError;
pub use freeze::{Freeze, Frozen, Hold, release_strays};
pub use gadgets::Gadgets;
pub use guarded::{Call, Guarded};
pub use handle::path_of_handle;
pub use kcmp::compare_files;
pub use memory::{ReadFault, read_bytes, read_pages, read_ranges, write_bytes, write_ranges};
pub use namespace::in_network_of;
pub use open::{
    create_in_root, duplicate_number, open_in_root, open_link, open_own_link, unnamed_in_root,
};
pub use pagemap::{PageInfo, Pagemap, ScanResult, clear_soft_dirty};
pub use pidfd::{PidFd, ended_pidfd, pidfd_getfd, pidfd_open};
pub use remote::Remote;
pub use scratch::ScratchMap;
pub use transfer::{MOST_DESCRIPTORS, control_len, send_descriptors};
pub use uffd::{CREATION_FLAGS as USERFAULTFD_FLAGS, Userfaultfd, WpRegister};

/// Result of a system call wrapper.
pub type Result<T> = std::result::Result<T, SysError>;

/// Nanoseconds of `CLOCK_MONOTONIC`, the clock of `bpf_ktime_get_ns`.
pub fn monotonic_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Nanoseconds of a clock by its number; 0 for one that does not exist.
pub fn clock_ns(clock: i32) -> u64 {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `now` is a live structure that the call fills.
    match unsafe { libc::clock_gettime(clock, &mut now) } {
        0 => now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64,
        _ => 0,
    }
}

/// Makes this thread nicer to others by `steps`; less nice, where that is allowed, if negative.
pub fn renice(steps: i32) {
    // SAFETY: system calls without pointers; 0 is the calling thread.
    unsafe {
        let now = libc::getpriority(libc::PRIO_PROCESS, 0);
        libc::setpriority(libc::PRIO_PROCESS, 0, now + steps);
    }
}
