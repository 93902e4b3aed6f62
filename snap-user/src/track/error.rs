//! Errors of tracking.

use super::TrackerKind;
use crate::sys::SysError;
use thiserror::Error;

/// Why pages cannot be tracked.
#[derive(Debug, Error)]
pub enum TrackError {
    /// The tracker that the user asked for does not work here.
    #[error(
        "the {kind} tracker does not work here: {why}; use --tracker auto, or see `ksnap doctor`"
    )]
    Unavailable {
        /// Which tracker.
        kind: TrackerKind,
        /// Why not.
        why: String,
    },
    /// A system call failed.
    #[error(transparent)]
    Sys(#[from] SysError),
}

impl TrackError {
    /// The system call error behind, if it is one.
    pub fn sys(&self) -> Option<&SysError> {
        match self {
            Self::Sys(e) => Some(e),
            Self::Unavailable { .. } => None,
        }
    }
}
