//! The parts of a rollback that do not change the process: what is prepared, found and loaded before it, and how its
//! snapshots go on behind it.

use super::engine::{Engine, covered};
use super::rollback_load::{Ahead, held, load, missing, pages_of, stack_tops};
use super::{Result, SessionError};
use crate::capture::{
    changed_files, compared, compared_pages, frozen_state, saved_ranges, without_files,
};
use crate::image::{PageSource, SessionId};
use crate::model::{PageSet, ProcessState, SavedFile, SnapshotId, Vma};
use crate::restore::{Pages, RestorePlan, files};
use crate::store::Snapshot;
use crate::sys::Frozen;
use crate::track::{Dirty, TrackerKind};
use std::sync::Arc;
use xxhash_rust::xxh3::xxh3_128;

/// A way back that is prepared while the process runs.
pub(super) struct Prepared {
    pub(super) snapshot: Snapshot,
    pub(super) target: ProcessState,
    ahead: Ahead,
}

/// What a stopped process is found to be.
pub(super) struct Found {
    vmas: Vec<Vma>,
    pub(super) live: ProcessState,
    pub(super) dirty: Dirty,
    /// Pages that have surely been written.
    written: PageSet,
}

/// What is written into a process.
pub(super) struct Writing {
    /// Pages that may not be as they shall be.
    pub(super) may_differ: PageSet,
    /// Of them, those that have surely been written.
    written: PageSet,
    /// Saved files that are not as they shall be.
    pub(super) changed: Vec<SavedFile>,
}

impl Writing {
    /// With what all of it shall be.
    pub(super) fn pages<'a>(&'a self, prepared: &'a Prepared) -> Pages<'a> {
        Pages {
            may_differ: &self.may_differ,
            written: &self.written,
            content: &prepared.ahead.content,
        }
    }
}

impl Engine {
    /// Loads everything that can be loaded ahead of the stop.
    pub(super) fn prepare_to_go_back(&mut self, to: SnapshotId) -> Result<Prepared> {
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
        Ok(Prepared {
            snapshot,
            target,
            ahead,
        })
    }

    /// What the stopped process is, and what of it is dirty.
    pub(super) fn look_stopped(
        &mut self,
        frozen: &mut Frozen,
        prepared: &Prepared,
    ) -> Result<Found> {
        let vmas = self.maps()?;
        // It runs for that, and what it writes is looked for next.
        self.live.ask(frozen, &vmas, true);
        self.events.drain(&mut self.epoch);
        let vmas = self.maps()?;
        let known = &self.hashes;
        // Only what was protected has a record of its writes.
        let recorded = self.epoch.is_armed() && self.tracker() != TrackerKind::Hash;
        let dirty = self.epoch.rotate(&vmas, |page| known.get(page).is_some())?;
        if self.events.take_described() {
            self.live.look_again();
            self.live.look(&vmas)?;
        }
        let told = self.events.told(frozen.threads()[0]);
        let live = frozen_state(frozen, &self.target, &mut self.live, &vmas, told)?;
        let differing = &prepared.ahead.differing;
        let written = match recorded {
            true => differing.union(&dirty.copy),
            false => differing.clone(),
        };
        Ok(Found {
            vmas,
            live,
            dirty,
            written,
        })
    }

    /// What the plan has written into the stopped process; loads what of it is not loaded yet.
    pub(super) fn load_rest(
        &self,
        planned: &RestorePlan,
        found: &mut Found,
        prepared: &mut Prepared,
    ) -> Result<Writing> {
        let pid = self.target.pid;
        let Prepared {
            snapshot,
            target,
            ahead,
        } = prepared;
        let may_differ = self.pages_to_write(
            planned,
            &ahead.differing,
            &found.dirty,
            (&target.vmas, &found.vmas),
            snapshot,
        )?;
        let changed = changed_files(target, |saved| files::look_at(pid, &found.live, saved));
        for saved in &changed {
            load(snapshot, &pages_of(snapshot, saved)?, &mut ahead.content)?;
        }
        let late = missing(snapshot, &may_differ, &ahead.content)?;
        snapshot.read_pages(&late, &mut |addr, page| ahead.content.insert(addr, page))?;
        Ok(Writing {
            written: std::mem::take(&mut found.written),
            changed: changed.into_iter().cloned().collect(),
            may_differ,
        })
    }

    fn check_session(&self, session: SessionId) -> Result<()> {
        if session == self.session() {
            return Ok(());
        }
        let pid = self.target.pid;
        let info = self.store.session_info(session)?;
        Err(SessionError::Usage(
            match info.is_of(pid, self.target.start_time) {
                // Whoever does not watch opens the session of the snapshot.
                true => format!(
                    "that snapshot is in an earlier session of process {pid} than the one that its watcher goes on with: \
                     end that watch first (Ctrl-C)"
                ),
                false => format!(
                    "that snapshot is of another process than {pid} as it runs now; a rollback works in place, on the same \
                     process"
                ),
            },
        ))
    }

    /// Pages whose content may not be the snapshot's: those that differ between the two snapshots,
    /// those written since, those mapped anew, and all shared ones.
    fn pages_to_write(
        &self,
        planned: &RestorePlan,
        differing: &PageSet,
        dirty: &Dirty,
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

    /// The process is back and goes on: so do its snapshots, from the one that it went to. Gives what the user should
    /// know.
    pub(super) fn follow_back(&mut self, prepared: &Prepared, pages: &PageSet) -> Option<String> {
        // Until it is followed, as by an exec at this moment, nothing is known of it.
        self.synced = false;
        self.epoch.distrust();
        let failed = self.follow(prepared, pages).err()?;
        // It went back, and on, all the same.
        self.epoch.abort();
        Some(format!("the next snapshot looks at all of it: {failed}"))
    }

    /// The snapshot is the head from now on.
    fn follow(&mut self, prepared: &Prepared, pages: &PageSet) -> Result<()> {
        let Prepared {
            snapshot,
            target,
            ahead,
        } = prepared;
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
        self.head = Some(snapshot.id());
        self.synced = true;
        self.covered = covered(vmas).union(&now).union(&saved_ranges(saved));
        self.contents.forget(saved);
        self.epoch.commit();
        // Written by us, without a fault: open for writing until the next rearm.
        self.epoch.written(&without_files(pages));
        Ok(())
    }
}
