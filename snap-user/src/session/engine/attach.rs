//! Beginning to track a process, and beginning anew with each program that it runs.

use super::{EXEC_SOON, Engine, Layout, MOST_EXECS, is_mere_exec};
use crate::capture::{CaptureError, Contents, Live, preflight};
use crate::model::{PageSet, SnapshotId};
use crate::probe::Losses;
use crate::session::events::{Events, LazyProbes};
use crate::session::keeper::Keeper;
use crate::session::open::open_session;
use crate::session::pipeline::Pipeline;
use crate::session::postcopy::Caution;
use crate::session::{Options, Result, SessionError, mixed};
use crate::store::Store;
use crate::sys::proc;
use crate::track::{self, Epoch};
use std::sync::Arc;

/// What may be attached to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    /// A process that is as it was at some moment.
    Whole,
    /// Also one that a rollback has left on a mixed state: it is to go back to this snapshot.
    Any(SnapshotId),
}

impl Engine {
    /// Starts tracking a process, in its session of the store: the one that it has from before, or
    /// a new one.
    ///
    /// # Errors
    /// Also where a rollback has left it on a mixed state.
    pub fn attach(store: &Store, pid: i32, options: &Options) -> Result<Self> {
        Self::attach_sharing(store, pid, options, &LazyProbes::new(options.probes))
    }

    /// The same for a rollback, which makes a mixed state whole: in the session of its snapshot, where that is one of the
    /// process's.
    pub(in crate::session) fn attach_to_put_back(
        store: &Store,
        pid: i32,
        to: SnapshotId,
        options: &Options,
    ) -> Result<Self> {
        let probes = LazyProbes::new(options.probes);
        Self::attach_sharing_to_put_back(store, pid, to, options, &probes)
    }

    /// The same with probes that others use as well.
    pub(in crate::session) fn attach_sharing_to_put_back(
        store: &Store,
        pid: i32,
        to: SnapshotId,
        options: &Options,
        probes: &LazyProbes,
    ) -> Result<Self> {
        Self::attach_any(store, pid, options, probes, Wanted::Any(to))
    }

    /// The same with probes that others use as well.
    pub(in crate::session) fn attach_sharing(
        store: &Store,
        pid: i32,
        options: &Options,
        probes: &LazyProbes,
    ) -> Result<Self> {
        Self::attach_any(store, pid, options, probes, Wanted::Whole)
    }

    fn attach_any(
        store: &Store,
        pid: i32,
        options: &Options,
        probes: &LazyProbes,
        wanted: Wanted,
    ) -> Result<Self> {
        let mut attempt = 1;
        loop {
            match Self::attach_once(store, pid, options, probes, wanted) {
                // It replaced its program just then.
                Err(e) if attempt < MOST_EXECS && is_mere_exec(pid, &e) => {
                    attempt += 1;
                    std::thread::sleep(EXEC_SOON);
                }
                outcome => return outcome.map_err(|e| e.of_process(pid)),
            }
        }
    }

    fn attach_once(
        store: &Store,
        pid: i32,
        options: &Options,
        probes: &LazyProbes,
        wanted: Wanted,
    ) -> Result<Self> {
        let target = preflight(pid)?;
        let to = match wanted {
            Wanted::Whole => None,
            Wanted::Any(to) => Some(to),
        };
        // Before anything is put into it.
        let mixed = mixed::is_mixed(store, pid)?;
        if mixed && wanted == Wanted::Whole {
            return Err(mixed::refusal(pid).into());
        }
        let mut events = Events::new(pid, probes);
        let attached = track::attach(pid, options.tracker).map_err(|e| named(pid, e))?;
        events.brk = attached.brk;
        let live = Live::read(pid, events.observes())?;
        // Before a session is begun for it: it may be gone by now.
        let layout = layout(pid)?;
        let (mut session, head, hashes) = open_session(store, &target, to)?;
        session.set_durability(options.durability);
        let contents = match head {
            Some(head) => Contents::after(&store.snapshot(head)?.manifest()?.state.saved),
            None => Contents::default(),
        };
        let covered = PageSet::from_pages(hashes.iter().map(|(addr, _)| addr).collect());
        Ok(Self {
            keeper: Keeper::start(
                session.pruner(),
                options.keep,
                options.bounded.then(|| store.dir()),
                options.tree,
            )?,
            session: session.id(),
            hold: false,
            held: None,
            mixed,
            losses: Losses::default(),
            layout,
            epoch: Epoch::new(attached.tracker, events.is_on()),
            cpu_ns: proc::cpu_time_ns(pid).unwrap_or(0),
            pipeline: Pipeline::start(session, options.memory, options.mirror),
            hashes: Arc::new(hashes),
            target,
            store: store.clone(),
            options: *options,
            events,
            live,
            head,
            synced: false,
            flight: None,
            contents,
            instead: attached.instead,
            profiling: None,
            hurry: None,
            caution: Caution::default(),
            // What is unmapped since the last snapshot has to leave the chain.
            covered,
            unhashed: PageSet::new(),
            processors: std::thread::available_parallelism().map_or(1, usize::from),
        })
    }

    /// A new program, a new address space: tracking starts over, the chain goes on.
    pub(super) fn reattach(&mut self) -> Result<()> {
        let pid = self.target.pid;
        self.epoch.let_go();
        let attached = track::attach(pid, self.options.tracker).map_err(|e| named(pid, e))?;
        self.instead = attached.instead;
        // Of what was mixed nothing is left.
        if self.mixed {
            self.unmark_mixed();
            self.mixed = false;
        }
        self.events.brk = attached.brk;
        self.layout = layout(pid)?;
        self.synced = false;
        self.epoch = Epoch::new(attached.tracker, self.events.is_on());
        self.live = Live::read(pid, self.events.observes())?;
        self.target.exe = proc::exe(pid).map_err(|e| CaptureError::from_sys(pid, e))?;
        self.target.cmdline = proc::cmdline(pid).map_err(|e| CaptureError::from_sys(pid, e))?;
        Ok(())
    }
}

pub(super) fn layout(pid: i32) -> Result<Layout> {
    let stat = proc::stat(pid, None).map_err(|e| CaptureError::from_sys(pid, e))?;
    let mm = proc::mm_fields(&stat);
    Ok((mm.start_stack, mm.arg_start))
}

/// Names the usual reasons for which a process cannot be tracked.
fn named(pid: i32, error: track::TrackError) -> SessionError {
    match error {
        track::TrackError::Sys(e) => CaptureError::from_sys(pid, e).into(),
        other => other.into(),
    }
}
