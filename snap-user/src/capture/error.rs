//! Errors of capturing.

use crate::sys::SysError;
use thiserror::Error;

/// Why a process cannot be captured.
#[derive(Debug, Error)]
pub enum CaptureError {
    /// There is no such process, or it ended meanwhile.
    #[error("process {pid} is gone; nothing of it can be captured any more")]
    Vanished {
        /// Its id.
        pid: i32,
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
        "process {pid} may not be traced ({why}); run ksnap as root or as the process's own user, and see ptrace(2) on `Yama` and dumpable processes"
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

impl CaptureError {
    /// Names the usual reasons; anything else stays a system call error.
    pub fn from_sys(pid: i32, error: SysError) -> Self {
        if error.is_vanished() {
            Self::Vanished { pid }
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
