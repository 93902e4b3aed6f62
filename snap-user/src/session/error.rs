//! Errors of the verbs, complete for the user, and what kind of trouble each is.

#[cfg(feature = "object-storage")]
use crate::bucket::BucketError;
use crate::capture::CaptureError;
use crate::probe::ProbeError;
use crate::restore::RestoreError;
use crate::store::StoreError;
use crate::sys::{SysError, proc};
use crate::track::TrackError;
use crate::wire::WireError;
use std::io;

/// Addresses that an audit error prints.
const SHOWN: usize = 8;

/// Why a verb failed.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The process cannot be captured.
    #[error(transparent)]
    Capture(#[from] CaptureError),
    /// The process cannot be put back.
    #[error(transparent)]
    Restore(#[from] RestoreError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Its pages cannot be tracked.
    #[error(transparent)]
    Track(#[from] TrackError),
    /// The probes failed.
    #[error(transparent)]
    Probe(#[from] ProbeError),
    /// A system call failed.
    #[error(transparent)]
    Sys(#[from] SysError),
    /// Another machine.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// Object storage.
    #[cfg(feature = "object-storage")]
    #[error(transparent)]
    Bucket(#[from] BucketError),
    /// What a process was to be brought back from has changed since it was made.
    #[error(
        "the flat image of the snapshot, a copy that memory is filled from, is damaged, and is used no more: restore again, which makes it anew from the snapshot"
    )]
    DamagedImage,
    /// The processes of a tree are not what they were a moment ago, again and again.
    #[error(
        "processes below process {pid} come, end and replace their programs (exec) faster than a snapshot can be taken"
    )]
    Changing {
        /// The root.
        pid: i32,
    },
    /// What was to be done with another machine came to nothing.
    #[error("{0}")]
    Remote(String),
    /// Something else of the operating system failed.
    #[error("{what}: {source}")]
    Io {
        /// What was tried, on what.
        what: String,
        /// The operating system's reason.
        source: io::Error,
    },
    /// The memory of the process is not what the store would give back.
    #[error(
        "audit: {} of the process differ from what the store gives back: {}. The snapshot is stored but must not be trusted. If no other process wrote there meanwhile (process_vm_writev, a debugger), this is a fault in ksnap: please report it with the output of `ksnap doctor`",
        count(pages.len()), list(pages)
    )]
    Audit {
        /// Every page that differs, ascending.
        pages: Vec<AuditPage>,
    },
    /// The ksnap process that watches the target did not do it.
    #[error("the ksnap that watches this process {why}")]
    Control {
        /// What it said, or that it ended: completes the sentence.
        why: String,
    },
    /// The user asked for something that cannot be.
    #[error("{0}")]
    Usage(String),
}

/// A page that an audit found different.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditPage {
    /// Its address.
    pub addr: u64,
    /// Name of its mapping.
    pub mapping: String,
}

fn count(pages: usize) -> String {
    match pages {
        1 => "1 page".into(),
        n => format!("{n} pages"),
    }
}

fn list(pages: &[AuditPage]) -> String {
    let mut words: Vec<String> = pages
        .iter()
        .take(SHOWN)
        .map(|page| format!("{:#x} in {}", page.addr, page.mapping))
        .collect();
    if pages.len() > SHOWN {
        words.push(format!("{} more", pages.len() - SHOWN));
    }
    words.join(", ")
}

/// Kinds of trouble, as scripts tell them apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// None of the others.
    Failed,
    /// The user asked for something that cannot be.
    Usage,
    /// There is no store.
    NoStore,
    /// Someone else writes it.
    Locked,
    /// The kernel lacks something.
    KernelLacks,
    /// Not allowed.
    Permission,
    /// The process is gone.
    Vanished,
    /// Stored data is damaged.
    Corrupt,
}

impl SessionError {
    /// Wraps an I/O error.
    pub fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }

    /// The system call error behind, if it is one.
    pub(super) fn sys(&self) -> Option<&SysError> {
        match self {
            Self::Capture(CaptureError::Sys(error))
            | Self::Restore(RestoreError::Sys(error))
            | Self::Sys(error) => Some(error),
            Self::Track(error) => error.sys(),
            _ => None,
        }
    }

    /// Says of a call that found nothing whether `pid` is gone, which only then counts as that.
    pub(super) fn of_process(self, pid: i32) -> Self {
        let found_nothing = self.sys().filter(|error| error.is_vanished());
        match found_nothing.map(ToString::to_string) {
            Some(why) if !proc::is_alive(pid) => CaptureError::Vanished { pid, why }.into(),
            _ => self,
        }
    }

    /// What kind of trouble it is. That a process is gone is for those to say who have looked
    /// ([`CaptureError::Vanished`]): a call that found nothing may have looked for a thread, or come upon
    /// an execve(2).
    pub fn trouble(&self) -> Trouble {
        match self {
            Self::Capture(error) => match error {
                CaptureError::Vanished { .. } => Trouble::Vanished,
                CaptureError::Permission { .. } => Trouble::Permission,
                CaptureError::Refused { .. } => Trouble::Failed,
                CaptureError::Sys(error) => sys(error),
            },
            Self::Restore(error) => match error {
                RestoreError::Sys(error) => sys(error),
                // A path that is missing is no process that is gone.
                RestoreError::Unborn { source, .. } if source.is_vanished() => Trouble::Failed,
                RestoreError::Unborn { source, .. } => sys(source),
                RestoreError::Refused { .. }
                | RestoreError::Halfway { .. }
                | RestoreError::TreeHalfway { .. } => Trouble::Failed,
            },
            Self::Store(error) => store(error),
            Self::Track(error) => match error {
                TrackError::Unavailable { .. } => Trouble::KernelLacks,
                TrackError::Sys(error) => sys(error),
            },
            Self::Probe(error) => probe(error),
            Self::Sys(error) => sys(error),
            Self::Wire(error) => match error {
                WireError::Untrusted { .. } => Trouble::Permission,
                _ => Trouble::Failed,
            },
            #[cfg(feature = "object-storage")]
            Self::Bucket(error) => match error {
                BucketError::Url { .. } => Trouble::Usage,
                BucketError::Empty { .. } => Trouble::NoStore,
                BucketError::Service { denied: true, .. } => Trouble::Permission,
                BucketError::Corrupt { .. } => Trouble::Corrupt,
                BucketError::Service { .. }
                | BucketError::Missing { .. }
                | BucketError::NewerVersion { .. }
                | BucketError::TooLarge(_) => Trouble::Failed,
            },
            Self::Io { source, .. } => io_trouble(source),
            Self::Audit { .. } | Self::Control { .. } | Self::Changing { .. } | Self::Remote(_) => {
                Trouble::Failed
            }
            Self::Usage(_) => Trouble::Usage,
            Self::DamagedImage => Trouble::Corrupt,
        }
    }
}

fn store(error: &StoreError) -> Trouble {
    match error {
        StoreError::NoStore { .. } => Trouble::NoStore,
        StoreError::Locked { .. } | StoreError::TagsBusy { .. } => Trouble::Locked,
        StoreError::Corrupt { .. } | StoreError::BadTag { .. } => Trouble::Corrupt,
        StoreError::Io { source, .. } => io_trouble(source),
        StoreError::BadReference { .. } | StoreError::BadKey { .. } => Trouble::Usage,
        StoreError::Sealed { .. } | StoreError::WrongIdentity { .. } => Trouble::Permission,
        StoreError::Full { .. }
        | StoreError::NotFound { .. }
        | StoreError::Ambiguous { .. }
        | StoreError::NewerVersion { .. }
        | StoreError::OlderVersion { .. }
        | StoreError::Misuse { .. }
        | StoreError::NotRemoved { .. } => Trouble::Failed,
    }
}

fn probe(error: &ProbeError) -> Trouble {
    match error {
        ProbeError::NotPermitted { .. } => Trouble::Permission,
        ProbeError::AbiMismatch { .. } | ProbeError::BadObject { .. } => Trouble::Failed,
        _ => Trouble::KernelLacks,
    }
}

fn sys(error: &SysError) -> Trouble {
    if error.is_denied() {
        Trouble::Permission
    } else if matches!(error.errno(), Some(libc::ENOSYS)) {
        Trouble::KernelLacks
    } else {
        Trouble::Failed
    }
}

fn io_trouble(error: &io::Error) -> Trouble {
    match error.kind() {
        io::ErrorKind::PermissionDenied => Trouble::Permission,
        _ => Trouble::Failed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::ImageError;

    #[test]
    fn each_kind_of_trouble_is_told_apart() {
        let errno = |n| SysError::new("ptrace", "thread 1", io::Error::from_raw_os_error(n));
        let store = |error: StoreError| SessionError::from(error).trouble();
        assert_eq!(
            SessionError::from(errno(libc::ESRCH)).trouble(),
            Trouble::Failed
        );
        // Of this process it is not true, of one that cannot be it is.
        let own = std::process::id() as i32;
        let of = |pid| SessionError::from(errno(libc::ESRCH)).of_process(pid);
        assert_eq!(of(own).trouble(), Trouble::Failed);
        assert_eq!(of(i32::MAX).trouble(), Trouble::Vanished);
        assert_eq!(
            SessionError::from(errno(libc::EPERM)).trouble(),
            Trouble::Permission
        );
        assert_eq!(
            SessionError::from(errno(libc::ENOSYS)).trouble(),
            Trouble::KernelLacks
        );
        assert_eq!(
            SessionError::from(errno(libc::EIO)).trouble(),
            Trouble::Failed
        );
        assert_eq!(
            SessionError::from(CaptureError::Vanished {
                pid: 1,
                why: "w".into()
            })
            .trouble(),
            Trouble::Vanished
        );
        let denied = io::Error::from(io::ErrorKind::PermissionDenied);
        assert_eq!(
            store(StoreError::Io {
                call: "open",
                path: "/x".into(),
                source: denied
            }),
            Trouble::Permission
        );
        assert_eq!(
            store(StoreError::NoStore {
                dir: "/x".into(),
                why: "w".into()
            }),
            Trouble::NoStore
        );
        assert_eq!(
            store(StoreError::Locked {
                session: "/x".into(),
                pid: None
            }),
            Trouble::Locked
        );
        let source = ImageError::Corrupt {
            part: "header",
            why: "w".into(),
        };
        assert_eq!(
            store(StoreError::Corrupt {
                path: "/x".into(),
                source
            }),
            Trouble::Corrupt
        );
    }

    #[test]
    fn an_audit_names_the_first_pages_and_counts_the_rest() {
        let pages = (0..10)
            .map(|n| AuditPage {
                addr: n * 0x1000,
                mapping: "[heap]".into(),
            })
            .collect();
        let text = SessionError::Audit { pages }.to_string();
        assert!(text.contains("10 pages"), "{text}");
        assert!(text.contains("0x7000 in [heap], 2 more."), "{text}");
        assert!(!text.contains("0x8000"), "{text}");
    }
}
