//! `push`: a snapshot of the store → object storage, or those of a tree of processes, sealed or not. Only pages that are not
//! there are sent; the one object that makes them a snapshot comes last.

use super::bucket_keys::Ring;
use super::bucket_known::There;
use super::bucket_list::readable;
use super::push_pack::Packer;
use super::push_subject::Subject;
use super::types::hex;
use super::{Result, SessionError};
use crate::bucket::{
    Bucket, BucketError, ChunkName, ChunkRef, Envelope, IndexBuilder, MemberIndex, PlacedKey,
    SnapshotName, encode_tree,
};
use crate::image::PageSource;
use crate::model::{PAGE_SIZE, Page, SnapshotId};
use crate::restore::fault;
use crate::store::{Disk, Keys, Snapshot, Store, tree_to_text};
use serde::Serialize;
use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Pages read in one go: 16 MiB of them.
const PIECE: usize = 4096;
/// From the look at what may not be referred to, to the index, at most: half of the time for which those who delete
/// chunks wait (docs/bucket.md). What takes longer begins anew, and finds there what it has sent.
const WITHIN: Duration = Duration::from_secs(12 * 3600);
/// How often to begin.
const ATTEMPTS: u32 = 3;

/// How far a push is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pushing {
    /// Pages looked at.
    pub done: u64,
    /// Pages of the snapshot, or of all of a tree.
    pub pages: u64,
    /// Bytes sent.
    pub bytes: u64,
}

/// A snapshot that has been pushed, or a tree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Pushed {
    /// Its name, here and there.
    #[serde(serialize_with = "hex")]
    pub id: SnapshotId,
    /// Where it is now.
    pub url: String,
    /// Its process; of a tree the first one.
    pub pid: i32,
    /// The process's name.
    pub comm: String,
    /// Processes: more than one for a tree.
    pub processes: u32,
    /// Pages of all of them.
    pub pages: u64,
    /// Pages that were in none of the snapshots there that were looked at.
    pub new_pages: u64,
    /// Chunks that it needs.
    pub chunks: u64,
    /// Chunks that were not there.
    pub sent_chunks: u64,
    /// Bytes of chunks and index that were sent.
    pub sent_bytes: u64,
    /// The public keys that it is sealed for there; none: it is plain.
    pub sealed_for: Vec<String>,
    /// What there is to say of it. Sentences.
    pub notes: Vec<String>,
    /// How long it took, in nanoseconds.
    pub took_ns: u64,
}

/// Pushes a snapshot; one of the first process of a tree with those of all others. One that is sealed is sealed for the same
/// keys there, unless this process seals for others; a plain one only if it seals.
///
/// # Errors
/// What has been sent stays, and the next attempt goes on with it; the snapshot is there only when all of it is.
pub fn push(
    dir: &Path,
    reference: &str,
    url: &str,
    report: &mut dyn FnMut(&Pushing),
) -> Result<Pushed> {
    push_with(Keys::of_process(), dir, reference, url, report)
}

/// [`push`] with other keys than those of the process.
pub(super) fn push_with(
    keys: Arc<Keys>,
    dir: &Path,
    reference: &str,
    url: &str,
    report: &mut dyn FnMut(&Pushing),
) -> Result<Pushed> {
    let start = Instant::now();
    let store = Store::open_with_keys(Arc::new(Disk), keys, dir)?;
    let subject = Subject::find(&store, reference)?;
    let recipients = subject.recipients(&store)?;
    let bucket = Bucket::open_or_create(url)?;
    let mut ring = Ring::new(&bucket, store.keys());
    let key = recipients
        .map(|all| ring.for_recipients(&all))
        .transpose()?;
    let mut sent_before = (0, 0);
    for _ in 0..ATTEMPTS {
        let done = attempt(&bucket, &mut ring, &subject, key.as_ref(), report)?;
        if let Some(mut pushed) = done.pushed {
            if let Some(key) = &key {
                pushed.sealed_for = key.key.recipients();
                pushed.notes.extend(note(key));
            }
            pushed.sent_chunks += sent_before.0;
            pushed.sent_bytes += sent_before.1;
            pushed.took_ns = start.elapsed().as_nanos() as u64;
            return Ok(pushed);
        }
        sent_before.0 += done.sent.0;
        sent_before.1 += done.sent.1;
    }
    Err(SessionError::Remote(format!(
        "{ATTEMPTS} attempts took more than {} hours each. What was sent is kept: push again, over a quicker line",
        WITHIN.as_secs() / 3600
    )))
}

/// What there is to say of the key that it is sealed with.
fn note(key: &PlacedKey) -> Option<String> {
    (!key.key.is_marked()).then(|| {
        "it is sealed with a key that no other push can use, so all of its pages were sent, and would be again: name the private key of one of those whom it is sealed for with --identity, or in KSNAP_IDENTITY".into()
    })
}

/// A tree has the id of its first process, which would take its place, or be taken for another form of it.
fn refuse_for_tree(bucket: &Bucket, ring: &mut Ring<'_>, subject: &Subject) -> Result<()> {
    if subject.tree.is_some() {
        return Ok(());
    }
    let id = subject.members[0].snapshot.header().id;
    let mut names = bucket.snapshots()?;
    names.retain(|name| name.id == id);
    for name in names {
        match readable(bucket, ring, name) {
            Ok(one) if one.tree => {
                return Err(SessionError::Remote(format!(
                    "snapshot {id} is there as a tree of processes, of which this store has the first one alone: push from where all of the tree is, or another snapshot of it"
                )));
            }
            Ok(_) => {}
            // What it is cannot be known: it is for others, was removed, or cannot be read by anybody.
            Err(SessionError::Store(error)) if error.is_sealed() => {}
            Err(SessionError::Bucket(
                BucketError::Missing { .. } | BucketError::Corrupt { .. },
            )) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// What came of an attempt: nothing where it took too long.
struct Attempted {
    pushed: Option<Pushed>,
    sent: (u64, u64),
}

fn attempt(
    bucket: &Bucket,
    ring: &mut Ring<'_>,
    subject: &Subject,
    key: Option<&PlacedKey>,
    report: &mut dyn FnMut(&Pushing),
) -> Result<Attempted> {
    // The service's clock: one of this machine may stand still while the machine sleeps.
    let since_ms = bucket.now_ms()?;
    let is_late = || -> Result<bool> {
        let took_ms = bucket.now_ms()?.saturating_sub(since_ms);
        Ok(took_ms > WITHIN.as_millis() as i64)
    };
    refuse_for_tree(bucket, ring, subject)?;
    // Before any page that is there is looked at.
    let forbidden = bucket.forbidden()?;
    let members = subject.members.iter();
    let like: Vec<SnapshotName> = members.map(|member| member.name(key)).collect();
    let there = There::look(bucket, &like, &forbidden, key)?;
    let mut packer = Packer::new(bucket, there, forbidden, key);
    let mut pushing = Pushing::default();
    for part in &subject.members {
        pushing.pages += part.snapshot.page_table()?.pages();
    }
    let mut indexes = Vec::with_capacity(subject.members.len());
    for (part, at) in subject.members.iter().zip(1..) {
        for piece in part.pages()?.chunks(PIECE) {
            for (addr, page) in piece.iter().zip(read(&part.snapshot, piece)?) {
                packer.add(*addr, &page)?;
            }
            pushing.done += piece.len() as u64;
            pushing.bytes = packer.sent().1;
            report(&pushing);
        }
        indexes.push(packer.end_index(at < subject.members.len())?);
        if at < subject.members.len() {
            fault::point("push-next-process");
        }
    }
    let (new_pages, sent) = packer.finish()?;
    fault::point("push-publishing");
    let needed: BTreeMap<ChunkName, ChunkRef> = indexes
        .iter()
        .flat_map(IndexBuilder::chunks)
        .map(|chunk| (chunk.name, *chunk))
        .collect();
    let chunks: Vec<ChunkRef> = needed.values().copied().collect();
    let (mut name, mut parts) = object(subject, indexes, &chunks)?;
    if let Some(key) = key {
        (name, parts) = Envelope::seal(parts, &chunks, key)?;
    }
    // Somebody may have pushed it meanwhile.
    refuse_for_tree(bucket, ring, subject)?;
    let len: u64 = parts.iter().map(|part| part.len() as u64).sum();
    if is_late()? {
        return Ok(Attempted { pushed: None, sent });
    }
    bucket.put_index(&name, parts)?;
    // What it refers to may be on the point of being deleted. What is not will not be, since the index is there.
    if is_late()? && !are_there(bucket, needed.keys())? {
        bucket.delete(&[name.key()])?;
        return Ok(Attempted { pushed: None, sent });
    }
    let state = &subject.members[0].manifest.state;
    let pushed = Pushed {
        id: name.id,
        url: bucket.url().to_owned(),
        pid: state.pid,
        comm: state.comm.clone(),
        processes: subject.members.len() as u32,
        pages: pushing.pages,
        new_pages,
        chunks: needed.len() as u64,
        sent_chunks: sent.0,
        sent_bytes: sent.1 + len,
        sealed_for: Vec::new(),
        notes: Vec::new(),
        took_ns: 0,
    };
    Ok(Attempted {
        pushed: Some(pushed),
        sent,
    })
}

/// The object that makes of pages a snapshot, in parts, and its name, before it is sealed.
fn object(
    subject: &Subject,
    indexes: Vec<IndexBuilder>,
    chunks: &[ChunkRef],
) -> Result<(SnapshotName, Vec<Vec<u8>>)> {
    let mut members = Vec::with_capacity(indexes.len());
    for (part, index) in subject.members.iter().zip(indexes) {
        let pages = index.pages();
        let (name, parts) = index.finish(&part.about(), part.state_bytes()?);
        let Some(_) = &subject.tree else {
            return Ok((name, parts.into()));
        };
        members.push(MemberIndex {
            id: name.id,
            pages,
            parts,
        });
    }
    let record = subject.tree.as_ref().map(tree_to_text).unwrap_or_default();
    let mut about = subject.members[0].about();
    about.stop_ns = subject.tree.as_ref().map_or(0, |tree| tree.stop_ns);
    Ok(encode_tree(&about, record.into_bytes(), chunks, members)?)
}

/// Whether chunks are there, and nobody is going to delete them.
fn are_there<'a>(bucket: &Bucket, mut needed: impl Iterator<Item = &'a ChunkName>) -> Result<bool> {
    let forbidden = bucket.forbidden()?;
    let there: HashSet<ChunkName> = bucket.chunks()?.into_iter().map(|(name, _)| name).collect();
    Ok(needed.all(|name| there.contains(name) && !forbidden.contains(name)))
}

/// Reads pages, in the order in which they are asked for.
fn read(snapshot: &Snapshot, addrs: &[u64]) -> Result<Vec<Page>> {
    let mut pages = vec![[0; PAGE_SIZE as usize]; addrs.len()];
    snapshot.read_pages(addrs, &mut |addr, page| {
        if let Ok(at) = addrs.binary_search(&addr) {
            pages[at] = *page;
        }
    })?;
    Ok(pages)
}
