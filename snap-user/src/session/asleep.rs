//! Processes that tests start to be stopped.

use crate::sys::proc;
use std::time::{Duration, Instant};

/// Waits until a process that was just started sleeps. Before, it may be in the middle of an execve(2), with the memory of
/// its parent or none that is whole, and waits for the disk, where nothing stops it.
pub(super) fn await_sleep(pid: i32) {
    let end = Instant::now() + Duration::from_secs(60);
    while proc::stat(pid, None).unwrap().state != 'S' {
        assert!(Instant::now() < end, "process {pid} does not sleep");
        std::thread::sleep(Duration::from_millis(1));
    }
}
