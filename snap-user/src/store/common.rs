//! Pages that sessions have in common which one process writes side by side: those of a tree's processes.
//!
//! Memory that processes share, and what a fork left as it was, is the same in each of them. The first that writes such
//! a page has it in its file; the others borrow it, through a link of their own to that file, so that nobody who removes
//! snapshots has to ask anyone. Pages are the same when the BLAKE3 hashes of their encoded bytes are.

use super::earlier::Earlier;
use super::lender::Lender;
use super::loans::Loans;
use crate::codec::Encoding;
use crate::image::{Elsewhere, EncodedBatch};
use rustc_hash::FxHashMap;
use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

/// Shorter pages are not worth looking for: an entry of the index is half as long.
const LEAST: u16 = 48;
/// A file is linked to for so many bytes of one batch at least.
pub(super) const WORTH: u64 = 4 << 10;
/// Pages known at a time, of about 60 bytes each here; those of the oldest files are forgotten first.
const MOST_PAGES: usize = 1 << 20;
/// Files known at a time.
const MOST_FILES: usize = 4096;

type Key = [u8; 16];

#[derive(Clone, Copy, Debug)]
struct Place {
    lender: u64,
    at: u64,
}

#[derive(Debug, Default)]
struct Known {
    pages: FxHashMap<Key, Place>,
    lenders: BTreeMap<u64, Arc<Lender>>,
    last: u64,
}

impl Known {
    fn forget(&mut self, lender: u64) {
        self.lenders.remove(&lender);
        self.pages.retain(|_, place| place.lender != lender);
    }

    /// Makes room for so many pages by forgetting the older half of the files, but never this one.
    fn make_room(&mut self, pages: usize, own: u64) {
        while self.pages.len() + pages > MOST_PAGES || self.lenders.len() >= MOST_FILES {
            let others = self.lenders.keys().copied().filter(|id| *id != own);
            let older: BTreeSet<u64> = others.take(self.lenders.len().div_ceil(2)).collect();
            if older.is_empty() {
                return;
            }
            self.lenders.retain(|id, _| !older.contains(id));
            self.pages.retain(|_, place| !older.contains(&place.lender));
        }
    }
}

/// What is known of the pages of sessions that are written side by side.
#[derive(Debug, Default)]
pub(super) struct Common {
    known: Mutex<Known>,
    /// And of those that were there before.
    pub(super) earlier: Arc<Mutex<Earlier>>,
}

/// Whether a page stands alone and is long enough to be borrowed.
pub(super) fn is_worth_it(encoding: Encoding, len: u16) -> bool {
    encoding != Encoding::Reference && !encoding.needs_previous() && len >= LEAST
}

/// What a page looks like by its entry: checksum, length and encoding. `None` where it is not worth looking for.
pub(super) fn looks(crc: u32, len: u16, encoding: Encoding) -> Option<u64> {
    let looks = u64::from(crc) << 32 | u64::from(len) << 8 | u64::from(encoding.tag());
    is_worth_it(encoding, len).then_some(looks)
}

/// What identifies a page with these encoded bytes, if it is worth looking for.
pub(super) fn key(encoding: Encoding, bytes: &[u8]) -> Option<Key> {
    if !is_worth_it(encoding, bytes.len() as u16) {
        return None;
    }
    // All in one piece: what begins with a byte of its own is hashed by a third as many at a time.
    let mut key: Key = *blake3::hash(bytes).as_bytes().first_chunk()?;
    key[0] ^= encoding.tag();
    Some(key)
}

impl Common {
    /// A file that is about to be written, and lends its pages.
    pub(super) fn lender(&self, path: PathBuf) -> Arc<Lender> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.last += 1;
        Arc::new(Lender::new(known.last, path))
    }

    /// Finds where pages of a batch are already, but for those that are elsewhere anyway; the others are known from here on
    /// as the file's own. It gets them from the offset `from` on.
    pub(super) fn shelve(
        &self,
        batch: &EncodedBatch,
        (own, from): (&Arc<Lender>, u64),
        loans: &mut Loans,
        elsewhere: &mut [Option<Elsewhere>],
    ) {
        let pages = batch.pages().iter().zip(&*elsewhere);
        let keys: Vec<Option<Key>> = pages
            .map(|(page, elsewhere)| match elsewhere {
                Some(_) => None,
                None => key(page.encoding, page.bytes_in(batch.bytes())),
            })
            .collect();
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.make_room(keys.len(), own.id());
        let mut worth: BTreeMap<u64, u64> = BTreeMap::new();
        for (page, key) in batch.pages().iter().zip(&keys) {
            if let Some(place) = key.and_then(|key| known.pages.get(&key)) {
                *worth.entry(place.lender).or_default() += u64::from(page.len);
            }
        }
        let mut numbers: BTreeMap<u64, u8> = [(own.id(), 0)].into();
        worth.remove(&own.id());
        // Who has most of it first: there are not many links.
        let mut worth: Vec<(u64, u64)> = worth.into_iter().collect();
        worth.sort_unstable_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
        for (id, bytes) in worth {
            let Some(lender) = known.lenders.get(&id).cloned() else {
                continue;
            };
            match loans.number(&lender, bytes >= WORTH) {
                Ok(Some(number)) => _ = numbers.insert(id, number),
                Ok(None) => {}
                // Removed since.
                Err(error) if error.kind() == ErrorKind::NotFound => known.forget(id),
                // The file system has no links, or no more of this file.
                Err(error) => {
                    tracing::debug!("no link to {lender}: {error}");
                    known.lenders.remove(&id);
                }
            }
        }
        let mut at = from;
        for ((page, key), elsewhere) in batch.pages().iter().zip(keys).zip(elsewhere) {
            if elsewhere.is_some() {
                continue;
            }
            let place = key.and_then(|key| known.pages.get(&key));
            let found = place.and_then(|place| {
                let loan = *numbers.get(&place.lender)?;
                Some(Elsewhere::Bytes { loan, at: place.at })
            });
            if let (Some(key), None) = (key, found)
                && known.pages.len() < MOST_PAGES
            {
                let lender = own.id();
                known.pages.insert(key, Place { lender, at });
            }
            if found.is_none() {
                at += u64::from(page.len);
            }
            *elsewhere = found;
        }
        if at > from {
            known
                .lenders
                .entry(own.id())
                .or_insert_with(|| Arc::clone(own));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_files_are_forgotten_and_never_the_one_being_written() {
        let mut known = Known::default();
        for id in 0..MOST_FILES as u64 {
            let path = PathBuf::from(id.to_string());
            known.lenders.insert(id, Arc::new(Lender::new(id, path)));
            let mut key = [0; 16];
            key[..8].copy_from_slice(&id.to_le_bytes());
            known.pages.insert(key, Place { lender: id, at: id });
        }
        known.make_room(9, 3);
        let left: Vec<u64> = known.lenders.keys().copied().collect();
        let newer = MOST_FILES as u64 / 2 + 1..MOST_FILES as u64;
        assert_eq!(left, [3].into_iter().chain(newer).collect::<Vec<_>>());
        assert_eq!(known.pages.len(), left.len());
        let is_left = |place: &Place| left.contains(&place.lender);
        assert!(known.pages.values().all(is_left));

        known.make_room(MOST_PAGES + 1, 3);
        assert_eq!(known.lenders.keys().collect::<Vec<_>>(), [&3]);
        assert_eq!(known.pages.len(), 1);
    }
}
