//! Collects what snapshots cost while they go on.

use super::heavy::{Counted, HeavyHitters};
use super::places::Places;
use super::report::{
    FaultSource, HotInstruction, HotMapping, HotThread, Overhead, PageStats, PhaseTimes, ProbeCost,
    Report, Size,
};
use super::times::TimesRecorder;
use crate::model::{Costs, PageCounts, Phases, Vma};
use std::collections::BTreeMap;

/// Instructions that are told apart: one that causes a two-thousandth of all faults is never missed.
const INSTRUCTIONS: usize = 4096;
/// Threads that are told apart.
const THREADS: usize = 1024;
/// Rows of each list of a report.
const TOP: usize = 20;

/// A write fault of the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Address in the page written to.
    pub page: u64,
    /// Address of the instruction; 0 where there is none, as for get_user_pages.
    pub ip: u64,
    /// Thread that writes.
    pub tid: i32,
}

/// A counter that only ever grows, read now and then.
#[derive(Clone, Copy, Debug, Default)]
struct Meter {
    first: u64,
    last: u64,
}

impl Meter {
    fn grown(self) -> u64 {
        self.last.saturating_sub(self.first)
    }
}

/// A number per snapshot.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    sum: u64,
    max: u64,
}

impl Tally {
    fn add(&mut self, n: u64) {
        self.sum = self.sum.saturating_add(n);
        self.max = self.max.max(n);
    }

    fn size(self, snapshots: u64) -> Size {
        Size {
            mean: self.sum as f64 / snapshots.max(1) as f64,
            max: self.max,
        }
    }
}

/// Phases in the order of [`phases`].
const PHASES: usize = 10;

fn phases(p: &Phases) -> [u64; PHASES] {
    [
        p.precopy_ns,
        p.pauses_ns,
        p.freeze_ns,
        p.scan_ns,
        p.copy_ns,
        p.state_ns,
        p.thaw_ns,
        p.encode_ns,
        p.write_ns,
        p.sync_ns,
    ]
}

fn page_counts(p: &PageCounts) -> [u64; 6] {
    [
        p.resident,
        p.scanned,
        p.dirty,
        p.copied,
        p.copied_stopped,
        p.changed,
    ]
}

/// Collects what snapshots of one process cost. Its memory is bounded, however long it is fed:
/// under 4 MiB, and the list of mappings.
#[derive(Clone, Debug)]
pub struct Recorder {
    snapshots: u64,
    full_scans: u64,
    tracker: String,
    stop: TimesRecorder,
    stop_seen: TimesRecorder,
    /// Of each snapshot the better of the two above, and its pauses.
    stopped_ns: u64,
    phases: [TimesRecorder; PHASES],
    pages: [Tally; 6],
    bytes_in: u64,
    bytes_out: u64,
    ring_drops: u64,
    faults_reported: u64,
    dirty_after_first: u64,
    costs_cpu_ns: u64,
    target_cpu: Option<Meter>,
    elapsed_ns: u64,
    fault_cost_ns: u64,
    probes: BTreeMap<String, (Meter, Meter)>,
    places: Places,
    instructions: HeavyHitters,
    threads: HeavyHitters,
}

impl Default for Recorder {
    fn default() -> Self {
        Self::new()
    }
}

impl Recorder {
    /// Has seen nothing yet.
    pub fn new() -> Self {
        Self {
            snapshots: 0,
            full_scans: 0,
            tracker: String::new(),
            stop: TimesRecorder::new(),
            stop_seen: TimesRecorder::new(),
            stopped_ns: 0,
            phases: std::array::from_fn(|_| TimesRecorder::new()),
            pages: [Tally::default(); 6],
            bytes_in: 0,
            bytes_out: 0,
            ring_drops: 0,
            faults_reported: 0,
            dirty_after_first: 0,
            costs_cpu_ns: 0,
            target_cpu: None,
            elapsed_ns: 0,
            fault_cost_ns: 0,
            probes: BTreeMap::new(),
            places: Places::default(),
            instructions: HeavyHitters::new(INSTRUCTIONS),
            threads: HeavyHitters::new(THREADS),
        }
    }

    /// A snapshot was taken, and written.
    pub fn snapshot(&mut self, costs: &Costs) {
        self.snapshots += 1;
        self.full_scans += u64::from(costs.full_scan);
        if self.tracker != costs.tracker {
            self.tracker.clone_from(&costs.tracker);
        }
        self.stop.record(costs.phases.stop_ns);
        if let Some(seen) = costs.stop_seen_ns {
            self.stop_seen.record(seen);
        }
        let stop = costs.stop_seen_ns.unwrap_or(costs.phases.stop_ns);
        self.stopped_ns += stop + costs.phases.pauses_ns;
        for (times, ns) in self.phases.iter_mut().zip(phases(&costs.phases)) {
            times.record(ns);
        }
        for (tally, pages) in self.pages.iter_mut().zip(page_counts(&costs.pages)) {
            tally.add(pages);
        }
        self.bytes_in += costs.bytes_in;
        self.bytes_out += costs.bytes_out;
        self.ring_drops += costs.ring_drops;
        self.faults_reported += costs.faults;
        self.costs_cpu_ns += costs.target_cpu_ns;
        if self.snapshots > 1 {
            self.dirty_after_first += costs.pages.dirty;
        }
    }

    /// The target's mappings, ascending, whenever they were read: faults are counted by mapping,
    /// and mappings change.
    pub fn mappings(&mut self, vmas: &[Vma]) {
        self.places.update(vmas);
    }

    /// A write fault was logged.
    #[inline]
    pub fn fault(&mut self, fault: Fault) {
        self.places.add(fault.page);
        self.instructions.add(fault.ip);
        self.threads.add(u64::from(fault.tid.cast_unsigned()));
    }

    /// As [`Recorder::fault`], for many.
    pub fn faults(&mut self, faults: impl IntoIterator<Item = Fault>) {
        faults.into_iter().for_each(|fault| self.fault(fault));
    }

    /// Run count and run time of a probe as the kernel has summed them up since it was loaded. The
    /// first reading of each probe is where counting begins, so take one at the start.
    pub fn probe_time(&mut self, program: &str, runs: u64, total_ns: u64) {
        if let Some((run_meter, time_meter)) = self.probes.get_mut(program) {
            run_meter.last = runs;
            time_meter.last = total_ns;
        } else {
            let meter = |now| Meter {
                first: now,
                last: now,
            };
            self.probes
                .insert(program.to_owned(), (meter(runs), meter(total_ns)));
        }
    }

    /// CPU time that the target has used since it was started, in nanoseconds, all threads. The
    /// first reading is where counting begins. Without readings the sum of
    /// [`Costs::target_cpu_ns`] is taken.
    pub fn target_cpu(&mut self, total_ns: u64) {
        self.target_cpu
            .get_or_insert(Meter {
                first: total_ns,
                last: total_ns,
            })
            .last = total_ns;
    }

    /// Wall-clock time since the recording began, in nanoseconds.
    pub fn elapsed(&mut self, ns: u64) {
        self.elapsed_ns = ns;
    }

    /// Cost of one write-protection fault on this machine, in nanoseconds
    /// (`track::fault_cost_ns`). Without it, faults cost nothing in the report.
    pub fn fault_cost(&mut self, ns: u64) {
        self.fault_cost_ns = ns;
    }

    /// What is known so far. `vmas`: the target's mappings now, ascending; none when it
    /// is gone.
    pub fn report(&self, vmas: &[Vma]) -> Report {
        let mut places = self.places.clone();
        places.update(vmas);
        let logged = self.instructions.total();
        let (faults, fault_source) = self.fault_count(logged);
        let target_cpu_ns = match self.target_cpu.map(Meter::grown) {
            Some(ns) if ns > 0 => ns,
            _ => self.costs_cpu_ns,
        };
        let probes = self.probe_costs();
        let probes_ns = probes.iter().map(|p| p.time_ns).sum();
        let [
            precopy,
            pauses,
            freeze,
            scan,
            copy,
            state,
            thaw,
            encode,
            write,
            sync,
        ] = self.phases.each_ref().map(TimesRecorder::times);
        let [resident, scanned, dirty, copied, copied_stopped, changed] =
            self.pages.map(|tally| tally.size(self.snapshots));
        let stop_seen = self.stop_seen.times();
        let share = |n: u64| n as f64 / logged.max(1) as f64;
        Report {
            snapshots: self.snapshots,
            full_scans: self.full_scans,
            tracker: self.tracker.clone(),
            elapsed_ns: self.elapsed_ns,
            target_cpu_ns,
            stop: self.stop.times(),
            stop_seen: (stop_seen.count > 0).then_some(stop_seen),
            phases: PhaseTimes {
                precopy,
                pauses,
                freeze,
                scan,
                copy,
                state,
                thaw,
                encode,
                write,
                sync,
            },
            pages: PageStats {
                resident,
                scanned,
                dirty,
                copied,
                copied_stopped,
                changed,
            },
            bytes_in: self.bytes_in,
            bytes_out: self.bytes_out,
            ratio: (self.bytes_out > 0).then(|| self.bytes_in as f64 / self.bytes_out as f64),
            ring_drops: self.ring_drops,
            faults,
            fault_source,
            fault_cost_ns: self.fault_cost_ns,
            overhead: Overhead::new(
                self.stopped_ns,
                faults.saturating_mul(self.fault_cost_ns),
                probes_ns,
                target_cpu_ns,
                self.elapsed_ns,
            ),
            probes,
            mappings: places
                .top(TOP)
                .into_iter()
                .map(|place| HotMapping {
                    range: place.range,
                    name: place.name,
                    mapped: place.mapped,
                    faults: place.count,
                    share: share(place.count),
                })
                .collect(),
            unplaced_faults: places.unplaced(),
            instructions: (self.instructions.top(TOP).into_iter())
                .map(|Counted { key, count, error }| HotInstruction {
                    ip: key,
                    faults: count,
                    faults_at_most: count + error,
                    share: share(count),
                    symbol: None,
                })
                .collect(),
            threads: (self.threads.top(TOP).into_iter())
                .map(|Counted { key, count, error }| HotThread {
                    tid: (key as u32).cast_signed(),
                    faults: count,
                    faults_at_most: count + error,
                    share: share(count),
                })
                .collect(),
        }
    }

    /// Faults that tracking caused. The content tracker protects nothing, whatever was logged.
    fn fault_count(&self, logged: u64) -> (u64, FaultSource) {
        if self.tracker == "hash" {
            return (0, FaultSource::None);
        }
        match self.faults_reported.max(logged) {
            0 if self.dirty_after_first == 0 => (0, FaultSource::None),
            0 => (self.dirty_after_first, FaultSource::DirtyPages),
            faults => (faults, FaultSource::Logged),
        }
    }

    fn probe_costs(&self) -> Vec<ProbeCost> {
        let mut costs: Vec<ProbeCost> = self
            .probes
            .iter()
            .map(|(name, (runs, time))| ProbeCost {
                name: name.clone(),
                runs: runs.grown(),
                time_ns: time.grown(),
            })
            .collect();
        costs.sort_by_key(|p| std::cmp::Reverse(p.time_ns));
        costs
    }
}

#[cfg(test)]
mod tests;
