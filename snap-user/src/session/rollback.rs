//! `rollback`: putting a live process back to one of its snapshots, in place.

use super::engine::{Engine, is_mere_exec};
use super::rollback_parts::Prepared;
use super::rollback_world::Live;
use super::{LogEntry, Options, Result, RolledBack, SessionError, control, find};
use crate::capture::{CaptureError, preflight};
use crate::model::{PageRange, PageSet, SnapshotId};
use crate::restore::{Applied, RestoreError, apply, fault, files, plan};
use crate::store::{Store, StoreError};
use crate::sys::arch::USER_END;
use crate::sys::{Freeze, Frozen, Hold, monotonic_ns};
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;

/// Rolls `pid` back to a snapshot: through the ksnap that watches it, or right here.
pub fn rollback(dir: &Path, pid: i32, reference: &str, options: &Options) -> Result<RolledBack> {
    let store = Store::open(dir)?;
    let found = store.resolve(reference, Some(pid));
    if let Some(mut watcher) = control::connect(dir, pid)? {
        control::refuse_own(options.own)?;
        return watcher.rollback(&control::named(found, reference)?);
    }
    let id = found?;
    Engine::attach_to_put_back(&store, pid, id, options)?.rollback(id)
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
            true => match preflight(pid) {
                Err(why) => why.into(),
                Ok(_) => of_another(dir, pid, reference).unwrap_or(error),
            },
            false => error,
        }
    })
}

/// Why a process cannot go back to a snapshot that is another one's.
fn of_another(dir: &Path, pid: i32, reference: &str) -> Option<SessionError> {
    // These mean one of each process.
    if reference.starts_with("latest") || reference.starts_with('@') {
        return None;
    }
    let other = find(dir, reference, None).ok()?;
    let what = format!(
        "snapshot {reference} of process {pid}: it is of process {} ({}), and ksnap restore {reference} brings it back as a process of its own; ksnap log --pid {pid} lists those that this one can go back to",
        other.pid, other.comm
    );
    Some(StoreError::NotFound { what }.into())
}

/// What was done inside the stop.
struct PutBack {
    applied: Applied,
    /// Pages that may have been written.
    pages: PageSet,
    notes: Vec<String>,
}

/// Says of an error of a process that is to go back whether the process is gone, or replaces its program.
pub(super) fn of_one_to_put_back(pid: i32, error: SessionError) -> SessionError {
    match is_mere_exec(pid, &error) {
        true => RestoreError::Refused {
            pid,
            reasons: vec![format!(
                "it replaces its program (exec) just now, and cannot go back to one that it had before: {error}"
            )],
        }
        .into(),
        false => error.of_process(pid),
    }
}

impl Engine {
    /// As [`Engine::rollback`], to what a reference means of its process.
    pub(super) fn rollback_to(&mut self, reference: &str) -> Result<RolledBack> {
        let id = match SnapshotId::from_hex(reference) {
            Some(id) => id,
            // It can read its own session, and goes back to no other.
            None => {
                let (session, pid) = (self.session(), self.target.pid);
                self.store.resolve_in_session(session, reference, pid)?
            }
        };
        self.rollback(id)
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
            self.did_not_go_back();
        }
        done.map_err(|e| of_one_to_put_back(pid, e))
    }

    /// A rollback was refused, or failed.
    pub(super) fn did_not_go_back(&mut self) {
        // Pages may have been looked at or protected for it, which no snapshot has.
        self.epoch.abort();
        if self.mixed {
            // What was written until it failed nobody has told.
            self.synced = false;
            self.epoch.distrust();
            self.epoch.remapped(PageRange::new(0, USER_END));
        }
    }

    fn go_back(&mut self, to: SnapshotId) -> Result<RolledBack> {
        let mut prepared = self.prepare_to_go_back(to)?;
        let pid = self.target.pid;
        let stop = monotonic_ns();
        let options = Freeze {
            hold: Hold::JobControl,
            timeout: Duration::from_secs(2),
        };
        let mut frozen =
            Frozen::freeze(pid, options).map_err(|e| CaptureError::from_sys(pid, e))?;
        fault::point("stopped");
        let frozen_at = monotonic_ns();
        let done = match self.put_back(&mut frozen, &mut prepared) {
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
        let mut notes = done.notes;
        notes.extend(self.follow_back(&prepared, &done.pages));
        Ok(RolledBack {
            to,
            seq: prepared.snapshot.header().seq,
            written: done.applied.written,
            discarded: done.applied.discarded,
            stop_ns,
            stopped,
            notes,
        })
    }

    /// The part inside the stop: what is dirty, the plan, and its application.
    fn put_back(&mut self, frozen: &mut Frozen, prepared: &mut Prepared) -> Result<PutBack> {
        let pid = self.target.pid;
        let begun = monotonic_ns();
        let mut found = self.look_stopped(frozen, prepared)?;
        let looked = monotonic_ns();
        let planned = plan(&prepared.target, &found.live, &Live { pid })?;
        let planned_at = monotonic_ns();
        let writing = self.load_rest(&planned, &mut found, prepared)?;
        let loaded = monotonic_ns();
        let (target, live) = (&prepared.target, &found.live);
        let process = self.target.pidfd.as_fd();
        let options = files::Options::default();
        // The last thing that may be refused.
        let made =
            files::make(&planned.files, target, &[(pid, process)], &options).map_err(|e| {
                RestoreError::Refused {
                    pid,
                    reasons: vec![e.to_string()],
                }
            })?;
        self.mark_mixed()?;
        let pages = writing.pages(prepared);
        let files = (&made, &writing.changed[..]);
        let applied = apply(frozen, &planned, (target, live), &pages, files, process);
        // From here on it is whole, or nothing of it was touched, or it stays marked.
        match &applied {
            Err(RestoreError::Halfway { .. }) => {}
            Err(_) if self.mixed => {}
            _ => self.unmark_mixed(),
        }
        let applied = applied?;
        tracing::debug!(
            full = found.dirty.full,
            examined = found.dirty.examined.pages(),
            may_differ = writing.may_differ.pages(),
            look_us = (looked - begun) / 1000,
            plan_us = (planned_at - looked) / 1000,
            load_us = (loaded - planned_at) / 1000,
            apply_us = (monotonic_ns() - loaded) / 1000,
            "put back"
        );
        let mut notes = planned.notes;
        notes.extend(made.notes.iter().chain(&applied.notes).cloned());
        Ok(PutBack {
            applied,
            pages: writing.may_differ,
            notes,
        })
    }
}
