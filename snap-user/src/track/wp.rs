//! Asynchronous write protection: userfaultfd and `PAGEMAP_SCAN`.

use super::survey::{self, Survey};
use super::walk::{Walk, Walker};
use super::{Result, Since, Tracker, TrackerKind};
use crate::model::{PageRange, PageSet, Vma};
use crate::sys::arch::USER_END;
use crate::sys::{MayHold, Pagemap, Userfaultfd, WpRegister};
use std::sync::Arc;

/// From here on a walk of the page tables of a stopped process is worth waking a second thread, in nanoseconds.
const LONG_WALK: u64 = 150_000;
/// What a look at one page costs, in nanoseconds.
const PAGE_NS: u64 = 8;

pub(super) struct WriteProtect {
    uffd: Userfaultfd,
    pagemap: Pagemap,
    /// Started with the first walk that may be long.
    walker: Option<Walker>,
    /// There is a processor, and a thread, for it.
    may_share: bool,
    /// The walk that the second thread has begun.
    begun: Option<Arc<Walk>>,
    /// How long the last walk of all of the stopped process took, in nanoseconds, both threads together.
    walk_ns: Option<u64>,
    /// The next walk is one of the stopped process.
    is_stopped: bool,
    refused: PageSet,
}

impl WriteProtect {
    /// `uffd` belongs to the memory that `pagemap` shows. Nothing is watched before the first rearm.
    pub(super) fn new(uffd: Userfaultfd, pagemap: Pagemap) -> Self {
        Self {
            uffd,
            pagemap,
            walker: None,
            may_share: Walker::has_processor(),
            begun: None,
            walk_ns: None,
            is_stopped: false,
            refused: PageSet::new(),
        }
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

    fn start_walker(&mut self) {
        if self.walker.is_none() && self.may_share {
            self.walker = Walker::start(&self.pagemap);
            self.may_share = self.walker.is_some();
        }
    }

    /// All of the address space, or what of it is to be looked at, by what is in it, without what others may watch: a
    /// walk would take their record of writes away. Those are mappings that were refused, and shared ones, which nobody
    /// watches here.
    fn parts(&self, vmas: &[Vma], within: Option<&PageSet>) -> Vec<(PageRange, MayHold)> {
        let shared = vmas.iter().filter(|v| v.shared).map(|v| v.range);
        let others = PageSet::from_ranges(shared.collect()).union(&self.refused);
        let own = match within {
            Some(within) => within.subtract(&others),
            None => PageSet::from_ranges(vec![PageRange::new(0, USER_END)]).subtract(&others),
        };
        survey::by_holding_all(vmas, &own).collect()
    }
}

impl Tracker for WriteProtect {
    fn kind(&self) -> TrackerKind {
        TrackerKind::WriteProtect
    }

    fn rearm(
        &mut self,
        vmas: &[Vma],
        since: &Since,
        watched: &mut dyn FnMut(),
    ) -> Result<Option<PageSet>> {
        let found = match self.begun.take() {
            Some(walk) => {
                let mine = walk.some(&mut self.pagemap);
                let theirs = self.walker.as_ref().map(|walker| walker.share(&walk));
                match theirs.flatten() {
                    Some(theirs) => mine?.with(theirs?),
                    None => mine?,
                }
            }
            None => {
                self.pagemap.look_for_swap();
                // Registering takes the lock that the target's page faults wait for.
                if !since.unchanged {
                    self.register(vmas)?;
                }
                let walk = Walk::new(
                    self.parts(vmas, since.within.as_ref()),
                    self.pagemap.may_swap(),
                );
                walk.some(&mut self.pagemap)?
            }
        };
        let is_stopped = std::mem::take(&mut self.is_stopped);
        if is_stopped && since.within.is_none() {
            self.walk_ns = Some(found.ns);
        }
        watched();
        if !is_stopped && found.ns > LONG_WALK {
            // So that it need not be started in a stop.
            self.start_walker();
        }
        // Whatever was protected is reported, also where `vmas` is out of date by now.
        let own = found.into_scans().flatten();
        let own = own.filter(|(_, info)| info.is_own());
        Ok(Some(own.map(|(range, _)| range).collect()))
    }

    fn begin(&mut self, vmas: &[Vma], since: &Since) {
        self.is_stopped = true;
        if !self.may_share {
            return;
        }
        let is_long = match since.cost().map(|pages| pages * PAGE_NS).or(self.walk_ns) {
            Some(ns) => ns > LONG_WALK,
            None => self.walker.is_some(),
        };
        if !is_long || self.begun.is_some() || !since.unchanged && self.register(vmas).is_err() {
            return;
        }
        if !self.refused.is_empty() {
            // Not all that is dirty can be told by a walk: then nothing may be protected before it is looked at.
            self.is_stopped = false;
            return;
        }
        self.start_walker();
        let Some(walker) = &self.walker else {
            return;
        };
        self.pagemap.look_for_swap();
        let walk = Walk::shared(
            &self.parts(vmas, since.within.as_ref()),
            self.pagemap.may_swap(),
        );
        let walk = Arc::new(walk);
        if walker.begin(&walk) {
            self.begun = Some(walk);
        }
    }

    fn flushes_by_table(&self) -> bool {
        true
    }

    fn survey(&mut self, vmas: &[Vma], area: Option<&PageSet>) -> Result<Survey> {
        let examined = survey::examined(vmas, area);
        if area.is_some() && examined.is_empty() {
            return Ok(Survey::default());
        }
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
    use crate::model::PAGE_SIZE;
    use crate::skip::skip;
    use crate::sys::ScratchMap;
    use crate::track::survey::tests::anonymous;
    use crate::track::{Support, support};

    const PAGES: u64 = 4096;

    fn is_supported() -> bool {
        match support(TrackerKind::WriteProtect) {
            Support::Yes => true,
            Support::No(why) | Support::Unknown(why) => {
                skip(&why, "Linux 6.7 or newer has it");
                false
            }
        }
    }

    /// Of this process.
    fn tracker() -> WriteProtect {
        let pagemap = Pagemap::open(std::process::id().cast_signed()).unwrap();
        WriteProtect::new(Userfaultfd::create().unwrap(), pagemap)
    }

    /// A mapping of which every page was written.
    fn written() -> (ScratchMap, PageSet, [Vma; 1]) {
        let mut map = ScratchMap::new(PAGES).unwrap();
        let all: Vec<u64> = (0..PAGES).collect();
        let all = write(&mut map, &all);
        let vmas = [anonymous(map.range())];
        (map, all, vmas)
    }

    fn write(map: &mut ScratchMap, pages: &[u64]) -> PageSet {
        let start = map.range().start;
        pages.iter().for_each(|n| map.write(*n, 3));
        PageSet::from_pages(pages.iter().map(|n| start + n * PAGE_SIZE).collect())
    }

    #[test]
    fn nothing_is_protected_ahead_of_a_look_where_a_mapping_is_refused() {
        if !is_supported() {
            return;
        }
        let (mut map, mut taken) = (ScratchMap::new(8).unwrap(), ScratchMap::new(8).unwrap());
        let all = write(&mut map, &[0, 1, 2, 3, 4, 5, 6, 7]);
        write(&mut taken, &[0]);
        let (mut tracker, mut other) = (tracker(), tracker());
        let rearm = |tracker: &mut WriteProtect, vmas: &[Vma]| {
            tracker
                .rearm(vmas, &Since::default(), &mut || {})
                .unwrap()
                .unwrap()
        };
        let mut vmas = vec![anonymous(map.range()), anonymous(taken.range())];
        vmas.sort_by_key(|vma| vma.range.start);
        rearm(&mut other, &[anonymous(taken.range())]);
        rearm(&mut tracker, &[anonymous(map.range())]);
        let written = write(&mut map, &[3]);
        tracker.walk_ns = Some(LONG_WALK + 1);
        // Also on a machine that has no processor for a second thread.
        tracker.may_share = true;
        tracker.begin(&vmas, &Since::default());
        assert!(tracker.begun.is_none());
        assert_eq!(
            tracker.refused(),
            &PageSet::from_ranges(vec![taken.range()])
        );
        let dirty = tracker.survey(&vmas, None).unwrap().dirty;
        assert_eq!(dirty.intersect(&all), written);
    }

    #[test]
    fn a_second_tracker_leaves_the_record_of_the_first_alone() {
        if !is_supported() {
            return;
        }
        let mut map = ScratchMap::new(8).unwrap();
        let all = write(&mut map, &[0, 1, 2, 3, 4, 5, 6, 7]);
        let vmas = [anonymous(map.range())];
        let [mut first, mut second] = [(); 2].map(|()| tracker());
        let rearm = |tracker: &mut WriteProtect| {
            let found = tracker
                .rearm(&vmas, &Since::default(), &mut || {})
                .unwrap()
                .unwrap();
            found.intersect(&all)
        };
        assert_eq!(rearm(&mut first), all);
        assert!(rearm(&mut second).is_empty());
        assert_eq!(second.refused(), &all);
        let written = write(&mut map, &[1, 5]);
        assert!(rearm(&mut second).is_empty());
        assert_eq!(second.survey(&vmas, None).unwrap().dirty, all);
        assert_eq!(rearm(&mut first), written);
    }

    #[test]
    fn a_walk_that_was_begun_by_another_thread_finds_the_same() {
        if !is_supported() {
            return;
        }
        let (mut map, all, vmas) = written();
        let mut tracker = tracker();
        let mut rounds = 0;
        let mut rearm = |begin: bool| {
            if begin {
                // However short the last one was: it is to be shared.
                tracker.walk_ns = Some(LONG_WALK + 1);
                tracker.begin(&vmas, &Since::default());
                assert_eq!(tracker.begun.is_some(), tracker.walker.is_some());
                let walk = tracker.begun.iter().filter(|_| rounds % 2 == 1);
                // Not always: it may have no processor in time.
                walk.for_each(|walk| walk.await_other());
            }
            rounds += 1;
            let found = tracker
                .rearm(&vmas, &Since::default(), &mut || {})
                .unwrap()
                .unwrap();
            found.intersect(&all)
        };
        assert_eq!(rearm(true), all);
        for round in 0..6 {
            let written = write(&mut map, &[0, 7 + round, 511, 512, PAGES - 1]);
            assert_eq!(rearm(round % 2 == 0), written);
            assert!(rearm(round % 3 == 0).is_empty());
        }
    }

    #[test]
    fn a_walk_of_a_part_leaves_what_was_written_elsewhere_for_later() {
        if !is_supported() {
            return;
        }
        let (mut map, all, vmas) = written();
        let mut tracker = tracker();
        let mut rearm = |within: Option<PageSet>| {
            let unchanged = within.is_some();
            let since = Since { unchanged, within };
            tracker.begin(&vmas, &since);
            let found = tracker.rearm(&vmas, &since, &mut || {}).unwrap().unwrap();
            found.intersect(&all)
        };
        assert_eq!(rearm(None), all);
        let odd: Vec<u64> = (1..PAGES).step_by(2).collect();
        for few in [&[3, 511][..], &odd] {
            let within = write(&mut map, few);
            let elsewhere = write(&mut map, &[0, 2, PAGES - 2]);
            assert_eq!(rearm(Some(within.clone())), within);
            assert!(rearm(Some(within)).is_empty());
            assert_eq!(rearm(None), elsewhere);
        }
    }
}
