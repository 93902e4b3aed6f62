//! What snapshots there are in a bucket, of processes and of trees of them, and which one a reference means.

use super::types::hex;
use super::{Result, SessionError};
use crate::bucket::{Bucket, Head, SnapshotName};
use crate::model::SnapshotId;
use crate::store::StoreError;
use serde::Serialize;

/// Fewest digits of an id.
const FEWEST: usize = 4;

/// A snapshot in a bucket, or a tree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BucketEntry {
    /// Its name, in the store that it was pushed from and in the bucket.
    #[serde(serialize_with = "hex")]
    pub id: SnapshotId,
    /// Its session there.
    pub session: String,
    /// Wall-clock time, nanoseconds since 1970.
    pub time_ns: u64,
    /// Process id; of a tree that of the first process.
    pub pid: i32,
    /// Command name.
    pub comm: String,
    /// It is a tree.
    pub tree: bool,
    /// Processes.
    pub processes: u32,
    /// How long they were stopped, in nanoseconds.
    pub stop_ns: u64,
    /// Pages of all of them.
    pub pages: u64,
    /// Chunks that have them.
    pub chunks: u32,
    /// Bytes of these chunks; other snapshots may need them too.
    pub chunk_bytes: u64,
}

/// The snapshots in a bucket, oldest first.
pub fn list_bucket(url: &str) -> Result<Vec<BucketEntry>> {
    let bucket = Bucket::open(url)?;
    let heads = bucket.heads(&bucket.snapshots()?)?;
    Ok(heads.into_iter().map(BucketEntry::of).collect())
}

impl BucketEntry {
    fn of(head: Head) -> Self {
        let (common, tree, processes) = match head {
            Head::Process(header, _) => (header.common, false, 1),
            Head::Tree(tree) => (tree.header.common, true, tree.header.processes),
        };
        Self {
            id: common.id,
            session: common.session.to_string(),
            time_ns: common.time_ns,
            pid: common.pid,
            comm: common.comm,
            tree,
            processes,
            stop_ns: common.stop_ns,
            pages: common.pages,
            chunks: common.chunks,
            chunk_bytes: common.chunk_bytes,
        }
    }
}

/// The snapshot that a reference means: `latest`, or an id, or its first digits. `names` are oldest first.
pub(super) fn find(url: &str, names: &[SnapshotName], reference: &str) -> Result<SnapshotName> {
    let missing = |what: String| SessionError::from(StoreError::NotFound { what });
    if reference == "latest" {
        let newest = names.last().copied();
        return newest.ok_or_else(|| missing(format!("a snapshot in {url}")));
    }
    let digits = reference.bytes().all(|byte| byte.is_ascii_hexdigit());
    if !digits || reference.len() < FEWEST {
        return Err(SessionError::Usage(format!(
            "{reference}: in a bucket a snapshot is named by latest, or by its id or the first {FEWEST} digits of it or more: `ksnap pull {url} --list` has them"
        )));
    }
    let reference = reference.to_ascii_lowercase();
    let mut found = names
        .iter()
        .filter(|name| name.id.to_string().starts_with(&reference));
    match (found.next(), found.next()) {
        (None, _) => Err(missing(format!("snapshot {reference} in {url}"))),
        (Some(one), None) => Ok(*one),
        // The same snapshot is there once, so these are two.
        (Some(one), Some(other)) => Err(SessionError::Usage(format!(
            "{reference} may mean {} or {}: give more digits",
            one.id, other.id
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bucket::Kin;
    use crate::image::SessionId;

    fn name(time_ns: u64, first: [u8; 3]) -> SnapshotName {
        let mut id = [0; 16];
        id[..3].copy_from_slice(&first);
        SnapshotName {
            time_ns,
            kin: Kin::of("a"),
            session: SessionId([0; 16]),
            id: SnapshotId(id),
        }
    }

    #[test]
    fn a_reference_means_one_snapshot_or_none() {
        let names = [
            name(1, [0xab, 0xcd, 1]),
            name(2, [0xab, 0xcd, 2]),
            name(3, [9, 9, 9]),
        ];
        let of = |text: &str| find("file:///b", &names, text);
        assert_eq!(of("latest").unwrap(), names[2]);
        assert_eq!(of("ABCD01").unwrap(), names[0]);
        assert_eq!(of(&names[1].id.to_string()).unwrap(), names[1]);
        let text = |reference: &str| of(reference).unwrap_err().to_string();
        assert!(text("abcd").contains("more digits"), "{}", text("abcd"));
        assert!(text("abc").contains("--list"));
        assert!(text("latest~1").contains("--list"));
        assert!(text("ffff").contains("ffff"));
        assert!(find("file:///b", &[], "latest").is_err());
    }
}
