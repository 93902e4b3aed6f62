//! A map from page to value in leaves of 512 pages, cheap to clone and to compare.

use super::page::{PAGE_SIZE, PageRange};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Pages that one leaf covers: 2 MiB of address space.
pub const LEAF_PAGES: usize = 512;
const LEAF_BYTES: u64 = LEAF_PAGES as u64 * PAGE_SIZE;

type Leaf<T> = [Option<T>; LEAF_PAGES];

/// A map from page address to `T`.
///
/// Leaves are shared between clones until one of them changes, so that each snapshot of a session
/// can keep its whole table, and [`PageTable::diff`] passes over what two of them share.
#[derive(Clone, Debug)]
pub struct PageTable<T> {
    leaves: BTreeMap<u64, Arc<Leaf<T>>>,
}

impl<T> Default for PageTable<T> {
    fn default() -> Self {
        Self {
            leaves: BTreeMap::new(),
        }
    }
}

const fn split(addr: u64) -> (u64, usize) {
    (addr / LEAF_BYTES, (addr % LEAF_BYTES / PAGE_SIZE) as usize)
}

impl<T: Copy + PartialEq> PageTable<T> {
    /// The empty table.
    pub fn new() -> Self {
        Self::default()
    }

    /// The value of the page that holds `addr`.
    pub fn get(&self, addr: u64) -> Option<T> {
        let (leaf, slot) = split(addr);
        self.leaves.get(&leaf)?[slot]
    }

    /// Sets the value of the page that holds `addr`.
    pub fn insert(&mut self, addr: u64, value: T) {
        let (leaf, slot) = split(addr);
        let leaf = self
            .leaves
            .entry(leaf)
            .or_insert_with(|| Arc::new([None; LEAF_PAGES]));
        Arc::make_mut(leaf)[slot] = Some(value);
    }

    /// Removes one page. Quicker than [`PageTable::remove_range`], but an empty leaf stays.
    pub fn forget(&mut self, addr: u64) {
        let (leaf, slot) = split(addr);
        if let Some(leaf) = self.leaves.get_mut(&leaf)
            && leaf[slot].is_some()
        {
            Arc::make_mut(leaf)[slot] = None;
        }
    }

    /// Removes every page of `range`.
    pub fn remove_range(&mut self, range: PageRange) {
        if range.is_empty() {
            return;
        }
        let (first, last) = (range.start / LEAF_BYTES, (range.end - 1) / LEAF_BYTES);
        let mut emptied = Vec::new();
        for (&key, leaf) in self.leaves.range_mut(first..=last) {
            let base = key * LEAF_BYTES;
            let from = range.start.saturating_sub(base) / PAGE_SIZE;
            let to = ((range.end - base) / PAGE_SIZE).min(LEAF_PAGES as u64);
            if from == 0 && to == LEAF_PAGES as u64 {
                emptied.push(key);
            } else if leaf[from as usize..to as usize].iter().any(Option::is_some) {
                let leaf = Arc::make_mut(leaf);
                leaf[from as usize..to as usize].fill(None);
                if leaf.iter().all(Option::is_none) {
                    emptied.push(key);
                }
            }
        }
        for key in emptied {
            self.leaves.remove(&key);
        }
    }

    /// Every page and its value, ascending.
    pub fn iter(&self) -> impl Iterator<Item = (u64, T)> + '_ {
        self.leaves.iter().flat_map(|(key, leaf)| {
            let base = key * LEAF_BYTES;
            leaf.iter()
                .enumerate()
                .filter_map(move |(slot, value)| Some((base + slot as u64 * PAGE_SIZE, (*value)?)))
        })
    }

    /// Every page of `range` that has a value, ascending.
    pub fn range(&self, range: PageRange) -> impl Iterator<Item = (u64, T)> + '_ {
        let first = range.start / LEAF_BYTES;
        let last = range.end.saturating_sub(1) / LEAF_BYTES;
        let leaves = (!range.is_empty()).then(|| self.leaves.range(first..=last));
        leaves.into_iter().flatten().flat_map(move |(key, leaf)| {
            let base = key * LEAF_BYTES;
            leaf.iter().enumerate().filter_map(move |(slot, value)| {
                let addr = base + slot as u64 * PAGE_SIZE;
                (range.contains(addr)).then_some((addr, (*value)?))
            })
        })
    }

    /// Number of pages that have a value, at most: those of the leaves that there are.
    pub fn most_pages(&self) -> u64 {
        (self.leaves.len() * LEAF_PAGES) as u64
    }

    /// Number of pages that have a value.
    pub fn pages(&self) -> u64 {
        self.leaves
            .values()
            .map(|leaf| leaf.iter().flatten().count() as u64)
            .sum()
    }

    /// Addresses of the pages whose value differs between two tables, ascending.
    /// A page that only one of them has differs.
    pub fn diff(&self, other: &Self) -> Vec<u64> {
        const EMPTY: [Option<()>; LEAF_PAGES] = [None; LEAF_PAGES];
        let mut pages = Vec::new();
        let mut compare = |key: u64, differs: &dyn Fn(usize) -> bool| {
            let base = key * LEAF_BYTES;
            pages.extend(
                (0..EMPTY.len())
                    .filter(|&slot| differs(slot))
                    .map(|s| base + s as u64 * PAGE_SIZE),
            );
        };
        let (mut a, mut b) = (
            self.leaves.iter().peekable(),
            other.leaves.iter().peekable(),
        );
        loop {
            let (ka, kb) = (a.peek().map(|x| *x.0), b.peek().map(|x| *x.0));
            let key = match (ka, kb) {
                (None, None) => return pages,
                (Some(x), Some(y)) => x.min(y),
                (Some(x), None) | (None, Some(x)) => x,
            };
            let left = a.next_if(|x| *x.0 == key).map(|x| x.1);
            let right = b.next_if(|x| *x.0 == key).map(|x| x.1);
            match (left, right) {
                (Some(x), Some(y)) if Arc::ptr_eq(x, y) => {}
                (Some(x), Some(y)) => compare(key, &|slot| x[slot] != y[slot]),
                (Some(x), None) | (None, Some(x)) => compare(key, &|slot| x[slot].is_some()),
                (None, None) => unreachable!("the key came from one of them"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Clone, Debug)]
    enum Op {
        Insert(u64, u8),
        Remove(u64, u64),
    }

    fn ops() -> impl Strategy<Value = Vec<Op>> {
        let page = 0u64..2048;
        proptest::collection::vec(
            prop_oneof![
                4 => (page.clone(), any::<u8>()).prop_map(|(p, v)| Op::Insert(p, v)),
                1 => (page, 0u64..900).prop_map(|(p, n)| Op::Remove(p, n)),
            ],
            0..64,
        )
    }

    fn apply(ops: &[Op], table: &mut PageTable<u8>, model: &mut BTreeMap<u64, u8>) {
        for op in ops {
            match *op {
                Op::Insert(page, value) => {
                    table.insert(page * PAGE_SIZE, value);
                    model.insert(page * PAGE_SIZE, value);
                }
                Op::Remove(page, count) => {
                    let range = PageRange::new(page * PAGE_SIZE, (page + count) * PAGE_SIZE);
                    table.remove_range(range);
                    model.retain(|addr, _| !range.contains(*addr));
                }
            }
        }
    }

    proptest! {
        #[test]
        fn behaves_as_a_map_and_diffs_as_one(first in ops(), second in ops(), from in 0u64..2048, len in 0u64..1024) {
            let (mut a, mut model_a) = (PageTable::new(), BTreeMap::new());
            apply(&first, &mut a, &mut model_a);
            let (mut b, mut model_b) = (a.clone(), model_a.clone());
            apply(&second, &mut b, &mut model_b);

            prop_assert_eq!(a.iter().collect::<BTreeMap<_, _>>(), model_a.clone());
            prop_assert_eq!(b.iter().collect::<BTreeMap<_, _>>(), model_b.clone());
            prop_assert_eq!(b.pages(), model_b.len() as u64);
            let range = PageRange::new(from * PAGE_SIZE, (from + len) * PAGE_SIZE);
            prop_assert_eq!(
                b.range(range).collect::<Vec<_>>(),
                model_b.range(range.start..range.end).map(|(k, v)| (*k, *v)).collect::<Vec<_>>()
            );
            let differ: Vec<u64> = (0..4096).map(|n| n * PAGE_SIZE)
                .filter(|p| model_a.get(p) != model_b.get(p)).collect();
            prop_assert_eq!(a.diff(&b), differ);
        }
    }
}
