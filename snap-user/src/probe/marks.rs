//! Pages marked for the probes.

use crate::model::{PAGE_SIZE, PageSet};
use snap_common::{CHUNK_BYTES, Chunk, chunk_bit};
use std::collections::BTreeMap;

/// A set of pages as the probes look for one: a bit each, in chunks.
#[derive(Clone, Debug, Default)]
pub struct Marks(BTreeMap<u64, Box<Chunk>>);

impl Marks {
    /// Marks these pages too.
    pub fn add(&mut self, pages: &PageSet) {
        for (base, start, end) in in_chunks(pages) {
            let chunk = self.0.entry(base).or_insert_with(|| Box::new([0; _]));
            for (word, bits) in words(start, end) {
                chunk[word] |= bits;
            }
        }
    }

    /// Marks these pages no more.
    pub fn remove(&mut self, pages: &PageSet) {
        for range in pages.ranges() {
            let first = range.start & !(CHUNK_BYTES - 1);
            for (base, chunk) in self.0.range_mut(first..range.end) {
                let start = range.start.max(*base);
                let end = range.end.min(base + CHUNK_BYTES);
                for (word, bits) in words(start, end) {
                    chunk[word] &= !bits;
                }
            }
        }
    }

    /// Each chunk that holds a mark, and where it begins.
    pub(super) fn chunks(&self) -> impl Iterator<Item = (u64, &Chunk)> {
        self.0.iter().map(|(base, chunk)| (*base, &**chunk))
    }
}

/// The parts of a set that lie in one chunk each: where that begins, and the part.
fn in_chunks(pages: &PageSet) -> impl Iterator<Item = (u64, u64, u64)> {
    pages.ranges().iter().flat_map(|range| {
        let first = range.start & !(CHUNK_BYTES - 1);
        let bases = (first..range.end).step_by(CHUNK_BYTES as usize);
        bases.map(|base| {
            let start = range.start.max(base);
            (base, start, range.end.min(base + CHUNK_BYTES))
        })
    })
}

/// The words of a chunk, and the bits in them, of the pages from `start` to `end`, which lie in it.
fn words(start: u64, end: u64) -> impl Iterator<Item = (usize, u64)> {
    let mut addr = start;
    std::iter::from_fn(move || {
        (addr < end).then(|| {
            let (word, bit) = chunk_bit(addr);
            let first = bit.trailing_zeros();
            let count = ((end - addr) / PAGE_SIZE).min(64 - u64::from(first));
            addr += count * PAGE_SIZE;
            (word, (u64::MAX >> (64 - count)) << first)
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::PageRange;

    fn marked(marks: &Marks) -> Vec<u64> {
        let mut pages = Vec::new();
        for (base, chunk) in marks.chunks() {
            for n in 0..CHUNK_BYTES / PAGE_SIZE {
                let addr = base + n * PAGE_SIZE;
                let (word, bit) = chunk_bit(addr);
                if chunk[word] & bit != 0 {
                    pages.push(addr);
                }
            }
        }
        pages
    }

    #[test]
    fn each_page_has_a_bit_in_its_chunk_and_no_other() {
        let ranges = [
            (0x1000, 0x2000),
            (0x3_f000, 0x8_1000),
            (CHUNK_BYTES - 0x2000, CHUNK_BYTES + 0x5000),
            (5 * CHUNK_BYTES, 7 * CHUNK_BYTES),
            (0x7fff_ffff_0000, 0x7fff_ffff_f000),
        ];
        let set: PageSet = ranges
            .map(|(s, e)| PageRange::new(s, e))
            .into_iter()
            .collect();
        let mut marks = Marks::default();
        marks.add(&set);
        assert_eq!(marked(&marks), set.iter().collect::<Vec<_>>());
        let more = PageSet::from_pages(vec![0x2000, 3 * CHUNK_BYTES]);
        marks.add(&more);
        assert_eq!(marked(&marks), set.union(&more).iter().collect::<Vec<_>>());
        let gone: PageSet = [(0, 0x4_0000), (2 * CHUNK_BYTES, 6 * CHUNK_BYTES)]
            .map(|(s, e)| PageRange::new(s, e))
            .into_iter()
            .collect();
        marks.remove(&gone);
        let left = set.union(&more).subtract(&gone);
        assert_eq!(marked(&marks), left.iter().collect::<Vec<_>>());
        assert!(marked(&Marks::default()).is_empty());
    }
}
