//! What can go wrong with sealed files, as the cause inside an [`io::Error`]: the layer has the interface of files.

use std::io;
use std::path::PathBuf;

/// Why a sealed file cannot be read or written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(in crate::store) enum SealError {
    /// Nobody has named a key.
    #[error("it is sealed, and no key was named")]
    NoIdentity {
        /// The key's file.
        path: PathBuf,
    },
    /// None of the keys that were named is the one.
    #[error("it is sealed, and none of the keys that were named opens it")]
    WrongIdentity {
        /// The key's file.
        path: PathBuf,
    },
    /// The bytes are not what was written.
    #[error("{part}: {why}")]
    Damaged {
        /// Which part of the file.
        part: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// Written by a later version.
    #[error("sealed in version {found}")]
    Newer {
        /// Version found.
        found: u32,
    },
}

impl SealError {
    /// The error behind one of files, if it is of this kind.
    pub(in crate::store) fn behind(error: &io::Error) -> Option<&Self> {
        error.get_ref()?.downcast_ref()
    }
}

impl From<SealError> for io::Error {
    fn from(error: SealError) -> Self {
        let kind = match error {
            SealError::NoIdentity { .. } | SealError::WrongIdentity { .. } => {
                io::ErrorKind::PermissionDenied
            }
            SealError::Damaged { .. } | SealError::Newer { .. } => io::ErrorKind::InvalidData,
        };
        Self::new(kind, error)
    }
}

/// A sealed block that is not what was written.
pub(super) fn damaged(why: impl Into<String>) -> SealError {
    SealError::Damaged {
        part: "sealed block",
        why: why.into(),
    }
}
