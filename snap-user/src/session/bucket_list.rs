//! What snapshots there are in a bucket, of processes and of trees of them, and which one a reference means.

use super::bucket_keys::Ring;
use super::sealing::way_in;
use super::types::hex;
use super::{Result, SessionError};
use crate::bucket::{Bucket, BucketError, Common, Envelope, Front, Head, PlacedKey, SnapshotName};
use crate::model::SnapshotId;
use crate::store::{Keys, StoreError};
use serde::Serialize;

/// Fewest digits of an id.
const FEWEST: usize = 4;

/// A snapshot in a bucket, or a tree. What is `None` is sealed, and the key is missing.
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
    pub pid: Option<i32>,
    /// Command name.
    pub comm: Option<String>,
    /// It is a tree.
    pub tree: Option<bool>,
    /// Processes.
    pub processes: Option<u32>,
    /// How long they were stopped, in nanoseconds.
    pub stop_ns: Option<u64>,
    /// Pages of all of them.
    pub pages: u64,
    /// Chunks that have them.
    pub chunks: u32,
    /// Bytes of these chunks; other snapshots may need them too.
    pub chunk_bytes: u64,
    /// Only the holder of a key can read it.
    pub sealed: bool,
}

/// What is in a bucket.
#[derive(Clone, Debug)]
pub struct BucketListing {
    /// The snapshots, oldest first.
    pub entries: Vec<BucketEntry>,
    /// Why not all is known of some of them. Sentences.
    pub notes: Vec<String>,
}

/// The snapshots in a bucket.
pub fn list_bucket(url: &str) -> Result<BucketListing> {
    list_with(&Keys::of_process(), url)
}

/// [`list_bucket`] with other keys than those of the process.
pub(super) fn list_with(keys: &Keys, url: &str) -> Result<BucketListing> {
    let bucket = Bucket::open(url)?;
    let mut ring = Ring::new(&bucket, keys);
    let (mut entries, mut closed, mut damaged) = (Vec::new(), Vec::new(), Vec::new());
    for head in bucket.heads(&bucket.snapshots()?)? {
        let envelope = match head {
            Head::Process(header, _) => {
                entries.push(BucketEntry::of(&header.common, None));
                continue;
            }
            Head::Tree(tree) => {
                entries.push(BucketEntry::of(
                    &tree.header.common,
                    Some(tree.header.processes),
                ));
                continue;
            }
            Head::Sealed(envelope) => envelope,
        };
        let mut entry = BucketEntry::sealed(&envelope);
        let key = ring.open(envelope.key, &what(&envelope.name, &bucket));
        match key.and_then(|key| Ok(bucket.front(&envelope, Some(&key))?)) {
            Ok(front) => entry.learn(&front),
            Err(SessionError::Store(error)) if error.is_sealed() => closed.push(error),
            // The others can be pulled all the same.
            Err(SessionError::Bucket(
                error @ (BucketError::Corrupt { .. } | BucketError::NewerVersion { .. }),
            )) => damaged.push(error),
            Err(error) => return Err(error),
        }
        entries.push(entry);
    }
    let mut notes = Vec::new();
    if let Some(error) = closed.first() {
        let wrong_key = matches!(error, StoreError::WrongIdentity { .. });
        notes.push(little_known(closed.len(), way_in(wrong_key)));
    }
    if let Some(error) = damaged.first() {
        notes.push(little_known(damaged.len(), &error.to_string()));
    }
    Ok(BucketListing { entries, notes })
}

fn little_known(snapshots: usize, why: &str) -> String {
    let count = match snapshots {
        1 => "a sealed snapshot".into(),
        n => format!("{n} sealed snapshots"),
    };
    format!("of {count} only size and time are known: {why}")
}

/// How a snapshot in a bucket is told in errors.
pub(super) fn what(name: &SnapshotName, bucket: &Bucket) -> String {
    format!("snapshot {} in {}", name.id, bucket.url())
}

impl BucketEntry {
    /// Of a snapshot with this header, which is plain; of a tree of so many `processes`.
    fn of(common: &Common, processes: Option<u32>) -> Self {
        Self {
            id: common.id,
            session: common.session.to_string(),
            time_ns: common.time_ns,
            pid: Some(common.pid),
            comm: Some(common.comm.clone()),
            tree: Some(processes.is_some()),
            processes: processes.or(Some(1)),
            stop_ns: Some(common.stop_ns),
            pages: common.pages,
            chunks: common.chunks,
            chunk_bytes: common.chunk_bytes,
            sealed: false,
        }
    }

    fn sealed(envelope: &Envelope) -> Self {
        Self {
            id: envelope.name.id,
            session: envelope.name.session.to_string(),
            time_ns: envelope.name.time_ns,
            pid: None,
            comm: None,
            tree: None,
            processes: None,
            stop_ns: None,
            pages: envelope.pages,
            chunks: envelope.chunks.len() as u32,
            chunk_bytes: envelope.chunk_bytes,
            sealed: true,
        }
    }

    /// Enters what was sealed.
    fn learn(&mut self, front: &Front) {
        let processes = match front {
            Front::Process(_) => None,
            Front::Tree(header) => Some(header.processes),
        };
        let of = Self::of(front.common(), processes);
        *self = Self {
            chunks: self.chunks,
            chunk_bytes: self.chunk_bytes,
            sealed: true,
            ..of
        };
    }
}

/// A snapshot that was found, and what opens it.
pub(super) struct Chosen {
    pub(super) name: SnapshotName,
    pub(super) head: Head,
    pub(super) key: Option<PlacedKey>,
    /// It is a tree.
    pub(super) tree: bool,
}

/// Of the names of one snapshot, which may be there sealed with several keys and plain, one that can be read: a tree before
/// the first process of it alone, then a sealed one before a plain one.
///
/// # Errors
/// Where no sealed one can be read, and one of them for another reason than that the key is somebody else's: what is sealed
/// is not to be taken for plain because a service fails, or because somebody has damaged it.
pub(super) fn choose(
    bucket: &Bucket,
    ring: &mut Ring<'_>,
    names: &[SnapshotName],
) -> Result<Chosen> {
    let (mut best, mut failed, mut closed) = (None::<Chosen>, None, None);
    for name in names {
        match readable(bucket, ring, *name) {
            Ok(one) => {
                let rank = |one: &Chosen| (one.tree, one.key.is_some());
                if best.as_ref().is_none_or(|best| rank(&one) > rank(best)) {
                    best = Some(one);
                }
            }
            Err(error) if passes(&error) => drop(closed.get_or_insert(error)),
            Err(error) => drop(failed.get_or_insert(error)),
        }
    }
    match (best, failed) {
        (Some(one), None) => Ok(one),
        (Some(one), Some(_)) if one.key.is_some() => Ok(one),
        (_, Some(error)) => Err(error),
        (None, None) => Err(closed.unwrap_or_else(|| {
            let what = format!("a snapshot in {}", bucket.url());
            StoreError::NotFound { what }.into()
        })),
    }
}

/// Whether another form of the same may be taken for one that cannot be read so: it is for others, or was removed.
fn passes(error: &SessionError) -> bool {
    match error {
        SessionError::Store(error) => error.is_sealed(),
        SessionError::Bucket(error) => error.is_missing(),
        _ => false,
    }
}

/// Opens a snapshot, as far as it takes to know what it is.
pub(super) fn readable(bucket: &Bucket, ring: &mut Ring<'_>, name: SnapshotName) -> Result<Chosen> {
    let head = bucket.head_of(&name)?;
    let key = ring.key_of(&name, &head)?;
    Ok(Chosen {
        tree: bucket.is_tree(&head, key.as_ref())?,
        name,
        head,
        key,
    })
}

/// The snapshot that a reference means: `latest`, or an id, or its first digits. `names` are oldest first. It has more than
/// one name where it is there in several forms.
pub(super) fn find(
    url: &str,
    names: &[SnapshotName],
    reference: &str,
) -> Result<Vec<SnapshotName>> {
    let missing = |what: String| SessionError::from(StoreError::NotFound { what });
    let all_of = |id: SnapshotId| -> Vec<SnapshotName> {
        let own = names.iter().filter(|name| name.id == id);
        own.copied().collect()
    };
    if reference == "latest" {
        let newest = names.last().map(|name| all_of(name.id));
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
        .map(|name| name.id)
        .filter(|id| id.to_string().starts_with(&reference));
    let Some(one) = found.next() else {
        return Err(missing(format!("snapshot {reference} in {url}")));
    };
    match found.find(|other| *other != one) {
        None => Ok(all_of(one)),
        Some(other) => Err(SessionError::Usage(format!(
            "{reference} may mean {one} or {other}: give more digits"
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
        assert_eq!(of("latest").unwrap(), names[2..]);
        assert_eq!(of("ABCD01").unwrap(), names[..1]);
        assert_eq!(of(&names[1].id.to_string()).unwrap(), names[1..2]);
        // In two forms it is one snapshot.
        let mut other = names[0];
        other.kin = Kin([9; 4]);
        let both = [names[0], other, names[1]];
        assert_eq!(find("file:///b", &both, "abcd01").unwrap(), both[..2]);
        let text = |reference: &str| of(reference).unwrap_err().to_string();
        assert!(text("abcd").contains("more digits"), "{}", text("abcd"));
        assert!(text("abc").contains("--list"));
        assert!(text("latest~1").contains("--list"));
        assert!(text("ffff").contains("ffff"));
        assert!(find("file:///b", &[], "latest").is_err());
    }
}
