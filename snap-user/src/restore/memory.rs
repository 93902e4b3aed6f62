//! Page contents: which to write, which to throw away.

use crate::model::{PAGE_SIZE, Page, PageRange, PageSet, Vma};
use crate::sys::{self, Remote};
use std::collections::HashMap;

/// Pages written with one call.
const BATCH: usize = 1024;
/// A hole of fewer pages is filled with zeroes rather than thrown away by an injected call.
const FEW_PAGES: u64 = 8;

/// Contents of pages of a snapshot, loaded ahead of the stop.
#[derive(Debug, Default)]
pub struct Content {
    bytes: Vec<u8>,
    at: HashMap<u64, usize>,
}

impl Content {
    /// Adds a page; again with other bytes replaces it.
    pub fn insert(&mut self, addr: u64, page: &Page) {
        match self.at.get(&addr) {
            Some(&at) => self.bytes[at..at + page.len()].copy_from_slice(page),
            None => {
                self.at.insert(addr, self.bytes.len());
                self.bytes.extend_from_slice(page);
            }
        }
    }

    /// The page at `addr`, if it was added.
    pub fn get(&self, addr: u64) -> Option<&Page> {
        let at = *self.at.get(&addr)?;
        self.bytes[at..].first_chunk()
    }

    /// Pages in it.
    pub fn len(&self) -> usize {
        self.at.len()
    }

    /// True when no page is in it.
    pub fn is_empty(&self) -> bool {
        self.at.is_empty()
    }
}

/// Writes those of `pages` that `content` has and that differ from it. Returns how many were
/// written, and those that it has not.
pub(super) fn write(pid: i32, pages: &PageSet, content: &Content) -> sys::Result<(u64, PageSet)> {
    let (there, absent): (Vec<u64>, Vec<u64>) =
        pages.iter().partition(|addr| content.get(*addr).is_some());
    let mut written = 0;
    let mut live = vec![0u8; BATCH * PAGE_SIZE as usize];
    for batch in there.chunks(BATCH) {
        // Reading costs less than writing does: no copy-on-write, and nothing to track afterwards.
        let live = &mut live[..batch.len() * PAGE_SIZE as usize];
        let unreadable = sys::read_pages(pid, batch, live)?;
        let mut ranges: Vec<PageRange> = Vec::new();
        let mut bytes = Vec::new();
        for (&addr, now) in batch.iter().zip(live.as_chunks().0) {
            let page: &Page = content.get(addr).expect("sorted out above");
            if page == now && !unreadable.iter().any(|fault| fault.addr == addr) {
                continue;
            }
            match ranges.last_mut() {
                Some(last) if last.end == addr => last.end += PAGE_SIZE,
                _ => ranges.push(PageRange {
                    start: addr,
                    end: addr + PAGE_SIZE,
                }),
            }
            bytes.extend_from_slice(page);
            written += 1;
        }
        sys::write_ranges(pid, &ranges, &bytes)?;
    }
    Ok((written, PageSet::from_pages(absent)))
}

/// Makes pages what they are without content of their own: zeroes, or those of the file behind.
/// `pages` must be mapped.
pub(super) fn discard(
    pid: i32,
    pages: &PageSet,
    vmas: &[Vma],
    remote: &mut Remote,
) -> sys::Result<()> {
    for vma in vmas.iter().filter(|v| !v.is_special()) {
        let inside = pages.intersect(&PageSet::from_ranges(vec![vma.range]));
        for range in inside.ranges() {
            let anonymous = vma.is_private_anonymous();
            if vma.shared || anonymous && range.pages() < FEW_PAGES {
                zero(pid, *range)?;
                continue;
            }
            let args = [
                range.start,
                range.len(),
                libc::MADV_DONTNEED as u64,
                0,
                0,
                0,
            ];
            match remote.call("madvise", libc::SYS_madvise, args) {
                Ok(_) => {}
                // Locked in memory: it cannot be thrown away.
                Err(_) if anonymous => zero(pid, *range)?,
                Err(e) => return Err(e),
            }
        }
    }
    Ok(())
}

fn zero(pid: i32, range: PageRange) -> sys::Result<()> {
    let zeroes = vec![0u8; range.len().min(1 << 20) as usize];
    let mut start = range.start;
    while start < range.end {
        let end = range.end.min(start + zeroes.len() as u64);
        let piece = PageRange { start, end };
        sys::write_ranges(pid, &[piece], &zeroes[..piece.len() as usize])?;
        start = end;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_is_replaced_in_place() {
        let mut content = Content::default();
        content.insert(0x1000, &[1; PAGE_SIZE as usize]);
        content.insert(0x5000, &[2; PAGE_SIZE as usize]);
        content.insert(0x1000, &[3; PAGE_SIZE as usize]);
        assert_eq!(content.len(), 2);
        assert_eq!(content.get(0x1000).unwrap()[9], 3);
        assert_eq!(content.get(0x5000).unwrap()[9], 2);
        assert!(content.get(0x9000).is_none());
    }
}
