//! Pages that other sessions have stored earlier, which one borrows that is begun or gone on with: a fork that is watched by
//! itself has most of them, and a program that is started again has many.
//!
//! What has the checksum of one of them is compared byte by byte before it is borrowed.

use super::cache::PageFile;
use super::chain::SessionFiles;
use super::common::{WORTH, is_worth_it};
use super::directory::Store;
use super::durability::durable_up_to;
use super::error::StoreError;
use super::files::{Files, Stamp};
use super::lender::Lender;
use super::loans::Loans;
use super::names;
use super::session::SessionInfo;
use super::stored::Stored;
use crate::image::{Elsewhere, EncodedBatch, EncodedPage, IndexEntry, PackEntry, SessionId};
use rustc_hash::FxHashMap;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Pages that come before others' indexes are read: few are stored sooner.
const WORTH_A_LOOK: usize = 128;
/// Sessions that are looked at, of which those of a tree are many.
const MOST_SESSIONS: usize = 32;
/// Snapshots of each that are looked at: the first, which has most, and the newest.
const MOST_FILES: usize = 16;
/// Pages that are known for a base, of about 30 bytes each here: 8 GiB.
const MOST_PAGES: usize = 2 << 20;
/// And for the deltas behind it, unless the process has more: 1 GiB.
const PAGES_KEPT: usize = 256 << 10;

/// A file, by its number, and a place in it.
#[derive(Clone, Copy, Debug)]
struct Place {
    lender: [u8; 2],
    /// Files are far smaller than six bytes can tell.
    at: [u8; 6],
}

impl Place {
    fn new(lender: u16, at: u64) -> Self {
        let [at @ .., _, _] = at.to_le_bytes();
        let lender = lender.to_le_bytes();
        Self { lender, at }
    }

    fn lender(self) -> u16 {
        u16::from_le_bytes(self.lender)
    }

    fn at(self) -> u64 {
        let [a, b, c, d, e, f] = self.at;
        u64::from_le_bytes([a, b, c, d, e, f, 0, 0])
    }
}

/// Where earlier sessions have which pages, by their checksums. Sessions that are written side by side share one.
#[derive(Debug, Default)]
pub(super) struct Earlier {
    /// Pages that have come.
    seen: usize,
    /// The indexes have been read.
    looked: bool,
    lenders: Vec<Arc<Lender>>,
    /// Which files they are.
    stamps: Vec<Stamp>,
    places: FxHashMap<u32, Place>,
}

/// Plain data, added to in single steps: whole also after a panic.
pub(super) fn lock(earlier: &Mutex<Earlier>) -> MutexGuard<'_, Earlier> {
    earlier.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Earlier {
    /// Reads what there is for a session: first of those of the same program, the newest first, then of others. Best
    /// effort: what cannot be read is stored again.
    fn look(&mut self, store: &Store, own: SessionId, info: &SessionInfo) {
        self.looked = true;
        // No file stays open that others may remove.
        let store = &store.apart();
        let mut others = store.sessions().unwrap_or_default();
        // What is sealed has a key of its own.
        others.retain(|(id, _)| *id != own && matches!(store.is_sealed(*id), Ok(false)));
        others.reverse();
        others.sort_by_key(|(_, other)| (&other.comm, &other.exe) != (&info.comm, &info.exe));
        let mut left = MOST_SESSIONS;
        for (id, _) in others {
            if left == 0 || self.places.len() >= MOST_PAGES {
                break;
            }
            match self.add(store, id) {
                Ok(is_empty) => left -= usize::from(!is_empty),
                Err(error) => tracing::debug!("pages of session {id}: {error}"),
            }
        }
    }

    /// Adds a session: the oldest snapshot, the pack of those that are gone, and the newest ones. `true`: it has none.
    fn add(&mut self, store: &Store, id: SessionId) -> Result<bool, StoreError> {
        let session = store.session_files(id)?;
        let (listing, files) = (session.listing(), &*session.files);
        let durable = durable_up_to(files, &session.dir)?;
        let seqs = listing.by_seq.keys().copied();
        let seqs = seqs.filter(|seq| durable.is_none_or(|durable| *seq <= durable));
        let first = seqs.clone().next();
        if let Some(first) = first {
            self.add_snapshot(&session, first)?;
        }
        if let Some(pack) = &listing.pack {
            let name = |number| names::pack_loan_file(pack.header.generation, number);
            let entries = pack.entries()?.iter().map(PackEntry::in_index);
            self.add_file(files, pack.path(), &name, entries);
        }
        let newest = seqs.rev().take(MOST_FILES - 1);
        for seq in newest.filter(|seq| Some(*seq) != first) {
            if self.places.len() < MOST_PAGES {
                self.add_snapshot(&session, seq)?;
            }
        }
        Ok(listing.by_seq.is_empty())
    }

    fn add_snapshot(&mut self, session: &SessionFiles, seq: u32) -> Result<(), StoreError> {
        let file = session.open(seq)?;
        let name = |number| names::loan_file(seq, number);
        self.add_file(&*session.files, &file.path, &name, file.index()?);
        Ok(())
    }

    /// Adds the pages of a file, wherever they are: in it, or in those that it borrows from itself.
    fn add_file(
        &mut self,
        files: &dyn Files,
        path: &Path,
        loan_name: &dyn Fn(u8) -> String,
        entries: impl IntoIterator<Item = IndexEntry>,
    ) {
        let mut lenders: BTreeMap<u8, Option<u16>> = BTreeMap::new();
        for entry in entries {
            if self.places.len() >= MOST_PAGES || !is_worth_it(entry.encoding, entry.len) {
                continue;
            }
            let lender = lenders.entry(entry.loan).or_insert_with(|| {
                let path = match entry.loan {
                    0 => path.to_owned(),
                    number => path.with_file_name(loan_name(number)),
                };
                self.lender(files, path)
            });
            if let Some(lender) = *lender {
                let place = Place::new(lender, entry.at);
                self.places.entry(entry.crc).or_insert(place);
            }
        }
    }

    /// The number of a file. `None`: it is gone. What has the same length and time is the same under another name: if not,
    /// it has other bytes.
    fn lender(&mut self, files: &dyn Files, path: PathBuf) -> Option<u16> {
        let stamp = files.stat(&path).ok()?;
        let known = self.stamps.iter().position(|known| *known == stamp);
        let number = u16::try_from(known.unwrap_or(self.stamps.len())).ok()?;
        if known.is_none() {
            self.stamps.push(stamp);
            // Those of sessions that are written side by side are numbered from below.
            let lender = Lender::of_file(u64::MAX - u64::from(number), path, stamp.len);
            self.lenders.push(Arc::new(lender));
        }
        Some(number)
    }

    fn place(&self, page: &EncodedPage) -> Option<Place> {
        match is_worth_it(page.encoding, page.len) {
            true => self.places.get(&page.crc).copied(),
            false => None,
        }
    }

    /// A snapshot of so many pages is there, of a session that is written by itself. What its deltas find in it makes room
    /// first.
    pub(super) fn published(&mut self, pages: u64, stored: &Stored) {
        let mut left = usize::try_from(pages).unwrap_or(0).max(PAGES_KEPT);
        if self.places.len() <= left {
            return;
        }
        self.places.retain(|crc, _| {
            let keep = left > 0 && !stored.knows(*crc);
            left -= usize::from(keep);
            keep
        });
        self.places.shrink_to_fit();
    }

    /// Finds where pages of a batch of this session are already, but for those that are elsewhere anyway.
    pub(super) fn find(
        &mut self,
        (store, own, info): (&Store, SessionId, &SessionInfo),
        batch: &EncodedBatch,
        loans: &mut Loans,
        elsewhere: &mut [Option<Elsewhere>],
    ) {
        self.seen += batch.pages().len();
        if !self.looked && self.seen >= WORTH_A_LOOK {
            self.look(store, own, info);
        }
        if self.places.is_empty() {
            return;
        }
        let pages = batch.pages().iter().zip(&*elsewhere);
        let places: Vec<Option<Place>> = pages
            .map(|(page, elsewhere)| match elsewhere {
                Some(_) => None,
                None => self.place(page),
            })
            .collect();
        let mut worth: BTreeMap<u16, u64> = BTreeMap::new();
        for (page, place) in batch.pages().iter().zip(&places) {
            if let Some(place) = place {
                *worth.entry(place.lender()).or_default() += u64::from(page.len);
            }
        }
        // Who has most of it first: there are not many links.
        let mut worth: Vec<(u16, u64)> = worth.into_iter().collect();
        worth.sort_unstable_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
        let linked = loans.numbers();
        let number = |(lender, bytes): (u16, u64)| {
            let of = &self.lenders[usize::from(lender)];
            match loans.number(of, bytes >= WORTH) {
                Ok(number) => Some((lender, number?)),
                Err(error) => {
                    tracing::debug!("no link to {of}: {error}");
                    // Nor later.
                    of.close();
                    None
                }
            }
        };
        let numbers: BTreeMap<u16, u8> = worth.into_iter().filter_map(number).collect();
        let mut new: BTreeSet<u8> = numbers.values().copied().collect();
        new.retain(|number| !linked.contains(number));
        let mut there = Vec::new();
        for ((page, place), elsewhere) in batch.pages().iter().zip(places).zip(elsewhere) {
            let Some(place) = place else {
                continue;
            };
            let Some(loan) = numbers.get(&place.lender()).copied() else {
                continue;
            };
            let (at, bytes) = (place.at(), page.bytes_in(batch.bytes()));
            there.resize(bytes.len(), 0);
            if loans.read(loan, at, &mut there).is_ok() && there == bytes {
                *elsewhere = Some(Elsewhere::Bytes { loan, at });
                new.remove(&loan);
            }
        }
        // Their pages only had the checksums.
        new.iter().for_each(|number| loans.let_go(*number));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_known_is_bounded_and_what_a_snapshot_has_goes_first() {
        let place = |n: u32| Place::new(n as u16, u64::from(n) << 16);
        assert_eq!(
            (place(0x1_0203).lender(), place(0x1_0203).at()),
            (0x203, 0x1_0203_0000)
        );
        let mut earlier = Earlier {
            places: (0..300_000).map(|n| (n, place(n))).collect(),
            ..Earlier::default()
        };
        let mut stored = Stored::default();
        earlier.published(300_000, &stored);
        assert_eq!(earlier.places.len(), 300_000, "as many as the process has");
        stored.know(50_000..100_000);
        earlier.published(1000, &stored);
        assert_eq!(earlier.places.len(), 250_000);
        assert!((50_000..100_000).all(|n| !earlier.places.contains_key(&n)));
        stored.know(200_000..200_010);
        earlier.published(1000, &stored);
        assert_eq!(earlier.places.len(), 250_000, "there is room for these");
        earlier
            .places
            .extend((300_000..400_000).map(|n| (n, place(n))));
        earlier.published(1000, &stored);
        assert_eq!(earlier.places.len(), PAGES_KEPT);
    }
}
