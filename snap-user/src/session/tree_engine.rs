//! A tree of processes under snapshots: everything that its tracer's thread does.
//!
//! Each process has an engine of its own, which stays from one snapshot to the next: who has come since is attached to,
//! who has ended is let go of.

use super::control::Also;
use super::engine::{EXEC_SOON, Engine, is_mere_exec, wall_clock_ns};
use super::events::LazyProbes;
use super::family;
use super::stop::Ahead;
use super::subject::nothing_taken;
use super::tree::{TakenProcess, TakenTree};
use super::tree_left::Leftovers;
use super::tree_links::Links;
use super::tree_shared::SharedSeen;
use super::tree_stop::{Flight, Member, Relations, catch};
use super::tree_who::{has_ended, is_borrower, is_same_process, pid_and_start};
use super::{Options, Result, SessionError, Taken, Then};
use crate::capture::CaptureError;
use crate::image::SessionId;
use crate::model::SnapshotKind;
use crate::store::Store;
use crate::sys::{Hold, monotonic_ns, proc};
use crate::track::{TrackerChoice, TrackerKind};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// Where processes may come: those that are there at first share one half of the memory for copied pages, and each that
/// comes has as much as one of these. A few have no more than this many would.
const LEAST_SHARES: u64 = 4;
/// Attempts at a tree whose processes get in the way by replacing their programs, and by ending in the stop.
const MOST_CHANGES: u32 = 10;

/// What was done for a process ahead of the stop.
pub(super) struct Ready {
    kind: SnapshotKind,
    ahead: Ahead,
}

/// Takes snapshots of a process and all of its descendants. All of its calls must come from one thread, the tracer.
pub struct TreeEngine<'a> {
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
    /// Sessions that were begun here, with the process and the time when that started: they have nothing in them but parts
    /// of its trees.
    own: BTreeMap<SessionId, (i32, u64)>,
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
        let there = family::look(root)?.len() as u64;
        let shares = match options.tree {
            true => 2 * there.max(LEAST_SHARES),
            // One snapshot: nearly all that it is of are there.
            false => there,
        };
        let mut tree = Self {
            links: None,
            store: store.side_by_side(),
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
            own: BTreeMap::new(),
            flight: None,
            every: None,
            left: Leftovers::start(store),
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

    /// The engine of the root; `None` while it has another program that could not be attached to.
    pub(super) fn first(&self) -> Option<&Engine> {
        let of_root = |one: &&Engine| one.target.pid == self.root;
        self.engines.iter().find(of_root)
    }

    /// Its processes are not what they were a moment ago.
    pub(super) fn is_changing(&self) -> SessionError {
        SessionError::Changing { pid: self.root }
    }

    /// Attaches to who has come, and lets go of who has ended.
    fn gather(&mut self) -> Result<()> {
        let there = family::look(self.root)?;
        let root = self.root;
        if self.first().is_some_and(|first| !is_same_process(first)) {
            return Err(CaptureError::Vanished {
                pid: root,
                why: "it has ended".into(),
            }
            .into());
        }
        self.let_go_of(|engine| !there.contains(&engine.target.pid) || !is_same_process(engine));
        let makeshift = std::mem::take(&mut self.makeshift);
        self.engines
            .retain(|engine| !makeshift.contains(&engine.target.pid));
        let options = self.options;
        for pid in there {
            if self.engines.iter().any(|engine| engine.target.pid == pid) || is_borrower(pid) {
                continue;
            }
            match self.attach_to(pid, &options) {
                Ok(_) => {}
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

    /// Attaches to one of them; gives the place of its engine.
    fn attach_to(&mut self, pid: i32, options: &Options) -> Result<usize> {
        let engine = Engine::attach_sharing(&self.store, pid, options, self.probes)?;
        if engine.head.is_none() {
            let process = (pid, engine.target.start_time);
            self.own.insert(engine.session(), process);
        }
        self.add(engine);
        Ok(self.engines.len() - 1)
    }

    pub(super) fn add(&mut self, mut engine: Engine) {
        if let Some(every) = self.every {
            engine.pace(every);
        }
        self.engines.push(engine);
    }

    /// Lets go of processes that have ended, or are not below the root any more.
    pub(super) fn let_go_of(&mut self, goes: impl Fn(&Engine) -> bool) {
        let mut n = 0;
        while let Some(engine) = self.engines.get(n) {
            if !goes(engine) {
                n += 1;
                continue;
            }
            let engine = self.engines.remove(n);
            if self.own.contains_key(&engine.session()) && has_ended(pid_and_start(&engine)) {
                // Parts of trees are left of it, which go with these.
                engine.keeper.skip_last_look();
            }
        }
        let held: BTreeSet<SessionId> = self.engines.iter().map(Engine::session).collect();
        self.own.retain(|session, process| {
            let goes = !held.contains(session) && has_ended(*process);
            if goes {
                self.left.add(*session);
            }
            !goes
        });
    }

    /// Lets go of processes that have ended.
    pub(super) fn let_go_of_ended(&mut self) {
        self.let_go_of(|engine| has_ended(pid_and_start(engine)));
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
        for _ in 0..MOST_CHANGES {
            self.flight = self.try_snapshot(then)?;
            if self.flight.is_some() {
                return Ok(());
            }
            std::thread::sleep(EXEC_SOON);
        }
        Err(self.is_changing())
    }

    /// `None` where one of them has become another program, or has ended, in the middle of it.
    fn try_snapshot(&mut self, then: Then) -> Result<Option<Flight>> {
        let done = self.prepare_all().and_then(|ready| match ready {
            Some(ready) => self.stop_all(ready, then),
            None => Ok(None),
        });
        // Of those that have ended meanwhile, or of all of them.
        self.give_up_begun();
        if !matches!(done, Ok(Some(_))) {
            // Who was captured already keeps a snapshot of its own.
            for engine in &mut self.engines {
                if let Some(Err(e)) = engine.settle() {
                    tracing::warn!("process {}: {e}", engine.target.pid);
                }
            }
        }
        done
    }

    /// Gives up what was begun for the tree under way and not captured.
    fn give_up_begun(&mut self) {
        let begun = std::mem::take(&mut self.begun);
        let begun = |one: &&mut Engine| begun.contains(&one.target.pid);
        self.engines
            .iter_mut()
            .filter(begun)
            .for_each(Engine::give_up);
    }

    /// Does for each of them what can be done while it runs. `None` where one is in the middle of replacing its program.
    fn prepare_all(&mut self) -> Result<Option<BTreeMap<i32, Ready>>> {
        self.gather()?;
        self.engines.iter().try_for_each(Engine::refuse_mixed)?;
        let mut ready = BTreeMap::new();
        for engine in &mut self.engines {
            let pid = engine.target.pid;
            self.begun.insert(pid);
            match prepare(engine) {
                Ok(one) => {
                    ready.insert(pid, one);
                }
                Err(_) if pid != self.root && !proc::is_alive(pid) => {}
                Err(e) if is_mere_exec(pid, &e) => {
                    engine.events.exec = true;
                    return Ok(None);
                }
                Err(e) => return Err(e.of_process(pid)),
            }
        }
        Ok(Some(ready))
    }

    /// The stop: all of them are stopped, and each is captured. `None` where one is not what was prepared.
    fn stop_all(&mut self, mut ready: BTreeMap<i32, Ready>, then: Then) -> Result<Option<Flight>> {
        let (time_ns, stop) = (wall_clock_ns(), monotonic_ns());
        let mut family = family::freeze(self.root, Hold::Trace)?;
        let pids: Vec<i32> = family.members.0.iter().map(|one| one.pid).collect();
        // Before what is in flight: that gives connections back before any of them goes on.
        let mut standing = std::mem::take(&mut family.members.0).into_iter();
        let mut flight = Flight::new(
            then,
            time_ns,
            std::mem::take(&mut family.zombies),
            std::mem::take(&mut family.notes),
        );
        let connections = match then {
            Then::KillKeeping => match flight.take_connections(&pids) {
                Ok(taken) => taken,
                // One of them was killed in the stop.
                Err(_) if pids[1..].iter().any(|pid| !proc::is_alive(*pid)) => return Ok(None),
                Err(e) => return Err(e.of_process(self.root)),
            },
            _ => Arc::default(),
        };
        let mut seen = SharedSeen::default();
        for stopped in standing.by_ref() {
            let pid = stopped.pid;
            let caught = self.place(pid, ready.remove(&pid)).and_then(|place| {
                let Some((n, Ready { kind, ahead })) = place else {
                    return Ok(None);
                };
                let engine = &mut self.engines[n];
                catch(
                    engine,
                    (kind, ahead),
                    (stopped, stop),
                    &connections,
                    &mut seen,
                )
            });
            match caught {
                Ok(Some(member)) => flight.members.push(member),
                Ok(None) => return Ok(None),
                // It was killed in the stop.
                Err(_) if pid != self.root && !proc::is_alive(pid) => return Ok(None),
                Err(e) => return Err(e.of_process(pid)),
            }
            self.begun.remove(&pid);
        }
        flight.relations = Relations::look(&mut flight);
        flight.stop_ns = monotonic_ns() - stop;
        if then == Then::GoOn {
            flight.thaw();
        }
        Ok(Some(flight))
    }

    /// The engine of a stopped process, with what was prepared for it; one that is attached to now for a process that
    /// came just now. `None` where it is not what was prepared: that is mended while it runs.
    fn place(&mut self, pid: i32, ready: Option<Ready>) -> Result<Option<(usize, Ready)>> {
        let found = self.engines.iter().position(|one| one.target.pid == pid);
        if let Some(n) = found {
            let is_same = is_same_process(&self.engines[n]);
            return Ok(ready.filter(|_| is_same).map(|ready| (n, ready)));
        }
        if pid == self.root {
            return Ok(None);
        }
        // All of it is copied in the stop, which needs no tracker that would be put into it.
        let options = Options {
            tracker: TrackerChoice::Only(TrackerKind::Hash),
            ..self.options
        };
        let n = self.attach_to(pid, &options)?;
        self.makeshift.insert(pid);
        self.begun.insert(pid);
        let ready = prepare(&mut self.engines[n]).map_err(|e| e.of_process(pid))?;
        Ok(Some((n, ready)))
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
        self.take_outcomes(&mut flight, Engine::settle);
        Some(self.publish(flight))
    }

    /// As [`TreeEngine::land`], without waiting: `None` also while it is still on its way.
    pub(super) fn try_land(&mut self) -> Option<Result<TakenTree>> {
        let mut flight = self.flight.take()?;
        self.take_outcomes(&mut flight, Engine::try_settle);
        if self.engines.iter().any(Engine::is_busy) {
            self.flight = Some(flight);
            return None;
        }
        Some(self.publish(flight))
    }

    fn take_outcomes(
        &mut self,
        flight: &mut Flight,
        settle: impl Fn(&mut Engine) -> Option<Result<Taken>>,
    ) {
        for member in &mut flight.members {
            if member.outcome.is_none()
                && let Some(engine) = self.engine_of(member.pid)
                && let Some(outcome) = settle(engine)
            {
                member.outcome = Some(outcome.and_then(|taken| audited(engine, member, taken)));
            }
        }
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
        let keeping = flight.end()?;
        unsupported.extend(keeping.lost);
        Ok(TakenTree {
            id: tree.members[0].id,
            processes,
            zombies: tree.zombies.len(),
            stop_ns: tree.stop_ns,
            unsupported,
            kept: keeping.kept,
            notes: Vec::new(),
        })
    }
}

impl Drop for TreeEngine<'_> {
    fn drop(&mut self) {
        // After a panic: one that is never written keeps those waiting that borrow pages from it.
        self.give_up_begun();
        // First: once a process is let go of, another watcher may have a socket there.
        self.links = None;
        self.let_go_of_ended();
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

fn prepare(engine: &mut Engine) -> Result<Ready> {
    engine.tick()?;
    let kind = engine.begin();
    // All of them stand until the last is copied.
    let ahead = engine.ahead(true)?;
    Ok(Ready { kind, ahead })
}
