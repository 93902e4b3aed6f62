//! Lists snapshots; finds the one that a reference means.

use super::SessionError;
use super::types::{hex, hex_option};
use crate::model::{SnapshotId, SnapshotKind};
use crate::store::{SnapshotMeta, Store};
use serde::Serialize;
use std::collections::HashMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// A snapshot as its header describes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LogEntry {
    /// Its name.
    #[serde(serialize_with = "hex")]
    pub id: SnapshotId,
    /// The session it belongs to: one watch of one process.
    pub session: String,
    /// Sequence number in the session, from 1.
    pub seq: u32,
    /// Base or delta.
    pub kind: SnapshotKind,
    /// The snapshot it follows.
    #[serde(serialize_with = "hex_option")]
    pub parent: Option<SnapshotId>,
    /// The parent's sequence number, 0 without a parent.
    pub parent_seq: u32,
    /// It follows another snapshot than the one taken before it: a rollback lies between.
    pub branch: bool,
    /// Wall-clock time, nanoseconds since 1970.
    pub time_ns: u64,
    /// Process id.
    pub pid: i32,
    /// Command name.
    pub comm: String,
    /// How long the process was stopped, in nanoseconds.
    pub stop_ns: u64,
    /// Pages of the snapshot, its ancestors' included.
    pub pages: u64,
    /// Pages that the tracker reported as written since the snapshot before; `null` for snapshots of before that was
    /// recorded.
    pub dirty_pages: Option<u64>,
    /// Those that differ from what the parent has, or all for a base; `null` as above.
    pub changed_pages: Option<u64>,
    /// Pages stored in its own file: those that changed, or all for a base.
    pub stored_pages: u64,
    /// Bytes of encoded pages in its own file.
    pub data_bytes: u64,
    /// Length of its file.
    pub file_bytes: u64,
    /// Where it is.
    pub path: PathBuf,
}

impl LogEntry {
    pub(super) fn new(meta: SnapshotMeta, before: Option<u32>) -> Self {
        Self {
            id: meta.id,
            session: meta.session.to_string(),
            seq: meta.seq,
            kind: meta.kind,
            parent: meta.parent,
            parent_seq: meta.parent_seq,
            // A number in between may be missing: that snapshot failed, or its file is damaged.
            branch: meta.parent.is_some() && before.is_some_and(|before| meta.parent_seq < before),
            time_ns: meta.time_ns,
            pid: meta.pid,
            comm: meta.comm,
            stop_ns: meta.stop_ns,
            pages: meta.pages,
            dirty_pages: meta.found.map(|found| found.dirty),
            changed_pages: meta.found.map(|found| found.changed),
            stored_pages: meta.stored_pages,
            data_bytes: meta.data_bytes,
            file_bytes: meta.file_bytes,
            path: meta.path,
        }
    }
}

/// Where the store is: what the user named, else what the environment says.
///
/// # Errors
/// When nothing says where.
pub fn store_dir(option: Option<PathBuf>) -> Result<PathBuf, SessionError> {
    let variable = |name: &str| -> Option<OsString> { std::env::var_os(name) };
    crate::store::default_dir(option, variable, rustix::process::geteuid().is_root()).ok_or_else(
        || {
            SessionError::Usage(
                "nothing says where the store is: use --store DIR, or set KSNAP_STORE or HOME"
                    .into(),
            )
        },
    )
}

/// The snapshots of a store or of one process, oldest first; of these the last `limit`.
pub fn log(
    store: &Path,
    pid: Option<i32>,
    limit: Option<usize>,
) -> Result<Vec<LogEntry>, SessionError> {
    let mut entries = entries(&Store::open(store)?)?;
    entries.retain(|entry| pid.is_none_or(|pid| entry.pid == pid));
    if let Some(limit) = limit {
        entries.drain(..entries.len().saturating_sub(limit));
    }
    Ok(entries)
}

/// The snapshot that a reference means, among all or among those of one process.
pub fn find(store: &Path, reference: &str, pid: Option<i32>) -> Result<LogEntry, SessionError> {
    entry(&Store::open(store)?, reference, pid)
}

pub(super) fn entry(
    store: &Store,
    reference: &str,
    pid: Option<i32>,
) -> Result<LogEntry, SessionError> {
    let list = store.list()?;
    let id = store.resolve_among(&list, reference, pid)?;
    described(list)
        .into_iter()
        .find(|entry| entry.id == id)
        .ok_or_else(|| {
            crate::store::StoreError::NotFound {
                what: format!("snapshot {id}: its file is missing or damaged"),
            }
            .into()
        })
}

fn entries(store: &Store) -> Result<Vec<LogEntry>, SessionError> {
    Ok(described(store.list()?))
}

fn described(list: Vec<SnapshotMeta>) -> Vec<LogEntry> {
    let mut before = HashMap::new();
    let entries = list.into_iter().map(|meta| {
        let previous = before.insert(meta.session, meta.seq);
        LogEntry::new(meta, previous)
    });
    entries.collect()
}
