//! Process descriptors.

use super::{Result, SysError};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, Signal};
use std::os::fd::{AsFd, OwnedFd};

/// A descriptor of a process, immune to the reuse of its pid.
pub type PidFd = OwnedFd;

/// Opens a process (`pidfd_open(2)`, Linux 5.3).
pub fn pidfd_open(pid: i32) -> Result<PidFd> {
    let target = || format!("process {pid}");
    let pid = Pid::from_raw(pid)
        .ok_or_else(|| SysError::new("pidfd_open", target(), rustix::io::Errno::SRCH))?;
    rustix::process::pidfd_open(pid, PidfdFlags::empty())
        .map_err(|e| SysError::new("pidfd_open", target(), e))
}

/// Duplicates descriptor `fd` of the process into this one (`pidfd_getfd(2)`, Linux 5.6).
/// Both share one open file description, its position included.
pub fn pidfd_getfd(process: impl AsFd, fd: i32) -> Result<OwnedFd> {
    rustix::process::pidfd_getfd(process, fd, PidfdGetfdFlags::empty())
        .map_err(|e| SysError::new("pidfd_getfd", format_args!("descriptor {fd}"), e))
}

/// Ends the process (`pidfd_send_signal(2)` with SIGKILL, Linux 5.1).
pub fn pidfd_kill(process: impl AsFd) -> Result<()> {
    rustix::process::pidfd_send_signal(process, Signal::KILL)
        .map_err(|e| SysError::new("pidfd_send_signal", "a process to be ended", e))
}

/// Puts the process into a job-control stop, which takes a moment (SIGSTOP).
pub fn pidfd_stop(process: impl AsFd) -> Result<()> {
    rustix::process::pidfd_send_signal(process, Signal::STOP)
        .map_err(|e| SysError::new("pidfd_send_signal", "a process to be stopped", e))
}

/// A descriptor of a process that has ended and been waited for.
pub fn ended_pidfd() -> Result<PidFd> {
    let failed = |call| SysError::last(call, "a child that ends at once");
    // SAFETY: the child only ends, which is safe after a fork of a process with threads.
    match unsafe { libc::fork() } {
        -1 => Err(failed("fork")),
        // SAFETY: ends the child.
        0 => unsafe { libc::_exit(0) },
        child => {
            let opened = pidfd_open(child);
            // SAFETY: waits for the child; null for a status that is not wanted.
            while unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) } < 0 {
                if std::io::Error::last_os_error().raw_os_error() != Some(libc::EINTR) {
                    return Err(failed("waitpid"));
                }
            }
            opened
        }
    }
}
