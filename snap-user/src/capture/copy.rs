//! Copying pages out of a process, in pieces of bounded size.

use super::{CaptureError, Result};
use crate::model::{PAGE_SIZE, Page, PageRange, PageSet};
use crate::sys;
use xxhash_rust::xxh3::xxh3_128;

/// Pages copied out of the target: `bytes` holds them one after the other.
#[derive(Debug, Default)]
pub struct Copied {
    /// Place in the order of copying: where two hold the same page, the higher one counts.
    pub pass: u32,
    /// Address of each page.
    pub addrs: Vec<u64>,
    /// Their content, [`PAGE_SIZE`] bytes each.
    pub bytes: Vec<u8>,
    /// Content hash of each page, where it was computed while copying; else empty.
    pub hashes: Vec<u128>,
}

/// In place of the address of a page that is not wanted any more.
const FORGOTTEN: u64 = u64::MAX;

impl Copied {
    /// Each page with its address, and its hash where it is known.
    pub fn pages(&self) -> impl Iterator<Item = (u64, &Page, Option<u128>)> {
        let hashes = self
            .hashes
            .iter()
            .map(|hash| Some(*hash))
            .chain(std::iter::repeat(None));
        self.addrs
            .iter()
            .zip(self.bytes.as_chunks().0)
            .zip(hashes)
            .map(|((addr, page), hash)| (*addr, page, hash))
            .filter(|(addr, ..)| *addr != FORGOTTEN)
    }

    /// Empties it, keeping its memory.
    pub fn reset(&mut self, pass: u32) {
        self.pass = pass;
        self.addrs.clear();
        self.bytes.clear();
        self.hashes.clear();
    }

    /// Single pages may be added, up to `most`: not so where the others have no hashes.
    pub fn takes(&self, most: u64) -> bool {
        self.hashes.len() == self.addrs.len() && (self.addrs.len() as u64) < most
    }

    /// Adds a page with its hash.
    pub fn push(&mut self, addr: u64, page: &Page, hash: u128) {
        self.addrs.push(addr);
        self.bytes.extend_from_slice(page);
        self.hashes.push(hash);
    }

    /// Replaces the content of the page at `index`.
    pub fn replace(&mut self, index: usize, page: &Page, hash: u128) {
        let start = index * page.len();
        self.bytes[start..start + page.len()].copy_from_slice(page);
        self.hashes[index] = hash;
    }

    /// Takes out pages for which `stale` holds.
    pub fn forget(&mut self, mut stale: impl FnMut(u64) -> bool) {
        for addr in &mut self.addrs {
            if *addr != FORGOTTEN && stale(*addr) {
                *addr = FORGOTTEN;
            }
        }
    }

    /// Takes out the pages that could not be read.
    fn remove(&mut self, faults: &[sys::ReadFault]) {
        for fault in faults {
            if let Some(at) = self.addrs.iter().position(|a| *a == fault.addr) {
                self.addrs.remove(at);
                let start = at * PAGE_SIZE as usize;
                self.bytes.drain(start..start + PAGE_SIZE as usize);
            }
        }
    }
}

/// Cuts a set of pages into lists of ranges of at most `pages` pages.
fn pieces(set: &PageSet, pages: u64) -> impl Iterator<Item = Vec<PageRange>> + '_ {
    let mut rest = set.ranges().iter().copied();
    let mut left: Option<PageRange> = None;
    std::iter::from_fn(move || {
        let mut piece = Vec::new();
        let mut room = pages * PAGE_SIZE;
        while room > 0 {
            let Some(range) = left.take().or_else(|| rest.next()) else {
                break;
            };
            if range.len() > room {
                left = Some(PageRange {
                    start: range.start + room,
                    end: range.end,
                });
                piece.push(PageRange {
                    start: range.start,
                    end: range.start + room,
                });
                break;
            }
            room -= range.len();
            piece.push(range);
        }
        (!piece.is_empty()).then_some(piece)
    })
}

/// Copies `pages`, `chunk` pages at a time into buffers from `buffer`, and hands each to `deliver`.
/// Pages that are not there are returned.
pub fn copy(
    pid: i32,
    pages: &PageSet,
    chunk: u64,
    mut buffer: impl FnMut() -> Copied,
    mut deliver: impl FnMut(Copied),
) -> Result<PageSet> {
    let mut gone = Vec::new();
    for piece in pieces(pages, chunk) {
        let mut copied = buffer();
        copied.addrs.clear();
        copied.hashes.clear();
        copied.addrs.extend(piece.iter().flat_map(PageRange::iter));
        copied
            .bytes
            .resize(copied.addrs.len() * PAGE_SIZE as usize, 0);
        let faults = match sys::read_ranges(pid, &piece, &mut copied.bytes) {
            Ok(faults) => faults,
            Err(e) => {
                // Empty, but back where it came from.
                copied.reset(copied.pass);
                deliver(copied);
                return Err(CaptureError::from_sys(pid, e));
            }
        };
        copied.remove(&faults);
        gone.extend(faults.iter().map(|f| f.addr));
        deliver(copied);
    }
    Ok(PageSet::from_pages(gone))
}

/// As [`copy`], for pages that may not have changed: reads all of them, and hands each one with its
/// hash to `take`, which keeps what it wants.
pub fn inspect(
    pid: i32,
    pages: &PageSet,
    chunk: u64,
    mut take: impl FnMut(u64, &Page, u128),
) -> Result<PageSet> {
    let mut read = Copied::default();
    let mut gone = Vec::new();
    for piece in pieces(pages, chunk) {
        read.addrs.clear();
        read.addrs.extend(piece.iter().flat_map(PageRange::iter));
        read.bytes.resize(read.addrs.len() * PAGE_SIZE as usize, 0);
        let faults = sys::read_ranges(pid, &piece, &mut read.bytes)
            .map_err(|e| CaptureError::from_sys(pid, e))?;
        read.remove(&faults);
        gone.extend(faults.iter().map(|f| f.addr));
        for (addr, page, _) in read.pages() {
            take(addr, page, xxh3_128(page));
        }
    }
    Ok(PageSet::from_pages(gone))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_keeps_its_own_hash() {
        let mut copied = Copied {
            addrs: vec![0x1000],
            bytes: vec![1; 4096],
            ..Default::default()
        };
        assert!(!copied.takes(8), "a page without a hash is in it");
        copied.reset(1);
        copied.push(0x2000, &[2; 4096], 22);
        copied.push(0x3000, &[3; 4096], 33);
        copied.replace(0, &[4; 4096], 44);
        assert!(copied.takes(3) && !copied.takes(2));
        let pages: Vec<_> = copied.pages().map(|(a, p, h)| (a, p[0], h)).collect();
        assert_eq!(pages, [(0x2000, 4, Some(44)), (0x3000, 3, Some(33))]);
    }

    #[test]
    fn pieces_cover_the_set_and_keep_to_their_size() {
        let page = |n: u64| n * PAGE_SIZE;
        let set = PageSet::from_ranges(vec![
            PageRange::new(page(0), page(5)),
            PageRange::new(page(7), page(8)),
            PageRange::new(page(10), page(20)),
        ]);
        for size in 1..18 {
            let cut: Vec<_> = pieces(&set, size).collect();
            assert!(
                cut.iter()
                    .all(|p| p.iter().map(PageRange::pages).sum::<u64>() <= size)
            );
            assert_eq!(cut.into_iter().flatten().collect::<PageSet>(), set);
        }
    }
}
