//! Copied pages that wait for the stop to be over, each of them once, as it was copied last.

use crate::model::{PAGE_SIZE, Page};
use rustc_hash::FxHashMap;
use std::collections::VecDeque;

/// Pages in one buffer.
pub const CHUNK: u64 = 256;
/// Bytes in one buffer.
pub const BUFFER: u64 = CHUNK * PAGE_SIZE;

/// In place of the address of a page that turned out not to be there.
const NONE: u64 = u64::MAX;

/// Room for [`CHUNK`] pages.
#[derive(Debug)]
pub struct Buffer {
    /// Place in the order of copying: where two hold the same page, the higher one counts.
    pub pass: u32,
    addrs: Vec<u64>,
    bytes: Vec<u8>,
    /// Content hash of each page, where it was computed while copying.
    hashes: Vec<Option<u128>>,
}

impl Buffer {
    /// An empty one, its memory touched: the first touch of a page costs more than copying into it.
    pub fn new() -> Self {
        let mut new = Self {
            pass: 0,
            addrs: Vec::with_capacity(CHUNK as usize),
            bytes: vec![0; BUFFER as usize],
            hashes: Vec::with_capacity(CHUNK as usize),
        };
        for page in new.pages_mut() {
            page[0] = std::hint::black_box(1);
        }
        new
    }

    /// Number of pages, those included that turned out not to be there.
    pub fn len(&self) -> usize {
        self.addrs.len()
    }

    /// Each page with its address, and its hash where it is known.
    pub fn pages(&self) -> impl Iterator<Item = (u64, &Page, Option<u128>)> {
        self.addrs
            .iter()
            .zip(self.bytes.as_chunks().0)
            .zip(&self.hashes)
            .map(|((addr, page), hash)| (*addr, page, *hash))
            .filter(|(addr, ..)| *addr != NONE)
    }

    fn pages_mut(&mut self) -> &mut [Page] {
        self.bytes.as_chunks_mut().0
    }
}

/// Where a page waits: the pass of its buffer, and its index in it.
type Place = (u32, u32);

/// Buffers that wait, in the order of copying.
#[derive(Debug, Default)]
pub struct Staging {
    buffers: VecDeque<Buffer>,
    places: FxHashMap<u64, Place>,
    /// Pass of the first buffer that is not full.
    filling: u32,
    /// Place in the order of copying of the next buffer.
    pass: u32,
}

impl Staging {
    /// Begins a new order of copying. Nothing may be waiting.
    pub fn restart(&mut self) {
        debug_assert!(self.buffers.is_empty());
        self.places.clear();
        self.filling = 0;
        self.pass = 0;
    }

    /// Buffers that wait.
    pub fn len(&self) -> usize {
        self.buffers.len()
    }

    /// Adds room.
    pub fn push(&mut self, mut empty: Buffer) {
        empty.addrs.clear();
        empty.hashes.clear();
        empty.pass = self.pass;
        self.buffers.push_back(empty);
        self.pass += 1;
    }

    /// From now on new pages go into buffers with a higher place in the order than any before.
    pub fn next_pass(&mut self) -> u32 {
        if !self.room().is_multiple_of(CHUNK as usize) {
            self.filling += 1;
        }
        self.filling
    }

    /// New pages that there is room for.
    pub fn room(&self) -> usize {
        let unused = (self.pass - self.filling) as usize;
        match self.buffers.len().checked_sub(unused) {
            Some(first) if unused > 0 => unused * CHUNK as usize - self.buffers[first].len(),
            _ => 0,
        }
    }

    /// Room for how many more pages these need, those aside that have a place.
    pub fn lacks(&self, pages: &[u64]) -> usize {
        let new = pages.iter().filter(|p| !self.places.contains_key(p));
        new.count().saturating_sub(self.room())
    }

    /// Takes the oldest buffer out, if it is full.
    pub fn pop(&mut self) -> Option<Buffer> {
        let oldest = match self.buffers.front() {
            Some(oldest) if oldest.pass < self.filling => self.buffers.pop_front()?,
            _ => return None,
        };
        for addr in &oldest.addrs {
            self.places.remove(addr);
        }
        Some(oldest)
    }

    /// Takes all of them out, oldest first.
    pub fn take(&mut self) -> VecDeque<Buffer> {
        self.places.clear();
        self.filling = self.pass;
        std::mem::take(&mut self.buffers)
    }

    /// Puts a page, in place of an earlier copy of it. There must be room.
    pub fn put(&mut self, addr: u64, page: &Page, hash: u128) {
        let place = self.place(addr);
        let buffer = self.buffer(place);
        buffer.hashes[place.1 as usize] = Some(hash);
        buffer.pages_mut()[place.1 as usize] = *page;
    }

    /// Has `read` fill the places of these pages, and tell which of them are not there; these leave.
    /// There must be room.
    pub fn fill<E>(
        &mut self,
        pages: &[u64],
        read: impl FnOnce(&mut [&mut Page]) -> Result<Vec<u64>, E>,
    ) -> Result<Vec<u64>, E> {
        let places: Vec<Place> = pages.iter().map(|addr| self.place(*addr)).collect();
        for place in &places {
            self.buffer(*place).hashes[place.1 as usize] = None;
        }
        let missing = read(&mut self.borrow(&places))?;
        for addr in &missing {
            if let Some(place) = self.places.remove(addr) {
                self.buffer(place).addrs[place.1 as usize] = NONE;
            }
        }
        Ok(missing)
    }

    /// The place of a page, a new one if it has none.
    fn place(&mut self, addr: u64) -> Place {
        if let Some(place) = self.places.get(&addr) {
            return *place;
        }
        let filling = self.filling;
        let buffer = self.buffer((filling, 0));
        let place = (filling, buffer.addrs.len() as u32);
        buffer.addrs.push(addr);
        buffer.hashes.push(None);
        if buffer.len() as u64 == CHUNK {
            self.filling += 1;
        }
        self.places.insert(addr, place);
        place
    }

    fn buffer(&mut self, place: Place) -> &mut Buffer {
        // Passes follow each other without a gap.
        let first = self.buffers.front().map_or(0, |b| b.pass);
        &mut self.buffers[(place.0 - first) as usize]
    }

    /// All of these places at once, in the order given.
    fn borrow(&mut self, places: &[Place]) -> Vec<&mut Page> {
        let mut order: Vec<usize> = (0..places.len()).collect();
        order.sort_unstable_by_key(|n| places[*n]);
        let mut order = order.into_iter().peekable();
        let mut found: Vec<(usize, &mut Page)> = Vec::with_capacity(places.len());
        for buffer in &mut self.buffers {
            let pass = buffer.pass;
            let mut pages = buffer.pages_mut().iter_mut();
            let mut passed = 0;
            while let Some(n) = order.next_if(|n| places[*n].0 == pass) {
                let index = places[n].1 as usize;
                let page = pages.nth(index - passed).expect("an index of the buffer");
                passed = index + 1;
                found.push((n, page));
            }
        }
        found.sort_unstable_by_key(|(n, _)| *n);
        found.into_iter().map(|(_, page)| page).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn staging(buffers: u32) -> Staging {
        let mut staging = Staging::default();
        (0..buffers).for_each(|_| staging.push(Buffer::new()));
        staging
    }

    fn content(staging: &mut Staging) -> Vec<(u64, u8, Option<u128>)> {
        let mut all: Vec<_> = staging
            .take()
            .iter()
            .flat_map(|b| b.pages().map(|(a, p, h)| (a, p[0], h)).collect::<Vec<_>>())
            .collect();
        all.sort_unstable();
        all
    }

    #[test]
    fn a_page_waits_once_as_copied_last() {
        let mut staging = staging(2);
        staging.put(0x1000, &[1; 4096], 11);
        staging.put(0x2000, &[2; 4096], 22);
        let missing = staging.fill(&[0x3000, 0x1000, 0x4000], |places| {
            for (n, place) in places.iter_mut().enumerate() {
                place.fill(n as u8 + 7);
            }
            Ok::<_, ()>(vec![0x4000])
        });
        assert_eq!(missing, Ok(vec![0x4000]));
        staging.put(0x2000, &[5; 4096], 55);
        let want = [(0x1000, 8, None), (0x2000, 5, Some(55)), (0x3000, 7, None)];
        assert_eq!(content(&mut staging), want);
    }

    #[test]
    fn many_pages_fill_several_buffers() {
        let mut staging = staging(3);
        let pages: Vec<u64> = (1..=2 * CHUNK + 5).map(|n| n * PAGE_SIZE).collect();
        assert_eq!(staging.lacks(&pages), 0);
        let number = |places: &mut [&mut Page]| {
            for (n, place) in places.iter_mut().enumerate() {
                place[..8].copy_from_slice(&(n as u64 + 1).to_le_bytes());
            }
            Ok::<_, ()>(Vec::new())
        };
        staging.fill(&pages, number).unwrap();
        assert_eq!(staging.room(), CHUNK as usize - 5);
        // Again, backwards: each into the place that it has.
        let backwards: Vec<u64> = pages.iter().rev().copied().collect();
        assert_eq!(staging.lacks(&backwards), 0);
        staging.fill(&backwards, number).unwrap();
        let last = pages.len() as u64 + 1;
        let mut seen = 0;
        for buffer in staging.take() {
            for (addr, page, _) in buffer.pages() {
                let value = u64::from_le_bytes(page[..8].try_into().unwrap());
                assert_eq!(value, last - addr / PAGE_SIZE);
                seen += 1;
            }
        }
        assert_eq!(seen, pages.len());
    }

    #[test]
    fn what_went_out_early_is_new_when_it_comes_again() {
        let mut staging = staging(3);
        staging.put(0x1000, &[1; 4096], 11);
        assert!(staging.pop().is_none(), "it is not full");
        assert_eq!(staging.next_pass(), 1);
        staging.put(0x2000, &[2; 4096], 22);
        let early = staging.pop().unwrap();
        assert_eq!((early.pass, early.len()), (0, 1));
        staging.put(0x1000, &[3; 4096], 33);
        assert_eq!(staging.room(), 2 * CHUNK as usize - 2);
        let want = [(0x1000, 3, Some(33)), (0x2000, 2, Some(22))];
        assert_eq!(content(&mut staging), want);
    }

    #[test]
    fn a_page_that_is_not_there_may_come_back() {
        let mut staging = staging(1);
        staging.put(0x1000, &[1; 4096], 11);
        let gone = staging.fill(&[0x1000], |_| Ok::<_, ()>(vec![0x1000]));
        assert_eq!(gone, Ok(vec![0x1000]));
        staging.put(0x1000, &[2; 4096], 22);
        assert_eq!(content(&mut staging), [(0x1000, 2, Some(22))]);
    }
}
