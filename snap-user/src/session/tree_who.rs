//! Whether a process of a tree is still who it was.

use super::engine::Engine;
use crate::sys::{proc, share_memory};

/// What tells a process from a later one of the same id.
pub(super) fn pid_and_start(engine: &Engine) -> (i32, u64) {
    (engine.target.pid, engine.target.start_time)
}

/// There is nothing of it any more but what its parent has not waited for.
pub(super) fn has_ended((pid, start_time): (i32, u64)) -> bool {
    let lives = |stat: proc::Stat| stat.start_time == start_time && proc::is_alive(pid);
    !proc::stat(pid, None).is_ok_and(lives)
}

/// The process that it was attached to, and no later one of the same id.
pub(super) fn is_same_process(engine: &Engine) -> bool {
    proc::stat(engine.target.pid, None)
        .is_ok_and(|stat| stat.start_time == engine.target.start_time)
}

/// It has its parent's memory until it executes a program (vfork(2)): what would be put into it would be put into both.
pub(super) fn is_borrower(pid: i32) -> bool {
    let parent = proc::stat(pid, None).map(|stat| stat.ppid);
    parent.is_ok_and(|parent| share_memory(pid, parent).unwrap_or(false))
}
