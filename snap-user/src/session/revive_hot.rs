//! Which pages a process writes most: they come first of what nobody has touched yet.

use crate::model::{FILE_SPACE, PAGE_SIZE, PageRange, PageSet};
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
        let memory = pages.into_iter().filter(|addr| *addr < FILE_SPACE);
        let written = PageSet::from_pages(memory.collect()).subtract(&known);
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
    use crate::store::tests::support::{info, new_store, publish};

    fn range(from: u64, to: u64) -> PageRange {
        PageRange::new(from * PAGE_SIZE, to * PAGE_SIZE)
    }

    #[test]
    fn pages_of_the_newest_delta_come_first_and_a_base_tells_nothing() {
        let (_folder, store) = new_store();
        let mut session = store.create_session(&info(7)).unwrap();
        let all = (0..600).map(|n| (n, n as u32));
        let base = publish(&mut session, None, [], all).unwrap().id;
        let pages = [(3, 900), (4, 901), (50, 902)];
        let first = publish(&mut session, Some(base), [], pages).unwrap().id;
        let file = (FILE_SPACE / PAGE_SIZE, 903);
        let pages = [(4, 904), (100, 905), file];
        let second = publish(&mut session, Some(first), [], pages).unwrap().id;
        let of = |id| written_last(&store, &store.snapshot(id).unwrap());
        assert_eq!(of(base), []);
        assert_eq!(of(first), [range(3, 5), range(50, 51)]);
        let newest = [range(4, 5), range(100, 101), range(3, 4), range(50, 51)];
        assert_eq!(of(second), newest);
    }

    #[test]
    fn ranges_are_cut_where_there_are_enough() {
        let all = vec![range(10, 12), range(1, 5), range(20, 21)];
        assert_eq!(within(all.clone(), 7 * PAGE_SIZE), all);
        let some = within(all, 4 * PAGE_SIZE);
        assert_eq!(some, [range(10, 12), range(1, 3)]);
    }
}
