//! Which pages differ between two snapshots.

use super::directory::Store;
use super::error::StoreError;
use super::snapshot::Snapshot;
use crate::image::PageSource;
use crate::model::{Page, SnapshotId};
use std::collections::HashMap;

/// Pages compared at a time: bounds the memory to 16 MiB.
const CHUNK: usize = 4096;

/// How a page differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageChange {
    /// Only in the second snapshot.
    Added,
    /// Only in the first.
    Removed,
    /// In both, with other content.
    Changed,
}

/// A page that differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageDiff {
    /// Page address.
    pub addr: u64,
    /// How.
    pub change: PageChange,
}

impl Store {
    /// The pages whose content differs between two snapshots, ascending.
    ///
    /// Within a session, pages stored in the same place are equal without being read; all others are compared
    /// byte by byte.
    pub fn diff(&self, a: SnapshotId, b: SnapshotId) -> Result<Vec<PageDiff>, StoreError> {
        diff(&self.snapshot(a)?, &self.snapshot(b)?)
    }
}

fn diff(a: &Snapshot, b: &Snapshot) -> Result<Vec<PageDiff>, StoreError> {
    let (left, right) = (a.page_table()?, b.page_table()?);
    let candidates: Vec<u64> = if a.header().session == b.header().session {
        left.diff(right)
    } else {
        let mut all: Vec<u64> = left.iter().chain(right.iter()).map(|page| page.0).collect();
        all.sort_unstable();
        all.dedup();
        all
    };
    let mut found = Vec::new();
    let mut both = Vec::new();
    for addr in candidates {
        let change = match (left.get(addr), right.get(addr)) {
            (Some(_), Some(_)) => {
                both.push(addr);
                continue;
            }
            (Some(_), None) => PageChange::Removed,
            (None, _) => PageChange::Added,
        };
        found.push(PageDiff { addr, change });
    }
    for chunk in both.chunks(CHUNK) {
        let mut first: HashMap<u64, Box<Page>> = HashMap::with_capacity(chunk.len());
        a.read_pages(chunk, &mut |addr, page| {
            first.insert(addr, Box::new(*page));
        })?;
        b.read_pages(chunk, &mut |addr, page| {
            if first.get(&addr).is_none_or(|other| **other != *page) {
                found.push(PageDiff {
                    addr,
                    change: PageChange::Changed,
                });
            }
        })?;
    }
    found.sort_unstable_by_key(|page| page.addr);
    Ok(found)
}
