//! `rollback`: putting a live process back to one of its snapshots, in place.

use super::engine::{Engine, covered, is_mere_exec};
use super::rollback_load::{Ahead, held, load, missing, pages_of, stack_tops};
use super::rollback_world::Live;
use super::{LogEntry, Options, Result, RolledBack, SessionError, control, find};
use crate::capture::{
    CaptureError, changed_files, compared, compared_pages, frozen_state, preflight, saved_ranges,
    without_files,
};
use crate::image::{PageSource, SessionId};
use crate::model::{PageRange, PageSet, ProcessState, SnapshotId, Vma};
use crate::restore::{Applied, Pages, RestoreError, RestorePlan, apply, fault, files, plan};
use crate::store::{Snapshot, Store, StoreError};
use crate::sys::arch::USER_END;
use crate::sys::{Freeze, Frozen, Hold, monotonic_ns};
use crate::track::TrackerKind;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use xxhash_rust::xxh3::xxh3_128;

/// Rolls `pid` back to a snapshot: through the ksnap that watches it, or right here.
pub fn rollback(dir: &Path, pid: i32, reference: &str, options: &Options) -> Result<RolledBack> {
    let store = Store::open(dir)?;
    let found = store.resolve(reference, Some(pid));
    if let Some(mut watcher) = control::connect(dir, pid)? {
        control::refuse_own(options.own)?;
        return match found {
            Ok(id) => watcher.rollback(&id.to_string()),
            // It has the key of what it stores.
            Err(error) if error.is_sealed() => watcher.rollback(reference),
            Err(error) => Err(error.into()),
        };
    }
    let id = found?;
    Engine::attach_to_put_back(&store, pid, options)?.rollback(id)
}

/// The snapshot that a process is to go back to; `None` where only the ksnap that watches the process can read it. Where
/// there is none, a process that could not go back to any is the better reason.
pub fn find_to_go_back_to(dir: &Path, pid: i32, reference: &str) -> Result<Option<LogEntry>> {
    let found = find(dir, reference, Some(pid));
    if let Err(SessionError::Store(error)) = &found
        && error.is_sealed()
        && control::connect(dir, pid)?.is_some()
    {
        return Ok(None);
    }
    found.map(Some).map_err(|error| {
        let nothing = matches!(
            error,
            SessionError::Store(StoreError::NotFound { .. } | StoreError::NoStore { .. })
        );
        match nothing && !matches!(control::connect(dir, pid), Ok(Some(_))) {
            true => preflight(pid).err().map_or(error, SessionError::from),
            false => error,
        }
    })
}

/// What was done inside the stop.
struct PutBack {
    applied: Applied,
    /// Pages that may have been written.
    pages: PageSet,
    notes: Vec<String>,
}

impl Engine {
    /// As [`Engine::rollback`], to what a reference means of its process.
    pub(super) fn rollback_to(&mut self, reference: &str) -> Result<RolledBack> {
        let id = match SnapshotId::from_hex(reference) {
            Some(id) => id,
            None => self.store.resolve(reference, Some(self.target.pid))?,
        };
        self.rollback(id)
    }

    /// The keys for which its snapshots are sealed.
    pub(super) fn recipients(&self) -> Result<Vec<String>> {
        Ok(self.store.session_info(self.session())?.recipients)
    }

    /// Puts the process back to a snapshot of its session, backwards or forwards. Snapshots that
    /// follow have it as their parent.
    ///
    /// # Errors
    /// A refusal leaves the process as it was. A failure halfway leaves it stopped.
    pub fn rollback(&mut self, to: SnapshotId) -> Result<RolledBack> {
        let pid = self.target.pid;
        let done = self.go_back(to);
        if done.is_err() {
            // Pages may have been looked at or protected for it, which no snapshot has.
            self.epoch.abort();
        }
        if self.mixed {
            // What was written until it failed nobody has told.
            self.synced = false;
            self.epoch.distrust();
            self.epoch.remapped(PageRange::new(0, USER_END));
        }
        done.map_err(|e| match is_mere_exec(pid, &e) {
            true => RestoreError::Refused {
                pid,
                reasons: vec![format!(
                    "it replaces its program (exec) just now, and cannot go back to one that it had before: {e}"
                )],
            }
            .into(),
            false => e.of_process(pid),
        })
    }

    fn go_back(&mut self, to: SnapshotId) -> Result<RolledBack> {
        if let Some(Err(e)) = self.settle() {
            tracing::warn!("the snapshot before the rollback failed: {e}");
        }
        self.tick()?;
        let store = self.store.clone();
        let snapshot = store.snapshot(to)?;
        self.check_session(snapshot.header().session)?;
        // It is to be the head, and must not be pruned until it is.
        self.keeper.pin(to)?;
        let target = snapshot.manifest()?.state;
        let pid = self.target.pid;

        // Everything that can be loaded ahead of the stop.
        let mut ahead = Ahead::default();
        match self.synced {
            true => self.load_differing(&snapshot, &mut ahead)?,
            false => self.load_compared(&snapshot, &mut ahead)?,
        }
        for saved in &target.saved {
            let look = files::look_at(pid, &ProcessState::default(), saved);
            if look.is_none_or(|now| now != saved.content) {
                load(&snapshot, &pages_of(&snapshot, saved)?, &mut ahead.content)?;
            }
        }
        self.load_written(&snapshot, &mut ahead)?;
        load(&snapshot, &stack_tops(&target), &mut ahead.content)?;
        let vmas = self.maps()?;
        if self.events.take_described() {
            self.live.look_again();
        }
        self.live.refresh(&vmas, &|| self.events.referents())?;

        let stop = monotonic_ns();
        let options = Freeze {
            hold: Hold::JobControl,
            timeout: Duration::from_secs(2),
        };
        let mut frozen =
            Frozen::freeze(pid, options).map_err(|e| CaptureError::from_sys(pid, e))?;
        fault::point("stopped");
        let frozen_at = monotonic_ns();
        let done = match self.put_back(&mut frozen, &snapshot, &target, &mut ahead) {
            Ok(done) => done,
            Err(e) => {
                if matches!(e, SessionError::Restore(RestoreError::Halfway { .. })) {
                    self.mixed = true;
                    frozen.leave_stopped();
                }
                return Err(e);
            }
        };
        self.mixed = false;
        let stopped = frozen.is_job_stopped();
        let applied_at = monotonic_ns();
        frozen.thaw();
        let stop_ns = monotonic_ns() - stop;
        tracing::debug!(
            freeze_us = (frozen_at - stop) / 1000,
            apply_us = (applied_at - frozen_at) / 1000,
            stop_us = stop_ns / 1000,
            "rolled back"
        );
        // Until it is followed, as by an exec at this moment, nothing is known of it.
        self.synced = false;
        self.epoch.distrust();
        let mut notes = done.notes;
        if let Err(e) = self.follow(to, &target, &done.pages, &ahead, &snapshot) {
            // It went back, and on, all the same.
            self.epoch.abort();
            notes.push(format!("the next snapshot looks at all of it: {e}"));
        }
        Ok(RolledBack {
            to,
            seq: snapshot.header().seq,
            written: done.applied.written,
            discarded: done.applied.discarded,
            stop_ns,
            stopped,
            notes,
        })
    }

    /// The part inside the stop: what is dirty, the plan, and its application.
    fn put_back(
        &mut self,
        frozen: &mut Frozen,
        snapshot: &Snapshot,
        target: &ProcessState,
        ahead: &mut Ahead,
    ) -> Result<PutBack> {
        let pid = self.target.pid;
        let begun = monotonic_ns();
        let vmas = self.maps()?;
        // It runs for that, and what it writes is looked for next.
        self.live.ask(frozen, &vmas, true);
        self.events.drain(&mut self.epoch);
        let vmas = self.maps()?;
        let known = &self.hashes;
        // Only what was protected has a record of its writes.
        let recorded = self.epoch.is_armed() && self.tracker() != TrackerKind::Hash;
        let dirty = self.epoch.rotate(&vmas, |page| known.get(page).is_some())?;
        let rotated = monotonic_ns();
        if self.events.take_described() {
            self.live.look_again();
            self.live.look(&vmas)?;
        }
        let told = self.events.told(frozen.threads()[0]);
        let live = frozen_state(frozen, &self.target, &mut self.live, &vmas, told)?;
        let planned = plan(target, &live, &Live { pid })?;
        let planned_at = monotonic_ns();
        let may_differ = self.pages_to_write(
            &planned,
            &ahead.differing,
            &dirty,
            (&target.vmas, &vmas),
            snapshot,
        )?;
        let changed = changed_files(target, |saved| files::look_at(pid, &live, saved));
        for saved in &changed {
            load(snapshot, &pages_of(snapshot, saved)?, &mut ahead.content)?;
        }
        let late = missing(snapshot, &may_differ, &ahead.content)?;
        snapshot.read_pages(&late, &mut |addr, page| ahead.content.insert(addr, page))?;
        let loaded = monotonic_ns();
        let written = match recorded {
            true => ahead.differing.union(&dirty.copy),
            false => ahead.differing.clone(),
        };
        let pages = Pages {
            may_differ: &may_differ,
            written: &written,
            content: &ahead.content,
        };
        let process = &self.target.pidfd;
        let options = files::Options::default();
        // The last thing that may be refused.
        let made =
            files::make(&planned.files, target, &live, pid, process, &options).map_err(|e| {
                RestoreError::Refused {
                    pid,
                    reasons: vec![e.to_string()],
                }
            })?;
        let states = (target, &live);
        self.mark_mixed()?;
        let applied = apply(frozen, &planned, states, &pages, (&made, &changed), process);
        // From here on it is whole, or nothing of it was touched, or it stays marked.
        match &applied {
            Err(RestoreError::Halfway { .. }) => {}
            Err(_) if self.mixed => {}
            _ => self.unmark_mixed(),
        }
        let applied = applied?;
        tracing::debug!(
            full = dirty.full,
            examined = dirty.examined.pages(),
            may_differ = may_differ.pages(),
            loaded_late = late.len(),
            look_us = (rotated - begun) / 1000,
            plan_us = (planned_at - rotated) / 1000,
            load_us = (loaded - planned_at) / 1000,
            apply_us = (monotonic_ns() - loaded) / 1000,
            "put back"
        );
        let mut notes = planned.notes;
        notes.extend(made.notes.iter().chain(&applied.notes).cloned());
        Ok(PutBack {
            applied,
            pages: may_differ,
            notes,
        })
    }

    fn check_session(&self, session: SessionId) -> Result<()> {
        if session == self.session() {
            return Ok(());
        }
        Err(SessionError::Usage(format!(
            "that snapshot is of another process than {} as it runs now; a rollback works in place, on the same process",
            self.target.pid
        )))
    }

    /// Pages whose content may not be the snapshot's: those that differ between the two snapshots,
    /// those written since, those mapped anew, and all shared ones.
    fn pages_to_write(
        &self,
        planned: &RestorePlan,
        differing: &PageSet,
        dirty: &crate::track::Dirty,
        (target, vmas): (&[Vma], &[Vma]),
        snapshot: &Snapshot,
    ) -> Result<PageSet> {
        let shared: PageSet = compared(vmas).map(|v| v.range).collect();
        // A program break that grows again makes address space as well.
        let fresh = planned
            .fresh()
            .union(&covered(target).subtract(&covered(vmas)));
        // Where page tables were looked at: pages that the snapshot has and the process lost.
        let lost = held(snapshot, &dirty.examined.subtract(&dirty.own))?;
        let shared_now = compared_pages(self.target.pid, vmas);
        Ok(differing
            .union(&dirty.copy)
            .union(&lost)
            .union(&held(snapshot, &fresh.union(&shared))?)
            .union(&shared_now))
    }

    /// The snapshot is the head from now on.
    fn follow(
        &mut self,
        to: SnapshotId,
        target: &ProcessState,
        pages: &PageSet,
        ahead: &Ahead,
        snapshot: &Snapshot,
    ) -> Result<()> {
        let (vmas, saved) = (&target.vmas, &target.saved);
        let table = snapshot.page_table()?;
        let now = covered(&self.maps()?);
        let hashes = Arc::make_mut(&mut self.hashes);
        let changed = pages.union(&ahead.not_as_head);
        for range in changed.ranges() {
            hashes.remove_range(*range);
        }
        for addr in changed.iter() {
            if let Some(page) = ahead.content.get(addr) {
                hashes.insert(addr, xxh3_128(page));
            }
        }
        // What is known must be what the snapshot has, no more: pages of mappings that are gone.
        let stale: Vec<u64> = hashes
            .iter()
            .map(|(addr, _)| addr)
            .filter(|a| table.get(*a).is_none())
            .collect();
        for range in PageSet::from_pages(stale).ranges() {
            hashes.remove_range(*range);
        }
        self.head = Some(to);
        self.synced = true;
        self.covered = covered(vmas).union(&now).union(&saved_ranges(saved));
        self.contents.forget(saved);
        self.epoch.commit();
        // Written by us, without a fault: open for writing until the next rearm.
        self.epoch.written(&without_files(pages));
        Ok(())
    }
}
