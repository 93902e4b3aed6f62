//! The error of every system call wrapper: the call, its target, the reason.

use std::fmt;
use std::io;

/// A system call that failed.
#[derive(Debug)]
pub struct SysError {
    /// The call, by the name of its manual page.
    pub call: &'static str,
    /// What it was called on: a pid, a descriptor, a path, an address.
    pub target: String,
    /// Why it failed.
    pub source: io::Error,
}

impl SysError {
    /// The error of `call` on `target`, from `errno`.
    pub fn last(call: &'static str, target: impl fmt::Display) -> Self {
        Self::new(call, target, io::Error::last_os_error())
    }

    /// The error of `call` on `target`.
    pub fn new(
        call: &'static str,
        target: impl fmt::Display,
        source: impl Into<io::Error>,
    ) -> Self {
        Self {
            call,
            target: target.to_string(),
            source: source.into(),
        }
    }

    /// The error number, where the kernel gave one.
    pub fn errno(&self) -> Option<i32> {
        self.source.raw_os_error()
    }

    /// The process, the thread or what was looked at of it was not there. The process may live all the
    /// same: [`super::proc::is_alive`] tells. A missing file counts only where it is a process's own.
    pub fn is_vanished(&self) -> bool {
        match self.errno() {
            Some(libc::ESRCH | libc::ECHILD) => true,
            Some(libc::ENOENT) => self
                .target
                .strip_prefix("/proc/")
                .is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit())),
            _ => false,
        }
    }

    /// The kernel denied it.
    pub fn is_denied(&self) -> bool {
        matches!(self.errno(), Some(libc::EPERM | libc::EACCES))
    }
}

impl fmt::Display for SysError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} on {}: {}", self.call, self.target, self.source)
    }
}

impl std::error::Error for SysError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_process_lacks_says_that_it_vanished() {
        let error = |errno, target| {
            SysError::new("open", target, io::Error::from_raw_os_error(errno)).is_vanished()
        };
        assert!(error(libc::ESRCH, "thread 7"));
        assert!(error(libc::ECHILD, "thread 7"));
        assert!(error(libc::ENOENT, "/proc/7/fd"));
        assert!(!error(libc::ENOENT, "/proc/sys/kernel/ns_last_pid"));
        assert!(!error(libc::ENOENT, "/srv/data"));
        assert!(!error(libc::ENOENT, "descriptor 7"));
        assert!(!error(libc::EIO, "/proc/7/fd"));
    }
}
