//! What can go wrong with a peer.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// Why a peer could not be talked to.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The network or the other side's end.
    #[error("{what}: {source}")]
    Io {
        /// What was tried, with whom.
        what: String,
        /// The operating system's reason.
        source: io::Error,
    },
    /// The other side did not do its part in time.
    #[error("{peer} has not {what} within {}: the connection is given up", spelled(*within))]
    Stalled {
        /// Who.
        peer: String,
        /// What it should have done.
        what: &'static str,
        /// How long it had.
        within: Duration,
    },
    /// No connection that both sides trust.
    #[error("no trusted connection to {peer}: {why}")]
    Untrusted {
        /// Who.
        peer: String,
        /// What failed, and what to do.
        why: String,
    },
    /// Bytes that are no message.
    #[error("not a message of this protocol: {0}")]
    Malformed(String),
    /// A message that does not come at this point, or contradicts one before.
    #[error("{peer} broke the protocol: {why}")]
    Broken {
        /// Who.
        peer: String,
        /// How.
        why: String,
    },
    /// The other side says no.
    #[error("{peer} refuses: {why}")]
    Refused {
        /// Who.
        peer: String,
        /// Why.
        why: String,
    },
    /// The two machines or programs do not fit each other.
    #[error("{0}")]
    Unfit(String),
    /// A key, or the folder of the keys.
    #[error("{}: {why}", path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, and what to do.
        why: String,
    },
}

impl WireError {
    /// What could not be done with a file of the keys, why, and where that is known what to do.
    pub(super) fn of_key_file(path: PathBuf, what: &str, error: &io::Error) -> Self {
        let advice = match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                "; free some space there, or name another folder in KSNAP_CONFIG"
            }
            io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied => {
                "; KSNAP_CONFIG names another folder"
            }
            _ => "",
        };
        let why = format!("{what} ({error}){advice}");
        Self::Key { path, why }
    }

    /// Whether the connection broke, or may come back: what was received is kept, and trying again resumes.
    pub fn is_lost(&self) -> bool {
        matches!(self, Self::Io { .. } | Self::Stalled { .. })
    }
}

/// A time as a sentence has it.
fn spelled(time: Duration) -> String {
    match time.as_secs() {
        0 => format!("{} ms", time.as_secs_f64() * 1e3),
        seconds => format!("{seconds} s"),
    }
}
