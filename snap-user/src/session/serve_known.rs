//! Pages that a target has in its store already, by content: those of the snapshots that are most like what comes.

use super::Result;
use crate::image::PageSource;
use crate::model::Page;
use crate::store::{Snapshot, SnapshotMeta, Store};
use rustc_hash::FxHashMap;
use std::collections::BTreeMap;

/// Snapshots that are looked at.
const MOST_SNAPSHOTS: usize = 4;
/// Pages that are looked at: 8 GiB of them.
const MOST_PAGES: u64 = 2 << 20;
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
        let mut newest: BTreeMap<_, SnapshotMeta> = BTreeMap::new();
        for meta in store.list()? {
            if meta.comm == comm {
                newest.insert(meta.session, meta);
            }
        }
        let mut newest: Vec<SnapshotMeta> = newest.into_values().collect();
        newest.sort_by_key(|meta| std::cmp::Reverse(meta.time_ns));
        let mut known = Self::default();
        let mut pages = 0;
        for meta in newest.into_iter().take(MOST_SNAPSHOTS) {
            pages += meta.pages;
            if pages > MOST_PAGES {
                break;
            }
            // Damaged or just pruned: then its pages are sent.
            if let Err(e) = known.add(store, &meta) {
                tracing::debug!("pages of {}: {e}", meta.id);
            }
        }
        Ok(known)
    }

    fn add(&mut self, store: &Store, meta: &SnapshotMeta) -> Result<()> {
        let snapshot = store.snapshot(meta.id)?;
        let number = self.snapshots.len() as u32;
        let addrs: Vec<u64> = snapshot
            .page_table()?
            .iter()
            .map(|(addr, _)| addr)
            .collect();
        for piece in addrs.chunks(PIECE) {
            snapshot.read_pages(piece, &mut |addr, page| {
                let hash = *blake3::hash(page).as_bytes();
                self.places.entry(hash).or_insert((number, addr));
            })?;
        }
        self.snapshots.push(snapshot);
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
