//! One stop: what is done ahead of it, in it, and behind it.

use super::engine::{Captured, Engine, covered, wall_clock_ns};
use super::flight::{Flight, InFlight};
use super::pipeline::Hashes;
use super::tree_files::{HeldFile, held_files};
use super::tree_shared::SharedSeen;
use super::{AuditPage, Result, Taken, audit};
use crate::capture::{
    Stamps, bare_state, compared, compared_pages, describe, irreplaceable, saved_ranges,
    without_files,
};
use crate::model::{Costs, PAGE_SIZE, PageSet, ProcessState, SnapshotKind, Vma};
use crate::probe::Marks;
use crate::sys::{Frozen, monotonic_ns, proc};
use crate::track::{Dirty, Epoch, TrackerKind};
use std::time::Duration;

/// How long to wait, after a stop, for the scheduler's account of it.
const STOP_EVENTS: Duration = Duration::from_millis(3);

/// What was done ahead of a stop.
pub(super) struct Ahead {
    /// Its mappings as they were then.
    vmas: Vec<Vma>,
    costs: Costs,
    begun: u64,
    /// What is known of each page: as the parent has it, then as copied meanwhile.
    now: Hashes,
    stamps: Stamps,
    /// Of the copies that are made in the stop.
    pass: u32,
    /// The tracker does not see all writes.
    compare_all: bool,
    /// It is to be copied behind the stop, of which these pages are known already.
    behind: Option<Marks>,
}

/// A captured process.
pub(super) struct Caught {
    /// It is still stopped.
    pub(super) frozen: Option<Frozen>,
    /// Its open files, where it is held.
    pub(super) files: Vec<HeldFile>,
    pub(super) audit: Audit,
}

/// What a look at the stopped process tells.
struct Looked {
    dirty: Dirty,
    /// All that is dirty is protected, so that it can be copied behind the stop.
    behind: Option<Marks>,
    state: ProcessState,
    /// How long reading the state took.
    state_ns: u64,
}

/// What an audit compares, and what a page that differs is explained by.
pub(super) struct Audit {
    memory: Option<audit::Memory>,
    vmas: Vec<Vma>,
    dirty: Dirty,
    removed: PageSet,
    now: Hashes,
}

impl Audit {
    /// There is something to compare.
    pub(super) fn is_asked(&self) -> bool {
        self.memory.is_some()
    }
}

impl Engine {
    /// Does what can be done while the process runs. `hold`: it will not be let go before everything is copied.
    pub(super) fn ahead(&mut self, hold: bool) -> Result<Ahead> {
        let mut costs = Costs {
            tracker: self.tracker().to_string(),
            ..Costs::default()
        };
        let begun = monotonic_ns();
        let mut now = (*self.hashes).clone();
        self.unhashed = PageSet::new();
        // A snapshot without files has no pages of theirs, so that the next one with them reads all.
        let mut stamps = match self.options.files {
            true => self.contents.stamps().clone(),
            false => Stamps::new(),
        };
        let mut ready = None;
        let may = !hold && self.can_copy_behind() && !self.compares_all();
        if may && self.caution.allows() {
            // First, so that little is written between the walk that protects pages and the stop.
            let vmas = self.refresh(&mut stamps, &mut now)?;
            ready = self.may_postcopy(&mut costs)?.map(|marks| (vmas, marks));
        }
        let (vmas, behind) = match ready {
            Some((vmas, marks)) => (vmas, Some(marks)),
            None => {
                self.precopy(&mut costs, &mut now)?;
                (self.refresh(&mut stamps, &mut now)?, None)
            }
        };
        let pass = self.pipeline.next_pass();
        let compare_all = self.compares_all();
        self.events.drain(&mut self.epoch);
        if behind.is_some() {
            let before = &self.hashes;
            self.epoch.sort_log(|page| before.get(page).is_some());
        }
        Ok(Ahead {
            vmas,
            costs,
            begun,
            now,
            stamps,
            pass,
            compare_all,
            behind,
        })
    }

    /// Looks at everything but memory, so that the stop has to look at little. Returns the mappings.
    fn refresh(&mut self, stamps: &mut Stamps, now: &mut Hashes) -> Result<Vec<Vma>> {
        if self.options.files {
            self.live.files.refresh()?;
            self.save_ahead(stamps, now);
        }
        self.pipeline.prepare();
        let vmas = self.maps()?;
        if self.events.take_described() {
            self.live.look_again();
        }
        self.live.refresh(&vmas, &|| self.events.referents())?;
        Ok(vmas)
    }

    /// Captures the stopped process, and sends what was captured on its way to the disk. `stop` is when stopping it
    /// began; with `hold` it is not let go. `seen` is what others that are stopped as well were found to hold. Else why
    /// there is no snapshot of it.
    pub(super) fn stopped(
        &mut self,
        kind: SnapshotKind,
        ahead: Ahead,
        frozen: Frozen,
        stop: u64,
        (hold, mut seen): (bool, Option<&mut SharedSeen>),
    ) -> Result<std::result::Result<Caught, Captured>> {
        let pid = self.target.pid;
        let Ahead {
            vmas,
            mut costs,
            begun,
            mut now,
            mut stamps,
            pass,
            compare_all,
            behind,
        } = ahead;
        costs.phases.precopy_ns = stop.saturating_sub(begun);
        let frozen_at = monotonic_ns();
        if !self.is_same_program()? {
            return Ok(Err(Captured::NewProgram));
        }
        // It runs for that, and what it writes is looked for next.
        self.live.ask(&frozen, &vmas, false);
        let asked_at = monotonic_ns();
        self.events.drain(&mut self.epoch);
        // What is lost from here on, the look of the next stop makes up for.
        let drops = self.events.drops();
        let vmas = self.maps()?;
        if self.events.take_described() {
            self.live.look_again();
            self.live.look(&vmas)?;
        }
        let Looked {
            mut dirty,
            behind,
            mut state,
            state_ns,
        } = self.look(&frozen, &vmas, behind, compare_all)?;
        let scanned_at = monotonic_ns();

        let shared_pages = compared_pages(pid, &vmas);
        let mut removed = self.removed(&vmas, &dirty, &shared_pages, &mut now)?;
        let opened = match behind {
            Some(marks) => Some(self.await_copy(marks, &removed, &dirty.copy)?),
            None => None,
        };
        let shared_pages = match &seen {
            Some(seen) => shared_pages.subtract(&seen.unchanged(&vmas, &shared_pages, &now)),
            None => shared_pages,
        };
        let gone = match opened {
            Some(_) => self.copy_changed(&shared_pages, &mut now)?,
            None => self.copy_stopped(&dirty, &shared_pages, compare_all, &mut now)?,
        };
        if let Some(seen) = &mut seen {
            seen.learn(&vmas, &shared_pages.subtract(&gone), &now);
        }
        removed = removed.union(&gone);
        let copied_at = monotonic_ns();

        if self.options.files {
            self.save_files(&mut state, &mut stamps, &mut now);
        }
        let state_at = monotonic_ns();
        let memory = match self.options.audit {
            true => Some(self.memory(&vmas)?),
            false => None,
        };
        let time_ns = wall_clock_ns();
        let held = match hold {
            true => Some(frozen),
            false => {
                frozen.thaw();
                None
            }
        };
        let thawed_at = monotonic_ns();

        let is_behind = opened.is_some();
        if let Some(opened) = opened {
            self.epoch.with_found(&mut dirty, &vmas);
            let whole = self.postcopy(opened.of(&dirty.copy), &mut now)?;
            if !whole || !self.is_same_program()? {
                return Ok(Err(Captured::Spoilt));
            }
            costs.phases.precopy_ns += monotonic_ns() - thawed_at;
        }
        let saved = saved_ranges(&state.saved);
        let of_files = self.covered.subtract(&without_files(&self.covered));
        removed = removed.union(&of_files.subtract(&saved));
        self.pipeline.remove(self.to_take_out(&removed, &now), pass);

        let phases = &mut costs.phases;
        phases.freeze_ns = frozen_at - stop;
        // Another processor may have looked at page tables beside the state: then this is what that took more.
        phases.scan_ns = (scanned_at - asked_at).saturating_sub(state_ns);
        phases.copy_ns = copied_at - scanned_at;
        phases.state_ns = state_ns + (state_at - copied_at) + (asked_at - frozen_at);
        phases.thaw_ns = thawed_at - state_at;
        phases.stop_ns = thawed_at - stop;
        let pages = &mut costs.pages;
        pages.resident = proc::status(pid).map_or(0, |s| s.rss / PAGE_SIZE);
        pages.scanned += dirty.examined.pages();
        pages.dirty += dirty.copy.pages();
        pages.copied_stopped = shared_pages.pages();
        if !is_behind {
            pages.copied_stopped += dirty.copy.pages();
        }
        pages.copied += dirty.copy.pages() + shared_pages.pages();
        costs.full_scan = dirty.full || is_all(&dirty.examined, &vmas);
        if held.is_none() {
            costs.stop_seen_ns = self.events.stop_seen(&mut self.epoch, stop, STOP_EVENTS);
        }
        costs.faults = self.epoch.log().map_or(0, |log| log.take_count());
        costs.ring_drops = drops;
        self.events.told_drops(drops);
        costs.target_cpu_ns = self.cpu_since_last();

        describe(&mut state, &self.live);
        let unsupported = state.unsupported.clone();
        let files = match hold {
            true => held_files(&state),
            false => Vec::new(),
        };
        let answer = self.pipeline.publish(state, costs);
        self.flight = Some(Flight::Writing(InFlight {
            answer,
            kind,
            time_ns,
            unsupported,
            covered: covered(&vmas).union(&saved),
            stamps,
        }));
        Ok(Ok(Caught {
            frozen: held,
            files,
            audit: Audit {
                memory,
                vmas,
                dirty,
                removed,
                now,
            },
        }))
    }

    /// The state of the process, and what is dirty, for which the tracker may use another processor meanwhile.
    fn look(
        &mut self,
        frozen: &Frozen,
        vmas: &[Vma],
        behind: Option<Marks>,
        compare_all: bool,
    ) -> Result<Looked> {
        if behind.is_some() && !compare_all {
            let before = &self.hashes;
            let known = |page| before.get(page).is_some();
            let most = before.most_pages();
            self.epoch.begin_protecting(vmas, known, most);
        }
        let begun = monotonic_ns();
        let told = self.events.told(frozen.threads()[0]);
        let state = bare_state(frozen, &self.target, &mut self.live, vmas, told);
        let state_ns = monotonic_ns() - begun;
        // What was begun has to be ended, whatever became of the state.
        let (dirty, behind) = rotate(&mut self.epoch, &self.hashes, vmas, behind, compare_all)?;
        Ok(Looked {
            dirty,
            behind,
            state: state?,
            state_ns,
        })
    }

    /// Pages that the process has no more, those of files aside: what the snapshot has of these is known only when
    /// the descriptors are. Pages that only a file without a name still has are copied instead.
    fn removed(
        &mut self,
        vmas: &[Vma],
        dirty: &Dirty,
        shared_pages: &PageSet,
        now: &mut Hashes,
    ) -> Result<PageSet> {
        let unmapped = without_files(&self.covered).subtract(&covered(vmas));
        let shared: PageSet = compared(vmas).map(|v| v.range).collect();
        let mut removed = unmapped
            .union(&dirty.examined.subtract(&dirty.own))
            .union(&shared.subtract(shared_pages));
        if !self.synced && self.head.is_some() && !dirty.full {
            // Pages that were thrown away while nobody looked are in no epoch.
            let own = self.epoch.survey_all(vmas)?.own;
            let private = vmas.iter().filter(|v| !v.shared && !v.is_special());
            let private: PageSet = private.map(|v| v.range).collect();
            removed = removed.union(&private.subtract(&own));
        }
        let irreplaceable = irreplaceable(vmas);
        let again = removed
            .intersect(&irreplaceable)
            .union(&self.unknown(&irreplaceable, now));
        removed = removed.subtract(&irreplaceable);
        if !again.is_empty() {
            removed = removed.union(&self.copy_changed(&again, now)?);
        }
        Ok(removed)
    }

    /// Copies what is dirty, and what has changed of what others share, while the process is stopped. Returns what
    /// turned out not to be there.
    fn copy_stopped(
        &mut self,
        dirty: &Dirty,
        shared_pages: &PageSet,
        compare_all: bool,
        now: &mut Hashes,
    ) -> Result<PageSet> {
        if compare_all {
            let all = dirty.own.union(&dirty.copy).union(shared_pages);
            return self.copy_changed(&all, now);
        }
        // What does not fit the buffers is copied only where it has really changed.
        let gone = match dirty.copy.pages() > self.pipeline.capacity() {
            true => self.copy_changed(&dirty.copy, now)?,
            false => self.copy(&dirty.copy, now)?,
        };
        match shared_pages.is_empty() {
            true => Ok(gone),
            false => Ok(gone.union(&self.copy_changed(shared_pages, now)?)),
        }
    }

    /// What an audit compares: the memory of the stopped process.
    fn memory(&mut self, vmas: &[Vma]) -> Result<audit::Memory> {
        let survey = self.epoch.survey_all(vmas)?;
        let known = PageSet::from_pages(self.hashes.iter().map(|(addr, _)| addr).collect());
        audit::Memory::read(self.target.pid, vmas, &survey, &known)
    }

    /// Those of the removed pages that some snapshot or an earlier pass may hold: only these need to be taken out.
    fn to_take_out(&self, removed: &PageSet, now: &Hashes) -> PageSet {
        let ranges = removed.ranges().iter();
        let known: PageSet = ranges
            .filter(|r| now.range(**r).next().is_some())
            .copied()
            .collect();
        known.union(&removed.intersect(&self.unhashed))
    }

    /// Pages of the process that differ from what was stored; none where nothing was asked for.
    pub(super) fn compare(&self, audit: &Audit, taken: &Taken) -> Result<Vec<AuditPage>> {
        let Some(memory) = &audit.memory else {
            return Ok(Vec::new());
        };
        let snapshot = self.store.snapshot(taken.id)?;
        let wrong = memory.compare(self.target.pid, &snapshot, &audit.vmas)?;
        for page in &wrong {
            tracing::debug!(
                copied = audit.dirty.copy.contains(page.addr),
                own = audit.dirty.own.contains(page.addr),
                examined = audit.dirty.examined.contains(page.addr),
                full = audit.dirty.full,
                known = audit.now.get(page.addr).is_some(),
                removed = audit.removed.contains(page.addr),
                "audit: {:#x} in {}",
                page.addr,
                page.mapping
            );
        }
        Ok(wrong)
    }

    /// No record of writes can be trusted: contents are compared in the stop.
    fn compares_all(&self) -> bool {
        self.tracker() == TrackerKind::Hash
            || self.live.has_pinned_writers()
            || self.events.has_lasting_hazard()
    }
}

/// All mappings that are tracked were looked at: what was lost may have been anywhere, and was looked for everywhere.
fn is_all(examined: &PageSet, vmas: &[Vma]) -> bool {
    let tracked = vmas.iter().filter(|v| !v.shared && !v.is_special());
    let tracked: PageSet = tracked.map(|v| v.range).collect();
    tracked.subtract(examined).is_empty()
}

/// What is dirty, and whether all of that is protected.
fn rotate(
    epoch: &mut Epoch,
    before: &Hashes,
    vmas: &[Vma],
    behind: Option<Marks>,
    compare_all: bool,
) -> Result<(Dirty, Option<Marks>)> {
    if compare_all {
        epoch.distrust();
    } else if behind.is_some()
        && let Some(dirty) = epoch.rotate_protecting(vmas)?
    {
        return Ok((dirty, behind));
    }
    let dirty = epoch.rotate(vmas, |page| before.get(page).is_some())?;
    Ok((dirty, None))
}
