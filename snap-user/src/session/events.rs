//! What the probes tell of one process, entered where it matters.

use crate::capture::Told;
use crate::model::{PageRange, PageSet, Referent};
use crate::probe::{
    Event, FaultSource, HazardKind, Losses, MappingKind, Marks, ProbeError, ProbeOptions,
    ProgramStats, Saved, SharedProbes, TrackedProcess, Window,
};
use crate::profile::Fault;
use crate::restore::fault;
use crate::sys::arch::USER_END;
use crate::sys::monotonic_ns;
use crate::track::Epoch;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::OnceLock;
use std::time::Duration;

/// Probes for every process that one ksnap watches, loaded when the first of them turns out to be fit for it.
pub struct LazyProbes {
    wanted: bool,
    /// Or why they cannot be had.
    loaded: OnceLock<Result<SharedProbes, String>>,
}

impl LazyProbes {
    /// Not `wanted`: there will be none.
    pub fn new(wanted: bool) -> Self {
        Self {
            wanted,
            loaded: OnceLock::new(),
        }
    }

    /// Loads them now: before a process that may not live for as long as that takes.
    pub fn load(&self) {
        if self.wanted {
            self.loaded();
        }
    }

    fn loaded(&self) -> &Result<SharedProbes, String> {
        self.loaded.get_or_init(|| {
            let mut options = ProbeOptions::default();
            if let Some(bytes) = fault::number("KSNAP_RING_BYTES") {
                options.ring_bytes = bytes;
            }
            SharedProbes::load(&options).map_err(|e| e.to_string())
        })
    }

    fn track(&self, pid: u32) -> Option<Result<TrackedProcess, String>> {
        self.wanted.then(|| match self.loaded() {
            Ok(probes) => probes.track(pid).map_err(|e| e.to_string()),
            Err(why) => Err(why.clone()),
        })
    }
}

/// The probes, if they can be had, and what they said.
pub struct Events {
    pid: u32,
    probes: Option<TrackedProcess>,
    why_off: Option<String>,
    /// The program break as last heard of.
    pub brk: Option<u64>,
    /// Something is different about mappings that their list does not show.
    described: bool,
    /// The program was replaced.
    pub exec: bool,
    /// Children that run on this process's memory until they execute something (vfork).
    borrowers: BTreeSet<u32>,
    /// io_uring or asynchronous I/O is in use.
    lasting_hazard: bool,
    drops_seen: u64,
    drops: u64,
    stops: BTreeMap<u32, (u64, u64)>,
    /// Faults for a profile, where one is being made.
    pub faults: Option<Vec<Fault>>,
}

impl Events {
    /// Tracks the process by these probes, where they are wanted and can be had.
    pub fn new(pid: i32, probes: &LazyProbes) -> Self {
        let mut events = Self {
            pid: pid as u32,
            probes: None,
            why_off: None,
            brk: None,
            described: false,
            exec: false,
            borrowers: BTreeSet::new(),
            lasting_hazard: false,
            drops_seen: 0,
            drops: 0,
            stops: BTreeMap::new(),
            faults: None,
        };
        match probes.track(pid as u32) {
            None => {}
            Some(Ok(probes)) => events.probes = Some(probes),
            Some(Err(why)) => events.why_off = Some(why),
        }
        events
    }

    /// Events arrive.
    pub fn is_on(&self) -> bool {
        self.probes.is_some()
    }

    /// Memory may be written unseen at any time from now on.
    pub fn has_lasting_hazard(&self) -> bool {
        self.lasting_hazard
    }

    /// Why they do not, though they were wanted.
    pub fn why_off(&self) -> Option<&str> {
        self.why_off.as_deref()
    }

    /// Where write faults are seen.
    pub fn fault_source(&self) -> Option<String> {
        let name = |source| match source {
            FaultSource::HandleMmFault => "fentry/handle_mm_fault",
            FaultSource::Tracepoints => "page_fault tracepoints",
        };
        self.probes
            .as_ref()
            .map(|p| name(p.fault_source()).to_owned())
    }

    /// Probes tell what no file of /proc shows of the process.
    pub fn observes(&self) -> bool {
        self.probes.as_ref().is_some_and(TrackedProcess::observes)
    }

    /// Pages that wait to be copied can be saved before they are written, and every way of writing them is seen.
    pub fn saves_pages(&self) -> bool {
        let sees_all = |p: &TrackedProcess| p.sees_gup_writes() || p.sees_page_locks();
        self.probes.as_ref().is_some_and(sees_all)
    }

    /// From now on the first write to each of these pages has it saved before.
    pub fn open_window(&self, pages: &Marks) -> Result<Window, ProbeError> {
        self.on().open_window(pages, self.brk)
    }

    /// Pages below `addr` need not be saved any more.
    pub fn copied_to(&self, window: Window, addr: u64) -> Result<(), ProbeError> {
        self.on().copied_to(window, addr)
    }

    /// No more pages are saved.
    pub fn close_window(&self) -> Result<(), ProbeError> {
        self.on().close_window()
    }

    /// The same whether there is a window or none; what was saved is of no use.
    pub fn stop_saving(&self) {
        if self.saves_pages()
            && let Err(e) = self.on().give_up_window()
        {
            tracing::debug!("{e}");
        }
    }

    /// See [`TrackedProcess::drain_saved`].
    pub fn drain_saved(&self, handle: impl FnMut(Saved<'_>)) -> Result<bool, ProbeError> {
        self.on().drain_saved(handle)
    }

    /// Pages that could not be saved so far.
    pub fn saved_lost(&self) -> Result<u64, ProbeError> {
        self.on().saved_lost()
    }

    /// The same by reason.
    pub fn losses(&self) -> Result<Losses, ProbeError> {
        self.on().losses()
    }

    /// Only for what [`Events::saves_pages`] allows.
    fn on(&self) -> &TrackedProcess {
        self.probes.as_ref().expect("pages are saved by probes")
    }

    /// What the kernel itself knows of the stopped process, of which `tid` is a thread.
    pub fn told(&mut self, tid: i32) -> Told {
        let probes = self.probes.as_ref().filter(|probes| probes.observes());
        let observed = probes.and_then(|probes| {
            probes
                .observe(tid)
                .inspect_err(|e| tracing::warn!("process {}: {e}", self.pid))
                .ok()
        });
        Told {
            brk: self.brk,
            observed,
            open: self.referents(),
        }
    }

    /// What the descriptors of the process refer to, where the kernel can be asked.
    pub fn referents(&self) -> Option<Vec<(i32, Referent)>> {
        let asked = self.probes.as_ref()?.referents();
        asked.unwrap_or_else(|e| {
            tracing::debug!("process {}: {e}", self.pid);
            None
        })
    }

    /// Turns run-time statistics of the programs on.
    pub fn count_costs(&mut self) {
        if let Some(probes) = &mut self.probes
            && let Err(e) = probes.count_costs()
        {
            tracing::debug!("{e}");
        }
    }

    /// What each program has cost so far.
    pub fn program_stats(&self) -> Vec<ProgramStats> {
        self.probes
            .as_ref()
            .and_then(|p| p.program_stats().ok())
            .unwrap_or_default()
    }

    /// Takes in everything that is in the ring buffer.
    pub fn drain(&mut self, epoch: &mut Epoch) {
        let Some(mut probes) = self.probes.take() else {
            return;
        };
        let sees_gup = probes.sees_gup_writes();
        let mut ended = Vec::new();
        let drained = probes.drain(|event| self.take(event, epoch, sees_gup, &mut ended));
        let lost = drained.drops_total - self.drops_seen;
        self.drops_seen = drained.drops_total;
        self.drops += lost;
        if lost > 0 || self.lasting_hazard {
            epoch.distrust();
        }
        if lost > 0 {
            self.described = true;
            // Mapping changes may be among the lost.
            epoch.remapped(PageRange::new(0, USER_END));
        }
        for child in ended {
            let _ = probes.untrack_child(child);
        }
        self.probes = Some(probes);
    }

    fn take(&mut self, event: &Event, epoch: &mut Epoch, sees_gup: bool, ended: &mut Vec<u32>) {
        match *event {
            Event::Fault {
                tgid,
                tid,
                page,
                ip,
                ..
            } if self.is_ours(tgid) => {
                if let Some(log) = epoch.log() {
                    log.record(tid as i32, page);
                }
                if let Some(faults) = &mut self.faults {
                    faults.push(Fault {
                        page,
                        ip,
                        tid: tid as i32,
                    });
                }
            }
            Event::Described { tgid, .. } if self.is_ours(tgid) => {
                self.described = true;
                if !sees_gup {
                    // What is locked into memory is made writable as well.
                    epoch.distrust();
                }
            }
            Event::Mapping { tgid, change, .. } if self.is_ours(tgid) => {
                self.described |=
                    matches!(change.kind, MappingKind::Madvise(advice) if describes(advice));
                if let MappingKind::Brk { end } = change.kind {
                    // What it was before is not told, but known.
                    if let Some(before) = self.brk.replace(end) {
                        let (low, high) = (before.min(end), before.max(end));
                        epoch.remapped(PageRange::covering(low, high - low));
                        return;
                    }
                }
                for range in change.old.into_iter().chain(change.new) {
                    epoch.remapped(range);
                }
                if change.is_unbounded() {
                    epoch.remapped(PageRange::new(0, USER_END));
                }
            }
            Event::Hazard {
                tgid, kind, range, ..
            } if tgid.is_none_or(|t| self.is_ours(t)) => {
                tracing::trace!(?kind, ?range, "hazard");
                if let (HazardKind::SharedFutex, Some(range)) = (kind, range) {
                    // Where get_user_pages is seen, that has been an event of its own.
                    if let (false, Some(log)) = (sees_gup, epoch.log()) {
                        log.record_unlocked(range.start);
                    }
                    return;
                }
                self.lasting_hazard |= kind.is_lasting();
                if let (HazardKind::DirectRead, Some(range)) = (kind, range) {
                    epoch.written(&PageSet::from_ranges(vec![range]));
                }
                if !sees_gup || kind.is_lasting() || matches!(kind, HazardKind::Compat) {
                    epoch.distrust();
                }
                if matches!(kind, HazardKind::Compat) {
                    epoch.remapped(PageRange::new(0, USER_END));
                }
            }
            Event::Exec { tgid, .. } => {
                if tgid == self.pid {
                    self.exec = true;
                } else if self.borrowers.remove(&tgid) {
                    ended.push(tgid);
                }
            }
            Event::ThreadStart { tid, .. } => {
                if let Some(log) = epoch.log() {
                    log.started(tid as i32);
                }
            }
            Event::Exit {
                tgid, tid, last, ..
            } => {
                if let Some(log) = epoch.log() {
                    log.ended(tid as i32);
                }
                if last {
                    self.borrowers.remove(&tgid);
                }
            }
            Event::Fork {
                child,
                shares_memory,
                ..
            } => {
                if shares_memory {
                    self.borrowers.insert(child);
                } else {
                    ended.push(child);
                }
            }
            Event::Stopped {
                tgid,
                tid,
                start_ns,
                end_ns,
            } if tgid == self.pid => {
                self.stops.insert(tid, (start_ns, end_ns));
            }
            _ => {}
        }
    }

    fn is_ours(&self, tgid: u32) -> bool {
        tgid == self.pid || self.borrowers.contains(&tgid)
    }

    /// The longest that any thread was kept from running by the stop that began at `since`, as the
    /// scheduler saw it. Waits up to `patience` for its account, which comes once the threads run again.
    pub fn stop_seen(&mut self, epoch: &mut Epoch, since: u64, patience: Duration) -> Option<u64> {
        if !self
            .probes
            .as_ref()
            .is_some_and(TrackedProcess::times_stops)
        {
            return None;
        }
        let deadline = monotonic_ns() + patience.as_nanos() as u64;
        loop {
            self.drain(epoch);
            self.stops.retain(|_, (_, end)| *end > since);
            let longest = self
                .stops
                .values()
                .map(|(start, end)| end.saturating_sub(*start))
                .max();
            if longest.is_some() || monotonic_ns() > deadline {
                self.stops.clear();
                return longest;
            }
            std::thread::sleep(Duration::from_micros(50));
        }
    }

    /// Mappings have to be looked at again, though their list may be the same.
    pub fn take_described(&mut self) -> bool {
        std::mem::take(&mut self.described)
    }

    /// Events lost, as far as they have been found missing and not been told yet.
    pub fn drops(&self) -> u64 {
        self.drops
    }

    /// So many of those are told by a snapshot.
    pub fn told_drops(&mut self, told: u64) {
        self.drops -= told;
    }
}

/// Advice that stays with a mapping, rather than being carried out at once.
fn describes(advice: i32) -> bool {
    // MADV_GUARD_INSTALL and MADV_GUARD_REMOVE.
    const GUARDS: std::ops::RangeInclusive<i32> = 102..=103;
    matches!(advice, libc::MADV_NORMAL..=libc::MADV_SEQUENTIAL)
        || matches!(advice, libc::MADV_DONTFORK..=libc::MADV_KEEPONFORK)
        || GUARDS.contains(&advice)
}
