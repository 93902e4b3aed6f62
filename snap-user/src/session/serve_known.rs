//! Pages that a target has in its store already, by content: those of the snapshots that are most like what comes.

use super::Result;
use crate::image::{PageSource, SessionId};
use crate::model::Page;
use crate::store::{Snapshot, SnapshotMeta, Store};
use rustc_hash::FxHashMap;
use std::collections::{BTreeMap, HashSet};

/// Snapshots that are looked at, for each process that comes.
const MOST_SNAPSHOTS: usize = 4;
/// Pages that are looked at: 8 GiB of them.
const MOST_PAGES: usize = 2 << 20;
/// Pages read in one go.
const PIECE: usize = 8192;

/// Where pages are, by content.
#[derive(Default)]
pub(super) struct Known {
    snapshots: Vec<Snapshot>,
    places: FxHashMap<[u8; 32], (u32, u64)>,
}

impl Known {
    /// Looks at the newest snapshots of the same program: the newest of each of its sessions first.
    pub(super) fn look(store: &Store, comm: &str) -> Result<Self> {
        Self::look_for(store, &[comm])
    }

    /// The same for a tree, of processes with these names.
    pub(super) fn look_for(store: &Store, comms: &[&str]) -> Result<Self> {
        Self::look_within(store, comms, MOST_PAGES)
    }

    fn look_within(store: &Store, comms: &[&str], most: usize) -> Result<Self> {
        let names: HashSet<&str> = comms.iter().copied().collect();
        let mut newest: BTreeMap<_, SnapshotMeta> = BTreeMap::new();
        for meta in store.list()? {
            if names.contains(&*meta.comm) {
                newest.insert(meta.session, meta);
            }
        }
        let mut newest: Vec<SnapshotMeta> = newest.into_values().collect();
        newest.sort_by_key(|meta| std::cmp::Reverse(meta.time_ns));
        let mut known = Self::default();
        let mut left = most;
        for meta in newest.into_iter().take(MOST_SNAPSHOTS * comms.len()) {
            if left == 0 {
                break;
            }
            // Damaged or just pruned: then its pages are sent.
            if let Err(e) = known.add(store, &meta, &mut left) {
                tracing::debug!("pages of {}: {e}", meta.id);
            }
        }
        Ok(known)
    }

    /// The sessions whose pages it has.
    pub(super) fn sessions(&self) -> impl Iterator<Item = SessionId> + '_ {
        self.snapshots
            .iter()
            .map(|snapshot| snapshot.header().session)
    }

    /// Looks at the pages of a snapshot, at as many as are `left` to be looked at.
    fn add(&mut self, store: &Store, meta: &SnapshotMeta, left: &mut usize) -> Result<()> {
        let snapshot = store.snapshot(meta.id)?;
        let all = snapshot.page_table()?.iter().map(|(addr, _)| addr);
        let addrs: Vec<u64> = all.take(*left).collect();
        let number = self.snapshots.len() as u32;
        // First of all: pages in front of damage stay entered, under this number.
        self.snapshots.push(snapshot);
        let (snapshot, places) = (&self.snapshots[number as usize], &mut self.places);
        for piece in addrs.chunks(PIECE) {
            snapshot.read_pages(piece, &mut |addr, page| {
                let hash = *blake3::hash(page).as_bytes();
                places.entry(hash).or_insert((number, addr));
            })?;
            *left -= piece.len();
        }
        Ok(())
    }

    /// Whether a page is there.
    pub(super) fn has(&self, hash: &[u8; 32]) -> bool {
        self.places.contains_key(hash)
    }

    /// Reads a page. `false` when it is not there any more.
    pub(super) fn read(&self, hash: &[u8; 32], page: &mut Page) -> bool {
        let Some((number, addr)) = self.places.get(hash) else {
            return false;
        };
        let read = self.snapshots[*number as usize].read_page(*addr, page);
        matches!(read, Ok(true)) && blake3::hash(page) == *hash
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::Scratch;
    use crate::image::{EncodedBatch, PageSink};
    use crate::model::{Costs, PAGE_SIZE, ProcessState, SnapshotKind};
    use crate::store::SessionInfo;

    const COMM: &str = "victim";

    /// A page that no encoding makes shorter.
    fn page(seed: u64) -> Page {
        let mut page = [0; PAGE_SIZE as usize];
        let mut state = seed;
        for word in page.as_chunks_mut().0 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            *word = state.to_le_bytes();
        }
        page
    }

    fn hash(seed: u64) -> [u8; 32] {
        *blake3::hash(&page(seed)).as_bytes()
    }

    /// A store with a session of one snapshot for each of these, the newest one last.
    fn store(snapshots: &[&[u64]]) -> (Store, tempfile::TempDir) {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open_or_create(&folder.path().join("store")).unwrap();
        for (seeds, n) in snapshots.iter().zip(1..) {
            let info = SessionInfo {
                pid: n,
                comm: COMM.into(),
                ..SessionInfo::default()
            };
            let mut session = store.create_session(&info).unwrap();
            let mut batch = EncodedBatch::new(0);
            for (seed, addr) in seeds.iter().zip(1..) {
                batch.push(addr * PAGE_SIZE, &page(*seed), &mut Scratch::default());
            }
            let mut pending = session.begin(SnapshotKind::Base, None).unwrap();
            pending.set_time_ns(n as u64);
            pending.append(&batch).unwrap();
            let state = ProcessState {
                pid: n,
                comm: COMM.into(),
                ..ProcessState::default()
            };
            pending.publish(&state, &Costs::default()).unwrap();
        }
        (store, folder)
    }

    /// Changes a byte of a page in the one file that has it.
    fn damage(store: &Store, seed: u64) {
        let content = page(seed);
        for (session, _) in store.sessions().unwrap() {
            let folder = store.dir().join(session.to_string());
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                let mut bytes = std::fs::read(&path).unwrap();
                if let Some(at) = bytes.windows(content.len()).position(|w| w == content) {
                    bytes[at + 100] ^= 1;
                    return std::fs::write(path, bytes).unwrap();
                }
            }
        }
        panic!("page {seed} is nowhere");
    }

    #[test]
    fn pages_in_front_of_damage_are_read_from_their_own_snapshot() {
        let (store, _folder) = store(&[&[1, 2], &[3, 4, 5]]);
        damage(&store, 5);
        let known = Known::look(&store, COMM).unwrap();
        assert!(known.has(&hash(3)) && !known.has(&hash(5)));
        let mut found = [0; PAGE_SIZE as usize];
        for seed in 1..6 {
            assert_eq!(known.read(&hash(seed), &mut found), seed != 5, "{seed}");
            assert!(seed == 5 || found == page(seed), "{seed}");
        }
    }

    #[test]
    fn of_more_pages_than_are_looked_at_the_first_of_the_newest_are_known() {
        let (store, _folder) = store(&[&[1, 2], &[3, 4, 5]]);
        let order = [3, 4, 5, 1, 2];
        for most in [0, 2, 3, 4, 9] {
            let known = Known::look_within(&store, &[COMM], most).unwrap();
            let known: Vec<u64> = order.into_iter().filter(|n| known.has(&hash(*n))).collect();
            assert_eq!(known, order[..most.min(order.len())]);
        }
    }
}
