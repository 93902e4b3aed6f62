//! Asynchronous write protection: userfaultfd and `PAGEMAP_SCAN`.

use super::survey::{self, Survey};
use super::{Result, Tracker, TrackerKind};
use crate::model::{PageRange, PageSet, Vma};
use crate::sys::arch::USER_END;
use crate::sys::{
    MayHold, Pagemap, ScanResult, Userfaultfd, WpRegister, monotonic_ns, side_by_side,
};
use std::sync::atomic::{AtomicUsize, Ordering};

/// From here on a walk of the page tables is worth a second thread, in nanoseconds: one that is started takes some 300 µs
/// until it runs.
const LONG_WALK: u64 = 800_000;
/// Pieces of a mapping that threads share.
const PIECES: u64 = 8;
/// Mappings below this size are not cut into pieces.
const LARGE: u64 = 64 << 20;
/// What one page table holds, which two threads would wait for each other at.
const TABLE: u64 = 2 << 20;

pub(super) struct WriteProtect {
    uffd: Userfaultfd,
    pagemap: Pagemap,
    /// Of the second thread, where there is a processor for it.
    second: Option<Pagemap>,
    /// How long walking all page tables took, in nanoseconds, all threads together.
    walk_ns: u64,
    refused: PageSet,
}

impl WriteProtect {
    /// `uffd` belongs to the memory that `pagemap` shows. Nothing is watched before the first rearm.
    pub(super) fn new(uffd: Userfaultfd, pagemap: Pagemap) -> Result<Self> {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let second = match processors {
            1 => None,
            _ => Some(pagemap.try_clone()?),
        };
        Ok(Self {
            uffd,
            pagemap,
            second,
            walk_ns: 0,
            refused: PageSet::new(),
        })
    }

    /// All of them each time: a new mapping at an old address looks the same from outside.
    fn register(&mut self, vmas: &[Vma]) -> Result<()> {
        let mut refused = Vec::new();
        for vma in survey::private(vmas) {
            // One that is gone by now will be heard of; else memory was short, and nothing watches it. Of a page
            // of hugetlbfs neither the log nor the fault program tells more than the first write.
            if self.uffd.register(vma.range)? != WpRegister::Done {
                refused.push(vma.range);
            }
        }
        self.refused = PageSet::from_ranges(refused);
        Ok(())
    }
}

impl WriteProtect {
    /// Protects what was written in `parts`, and tells what that is.
    fn protect(&mut self, parts: &[(PageRange, MayHold)]) -> Result<Vec<ScanResult>> {
        self.pagemap.look_for_swap();
        let long = self.walk_ns > LONG_WALK;
        let Some(second) = self.second.as_mut().filter(|_| long) else {
            let next = AtomicUsize::new(0);
            let done = protect_some(&mut self.pagemap, parts, &next)?;
            self.walk_ns = done.ns;
            return Ok(done.scans.into_iter().map(|(_, scan)| scan).collect());
        };
        second.look_for_swap();
        let pieces = pieces(parts);
        let next = AtomicUsize::new(0);
        let (theirs, mine) = side_by_side(
            || protect_some(second, &pieces, &next),
            || protect_some(&mut self.pagemap, &pieces, &next),
        );
        let (mine, theirs) = (mine?, theirs?);
        self.walk_ns = mine.ns + theirs.ns;
        let mut scans = mine.scans;
        scans.extend(theirs.scans);
        scans.sort_by_key(|(at, _)| *at);
        Ok(scans.into_iter().map(|(_, scan)| scan).collect())
    }
}

/// What one thread has done.
struct Share {
    /// By the place of the part.
    scans: Vec<(usize, ScanResult)>,
    ns: u64,
}

/// Takes parts from `next` on, as long as there are any.
fn protect_some(
    pagemap: &mut Pagemap,
    parts: &[(PageRange, MayHold)],
    next: &AtomicUsize,
) -> Result<Share> {
    let begun = monotonic_ns();
    let mut scans = Vec::new();
    loop {
        let at = next.fetch_add(1, Ordering::Relaxed);
        let Some((part, holds)) = parts.get(at) else {
            let ns = monotonic_ns() - begun;
            return Ok(Share { scans, ns });
        };
        scans.push((at, pagemap.scan_and_protect(*part, *holds)?));
    }
}

/// Cuts large parts where one page table ends and the next begins.
fn pieces(parts: &[(PageRange, MayHold)]) -> Vec<(PageRange, MayHold)> {
    let mut pieces = Vec::new();
    for (part, holds) in parts {
        let mut start = part.start;
        if *holds == MayHold::Anonymous && part.len() >= LARGE {
            let step = (part.len() / PIECES).next_multiple_of(TABLE);
            while part.end - start > step {
                let end = (start + step) & !(TABLE - 1);
                pieces.push((PageRange::new(start, end), *holds));
                start = end;
            }
        }
        pieces.push((PageRange::new(start, part.end), *holds));
    }
    pieces
}

impl Tracker for WriteProtect {
    fn kind(&self) -> TrackerKind {
        TrackerKind::WriteProtect
    }

    fn rearm(
        &mut self,
        vmas: &[Vma],
        unchanged: bool,
        watched: &mut dyn FnMut(),
    ) -> Result<Option<PageSet>> {
        // Registering takes the lock that the target's page faults wait for.
        if !unchanged {
            self.register(vmas)?;
        }
        let parts = survey::by_holding(vmas, PageRange::new(0, USER_END));
        let scans = self.protect(&parts)?;
        watched();
        // Whatever was protected is reported, also where `vmas` is out of date by now.
        let own = scans.into_iter().flatten();
        let own = own.filter(|(_, info)| info.is_own());
        Ok(Some(own.map(|(range, _)| range).collect()))
    }

    fn flushes_by_table(&self) -> bool {
        true
    }

    fn survey(&mut self, vmas: &[Vma], area: Option<&PageSet>) -> Result<Survey> {
        let examined = survey::examined(vmas, area);
        let area = match area {
            None => PageSet::from_ranges(vec![PageRange::new(0, USER_END)]),
            Some(_) => examined.clone(),
        };
        self.pagemap.look_for_swap();
        let mut scan = Vec::new();
        for (part, holds) in survey::by_holding_all(vmas, &area) {
            scan.extend(self.pagemap.scan(part, holds)?);
        }
        Ok(Survey::from_scan(
            &scan,
            vmas,
            examined,
            &self.refused,
            |info| info.written,
        ))
    }

    /// Transparent huge pages are split where they are written, those of hugetlbfs are refused, and khugepaged leaves protected pages alone.
    fn every_write_faults(&self) -> bool {
        true
    }

    fn refused(&self) -> &PageSet {
        &self.refused
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_cover_the_same_pages_and_end_with_page_tables() {
        let small = (PageRange::new(0x1000, 0x5000), MayHold::Files);
        let odd = 0x7000_0000_3000;
        let large = PageRange::new(odd, odd + (1 << 30) + 0x5000);
        let next = (PageRange::new(large.end, large.end + LARGE), MayHold::Files);
        let pieces = pieces(&[small, (large, MayHold::Anonymous), next]);
        assert_eq!(pieces.first(), Some(&small));
        assert_eq!(pieces.last(), Some(&next), "what may hold files is not cut");
        let cut = &pieces[1..pieces.len() - 1];
        assert!((8..=9).contains(&cut.len()), "{}", cut.len());
        assert_eq!(
            (cut[0].0.start, cut[cut.len() - 1].0.end),
            (large.start, large.end)
        );
        for pair in cut.windows(2) {
            assert_eq!(pair[0].0.end, pair[1].0.start);
            assert_eq!(pair[0].0.end % TABLE, 0);
        }
    }
}
