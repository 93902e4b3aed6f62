//! Errors of capturing.

use crate::sys::{SysError, proc};
use thiserror::Error;

/// Why a process cannot be captured.
#[derive(Debug, Error)]
pub enum CaptureError {
    /// There is no such process, or it ended meanwhile.
    #[error("process {pid} is gone; nothing of it can be captured any more ({why})")]
    Vanished {
        /// Its id.
        pid: i32,
        /// Which call found nothing.
        why: String,
    },
    /// This kind of process is not supported.
    #[error("process {pid} cannot be captured: {why}")]
    Refused {
        /// Its id.
        pid: i32,
        /// Why, and what to do.
        why: String,
    },
    /// Not allowed to trace it.
    #[error(
        "process {pid} may not be traced ({why}); {}", way_out(rustix::process::geteuid().is_root())
    )]
    Permission {
        /// Its id.
        pid: i32,
        /// What the kernel said.
        why: String,
    },
    /// A system call failed.
    #[error(transparent)]
    Sys(SysError),
}

/// What to do where a process may not be traced.
fn way_out(is_root: bool) -> &'static str {
    match is_root {
        true => {
            "root has not all it needs here: CAP_SYS_PTRACE is missing or does not reach the process (a container, a user namespace), or kernel.yama.ptrace_scope is 3; see ptrace(2) and `ksnap doctor`"
        }
        false => {
            "run ksnap as root or as the process's own user, and see ptrace(2) on `Yama` and dumpable processes"
        }
    }
}

impl CaptureError {
    /// Names the usual reasons; anything else stays a system call error. So does a call that found nothing
    /// though the process lives: a thread that ended, a program that was replaced.
    pub fn from_sys(pid: i32, error: SysError) -> Self {
        if error.is_vanished() && !proc::is_alive(pid) {
            Self::Vanished {
                pid,
                why: error.to_string(),
            }
        } else if error.is_denied() {
            Self::Permission {
                pid,
                why: error.to_string(),
            }
        } else {
            Self::Sys(error)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;

    #[test]
    fn root_is_not_told_to_be_root() {
        assert!(way_out(true).contains("CAP_SYS_PTRACE"));
        assert!(!way_out(true).contains("as root"));
        assert!(way_out(false).contains("as root"));
    }

    #[test]
    fn a_process_is_gone_only_when_it_does_not_live() {
        let missing = || {
            let source = io::Error::from_raw_os_error(libc::ENOENT);
            SysError::new("open", "/proc/7/fd/3", source)
        };
        let own = std::process::id() as i32;
        let lives = CaptureError::from_sys(own, missing());
        assert!(matches!(lives, CaptureError::Sys(_)), "{lives}");
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let pid = child.id() as i32;
        child.wait().unwrap();
        let gone = CaptureError::from_sys(pid, missing());
        assert!(matches!(gone, CaptureError::Vanished { .. }), "{gone}");
        // What said so is told.
        assert!(gone.to_string().contains("/proc/7/fd/3"), "{gone}");
    }
}
