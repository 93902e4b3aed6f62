//! What is known of the costs, as plain data. Units are in the names; shares are fractions of 1.

use super::Times;
use super::symbols::{Symbol, symbolize};
use crate::model::{PageRange, Vma};
use serde::{Deserialize, Serialize};

/// What snapshots of one process cost while they were recorded.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Snapshots taken.
    pub snapshots: u64,
    /// Those whose stop looked at all memory instead of what the fault log named.
    pub full_scans: u64,
    /// Name of the tracker that the last snapshot used.
    pub tracker: String,
    /// Wall-clock time of the recording.
    pub elapsed_ns: u64,
    /// CPU time that the target used meanwhile, all threads, user and system.
    pub target_cpu_ns: u64,
    /// From the first freeze request to the last thaw, by ksnap's clock.
    pub stop: Times,
    /// Stop of the longest-stopped thread, from leaving the CPU to being put on one again, as the
    /// scheduler saw it. Of the snapshots that have it; none without probes.
    pub stop_seen: Option<Times>,
    /// Time by phase.
    pub phases: PhaseTimes,
    /// Pages by what became of them, per snapshot.
    pub pages: PageStats,
    /// Bytes of pages given to the encoder, all snapshots.
    pub bytes_in: u64,
    /// Bytes of pages written, all snapshots.
    pub bytes_out: u64,
    /// `bytes_in / bytes_out`; none when nothing was written.
    pub ratio: Option<f64>,
    /// Fault events lost because the ring buffer was full.
    pub ring_drops: u64,
    /// Write-protection faults that tracking caused.
    pub faults: u64,
    /// Where the number of faults comes from.
    pub fault_source: FaultSource,
    /// Cost of one such fault, measured on this machine; 0 when it was not.
    pub fault_cost_ns: u64,
    /// The target's own time that snapshots took.
    pub overhead: Overhead,
    /// Probes by time, the dearest first.
    pub probes: Vec<ProbeCost>,
    /// Mappings by pages dirtied, the most first. Needs the fault log.
    pub mappings: Vec<HotMapping>,
    /// Faults in memory whose mapping came and went between two looks at the map.
    pub unplaced_faults: u64,
    /// Instructions by pages dirtied, the most first. Needs the fault log.
    pub instructions: Vec<HotInstruction>,
    /// Threads by pages dirtied, the most first. Needs the fault log.
    pub threads: Vec<HotThread>,
}

/// Time by phase of a snapshot. Freeze, scan, copy, state and thaw make up the stop; the target
/// runs in the others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "named after the phases")]
pub struct PhaseTimes {
    pub precopy: Times,
    /// Short stops in it, in which pages are protected again: the sum of each snapshot's.
    pub pauses: Times,
    pub freeze: Times,
    pub scan: Times,
    pub copy: Times,
    pub state: Times,
    pub thaw: Times,
    pub encode: Times,
    pub write: Times,
    pub sync: Times,
}

/// Pages per snapshot, by what became of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PageStats {
    /// Resident in the target.
    pub resident: Size,
    /// Looked at by scans.
    pub scanned: Size,
    /// Reported dirty by the tracker.
    pub dirty: Size,
    /// Copied in all, the stop included.
    pub copied: Size,
    /// Copied inside the stop.
    pub copied_stopped: Size,
    /// Whose content really differed.
    pub changed: Size,
}

/// Mean and largest of a number over all snapshots.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "self-describing")]
pub struct Size {
    pub mean: f64,
    pub max: u64,
}

/// Where the number of faults comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FaultSource {
    /// Nothing faults: the tracker protects no pages.
    #[default]
    None,
    /// The probes logged each of them. First touches of new memory are among them: those would
    /// have happened without tracking as well, so that this is the most it can be.
    Logged,
    /// There were no probes: one fault for each dirty page of each snapshot but the first, whose
    /// pages had not been protected.
    DirtyPages,
}

/// The target's own time that snapshots took, by cause.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Overhead {
    /// All threads were stopped: the sum over all snapshots of the stop as the scheduler saw it,
    /// or by ksnap's clock where that is not known. Time on the wall clock; a thread that would
    /// have slept through it has lost nothing, so that this is the most it can be.
    pub stop: OverheadPart,
    /// First writes to protected pages: faults × the measured cost of one. Part of the target's
    /// own system time.
    pub faults: OverheadPart,
    /// Run time of the probes, from the kernel's own statistics, for all processes together: a
    /// probe on system calls runs for others too. The most that the target can have paid.
    pub probes: OverheadPart,
    /// The sum of the three.
    pub total: OverheadPart,
}

/// One cause.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct OverheadPart {
    /// Time, all snapshots together.
    pub time_ns: u64,
    /// Against the CPU time that the target used in all; none when it used none.
    pub of_cpu: Option<f64>,
    /// Against the wall-clock time of the recording; none when that is not known. More than 1 is
    /// possible for faults and probes of several threads.
    pub of_elapsed: Option<f64>,
}

/// One probe.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbeCost {
    /// Name of the program: the hook it is on.
    pub name: String,
    /// How often it ran, for whatever process.
    pub runs: u64,
    /// How long in all.
    pub time_ns: u64,
}

/// A mapping whose pages are dirtied.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HotMapping {
    /// Addresses, as last seen.
    pub range: PageRange,
    /// The file behind it, or `[heap]`, `[stack]`, `[anon:NAME]`, `[anonymous]`.
    pub name: String,
    /// It was still mapped at the end.
    pub mapped: bool,
    /// Pages dirtied; a page dirtied again after a snapshot counts again. Exact.
    pub faults: u64,
    /// Of all faults logged.
    pub share: f64,
}

/// An instruction that dirties pages.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HotInstruction {
    /// Its address; one in the kernel for writes made by system calls.
    pub ip: u64,
    /// Pages that it was the first to dirty, at least.
    pub faults: u64,
    /// Pages that it was the first to dirty, at most.
    pub faults_at_most: u64,
    /// `faults` of all faults logged.
    pub share: f64,
    /// What the address is called, once [`Report::symbolize`] has looked.
    pub symbol: Option<Symbol>,
}

/// A thread that dirties pages.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HotThread {
    /// Thread id.
    pub tid: i32,
    /// Pages that it was the first to dirty, at least.
    pub faults: u64,
    /// Pages that it was the first to dirty, at most.
    pub faults_at_most: u64,
    /// `faults` of all faults logged.
    pub share: f64,
}

impl PhaseTimes {
    /// Each phase with its name, in the order in which they run.
    pub fn each(&self) -> [(&'static str, &Times); 10] {
        [
            ("precopy", &self.precopy),
            ("pauses", &self.pauses),
            ("freeze", &self.freeze),
            ("scan", &self.scan),
            ("copy", &self.copy),
            ("state", &self.state),
            ("thaw", &self.thaw),
            ("encode", &self.encode),
            ("write", &self.write),
            ("sync", &self.sync),
        ]
    }
}

impl Overhead {
    /// Shares of the target's CPU time and of the elapsed time, of the three causes and their sum.
    pub fn new(
        stop_ns: u64,
        faults_ns: u64,
        probes_ns: u64,
        target_cpu_ns: u64,
        elapsed_ns: u64,
    ) -> Self {
        let share = |part: u64, whole: u64| (whole > 0).then(|| part as f64 / whole as f64);
        let part = |time_ns| OverheadPart {
            time_ns,
            of_cpu: share(time_ns, target_cpu_ns),
            of_elapsed: share(time_ns, elapsed_ns),
        };
        Self {
            stop: part(stop_ns),
            faults: part(faults_ns),
            probes: part(probes_ns),
            total: part(stop_ns.saturating_add(faults_ns).saturating_add(probes_ns)),
        }
    }
}

impl Report {
    /// Looks up what the instructions are called: `pid` is the target, `vmas` its mappings. Reads
    /// the ELF files behind them, and takes up to seconds where debug information is large.
    pub fn symbolize(&mut self, pid: i32, vmas: &[Vma]) {
        let ips: Vec<u64> = self.instructions.iter().map(|i| i.ip).collect();
        for (hot, symbol) in self.instructions.iter_mut().zip(symbolize(pid, vmas, &ips)) {
            hot.symbol = Some(symbol);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_shares_of_the_causes_sum_to_that_of_the_total(
            stop in 0u64..1 << 40, faults in 0u64..1 << 40, probes in 0u64..1 << 40,
            cpu in 1u64..1 << 42, elapsed in 1u64..1 << 42,
        ) {
            let o = Overhead::new(stop, faults, probes, cpu, elapsed);
            prop_assert_eq!(o.total.time_ns, stop + faults + probes);
            for share in [|p: OverheadPart| p.of_cpu, |p: OverheadPart| p.of_elapsed] {
                let parts: f64 = [o.stop, o.faults, o.probes].map(|p| share(p).unwrap()).iter().sum();
                let total = share(o.total).unwrap();
                prop_assert!((parts - total).abs() <= 1e-9 * total.max(1.0));
            }
        }
    }

    #[test]
    fn a_share_of_nothing_is_not_a_number_but_absent() {
        let o = Overhead::new(5, 0, 0, 0, 0);
        assert_eq!((o.stop.of_cpu, o.total.of_elapsed), (None, None));
    }
}
