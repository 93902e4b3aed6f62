//! Where the mirror holds which content: a page that has moved, or was copied, is what another one was.

use rustc_hash::FxHashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Parts that are locked one by one.
const SHARDS: usize = 16;

/// Addresses of stored versions by a hash of their content. The hash only says where to look: whoever finds one compares
/// the bytes.
pub(super) struct Twins(Vec<Mutex<FxHashMap<u64, u64>>>);

impl Default for Twins {
    fn default() -> Self {
        Self((0..SHARDS).map(|_| Mutex::default()).collect())
    }
}

impl Twins {
    fn shard(&self, hash: u64) -> MutexGuard<'_, FxHashMap<u64, u64>> {
        let shard = &self.0[hash as usize % SHARDS];
        shard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where this content may be.
    pub(super) fn find(&self, hash: u64) -> Option<u64> {
        self.shard(hash).get(&hash).copied()
    }

    /// It is held for this address. One is enough.
    pub(super) fn note(&self, hash: u64, addr: u64) {
        self.shard(hash).insert(hash, addr);
    }

    /// It is held for this address no more. If it is for another one, that may be forgotten with it.
    pub(super) fn forget(&self, hash: u64, addr: u64) {
        let mut shard = self.shard(hash);
        if shard.get(&hash) == Some(&addr) {
            shard.remove(&hash);
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        let shards = self.0.iter();
        let lens = shards.map(|shard| shard.lock().unwrap_or_else(PoisonError::into_inner).len());
        lens.sum()
    }
}
