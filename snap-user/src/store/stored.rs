//! What the snapshots that the next one builds on have stored: a page that is again what some page was at some time is not
//! stored again, but named.
//!
//! What looks the same by the indexes is compared byte by byte, so a page that has come back costs a read, and others a
//! look into a table. Only pages of snapshots that have not been pruned are named, and of none that is being pruned
//! ([`Shared::name`]).

use super::agreed::Shared;
use super::chain::SessionFiles;
use super::common::is_worth_it;
use super::encoded::read_wanted;
use super::error::StoreError;
use crate::image::{Elsewhere, EncodedBatch, IndexEntry, Location};
use crate::model::{PageTable, SnapshotId, SnapshotKind};
use rustc_hash::FxHashMap;
use std::collections::BTreeSet;

/// Pages known at a time, of about 25 bytes each here: so many times those that a snapshot has, within these bounds.
const VERSIONS: u64 = 2;
const FEWEST_PAGES: u64 = 1 << 14;
const MOST_PAGES: u64 = 1 << 20;
/// Snapshots whose indexes are read when a session is gone on with.
const MOST_FILES: usize = 64;

/// Where pages are that the chain of the next snapshot's parent has stored, by their checksums. Length and encoding are
/// compared with the bytes.
#[derive(Debug, Default)]
pub(super) struct Stored {
    /// What was stored or has come back lately.
    young: FxHashMap<u32, Location>,
    /// What was before that; it makes room first.
    old: FxHashMap<u32, Location>,
    /// How many are known at a time.
    most: usize,
    /// Reads what looks the same. None of its files stays open: they may be removed.
    files: Option<SessionFiles>,
}

impl Stored {
    /// Forgets everything: the next snapshot builds on another one.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Learns what a snapshot has behind it: of those that it builds on, down to the base, the newest, and the first, which
    /// has most. Best effort: what cannot be read is stored again.
    pub(super) fn learn(&mut self, files: &SessionFiles, seq: u32, table: &PageTable<Location>) {
        self.clear();
        self.make_room(table.pages());
        let listing = files.listing();
        let is_there = |seq: &u32| listing.by_seq.contains_key(seq);
        let mut seqs = BTreeSet::from_iter(Some(seq).filter(is_there));
        let mut newest = seqs.first().copied();
        while let Some(seq) = newest.filter(|_| seqs.len() < MOST_FILES) {
            let header = files.open(seq).map(|file| file.header.clone());
            let header = header.ok().filter(|one| one.kind == SnapshotKind::Delta);
            newest = header.map(|header| header.parent_seq).filter(is_there);
            seqs.extend(newest);
        }
        let first = table.iter().map(|(_, place)| place.seq.get()).min();
        seqs.extend(first.filter(is_there));
        for seq in seqs {
            let index = files.open(seq).and_then(|file| file.index());
            match index {
                Ok(entries) => self.note(seq, &entries),
                Err(error) => tracing::debug!("pages of snapshot @{seq}: {error}"),
            }
        }
    }

    /// A snapshot of so many pages is there, with what it has stored.
    pub(super) fn published(
        &mut self,
        (seq, id): (u32, SnapshotId),
        pages: u64,
        entries: &[IndexEntry],
    ) {
        self.make_room(pages);
        if let Some(files) = &self.files {
            files.take_in(seq, id);
        }
        self.note(seq, entries);
    }

    fn note(&mut self, seq: u32, entries: &[IndexEntry]) {
        for (entry, slot) in entries.iter().zip(0..) {
            if let Some(place) = Location::new(seq, slot)
                && is_worth_it(entry.encoding, entry.len)
            {
                self.insert(entry.crc, place);
            }
        }
    }

    /// The process has so many pages.
    fn make_room(&mut self, pages: u64) {
        let most = pages.saturating_mul(VERSIONS);
        self.most = most.clamp(FEWEST_PAGES, MOST_PAGES) as usize;
    }

    fn insert(&mut self, crc: u32, place: Location) {
        if self.young.len() >= self.most / 2 {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(crc, place);
    }

    /// Whether a page with this checksum is known.
    pub(super) fn knows(&self, crc: u32) -> bool {
        self.young.contains_key(&crc) || self.old.contains_key(&crc)
    }

    #[cfg(test)]
    pub(super) fn know(&mut self, crcs: impl IntoIterator<Item = u32>) {
        let place = Location::new(1, 0).expect("a place");
        self.young.extend(crcs.into_iter().map(|crc| (crc, place)));
    }

    #[cfg(test)]
    pub(super) fn known(&self) -> usize {
        self.young.len() + self.old.len()
    }

    /// Forgets the pages of snapshots that are gone.
    pub(super) fn forget(&mut self, gone: &BTreeSet<u32>) {
        if gone.is_empty() {
            return;
        }
        for places in [&mut self.young, &mut self.old] {
            places.retain(|_, place| !gone.contains(&place.seq.get()));
        }
        if let Some(files) = &self.files {
            gone.iter().for_each(|seq| files.leave_out(*seq));
        }
    }

    /// Finds pages of a batch, but for those that are elsewhere anyway. `list` has the session's files, where they are not
    /// known yet.
    pub(super) fn find(
        &mut self,
        batch: &EncodedBatch,
        list: &dyn Fn() -> Result<SessionFiles, StoreError>,
        shared: &Shared,
        found: &mut [Option<Elsewhere>],
    ) {
        let pages = batch.pages().iter().zip(&*found).zip(0..);
        let mut wanted: Vec<(Location, u64)> = pages
            .filter(|((page, found), _)| found.is_none() && is_worth_it(page.encoding, page.len))
            .filter_map(|((page, _), number)| {
                let place = self
                    .young
                    .get(&page.crc)
                    .or_else(|| self.old.get(&page.crc))?;
                Some((*place, number))
            })
            .collect();
        if wanted.is_empty() {
            return;
        }
        let named: BTreeSet<u32> = wanted.iter().map(|(place, _)| place.seq.get()).collect();
        let named = shared.name(&named);
        wanted.retain(|(place, _)| named.contains(&place.seq.get()));
        wanted.sort_unstable();
        let list = || list().inspect(SessionFiles::leave_out_pack);
        let known = self.files.take().map_or_else(list, Ok);
        let files = match known {
            Ok(files) => self.files.insert(files),
            Err(error) => return tracing::debug!("pages that may be stored already: {error}"),
        };
        let mut unreadable = BTreeSet::new();
        let mut same = Vec::new();
        for of_one in wanted.chunk_by(|a, b| a.0.seq == b.0.seq) {
            let read = read_wanted(files, of_one, &mut |stored, number| {
                let page = &batch.pages()[number as usize];
                let is_it = stored.entry.encoding == page.encoding
                    && stored.bytes == page.bytes_in(batch.bytes());
                same.extend(is_it.then_some((stored.place, number)));
                Ok(())
            });
            if let Err(error) = read {
                let seq = of_one[0].0.seq.get();
                tracing::debug!("pages of snapshot @{seq} are stored again: {error}");
                unreadable.insert(seq);
            }
        }
        files.close();
        for (place, number) in same {
            found[number as usize] = Some(Elsewhere::Named(place));
            self.insert(batch.pages()[number as usize].crc, place);
        }
        self.forget(&unreadable);
    }
}
