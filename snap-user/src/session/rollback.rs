//! `rollback`: putting a live process back to one of its snapshots, in place.

use super::engine::{Engine, covered};
use super::{Options, Result, RolledBack, SessionError, control};
use crate::capture::{
    CaptureError, changed_files, compared, compared_pages, frozen_state, saved_ranges,
    without_files,
};
use crate::image::{PageSource, SessionId};
use crate::model::{Backing, PageSet, ProcessState, SavedFile, SnapshotId, Vma};
use crate::restore::{
    Applied, Content, RestoreError, RestorePlan, World, apply, can_start_thread, files, plan,
};
use crate::store::{Snapshot, Store};
use crate::sys::{Freeze, Frozen, Hold, monotonic_ns};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use xxhash_rust::xxh3::xxh3_128;

/// Rounds of loading what is written while loading.
const LOAD_ROUNDS: u32 = 5;
/// A round that loads fewer pages is the last.
const FEW_PAGES: usize = 8;

/// Rolls `pid` back to a snapshot: through the ksnap that watches it, or right here.
pub fn rollback(dir: &Path, pid: i32, reference: &str, options: &Options) -> Result<RolledBack> {
    let store = Store::open(dir)?;
    let id = store.resolve(reference, Some(pid))?;
    if let Some(mut watcher) = control::connect(dir, pid)? {
        return watcher.rollback(id);
    }
    Engine::attach(&store, pid, options)?.rollback(id)
}

/// The world that a plan for a live process depends on.
struct Live {
    pid: i32,
}

impl World for Live {
    fn can_map(&self, vma: &Vma) -> std::result::Result<(), String> {
        let Backing::File {
            path,
            deleted,
            dev,
            inode,
            ..
        } = &vma.backing
        else {
            return Ok(());
        };
        if *deleted {
            return Err("it has no name any more by which it could be opened".into());
        }
        let here = format!("/proc/{}/root{path}", self.pid);
        let meta = std::fs::metadata(here).map_err(|e| format!("it cannot be opened ({e})"))?;
        let device = (rustix::fs::major(meta.dev()), rustix::fs::minor(meta.dev()));
        match (device, meta.ino()) == (*dev, *inode) {
            true => Ok(()),
            false => Err("another file has its name now".into()),
        }
    }

    fn can_start_thread(&self, tid: i32) -> std::result::Result<(), String> {
        can_start_thread(tid)
    }
}

impl files::FileWorld for Live {
    fn look(&self, path: &str) -> std::result::Result<files::Look, String> {
        files::System { pid: self.pid }.look(path)
    }

    fn process(&self, pid: i32) -> Option<u64> {
        files::System { pid: self.pid }.process(pid)
    }

    fn pipe(&self, identity: (u64, u64)) -> Option<String> {
        files::System { pid: self.pid }.pipe(identity)
    }
}

/// What was done inside the stop.
struct PutBack {
    applied: Applied,
    /// Pages that may have been written.
    pages: PageSet,
    notes: Vec<String>,
}

impl Engine {
    /// Puts the process back to a snapshot of its session, backwards or forwards. Snapshots that
    /// follow have it as their parent.
    ///
    /// # Errors
    /// A refusal leaves the process as it was. A failure halfway leaves it stopped.
    pub fn rollback(&mut self, to: SnapshotId) -> Result<RolledBack> {
        if let Some(Err(e)) = self.settle() {
            tracing::warn!("the snapshot before the rollback failed: {e}");
        }
        self.tick()?;
        let store = self.store.clone();
        let snapshot = store.snapshot(to)?;
        self.check_session(snapshot.header().session)?;
        let target = snapshot.manifest()?.state;
        let pid = self.target.pid;

        // Everything that can be loaded ahead of the stop.
        let table = snapshot.page_table()?;
        let mut differing = match self.head {
            Some(head) => PageSet::from_pages(store.snapshot(head)?.page_table()?.diff(table)),
            // Nothing is known of what it holds now: all of it is compared.
            None => PageSet::from_pages(table.iter().map(|(addr, _)| addr).collect()),
        };
        let mut content = Content::default();
        load(&snapshot, &differing, &mut content)?;
        for saved in &target.saved {
            let look = files::look_at(pid, &ProcessState::default(), saved);
            if look.is_none_or(|now| now != saved.content) {
                load(&snapshot, &pages_of(&snapshot, saved)?, &mut content)?;
            }
        }
        // What the process writes meanwhile is loaded too, until little is left for the stop.
        for _ in 0..LOAD_ROUNDS {
            let before = content.len();
            if self.epoch.tracker().rearms_stopped() {
                break;
            }
            self.events.drain(&mut self.epoch);
            let vmas = self.maps()?;
            let Some(found) = self.epoch.precopy(&vmas)? else {
                break;
            };
            load(&snapshot, &found, &mut content)?;
            differing = differing.union(&found);
            if content.len() - before < FEW_PAGES {
                break;
            }
        }
        let vmas = self.maps()?;
        self.live.refresh(&vmas)?;

        let stop = monotonic_ns();
        let options = Freeze {
            hold: Hold::JobControl,
            timeout: Duration::from_secs(2),
        };
        let mut frozen =
            Frozen::freeze(pid, options).map_err(|e| CaptureError::from_sys(pid, e))?;
        let frozen_at = monotonic_ns();
        let done = match self.put_back(&mut frozen, &snapshot, &target, &differing, &mut content) {
            Ok(done) => done,
            Err(e) => {
                self.epoch.abort();
                if matches!(e, SessionError::Restore(RestoreError::Halfway { .. })) {
                    frozen.leave_stopped();
                }
                return Err(e);
            }
        };
        let applied_at = monotonic_ns();
        frozen.thaw();
        let stop_ns = monotonic_ns() - stop;
        tracing::debug!(
            freeze_us = (frozen_at - stop) / 1000,
            apply_us = (applied_at - frozen_at) / 1000,
            stop_us = stop_ns / 1000,
            "rolled back"
        );
        self.follow(to, &target, &done.pages, &content, &snapshot)?;
        Ok(RolledBack {
            to,
            seq: snapshot.header().seq,
            written: done.applied.written,
            discarded: done.applied.discarded,
            stop_ns,
            notes: done.notes,
        })
    }

    /// The part inside the stop: what is dirty, the plan, and its application.
    fn put_back(
        &mut self,
        frozen: &mut Frozen,
        snapshot: &Snapshot,
        target: &ProcessState,
        differing: &PageSet,
        content: &mut Content,
    ) -> Result<PutBack> {
        let pid = self.target.pid;
        self.events.drain(&mut self.epoch);
        let vmas = self.maps()?;
        let known = &self.hashes;
        let dirty = self.epoch.rotate(&vmas, |page| known.get(page).is_some())?;
        let live = frozen_state(frozen, &self.target, &mut self.live, &vmas, self.events.brk)?;
        let planned = plan(target, &live, &Live { pid })?;
        let pages =
            self.pages_to_write(&planned, differing, &dirty, (&target.vmas, &vmas), snapshot)?;
        load(snapshot, &pages, content)?;
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
        let changed = changed_files(target, |saved| files::look_at(pid, &live, saved));
        for saved in &changed {
            load(snapshot, &pages_of(snapshot, saved)?, content)?;
        }
        let states = (target, &live);
        let applied = apply(
            frozen,
            &planned,
            states,
            (&pages, content),
            (&made, &changed),
            process,
        )?;
        let mut notes = planned.notes;
        notes.extend(made.notes.iter().chain(&applied.notes).cloned());
        Ok(PutBack {
            applied,
            pages,
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
        let table = snapshot.page_table()?;
        let shared: PageSet = compared(vmas).map(|v| v.range).collect();
        // A program break that grows again makes address space as well.
        let fresh = planned
            .fresh()
            .union(&covered(target).subtract(&covered(vmas)));
        let held: PageSet = fresh
            .union(&shared)
            .union(&dirty.examined)
            .ranges()
            .iter()
            .flat_map(|range| table.range(*range))
            .map(|(addr, _)| crate::model::PageRange::covering(addr, 1))
            .collect();
        // Where page tables were looked at: pages that the snapshot has and the process lost.
        let lost = held.subtract(&dirty.own).intersect(&dirty.examined);
        let shared_now = compared_pages(self.target.pid, vmas);
        Ok(differing
            .union(&dirty.copy)
            .union(&lost)
            .union(&held.intersect(&fresh.union(&shared)))
            .union(&shared_now))
    }

    /// The snapshot is the head from now on.
    fn follow(
        &mut self,
        to: SnapshotId,
        target: &ProcessState,
        pages: &PageSet,
        content: &Content,
        snapshot: &Snapshot,
    ) -> Result<()> {
        let (vmas, saved) = (&target.vmas, &target.saved);
        let table = snapshot.page_table()?;
        let hashes = Arc::make_mut(&mut self.hashes);
        for range in pages.ranges() {
            hashes.remove_range(*range);
        }
        for addr in pages.iter() {
            if let Some(page) = content.get(addr) {
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
        self.covered = covered(vmas)
            .union(&covered(&self.maps()?))
            .union(&saved_ranges(saved));
        self.contents.forget(saved);
        self.epoch.commit();
        // Written by us, without a fault: open for writing until the next rearm.
        self.epoch.written(&without_files(pages));
        Ok(())
    }
}

/// All pages of a file's content.
fn pages_of(snapshot: &Snapshot, saved: &SavedFile) -> Result<PageSet> {
    let table = snapshot.page_table()?;
    let all = saved_ranges(std::slice::from_ref(saved));
    let pages = all.ranges().iter().flat_map(|range| table.range(*range));
    Ok(PageSet::from_pages(pages.map(|(addr, _)| addr).collect()))
}

fn load(snapshot: &Snapshot, pages: &PageSet, content: &mut Content) -> Result<()> {
    let missing: Vec<u64> = pages
        .iter()
        .filter(|addr| content.get(*addr).is_none())
        .collect();
    snapshot.read_pages(&missing, &mut |addr, page| content.insert(addr, page))?;
    Ok(())
}
