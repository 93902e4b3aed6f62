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
        for range in pages.ranges() {
            let mut start = range.start;
            while start < range.end {
                let base = start & !(CHUNK_BYTES - 1);
                let end = range.end.min(base + CHUNK_BYTES);
                let chunk = self.0.entry(base).or_insert_with(|| Box::new([0; _]));
                mark(chunk, start, end);
                start = end;
            }
        }
    }

    /// Each chunk that holds a mark, and where it begins.
    pub(super) fn chunks(&self) -> impl Iterator<Item = (u64, &Chunk)> {
        self.0.iter().map(|(base, chunk)| (*base, &**chunk))
    }
}

/// Sets the bits of the pages from `start` to `end`, which lie in one chunk.
fn mark(chunk: &mut Chunk, start: u64, end: u64) {
    let mut addr = start;
    while addr < end {
        let (word, bit) = chunk_bit(addr);
        let rest = (end - addr) / PAGE_SIZE;
        let count = rest.min(64 - u64::from(bit.trailing_zeros()));
        let ones = u64::MAX >> (64 - count);
        chunk[word] |= ones << bit.trailing_zeros();
        addr += count * PAGE_SIZE;
    }
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
        assert!(marked(&Marks::default()).is_empty());
    }
}
