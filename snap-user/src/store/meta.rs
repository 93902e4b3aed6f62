//! What a listing says of a snapshot.

use crate::image::{Found, Header, Late, SessionId};
use crate::model::{SnapshotId, SnapshotKind};
use std::path::PathBuf;

/// What a listing says of a snapshot, from its header alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotMeta {
    /// Its name.
    pub id: SnapshotId,
    /// Session it belongs to.
    pub session: SessionId,
    /// Sequence number in the session, from 1.
    pub seq: u32,
    /// Base or delta.
    pub kind: SnapshotKind,
    /// The snapshot it follows.
    pub parent: Option<SnapshotId>,
    /// The parent's sequence number, 0 without a parent.
    pub parent_seq: u32,
    /// Wall-clock time, nanoseconds since 1970.
    pub time_ns: u64,
    /// Process id.
    pub pid: i32,
    /// Command name of the session's process.
    pub comm: String,
    /// Pages of the snapshot, its ancestors' included.
    pub pages: u64,
    /// Pages stored in its own file.
    pub stored_pages: u64,
    /// Bytes of encoded pages in its own file.
    pub data_bytes: u64,
    /// Length of its file.
    pub file_bytes: u64,
    /// How long the process was stopped, in nanoseconds.
    pub stop_ns: u64,
    /// How many pages were found to have been written, if it was recorded.
    pub found: Option<Found>,
    /// What writing the file cost, if it was recorded.
    pub late: Option<Late>,
    /// Where it is.
    pub path: PathBuf,
}

impl SnapshotMeta {
    pub(super) fn new(header: &Header, path: PathBuf, comm: &str) -> Self {
        Self {
            id: header.id,
            session: header.session,
            seq: header.seq,
            kind: header.kind,
            parent: header.parent,
            parent_seq: header.parent_seq,
            time_ns: header.time_ns,
            pid: header.pid,
            comm: comm.to_owned(),
            pages: header.pages,
            stored_pages: header.entries(),
            data_bytes: header.data.len,
            file_bytes: header.file_len(),
            stop_ns: header.stop_ns,
            found: header.found,
            late: header.late,
            path,
        }
    }
}
