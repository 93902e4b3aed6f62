//! What can go wrong with a store.

use super::seal::{self, SealError};
use crate::image::ImageError;
use crate::model::SnapshotId;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// A snapshot that an ambiguous reference may mean.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Its name.
    pub id: SnapshotId,
    /// Sequence number in its session.
    pub seq: u32,
    /// Its process.
    pub pid: i32,
}

impl fmt::Display for Candidate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (pid {}, @{})", self.id.short(), self.pid, self.seq)
    }
}

fn list(candidates: &[Candidate]) -> String {
    let mut names: Vec<String> = candidates
        .iter()
        .take(8)
        .map(Candidate::to_string)
        .collect();
    if candidates.len() > names.len() {
        names.push(format!("{} more", candidates.len() - names.len()));
    }
    names.join(", ")
}

/// Why the store could not do it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// No store there.
    #[error("no store at {}: {why}", dir.display())]
    NoStore {
        /// Folder asked for.
        dir: PathBuf,
        /// What is there instead, and what to do.
        why: String,
    },
    /// Another process writes this session.
    #[error("session {} is being written by {}: wait for it to end, or ask it through its socket",
        session.display(), pid.map_or("another process".into(), |pid| format!("ksnap process {pid}")))]
    Locked {
        /// The session's folder.
        session: PathBuf,
        /// The writer, if it left its process id.
        pid: Option<i32>,
    },
    /// A file is damaged.
    #[error("{}: damaged {source}; `ksnap verify` lists all damage", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: ImageError,
    },
    /// No space or quota left, or the file-size limit was reached.
    #[error("no space left for {}: {source}; free some space or use another --store", path.display())]
    Full {
        /// The file being written.
        path: PathBuf,
        /// The operating system's reason.
        source: io::Error,
    },
    /// No such snapshot or session.
    #[error("not found: {what}")]
    NotFound {
        /// What was looked for, and where.
        what: String,
    },
    /// A reference that may mean several snapshots.
    #[error(
        "{reference} may mean {}: give more digits, or a process",
        list(candidates)
    )]
    Ambiguous {
        /// The reference as given.
        reference: String,
        /// What it may mean, newest first.
        candidates: Vec<Candidate>,
    },
    /// Text that is no reference.
    #[error(
        "{reference}: {why}; a reference is latest, a tag, an id or its first 4 digits or more, or @SEQUENCE, with ~N for the Nth parent"
    )]
    BadReference {
        /// The reference as given.
        reference: String,
        /// What is wrong with it.
        why: String,
    },
    /// Written by another version.
    #[error("{}: written by {} ksnap (format {found}, this one reads {supported}): use that one", path.display(), if found > supported { "a newer" } else { "an older" })]
    NewerVersion {
        /// The file.
        path: PathBuf,
        /// Version found.
        found: u32,
        /// Newest version that this program reads.
        supported: u32,
    },
    /// Written before the first release, in a form that is read no more.
    #[error("{}: written by a ksnap of before the first release (version {found}, this one reads {supported}): take the snapshot again", path.display())]
    OlderVersion {
        /// The file.
        path: PathBuf,
        /// Version found.
        found: u32,
        /// Oldest version that this program reads.
        supported: u32,
    },
    /// The writer was asked for something that the format cannot say.
    #[error("snapshot cannot be written: {why}")]
    Misuse {
        /// What was wrong.
        why: String,
    },
    /// Snapshots were to be removed, and all of them are still there.
    #[error("nothing was removed: {why}")]
    NotRemoved {
        /// What stood in the way.
        why: String,
    },
    /// A tag protects nothing that can be found: what it is to protect is not known.
    #[error(
        "nothing is removed because of the tag {name}: {why}; take it away with `ksnap tag -d {name}`, or set it again with `ksnap tag {name} SNAPSHOT --force`"
    )]
    BadTag {
        /// The tag.
        name: String,
        /// What is wrong with it.
        why: String,
    },
    /// The lock of the tags stayed held.
    #[error("{}: tags are being changed by another ksnap: try again", path.display())]
    TagsBusy {
        /// The lock.
        path: PathBuf,
    },
    /// What is meant is sealed, and no key was named.
    #[error(
        "{what} cannot be read: it is sealed, and no key was named; name the file with the key with --identity FILE, or in KSNAP_IDENTITY"
    )]
    Sealed {
        /// What was asked for, and where.
        what: String,
    },
    /// What is meant is sealed, and not for the keys that were named.
    #[error(
        "{what} cannot be read: it is sealed, and none of the keys in the file of --identity opens it; name the file with the key that belongs to its --encrypt-to{}",
        if *stored { "; where it is that one, key.age in the folder of the session is damaged: bring that file back from a copy" } else { "" }
    )]
    WrongIdentity {
        /// What was asked for, and where.
        what: String,
        /// It is in a session of a store, whose folder has its key.
        stored: bool,
    },
    /// What was named as a key is none.
    #[error("{what}: {why}")]
    BadKey {
        /// What was named.
        what: String,
        /// What is wrong with it.
        why: String,
    },
    /// The operating system refused.
    #[error("{call} {}: {source}{}", path.display(), advice(source))]
    Io {
        /// What was tried.
        call: &'static str,
        /// On which file.
        path: PathBuf,
        /// The operating system's reason.
        source: io::Error,
    },
}

/// What the kernel says when a device does not read or write any more. It has no kind of its own.
const EIO: i32 = rustix::io::Errno::IO.raw_os_error();

/// What to do about it.
fn advice(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::ReadOnlyFilesystem => {
            "; what is there can be read and restored, and --store names another folder for what is new"
        }
        io::ErrorKind::PermissionDenied => {
            "; it may be another user's: --store names another folder"
        }
        _ if source.raw_os_error() == Some(EIO) => {
            "; the disk may be failing: the kernel's log (dmesg) says more, and --store names another folder"
        }
        _ => "",
    }
}

impl StoreError {
    /// Wraps an I/O error; a full disk gets its own variant.
    pub(super) fn io(call: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| match source.kind() {
            io::ErrorKind::StorageFull
            | io::ErrorKind::QuotaExceeded
            | io::ErrorKind::FileTooLarge => Self::Full { path, source },
            _ => match SealError::behind(&source) {
                Some(cause) => seal::told(&path, cause),
                None => Self::Io { call, path, source },
            },
        }
    }

    /// What was asked for is sealed, and the key is missing or another one.
    pub fn is_sealed(&self) -> bool {
        matches!(self, Self::Sealed { .. } | Self::WrongIdentity { .. })
    }

    /// Another ksnap writes it just now, or is making it: later it may be free.
    pub fn is_busy(&self) -> bool {
        match self {
            Self::Locked { .. } => true,
            Self::Io { source, .. } => matches!(
                source.kind(),
                io::ErrorKind::AlreadyExists | io::ErrorKind::DirectoryNotEmpty
            ),
            _ => false,
        }
    }

    /// No sequence number is left.
    pub(super) fn session_full() -> Self {
        Self::Misuse {
            why: "the session is full: begin another".into(),
        }
    }

    /// The file is not there (any more).
    pub(super) fn is_missing(&self) -> bool {
        match self {
            Self::NotFound { .. } => true,
            Self::Io { source, .. } => source.kind() == io::ErrorKind::NotFound,
            _ => false,
        }
    }

    /// Wraps what is wrong with a file's bytes.
    pub(super) fn image(path: &Path) -> impl FnOnce(ImageError) -> Self {
        let path = path.to_owned();
        move |source| match source {
            ImageError::NewerVersion {
                found, supported, ..
            } => Self::NewerVersion {
                path,
                found,
                supported,
            },
            ImageError::OlderVersion {
                found, supported, ..
            } => Self::OlderVersion {
                path,
                found,
                supported,
            },
            source => Self::Corrupt { path, source },
        }
    }

    /// A damaged file.
    pub(super) fn corrupt(path: &Path, part: &'static str, why: impl Into<String>) -> Self {
        Self::Corrupt {
            path: path.to_owned(),
            source: ImageError::Corrupt {
                part,
                why: why.into(),
            },
        }
    }
}
