//! How often snapshots may be taken, by what they cost the process.

use crate::model::{Costs, SnapshotKind};
use crate::sys::proc;
use crate::track::fault_cost_ns;
use std::sync::OnceLock;
use std::time::Duration;

/// What a write fault costs where it cannot be measured.
const FAULT_NS: u64 = 1_500;
/// What the fault log adds to it: a record in a ring buffer, and the look that tells who is tracked. Where pages are
/// copied behind the stop, some faults copy a page as well.
const LOG_NS: u64 = 400;

/// Keeps the price of snapshots within a share of the time that passes.
///
/// A snapshot costs its stops, the write faults that tracking causes, and, on a machine that has no
/// processor to spare, the time that ksnap itself computes. Whoever writes much pays much, whatever
/// the interval: then the interval grows, until the price per second is what was allowed.
pub struct Budget {
    permille: Option<u32>,
    used: Used,
}

/// Processor time, in nanoseconds since whenever.
#[derive(Clone, Copy, Default)]
struct Used {
    by_us: u64,
    by_nobody: u64,
}

impl Budget {
    /// At most `permille` thousandths of the time; `None` for no bound.
    pub fn new(permille: Option<u32>) -> Self {
        Self {
            permille,
            used: Used::now(),
        }
    }

    /// A snapshot begins. What a processor has to spare before that is of no use to it.
    pub fn begin(&mut self) {
        self.used = Used::now();
    }

    /// From the start of the snapshot that has cost so much to the start of the next, at least. Call it for each
    /// one, as soon as it is stored.
    pub fn interval(&self, kind: SnapshotKind, costs: &Costs) -> Duration {
        let (before, used) = (self.used, Used::now());
        let Some(permille) = self.permille else {
            return Duration::ZERO;
        };
        if kind == SnapshotKind::Base {
            // It reads everything, once.
            return Duration::ZERO;
        }
        let ours = used.by_us.saturating_sub(before.by_us);
        let spare = used.by_nobody.saturating_sub(before.by_nobody);
        let taken = ours.saturating_sub(spare) / processors();
        interval(price(costs, fault_ns(costs.faults)) + taken, permille)
    }
}

/// What the process itself lost by a snapshot, in nanoseconds.
fn price(costs: &Costs, fault_ns: u64) -> u64 {
    let stopped = costs.stop_seen_ns.unwrap_or(costs.phases.stop_ns);
    stopped + costs.phases.pauses_ns + costs.faults * fault_ns
}

fn interval(price_ns: u64, permille: u32) -> Duration {
    Duration::from_nanos(price_ns.saturating_mul(1000) / u64::from(permille.max(1)))
}

/// Measured once, when there are enough of them to matter.
fn fault_ns(faults: u64) -> u64 {
    const MATTER: u64 = 2_000;
    static MEASURED: OnceLock<u64> = OnceLock::new();
    match faults {
        0..MATTER => FAULT_NS,
        _ => *MEASURED.get_or_init(|| fault_cost_ns().map_or(FAULT_NS, |ns| ns + LOG_NS)),
    }
}

fn processors() -> u64 {
    std::thread::available_parallelism().map_or(1, usize::from) as u64
}

impl Used {
    fn now() -> Self {
        Self {
            by_us: proc::cpu_time_ns(std::process::id().cast_signed()).unwrap_or(0),
            by_nobody: proc::idle_ns().unwrap_or(0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Phases;

    fn costs(stop_ms: u64, pauses_ms: u64, faults: u64) -> Costs {
        Costs {
            phases: Phases {
                stop_ns: stop_ms * 1_000_000,
                pauses_ns: pauses_ms * 1_000_000,
                ..Default::default()
            },
            faults,
            ..Default::default()
        }
    }

    #[test]
    fn the_price_is_what_the_process_lost() {
        assert_eq!(price(&costs(2, 3, 1000), 2_000), 7_000_000);
        let seen = Costs {
            stop_seen_ns: Some(9),
            ..costs(2, 0, 0)
        };
        assert_eq!(price(&seen, 2_000), 9);
    }

    #[test]
    fn the_interval_makes_the_price_the_share_allowed() {
        assert_eq!(interval(10_000_000, 100), Duration::from_millis(100));
        assert_eq!(interval(10_000_000, 5), Duration::from_secs(2));
        assert_eq!(interval(0, 100), Duration::ZERO);
    }

    #[test]
    fn a_base_and_an_unbounded_budget_hold_nothing_back() {
        let dear = costs(500, 500, 1_000);
        let unbounded = Budget::new(None);
        assert_eq!(
            unbounded.interval(SnapshotKind::Delta, &dear),
            Duration::ZERO
        );
        let bounded = Budget::new(Some(100));
        assert_eq!(bounded.interval(SnapshotKind::Base, &dear), Duration::ZERO);
        let held = bounded.interval(SnapshotKind::Delta, &dear);
        assert!(held >= Duration::from_secs(10), "{held:?}");
    }
}
