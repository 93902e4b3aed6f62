//! A set of pages, kept as sorted, disjoint, non-adjacent ranges.

use super::page::{PAGE_SIZE, PageRange};
use serde::{Deserialize, Serialize};

/// A set of pages.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PageSet {
    ranges: Vec<PageRange>,
}

impl PageSet {
    /// The empty set.
    pub const fn new() -> Self {
        Self { ranges: Vec::new() }
    }

    /// The set of all pages in `ranges`, which may overlap and come in any order.
    pub fn from_ranges(mut ranges: Vec<PageRange>) -> Self {
        ranges.retain(|r| !r.is_empty());
        // Mostly two sorted runs, one behind the other, which a stable sort merges.
        ranges.sort();
        let mut merged: Vec<PageRange> = Vec::with_capacity(ranges.len());
        for range in ranges {
            match merged.last_mut() {
                Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
                _ => merged.push(range),
            }
        }
        Self { ranges: merged }
    }

    /// The set of the pages at these addresses, in any order, repeats allowed.
    pub fn from_pages(mut pages: Vec<u64>) -> Self {
        pages.sort_unstable();
        let mut ranges: Vec<PageRange> = Vec::new();
        for page in pages {
            match ranges.last_mut() {
                Some(last) if page < last.end => {}
                Some(last) if page == last.end => last.end += PAGE_SIZE,
                _ => ranges.push(PageRange {
                    start: page,
                    end: page + PAGE_SIZE,
                }),
            }
        }
        Self { ranges }
    }

    /// The ranges, ascending, disjoint and with a gap between any two.
    pub fn ranges(&self) -> &[PageRange] {
        &self.ranges
    }

    /// The address of each page, ascending.
    pub fn iter(&self) -> impl Iterator<Item = u64> + '_ {
        self.ranges.iter().flat_map(PageRange::iter)
    }

    /// Number of pages.
    pub fn pages(&self) -> u64 {
        self.ranges.iter().map(PageRange::pages).sum()
    }

    /// True when the set holds no page.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// True when the page that holds `addr` is in the set.
    pub fn contains(&self, addr: u64) -> bool {
        let after = self.ranges.partition_point(|r| r.start <= addr);
        after > 0 && self.ranges[after - 1].contains(addr)
    }

    /// The set with every gap of up to `most` bytes between two of its ranges filled.
    pub fn without_gaps(&self, most: u64) -> Self {
        let mut ranges: Vec<PageRange> = Vec::with_capacity(self.ranges().len());
        for range in self.ranges() {
            match ranges.last_mut() {
                Some(last) if range.start - last.end <= most => last.end = range.end,
                _ => ranges.push(*range),
            }
        }
        Self::from_ranges(ranges)
    }

    /// Pages in either set.
    pub fn union(&self, other: &Self) -> Self {
        if self.is_empty() {
            return other.clone();
        }
        if other.is_empty() {
            return self.clone();
        }
        Self::from_ranges(self.ranges.iter().chain(&other.ranges).copied().collect())
    }

    /// Pages in both sets.
    pub fn intersect(&self, other: &Self) -> Self {
        let (mut a, mut b) = (0, 0);
        let mut ranges = Vec::new();
        while let (Some(x), Some(y)) = (self.ranges.get(a), other.ranges.get(b)) {
            ranges.extend(x.intersect(y));
            if x.end <= y.end {
                a += 1;
            } else {
                b += 1;
            }
        }
        Self { ranges }
    }

    /// Pages in this set that are not in `other`.
    pub fn subtract(&self, other: &Self) -> Self {
        let mut ranges = Vec::with_capacity(self.ranges.len());
        let mut b = 0;
        for range in &self.ranges {
            let mut start = range.start;
            while other.ranges.get(b).is_some_and(|r| r.end <= start) {
                b += 1;
            }
            let mut next = b;
            while let Some(hole) = other.ranges.get(next).filter(|r| r.start < range.end) {
                if start < hole.start {
                    ranges.push(PageRange {
                        start,
                        end: hole.start,
                    });
                }
                start = start.max(hole.end);
                next += 1;
            }
            if start < range.end {
                ranges.push(PageRange {
                    start,
                    end: range.end,
                });
            }
        }
        Self { ranges }
    }
}

impl FromIterator<PageRange> for PageSet {
    fn from_iter<I: IntoIterator<Item = PageRange>>(iter: I) -> Self {
        Self::from_ranges(iter.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn pages() -> impl Strategy<Value = BTreeSet<u64>> {
        proptest::collection::btree_set((0u64..64).prop_map(|n| n * PAGE_SIZE), 0..48)
    }

    fn set(pages: &BTreeSet<u64>) -> PageSet {
        PageSet::from_pages(pages.iter().copied().collect())
    }

    fn is_canonical(set: &PageSet) -> bool {
        set.ranges().iter().all(|r| !r.is_empty())
            && set.ranges().windows(2).all(|w| w[0].end < w[1].start)
    }

    #[test]
    fn small_gaps_are_filled_and_large_ones_stay() {
        let page = |n: u64| n * PAGE_SIZE;
        let set = PageSet::from_pages(vec![page(1), page(3), page(6), page(9)]);
        let ranges = [
            PageRange::new(page(1), page(4)),
            PageRange::new(page(6), page(7)),
            PageRange::new(page(9), page(10)),
        ];
        assert_eq!(set.without_gaps(PAGE_SIZE).ranges(), ranges);
        assert_eq!(set.without_gaps(0), set);
        assert!(PageSet::new().without_gaps(PAGE_SIZE).is_empty());
    }

    proptest! {
        #[test]
        fn behaves_as_a_set_of_pages(a in pages(), b in pages()) {
            let (x, y) = (set(&a), set(&b));
            for (got, want) in [
                (x.union(&y), a.union(&b).copied().collect::<Vec<_>>()),
                (x.intersect(&y), a.intersection(&b).copied().collect()),
                (x.subtract(&y), a.difference(&b).copied().collect()),
            ] {
                prop_assert!(is_canonical(&got));
                prop_assert_eq!(got.pages(), want.len() as u64);
                prop_assert_eq!(got.iter().collect::<Vec<_>>(), want);
            }
            for page in (0..64).map(|n| n * PAGE_SIZE) {
                prop_assert_eq!(x.contains(page), a.contains(&page));
            }
        }
    }
}
