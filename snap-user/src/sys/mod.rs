//! Linux and nothing else: each function is one kernel interface with its traps handled.
#![allow(unsafe_code, reason = "system calls; each block says why it is sound")]

mod alarm;
pub mod arch;
mod arrivals;
mod batch;
mod bpf;
mod clocks;
mod clone;
mod error;
pub mod fd;
mod file_map;
mod freeze;
mod gadgets;
mod guarded;
mod handle;
mod interrupted;
mod kcmp;
mod limits;
mod memory;
mod memory_fs;
mod missing;
mod namespace;
mod next_id;
mod open;
mod pagemap;
mod pager;
mod pidfd;
pub mod proc;
pub mod ptrace;
mod remote;
mod sched;
mod scratch;
mod signals;
mod stub;
mod system_v;
mod timers;
mod transfer;
mod traps;
mod uffd;
mod write_ring;

pub use arrivals::Arrivals;
pub use batch::{Question, ask, ask_values};
pub use bpf::{run_iterator, task_iterator};
pub use clocks::{clocks, own_time_offsets, time_namespace};
pub use clone::CloneArgs;
pub use error::SysError;
pub use file_map::{FileMap, Image};
pub use freeze::{Freeze, Frozen, Hold, await_turn, release_strays};
pub use gadgets::Gadgets;
pub use guarded::{Call, Guarded, inject};
pub use handle::path_of_handle;
pub use interrupted::{ContinuedCall, continued_call, time_left};
pub use kcmp::{compare_files, compare_files_of, share_memory};
pub use limits::{limit_name, limits, may_open, raise_descriptors, set_limit};
pub use memory::{
    ReadFault, memfd, read_bytes, read_pages, read_pages_into, read_ranges, shared_memory,
    write_bytes, write_pages, write_ranges,
};
pub use memory_fs::{Room, is_mount_point, mount_memory, resize_memory, room, usable_memory};
pub use namespace::{
    Sought, all_capabilities, chooses_ids, find_namespace, in_namespace, in_network_of,
    makes_namespaces, namespace_ids, own_users, owner_of_pid_namespace,
};
pub use next_id::{LAST_PID, can_choose_next_id, with_next_id};
pub use open::{
    create_in_root, duplicate_number, open_in_root, open_link, open_own_link, unnamed_in_root,
};
pub use pagemap::{MayHold, PageInfo, Pagemap, ScanResult, SoftDirtyBits, clear_soft_dirty};
pub use pager::{PAGER_FLAGS, Pager, Piece, arm as arm_pager};
pub use pidfd::{PidFd, ended_pidfd, pidfd_getfd, pidfd_kill, pidfd_open, pidfd_stop};
pub use remote::{Remote, THREAD_FLAGS};
pub use sched::{affinity, io_priority, scheduling, set_affinity, set_io_priority, set_scheduling};
pub use scratch::ScratchMap;
pub use signals::leave_to_kernel;
pub use stub::{
    Birth, Custodian, Guard, Handed, Keeper, Kept, Lacking, Lazy, Loading, Released, Stub,
    StubCall, StubThread, custodians, end_custody, fill_all, is_custodian, is_filler, wait_for,
};
pub use system_v::{attached_to_segment, shared_segment};
pub use timers::{PR_TIMER_CREATE_RESTORE_IDS, chooses_timer_ids};
pub use transfer::{MOST_DESCRIPTORS, control_len, send_descriptors};
pub use traps::{Trap, set_trap};
pub use uffd::{CREATION_FLAGS as USERFAULTFD_FLAGS, Userfaultfd, WpRegister};
pub use write_ring::{WriteRing, Written, can_write_behind};

/// Result of a system call wrapper.
pub type Result<T> = std::result::Result<T, SysError>;

/// Nanoseconds of `CLOCK_MONOTONIC`, the clock of `bpf_ktime_get_ns`.
pub fn monotonic_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Version of the running kernel: major and minor number; zeroes when it does not say.
pub fn kernel_version() -> (u32, u32) {
    let release = rustix::system::uname()
        .release()
        .to_string_lossy()
        .into_owned();
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map_while(|digits| digits.parse().ok());
    let mut next = || numbers.next().unwrap_or(0);
    (next(), next())
}

/// Nanoseconds of a clock, by its number (`clock_gettime(2)`); 0 for one that does not exist.
pub fn clock_ns(clock: libc::clockid_t) -> i64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is a live structure that the call fills.
    unsafe { libc::clock_gettime(clock, &mut time) };
    time.tv_sec * 1_000_000_000 + time.tv_nsec
}

/// Makes this thread nicer to others by `steps`; less nice, where that is allowed, if negative.
pub fn renice(steps: i32) {
    // SAFETY: system calls without pointers; 0 is the calling thread.
    unsafe {
        let now = libc::getpriority(libc::PRIO_PROCESS, 0);
        libc::setpriority(libc::PRIO_PROCESS, 0, now + steps);
    }
}

/// Puts this thread's reads and writes behind those of others (`ioprio_set(2)`: best effort, lowest level).
pub fn yield_io() {
    const WHO_PROCESS: libc::c_int = 1;
    const LOWEST: libc::c_int = 2 << 13 | 7;
    // SAFETY: a system call without pointers; 0 is the calling thread.
    unsafe {
        libc::syscall(libc::SYS_ioprio_set, WHO_PROCESS, 0, LOWEST);
    }
}
