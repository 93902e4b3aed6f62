//! One epoch of tracking: from one committed snapshot to the next.

use super::fault_log::FaultLog;
use super::{Result, Survey, Tracker, survey};
use crate::model::{PAGE_SIZE, PageRange, PageSet, Vma};

/// Looking at so many pages more costs less than one more look, in bytes.
const CHEAP_GAP: u64 = 32 * PAGE_SIZE;

/// What a stopped process has to have copied.
#[derive(Clone, Debug, Default)]
pub struct Dirty {
    /// Pages that may have changed and have content of their own.
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
    /// Pages left from a snapshot that failed, or written in ways that only an event told of.
    carried: PageSet,
    /// Address space whose mappings changed.
    remapped: PageSet,
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
    /// Every mapping is known to the tracker: none has changed since it last looked at them.
    registered: bool,
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
            registered: false,
        }
    }

    /// The mechanism.
    pub fn tracker(&self) -> &dyn Tracker {
        &*self.tracker
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
        if let Some(log) = &mut self.log {
            log.rearm();
        }
        // A stack grows without an event, but within its mapping.
        let unchanged = self.registered && self.log.as_ref().is_some_and(FaultLog::is_whole);
        self.registered = true;
        let Some(found) = self.tracker.rearm(vmas, unchanged, watched)? else {
            return Ok(None);
        };
        self.rearmed = true;
        add(&mut self.current.reported, found.clone());
        Ok(Some(found))
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
                let area = windows
                    .union(&self.current.remapped)
                    .union(&self.current.carried)
                    .without_gaps(CHEAP_GAP);
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
            .union(&dirty.own.intersect(&self.current.carried));
        add(&mut self.current.reported, dirty.copy.clone());
        self.unsafe_yet = std::mem::take(&mut self.current);
        Ok(dirty)
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
        for pages in [failed.reported, failed.carried, reported] {
            add(&mut self.current.carried, pages);
        }
        add(&mut self.current.remapped, failed.remapped);
    }
}

fn add(set: &mut PageSet, pages: PageSet) {
    *set = set.union(&pages);
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
mod tests {
    use super::*;
    use crate::model::{Backing, PAGE_SIZE, Protection};
    use crate::track::TrackerKind;

    /// A mapping of which every page was written, though not every write was a fault.
    struct Writer {
        every_write_faults: bool,
        refused: PageSet,
    }

    impl Tracker for Writer {
        fn kind(&self) -> TrackerKind {
            TrackerKind::SoftDirty
        }

        fn rearm(&mut self, _: &[Vma], _: bool, _: &mut dyn FnMut()) -> Result<Option<PageSet>> {
            Ok(Some(PageSet::new()))
        }

        fn every_write_faults(&self) -> bool {
            self.every_write_faults
        }

        fn survey(&mut self, vmas: &[Vma], area: Option<&PageSet>) -> Result<Survey> {
            let examined = survey::examined(vmas, area);
            Ok(Survey {
                own: examined.clone(),
                dirty: examined.clone(),
                examined,
            })
        }

        fn refused(&self) -> &PageSet {
            &self.refused
        }
    }

    fn rotated(every_write_faults: bool) -> Dirty {
        let vmas = [Vma {
            range: PageRange::new(0x20_0000, 0x40_0000),
            prot: Protection {
                read: true,
                write: true,
                exec: false,
            },
            shared: false,
            backing: Backing::Anonymous { name: None },
            flags: Vec::new(),
            build_id: None,
        }];
        let tracker = Writer {
            every_write_faults,
            refused: PageSet::new(),
        };
        let mut epoch = Epoch::new(Box::new(tracker), true);
        epoch.precopy(&vmas, &mut || {}).unwrap();
        // The first write to a huge page whose pages are all known from before.
        epoch.log().unwrap().record(1, 0x20_3000);
        epoch.rotate(&vmas, |_| true).unwrap()
    }

    #[test]
    fn a_log_stands_for_a_look_only_where_every_write_is_a_fault() {
        let by_log = rotated(true);
        assert!(!by_log.full);
        assert_eq!(by_log.copy.pages(), 1);
        let looked = rotated(false);
        assert!(looked.full);
        assert_eq!(looked.copy.pages(), 0x20_0000 / PAGE_SIZE);
    }
}
