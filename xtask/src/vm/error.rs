//! What can go wrong between asking for a virtual machine and reading its results.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::Kernel;
use super::qemu::Ending;

/// A result of this module.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a virtual machine could not be prepared, booted or read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// This machine lacks something: a skip, not a failure, for callers that may skip.
    #[error("no virtual machine tests here: {what} is missing ({why}); {remedy}")]
    Unavailable {
        /// What is missing.
        what: String,
        /// How that showed.
        why: String,
        /// How to get it.
        remedy: String,
    },
    /// A helper program ended with an error.
    #[error("`{command}` failed ({status}) while trying to {goal}: {stderr}")]
    Tool {
        /// The command line.
        command: String,
        /// What it was run for.
        goal: String,
        /// Its exit status.
        status: String,
        /// The end of what it wrote to stderr.
        stderr: String,
    },
    /// A file operation failed.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },
    /// The archive offers no kernel package that fits.
    #[error(
        "no kernel {kernel} in the Debian archive: {why}; put a kernel image at {} by hand to go on without the archive",
        image.display()
    )]
    NoKernel {
        /// The kernel that was asked for.
        kernel: Kernel,
        /// What each suite answered.
        why: String,
        /// Where a cached image is looked for.
        image: PathBuf,
    },
    /// A binary of the payload needs a shared library that this machine does not have.
    #[error("{} needs {library}, which ldd does not find; install the package that holds it", binary.display())]
    MissingLibrary {
        /// The binary.
        binary: PathBuf,
        /// The library's name.
        library: String,
    },
    /// A payload that cannot be built.
    #[error("the payload is not usable: {0}")]
    Payload(String),
    /// The guest never reached its init program.
    #[error(
        "kernel {kernel} did not reach user space within {limit:?} ({ending}); the whole console is in {}, its end is:\n{tail}",
        log.display()
    )]
    Boot {
        /// The kernel.
        kernel: Kernel,
        /// How long it was given.
        limit: Duration,
        /// How the attempt ended.
        ending: Ending,
        /// The console log.
        log: PathBuf,
        /// Its last lines.
        tail: String,
    },
}

impl Error {
    /// True if this machine lacks something, so that the caller may skip with this message.
    pub fn is_skip(&self) -> bool {
        matches!(self, Error::Unavailable { .. })
    }

    /// An adapter for `map_err` on file operations.
    pub(super) fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.to_path_buf();
        move |source| Error::Io {
            action,
            path,
            source,
        }
    }
}
