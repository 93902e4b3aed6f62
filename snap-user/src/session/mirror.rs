//! What pages were in the parent snapshot, in memory: what changed ones are encoded against.
//!
//! For each page that it holds, the mirror has the version of the snapshot that the next one builds on, and its
//! place in the store. A version that is being encoded becomes that only when its snapshot is published; until
//! then both are held. A page that it does not hold is stored by itself, and so is one at the end of a chain of
//! [`MOST_VERSIONS`]: the store is never read for the encoder.
//!
//! A page that is what another one is in the parent snapshot, since it has moved or was copied, is stored as a reference to
//! that one, where the mirror has it.
//!
//! Memory is bounded. When it is used up, the page that has not been encoded for longest, about, makes room.

mod shard;
mod twins;

use crate::codec::{Encoding, Scratch};
use crate::image::{EncodedBatch, Location, MOST_VERSIONS, Previous};
use crate::model::{PAGE_SIZE, Page, PageSet, PageTable, SnapshotId, SnapshotKind};
use shard::{Entered, Shard};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use twins::Twins;

/// Parts that are locked one by one, so that encoder threads seldom wait for one another.
const SHARDS: usize = 16;

/// The versions of pages in one snapshot of one session.
pub struct Mirror {
    shards: Vec<Mutex<Shard>>,
    twins: Arc<Twins>,
    /// The snapshot whose versions are held, once there is one.
    of: Mutex<Option<SnapshotId>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic of an encoder ends the snapshot; what it was at is dropped by `abandon`.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Mirror {
    /// A mirror of at most so many bytes; with less than a page for each of its parts it holds nothing.
    pub fn new(memory: u64) -> Self {
        let most = (memory / PAGE_SIZE) as usize / SHARDS;
        let twins = Arc::<Twins>::default();
        let shard = |_| Mutex::new(Shard::new(most, Arc::clone(&twins)));
        Self {
            shards: (0..SHARDS).map(shard).collect(),
            twins,
            of: Mutex::new(None),
        }
    }

    fn shard(&self, addr: u64) -> MutexGuard<'_, Shard> {
        // Neighbours go to different shards.
        lock(&self.shards[(addr / PAGE_SIZE) as usize % SHARDS])
    }

    /// Begins a snapshot. What is held of another snapshot than its parent is of no use.
    pub fn begin(&self, kind: SnapshotKind, parent: Option<SnapshotId>) {
        let mut of = lock(&self.of);
        let parent = parent.filter(|_| kind == SnapshotKind::Delta);
        if *of != parent {
            *of = parent;
            self.clear();
        }
    }

    fn clear(&self) {
        for shard in &self.shards {
            lock(shard).clear();
        }
    }

    /// Encodes a page with this hash into `batch`, as the changes to what it was if that is held and pays.
    pub fn encode(
        &self,
        addr: u64,
        (page, hash): (&Page, u128),
        scratch: &mut Scratch,
        batch: &mut EncodedBatch,
    ) {
        if !self.refer(addr, (page, hash), batch) {
            self.encode_by(addr, (page, hash), batch, |previous, batch| {
                batch.push_against(addr, page, previous, scratch)
            });
        }
    }

    /// As [`Mirror::encode`], in next to no time: what changes much is not made small.
    pub fn encode_fast(&self, addr: u64, (page, hash): (&Page, u128), batch: &mut EncodedBatch) {
        if !self.refer(addr, (page, hash), batch) {
            self.encode_by(addr, (page, hash), batch, |previous, batch| {
                batch.push_fast(addr, page, previous)
            });
        }
    }

    /// Refers to another page that is this in the parent snapshot, if one is held.
    fn refer(&self, addr: u64, (page, hash): (&Page, u128), batch: &mut EncodedBatch) -> bool {
        let Some(twin) = self.twins.find(hash as u64) else {
            return false;
        };
        let depth = {
            let shard = self.shard(twin);
            let stored = shard.held.get(&twin).and_then(|held| held.stored.as_ref());
            let stored = stored.filter(|stored| *stored.page == *page);
            stored.map(|stored| stored.depth)
        };
        let Some(depth) = depth else {
            return false;
        };
        batch.push_same(addr, twin);
        let entered = Entered {
            page,
            hash: hash as u64,
            pass: batch.pass(),
            encoding: Encoding::Reference,
            depth,
        };
        self.shard(addr).enter(addr, &entered);
        true
    }

    fn encode_by(
        &self,
        addr: u64,
        (page, hash): (&Page, u128),
        batch: &mut EncodedBatch,
        push: impl FnOnce(Option<Previous<'_>>, &mut EncodedBatch) -> Encoding,
    ) {
        let mut shard = self.shard(addr);
        let stored = shard.held.get(&addr).and_then(|held| held.stored.as_ref());
        let stored = stored.filter(|stored| stored.depth + 1 < MOST_VERSIONS);
        let below = stored.map_or(0, |stored| stored.depth + 1);
        let previous = stored.map(|stored| Previous {
            page: &stored.page,
            at: stored.at,
        });
        let encoding = push(previous, batch);
        let entered = Entered {
            page,
            hash: hash as u64,
            pass: batch.pass(),
            encoding,
            depth: if encoding.needs_previous() { below } else { 0 },
        };
        shard.enter(addr, &entered);
    }

    /// The snapshot being encoded is published as `id`. `pages` are those that it copied, each with the last of its copy
    /// passes, `removed` those that are gone, and `table` says where each is now.
    pub fn publish(
        &self,
        id: SnapshotId,
        pages: impl IntoIterator<Item = (u64, u32)>,
        removed: &PageSet,
        table: &PageTable<Location>,
    ) {
        *lock(&self.of) = Some(id);
        for (addr, pass) in pages {
            // A place in another snapshot is that of a page which is as it was, or as another one was.
            self.shard(addr).settle(addr, table.get(addr), Some(pass));
        }
        if removed.is_empty() {
            return;
        }
        self.settle_all(|addr, stored| match removed.contains(addr) {
            true => table.get(addr),
            false => stored,
        });
    }

    /// The snapshot being encoded has come to nothing.
    pub fn abandon(&self) {
        self.settle_all(|_, stored| stored);
    }

    /// Keeps the stored versions that are where `place` says.
    fn settle_all(&self, place: impl Fn(u64, Option<Location>) -> Option<Location>) {
        for shard in &self.shards {
            let mut shard = lock(shard);
            let held = shard.held.iter();
            let places: Vec<_> = held
                .map(|(addr, held)| (*addr, held.stored.as_ref().map(|stored| stored.at)))
                .collect();
            for (addr, at) in places {
                shard.settle(addr, place(addr, at), None);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: u64 = PAGE_SIZE;

    fn page(seed: u64) -> Page {
        let mut page = [0; PAGE_SIZE as usize];
        let mut state = seed | 1;
        for word in page.as_chunks_mut::<8>().0 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            *word = state.to_le_bytes();
        }
        page
    }

    fn id(n: u8) -> SnapshotId {
        SnapshotId([n; 16])
    }

    fn encode(mirror: &Mirror, addr: u64, page: &Page, pass: u32) -> (Encoding, Option<Location>) {
        let mut batch = EncodedBatch::new(pass);
        let hash = xxhash_rust::xxh3::xxh3_128(page);
        mirror.encode(addr, (page, hash), &mut Scratch::default(), &mut batch);
        (batch.pages()[0].encoding, batch.pages()[0].previous)
    }

    /// Publishes a snapshot whose pages, copied in the first pass, are in the order of their addresses.
    fn publish(mirror: &Mirror, seq: u32, addrs: &[u64]) -> PageTable<Location> {
        publish_pass(mirror, seq, addrs, 0)
    }

    fn publish_pass(mirror: &Mirror, seq: u32, addrs: &[u64], pass: u32) -> PageTable<Location> {
        let mut table = PageTable::new();
        for (addr, slot) in addrs.iter().zip(0..) {
            table.insert(*addr, Location::new(seq, slot).expect("not 0"));
        }
        let pages: Vec<_> = addrs.iter().map(|addr| (*addr, pass)).collect();
        mirror.publish(id(seq as u8), pages, &PageSet::new(), &table);
        table
    }

    fn pages_held(mirror: &Mirror) -> (usize, usize) {
        let shards = || mirror.shards.iter().map(lock);
        let held = shards().flat_map(|shard| {
            shard
                .held
                .values()
                .map(|held| usize::from(held.stored.is_some()) + usize::from(held.fresh.is_some()))
                .collect::<Vec<_>>()
        });
        (held.sum(), shards().map(|shard| shard.pages).sum())
    }

    #[test]
    fn a_changed_page_is_encoded_against_the_published_one() {
        let mirror = Mirror::new(1 << 20);
        mirror.begin(SnapshotKind::Base, None);
        let mut content = page(1);
        assert_eq!(encode(&mirror, PAGE, &content, 0).1, None);
        // Copied again for the same snapshot: the first copy is in no snapshot.
        content[0] ^= 1;
        assert_eq!(encode(&mirror, PAGE, &content, 1).1, None);
        let table = publish_pass(&mirror, 1, &[PAGE], 1);
        mirror.begin(SnapshotKind::Delta, Some(id(1)));
        content[0] ^= 2;
        let (encoding, previous) = encode(&mirror, PAGE, &content, 0);
        assert_eq!((encoding, previous), (Encoding::Runs, table.get(PAGE)));
    }

    #[test]
    fn a_chain_ends_before_it_is_too_long() {
        let mirror = Mirror::new(1 << 20);
        let mut content = page(7);
        let mut chain = 0;
        let mut longest = 0;
        for seq in 1..40 {
            let parent = (seq > 1).then(|| id(seq as u8 - 1));
            let kind = if seq == 1 {
                SnapshotKind::Base
            } else {
                SnapshotKind::Delta
            };
            mirror.begin(kind, parent);
            content[9] = content[9].wrapping_add(1);
            let (encoding, _) = encode(&mirror, PAGE, &content, 0);
            chain = if encoding.needs_previous() {
                chain + 1
            } else {
                1
            };
            longest = longest.max(chain);
            publish(&mirror, seq, &[PAGE]);
        }
        assert_eq!(longest, MOST_VERSIONS);
    }

    #[test]
    fn a_page_that_moved_or_was_copied_refers_to_what_it_was() {
        let mirror = Mirror::new(1 << 20);
        let content = page(5);
        encode(&mirror, PAGE, &content, 0);
        // Not before its snapshot is there.
        assert_eq!(encode(&mirror, 7 * PAGE, &content, 0).0, Encoding::Raw);
        let table = publish(&mirror, 1, &[PAGE]);
        mirror.begin(SnapshotKind::Delta, Some(id(1)));
        let mut batch = EncodedBatch::new(0);
        let hash = xxhash_rust::xxh3::xxh3_128(&content);
        mirror.encode_fast(2 * PAGE, (&content, hash), &mut batch);
        mirror.encode(
            3 * PAGE,
            (&content, hash),
            &mut Scratch::default(),
            &mut batch,
        );
        let found: Vec<_> = batch.pages().iter().map(|p| (p.encoding, p.at)).collect();
        assert_eq!(found, [(Encoding::Reference, PAGE); 2]);
        // One of another content with the same hash is none.
        let (other, _) = encode(&mirror, 4 * PAGE, &page(6), 0);
        assert_eq!(other, Encoding::Raw);
        mirror.encode(
            5 * PAGE,
            (&page(8), hash),
            &mut Scratch::default(),
            &mut batch,
        );
        assert_eq!(batch.pages()[2].encoding, Encoding::Raw);
        // The copy is what the next version is encoded against, as the version that it refers to.
        let mut later = table.clone();
        let at = table.get(PAGE).expect("published");
        later.insert(2 * PAGE, at);
        later.insert(3 * PAGE, at);
        mirror.publish(
            id(2),
            [(2 * PAGE, 0), (3 * PAGE, 0)],
            &PageSet::new(),
            &later,
        );
        mirror.begin(SnapshotKind::Delta, Some(id(2)));
        let mut changed = content;
        changed[77] ^= 1;
        let (encoding, previous) = encode(&mirror, 3 * PAGE, &changed, 0);
        assert_eq!((encoding, previous), (Encoding::Runs, Some(at)));
        mirror.begin(SnapshotKind::Delta, Some(id(9)));
        assert_eq!(mirror.twins.len(), 0, "of another snapshot");
    }

    #[test]
    fn what_is_not_held_is_not_looked_for() {
        let most = 4 * SHARDS;
        let mirror = Mirror::new(most as u64 * PAGE);
        for seq in 1..20u64 {
            let kind = match seq {
                1 => SnapshotKind::Base,
                _ => SnapshotKind::Delta,
            };
            mirror.begin(kind, (seq > 1).then(|| id(seq as u8 - 1)));
            let addrs: Vec<u64> = (0..most as u64)
                .map(|n| (seq % 3 * 40 + n) * PAGE)
                .collect();
            for addr in &addrs {
                encode(&mirror, *addr, &page(seq << 32 | addr), 0);
            }
            publish(&mirror, seq as u32, &addrs);
            let held = pages_held(&mirror).0;
            assert!(
                mirror.twins.len() <= held,
                "{} of {held}",
                mirror.twins.len()
            );
            assert!(held > 0);
        }
    }

    #[test]
    fn what_was_not_published_is_forgotten() {
        let mirror = Mirror::new(1 << 20);
        let mut content = page(3);
        encode(&mirror, PAGE, &content, 0);
        mirror.abandon();
        assert_eq!(encode(&mirror, PAGE, &content, 0).1, None);
        let table = publish(&mirror, 1, &[PAGE]);
        mirror.begin(SnapshotKind::Delta, Some(id(1)));
        content[5] ^= 1;
        encode(&mirror, PAGE, &content, 0);
        mirror.abandon();
        // The version before is still the parent's.
        content[6] ^= 1;
        assert_eq!(encode(&mirror, PAGE, &content, 0).1, table.get(PAGE));
        mirror.abandon();
        assert_eq!(pages_held(&mirror), (1, 1));
    }

    #[test]
    fn another_parent_is_another_history() {
        let mirror = Mirror::new(1 << 20);
        encode(&mirror, PAGE, &page(3), 0);
        publish(&mirror, 1, &[PAGE]);
        mirror.begin(SnapshotKind::Delta, Some(id(9)));
        assert_eq!(encode(&mirror, PAGE, &page(3), 0).1, None);
    }

    #[test]
    fn a_page_that_becomes_zeroes_or_goes_away_is_dropped() {
        let mirror = Mirror::new(1 << 20);
        let addrs = [PAGE, 2 * PAGE, 3 * PAGE];
        for addr in addrs {
            encode(&mirror, addr, &page(addr), 0);
        }
        publish(&mirror, 1, &addrs);
        mirror.begin(SnapshotKind::Delta, Some(id(1)));
        // One becomes zeroes, one goes away.
        encode(&mirror, PAGE, &[0; PAGE_SIZE as usize], 0);
        let mut table = PageTable::new();
        table.insert(PAGE, Location::new(2, 0).expect("not 0"));
        let gone = PageSet::from_pages(vec![2 * PAGE, 3 * PAGE]);
        mirror.publish(id(2), [(PAGE, 0)], &gone, &table);
        assert_eq!(pages_held(&mirror), (0, 0));
    }

    #[test]
    fn what_an_earlier_snapshot_has_is_what_the_next_version_is_encoded_against() {
        let mirror = Mirror::new(1 << 20);
        encode(&mirror, PAGE, &page(3), 0);
        publish(&mirror, 1, &[PAGE]);
        mirror.begin(SnapshotKind::Delta, Some(id(1)));
        // The store finds that another snapshot has it.
        let mut content = page(4);
        encode(&mirror, PAGE, &content, 0);
        let elsewhere = Location::new(1, 77).expect("not 0");
        let mut table = PageTable::new();
        table.insert(PAGE, elsewhere);
        mirror.publish(id(2), [(PAGE, 0)], &PageSet::new(), &table);
        mirror.begin(SnapshotKind::Delta, Some(id(2)));
        content[9] ^= 1;
        let (encoding, previous) = encode(&mirror, PAGE, &content, 0);
        assert_eq!((encoding, previous), (Encoding::Runs, Some(elsewhere)));
    }

    #[test]
    fn the_copy_that_counts_is_the_one_that_is_held() {
        let mirror = Mirror::new(1 << 20);
        // Encoder threads finish in any order: the later copy, zeroes, is encoded first.
        encode(&mirror, PAGE, &[0; PAGE_SIZE as usize], 1);
        encode(&mirror, PAGE, &page(2), 0);
        publish_pass(&mirror, 1, &[PAGE], 1);
        mirror.begin(SnapshotKind::Delta, Some(id(1)));
        assert_eq!(encode(&mirror, PAGE, &page(2), 0).1, None);
    }

    #[test]
    fn memory_is_bounded_and_goes_to_what_changes() {
        let most = 4 * SHARDS;
        let mirror = Mirror::new(most as u64 * PAGE);
        let addrs: Vec<u64> = (1..=10 * most as u64).map(|n| n * PAGE).collect();
        for addr in &addrs {
            encode(&mirror, *addr, &page(*addr), 0);
        }
        assert_eq!(pages_held(&mirror), (most, most));
        // Nothing can be given up before the snapshot is published: the hand has not gone round for each page.
        for shard in mirror.shards.iter().map(lock) {
            assert_eq!(shard.steps, 2 * shard.round.len());
        }
        publish(&mirror, 1, &addrs);
        // A few pages that change all the time find their way in, whatever was there first.
        let hot = &addrs[addrs.len() - SHARDS..];
        let mut against = 0;
        for seq in 2..8 {
            mirror.begin(SnapshotKind::Delta, Some(id(seq - 1)));
            against = 0;
            for addr in hot {
                let mut content = page(*addr);
                content[0] ^= seq;
                against += usize::from(encode(&mirror, *addr, &content, 0).1.is_some());
            }
            publish(&mirror, seq.into(), hot);
            assert!(pages_held(&mirror).1 <= most);
        }
        assert_eq!(against, hot.len());
    }

    #[test]
    fn without_memory_nothing_is_held() {
        let mirror = Mirror::new(0);
        encode(&mirror, PAGE, &page(3), 0);
        publish(&mirror, 1, &[PAGE]);
        mirror.begin(SnapshotKind::Delta, Some(id(1)));
        assert_eq!(encode(&mirror, PAGE, &page(4), 0).1, None);
        assert_eq!(pages_held(&mirror), (0, 0));
    }
}
