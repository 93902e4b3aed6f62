//! Pages that a bucket has already, by content: those of the snapshots that are most like the one that is pushed.

use super::Result;
use crate::bucket::{
    Bucket, BucketError, ChunkName, ChunkRef, Index, PlacedKey, SnapshotName, Whole,
};
use rustc_hash::FxHashMap;
use std::collections::{BTreeMap, HashSet};

/// Snapshots of each program that are looked at.
const MOST_INDEXES: usize = 4;
/// Pages that are looked at: 8 GiB of them.
const MOST_PAGES: u64 = 2 << 20;

/// Where pages are, by content.
#[derive(Default)]
pub(super) struct There {
    /// Chunks that are surely there, and that may be referred to.
    pub(super) chunks: Vec<ChunkRef>,
    places: FxHashMap<[u8; 32], (u32, u32)>,
}

/// Those of these snapshots that may have most pages in common with one: itself, its session, its program, and the
/// newest of each first.
fn most_alike(all: &[SnapshotName], like: &SnapshotName) -> Vec<SnapshotName> {
    let mut alike: Vec<&SnapshotName> = all.iter().filter(|name| name.kin == like.kin).collect();
    alike.sort_by_key(|name| {
        let rank = (name.id != like.id, name.session != like.session);
        (rank, std::cmp::Reverse(name.time_ns))
    });
    alike.into_iter().take(MOST_INDEXES).copied().collect()
}

/// Reads a snapshot of so many pages at most that is sealed with this key, or plain as well: what it refers to may be referred
/// to. Kin tell the two apart, but for chance.
fn whole_within(
    bucket: &Bucket,
    name: &SnapshotName,
    key: Option<&PlacedKey>,
    pages: u64,
) -> std::result::Result<Option<Whole>, BucketError> {
    let head = bucket.head_of(name)?;
    match head.key() == key.map(|key| key.name) {
        true => bucket.whole_within(name, head, key, pages),
        false => Ok(None),
    }
}

impl There {
    /// Looks at the snapshots that are most like these, the first one first, and sealed with the same key, or plain as well. Of
    /// chunks that are `forbidden`, or are not there though an index names them, nothing is known.
    pub(super) fn look(
        bucket: &Bucket,
        like: &[SnapshotName],
        forbidden: &HashSet<ChunkName>,
        key: Option<&PlacedKey>,
    ) -> Result<Self> {
        let mut indexes: Vec<Index> = Vec::new();
        let mut left = MOST_PAGES;
        let all = bucket.snapshots()?;
        let (mut programs, mut seen) = (HashSet::new(), HashSet::new());
        let alike = like
            .iter()
            .filter(|name| programs.insert(name.kin))
            .flat_map(|name| most_alike(&all, name))
            .filter(|name| seen.insert(*name));
        for name in alike {
            match whole_within(bucket, &name, key, left) {
                Ok(Some(whole)) => {
                    left -= whole
                        .indexes
                        .iter()
                        .map(|one| one.header.common.pages)
                        .sum::<u64>();
                    indexes.extend(whole.indexes);
                }
                Ok(None) | Err(BucketError::Missing { .. }) => {}
                // Then its pages are pushed again.
                Err(e @ (BucketError::Corrupt { .. } | BucketError::NewerVersion { .. })) => {
                    tracing::warn!("{e}");
                }
                Err(e) => return Err(e.into()),
            }
        }
        let named: BTreeMap<ChunkName, ChunkRef> = indexes
            .iter()
            .flat_map(|index| &index.chunks)
            .filter(|chunk| !forbidden.contains(&chunk.name))
            .map(|chunk| (chunk.name, *chunk))
            .collect();
        let asked: Vec<(ChunkName, u64)> = named
            .values()
            .map(|chunk| (chunk.name, chunk.len.into()))
            .collect();
        let there = bucket.which_are_there(&asked)?;
        let mut known = Self::default();
        let mut numbers: FxHashMap<ChunkName, u32> = FxHashMap::default();
        for (chunk, there) in named.values().zip(there) {
            if there {
                numbers.insert(chunk.name, known.chunks.len() as u32);
                known.chunks.push(*chunk);
            }
        }
        for index in &indexes {
            let of_index = index.chunks.iter();
            let numbers: Vec<Option<u32>> = of_index
                .map(|chunk| numbers.get(&chunk.name).copied())
                .collect();
            for entry in index.entries() {
                if let Some(number) = numbers[entry.chunk as usize] {
                    let place = (number, entry.slot);
                    known.places.entry(entry.hash).or_insert(place);
                }
            }
        }
        Ok(known)
    }

    /// Enters an index that has just been made: of its pages, by content, it says where they are among its chunks, of which
    /// `adopted` has those that were known.
    pub(super) fn learn(
        &mut self,
        adopted: &[Option<u32>],
        chunks: &[ChunkRef],
        placed: FxHashMap<[u8; 32], (u32, u32)>,
    ) {
        let mut numbers: Vec<Option<u32>> = vec![None; chunks.len()];
        let mut known = vec![false; chunks.len()];
        for place in adopted.iter().flatten() {
            known[*place as usize] = true;
        }
        for ((number, known), chunk) in numbers.iter_mut().zip(known).zip(chunks) {
            if !known {
                *number = Some(self.chunks.len() as u32);
                self.chunks.push(*chunk);
            }
        }
        for (hash, (chunk, slot)) in placed {
            if let Some(number) = numbers[chunk as usize] {
                self.places.entry(hash).or_insert((number, slot));
            }
        }
    }

    /// The number of its chunk, and the slot in it, of a page.
    pub(super) fn place(&self, hash: &[u8; 32]) -> Option<(u32, u32)> {
        self.places.get(hash).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bucket::Kin;
    use crate::image::SessionId;
    use crate::model::SnapshotId;

    #[test]
    fn the_snapshot_itself_comes_first_then_its_session_then_its_program() {
        let name = |time_ns, comm, session, id| SnapshotName {
            time_ns,
            kin: Kin::of(comm),
            session: SessionId([session; 16]),
            id: SnapshotId([id; 16]),
        };
        let all = [
            name(1, "a", 1, 1),
            name(2, "a", 1, 2),
            name(3, "a", 2, 3),
            name(4, "b", 3, 4),
            name(5, "a", 4, 5),
            name(6, "a", 1, 6),
        ];
        let ids: Vec<u8> = most_alike(&all, &all[0])
            .iter()
            .map(|name| name.id.0[0])
            .collect();
        assert_eq!(ids, [1, 6, 2, 5]);
    }
}
