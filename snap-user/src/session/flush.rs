//! `flush`: what lies in memory, to the disk, the newest first. And what a store takes.

use super::ram::lies_in_memory;
use super::{Result, SessionError};
use crate::store::{Due, Flushed, Speed, Store, StoreError};
use crate::sys::room;
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// What a flush has to write, and how long that will take.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FlushPlan {
    /// The store in memory.
    pub from: PathBuf,
    /// The store on the disk.
    pub to: PathBuf,
    /// Sessions with something to write, in the order in which they are written.
    pub sessions: Vec<FlushSession>,
    /// Snapshots to write.
    pub snapshots: u64,
    /// Bytes to write, about.
    pub bytes: u64,
    /// How many bytes a second become durable there, measured now; null where there is nothing to write.
    pub bytes_per_second: Option<u64>,
    /// How long the flush will take at that speed, nanoseconds.
    pub expected_ns: u64,
}

/// One session of a flush.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FlushSession {
    /// The session.
    pub session: String,
    /// Its process.
    pub pid: i32,
    /// The process's name.
    pub comm: String,
    /// Snapshots to write, or written.
    pub snapshots: u64,
    /// Bytes to write, or written.
    pub bytes: u64,
}

/// What a flush has written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FlushDone {
    /// The store in memory.
    pub from: PathBuf,
    /// The store on the disk.
    pub to: PathBuf,
    /// Sessions that were written.
    pub sessions: Vec<FlushSession>,
    /// Snapshots written.
    pub snapshots: u64,
    /// Bytes written.
    pub bytes: u64,
    /// How long it took, nanoseconds.
    pub took_ns: u64,
    /// What was not written, and why; a sentence each.
    pub notes: Vec<String>,
}

/// A store as a whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct StoreDescription {
    /// Its folder.
    pub dir: PathBuf,
    /// It lies in memory.
    pub in_memory: bool,
    /// Sessions in it.
    pub sessions: u64,
    /// Snapshots in it.
    pub snapshots: u64,
    /// Bytes of all of them.
    pub bytes: u64,
    /// Bytes that are left on its file system.
    pub free: u64,
    /// Bytes that its file system has in all.
    pub total: u64,
    /// How many bytes a second become durable: in the store on the disk, measured now.
    pub bytes_per_second: Option<u64>,
    /// For a store in memory: what a flush would write.
    pub flush: Option<FlushPlan>,
}

fn described(due: &Due) -> FlushSession {
    FlushSession {
        session: due.session.to_string(),
        pid: due.info.pid,
        comm: due.info.comm.clone(),
        snapshots: due.snapshots,
        bytes: due.bytes,
    }
}

/// What a flush would write, and how long it would take.
pub fn plan_flush(from: &Path, to: &Path) -> Result<FlushPlan> {
    refuse_same(from, to)?;
    let source = Store::open(from)?;
    let due = match Store::open(to) {
        Ok(target) => source.due(Some(&target))?,
        Err(StoreError::NoStore { .. }) => source.due(None)?,
        Err(error) => return Err(error.into()),
    };
    let snapshots = due.iter().map(|due| due.snapshots).sum();
    let bytes = due.iter().map(|due| due.bytes).sum();
    let speed = match snapshots {
        0 => None,
        _ => Some(Speed::measure(to)?),
    };
    Ok(FlushPlan {
        from: from.to_owned(),
        to: to.to_owned(),
        sessions: due.iter().map(described).collect(),
        snapshots,
        bytes,
        bytes_per_second: speed.map(|speed| speed.bytes_per_second),
        expected_ns: speed.map_or(0, |speed| speed.time_ns(snapshots, bytes)),
    })
}

/// Writes what lies in memory to the disk: the session with the newest snapshot first, and of each the newest chain
/// first. `report` is told how many snapshots and bytes are durable by now.
///
/// A session that cannot be written is named, and does not keep the others from being written.
///
/// # Errors
/// Where nothing at all could be written. What was written until then stays, and the next flush goes on from there.
pub fn flush(from: &Path, to: &Path, report: &mut dyn FnMut(u64, u64)) -> Result<FlushDone> {
    refuse_same(from, to)?;
    let start = Instant::now();
    let source = Store::open(from)?;
    let target = Store::open_or_create(to)?;
    let mut done = FlushDone {
        from: from.to_owned(),
        to: to.to_owned(),
        sessions: Vec::new(),
        snapshots: 0,
        bytes: 0,
        took_ns: 0,
        notes: Vec::new(),
    };
    let mut failed: Option<SessionError> = None;
    for due in source.due(Some(&target))? {
        let (snapshots, bytes) = (done.snapshots, done.bytes);
        let mut so_far = Flushed::default();
        let outcome = source.flush_session(due.session, &target, &mut |now| {
            so_far = now.clone();
            report(snapshots + now.snapshots, bytes + now.bytes);
        });
        let written = match outcome {
            Ok(written) => written,
            Err(error) => {
                let pid = due.info.pid;
                done.notes.push(format!(
                    "session {} of process {pid} was not written to its end: {error}",
                    due.session
                ));
                failed.get_or_insert(error.into());
                so_far
            }
        };
        done.snapshots += written.snapshots;
        done.bytes += written.bytes;
        done.notes.extend(written.notes);
        if written.snapshots > 0 {
            done.sessions.push(FlushSession {
                snapshots: written.snapshots,
                bytes: written.bytes,
                ..described(&due)
            });
        }
    }
    done.took_ns = start.elapsed().as_nanos() as u64;
    match failed {
        Some(error) if done.snapshots == 0 => Err(error),
        _ => Ok(done),
    }
}

fn refuse_same(from: &Path, to: &Path) -> Result<()> {
    let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
    match real(from) == real(to) {
        true => Err(SessionError::Usage(format!(
            "{} is the store in memory itself: name one on a disk with --to",
            to.display()
        ))),
        false => Ok(()),
    }
}

/// What a store takes, and how quickly it takes more. `disk`: where a flush of one in memory would go.
pub fn describe_store(dir: &Path, disk: &Path) -> Result<StoreDescription> {
    let store = Store::open(dir)?;
    let in_memory = lies_in_memory(dir);
    let (mut sessions, mut bytes) = (0, 0);
    for (id, _) in store.sessions()? {
        sessions += 1;
        bytes += store.session_bytes(id)?;
    }
    let flush = match in_memory && refuse_same(dir, disk).is_ok() {
        true => Some(plan_flush(dir, disk)?),
        false => None,
    };
    let bytes_per_second = match &flush {
        Some(plan) if plan.bytes_per_second.is_some() => plan.bytes_per_second,
        Some(_) => Some(Speed::measure(disk)?.bytes_per_second),
        // One that can be read only has no speed.
        None => Speed::measure(dir).ok().map(|speed| speed.bytes_per_second),
    };
    let room = room(dir)?;
    Ok(StoreDescription {
        dir: dir.to_owned(),
        in_memory,
        sessions,
        snapshots: store.list()?.len() as u64,
        bytes,
        free: room.free,
        total: room.total,
        bytes_per_second,
        flush,
    })
}
