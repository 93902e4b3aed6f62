//! The write faults that the probes saw, as a set of dirty pages.

use crate::model::{PageRange, PageSet};
use std::collections::HashMap;

const WINDOW: u64 = 2 << 20;

/// Pages written since the last rearm, as far as write faults tell.
///
/// A fault is logged when it begins. One that is logged before a rearm may be resolved behind it,
/// and the page is then writable without another event; so the last fault of each thread stays in
/// the log until that thread has logged another one, which it can only do once the first is over.
#[derive(Debug, Default)]
pub struct FaultLog {
    pages: Vec<u64>,
    in_flight: HashMap<i32, u64>,
    /// Rearms until the log is whole again; see [`FaultLog::distrust`].
    distrust: u8,
    faults: u64,
}

impl FaultLog {
    /// A write fault of thread `tid` at the page that holds `addr`.
    pub fn record(&mut self, tid: i32, addr: u64) {
        let page = crate::model::page_down(addr);
        self.pages.push(page);
        self.in_flight.insert(tid, page);
        self.faults += 1;
    }

    /// The thread has ended: it has no fault under way.
    pub fn ended(&mut self, tid: i32) {
        self.in_flight.remove(&tid);
    }

    /// Writes happened that the log did not see. The stop looks at everything instead, until a
    /// rearm has begun a new epoch; and once more, since a fault under way may be among the lost.
    pub fn distrust(&mut self) {
        self.distrust = 2;
    }

    /// The log names every page written since the last rearm.
    pub fn is_whole(&self) -> bool {
        self.distrust == 0
    }

    /// A rearm is about to begin.
    pub fn rearm(&mut self) {
        self.pages.clear();
        self.pages.extend(self.in_flight.values());
        self.distrust = self.distrust.saturating_sub(1);
    }

    /// Entries since the last rearm: at least as many as pages.
    pub fn len(&self) -> u64 {
        self.pages.len() as u64
    }

    /// Nothing was written since the last rearm.
    pub fn is_empty(&self) -> bool {
        self.pages.is_empty()
    }

    /// Faults since the last call.
    pub fn take_count(&mut self) -> u64 {
        std::mem::take(&mut self.faults)
    }

    /// Splits the log into pages known to be dirty, and 2 MiB windows to look through: the first
    /// touch of a page that was not there may bring a whole huge page, and the rest of it is then
    /// written without a fault. `known` tells of a page that was there at the last rearm.
    pub fn split(&self, known: impl Fn(u64) -> bool) -> (PageSet, PageSet) {
        let (there, new): (Vec<u64>, Vec<u64>) = self.pages.iter().partition(|&&p| known(p));
        let windows = new.into_iter().map(|page| {
            let start = page & !(WINDOW - 1);
            PageRange {
                start,
                end: start + WINDOW,
            }
        });
        (PageSet::from_pages(there), windows.collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_under_way_survives_a_rearm() {
        let mut log = FaultLog::default();
        log.record(1, 0x1000);
        log.record(1, 0x2000);
        log.record(2, 0x3456);
        log.rearm();
        let (pages, _) = log.split(|_| true);
        assert_eq!(pages.iter().collect::<Vec<_>>(), [0x2000, 0x3000]);
        log.ended(2);
        log.record(1, 0x9000);
        log.rearm();
        let (pages, _) = log.split(|_| true);
        assert_eq!(pages.iter().collect::<Vec<_>>(), [0x9000]);
    }

    #[test]
    fn a_lost_event_costs_two_epochs_of_full_scans() {
        let mut log = FaultLog::default();
        log.distrust();
        log.rearm();
        assert!(!log.is_whole());
        log.rearm();
        assert!(log.is_whole());
    }

    #[test]
    fn new_pages_widen_to_windows() {
        let mut log = FaultLog::default();
        log.record(1, 0x40_0000);
        log.record(1, 0x60_5000);
        let (pages, windows) = log.split(|p| p == 0x40_0000);
        assert_eq!(pages.iter().collect::<Vec<_>>(), [0x40_0000]);
        assert_eq!(windows.ranges(), [PageRange::new(0x60_0000, 0x80_0000)]);
    }
}
