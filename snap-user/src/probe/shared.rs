//! One set of loaded probes for several watched processes.
//!
//! Every loaded set costs all system calls of the machine its own run of each program, and memory for a
//! ring buffer. So the watchers of one ksnap share one: whoever drains the ring buffer sorts what is in it
//! into a queue for each.

use super::error::ProbeError;
use super::event::Event;
use super::marks::Marks;
use super::probes::{Drained, Probes, ProgramStats};
use super::saver::{Losses, Saved, Window};
use super::{FaultSource, ProbeOptions};
use crate::model::{Observed, Page, Referent};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Events that wait for one watcher, at most; what is more counts as lost, as when the ring buffer is full.
const LONGEST_QUEUE: usize = 1 << 16;
/// Saved pages that wait for one watcher, at most.
const MOST_SAVED: usize = 8192;

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

#[derive(Default)]
struct Queue {
    events: Vec<Event>,
    lost: u64,
    saved: Vec<Kept>,
}

/// A saved page that another watcher came upon.
struct Kept {
    window: u64,
    order: u64,
    page: u64,
    bytes: Box<Page>,
}

/// Whose event is it?
#[derive(Default)]
struct Queues {
    queues: BTreeMap<u32, Queue>,
    /// Watched process that a tracked child descends from.
    children: BTreeMap<u32, u32>,
    /// Saved pages that no queue had room for.
    lost_saved: u64,
}

impl Queues {
    fn open(&mut self, tgid: u32) {
        self.queues.entry(tgid).or_default();
    }

    /// Gives the processes that nobody watches any more.
    fn close(&mut self, tgid: u32) -> Vec<u32> {
        self.queues.remove(&tgid);
        let of_others = &self.queues;
        let mut gone = vec![tgid];
        self.children.retain(|child, owner| {
            if *owner == tgid && !of_others.contains_key(child) {
                gone.push(*child);
            }
            *owner != tgid
        });
        gone
    }

    /// Forgets a child. `false` for one that has a watcher of its own.
    fn forget(&mut self, child: u32) -> bool {
        self.children.remove(&child);
        !self.queues.contains_key(&child)
    }

    fn sort_in(&mut self, event: &Event) {
        let Some(tgid) = event.tgid() else {
            return self.queues.values_mut().for_each(|queue| queue.push(event));
        };
        let owner = match self.queues.contains_key(&tgid) {
            true => Some(tgid),
            false => self.children.get(&tgid).copied(),
        };
        match *event {
            Event::Fork { child, .. } => {
                if let Some(owner) = owner {
                    self.children.insert(child, owner);
                }
            }
            Event::Exit { last: true, .. } => {
                self.children.remove(&tgid);
            }
            _ => {}
        }
        match owner.and_then(|owner| self.queues.get_mut(&owner)) {
            Some(queue) => queue.push(event),
            // Its fork was among the lost events: everyone looks at it.
            None => self.queues.values_mut().for_each(|queue| queue.push(event)),
        }
    }

    fn keep_saved(&mut self, saved: Saved<'_>) {
        let Some(queue) = self.queues.get_mut(&saved.tgid) else {
            return;
        };
        if queue.saved.len() >= MOST_SAVED {
            self.lost_saved += 1;
            return;
        }
        queue.saved.push(Kept {
            window: saved.window,
            order: saved.order,
            page: saved.page,
            bytes: Box::new(*saved.bytes),
        });
    }

    fn take_saved(&mut self, tgid: u32, handle: &mut impl FnMut(Saved<'_>)) {
        let Some(queue) = self.queues.get_mut(&tgid) else {
            return;
        };
        for kept in queue.saved.drain(..) {
            handle(Saved {
                window: kept.window,
                order: kept.order,
                tgid,
                page: kept.page,
                bytes: &kept.bytes,
            });
        }
    }

    fn drop_saved(&mut self, tgid: u32) {
        if let Some(queue) = self.queues.get_mut(&tgid) {
            queue.saved = Vec::new();
        }
    }

    /// Moves what waits for a watcher into `batch`. Returns how much was lost for it so far.
    fn take(&mut self, tgid: u32, batch: &mut Vec<Event>) -> u64 {
        let Some(queue) = self.queues.get_mut(&tgid) else {
            return 0;
        };
        std::mem::swap(&mut queue.events, batch);
        queue.lost
    }
}

impl Queue {
    fn push(&mut self, event: &Event) {
        if self.events.len() >= LONGEST_QUEUE {
            self.lost += self.events.len() as u64;
            self.events.clear();
        }
        self.events.push(*event);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(tgid: u32, page: u64) -> Event {
        Event::Fault {
            tgid,
            tid: tgid,
            page,
            ip: 0,
            time_ns: 0,
            user: true,
            remote: false,
        }
    }

    fn fork(parent: u32, child: u32) -> Event {
        Event::Fork {
            parent,
            parent_tid: parent,
            child,
            shares_memory: true,
            time_ns: 0,
        }
    }

    fn taken(queues: &mut Queues, tgid: u32) -> Vec<Event> {
        let mut batch = Vec::new();
        queues.take(tgid, &mut batch);
        batch
    }

    fn two() -> Queues {
        let mut queues = Queues::default();
        queues.open(1);
        queues.open(2);
        queues
    }

    #[test]
    fn each_watcher_gets_the_events_of_its_process_and_of_that_ones_children() {
        let mut queues = two();
        let events = [
            fork(1, 11),
            fault(2, 5),
            fault(11, 6),
            fork(11, 12),
            fault(12, 7),
        ];
        events.iter().for_each(|event| queues.sort_in(event));
        assert_eq!(taken(&mut queues, 2), [fault(2, 5)]);
        assert_eq!(
            taken(&mut queues, 1),
            [fork(1, 11), fault(11, 6), fork(11, 12), fault(12, 7)]
        );
        assert_eq!(taken(&mut queues, 1), []);
    }

    #[test]
    fn what_concerns_nobody_in_particular_everyone_gets() {
        let mut queues = two();
        queues.sort_in(&fault(99, 1));
        assert_eq!(taken(&mut queues, 1), [fault(99, 1)]);
        assert_eq!(taken(&mut queues, 2), [fault(99, 1)]);
    }

    #[test]
    fn a_child_with_a_watcher_of_its_own_stays_tracked() {
        let mut queues = two();
        queues.sort_in(&fork(1, 2));
        queues.sort_in(&fork(1, 3));
        assert!(!queues.forget(2), "watched itself");
        assert_eq!(queues.close(1), [1, 3]);
        queues.sort_in(&fault(2, 9));
        assert_eq!(taken(&mut queues, 2), [fault(2, 9)]);
    }

    fn save(queues: &mut Queues, tgid: u32, page: u64) {
        queues.keep_saved(Saved {
            window: 1,
            order: page,
            tgid,
            page,
            bytes: &[page as u8; _],
        });
    }

    fn saved(queues: &mut Queues, tgid: u32) -> Vec<(u64, u8)> {
        let mut pages = Vec::new();
        queues.take_saved(tgid, &mut |s: Saved<'_>| pages.push((s.page, s.bytes[0])));
        pages
    }

    #[test]
    fn a_saved_page_that_another_watcher_came_upon_waits_for_its_own() {
        let mut queues = two();
        for (tgid, page) in [(1, 5), (2, 6), (1, 7)] {
            save(&mut queues, tgid, page);
        }
        assert_eq!(saved(&mut queues, 1), [(5, 5), (7, 7)]);
        assert_eq!(saved(&mut queues, 1), []);
        queues.drop_saved(2);
        assert_eq!(saved(&mut queues, 2), []);
    }

    #[test]
    fn saved_pages_that_find_no_room_count_as_lost() {
        let mut queues = two();
        (0..=MOST_SAVED as u64).for_each(|page| save(&mut queues, 1, page));
        save(&mut queues, 99, 1);
        assert_eq!(queues.lost_saved, 1);
        assert_eq!(saved(&mut queues, 1).len(), MOST_SAVED);
    }

    #[test]
    fn a_queue_that_nobody_takes_from_is_bounded_and_its_loss_is_told() {
        let mut queues = two();
        for page in 0..=LONGEST_QUEUE as u64 {
            queues.sort_in(&fault(1, page));
        }
        let mut batch = Vec::new();
        assert_eq!(queues.take(1, &mut batch), LONGEST_QUEUE as u64);
        assert_eq!(batch.len(), 1);
        assert_eq!(queues.take(2, &mut batch), 0, "not for the other one");
    }
}
