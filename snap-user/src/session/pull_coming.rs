//! What comes in a pull: pages of one process or of several, and the snapshots that are made of them.

use super::arrival::Arrival;
use super::pull::{Part, Pulling};
use super::serve_known::Known;
use super::{Result, SessionError};
use crate::bucket::{Bucket, BucketError, Chunk, ChunkName, Entry, PlacedKey, SnapshotName};
use crate::model::SnapshotKind;
use crate::store::{Published, Received, Session, SessionInfo, Store, StoreError};
use rustc_hash::FxHashMap;

/// Why a chunk that an index names is not there.
fn lost(bucket: &Bucket, name: &SnapshotName, object: &str) -> SessionError {
    let id = name.id;
    match bucket.heads(&[*name]) {
        Ok(heads) if heads.is_empty() => StoreError::NotFound {
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
            object: bucket.about(&name.key()),
            why: format!(
                "{why}. Delete it there, and push again from a store that has the snapshot"
            ),
        },
        other => other,
    }
}

/// What has come, and what was there.
pub(super) struct Coming {
    known: Known,
    received: Received,
    pulling: Pulling,
}

/// A page of one of several processes: the process's place, and the page's in its index.
type PageOf = (u32, u32);

impl Coming {
    /// Begins a transfer, or goes on with what earlier ones of this name have left.
    pub(super) fn begin(store: &Store, transfer: &str, parts: &[Part]) -> Result<Self> {
        let comms: Vec<&str> = parts
            .iter()
            .map(|part| part.index.header.common.comm.as_str())
            .collect();
        Ok(Self {
            known: Known::look_for(store, &comms)?,
            received: store.receive_pages(transfer.as_bytes())?,
            pulling: Pulling::default(),
        })
    }

    /// All of it is published: nothing of it has to be kept.
    pub(super) fn finish(self) -> Pulling {
        self.received.finish();
        self.pulling
    }

    /// Gets the chunks that have pages which are not here; of a tree, each once. They are sealed with this key, or plain.
    pub(super) fn fetch(
        &mut self,
        bucket: &Bucket,
        of: &SnapshotName,
        key: Option<&PlacedKey>,
        parts: &[Part],
        report: &mut dyn FnMut(&Pulling),
    ) -> Result<()> {
        let lacking = self.lacking(parts);
        let chunk_of = |page: &PageOf| chunk_of(parts, *page).0;
        let mut names: Vec<ChunkName> = lacking.iter().map(chunk_of).collect();
        names.dedup();
        self.pulling.chunks = names.len() as u64;
        report(&self.pulling);
        let mut groups = lacking.chunk_by(|a, b| chunk_of(a) == chunk_of(b));
        let mut each = |name: ChunkName, mut bytes: Vec<u8>| -> Result<()> {
            let len = bytes.len() as u64;
            let chunk = match key {
                None => Chunk::decode(name, &bytes),
                Some(key) => Chunk::decode_sealed(name, &mut bytes, &key.key),
            };
            let chunk = chunk.map_err(|error| damaged(bucket, name, error))?;
            for (part, at) in groups.next().unwrap_or_default() {
                let entry = parts[*part as usize].index.entry(*at as usize);
                self.take(name, &chunk, &entry)?;
            }
            self.pulling.done += 1;
            self.pulling.bytes += len;
            report(&self.pulling);
            Ok(())
        };
        match bucket.download(&names, &mut each) {
            Err(SessionError::Bucket(BucketError::Missing { object })) => {
                Err(lost(bucket, of, &object))
            }
            done => done,
        }
    }

    /// One page of each content that is not here, chunk by chunk.
    fn lacking(&self, parts: &[Part]) -> Vec<PageOf> {
        let mut lacking: Vec<PageOf> = Vec::new();
        for (part, number) in parts.iter().zip(0..) {
            let entries = (0..).zip(part.index.entries());
            let new = entries.filter(|(_, entry)| {
                !self.received.has(&entry.hash) && !self.known.has(&entry.hash)
            });
            lacking.extend(new.map(|(at, _)| (number, at)));
        }
        // Chunks in the order in which they are first needed, so that what belongs together comes together.
        let mut order: FxHashMap<ChunkName, u32> = FxHashMap::default();
        for page in &lacking {
            let next = order.len() as u32;
            order.entry(chunk_of(parts, *page).0).or_insert(next);
        }
        let place = |page: &PageOf| {
            let (name, slot) = chunk_of(parts, *page);
            (order[&name], slot)
        };
        lacking.sort_unstable_by_key(place);
        lacking.dedup_by_key(|page| place(page));
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
    pub(super) fn publish(&mut self, store: &Store, part: &Part) -> Result<(Session, Published)> {
        let (state, header) = (&part.manifest.state, &part.index.header);
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
            pulled: header.common.id.to_string(),
            ..SessionInfo::default()
        })?;
        session.look_for_earlier();
        match self.publish_in(&mut session, part) {
            Ok(published) => Ok((session, published)),
            Err(error) => {
                session.abandon();
                Err(error)
            }
        }
    }

    fn publish_in(&mut self, session: &mut Session, part: &Part) -> Result<Published> {
        let mut pending = session.begin(SnapshotKind::Base, None)?;
        pending.set_time_ns(part.index.header.common.time_ns);
        let mut pages = Arrival::new(&mut self.received, &self.known, "Pull again");
        let entries = part.index.entries().map(|entry| (entry.addr, entry.hash));
        pages.put_all(entries, &mut pending)?;
        Ok(pending.publish(&part.manifest.state, &part.manifest.costs)?)
    }
}

/// The chunk of a page, and its slot in it.
fn chunk_of(parts: &[Part], (part, at): PageOf) -> (ChunkName, u32) {
    let index = &parts[part as usize].index;
    let entry = index.entry(at as usize);
    (index.chunks[entry.chunk as usize].name, entry.slot)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::bucket_list::find;
    use crate::session::pull::parts;
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
        let name = find(&url, &bucket.snapshots().unwrap(), "latest").unwrap()[0];
        let head = bucket.head_of(&name).unwrap();
        let whole = bucket.whole(&name, head, None).unwrap();
        let parts = parts(whole.indexes, "it").unwrap();
        let (_to, to) = new_store();
        let mut coming = Coming::begin(&to, "a test", &parts).unwrap();
        // Nothing has come: as when what was here is gone.
        let error = coming.publish(&to, &parts[0]).err().unwrap();
        assert!(error.to_string().contains("is gone"), "{error}");
        assert!(to.sessions().unwrap().is_empty());
        let names: Vec<_> = std::fs::read_dir(to.dir()).unwrap().collect();
        let names = names.into_iter().map(|entry| entry.unwrap().file_name());
        let mut names = names.map(|name| name.to_string_lossy().into_owned());
        assert!(names.all(|name| !name.starts_with(".tmp-")));
        let fetched = coming.fetch(&bucket, &name, None, &parts, &mut |_| {});
        fetched.unwrap();
        coming.publish(&to, &parts[0]).unwrap();
        assert_eq!(to.sessions().unwrap().len(), 1);
    }
}
