//! `push`: a snapshot of the store → object storage. Only pages that are not there are sent; the index, which makes them
//! a snapshot, comes last.

use super::bucket_known::There;
use super::types::hex;
use super::{Result, SessionError};
use crate::bucket::{
    About, Bucket, ChunkBuilder, ChunkName, ChunkRef, Entry, IndexBuilder, Kin, SnapshotName,
    Uploads,
};
use crate::codec::{Scratch, encode};
use crate::image::{Manifest, PageSource};
use crate::model::{PAGE_SIZE, Page, SnapshotId};
use crate::restore::fault;
use crate::store::{Snapshot, Store};
use rustc_hash::FxHashMap;
use serde::Serialize;
use std::collections::HashSet;
use std::path::Path;
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
    /// Pages of the snapshot.
    pub pages: u64,
    /// Bytes sent.
    pub bytes: u64,
}

/// A snapshot that has been pushed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Pushed {
    /// Its name, here and there.
    #[serde(serialize_with = "hex")]
    pub id: SnapshotId,
    /// Where it is now.
    pub url: String,
    /// Its process.
    pub pid: i32,
    /// The process's name.
    pub comm: String,
    /// Its pages.
    pub pages: u64,
    /// Pages that were in none of the snapshots there that were looked at.
    pub new_pages: u64,
    /// Chunks that it needs.
    pub chunks: u64,
    /// Chunks that were not there.
    pub sent_chunks: u64,
    /// Bytes of chunks and index that were sent.
    pub sent_bytes: u64,
    /// How long it took, in nanoseconds.
    pub took_ns: u64,
}

/// Pushes a snapshot.
///
/// # Errors
/// What has been sent stays, and the next attempt goes on with it; the snapshot is there only when all of it is.
pub fn push(
    dir: &Path,
    reference: &str,
    url: &str,
    report: &mut dyn FnMut(&Pushing),
) -> Result<Pushed> {
    let start = Instant::now();
    let store = Store::open(dir)?;
    let id = store.resolve(reference, None)?;
    if let Some(tree) = store.tree(id)?
        && (tree.members.len() > 1 || !tree.zombies.is_empty())
    {
        return Err(SessionError::Usage(format!(
            "{reference} is a tree of processes, and only single ones can be pushed: name a member of it other than the first by its id"
        )));
    }
    let snapshot = store.snapshot(id)?;
    if store.is_sealed(snapshot.header().session)? {
        return Err(SessionError::Usage(format!(
            "{reference} is sealed, and what is pushed is not: object storage has pages in plain, which this ksnap cannot seal; `ksnap clone` brings it to another machine"
        )));
    }
    let bucket = Bucket::open_or_create(url)?;
    let mut sent_before = (0, 0);
    for _ in 0..ATTEMPTS {
        let done = attempt(&bucket, &snapshot, report)?;
        if let Some(mut pushed) = done.pushed {
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

/// What came of an attempt: nothing where it took too long.
struct Attempted {
    pushed: Option<Pushed>,
    sent: (u64, u64),
}

fn attempt(
    bucket: &Bucket,
    snapshot: &Snapshot,
    report: &mut dyn FnMut(&Pushing),
) -> Result<Attempted> {
    // The service's clock: one of this machine may stand still while the machine sleeps.
    let since_ms = bucket.now_ms()?;
    let is_late = || -> Result<bool> {
        let took_ms = bucket.now_ms()?.saturating_sub(since_ms);
        Ok(took_ms > WITHIN.as_millis() as i64)
    };
    let header = snapshot.header();
    let Manifest { state, costs } = snapshot.manifest()?;
    let name = SnapshotName {
        time_ns: header.time_ns,
        kin: Kin::of(&state.comm),
        session: header.session,
        id: header.id,
    };
    // Before anything that is there is looked at.
    let forbidden = bucket.forbidden()?;
    let there = There::look(bucket, &name, &forbidden)?;
    let mut packer = Packer {
        adopted: vec![None; there.chunks.len()],
        there,
        forbidden,
        uploads: bucket.uploads(),
        index: IndexBuilder::default(),
        placed: FxHashMap::default(),
        chunk: ChunkBuilder::default(),
        place: None,
        new_pages: 0,
        scratch: Scratch::default(),
    };
    let addrs: Vec<u64> = snapshot
        .page_table()?
        .iter()
        .map(|(addr, _)| addr)
        .collect();
    let mut pushing = Pushing {
        pages: addrs.len() as u64,
        ..Pushing::default()
    };
    for piece in addrs.chunks(PIECE) {
        for (addr, page) in piece.iter().zip(read(snapshot, piece)?) {
            packer.add(*addr, &page)?;
        }
        pushing.done += piece.len() as u64;
        pushing.bytes = packer.uploads.sent().1;
        report(&pushing);
    }
    packer.close()?;
    let sent = packer.uploads.finish()?;
    fault::point("push-publishing");
    let about = About {
        arch: header.arch as u16,
        id: header.id,
        session: header.session,
        time_ns: header.time_ns,
        pid: state.pid,
        comm: &state.comm,
        stop_ns: header.stop_ns,
    };
    let manifest = Manifest::encode(&state, &costs)
        .map_err(|e| SessionError::Remote(format!("the process state cannot be written: {e}")))?;
    let needed: Vec<ChunkName> = packer.index.chunks().iter().map(|c| c.name).collect();
    let chunks = needed.len() as u64;
    let (name, parts) = packer.index.finish(&about, manifest);
    let len: u64 = parts.iter().map(|part| part.len() as u64).sum();
    if is_late()? {
        return Ok(Attempted { pushed: None, sent });
    }
    bucket.put_index(&name, parts)?;
    // What it refers to may be on the point of being deleted. What is not will not be, since the index is there.
    if is_late()? && !are_there(bucket, &needed)? {
        bucket.delete(&[name.key()])?;
        return Ok(Attempted { pushed: None, sent });
    }
    let pushed = Pushed {
        id: header.id,
        url: bucket.url().to_owned(),
        pid: state.pid,
        comm: state.comm,
        pages: pushing.pages,
        new_pages: packer.new_pages,
        chunks,
        sent_chunks: sent.0,
        sent_bytes: sent.1 + len,
        took_ns: 0,
    };
    Ok(Attempted {
        pushed: Some(pushed),
        sent,
    })
}

/// Whether chunks are there, and nobody is going to delete them.
fn are_there(bucket: &Bucket, needed: &[ChunkName]) -> Result<bool> {
    let forbidden = bucket.forbidden()?;
    let there: HashSet<ChunkName> = bucket.chunks()?.into_iter().map(|(name, _)| name).collect();
    Ok(needed
        .iter()
        .all(|name| there.contains(name) && !forbidden.contains(name)))
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

/// Finds a place for each page: one that it has, or one in a new chunk.
struct Packer<'a> {
    there: There,
    forbidden: HashSet<ChunkName>,
    uploads: Uploads<'a>,
    index: IndexBuilder,
    /// Places in the index of chunks that are there.
    adopted: Vec<Option<u32>>,
    /// Pages that the index has, by content.
    placed: FxHashMap<[u8; 32], (u32, u32)>,
    /// The chunk being filled, and its place in the index.
    chunk: ChunkBuilder,
    place: Option<u32>,
    new_pages: u64,
    scratch: Scratch,
}

impl Packer<'_> {
    fn add(&mut self, addr: u64, page: &Page) -> Result<()> {
        let hash = *blake3::hash(page).as_bytes();
        let (chunk, slot) = match self.placed.get(&hash) {
            Some(place) => *place,
            None => {
                let place = match self.there.place(&hash) {
                    Some((number, slot)) => (self.adopt(number)?, slot),
                    None => self.pack(&hash, page)?,
                };
                self.placed.insert(hash, place);
                place
            }
        };
        self.index.push(&Entry {
            addr,
            hash,
            chunk,
            slot,
        })?;
        if self.chunk.is_full() {
            self.close()?;
        }
        Ok(())
    }

    /// Refers to a chunk that is there.
    fn adopt(&mut self, number: u32) -> Result<u32> {
        let adopted = &mut self.adopted[number as usize];
        match adopted {
            Some(place) => Ok(*place),
            None => {
                let place = self.index.add_chunk(self.there.chunks[number as usize])?;
                Ok(*adopted.insert(place))
            }
        }
    }

    /// Puts a page into the new chunk.
    fn pack(&mut self, hash: &[u8; 32], page: &Page) -> Result<(u32, u32)> {
        let place = match self.place {
            Some(place) => place,
            None => {
                let unknown = ChunkRef {
                    name: ChunkName([0; 32]),
                    len: 0,
                    pages: 0,
                };
                *self.place.insert(self.index.add_chunk(unknown)?)
            }
        };
        let mut bytes = Vec::new();
        let encoding = encode(page, None, &mut self.scratch, &mut bytes);
        self.new_pages += 1;
        Ok((place, self.chunk.push(hash, encoding, &bytes)))
    }

    /// Sends the new chunk, under a name that may be referred to.
    fn close(&mut self) -> Result<()> {
        let Some(place) = self.place.take() else {
            return Ok(());
        };
        let chunk = std::mem::take(&mut self.chunk);
        let mut salt = 0;
        let (name, bytes) = loop {
            let (name, bytes) = chunk.finish(salt);
            if !self.forbidden.contains(&name) {
                break (name, bytes);
            }
            salt += 1;
        };
        let known = ChunkRef {
            name,
            len: bytes.len() as u32,
            pages: chunk.pages(),
        };
        self.index.set_chunk(place, known);
        Ok(self.uploads.send(name, bytes)?)
    }
}
