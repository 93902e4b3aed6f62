//! One set of loaded probes for several watched processes.
//!
//! Every loaded set costs all system calls of the machine its own run of each program, and memory for a
//! ring buffer. So the watchers of one ksnap share one: whoever drains the ring buffer sorts what is in it
//! into a queue for each.

use super::error::ProbeError;
use super::event::Event;
use super::marks::Marks;
use super::probes::{Drained, Probes, ProgramStats};
use super::queues::Queues;
use super::saver::{Losses, Saved, Window};
use super::{FaultSource, ProbeOptions};
use crate::model::{Observed, Referent};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Loaded probes that any number of watchers share, each on a thread of its own.
#[derive(Clone)]
pub struct SharedProbes(Arc<Mutex<Hub>>);

struct Hub {
    probes: Probes,
    queues: Queues,
}

impl SharedProbes {
    /// Loads the programs, as [`Probes::load`] does.
    ///
    /// # Errors
    /// Those of [`Probes::load`].
    pub fn load(options: &ProbeOptions) -> Result<Self, ProbeError> {
        let hub = Hub {
            probes: Probes::load(options)?,
            queues: Queues::default(),
        };
        Ok(Self(Arc::new(Mutex::new(hub))))
    }

    /// Tracks a process, until the value that this gives is dropped.
    ///
    /// # Errors
    /// Those of [`Probes::track`].
    pub fn track(&self, tgid: u32) -> Result<TrackedProcess, ProbeError> {
        let mut hub = lock(&self.0);
        // First, so that no event of it finds no queue.
        hub.queues.open(tgid);
        if let Err(e) = hub.probes.track(tgid) {
            hub.queues.close(tgid);
            return Err(e);
        }
        drop(hub);
        Ok(TrackedProcess {
            hub: self.0.clone(),
            tgid,
            batch: Vec::new(),
        })
    }
}

/// The probes as the watcher of one process sees them: its events, and those of its children.
pub struct TrackedProcess {
    hub: Arc<Mutex<Hub>>,
    tgid: u32,
    /// What was taken from the queue last; kept for its room.
    batch: Vec<Event>,
}

impl TrackedProcess {
    /// Hands over every event of this process since the last call, as [`Probes::drain`] does. Sorts those of
    /// the others into their queues meanwhile.
    pub fn drain(&mut self, mut handle: impl FnMut(&Event)) -> Drained {
        self.batch.clear();
        let drops_total = {
            let mut hub = lock(&self.hub);
            let Hub { probes, queues } = &mut *hub;
            let drained = probes.drain(|event| queues.sort_in(event));
            drained.drops_total + queues.take(self.tgid, &mut self.batch)
        };
        self.batch.iter().for_each(&mut handle);
        Drained {
            events: self.batch.len() as u64,
            drops_total,
        }
    }

    /// See [`Probes::open_window`].
    ///
    /// # Errors
    /// Those of [`Probes::open_window`].
    pub fn open_window(&self, pages: &Marks, heap_end: Option<u64>) -> Result<Window, ProbeError> {
        let mut hub = lock(&self.hub);
        // Left from an earlier window. What comes late for this one is taken once it is closed.
        hub.queues.drop_saved(self.tgid);
        hub.probes.open_window(self.tgid, pages, heap_end)
    }

    /// See [`Probes::copied_to`].
    ///
    /// # Errors
    /// Those of [`Probes::copied_to`].
    pub fn copied_to(&self, window: Window, addr: u64) -> Result<(), ProbeError> {
        lock(&self.hub).probes.copied_to(self.tgid, window, addr)
    }

    /// See [`Probes::close_window`].
    ///
    /// # Errors
    /// Those of [`Probes::close_window`].
    pub fn close_window(&self) -> Result<(), ProbeError> {
        lock(&self.hub).probes.close_window(self.tgid)
    }

    /// The same, of a window whose pages nobody wants any more.
    ///
    /// # Errors
    /// Those of [`Probes::close_window`].
    pub fn give_up_window(&self) -> Result<(), ProbeError> {
        let mut hub = lock(&self.hub);
        let closed = hub.probes.close_window(self.tgid);
        hub.queues.drop_saved(self.tgid);
        closed
    }

    /// Hands over every page of this process that was saved since the last call. `true` when nothing is under
    /// way any more.
    ///
    /// # Errors
    /// Those of [`Probes::drain_saved`].
    pub fn drain_saved(&self, mut handle: impl FnMut(Saved<'_>)) -> Result<bool, ProbeError> {
        let mut hub = lock(&self.hub);
        let Hub { probes, queues } = &mut *hub;
        queues.take_saved(self.tgid, &mut handle);
        probes.drain_saved(|saved| match saved.tgid == self.tgid {
            true => handle(saved),
            false => queues.keep_saved(saved),
        })
    }

    /// Pages that could not be saved, since the probes were loaded; of this process, or of others.
    ///
    /// # Errors
    /// Those of [`Probes::saved_lost`].
    pub fn saved_lost(&self) -> Result<u64, ProbeError> {
        let hub = lock(&self.hub);
        Ok(hub.probes.saved_lost()? + hub.queues.lost_saved)
    }

    /// Those by reason that the probes have lost themselves.
    ///
    /// # Errors
    /// Those of [`Probes::losses`].
    pub fn losses(&self) -> Result<Losses, ProbeError> {
        lock(&self.hub).probes.losses()
    }

    /// Stops tracking a child; a process with a watcher of its own stays tracked.
    ///
    /// # Errors
    /// Those of [`Probes::untrack`].
    pub fn untrack_child(&self, child: u32) -> Result<(), ProbeError> {
        let mut hub = lock(&self.hub);
        match hub.queues.forget(child) {
            true => hub.probes.untrack(child),
            false => Ok(()),
        }
    }

    /// See [`Probes::fault_source`].
    pub fn fault_source(&self) -> FaultSource {
        lock(&self.hub).probes.fault_source()
    }

    /// See [`Probes::sees_gup_writes`].
    pub fn sees_gup_writes(&self) -> bool {
        lock(&self.hub).probes.sees_gup_writes()
    }

    /// See [`Probes::sees_page_locks`].
    pub fn sees_page_locks(&self) -> bool {
        lock(&self.hub).probes.sees_page_locks()
    }

    /// See [`Probes::observes`].
    pub fn observes(&self) -> bool {
        lock(&self.hub).probes.observes()
    }

    /// See [`Probes::observe`].
    ///
    /// # Errors
    /// Those of [`Probes::observe`].
    pub fn observe(&self, tid: i32) -> Result<Observed, ProbeError> {
        lock(&self.hub).probes.observe(self.tgid as i32, tid)
    }

    /// See [`Probes::referents`].
    ///
    /// # Errors
    /// Those of [`Probes::referents`].
    pub fn referents(&self) -> Result<Option<Vec<(i32, Referent)>>, ProbeError> {
        lock(&self.hub).probes.referents(self.tgid as i32)
    }

    /// See [`Probes::times_stops`].
    pub fn times_stops(&self) -> bool {
        lock(&self.hub).probes.times_stops()
    }

    /// See [`Probes::count_costs`]; on for all who share the probes.
    ///
    /// # Errors
    /// Those of [`Probes::count_costs`].
    pub fn count_costs(&self) -> Result<(), ProbeError> {
        lock(&self.hub).probes.count_costs(true)
    }

    /// See [`Probes::program_stats`]; of all processes together.
    ///
    /// # Errors
    /// Those of [`Probes::program_stats`].
    pub fn program_stats(&self) -> Result<Vec<ProgramStats>, ProbeError> {
        lock(&self.hub).probes.program_stats()
    }
}

impl Drop for TrackedProcess {
    fn drop(&mut self) {
        let mut hub = lock(&self.hub);
        for tgid in hub.queues.close(self.tgid) {
            if let Err(e) = hub.probes.untrack(tgid) {
                tracing::debug!("{e}");
            }
        }
    }
}

/// Nothing in here is left half done by a panic of another watcher.
fn lock(hub: &Mutex<Hub>) -> MutexGuard<'_, Hub> {
    hub.lock().unwrap_or_else(PoisonError::into_inner)
}
