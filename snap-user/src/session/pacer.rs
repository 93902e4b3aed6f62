//! When the next snapshot is due.

use super::Schedule;
use super::budget::Budget;
use crate::model::{Costs, SnapshotKind};
use std::time::{Duration, Instant};

/// An interval is told again when it has changed by more than one such part.
const NEWS: u32 = 4;

/// Snapshots at a fixed interval, or further apart where they cost too much.
pub(super) struct Pacer {
    every: Duration,
    due: Instant,
    /// Start of the last one, whoever asked for it.
    begun: Instant,
    /// The interval that was told last.
    held: Duration,
    budget: Budget,
}

impl Pacer {
    /// The first is due at once.
    pub(super) fn new(schedule: &Schedule) -> Self {
        let now = Instant::now();
        Self {
            every: schedule.every,
            due: now,
            begun: now,
            held: schedule.every,
            budget: Budget::new(schedule.max_overhead),
        }
    }

    /// When the next one is due.
    pub(super) fn due(&self) -> Instant {
        self.due
    }

    /// The one that was due begins.
    pub(super) fn begin_due(&mut self) {
        self.begin();
        self.due = (self.due + self.every).max(self.begun);
    }

    /// One begins, whoever asked for it.
    pub(super) fn begin(&mut self) {
        self.begun = Instant::now();
        self.budget.begin();
    }

    /// The last one is stored. What it has cost sets when the next is due at the earliest; the interval, if that is news.
    pub(super) fn stored(&mut self, kind: SnapshotKind, costs: &Costs) -> Option<Duration> {
        let least = self.budget.interval(kind, costs);
        self.due = self.due.max(self.begun + least);
        let every = least.max(self.every);
        let is_news = every.abs_diff(self.held) > self.held / NEWS;
        is_news.then(|| {
            self.held = every;
            every
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Phases;

    fn costs(stop: Duration) -> Costs {
        Costs {
            phases: Phases {
                stop_ns: stop.as_nanos() as u64,
                ..Phases::default()
            },
            ..Costs::default()
        }
    }

    #[test]
    fn a_dear_snapshot_puts_off_the_next_whoever_asked_for_it() {
        let every = Duration::from_millis(10);
        let mut pacer = Pacer::new(&Schedule {
            every,
            count: None,
            lasting: None,
            max_overhead: Some(100),
        });
        let start = Instant::now();
        pacer.begin_due();
        let delta = SnapshotKind::Delta;
        assert_eq!(pacer.stored(delta, &costs(Duration::ZERO)), None);
        assert!(pacer.due() < Instant::now() + Duration::from_secs(4));
        // Not the one that was due.
        pacer.begin();
        let told = pacer.stored(delta, &costs(Duration::from_millis(500)));
        assert!(told.is_some_and(|every| every >= Duration::from_secs(5)));
        assert!(pacer.due() >= start + Duration::from_secs(5));
    }
}
