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
    /// Threads that have begun to end, and the rearms since: newer kernels tell of it before the thread's last
    /// write, which clears its id for whoever waits for it (`sched_process_exit` before 6.16 came behind that).
    ending: HashMap<i32, u8>,
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

    /// The page that holds `addr` has been made writable by the kernel without a fault, which is over.
    pub fn record_unlocked(&mut self, addr: u64) {
        self.pages.push(crate::model::page_down(addr));
    }

    /// A thread has been made. It may have the id of one that ended not long ago.
    pub fn started(&mut self, tid: i32) {
        self.ending.remove(&tid);
    }

    /// The thread ends. Its last fault may still be under way.
    pub fn ended(&mut self, tid: i32) {
        self.ending.insert(tid, 0);
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
        self.age();
        self.rearm_again();
    }

    /// The same so soon after another one that it says nothing of what was to come to its end meanwhile.
    pub fn rearm_again(&mut self) {
        self.pages.clear();
        self.pages.extend(self.in_flight.values());
    }

    fn age(&mut self) {
        /// By the third, a thread that was about to end has ended.
        const REARMS: u8 = 2;
        let in_flight = &mut self.in_flight;
        self.ending.retain(|tid, rearms| {
            *rearms += 1;
            let ends = *rearms <= REARMS;
            if !ends {
                in_flight.remove(tid);
            }
            ends
        });
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
        self.split_from(0, known)
    }

    /// The same of the entries that came after the first so many.
    pub fn split_from(&self, first: u64, known: impl Fn(u64) -> bool) -> (PageSet, PageSet) {
        let entries = self.pages[first as usize..].iter();
        let (there, new): (Vec<u64>, Vec<u64>) = entries.partition(|&&p| known(p));
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
    }

    fn pages(log: &FaultLog) -> Vec<u64> {
        log.split(|_| true).0.iter().collect()
    }

    #[test]
    fn the_last_write_of_a_thread_that_ends_survives_though_its_end_was_told_before() {
        let mut log = FaultLog::default();
        log.record(2, 0x3456);
        log.ended(2);
        log.record(2, 0x7990);
        log.record(1, 0x9000);
        for _ in 0..2 {
            log.rearm();
            assert_eq!(pages(&log), [0x7000, 0x9000]);
        }
        log.rearm();
        assert_eq!(pages(&log), [0x9000], "it is kept for ever");
    }

    #[test]
    fn a_rearm_that_follows_another_one_soon_forgets_no_thread_that_ends() {
        let mut log = FaultLog::default();
        log.record(2, 0x3456);
        log.ended(2);
        log.distrust();
        for _ in 0..9 {
            log.rearm_again();
            assert_eq!(pages(&log), [0x3000]);
            assert!(!log.is_whole());
        }
    }

    #[test]
    fn a_new_thread_with_the_id_of_one_that_ended_is_another_one() {
        let mut log = FaultLog::default();
        log.ended(2);
        log.started(2);
        log.record(2, 0x3456);
        for _ in 0..4 {
            log.rearm();
            assert_eq!(pages(&log), [0x3000]);
        }
    }

    #[test]
    fn a_page_made_writable_without_a_fault_is_dirty_until_the_next_rearm() {
        let mut log = FaultLog::default();
        log.record_unlocked(0x7990);
        assert_eq!(pages(&log), [0x7000]);
        log.rearm();
        assert!(log.is_empty());
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
    fn entries_are_split_in_parts() {
        let mut log = FaultLog::default();
        log.record(1, 0x40_0000);
        let first = log.len();
        log.record(1, 0x60_5000);
        let (pages, _) = log.split_from(first, |_| true);
        assert_eq!(pages.iter().collect::<Vec<_>>(), [0x60_5000]);
        assert!(log.split_from(log.len(), |_| true).0.is_empty());
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
