//! Epochs over a tracker whose answers are given.

use super::*;
use crate::model::PAGE_SIZE;
use crate::track::TrackerKind;
use crate::track::survey::tests::anonymous;
use std::sync::{Arc, Mutex};

/// A mapping of which every page was written, though not every write was a fault.
struct Writer {
    every_write_faults: bool,
    refused: PageSet,
    /// The next rearm fails.
    fails: bool,
    /// What rearms find, one after the other.
    found: Vec<PageSet>,
    /// Pages that are not there any more.
    gone: PageSet,
    /// What the last rearm was told.
    told: Arc<Mutex<Since>>,
}

impl Tracker for Writer {
    fn kind(&self) -> TrackerKind {
        TrackerKind::SoftDirty
    }

    fn rearm(&mut self, _: &[Vma], since: &Since, _: &mut dyn FnMut()) -> Result<Option<PageSet>> {
        since.clone_into(&mut self.told.lock().unwrap());
        if std::mem::take(&mut self.fails) {
            return Err(crate::track::TrackError::Unavailable {
                kind: self.kind(),
                why: "it fails once".into(),
            });
        }
        Ok(Some(self.found.pop().unwrap_or_default()))
    }

    fn every_write_faults(&self) -> bool {
        self.every_write_faults
    }

    fn survey(&mut self, vmas: &[Vma], area: Option<&PageSet>) -> Result<Survey> {
        let examined = survey::examined(vmas, area);
        Ok(Survey {
            own: examined.subtract(&self.gone),
            dirty: examined.subtract(&self.gone),
            examined,
        })
    }

    fn refused(&self) -> &PageSet {
        &self.refused
    }
}

fn mapping() -> [Vma; 1] {
    [anonymous(PageRange::new(0x20_0000, 0x80_0000))]
}

fn epoch(every_write_faults: bool, fails: bool) -> Epoch {
    let tracker = Writer {
        every_write_faults,
        refused: PageSet::new(),
        fails,
        found: Vec::new(),
        gone: PageSet::new(),
        told: Arc::default(),
    };
    Epoch::new(Box::new(tracker), true)
}

fn page(n: u64) -> PageSet {
    PageSet::from_pages(vec![0x20_0000 + n * PAGE_SIZE])
}

fn finding(found: Vec<PageSet>) -> Epoch {
    finding_without(found, PageSet::new())
}

fn finding_without(mut found: Vec<PageSet>, gone: PageSet) -> Epoch {
    found.reverse();
    let tracker = Writer {
        every_write_faults: true,
        refused: PageSet::new(),
        fails: false,
        found,
        gone,
        told: Arc::default(),
    };
    Epoch::new(Box::new(tracker), true)
}

fn protecting(epoch: &mut Epoch, vmas: &[Vma]) -> Dirty {
    let mut dirty = epoch.rotate_protecting(vmas).unwrap().unwrap();
    epoch.with_found(&mut dirty, vmas);
    dirty
}

#[test]
fn what_was_protected_ahead_is_handed_out_in_the_stop() {
    let vmas = mapping();
    let mut epoch = finding(vec![page(1), page(2)]);
    assert!(epoch.rotate_protecting(&vmas).unwrap().is_none());
    epoch.protect_ahead(&vmas, &mut || {}).unwrap();
    let dirty = protecting(&mut epoch, &vmas);
    assert_eq!(dirty.copy, page(1).union(&page(2)));
    assert!(dirty.examined.is_empty());
    epoch.commit();
    let dirty = protecting(&mut epoch, &vmas);
    assert!(dirty.copy.is_empty());
}

#[test]
fn what_is_gone_or_unmapped_since_it_was_protected_is_not_handed_out() {
    let mut vmas = mapping();
    let mut epoch = finding_without(vec![page(1).union(&page(2)).union(&page(900))], page(2));
    epoch.protect_ahead(&vmas, &mut || {}).unwrap();
    epoch.remapped(page(2).ranges()[0]);
    vmas[0].range.end = vmas[0].range.start + 800 * PAGE_SIZE;
    let dirty = protecting(&mut epoch, &vmas);
    assert_eq!(dirty.copy, page(1));
    assert_eq!(dirty.examined.subtract(&dirty.own), page(2));
}

#[test]
fn what_was_protected_ahead_is_handed_out_by_a_look_too() {
    let vmas = mapping();
    let mut epoch = finding(vec![page(1)]);
    epoch.protect_ahead(&vmas, &mut || {}).unwrap();
    epoch.log().unwrap().record(1, 0x40_0000);
    let dirty = epoch.rotate(&vmas, |_| true).unwrap();
    assert!(dirty.copy.contains(page(1).ranges()[0].start));
    assert!(dirty.copy.contains(0x40_0000));
}

#[test]
fn what_was_handed_out_in_vain_comes_again() {
    let vmas = mapping();
    let mut epoch = finding(vec![PageSet::new(), page(1), page(2), page(3)]);
    epoch.protect_ahead(&vmas, &mut || {}).unwrap();
    assert_eq!(protecting(&mut epoch, &vmas).copy, page(1));
    epoch.abort();
    let ahead = epoch.precopy(&vmas, &mut || {}).unwrap().unwrap();
    assert_eq!(ahead, page(1).union(&page(2)));
    epoch.abort();
    let dirty = protecting(&mut epoch, &vmas);
    assert_eq!(dirty.copy, page(1).union(&page(2)).union(&page(3)));
}

#[test]
fn what_only_an_event_told_of_is_copied_in_the_stop_whatever_was_before() {
    let vmas = mapping();
    let mut epoch = finding(Vec::new());
    epoch.protect_ahead(&vmas, &mut || {}).unwrap();
    epoch.written(&page(5));
    let dirty = protecting(&mut epoch, &vmas);
    assert_eq!((dirty.copy, dirty.examined), (page(5), page(5)));
}

fn rotated(every_write_faults: bool) -> Dirty {
    let vmas = mapping();
    let mut epoch = epoch(every_write_faults, false);
    epoch.precopy(&vmas, &mut || {}).unwrap();
    // The first write to a huge page whose pages are all known from before.
    epoch.log().unwrap().record(1, 0x20_3000);
    epoch.rotate(&vmas, |_| true).unwrap()
}

#[test]
fn what_was_new_in_a_stop_is_looked_at_again_until_it_is_protected() {
    let vmas = mapping();
    let mut epoch = epoch(true, false);
    epoch.precopy(&vmas, &mut || {}).unwrap();
    epoch.log().unwrap().record(1, 0x40_3000);
    let window = [PageRange::new(0x40_0000, 0x60_0000)];
    let new = epoch.rotate(&vmas, |_| false).unwrap();
    assert!(!new.full);
    assert_eq!(new.examined.ranges(), window);
    epoch.commit();
    // It is known by now, and nothing was protected since.
    assert_eq!(
        epoch.rotate(&vmas, |_| true).unwrap().examined.ranges(),
        window
    );
    epoch.commit();
    epoch.log().unwrap().ended(1);
    (0..3).for_each(|_| drop(epoch.precopy(&vmas, &mut || {}).unwrap()));
    assert!(epoch.rotate(&vmas, |_| true).unwrap().examined.is_empty());
}

#[test]
fn after_a_rearm_that_failed_everything_is_looked_at() {
    let vmas = mapping();
    let mut epoch = epoch(true, true);
    assert!(epoch.precopy(&vmas, &mut || {}).is_err());
    assert!(epoch.is_remapped());
    epoch.precopy(&vmas, &mut || {}).unwrap();
    let dirty = epoch.rotate(&vmas, |_| true).unwrap();
    assert_eq!(dirty.copy.ranges(), [vmas[0].range]);
}

#[test]
fn a_log_stands_for_a_look_only_where_every_write_is_a_fault() {
    let by_log = rotated(true);
    assert!(!by_log.full);
    assert_eq!(by_log.copy.pages(), 1);
    let looked = rotated(false);
    assert!(looked.full);
    assert_eq!(looked.copy.pages(), 0x60_0000 / PAGE_SIZE);
}

/// Where the tracker looks in a stop behind a look ahead of it, if `happened` is what events tell of the time between.
fn looks_within(known: bool, most: u64, happened: impl Fn(&mut Epoch)) -> Option<PageSet> {
    let vmas = mapping();
    let told = Arc::<Mutex<Since>>::default();
    let tracker = Writer {
        every_write_faults: true,
        refused: PageSet::new(),
        fails: false,
        found: Vec::new(),
        gone: PageSet::new(),
        told: Arc::clone(&told),
    };
    let mut epoch = Epoch::new(Box::new(tracker), true);
    epoch.protect_ahead(&vmas, &mut || {}).unwrap();
    assert_eq!(told.lock().unwrap().within, None);
    happened(&mut epoch);
    epoch.begin_protecting(&vmas, |_| known, most);
    epoch.rotate_protecting(&vmas).unwrap().unwrap();
    std::mem::take(&mut told.lock().unwrap().within)
}

fn writes(epoch: &mut Epoch) {
    let log = epoch.log().unwrap();
    log.record(1, 0x20_3000);
    log.record(2, 0x60_5000);
}

#[test]
fn a_stop_behind_a_look_ahead_looks_where_events_tell_of_writes() {
    assert_eq!(looks_within(true, 1000, |_| {}), Some(PageSet::new()));
    let written = page(3).union(&page(0x405));
    assert_eq!(looks_within(true, 1000, writes), Some(written.clone()));
    let elsewhere = looks_within(true, 1000, |epoch| {
        writes(epoch);
        epoch.remapped(page(0x300).ranges()[0]);
        epoch.written(&page(0x200));
    });
    let all = written.clone().union(&page(0x300)).union(&page(0x200));
    assert_eq!(elsewhere, Some(all));
    let sorted_ahead = looks_within(true, 1000, |epoch| {
        epoch.log().unwrap().record(1, 0x20_3000);
        epoch.sort_log(|_| true);
        epoch.log().unwrap().record(2, 0x60_5000);
    });
    assert_eq!(sorted_ahead, Some(written));
    let windows = looks_within(false, 10_000, writes).unwrap();
    assert_eq!(windows.pages(), 2 * 512, "a huge page may have come there");
}

#[test]
fn a_stop_looks_everywhere_where_events_may_not_tell_or_it_costs_no_more() {
    assert_eq!(looks_within(true, 202, writes), None);
    assert!(looks_within(true, 203, writes).is_some());
    let many = |epoch: &mut Epoch| {
        let log = epoch.log().unwrap();
        (0..=MANY_LOGGED).for_each(|_| log.record(1, 0x20_3000));
    };
    assert_eq!(looks_within(true, 1000, many), None);
    // Nobody has looked everywhere since the last snapshot, or one that failed.
    let committed = |epoch: &mut Epoch| {
        epoch.rotate_protecting(&mapping()).unwrap().unwrap();
        epoch.commit();
    };
    assert_eq!(looks_within(true, 1000, committed), None);
    assert_eq!(looks_within(true, 1000, Epoch::abort), None);
}

#[test]
fn what_was_written_during_a_look_ahead_is_protected_again_where_events_tell_of_it() {
    let vmas = mapping();
    let told = Arc::<Mutex<Since>>::default();
    let tracker = Writer {
        every_write_faults: true,
        refused: PageSet::new(),
        fails: false,
        found: vec![page(4), page(3), page(1)],
        gone: PageSet::new(),
        told: Arc::clone(&told),
    };
    let within = || told.lock().unwrap().within.take();
    let mut epoch = Epoch::new(Box::new(tracker), true);
    epoch.protect_ahead(&vmas, &mut || {}).unwrap();
    writes(&mut epoch);
    epoch.protect_again(&vmas, |_| true, 10).unwrap();
    assert_eq!(within(), None, "a look everywhere is cheaper");
    epoch.protect_again(&vmas, |_| true, 1000).unwrap();
    assert_eq!(within(), Some(page(3).union(&page(0x405))));
    assert_eq!(*epoch.found(), page(1).union(&page(3)));
    // Faults under way stay logged.
    assert_eq!(epoch.written_since_rearm(), Some(2));
    epoch.remapped(page(0x300).ranges()[0]);
    epoch.protect_again(&vmas, |_| true, 1000).unwrap();
    assert_eq!(within(), None, "these are not its mappings any more");
    let dirty = protecting(&mut epoch, &vmas);
    let remapped = page(0x300);
    let found = page(1).union(&page(3)).union(&page(4));
    assert_eq!(dirty.copy, found.union(&remapped));
}
