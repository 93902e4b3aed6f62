//! What can be wrong with the bytes of a snapshot file.

use crate::codec::CodecError;

/// Why bytes are not a snapshot that this version can read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ImageError {
    /// The bytes are damaged or were never a snapshot.
    #[error("{part}: {why}")]
    Corrupt {
        /// Section of the file.
        part: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// Written by another version.
    #[error("{part}: format version {found}, this ksnap reads {supported}")]
    NewerVersion {
        /// Section of the file.
        part: &'static str,
        /// Version found.
        found: u32,
        /// Newest version that this program reads.
        supported: u32,
    },
    /// Written before the first release, in a form that is read no more.
    #[error(
        "{part}: version {found} of a time before the first release, this ksnap reads version {supported}"
    )]
    OlderVersion {
        /// Section of the file.
        part: &'static str,
        /// Version found.
        found: u32,
        /// Oldest version that this program reads.
        supported: u32,
    },
    /// More than the format can hold.
    #[error("{part}: {why}")]
    TooLarge {
        /// Section of the file.
        part: &'static str,
        /// The limit that was passed.
        why: String,
    },
}

impl ImageError {
    pub(super) fn corrupt(part: &'static str, why: impl Into<String>) -> Self {
        Self::Corrupt {
            part,
            why: why.into(),
        }
    }

    /// A page whose encoded bytes do not decode, or decode to something else.
    pub fn page(addr: u64, error: &CodecError) -> Self {
        Self::corrupt("page", format!("{addr:#x}: {error}"))
    }
}

/// Compares a checksum of `part`.
pub(super) fn check_crc(part: &'static str, bytes: &[u8], want: u32) -> Result<(), ImageError> {
    let found = crc32c::crc32c(bytes);
    if found == want {
        return Ok(());
    }
    Err(ImageError::corrupt(
        part,
        format!("checksum {found:08x}, {want:08x} expected"),
    ))
}
