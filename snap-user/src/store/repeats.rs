//! Pages that a file being written has already: it gets their bytes once.

use super::common::key;
use crate::codec::Encoding;
use crate::image::{Elsewhere, EncodedBatch};
use rustc_hash::FxHashMap;
use std::collections::hash_map::Entry;

/// Pages known at a time, of about 40 bytes each here; what comes behind them is looked for among them.
pub(super) const MOST_PAGES: usize = 1 << 20;

/// Where a file has which pages, by the BLAKE3 hashes of their encoded bytes, while it is being written.
#[derive(Debug, Default)]
pub(super) struct Repeats(FxHashMap<[u8; 16], u64>);

impl Repeats {
    /// Finds pages of a batch in the file, which gets the others from the offset `from` on; what is elsewhere already is
    /// passed over.
    pub(super) fn find(
        &mut self,
        batch: &EncodedBatch,
        from: u64,
        found: &mut [Option<Elsewhere>],
    ) {
        let mut at = from;
        for (page, found) in batch.pages().iter().zip(found) {
            if found.is_some() {
                continue;
            }
            match self.place(page.encoding, page.bytes_in(batch.bytes()), at) {
                Some(known) => *found = Some(Elsewhere::Bytes { loan: 0, at: known }),
                None => at += u64::from(page.len),
            }
        }
    }

    /// Where the file has these bytes; without them, it is about to get them at `next`.
    pub(super) fn place(&mut self, encoding: Encoding, bytes: &[u8], next: u64) -> Option<u64> {
        let has_room = self.0.len() < MOST_PAGES;
        match self.0.entry(key(encoding, bytes)?) {
            Entry::Occupied(known) => return Some(*known.get()),
            Entry::Vacant(new) if has_room => _ = new.insert(next),
            Entry::Vacant(_) => {}
        }
        None
    }
}
