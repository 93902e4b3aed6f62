//! The socket of a watcher: one process owns the tracking of a target, other commands ask it.
//!
//! A line of JSON each way. The socket lies in the store, one for each watched process, for its
//! owner alone.

use super::prune::{PrunedSession, What};
use super::{Options, Result, RolledBack, RolledBackTree, SessionError, Taken, TakenTree, Then};
use crate::image::SessionId;
use crate::model::SnapshotId;
use crate::profile::Report;
use crate::store::StoreError;
use serde::{Deserialize, Serialize};
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What a watcher can be asked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Take a snapshot now.
    Snap {
        /// What becomes of the process then.
        then: Then,
        /// What is done in addition to what the watcher does.
        #[serde(default)]
        also: Also,
        /// The keys for which it has to be sealed, if it has to be.
        #[serde(default)]
        recipients: Vec<String>,
        /// Of the process and all of its descendants.
        #[serde(default)]
        tree: bool,
        /// The process; without one, the one that is watched.
        #[serde(default)]
        pid: Option<i32>,
    },
    /// Roll the process back.
    Rollback {
        /// The snapshot, 32 hex digits; another reference where whoever asks cannot read the store.
        to: String,
        /// With all of its descendants.
        #[serde(default)]
        tree: bool,
        /// The process; without one, the one that is watched.
        #[serde(default)]
        pid: Option<i32>,
    },
    /// Go on for so long, then tell what it cost.
    Profile {
        /// Milliseconds.
        lasting_ms: u64,
    },
    /// Remove snapshots.
    Prune {
        /// Which.
        what: What,
        /// Only say which.
        dry_run: bool,
        /// From which session, 32 hex digits; without one, that of the process that is watched.
        #[serde(default)]
        session: Option<String>,
    },
}

/// What a snapshot that is asked for has beyond those that the watcher takes by itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Also {
    /// All memory is compared with what the store gives back.
    pub audit: bool,
    /// Contents of files are saved.
    pub files: bool,
}

impl Also {
    /// What these options ask for of a watcher.
    ///
    /// # Errors
    /// Where they ask for what it cannot do otherwise than it does.
    pub fn of(options: &Options) -> Result<Self> {
        refuse_own(options.own)?;
        Ok(Self {
            audit: options.audit,
            files: options.files,
        })
    }
}

/// Refuses an option of which the watcher has its own.
pub(super) fn refuse_own(option: Option<&str>) -> Result<()> {
    match option {
        None => Ok(()),
        Some(option) => Err(SessionError::Usage(format!(
            "{option} has no effect here: the process is being watched, and the watcher has its own; leave the option \
             out, or end that watch and give it to a new one"
        ))),
    }
}

/// How a snapshot is named to a watcher: by its id, or as it was asked for where only the watcher has the key.
pub(super) fn named(
    found: std::result::Result<SnapshotId, StoreError>,
    reference: &str,
) -> Result<String> {
    match found {
        Ok(id) => Ok(id.to_string()),
        Err(error) if error.is_sealed() => Ok(reference.to_owned()),
        Err(error) => Err(error.into()),
    }
}

/// What it answers.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// The snapshot that was taken.
    Taken(Box<Taken>),
    /// The tree that was taken.
    TakenTree(Box<TakenTree>),
    /// The rollback that was done.
    RolledBack(RolledBack),
    /// The rollback of a tree that was done.
    RolledBackTree(Box<RolledBackTree>),
    /// The profile.
    Profile(Box<Report>),
    /// What was removed, or would be.
    Pruned(Box<PrunedSession>),
    /// It failed.
    Failed(String),
}

/// Where the socket of a watched process lies.
pub fn socket_path(store: &Path, pid: i32) -> PathBuf {
    store.join(format!("{pid}.sock"))
}

/// The same place by a short name: the address of a Unix socket has 108 bytes, a path may have more.
/// The folder must stay open meanwhile.
pub fn short_path(folder: &std::fs::File, pid: i32) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}/{pid}.sock", folder.as_raw_fd()))
}

/// A connection to a watcher.
pub struct Watcher {
    stream: BufReader<UnixStream>,
    /// The process whose watcher was looked for. The watcher of a tree has ways to it from all of its processes.
    of: i32,
}

/// Finds the watcher of a process. `None` when nobody watches it.
pub fn connect(store: &Path, pid: i32) -> Result<Option<Watcher>> {
    let Ok(folder) = std::fs::File::open(store) else {
        return Ok(None);
    };
    match UnixStream::connect(short_path(&folder, pid)) {
        Ok(stream) => Ok(Some(Watcher {
            stream: BufReader::new(stream),
            of: pid,
        })),
        // A socket whose watcher was killed refuses. What is no folder at all whoever opens the store tells better.
        Err(e)
            if matches!(
                e.kind(),
                std::io::ErrorKind::NotFound
                    | std::io::ErrorKind::ConnectionRefused
                    | std::io::ErrorKind::NotADirectory
            ) =>
        {
            Ok(None)
        }
        Err(e) => Err(SessionError::Io {
            what: format!("connect to {}", socket_path(store, pid).display()),
            source: e,
        }),
    }
}

impl Watcher {
    /// The process that watches, as the kernel says.
    pub fn pid(&self) -> Option<i32> {
        use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
        let peer = getsockopt(self.stream.get_ref(), PeerCredentials).ok()?;
        Some(peer.pid())
    }

    /// Asks one thing and waits for the answer.
    pub fn ask(&mut self, request: &Request) -> Result<Reply> {
        let died = || SessionError::Control {
            why: "ended before it answered".into(),
        };
        let mut line = serde_json::to_string(request).expect("plain data");
        line.push('\n');
        self.stream
            .get_mut()
            .write_all(line.as_bytes())
            .map_err(|_| died())?;
        let mut answer = String::new();
        self.stream.read_line(&mut answer).map_err(|_| died())?;
        let reply = serde_json::from_str(&answer).map_err(|e| match answer.is_empty() {
            true => died(),
            false => SessionError::Control {
                why: format!("answered in a form unknown here ({e})"),
            },
        })?;
        match reply {
            Reply::Failed(why) => Err(SessionError::Control {
                why: format!("failed: {why}"),
            }),
            other => Ok(other),
        }
    }

    /// Has a snapshot taken.
    pub fn snap(&mut self, then: Then, also: Also, recipients: &[String]) -> Result<Taken> {
        match self.ask(&self.snap_request(then, also, recipients, false))? {
            Reply::Taken(taken) => Ok(*taken),
            other => Err(unexpected(&other)),
        }
    }

    /// Has a snapshot taken of all processes of the tree that it watches.
    pub fn snap_tree(
        &mut self,
        then: Then,
        also: Also,
        recipients: &[String],
    ) -> Result<TakenTree> {
        match self.ask(&self.snap_request(then, also, recipients, true))? {
            Reply::TakenTree(taken) => Ok(*taken),
            other => Err(unexpected(&other)),
        }
    }

    fn snap_request(&self, then: Then, also: Also, recipients: &[String], tree: bool) -> Request {
        Request::Snap {
            then,
            also,
            recipients: recipients.to_vec(),
            tree,
            pid: Some(self.of),
        }
    }

    /// Has the process rolled back.
    pub fn rollback(&mut self, to: &str) -> Result<RolledBack> {
        let (to, tree, pid) = (to.to_owned(), false, Some(self.of));
        match self.ask(&Request::Rollback { to, tree, pid })? {
            Reply::RolledBack(done) => Ok(done),
            other => Err(unexpected(&other)),
        }
    }

    /// Has all processes of the tree that it watches rolled back.
    pub fn rollback_tree(&mut self, to: &str) -> Result<RolledBackTree> {
        let (to, tree, pid) = (to.to_owned(), true, Some(self.of));
        match self.ask(&Request::Rollback { to, tree, pid })? {
            Reply::RolledBackTree(done) => Ok(*done),
            other => Err(unexpected(&other)),
        }
    }

    /// Has snapshots of a session removed.
    pub fn prune(
        &mut self,
        what: &What,
        dry_run: bool,
        session: SessionId,
    ) -> Result<PrunedSession> {
        let what = what.clone();
        match self.ask(&Request::Prune {
            what,
            dry_run,
            session: Some(session.to_string()),
        })? {
            Reply::Pruned(pruned) => Ok(*pruned),
            other => Err(unexpected(&other)),
        }
    }

    /// Has a profile made.
    pub fn profile(&mut self, lasting: Duration) -> Result<Report> {
        let lasting_ms = lasting.as_millis() as u64;
        match self.ask(&Request::Profile { lasting_ms })? {
            Reply::Profile(report) => Ok(*report),
            other => Err(unexpected(&other)),
        }
    }
}

fn unexpected(reply: &Reply) -> SessionError {
    SessionError::Control {
        why: format!("answered something else: {reply:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_of_before_there_was_more_to_ask_for_is_understood() {
        let old: Request = serde_json::from_str(r#"{"snap":{"then":"stop"}}"#).unwrap();
        let also = Also::default();
        let then = Then::Stop;
        let (recipients, tree, pid) = (Vec::new(), false, None);
        let want = Request::Snap {
            then,
            also,
            recipients,
            tree,
            pid,
        };
        assert_eq!(old, want);
        let part: Request =
            serde_json::from_str(r#"{"snap":{"then":"stop","also":{"files":true}}}"#).unwrap();
        let also = Also {
            files: true,
            ..also
        };
        let recipients = Vec::new();
        let want = Request::Snap {
            then,
            also,
            recipients,
            tree,
            pid,
        };
        assert_eq!(part, want);
    }
}
