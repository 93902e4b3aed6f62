//! Process descriptors.

use super::{Result, SysError};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags};
use std::os::fd::{AsFd, FromRawFd, OwnedFd};

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

/// A copy of one of this process's descriptors at a number of `beyond` or more, closed by an exec.
pub fn duplicate(fd: i32, beyond: i32) -> Result<OwnedFd> {
    // SAFETY: fcntl with two integers; a number that is not open is an error.
    let copy = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, beyond) };
    if copy == -1 {
        return Err(SysError::last("fcntl", format_args!("descriptor {fd}")));
    }
    // SAFETY: just made, and owned by nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(copy) })
}
