//! Copies sessions into another store: what lies in memory, to the disk.
//!
//! Files are copied as they are, and so keep their names. The other store may have been flushed to before, and have
//! lost snapshots to rules of its own since; and what is copied may have lost some that the other store has. So
//! what the snapshots to be copied need of those that neither has any more goes into a pack of the other store,
//! first, with all that its pack held before: names mean the same page in both.
//!
//! At every moment the other store is whole: a snapshot gets its name only after all that it needs.

use super::buffer::{ReadBuffer, WriteBuffer};
use super::cache::{ImageFile, PageFile};
use super::chain::{Listing, SessionFiles};
use super::directory::Store;
use super::encoded::read_wanted;
use super::error::StoreError;
use super::flush_order::{order, will_have_set, without};
use super::headers::{self, Headers};
use super::loan_file::LoanFile;
use super::meta::SnapshotMeta;
use super::names::{self, TEMP_PREFIX};
use super::needs::{Fate, Needs};
use super::pack::PackWriter;
use super::pruner::{Pruner, merge};
use super::session::{SessionInfo, publish_folder};
use super::temp::TempFile;
use crate::image::{Ghost, Location, SessionId, runs_of};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

/// How often to begin anew, without having got on, because snapshots were removed meanwhile.
const PATIENCE: u32 = 16;
/// Files are made durable together, up to so many and so many bytes: the power may fail before the next ones.
const MOST_FILES: usize = 64;
const MOST_BYTES: u64 = 64 << 20;
/// Bytes copied at a time.
const PIECE: usize = 1 << 20;

/// What a flush of a session has copied.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Flushed {
    /// Snapshots that are durable in the other store now.
    pub snapshots: u64,
    /// Bytes written.
    pub bytes: u64,
    /// What was not copied, and why; a sentence each.
    pub notes: Vec<String>,
}

impl Store {
    /// Copies the snapshots of a session that the other store does not have: the chain of the newest one first, then
    /// what branched off it. Those that the other store has removed are not copied again. `report` is told what is
    /// durable by now.
    ///
    /// The session may be written and pruned meanwhile. In the other store it is locked.
    ///
    /// # Errors
    /// What was copied until then stays, and is whole; the next flush goes on from there.
    pub fn flush_session(
        &self,
        session: SessionId,
        to: &Store,
        report: &mut dyn FnMut(&Flushed),
    ) -> Result<Flushed, StoreError> {
        let info = self.session_info(session)?;
        let mut flush = Flush {
            // Open files of its own: copying must not push out what a reader has open.
            from: self.apart(),
            to: to.apart(),
            session,
            right: to.take_session(session, &info, self.key_to_copy(session)?.as_deref())?,
            read: ReadBuffer::default(),
            write: WriteBuffer::default(),
            done: Flushed::default(),
        };
        let dir = to.session_path(session);
        // One that was killed may have given names that are not durable yet.
        to.files
            .sync_dir(&dir)
            .map_err(StoreError::io("sync folder", &dir))?;
        let mut patience = PATIENCE;
        loop {
            let before = flush.done.snapshots;
            match flush.round(report) {
                Ok(()) => break,
                // Removed since it was listed; a pack has by now what others need of it.
                Err(error) if error.is_missing() && patience > 0 => {
                    match flush.done.snapshots > before {
                        true => patience = PATIENCE,
                        false => patience -= 1,
                    }
                }
                Err(error) => return Err(error),
            }
        }
        flush.tidy();
        flush.copy_tags()?;
        Ok(flush.done)
    }

    /// The encrypted key of a session that is sealed. From here on the process knows it, so that what it writes for the
    /// session is sealed in whichever store.
    fn key_to_copy(&self, session: SessionId) -> Result<Option<Vec<u8>>, StoreError> {
        if self.session_key(session)?.is_none() {
            return Ok(None);
        }
        let dir = self.session_path(session);
        let key = self.sealing.wrapped_key(&dir);
        key.map(Some)
            .map_err(StoreError::io("read the key of", &dir))
    }

    /// The right to add to the copy of a session that has its home in another store.
    fn take_session(
        &self,
        session: SessionId,
        info: &SessionInfo,
        key: Option<&[u8]>,
    ) -> Result<Pruner, StoreError> {
        if !self.is_session_gone(session) {
            return self.pruner(session);
        }
        let lock = publish_folder(self, session, info, key, true)?;
        Ok(Pruner::new(
            self,
            session,
            &Arc::default(),
            &Arc::new(lock),
            false,
        ))
    }
}

struct Flush {
    from: Store,
    to: Store,
    session: SessionId,
    right: Pruner,
    read: ReadBuffer,
    /// Lent to the file being written.
    write: WriteBuffer,
    done: Flushed,
}

/// A file that is written and has no name yet.
struct Written {
    file: TempFile,
    path: PathBuf,
    bytes: u64,
    /// Rather than one that a snapshot borrows from.
    is_snapshot: bool,
}

impl Flush {
    fn note(&mut self, text: String) {
        if !self.done.notes.contains(&text) {
            self.done.notes.push(text);
        }
    }

    /// Copies all that is missing now.
    fn round(&mut self, report: &mut dyn FnMut(&Flushed)) -> Result<(), StoreError> {
        let source = self.from.session_files(self.session)?;
        let target = self.to.session_files(self.session)?;
        let have = target.listing();
        if let Some((path, what)) = &have.pack_damage {
            return Err(StoreError::corrupt(path, "pack", what.clone()));
        }
        if let Some((path, what)) = &source.listing().pack_damage {
            self.note(format!("{}: {what}", path.display()));
        }
        let missing = self.missing(&source, &have)?;
        self.complete_pack(&source, &target, &missing)?;
        // What is removed from memory meanwhile takes up room there for as long as it is open here.
        drop(source);
        self.from.cache.forget(self.session, |_| true);
        let mut batch: Vec<Written> = Vec::new();
        let mut waiting = 0;
        let mut copied = Ok(());
        for seq in order(&missing, &|seq| have.by_seq.contains_key(&seq)) {
            match self.copy_with_loans(&missing[&seq]) {
                Ok(written) => {
                    waiting += written.iter().map(|one| one.bytes).sum::<u64>();
                    batch.extend(written);
                }
                // Those before it are whole without it.
                Err(error) => {
                    copied = Err(error);
                    break;
                }
            }
            if batch.len() >= MOST_FILES || waiting >= MOST_BYTES {
                self.publish(&mut batch)?;
                report(&self.done);
                waiting = 0;
            }
        }
        self.publish(&mut batch)?;
        report(&self.done);
        copied
    }

    /// The snapshots to copy: those that the other store neither has nor has removed.
    fn missing(
        &mut self,
        source: &SessionFiles,
        have: &Listing,
    ) -> Result<BTreeMap<u32, SnapshotMeta>, StoreError> {
        let listing = source.listing();
        let mut list = self.from.list_session(self.session)?;
        // What was taken since the folder was listed is for the next flush.
        list.retain(|meta| listing.by_seq.contains_key(&meta.seq));
        list.sort_by_key(|meta| meta.seq);
        let mut missing: BTreeMap<u32, SnapshotMeta> = BTreeMap::new();
        let mut refused: BTreeSet<u32> = BTreeSet::new();
        for meta in list {
            match have.by_seq.get(&meta.seq) {
                Some(other) if *other != meta.id => {
                    self.note(format!(
                        "{} (@{}) stays where it is: the other store has another snapshot of that number",
                        meta.id.short(),
                        meta.seq
                    ));
                    continue;
                }
                Some(_) => continue,
                None if have.is_gone(meta.seq) => continue,
                None => {}
            }
            let parent = meta.parent_seq;
            let known = parent == 0
                || have.by_seq.contains_key(&parent)
                || have.is_gone(parent)
                || missing.contains_key(&parent)
                || listing.is_gone(parent);
            if !known && !refused.contains(&parent) {
                self.was_not_pruned(parent)?;
            }
            let readable = source.open(meta.seq).and_then(|file| file.index());
            let why = match readable {
                Err(error @ StoreError::Corrupt { .. }) => error.to_string(),
                Err(error) => return Err(error),
                Ok(_) if !known => format!("what it builds on, @{parent}, is missing or damaged"),
                Ok(_) => {
                    missing.insert(meta.seq, meta);
                    continue;
                }
            };
            refused.insert(meta.seq);
            self.note(format!(
                "{} (@{}) is not copied: {why}",
                meta.id.short(),
                meta.seq
            ));
        }
        Ok(missing)
    }

    /// Fails, for another try, where a snapshot was removed on purpose since the folder was listed first.
    fn was_not_pruned(&self, seq: u32) -> Result<(), StoreError> {
        let now = self.from.session_files(self.session)?.listing();
        match now.is_gone(seq) {
            true => Err(StoreError::NotFound {
                what: format!("snapshot @{seq} of session {}: it was pruned", self.session),
            }),
            false => Ok(()),
        }
    }

    /// Gives the other store's pack what the missing snapshots need of those that it will not have.
    fn complete_pack(
        &mut self,
        source: &SessionFiles,
        target: &SessionFiles,
        missing: &BTreeMap<u32, SnapshotMeta>,
    ) -> Result<(), StoreError> {
        let (listing, have) = (source.listing(), target.listing());
        let will_have = |seq: u32| have.by_seq.contains_key(&seq) || missing.contains_key(&seq);
        let fate = |seq: u32| match listing.by_seq.contains_key(&seq) || listing.is_gone(seq) {
            _ if will_have(seq) => Fate::Stays,
            true => Fate::Goes,
            false => Fate::Missing,
        };
        let kept: Vec<SnapshotMeta> = missing.values().cloned().collect();
        let needs = Needs::find(source, &kept, &fate)?;
        let (known, mut ghosts) = match &have.pack {
            Some(pack) => (pack.entries()?, pack.ghosts()?.to_vec()),
            None => (&[][..], Vec::new()),
        };
        let is_known = |place: &Location| known.binary_search_by_key(place, |e| e.name).is_ok();
        let new: Vec<Location> = needs
            .places
            .iter()
            .filter(|place| !is_known(place))
            .copied()
            .collect();
        let old_ghosts: BTreeSet<u32> = ghosts.iter().map(|ghost| ghost.seq).collect();
        let new_ghosts = needs
            .ghosts
            .iter()
            .filter(|(seq, _)| !old_ghosts.contains(seq));
        ghosts.extend(new_ghosts.map(|(seq, table)| Ghost {
            seq: *seq,
            runs: runs_of(table),
        }));
        let orphaned: Vec<u32> = kept
            .iter()
            .map(|meta| meta.parent_seq)
            .filter(|seq| *seq != 0 && !will_have(*seq) && !have.is_gone(*seq))
            .collect();
        if new.is_empty() && orphaned.is_empty() && ghosts.len() == old_ghosts.len() {
            return Ok(());
        }
        ghosts.sort_by_key(|ghost| ghost.seq);
        let mut absorbed = Vec::new();
        if let Some(pack) = &have.pack {
            absorbed.extend(pack.absorbed());
        }
        if let Some(pack) = &listing.pack {
            absorbed.extend(without(pack.absorbed(), &will_have_set(&have, missing)));
        }
        let named = new.iter().map(|place| place.seq.get());
        let named = named.chain(ghosts.iter().map(|ghost| ghost.seq));
        absorbed.extend(named.chain(orphaned).map(|seq| (seq, seq)));
        let generation = have.pack.as_ref().map_or(0, |pack| pack.header.generation);
        let generation = generation
            .checked_add(1)
            .ok_or_else(StoreError::session_full)?;
        let mut writer = PackWriter::begin(&target.files, &target.dir, self.session, generation)?;
        let old: Vec<Location> = known.iter().map(|entry| entry.name).collect();
        writer.add_all(target, &old)?;
        // Changes to a version in a file that is yet to be copied would make no sense until then.
        let yet_to_come = |place: Location| missing.contains_key(&place.seq.get());
        let wanted: Vec<(Location, u64)> = new.iter().map(|place| (*place, 0)).collect();
        let mut whole = Vec::new();
        read_wanted(source, &wanted, &mut |page, _| {
            whole.extend(
                page.previous()?
                    .filter(|p| yet_to_come(*p))
                    .map(|_| page.place),
            );
            Ok(())
        })?;
        whole.sort_unstable();
        let as_they_are: Vec<Location> = new
            .iter()
            .filter(|place| whole.binary_search(place).is_err())
            .copied()
            .collect();
        writer.add_all(source, &as_they_are)?;
        writer.add_whole(source, &whole)?;
        self.done.bytes += writer.publish(&merge(absorbed), &ghosts)?;
        Ok(())
    }

    /// Copies the files that a snapshot borrows from and its own, in this order, not yet under their names.
    fn copy_with_loans(&mut self, meta: &SnapshotMeta) -> Result<Vec<Written>, StoreError> {
        let file = ImageFile::open(&*self.from.files, &meta.path)?;
        let entries = file.index()?;
        let borrowed: BTreeSet<u8> = entries.iter().map(|entry| entry.loan).collect();
        let mut written = Vec::with_capacity(borrowed.len() + 1);
        let home = self.from.session_path(self.session);
        for number in borrowed.into_iter().filter(|number| *number != 0) {
            let name = names::loan_file(meta.seq, number);
            let file = LoanFile::open(&*self.from.files, home.join(&name))?;
            let temp = format!("{TEMP_PREFIX}{name}");
            written.push(self.copy(&file, &temp, &name, false)?);
        }
        let name = names::snapshot_file(meta.seq, meta.id);
        let temp = format!("{TEMP_PREFIX}{:08}", meta.seq);
        written.push(self.copy(&file, &temp, &name, true)?);
        Ok(written)
    }

    fn copy(
        &mut self,
        file: &dyn PageFile,
        temp: &str,
        name: &str,
        is_snapshot: bool,
    ) -> Result<Written, StoreError> {
        let dir = self.to.session_path(self.session);
        let temp = dir.join(temp);
        // Left by one that was killed: whoever is here holds the lock.
        let _ = self.to.files.remove_file(&temp);
        let mut out = TempFile::create(&self.to.files, temp, std::mem::take(&mut self.write), 0)?;
        let len = file.file_len();
        let mut at = 0;
        while at < len {
            let piece = (len - at).min(PIECE as u64) as usize;
            let bytes = self.read.bytes(piece);
            file.read_into(at, bytes)?;
            out.extend(bytes)?;
            at += piece as u64;
        }
        out.flush()?;
        out.finish()?;
        self.write = out.take_buffer();
        Ok(Written {
            file: out,
            path: dir.join(name),
            bytes: len,
            is_snapshot,
        })
    }

    /// Makes files durable, gives them their names, those that others build on first, and makes the names durable.
    fn publish(&mut self, batch: &mut Vec<Written>) -> Result<(), StoreError> {
        if batch.is_empty() {
            return Ok(());
        }
        for one in &mut *batch {
            one.file.sync()?;
        }
        let mut named: Vec<Written> = Vec::with_capacity(batch.len());
        let dir = self.to.session_path(self.session);
        let mut publish = || {
            for mut one in batch.drain(..) {
                one.file.rename(&one.path)?;
                named.push(one);
            }
            let synced = self.to.files.sync_dir(&dir);
            synced.map_err(StoreError::io("sync folder", &dir))
        };
        if let Err(error) = publish() {
            // Not surely durable: the next flush must not take them for it.
            for one in named.iter().rev() {
                let _ = self.to.files.remove_file(&one.path);
            }
            return Err(error);
        }
        for one in named.iter().filter(|one| one.is_snapshot) {
            if let Some(head) = one.file.first().first_chunk() {
                headers::note(&*self.to.files, &dir, &one.path, head);
            }
        }
        self.done.snapshots += named.iter().filter(|one| one.is_snapshot).count() as u64;
        self.done.bytes += named.iter().map(|one| one.bytes).sum::<u64>();
        Ok(())
    }

    /// Removes packs that do not count any more, and makes the list of headers anew where that saves reading. Best
    /// effort.
    fn tidy(&self) {
        let tidied = self.to.session_files(self.session).and_then(|files| {
            self.right.sweep(&files)?;
            let known = Headers::read(&*files.files, &files.dir);
            match known.is_stale(files.listing().by_seq.len()) {
                true => self.to.rebuild_headers(self.session).map(drop),
                false => Ok(()),
            }
        });
        if let Err(error) = tidied {
            tracing::warn!("session {}: {error}", self.session);
        }
    }

    /// Names go with the snapshots that they name.
    fn copy_tags(&mut self) -> Result<(), StoreError> {
        let listing = self.to.session_files(self.session)?.listing();
        let copied: BTreeSet<_> = listing.by_seq.values().copied().collect();
        let tags = self.from.tags()?;
        let known = self.to.tags()?;
        for tag in tags.into_iter().filter(|tag| copied.contains(&tag.id)) {
            if known
                .iter()
                .any(|other| (other.id, &other.name) == (tag.id, &tag.name))
            {
                continue;
            }
            match self.to.set_tag(&tag.name, tag.id, false) {
                Ok(_) => {}
                Err(error @ StoreError::BadReference { .. }) => {
                    self.note(format!("the tag {} was not copied: {error}", tag.name))
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
