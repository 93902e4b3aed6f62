//! Scheduling of any thread, asked and set from outside: `sched_setattr(2)`, `sched_setaffinity(2)`,
//! `ioprio_set(2)`.

use super::{Result, SysError};
use crate::model::Scheduling;

/// `IOPRIO_WHO_PROCESS`: the id is a thread's.
const IOPRIO_WHO_PROCESS: i32 = 1;
/// Words of a set of processors: 8192 of them, the most that the kernel can be built for.
const CPU_WORDS: usize = 128;

/// `struct sched_attr` (include/uapi/linux/sched/types.h).
#[repr(C)]
#[derive(Default)]
struct Attr {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime: u64,
    deadline: u64,
    period: u64,
    util_min: u32,
    util_max: u32,
}

fn checked(call: &'static str, tid: i32, result: i64) -> Result<i64> {
    match result {
        0.. => Ok(result),
        _ => Err(SysError::last(call, format_args!("thread {tid}"))),
    }
}

/// How a thread is scheduled.
pub fn scheduling(tid: i32) -> Result<Scheduling> {
    let mut attr = Attr::default();
    let size = size_of::<Attr>();
    // SAFETY: `attr` is a live structure of the size given, which the kernel fills.
    let result = unsafe { libc::syscall(libc::SYS_sched_getattr, tid, &raw mut attr, size, 0) };
    checked("sched_getattr", tid, result)?;
    Ok(Scheduling {
        policy: attr.policy,
        flags: attr.flags,
        nice: attr.nice,
        priority: attr.priority,
        runtime: attr.runtime,
        deadline: attr.deadline,
        period: attr.period,
        util_min: attr.util_min,
        util_max: attr.util_max,
    })
}

/// Schedules a thread as given.
pub fn set_scheduling(tid: i32, to: &Scheduling) -> Result<()> {
    let attr = Attr {
        size: size_of::<Attr>() as u32,
        policy: to.policy,
        flags: to.flags,
        nice: to.nice,
        priority: to.priority,
        runtime: to.runtime,
        deadline: to.deadline,
        period: to.period,
        util_min: to.util_min,
        util_max: to.util_max,
    };
    // SAFETY: `attr` is a live structure that says its own size; the kernel only reads it.
    let result = unsafe { libc::syscall(libc::SYS_sched_setattr, tid, &raw const attr, 0) };
    checked("sched_setattr", tid, result).map(drop)
}

/// Processors that a thread may run on, bit n of word n/64 for processor n; no zero word at the end.
pub fn affinity(tid: i32) -> Result<Vec<u64>> {
    let mut words = [0u64; CPU_WORDS];
    let len = size_of_val(&words);
    // SAFETY: the kernel fills at most `len` bytes of a live buffer.
    let result =
        unsafe { libc::syscall(libc::SYS_sched_getaffinity, tid, len, words.as_mut_ptr()) };
    checked("sched_getaffinity", tid, result)?;
    let used = CPU_WORDS - words.iter().rev().take_while(|w| **w == 0).count();
    Ok(words[..used].to_vec())
}

/// Lets a thread run on these processors only.
pub fn set_affinity(tid: i32, words: &[u64]) -> Result<()> {
    // SAFETY: the kernel reads a live buffer of the length given.
    let result = unsafe {
        libc::syscall(
            libc::SYS_sched_setaffinity,
            tid,
            size_of_val(words),
            words.as_ptr(),
        )
    };
    checked("sched_setaffinity", tid, result).map(drop)
}

/// A thread's I/O priority: class and level as `ioprio_get(2)` packs them.
pub fn io_priority(tid: i32) -> Result<u32> {
    // SAFETY: a system call without pointers.
    let result = unsafe { libc::syscall(libc::SYS_ioprio_get, IOPRIO_WHO_PROCESS, tid) };
    checked("ioprio_get", tid, result).map(|priority| priority as u32)
}

/// Sets a thread's I/O priority.
pub fn set_io_priority(tid: i32, to: u32) -> Result<()> {
    // SAFETY: a system call without pointers.
    let result = unsafe { libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, tid, to) };
    checked("ioprio_set", tid, result).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_of_this_process_is_scheduled_as_told() {
        std::thread::spawn(|| {
            let tid = nix::unistd::gettid().as_raw();
            let was = scheduling(tid).unwrap();
            let to = Scheduling {
                policy: libc::SCHED_BATCH as u32,
                // 19 is the highest there is.
                nice: (was.nice + 3).min(19),
                ..was
            };
            set_scheduling(tid, &to).unwrap();
            let now = scheduling(tid).unwrap();
            assert_eq!((now.policy, now.nice), (to.policy, to.nice));

            let all = affinity(tid).unwrap();
            let one = 1u64 << all[0].trailing_zeros();
            set_affinity(tid, &[one]).unwrap();
            assert_eq!(affinity(tid).unwrap(), [one]);

            // Class 2, best effort, its lowest level.
            set_io_priority(tid, 2 << 13 | 7).unwrap();
            assert_eq!(io_priority(tid).unwrap(), 2 << 13 | 7);
        })
        .join()
        .unwrap();
    }
}
