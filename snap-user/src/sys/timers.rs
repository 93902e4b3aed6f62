//! What the kernel offers for POSIX timers that are to be made again.

/// `PR_TIMER_CREATE_RESTORE_IDS` (include/uapi/linux/prctl.h), since Linux 6.15: timer_create(2) takes the id.
pub const PR_TIMER_CREATE_RESTORE_IDS: u64 = 77;

/// Whether a timer can be made with an id of one's choice.
pub fn chooses_timer_ids() -> bool {
    const GET: u64 = 2;
    // SAFETY: a system call without pointers that only asks.
    unsafe { libc::prctl(PR_TIMER_CREATE_RESTORE_IDS as libc::c_int, GET, 0, 0, 0) >= 0 }
}
