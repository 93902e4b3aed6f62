//! A tree of processes under snapshots: everything that its tracer's thread does.
//!
//! Each process has an engine of its own, which stays from one snapshot to the next: who has come since is attached to,
//! who has ended is let go of.

use super::control::Also;
use super::engine::{Engine, wall_clock_ns};
use super::events::LazyProbes;
use super::family;
use super::stop::Ahead;
use super::subject::nothing_taken;
use super::tree::{TakenProcess, TakenTree};
use super::tree_left::Leftovers;
use super::tree_links::Links;
use super::tree_shared::SharedSeen;
use super::tree_stop::{Flight, Member, Relations, catch};
use super::{Options, Result, SessionError, Taken, Then};
use crate::capture::CaptureError;
use crate::model::SnapshotKind;
use crate::store::Store;
use crate::sys::{Hold, monotonic_ns, proc};
use crate::track::{TrackerChoice, TrackerKind};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Parts of the memory for copied pages: those that are there at first share one half, and each that comes gets as much.
const LEAST_SHARES: u64 = 8;

/// What was done for a process ahead of the stop.
pub(super) struct Ready {
    kind: SnapshotKind,
    ahead: Ahead,
}

/// Takes snapshots of a process and all of its descendants. All of its calls must come from one thread, the tracer.
pub struct TreeEngine<'a> {
    /// Dropped first: once the engines let go of a process, another watcher may have a socket there.
    links: Option<Links>,
    pub(super) store: Store,
    pub(super) root: i32,
    /// Of each.
    pub(super) options: Options,
    pub(super) probes: &'a LazyProbes,
    pub(super) engines: Vec<Engine>,
    /// Attached to in a stop, without a tracker that is put into the process: attached to anew behind it.
    makeshift: BTreeSet<i32>,
    /// Of whom a snapshot was begun, for the tree under way.
    begun: BTreeSet<i32>,
    flight: Option<Flight>,
    every: Option<Duration>,
    /// After the engines: what the last of them leave is looked at as well.
    left: Leftovers,
}

impl<'a> TreeEngine<'a> {
    /// Starts tracking a process and its descendants, each in its session of the store.
    ///
    /// # Errors
    /// What concerns one of them concerns all.
    pub fn attach(
        store: &Store,
        root: i32,
        options: &Options,
        probes: &'a LazyProbes,
    ) -> Result<Self> {
        let shares = 2 * (family::look(root)?.len() as u64).max(LEAST_SHARES);
        let mut tree = Self {
            links: None,
            store: store.clone(),
            root,
            options: Options {
                memory: options.memory / shares,
                mirror: options.mirror / shares,
                then: Then::GoOn,
                ..*options
            },
            probes,
            engines: Vec::new(),
            makeshift: BTreeSet::new(),
            begun: BTreeSet::new(),
            flight: None,
            every: None,
            left: Leftovers::start(store, &options.keep),
        };
        tree.gather()?;
        Ok(tree)
    }

    /// Snapshots are to follow each other at this interval.
    pub(super) fn set_pace(&mut self, every: Duration) {
        self.every = Some(every);
        self.engines.iter_mut().for_each(|one| one.pace(every));
    }

    /// From now on, whoever asks for the watcher of one of its processes gets to that of the root.
    pub(super) fn link(&mut self) {
        let links = self.links.insert(Links::new(&self.store, self.root));
        links.set(self.engines.iter().map(|one| one.target.pid));
    }

    /// The engine of the root, which is there as long as the root is.
    pub(super) fn first(&self) -> &Engine {
        let of_root = |one: &&Engine| one.target.pid == self.root;
        let found = self.engines.iter().find(of_root);
        found.expect("attached to before any other")
    }

    /// Attaches to who has come, and lets go of who has ended.
    fn gather(&mut self) -> Result<()> {
        let there = family::look(self.root)?;
        let root = self.root;
        let makeshift = std::mem::take(&mut self.makeshift);
        if self
            .engines
            .iter()
            .any(|e| e.target.pid == root && !is_same_process(e))
        {
            return Err(CaptureError::Vanished {
                pid: root,
                why: "it has ended".into(),
            }
            .into());
        }
        let mut ended = Vec::new();
        self.engines.retain(|engine| {
            let pid = engine.target.pid;
            let lives = there.contains(&pid) && is_same_process(engine);
            if !lives {
                ended.push(engine.session());
            }
            lives && !makeshift.contains(&pid)
        });
        ended.into_iter().for_each(|session| self.left.add(session));
        for pid in there {
            if self.engines.iter().any(|engine| engine.target.pid == pid) {
                continue;
            }
            match Engine::attach_sharing(&self.store, pid, &self.options, self.probes) {
                Ok(mut engine) => {
                    if let Some(every) = self.every {
                        engine.pace(every);
                    }
                    self.engines.push(engine);
                }
                // Only the root must be there.
                Err(_) if pid != root && !proc::is_alive(pid) => {}
                Err(e) => return Err(e),
            }
        }
        if let Some(links) = &mut self.links {
            links.set(self.engines.iter().map(|one| one.target.pid));
        }
        Ok(())
    }

    /// Takes in what happened meanwhile.
    ///
    /// # Errors
    /// What concerns the root; of another process the next snapshot tells.
    pub(super) fn take_in(&mut self) -> Result<()> {
        for engine in &mut self.engines {
            match engine.tick() {
                Err(e) if engine.target.pid == self.root => return Err(e),
                Err(e) => tracing::debug!("process {}: {e}", engine.target.pid),
                Ok(()) => {}
            }
        }
        Ok(())
    }

    /// A snapshot is on its way.
    pub(super) fn is_on_its_way(&self) -> bool {
        self.flight.is_some()
    }

    /// Takes a snapshot. It is on its way when this returns; [`TreeEngine::land`] tells what became of it, and must
    /// have been called since the one before.
    pub(super) fn begin_snapshot(&mut self, then: Then) -> Result<()> {
        debug_assert!(self.flight.is_none(), "one snapshot at a time");
        if then == Then::KillKeeping {
            return Err(SessionError::Usage(
                "connections are kept of one process, not of a tree: leave --tcp out".into(),
            ));
        }
        let done = self
            .prepare_all()
            .and_then(|ready| self.stop_all(ready, then));
        // Of those that have ended meanwhile, or of all of them.
        let begun = std::mem::take(&mut self.begun);
        let begun = |one: &&mut Engine| begun.contains(&one.target.pid);
        self.engines
            .iter_mut()
            .filter(begun)
            .for_each(Engine::give_up);
        match done {
            Ok(flight) => self.flight = Some(flight),
            Err(e) => {
                // Who was captured already keeps a snapshot of its own.
                for engine in &mut self.engines {
                    if let Some(Err(e)) = engine.settle() {
                        tracing::warn!("process {}: {e}", engine.target.pid);
                    }
                }
                return Err(e);
            }
        }
        Ok(())
    }

    /// Does for each of them what can be done while it runs.
    fn prepare_all(&mut self) -> Result<BTreeMap<i32, Ready>> {
        self.engines.iter().try_for_each(Engine::refuse_mixed)?;
        self.gather()?;
        let mut ready = BTreeMap::new();
        for engine in &mut self.engines {
            let pid = engine.target.pid;
            self.begun.insert(pid);
            match prepare(engine) {
                Ok(one) => {
                    ready.insert(pid, one);
                }
                Err(_) if pid != self.root && !proc::is_alive(pid) => {}
                Err(e) => return Err(e.of_process(pid)),
            }
        }
        Ok(ready)
    }

    /// The stop: all of them are stopped, and each is captured.
    fn stop_all(&mut self, mut ready: BTreeMap<i32, Ready>, then: Then) -> Result<Flight> {
        let (time_ns, stop) = (wall_clock_ns(), monotonic_ns());
        let mut family = family::freeze(self.root, Hold::Trace)?;
        let standing = std::mem::take(&mut family.members.0);
        let mut flight = Flight::new(then, time_ns, family.zombies, family.notes);
        let mut seen = SharedSeen::default();
        for stopped in standing {
            let pid = stopped.pid;
            let (n, Ready { kind, ahead }) = self.place(pid, ready.remove(&pid))?;
            let engine = &mut self.engines[n];
            let member = catch(engine, (kind, ahead), stopped, stop, &mut seen);
            flight.members.push(member.map_err(|e| e.of_process(pid))?);
            self.begun.remove(&pid);
        }
        flight.relations = Relations::look(&mut flight);
        flight.stop_ns = monotonic_ns() - stop;
        if then == Then::GoOn {
            flight.thaw();
        }
        Ok(flight)
    }

    /// The engine of a stopped process, with what was prepared for it; where it came just now or has become another
    /// program since, one that is attached to it now.
    fn place(&mut self, pid: i32, ready: Option<Ready>) -> Result<(usize, Ready)> {
        let found = self.engines.iter().position(|one| one.target.pid == pid);
        if let Some(n) = found {
            let engine = &mut self.engines[n];
            if let Some(ready) = ready
                && is_same_process(engine)
                && engine.is_same_program()?
            {
                return Ok((n, ready));
            }
            // Now, though the others stand: whoever is attached to next may go on in the same session.
            engine.give_up();
            drop(self.engines.remove(n));
        }
        // All of it is copied in the stop, which needs no tracker that would be put into it.
        let options = Options {
            tracker: TrackerChoice::Only(TrackerKind::Hash),
            ..self.options
        };
        let engine = Engine::attach_sharing(&self.store, pid, &options, self.probes)?;
        let n = self.engines.len();
        self.engines.push(engine);
        self.makeshift.insert(pid);
        self.begun.insert(pid);
        let ready = prepare(&mut self.engines[n]).map_err(|e| e.of_process(pid))?;
        Ok((n, ready))
    }

    /// Takes a snapshot, and waits until it is stored.
    pub(super) fn snapshot_and_settle(&mut self, then: Then) -> Result<TakenTree> {
        self.begin_snapshot(then)?;
        self.land().unwrap_or_else(|| Err(nothing_taken()))
    }

    /// The same, with what is asked for in addition.
    pub(super) fn snapshot_with(&mut self, then: Then, also: Also) -> Result<TakenTree> {
        let Options { audit, files, .. } = self.options;
        self.set_extent(audit || also.audit, files || also.files);
        let done = self.snapshot_and_settle(then);
        self.set_extent(audit, files);
        done
    }

    fn set_extent(&mut self, audit: bool, files: bool) {
        let each = self.engines.iter_mut().map(|engine| &mut engine.options);
        for options in each.chain([&mut self.options]) {
            (options.audit, options.files) = (audit, files);
        }
    }

    /// What became of the last snapshot, waiting until it is known. `None` if that was told before.
    pub(super) fn land(&mut self) -> Option<Result<TakenTree>> {
        let mut flight = self.flight.take()?;
        // All of them, whatever becomes of one: the next snapshot builds on what is known of each.
        for member in &mut flight.members {
            member.outcome = member.outcome.take().or_else(|| {
                let engine = self.engine_of(member.pid)?;
                Some(
                    engine
                        .settle()?
                        .and_then(|taken| audited(engine, member, taken)),
                )
            });
        }
        Some(self.publish(flight))
    }

    /// As [`TreeEngine::land`], without waiting: `None` also while it is still on its way.
    pub(super) fn try_land(&mut self) -> Option<Result<TakenTree>> {
        let mut flight = self.flight.take()?;
        for member in &mut flight.members {
            member.outcome = member.outcome.take().or_else(|| {
                let engine = self.engine_of(member.pid)?;
                Some(
                    engine
                        .try_settle()?
                        .and_then(|taken| audited(engine, member, taken)),
                )
            });
        }
        if self.engines.iter().any(Engine::is_busy) {
            self.flight = Some(flight);
            return None;
        }
        Some(self.publish(flight))
    }

    fn engine_of(&mut self, pid: i32) -> Option<&mut Engine> {
        let of_it = |one: &&mut Engine| one.target.pid == pid;
        self.engines.iter_mut().find(of_it)
    }

    fn publish(&mut self, mut flight: Flight) -> Result<TakenTree> {
        let mut unsupported = std::mem::take(&mut flight.notes);
        let mut processes: Vec<TakenProcess> = Vec::with_capacity(flight.members.len());
        for member in &mut flight.members {
            let taken = member
                .outcome
                .take()
                .unwrap_or_else(|| Err(nothing_taken()));
            let taken = taken.map_err(|e| e.of_process(member.pid))?;
            let what = |what: &String| format!("process {}: {what}", member.pid);
            unsupported.extend(taken.unsupported.iter().map(what));
            processes.push(TakenProcess {
                pid: member.pid,
                parent: member.parent.map(|at| processes[at as usize].pid),
                comm: member.comm.clone(),
                taken,
            });
        }
        let tree = flight.record(processes.iter().map(|one| one.taken.id));
        self.store.publish_tree(&tree)?;
        flight.end()?;
        Ok(TakenTree {
            id: tree.members[0].id,
            processes,
            zombies: tree.zombies.len(),
            stop_ns: tree.stop_ns,
            unsupported,
        })
    }
}

/// What was taken, if it is what the process had.
fn audited(engine: &Engine, member: &Member, taken: Taken) -> Result<Taken> {
    let wrong = engine.compare(&member.caught.audit, &taken)?;
    match wrong.is_empty() {
        true => Ok(taken),
        false => Err(SessionError::Audit { pages: wrong }),
    }
}

/// The process that it was attached to, and no later one of the same id.
fn is_same_process(engine: &Engine) -> bool {
    proc::stat(engine.target.pid, None)
        .is_ok_and(|stat| stat.start_time == engine.target.start_time)
}

fn prepare(engine: &mut Engine) -> Result<Ready> {
    engine.tick()?;
    let kind = engine.begin();
    // All of them stand until the last is copied.
    let ahead = engine.ahead(true)?;
    Ok(Ready { kind, ahead })
}
