//! Page contents: which to write, which to throw away.

use super::fault;
use crate::model::{PAGE_SIZE, Page, PageRange, PageSet, Vma};
use crate::sys::{self, Remote};
use std::collections::HashMap;

/// The point in the middle of it.
const HALF: &str = "half of the memory written";
/// Pages compared at a time.
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

    /// Makes room for so many more pages.
    pub fn reserve(&mut self, pages: usize) {
        self.bytes.reserve(pages * PAGE_SIZE as usize);
        self.at.reserve(pages);
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

/// Which pages to put back.
#[derive(Clone, Copy, Debug)]
pub struct Pages<'a> {
    /// All whose content may not be the snapshot's.
    pub may_differ: &'a PageSet,
    /// Those that have been written, so that comparing them first would only cost time.
    pub written: &'a PageSet,
    /// What the snapshot has for each of them that it has at all.
    pub content: &'a Content,
}

/// Writes the pages of `mapped` that have content and may differ from it. Returns how many were
/// written, and those that have none.
pub(super) fn write(pid: i32, pages: &Pages<'_>, mapped: &PageSet) -> sys::Result<(u64, PageSet)> {
    let mut absent = Vec::new();
    let mut to_write: Vec<(u64, &Page)> = Vec::new();
    let mut to_compare: Vec<(u64, &Page)> = Vec::new();
    let mut written = pages.written.ranges().iter().peekable();
    for addr in pages.may_differ.intersect(mapped).iter() {
        let Some(page) = pages.content.get(addr) else {
            absent.push(addr);
            continue;
        };
        while written.next_if(|range| range.end <= addr).is_some() {}
        match written.peek().is_some_and(|range| range.start <= addr) {
            true => to_write.push((addr, page)),
            false => to_compare.push((addr, page)),
        }
    }
    to_write.extend(different(pid, &to_compare)?);
    to_write.sort_unstable_by_key(|(addr, _)| *addr);
    if fault::is_chosen(HALF) {
        sys::write_pages(pid, &to_write[..to_write.len() / 2])?;
        fault::point(HALF);
    }
    sys::write_pages(pid, &to_write)?;
    Ok((to_write.len() as u64, PageSet::from_pages(absent)))
}

/// The pages that the process does not hold like this. Reading costs less than writing does: no
/// copy-on-write, and nothing to track afterwards.
fn different<'a>(pid: i32, pages: &[(u64, &'a Page)]) -> sys::Result<Vec<(u64, &'a Page)>> {
    let mut found = Vec::new();
    let mut live = vec![0u8; pages.len().min(BATCH) * PAGE_SIZE as usize];
    for batch in pages.chunks(BATCH) {
        let live = &mut live[..batch.len() * PAGE_SIZE as usize];
        let addrs: Vec<u64> = batch.iter().map(|(addr, _)| *addr).collect();
        let unreadable = sys::read_pages(pid, &addrs, live)?;
        let differs = |(addr, page): (u64, &Page), now: &Page| {
            page != now || unreadable.iter().any(|fault| fault.addr == addr)
        };
        let pairs = batch.iter().zip(live.as_chunks().0);
        found.extend(
            pairs
                .filter(|(page, now)| differs(**page, now))
                .map(|(page, _)| *page),
        );
    }
    Ok(found)
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
