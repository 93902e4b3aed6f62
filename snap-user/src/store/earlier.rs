//! Pages that sessions of the same program have stored earlier, which a new one borrows: a fork that is watched by itself
//! has most of them, and a program that is started again has many.
//!
//! What looks the same by the indexes, in checksum, length and encoding, is compared byte by byte before it is borrowed.

use super::cache::PageFile;
use super::common::{WORTH, looks};
use super::directory::Store;
use super::durability::is_durable;
use super::error::StoreError;
use super::files::Files;
use super::lender::Lender;
use super::loans::Loans;
use super::names;
use super::session::SessionInfo;
use crate::image::{Elsewhere, EncodedBatch, EncodedPage, IndexEntry, PackEntry, SessionId};
use crate::model::SnapshotKind;
use rustc_hash::FxHashMap;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Sessions that are looked at, the newest first.
const MOST_SESSIONS: usize = 4;
/// Pages that are looked at, of 32 bytes each here: 8 GiB.
const MOST_PAGES: u64 = 2 << 20;

#[derive(Clone, Copy, Debug)]
struct Place {
    lender: u32,
    at: u64,
}

/// Where earlier sessions have which pages.
#[derive(Debug, Default)]
pub(super) struct Earlier {
    lenders: Vec<Arc<Lender>>,
    places: FxHashMap<u64, Place>,
}

impl Earlier {
    /// What there is for a new session of a program. Best effort: what cannot be read is stored again.
    pub(super) fn look(store: &Store, own: SessionId, info: &SessionInfo) -> Self {
        let mut earlier = Self::default();
        // No file stays open that others may remove.
        let store = &store.apart();
        let mut left = MOST_SESSIONS;
        for (id, other) in store.sessions().unwrap_or_default().into_iter().rev() {
            let is_alike = (&other.comm, &other.exe) == (&info.comm, &info.exe);
            // What is sealed has a key of its own.
            if left == 0 || id == own || !is_alike || !matches!(store.is_sealed(id), Ok(false)) {
                continue;
            }
            match earlier.add(store, id) {
                Ok(found) => left -= usize::from(found),
                Err(error) => tracing::debug!("pages of session {id}: {error}"),
            }
        }
        earlier
    }

    /// Adds the oldest snapshot of a session, where that is a base, and the pack of those that are gone. `false` where
    /// there is neither.
    fn add(&mut self, store: &Store, id: SessionId) -> Result<bool, StoreError> {
        let lenders = self.lenders.len();
        let session = store.session_files(id)?;
        let (listing, files) = (session.listing(), &*session.files);
        if let Some((seq, _)) = listing.by_seq.first_key_value() {
            let file = session.open(*seq)?;
            let is_meant = file.header.kind == SnapshotKind::Base
                && is_durable(files, &session.dir, *seq)?
                && self.has_room(file.header.entries());
            if is_meant {
                let name = |number| names::loan_file(*seq, number);
                self.add_file(files, &file.path, &name, file.index()?);
            }
        }
        if let Some(pack) = &listing.pack
            && self.has_room(pack.header.pages())
        {
            let name = |number| names::pack_loan_file(pack.header.generation, number);
            let entries = pack.entries()?.iter().map(PackEntry::in_index);
            self.add_file(files, pack.path(), &name, entries);
        }
        Ok(self.lenders.len() > lenders)
    }

    /// Whether so many pages more are looked at: all of a file, or none.
    fn has_room(&self, pages: u64) -> bool {
        self.places.len() as u64 + pages <= MOST_PAGES
    }

    /// Adds the pages of a file, wherever they are: in it, or in those that it borrows from itself.
    fn add_file(
        &mut self,
        files: &dyn Files,
        path: &Path,
        loan_name: &dyn Fn(u8) -> String,
        entries: impl IntoIterator<Item = IndexEntry>,
    ) {
        let mut lenders: BTreeMap<u8, Option<u32>> = BTreeMap::new();
        for entry in entries {
            let Some(looks) = looks(entry.crc, entry.len, entry.encoding) else {
                continue;
            };
            let lender = lenders.entry(entry.loan).or_insert_with(|| {
                let path = match entry.loan {
                    0 => path.to_owned(),
                    number => path.with_file_name(loan_name(number)),
                };
                self.lender(files, path)
            });
            if let Some(lender) = *lender {
                let at = entry.at;
                self.places.entry(looks).or_insert(Place { lender, at });
            }
        }
    }

    /// The number of a file. `None`: it is gone.
    fn lender(&mut self, files: &dyn Files, path: PathBuf) -> Option<u32> {
        let len = files.stat(&path).ok()?.len;
        let number = self.lenders.len() as u32;
        let lender = Lender::of_file(number.into(), path, len);
        self.lenders.push(Arc::new(lender));
        Some(number)
    }

    fn place(&self, page: &EncodedPage) -> Option<Place> {
        let looks = looks(page.crc, page.len, page.encoding)?;
        self.places.get(&looks).copied()
    }

    /// Finds where pages of a batch are already, but for those that are elsewhere anyway.
    pub(super) fn find(
        &self,
        batch: &EncodedBatch,
        loans: &mut Loans,
        elsewhere: &mut [Option<Elsewhere>],
    ) {
        let pages = batch.pages().iter().zip(&*elsewhere);
        let places: Vec<Option<Place>> = pages
            .map(|(page, elsewhere)| match elsewhere {
                Some(_) => None,
                None => self.place(page),
            })
            .collect();
        let mut worth: BTreeMap<u32, u64> = BTreeMap::new();
        for (page, place) in batch.pages().iter().zip(&places) {
            if let Some(place) = place {
                *worth.entry(place.lender).or_default() += u64::from(page.len);
            }
        }
        // Who has most of it first: there are not many links.
        let mut worth: Vec<(u32, u64)> = worth.into_iter().collect();
        worth.sort_unstable_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
        let number = |(lender, bytes): (u32, u64)| {
            let of = &self.lenders[lender as usize];
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
        let numbers: BTreeMap<u32, u8> = worth.into_iter().filter_map(number).collect();
        let mut there = Vec::new();
        for ((page, place), elsewhere) in batch.pages().iter().zip(places).zip(elsewhere) {
            let Some(Place { lender, at }) = place else {
                continue;
            };
            let Some(loan) = numbers.get(&lender).copied() else {
                continue;
            };
            let bytes = page.bytes_in(batch.bytes());
            there.resize(bytes.len(), 0);
            if loans.read(loan, at, &mut there).is_ok() && there == bytes {
                *elsewhere = Some(Elsewhere::Bytes { loan, at });
            }
        }
    }
}
