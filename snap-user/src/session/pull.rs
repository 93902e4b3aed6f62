//! `pull`: object storage → a snapshot of the store. Each page is compared with its hash when it comes, and again when
//! it is put into the snapshot, which is published as a whole.

use super::arrival::Arrival;
use super::bucket_list::find;
use super::serve_known::Known;
use super::types::hex;
use super::{Result, SessionError};
use crate::bucket::{Bucket, BucketError, Chunk, ChunkName, Entry, Index, SnapshotName};
use crate::image::{Arch, Manifest};
use crate::model::{SnapshotId, SnapshotKind};
use crate::restore::fault;
use crate::store::{Published, Received, Session, SessionInfo, SnapshotMeta, Store, StoreError};
use serde::Serialize;
use std::path::Path;
use std::time::Instant;

/// How far a pull is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pulling {
    /// Chunks that have come.
    pub done: u64,
    /// Chunks that have to come.
    pub chunks: u64,
    /// Bytes that have come.
    pub bytes: u64,
}

/// A snapshot that has been pulled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Pulled {
    /// Its name in the bucket.
    #[serde(serialize_with = "hex")]
    pub id: SnapshotId,
    /// Where it came from.
    pub url: String,
    /// Its name in this store.
    #[serde(serialize_with = "hex")]
    pub stored_id: SnapshotId,
    /// Its sequence number in this store.
    pub seq: u32,
    /// It was in this store already: nothing was done.
    pub was_there: bool,
    /// Its process.
    pub pid: i32,
    /// The process's name.
    pub comm: String,
    /// Its pages.
    pub pages: u64,
    /// Chunks that came.
    pub chunks: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Length of its file.
    pub file_bytes: u64,
    /// How long it took, in nanoseconds.
    pub took_ns: u64,
}

/// Pulls a snapshot: `latest`, or one by its id.
///
/// # Errors
/// Then nothing of it is in the store; pages that have come are kept, and the next attempt goes on with them.
pub fn pull(
    dir: &Path,
    url: &str,
    reference: &str,
    report: &mut dyn FnMut(&Pulling),
) -> Result<Pulled> {
    let start = Instant::now();
    let bucket = Bucket::open(url)?;
    let name = find(bucket.url(), &bucket.snapshots()?, reference)?;
    let store = Store::open_or_create(dir)?;
    if let Some(meta) = already_there(&store, &name)? {
        return Ok(Pulled {
            id: name.id,
            url: bucket.url().to_owned(),
            stored_id: meta.id,
            seq: meta.seq,
            was_there: true,
            pid: meta.pid,
            comm: meta.comm,
            pages: meta.pages,
            chunks: 0,
            bytes: 0,
            file_bytes: meta.file_bytes,
            took_ns: start.elapsed().as_nanos() as u64,
        });
    }
    let index = bucket.index(&name)?;
    // Before anything comes that may be of no use.
    if Arch::native().is_some_and(|arch| arch as u16 != index.header.arch) {
        return Err(SessionError::Remote(format!(
            "{} in {url} is of a machine of another kind, and cannot be used here: pull it on one of its own",
            name.id
        )));
    }
    let manifest = Manifest::from_bytes(index.manifest()).map_err(|e| {
        SessionError::Remote(format!(
            "the process state of {} in {url} cannot be read: {e}",
            name.id
        ))
    })?;
    let transfer = format!("bucket {} {}", bucket.url(), name.id);
    let mut coming = Coming {
        known: Known::look(&store, &index.header.comm)?,
        received: store.receive_pages(transfer.as_bytes())?,
        pulling: Pulling::default(),
    };
    coming.fetch(&bucket, &index, report)?;
    fault::point("pull-publishing");
    let published = coming.publish(&store, &index, &manifest)?;
    coming.received.finish();
    Ok(Pulled {
        id: name.id,
        url: bucket.url().to_owned(),
        stored_id: published.id,
        seq: published.seq,
        was_there: false,
        pid: index.header.pid,
        comm: index.header.comm.clone(),
        pages: index.header.pages,
        chunks: coming.pulling.done,
        bytes: coming.pulling.bytes,
        file_bytes: published.bytes,
        took_ns: start.elapsed().as_nanos() as u64,
    })
}

/// The snapshot in the store that is the one in the bucket: it was pushed from here, or pulled before.
fn already_there(store: &Store, name: &SnapshotName) -> Result<Option<SnapshotMeta>> {
    let id = name.id.to_string();
    let pulled: Vec<_> = store
        .sessions()?
        .into_iter()
        .filter(|(_, info)| info.pulled == id)
        .map(|(session, _)| session)
        .collect();
    let list = store.list()?;
    // Of a session that was pulled, the first one; a process that was brought back may have added others.
    let found = list
        .into_iter()
        .filter(|meta| meta.id == name.id || (pulled.contains(&meta.session) && meta.seq == 1))
        .min_by_key(|meta| meta.id != name.id);
    Ok(found)
}

/// Why a chunk that an index names is not there.
fn lost(bucket: &Bucket, index: &Index, object: &str) -> SessionError {
    let id = index.header.id;
    match bucket.headers(&[index.header.name()]) {
        Ok(headers) if headers.is_empty() => StoreError::NotFound {
            what: format!(
                "snapshot {id} in {}: it was removed while it was pulled",
                bucket.url()
            ),
        }
        .into(),
        _ => BucketError::Corrupt {
            object: format!("snapshot {id} in {}", bucket.url()),
            why: format!(
                "it needs {object}, which is not there. Push it again from a store that has it"
            ),
        }
        .into(),
    }
}

/// What is to be done about a chunk that is damaged.
fn damaged(bucket: &Bucket, name: ChunkName, error: BucketError) -> BucketError {
    match error {
        BucketError::Corrupt { why, .. } => BucketError::Corrupt {
            object: format!("{}/{}", bucket.url().trim_end_matches('/'), name.key()),
            why: format!(
                "{why}. Delete it there, and push again from a store that has the snapshot"
            ),
        },
        other => other,
    }
}

/// What has come, and what was there.
struct Coming {
    known: Known,
    received: Received,
    pulling: Pulling,
}

impl Coming {
    /// Gets the chunks that have pages which are not here.
    fn fetch(
        &mut self,
        bucket: &Bucket,
        index: &Index,
        report: &mut dyn FnMut(&Pulling),
    ) -> Result<()> {
        let lacking = self.lacking(index);
        let mut chunks: Vec<u32> = lacking
            .iter()
            .map(|at| index.entry(*at as usize).chunk)
            .collect();
        chunks.dedup();
        let names: Vec<ChunkName> = chunks
            .iter()
            .map(|chunk| index.chunks[*chunk as usize].name)
            .collect();
        self.pulling.chunks = names.len() as u64;
        report(&self.pulling);
        let mut groups = lacking
            .chunk_by(|a, b| index.entry(*a as usize).chunk == index.entry(*b as usize).chunk);
        let mut each = |name: ChunkName, bytes: Vec<u8>| -> Result<()> {
            let chunk =
                Chunk::decode(name, &bytes).map_err(|error| damaged(bucket, name, error))?;
            for at in groups.next().unwrap_or_default() {
                self.take(name, &chunk, &index.entry(*at as usize))?;
            }
            self.pulling.done += 1;
            self.pulling.bytes += bytes.len() as u64;
            report(&self.pulling);
            Ok(())
        };
        match bucket.download(&names, &mut each) {
            Err(SessionError::Bucket(BucketError::Missing { object })) => {
                Err(lost(bucket, index, &object))
            }
            done => done,
        }
    }

    /// Places in the index of one page of each content that is not here, chunk by chunk.
    fn lacking(&self, index: &Index) -> Vec<u32> {
        let mut lacking: Vec<u32> = (0..)
            .zip(index.entries())
            .filter(|(_, entry)| !self.received.has(&entry.hash) && !self.known.has(&entry.hash))
            .map(|(at, _)| at)
            .collect();
        let place = |at: &u32| {
            let entry = index.entry(*at as usize);
            (entry.chunk, entry.slot)
        };
        lacking.sort_unstable_by_key(place);
        lacking.dedup_by_key(|at| place(at));
        lacking
    }

    fn take(&mut self, name: ChunkName, chunk: &Chunk<'_>, entry: &Entry) -> Result<()> {
        let damaged = || BucketError::Corrupt {
            object: name.key(),
            why: format!(
                "page {} of it is not the one that the index names",
                entry.slot
            ),
        };
        let (encoding, bytes) = chunk.page(entry.slot).ok_or_else(damaged)?;
        match self.received.add(&entry.hash, encoding, bytes)? {
            true => Ok(()),
            false => Err(damaged().into()),
        }
    }

    /// Makes a snapshot of what has come, in one step that leaves all of it or nothing.
    fn publish(&mut self, store: &Store, index: &Index, manifest: &Manifest) -> Result<Published> {
        let state = &manifest.state;
        let mut session = store.create_session(&SessionInfo {
            pid: state.pid,
            // Never a process of this machine, whatever its id.
            start_time: 0,
            comm: state.comm.clone(),
            exe: state.exe.clone(),
            cmdline: state
                .cmdline
                .iter()
                .map(|a| String::from_utf8_lossy(a).into_owned())
                .collect(),
            pulled: index.header.id.to_string(),
            ..SessionInfo::default()
        })?;
        session.look_for_earlier();
        let published = self.publish_in(&mut session, index, manifest);
        if published.is_err() {
            session.abandon();
        }
        published
    }

    fn publish_in(
        &mut self,
        session: &mut Session,
        index: &Index,
        manifest: &Manifest,
    ) -> Result<Published> {
        let mut pending = session.begin(SnapshotKind::Base, None)?;
        pending.set_time_ns(index.header.time_ns);
        let mut pages = Arrival::new(&mut self.received, &self.known, "Pull again");
        let entries = index.entries().map(|entry| (entry.addr, entry.hash));
        pages.put_all(entries, &mut pending)?;
        Ok(pending.publish(&manifest.state, &manifest.costs)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::push;
    use crate::store::tests::support::{info, new_store, publish};

    #[test]
    fn a_pull_that_fails_when_all_has_come_leaves_no_session() {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("file://{}", folder.path().display());
        let (_from, from) = new_store();
        let mut session = from.create_session(&info(7)).unwrap();
        let pages = (1..20).map(|n| (n, n as u32 * 5 + 2));
        let id = publish(&mut session, None, [], pages).unwrap().id;
        push(from.dir(), &id.to_string(), &url, &mut |_| {}).unwrap();
        let bucket = Bucket::open(&url).unwrap();
        let name = find(&url, &bucket.snapshots().unwrap(), "latest").unwrap();
        let index = bucket.index(&name).unwrap();
        let manifest = Manifest::from_bytes(index.manifest()).unwrap();
        let (_to, to) = new_store();
        let mut coming = Coming {
            known: Known::default(),
            received: to.receive_pages(b"a test").unwrap(),
            pulling: Pulling::default(),
        };
        // Nothing has come: as when what was here is gone.
        let error = coming.publish(&to, &index, &manifest).unwrap_err();
        assert!(error.to_string().contains("is gone"), "{error}");
        assert!(to.sessions().unwrap().is_empty());
        let names: Vec<_> = std::fs::read_dir(to.dir()).unwrap().collect();
        let names = names.into_iter().map(|entry| entry.unwrap().file_name());
        let mut names = names.map(|name| name.to_string_lossy().into_owned());
        assert!(names.all(|name| !name.starts_with(".tmp-")));
        coming.fetch(&bucket, &index, &mut |_| {}).unwrap();
        coming.publish(&to, &index, &manifest).unwrap();
        assert_eq!(to.sessions().unwrap().len(), 1);
    }
}
