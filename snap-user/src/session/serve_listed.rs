//! A snapshot of which a target knows what it has, and whose pages it fetches when it is brought back.

use crate::model::{PageRange, PageSet};
use crate::wire::{Begin, Offered};
use std::cmp::Ordering;

/// What is listed of a snapshot: all of its pages, whatever it was a delta to.
pub(super) struct Listed {
    pub(super) begin: Begin,
    /// Ascending.
    pub(super) pages: Vec<Offered>,
    /// Those that the process wrote from one round to another: it is going to want them first.
    pub(super) rewritten: PageSet,
    /// The manifest section, encoded.
    pub(super) state: Vec<u8>,
}

impl Listed {
    /// Of a snapshot with these pages, or with these that have `changed` since the one listed before it.
    pub(super) fn new(
        before: Option<Self>,
        begin: Begin,
        changed: Vec<Offered>,
        dropped: &[PageRange],
        state: Vec<u8>,
    ) -> Self {
        let (before, rewritten) = match before {
            None => (Vec::new(), PageSet::new()),
            Some(before) => {
                let now = PageSet::from_pages(changed.iter().map(|page| page.addr).collect());
                (before.pages, before.rewritten.union(&now))
            }
        };
        Self {
            begin,
            pages: merge(before, changed, dropped),
            rewritten,
            state,
        }
    }
}

/// The pages of a snapshot, from those of the one `before`, those that have `changed`, and what is gone. Both are ascending.
fn merge(before: Vec<Offered>, changed: Vec<Offered>, dropped: &[PageRange]) -> Vec<Offered> {
    let dropped: PageSet = dropped.iter().copied().collect();
    let mut merged = Vec::with_capacity(before.len().max(changed.len()));
    let mut before = before.into_iter().peekable();
    let mut changed = changed.into_iter().peekable();
    loop {
        let order = match (before.peek(), changed.peek()) {
            (None, None) => return merged,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(old), Some(new)) => old.addr.cmp(&new.addr),
        };
        if order.is_le() {
            let stays = before.next().filter(|_| order.is_lt());
            merged.extend(stays.filter(|page| !dropped.contains(page.addr)));
        }
        if order.is_ge() {
            merged.extend(changed.next());
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::model::{PAGE_SIZE, SnapshotId, SnapshotKind};

    /// Of a clone that is to be brought back at once.
    pub(in super::super) fn begin() -> Begin {
        Begin {
            kind: SnapshotKind::Base,
            id: SnapshotId([1; 16]),
            time_ns: 1,
            pid: 4711,
            start_time: 5,
            pages: 0,
            restore: true,
            lazy: true,
            comm: "nobody".into(),
            exe: "/nowhere".into(),
        }
    }

    fn pages(all: &[(u64, u8)]) -> Vec<Offered> {
        let page = |&(page, content): &(u64, u8)| Offered {
            addr: page * PAGE_SIZE,
            hash: [content; 32],
        };
        all.iter().map(page).collect()
    }

    #[test]
    fn what_rounds_have_changed_is_rewritten_and_what_a_first_one_has_is_not() {
        let begin = begin();
        let first = Listed::new(
            None,
            begin.clone(),
            pages(&[(1, 1), (2, 2)]),
            &[],
            Vec::new(),
        );
        assert!(first.rewritten.is_empty());
        let second = Listed::new(
            Some(first),
            begin.clone(),
            pages(&[(2, 3)]),
            &[],
            Vec::new(),
        );
        let third = Listed::new(Some(second), begin, pages(&[(9, 4)]), &[], Vec::new());
        let addrs: Vec<u64> = third
            .rewritten
            .iter()
            .map(|addr| addr / PAGE_SIZE)
            .collect();
        assert_eq!(addrs, [2, 9]);
        assert_eq!(third.pages, pages(&[(1, 1), (2, 3), (9, 4)]));
    }

    #[test]
    fn a_delta_replaces_adds_and_takes_away() {
        let before = pages(&[(1, 1), (2, 2), (3, 3), (7, 7)]);
        let changed = pages(&[(0, 10), (2, 12), (3, 13), (9, 19)]);
        let gone = [PageRange::new(PAGE_SIZE, 4 * PAGE_SIZE)];
        let merged = merge(before.clone(), changed.clone(), &gone);
        let all = pages(&[(0, 10), (2, 12), (3, 13), (7, 7), (9, 19)]);
        assert_eq!(merged, all);
        assert_eq!(merge(Vec::new(), changed.clone(), &[]), changed);
        assert_eq!(merge(before.clone(), Vec::new(), &[]), before);
    }
}
