//! One epoch of tracking: from one committed snapshot to the next.

use super::fault_log::FaultLog;
use super::{PLACE_PAGES, Result, Since, Survey, Tracker, survey};
use crate::model::{PAGE_SIZE, PageRange, PageSet, Vma};

/// Looking at so many pages more costs less than one more look, in bytes.
const CHEAP_GAP: u64 = PLACE_PAGES * PAGE_SIZE;
/// With more entries of the log than that to sort, a stopped target had better wait for a look at everything.
const MANY_LOGGED: u64 = 2048;

/// What a stopped process has to have copied.
#[derive(Clone, Debug, Default)]
pub struct Dirty {
    /// Pages that may have changed and have content of their own. After [`Epoch::rotate_protecting`] without those
    /// that were found ahead of it, until [`Epoch::with_found`].
    pub copy: PageSet,
    /// Where the page tables were looked at: a page in here that is not in `own` has no content of
    /// its own any more.
    pub examined: PageSet,
    /// Pages with content of their own, within `examined`.
    pub own: PageSet,
    /// Everything was examined, rather than what the events pointed at.
    pub full: bool,
}

/// What one epoch has learnt so far.
#[derive(Debug, Default)]
struct Ledger {
    /// Pages handed out to be copied.
    reported: PageSet,
    /// Pages that were written and have not been handed out, or in vain, for a snapshot that failed. They may be
    /// protected again.
    found: PageSet,
    /// Pages written in ways that only an event told of: what is copied ahead of the stop may be out of date.
    carried: PageSet,
    /// Address space whose mappings changed.
    remapped: PageSet,
    /// The tracker has looked everywhere, and not at what the events pointed at alone.
    walked: bool,
}

/// Tracks one process across snapshots. What was reported for a snapshot that failed is reported
/// again for the next one.
pub struct Epoch {
    tracker: Box<dyn Tracker>,
    log: Option<FaultLog>,
    current: Ledger,
    /// The epoch that ended with the last rotation, until its snapshot is safe.
    unsafe_yet: Ledger,
    rearmed: bool,
    /// Where stops have looked since the last rearm: what was new there is still written without an event.
    looked: PageSet,
    /// Every mapping is known to the tracker: none has changed since it last looked at them.
    registered: bool,
    /// How many entries of the log have been sorted, and where they tell of writes.
    sorted: (u64, PageSet),
    /// What the tracker was told when it began.
    begun: Option<Since>,
}

impl Epoch {
    /// Tracks by `tracker`; `with_log` when the probes deliver fault and mapping events.
    pub fn new(tracker: Box<dyn Tracker>, with_log: bool) -> Self {
        Self {
            tracker,
            log: with_log.then(FaultLog::default),
            current: Ledger::default(),
            unsafe_yet: Ledger::default(),
            rearmed: false,
            looked: PageSet::new(),
            registered: false,
            sorted: (0, PageSet::new()),
            begun: None,
        }
    }

    /// The mechanism.
    pub fn tracker(&self) -> &dyn Tracker {
        &*self.tracker
    }

    /// Tracking is going to begin anew, which needs what belongs to one alone.
    pub fn let_go(&mut self) {
        self.tracker.let_go();
    }

    /// Where to enter events, if they are used.
    pub fn log(&mut self) -> Option<&mut FaultLog> {
        self.log.as_mut()
    }

    /// Writes may have happened that no event told of: the next rotation looks at everything.
    pub fn distrust(&mut self) {
        if let Some(log) = &mut self.log {
            log.distrust();
        }
    }

    /// The mappings inside `range` changed.
    pub fn remapped(&mut self, range: PageRange) {
        self.registered = false;
        if self.log.is_some() {
            add(
                &mut self.current.remapped,
                PageSet::from_ranges(vec![range]),
            );
        }
    }

    /// These pages were written in a way that neither page tables nor the fault log need show.
    pub fn written(&mut self, pages: &PageSet) {
        add(&mut self.current.carried, pages.clone());
    }

    /// Mappings have changed since the tracker last looked at them, as far as events tell.
    pub fn is_remapped(&self) -> bool {
        !self.registered
    }

    /// Pages written since the last rearm, if the log tells: an upper bound.
    pub fn written_since_rearm(&self) -> Option<u64> {
        let log = self.log.as_ref()?;
        (self.rearmed && log.is_whole()).then(|| log.len())
    }

    /// Ahead of the stop: pages worth copying now. `None` if the tracker keeps no record of writes.
    /// The target may run, unless the tracker re-arms only while it is stopped.
    /// Events of everything that happened before must have been entered, `vmas` read after that.
    /// `watched` is called when it may go on again.
    pub fn precopy(&mut self, vmas: &[Vma], watched: &mut dyn FnMut()) -> Result<Option<PageSet>> {
        let Some(found) = self.walk(vmas, watched)? else {
            return Ok(None);
        };
        let found = found.union(&std::mem::take(&mut self.current.found));
        add(&mut self.current.reported, found.clone());
        Ok(Some(found))
    }

    /// Has the tracker look everywhere, which finds also what no event told of.
    fn walk(&mut self, vmas: &[Vma], watched: &mut dyn FnMut()) -> Result<Option<PageSet>> {
        let found = self.rearm(vmas, &self.anything(), watched)?;
        self.current.walked = true;
        Ok(found)
    }

    fn rearm(
        &mut self,
        vmas: &[Vma],
        since: &Since,
        watched: &mut dyn FnMut(),
    ) -> Result<Option<PageSet>> {
        if let Some(log) = &mut self.log {
            log.rearm();
        }
        self.rearm_tracker(vmas, since, watched)
    }

    fn rearm_tracker(
        &mut self,
        vmas: &[Vma],
        since: &Since,
        watched: &mut dyn FnMut(),
    ) -> Result<Option<PageSet>> {
        self.sorted = (0, PageSet::new());
        let found = match self.tracker.rearm(vmas, since, watched) {
            Ok(found) => found,
            Err(e) => {
                // Some of it may be protected by now, and what was known of its writes gone.
                self.registered = false;
                add(&mut self.current.carried, survey::examined(vmas, None));
                return Err(e);
            }
        };
        self.registered = true;
        let Some(found) = found else {
            return Ok(None);
        };
        self.rearmed = true;
        self.looked = PageSet::new();
        Ok(Some(found))
    }

    /// The tracker knows all mappings. A stack grows without an event, but within its mapping.
    fn is_unchanged(&self) -> bool {
        self.registered && self.log.as_ref().is_some_and(FaultLog::is_whole)
    }

    /// Sorts what is logged by now, which is not to be done in a stop that follows. `known` as for [`Epoch::rotate`].
    pub fn sort_log(&mut self, known: impl Fn(u64) -> bool) {
        let Some(log) = self.log.as_ref().filter(|_| self.current.walked) else {
            // The stop looks everywhere.
            return;
        };
        let Ledger {
            reported, found, ..
        } = &self.current;
        let (entries, area) = &mut self.sorted;
        let there = |page| known(page) || found.contains(page) || reported.contains(page);
        let (pages, windows) = log.split_from(*entries, there);
        *entries = log.len();
        *area = area.union(&pages).union(&windows);
    }

    /// What events tell of the time since the last rearm. `known` as for [`Epoch::rotate`], `most` as for
    /// [`Epoch::begin_protecting`].
    fn since(&mut self, known: impl Fn(u64) -> bool, most: u64) -> Since {
        let log = self.log.as_ref().filter(|log| log.is_whole());
        let is_told = self.current.walked && self.rearmed && self.tracker.every_write_faults();
        if !is_told || log.is_none() {
            return self.anything();
        }
        self.sort_log(known);
        let within = self.events_area().union(&self.sorted.1);
        let narrow = Since {
            unchanged: self.is_unchanged(),
            within: Some(within.without_gaps(CHEAP_GAP)),
        };
        match narrow.cost() {
            Some(cost) if cost < most => narrow,
            _ => self.anything(),
        }
    }

    /// Entries of the log that [`Epoch::sort_log`] has not seen.
    fn unsorted(&self) -> u64 {
        self.log.as_ref().map_or(0, |log| log.len() - self.sorted.0)
    }

    /// The same, if no event tells where.
    fn anything(&self) -> Since {
        Since {
            unchanged: self.is_unchanged(),
            within: None,
        }
    }

    /// Where something may have happened that is no fault of the target.
    fn events_area(&self) -> PageSet {
        let Ledger {
            remapped, carried, ..
        } = &self.current;
        remapped.union(carried).union(&self.looked)
    }

    /// While the target is stopped and all events are entered: what is dirty. `known` tells of a
    /// page that an earlier snapshot holds. Ends the epoch: [`Epoch::commit`] or [`Epoch::abort`]
    /// must follow before the next rotation.
    pub fn rotate(&mut self, vmas: &[Vma], known: impl Fn(u64) -> bool) -> Result<Dirty> {
        let by_log = match &self.log {
            Some(log)
                if self.rearmed
                    && log.is_whole()
                    && self.tracker.every_write_faults()
                    && self.tracker.refused().is_empty() =>
            {
                Some(log.split(|page| known(page) || self.current.reported.contains(page)))
            }
            _ => None,
        };
        let mut dirty = match by_log {
            Some((pages, windows)) => {
                let area = self.events_area().union(&windows);
                let area = area.union(&self.current.found).without_gaps(CHEAP_GAP);
                let survey = self.tracker.survey(vmas, Some(&area))?;
                // Outside the area, a page that was there at the last rearm still is.
                let exact = pages
                    .subtract(&area)
                    .intersect(&survey::examined(vmas, None));
                Dirty {
                    copy: survey.dirty.union(&exact),
                    full: false,
                    ..Dirty::from(survey)
                }
            }
            None => Dirty {
                full: true,
                ..Dirty::from(self.tracker.survey(vmas, None)?)
            },
        };
        dirty.copy = dirty
            .copy
            .union(&dirty.own.intersect(&self.current.carried))
            .union(&dirty.own.intersect(&self.current.found));
        add(&mut self.current.reported, dirty.copy.clone());
        self.looked = dirty.examined.clone();
        self.unsafe_yet = std::mem::take(&mut self.current);
        Ok(dirty)
    }

    /// [`Epoch::rotate_protecting`] would tell exactly what is dirty.
    pub fn can_protect(&self) -> bool {
        self.rearmed
            && self.tracker.every_write_faults()
            && self.tracker.refused().is_empty()
            && self.log.as_ref().is_some_and(FaultLog::is_whole)
    }

    /// What was written, as far as it is known by now: to be handed out by the next rotation.
    pub fn found(&self) -> &PageSet {
        &self.current.found
    }

    /// Ahead of such a rotation, while the target runs: most of what was written is protected again, so that
    /// little is left to do in the stop. Nothing has to be copied yet.
    pub fn protect_ahead(&mut self, vmas: &[Vma], watched: &mut dyn FnMut()) -> Result<()> {
        let found = self.walk(vmas, watched)?;
        add(&mut self.current.found, found.unwrap_or_default());
        Ok(())
    }

    /// Behind [`Epoch::protect_ahead`], with the same mappings: what was written while that went through everything is
    /// protected again, where the log tells of it. `known` and `most` as for [`Epoch::begin_protecting`].
    pub fn protect_again(
        &mut self,
        vmas: &[Vma],
        known: impl Fn(u64) -> bool,
        most: u64,
    ) -> Result<()> {
        let since = self.since(known, most);
        // Mappings that have changed meanwhile are not these.
        if !since.unchanged || since.within.is_none() {
            return Ok(());
        }
        if let Some(log) = &mut self.log {
            log.rearm_again();
        }
        let found = self.rearm_tracker(vmas, &since, &mut || {})?;
        add(&mut self.current.found, found.unwrap_or_default());
        Ok(())
    }

    /// [`Epoch::rotate_protecting`] comes next, before any further event is entered: it may begin on another processor.
    /// `known` as for [`Epoch::rotate`]; `most` is what a look everywhere costs, as a number of pages.
    pub fn begin_protecting(&mut self, vmas: &[Vma], known: impl Fn(u64) -> bool, most: u64) {
        if self.can_protect() {
            let since = match self.unsorted() > MANY_LOGGED {
                true => self.anything(),
                false => self.since(known, most),
            };
            self.tracker.begin(vmas, &since);
            self.begun = Some(since);
        }
    }

    /// As [`Epoch::rotate`], for a target of which no page has been copied for this epoch: all that is dirty is
    /// found, and protected again, so that the first write to each page of it is a fault. `None` if that
    /// cannot be told exactly: then [`Epoch::rotate`] can. What was found ahead is a large set, and the target waits:
    /// [`Epoch::with_found`] adds it when the target runs.
    pub fn rotate_protecting(&mut self, vmas: &[Vma]) -> Result<Option<Dirty>> {
        let since = self.begun.take().unwrap_or_else(|| self.anything());
        if !self.can_protect() {
            return Ok(None);
        }
        let area = self.events_area().without_gaps(CHEAP_GAP);
        let found = self.rearm(vmas, &since, &mut || {})?;
        let mut copy = found.unwrap_or_default();
        if !self.tracker.refused().is_empty() {
            add(&mut self.current.found, copy);
            return Ok(None);
        }
        let survey = match self.tracker.survey(vmas, Some(&area)) {
            Ok(survey) => survey,
            Err(e) => {
                add(&mut self.current.found, copy);
                return Err(e);
            }
        };
        add(&mut copy, survey.dirty);
        add(&mut copy, survey.own.intersect(&self.current.carried));
        add(&mut self.current.reported, copy.clone());
        self.unsafe_yet = std::mem::take(&mut self.current);
        Ok(Some(Dirty {
            copy,
            examined: survey.examined,
            own: survey.own,
            full: false,
        }))
    }

    /// Completes what [`Epoch::rotate_protecting`] told.
    pub fn with_found(&self, dirty: &mut Dirty, vmas: &[Vma]) {
        let all = dirty.copy.union(&self.unsafe_yet.found);
        dirty.copy = all.intersect(&survey::examined(vmas, None));
        let gone = dirty.examined.subtract(&dirty.own);
        if !gone.is_empty() {
            dirty.copy = dirty.copy.subtract(&gone);
        }
    }

    /// Pages that were not written since the last look are known to be so.
    pub fn is_armed(&self) -> bool {
        self.rearmed
    }

    /// Everything, whatever the events said.
    pub fn survey_all(&mut self, vmas: &[Vma]) -> Result<Survey> {
        self.tracker.survey(vmas, None)
    }

    /// The snapshot of the last rotation is safe.
    pub fn commit(&mut self) {
        self.unsafe_yet = Ledger::default();
    }

    /// The snapshot failed, before or after its rotation: what was reported for it comes again.
    pub fn abort(&mut self) {
        let failed = std::mem::take(&mut self.unsafe_yet);
        let reported = std::mem::take(&mut self.current.reported);
        self.current.walked = false;
        for pages in [failed.reported, failed.found, reported] {
            add(&mut self.current.found, pages);
        }
        add(&mut self.current.carried, failed.carried);
        add(&mut self.current.remapped, failed.remapped);
    }
}

fn add(set: &mut PageSet, pages: PageSet) {
    match set.is_empty() {
        true => *set = pages,
        false if pages.is_empty() => {}
        false => *set = set.union(&pages),
    }
}

impl From<Survey> for Dirty {
    fn from(survey: Survey) -> Self {
        Self {
            copy: survey.dirty,
            examined: survey.examined,
            own: survey.own,
            full: false,
        }
    }
}

#[cfg(test)]
mod tests;
