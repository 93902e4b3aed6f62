//! Reading pages of a process, in pieces of bounded size, for their content.

use super::{CaptureError, Result};
use crate::model::{PAGE_SIZE, Page, PageRange, PageSet};
use crate::sys;
use xxhash_rust::xxh3::xxh3_128;

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

/// Reads `pages`, `chunk` of them at a time, and hands each one with its hash to `take`, which keeps
/// what it wants. Pages that are not there are returned.
pub fn inspect(
    pid: i32,
    pages: &PageSet,
    chunk: u64,
    mut take: impl FnMut(u64, &Page, u128),
) -> Result<PageSet> {
    let mut bytes = Vec::new();
    let mut gone = Vec::new();
    for piece in pieces(pages, chunk) {
        let len = piece.iter().map(PageRange::len).sum::<u64>() as usize;
        bytes.resize(len, 0);
        let faults = sys::read_ranges(pid, &piece, &mut bytes)
            .map_err(|e| CaptureError::from_sys(pid, e))?;
        let first = gone.len();
        gone.extend(faults.iter().map(|f| f.addr));
        let addrs = piece.iter().flat_map(PageRange::iter);
        for (addr, page) in addrs.zip(bytes.as_chunks().0) {
            if !gone[first..].contains(&addr) {
                take(addr, page, xxh3_128(page));
            }
        }
    }
    Ok(PageSet::from_pages(gone))
}

#[cfg(test)]
mod tests {
    use super::*;

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
