//! `profile`: what snapshots cost a process, and who dirties its memory.

use super::engine::Engine;
use super::service::Service;
use super::watch::drive;
use super::{Options, Progress, Result, Schedule, Summary, control};
use crate::capture::CaptureError;
use crate::profile::{Recorder, Report};
use crate::store::Store;
use crate::sys::{pidfd_open, proc};
use crate::track::fault_cost_ns;
use std::path::Path;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

/// A profile being made.
pub(super) struct Profiling {
    pub(super) recorder: Recorder,
    start: Instant,
}

/// How long a profile lasts when the schedule does not say.
const LASTING: Duration = Duration::from_secs(10);

/// Takes snapshots for a while and tells what they cost: those of the ksnap that watches the
/// process, else snapshots of its own, which stay in the store. The summary is that of the latter.
pub fn profile(
    dir: &Path,
    pid: i32,
    schedule: &Schedule,
    options: &Options,
    report: &mut dyn FnMut(&Progress),
) -> Result<(Report, Option<Summary>)> {
    let lasting = schedule.lasting.unwrap_or(LASTING);
    if let Some(mut watcher) = control::connect(dir, pid)? {
        // It goes on as it does.
        let added = match (options.audit, options.files) {
            (true, _) => Some("--audit"),
            (_, true) => Some("--files"),
            _ => options.own,
        };
        control::refuse_own(added)?;
        return Ok((watcher.profile(lasting)?, None));
    }
    let store = Store::open_or_create(dir)?;
    let mut engine = Engine::attach(&store, pid, options)?;
    let (send, commands) = channel();
    let pidfd = pidfd_open(pid).map_err(|e| CaptureError::from_sys(pid, e))?;
    let _service = Service::start(store.dir(), pid, pidfd, false, send)?;
    engine.start_profile();
    let schedule = Schedule {
        max_overhead: None,
        lasting: Some(lasting),
        ..*schedule
    };
    let summary = drive(&mut engine, &schedule, &commands, report)?;
    Ok((engine.end_profile(), Some(summary)))
}

impl Engine {
    /// Begins to record what snapshots cost; a profile that was being made is given up.
    pub(super) fn start_profile(&mut self) {
        let mut recorder = Recorder::new();
        match fault_cost_ns() {
            Ok(ns) => recorder.fault_cost(ns),
            Err(e) => tracing::debug!("the cost of a fault is unknown: {e}"),
        }
        self.events.count_costs();
        self.events.faults = Some(Vec::new());
        self.profiling = Some(Profiling {
            recorder,
            start: Instant::now(),
        });
        self.read_counters();
    }

    /// Enters the faults that came since the last call.
    pub(super) fn feed_profile(&mut self) {
        if let (Some(profiling), Some(faults)) = (&mut self.profiling, &mut self.events.faults) {
            profiling.recorder.faults(faults.drain(..));
        }
    }

    /// Readings of counters that only grow; the first one is the base line.
    fn read_counters(&mut self) {
        let Some(profiling) = &mut self.profiling else {
            return;
        };
        for program in self.events.program_stats() {
            let total = program.run_time.as_nanos() as u64;
            profiling
                .recorder
                .probe_time(program.name, program.run_count, total);
        }
        if let Ok(cpu) = proc::cpu_time_ns(self.target.pid) {
            profiling.recorder.target_cpu(cpu);
        }
    }

    /// What was recorded since the profile began.
    pub(super) fn end_profile(&mut self) -> Report {
        self.feed_profile();
        self.read_counters();
        self.events.faults = None;
        let Some(Profiling {
            mut recorder,
            start,
        }) = self.profiling.take()
        else {
            return Recorder::new().report(&[]);
        };
        recorder.elapsed(start.elapsed().as_nanos() as u64);
        let vmas = proc::maps(self.target.pid).unwrap_or_default();
        let mut report = recorder.report(&vmas);
        report.symbolize(self.target.pid, &vmas);
        report
    }
}
