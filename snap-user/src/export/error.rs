//! What can go wrong with an export.

use std::io;

/// Why a snapshot was not exported. `E` is the error of where its pages come from.
#[derive(Debug, thiserror::Error)]
pub enum ExportError<E: std::error::Error + 'static> {
    /// Its pages cannot be read.
    #[error(transparent)]
    Pages(E),
    /// The file cannot be written.
    #[error("{call} the core file: {source}")]
    Write {
        /// What was tried.
        call: &'static str,
        /// The operating system's reason.
        source: io::Error,
    },
    /// The process does not fit the format.
    #[error("no ELF core can be made of this snapshot: {why}")]
    Format {
        /// What does not fit.
        why: String,
    },
}

impl<E: std::error::Error + 'static> ExportError<E> {
    /// Wraps an I/O error.
    pub(super) fn write(call: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Write { call, source }
    }
}
