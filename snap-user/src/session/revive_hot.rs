//! Which pages a process writes most: they come first of what nobody has touched yet.

use crate::model::{PAGE_SIZE, PageRange, PageSet};
use crate::store::{Snapshot, Store};

/// Deltas that are looked at.
const DELTAS: usize = 8;
/// Most pages that are worth being fetched ahead of the others.
const MOST: u64 = 16 << 10;

/// What the newest deltas of a chain have written, those pages first that were written last; neighbours together.
/// As far as it can be read: whoever reads the pages themselves says what is damaged.
pub(super) fn written_last(store: &Store, snapshot: &Snapshot) -> Vec<PageRange> {
    let mut all = Vec::new();
    let mut known = PageSet::new();
    let mut older;
    let mut snapshot = snapshot;
    for _ in 0..DELTAS {
        // A base has everything: that tells nothing.
        let Some(parent) = snapshot.header().parent else {
            break;
        };
        let Ok(pages) = snapshot.stored_pages() else {
            break;
        };
        let written = PageSet::from_pages(pages).subtract(&known);
        known = known.union(&written);
        all.extend(written.ranges().iter().copied());
        if known.pages() >= MOST {
            break;
        }
        older = match store.snapshot(parent) {
            Ok(older) => older,
            Err(_) => break,
        };
        snapshot = &older;
    }
    within(all, MOST * PAGE_SIZE)
}

/// As many of these ranges, from the first on, as have so many bytes.
fn within(all: Vec<PageRange>, most: u64) -> Vec<PageRange> {
    let mut left = most;
    let mut kept = Vec::new();
    for PageRange { start, end } in all {
        let len = (end - start).min(left);
        if len == 0 {
            break;
        }
        kept.push(PageRange::new(start, start + len));
        left -= len;
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_cut_where_there_are_enough() {
        let range = |from: u64, to: u64| PageRange::new(from * PAGE_SIZE, to * PAGE_SIZE);
        let all = vec![range(10, 12), range(1, 5), range(20, 21)];
        assert_eq!(within(all.clone(), 7 * PAGE_SIZE), all);
        let some = within(all, 4 * PAGE_SIZE);
        assert_eq!(some, [range(10, 12), range(1, 3)]);
    }
}
