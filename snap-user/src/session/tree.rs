//! `snap --tree`: a process and all of its descendants, captured at one moment.
//!
//! Each of them is an ordinary snapshot in a session of its own. What makes them a tree is a record that is published
//! when all of them are stored; whatever happens before leaves single snapshots, and no tree.

use super::engine::{Engine, wall_clock_ns};
use super::events::LazyProbes;
use super::family::{self, Stopped};
use super::stop::{Ahead, Caught};
use super::tree_files::{Holder, shared_files};
use super::tree_terminals::{Grouped, foreground, unread};
use super::types::hex;
use super::{Options, Result, SessionError, Taken, Then};
use crate::capture::CaptureError;
use crate::model::{ProcessTree, SnapshotId, SnapshotKind, TreeMember};
use crate::store::Store;
use crate::sys::{Hold, SysError, monotonic_ns, proc};
use crate::track::{TrackerChoice, TrackerKind};
use serde::Serialize;
use std::path::Path;

/// A tree that was captured and stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TakenTree {
    /// The snapshot of its root, by which the tree is named.
    #[serde(serialize_with = "hex")]
    pub id: SnapshotId,
    /// The processes, parents before their children.
    pub processes: Vec<TakenProcess>,
    /// Children that had ended and were not waited for.
    pub zombies: usize,
    /// How long all of them were stopped, in nanoseconds.
    pub stop_ns: u64,
    /// What could not be saved, a sentence each.
    pub unsupported: Vec<String>,
}

/// A process of a tree that was captured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TakenProcess {
    /// The process.
    pub pid: i32,
    /// Its parent among them.
    pub parent: Option<i32>,
    /// Its name.
    pub comm: String,
    /// Its snapshot.
    #[serde(flatten)]
    pub taken: Taken,
}

/// A process with what was done for it ahead of the stop.
struct Prepared {
    engine: Engine,
    kind: SnapshotKind,
    ahead: Ahead,
}

/// A process with what was captured of it.
struct Member {
    pid: i32,
    parent: Option<u32>,
    group: i32,
    session: i32,
    /// It was in a job-control stop.
    stopped: bool,
    engine: Engine,
    caught: Caught,
}

/// Processes that were captured, parents before their children. Those that stand go on when this is dropped, before
/// anything of ksnap's own is waited for.
struct Members(Vec<Member>);

impl Members {
    fn thaw(&mut self) {
        for member in &mut self.0 {
            drop(member.caught.frozen.take());
        }
    }

    /// Lets those that stand go with a signal, children first: process 1 of a PID namespace ends after all others there.
    ///
    /// # Errors
    /// The first of them; all have been let go all the same.
    fn end_with(&mut self, signal: i32) -> Result<()> {
        let standing = self
            .0
            .iter_mut()
            .rev()
            .filter_map(|m| m.caught.frozen.take());
        let failed: Vec<SysError> = standing
            .filter_map(|frozen| frozen.end_with(signal).err())
            .collect();
        failed.into_iter().next().map_or(Ok(()), |e| Err(e.into()))
    }
}

impl Drop for Members {
    fn drop(&mut self) {
        self.thaw();
    }
}

/// Captures a process and all of its descendants at one moment.
///
/// # Errors
/// What concerns one of them concerns all: nothing but single snapshots is left in the store then, and all of them
/// run on.
pub fn snap_tree(dir: &Path, pid: i32, options: &Options) -> Result<TakenTree> {
    if options.then == Then::KillKeeping {
        return Err(SessionError::Usage(
            "connections are kept of one process, not of a tree: leave --tcp out".into(),
        ));
    }
    let store = Store::open_or_create(dir)?;
    let probes = LazyProbes::new(options.probes);
    let expected = family::look(pid)?;
    let each = Options {
        memory: options.memory / expected.len() as u64,
        mirror: options.mirror / expected.len() as u64,
        then: Then::GoOn,
        ..*options
    };
    // These outlive the stop: dropping them waits for their threads, and for the disk.
    let mut given_up = Vec::new();
    let mut prepared = Vec::with_capacity(expected.len());
    for member in expected {
        match prepare(&store, member, &each, &probes, &mut given_up) {
            Ok(one) => prepared.push(one),
            // Only the root must be there.
            Err(_) if member != pid && !proc::is_alive(member) => given_up.clear(),
            Err(e) => return Err(e),
        }
    }
    let (time_ns, stop) = (wall_clock_ns(), monotonic_ns());
    let mut family = family::freeze(pid, Hold::Trace)?;
    let mut unsupported = family.notes;
    let stopped = std::mem::take(&mut family.members.0);
    let mut members = Members(Vec::with_capacity(stopped.len()));
    for stopped in stopped {
        let one = take_out(&mut prepared, stopped.pid)?;
        let member = capture(&store, stopped, one, stop, &each, &probes, &mut given_up)?;
        members.0.push(member);
    }
    let holders = members.0.iter().map(|member| Holder {
        pid: member.pid,
        files: &member.caught.files,
    });
    let holders: Vec<_> = holders.collect();
    let shared = shared_files(&holders, &mut unsupported);
    unsupported.extend(unread(&holders));
    drop(holders);
    let grouped = members.0.iter().map(|m| Grouped::of(m.pid, m.group));
    let zombies = family.zombies.iter().map(|z| Grouped::of(z.pid, z.group));
    let grouped: Vec<Grouped> = grouped.chain(zombies).collect();
    let leads = |m: &Member| proc::own_id(m.pid, m.pid).is_ok_and(|own| own == m.session);
    let foregrounds: Vec<Option<i32>> = members
        .0
        .iter()
        .map(|m| leads(m).then(|| foreground(m.pid, &grouped)).flatten())
        .collect();
    let stop_ns = monotonic_ns() - stop;
    if options.then == Then::GoOn {
        members.thaw();
    }
    // They were of processes that have ended meanwhile.
    drop(prepared);
    let mut processes: Vec<TakenProcess> = Vec::with_capacity(members.0.len());
    for member in &mut members.0 {
        let taken = member.engine.settle().unwrap_or_else(|| {
            Err(SessionError::Control {
                why: "took no snapshot".into(),
            })
        })?;
        let wrong = member.engine.compare(&member.caught.audit, &taken)?;
        if !wrong.is_empty() {
            return Err(SessionError::Audit { pages: wrong });
        }
        let what = |what: &String| format!("process {}: {what}", member.pid);
        unsupported.extend(taken.unsupported.iter().map(what));
        processes.push(TakenProcess {
            pid: member.pid,
            parent: member.parent.map(|at| processes[at as usize].pid),
            comm: member.engine.target.comm.clone(),
            taken,
        });
    }
    let tree = ProcessTree {
        time_ns,
        stop_ns,
        members: members
            .0
            .iter()
            .zip(&processes)
            .zip(foregrounds)
            .map(|((member, process), foreground)| TreeMember {
                id: process.taken.id,
                pid: member.pid,
                parent: member.parent,
                group: member.group,
                session: member.session,
                stopped: member.stopped,
                foreground,
            })
            .collect(),
        zombies: family.zombies,
        shared,
    };
    store.publish_tree(&tree)?;
    match options.then {
        Then::GoOn => {}
        Then::Stop => members.end_with(libc::SIGSTOP)?,
        Then::Kill => members.end_with(libc::SIGKILL)?,
        Then::KillKeeping => unreachable!("refused above"),
    }
    Ok(TakenTree {
        id: tree.members[0].id,
        processes,
        zombies: tree.zombies.len(),
        stop_ns,
        unsupported,
    })
}

fn prepare(
    store: &Store,
    pid: i32,
    options: &Options,
    probes: &LazyProbes,
    given_up: &mut Vec<Engine>,
) -> Result<Prepared> {
    let mut engine = Engine::attach_sharing(store, pid, options, probes)?;
    let done = engine.tick().and_then(|()| {
        let kind = engine.begin();
        // All of them stand until the last is copied.
        Ok((kind, engine.ahead(true)?))
    });
    match done {
        Ok((kind, ahead)) => Ok(Prepared {
            engine,
            kind,
            ahead,
        }),
        Err(e) => {
            given_up.push(engine);
            Err(e.of_process(pid))
        }
    }
}

/// What was prepared for this process, unless it has become another one since.
fn take_out(prepared: &mut Vec<Prepared>, pid: i32) -> Result<Option<Prepared>> {
    let Some(at) = prepared.iter().position(|p| p.engine.target.pid == pid) else {
        return Ok(None);
    };
    let engine = &prepared[at].engine;
    let start = proc::stat(pid, None)
        .map_err(SessionError::from)?
        .start_time;
    let is_same = engine.target.start_time == start && engine.is_same_program()?;
    let mut one = prepared.swap_remove(at);
    if is_same {
        return Ok(Some(one));
    }
    // Now, though the others stand: whoever is attached to next may go on in the same session.
    one.engine.give_up();
    Ok(None)
}

fn capture(
    store: &Store,
    stopped: Stopped,
    prepared: Option<Prepared>,
    stop: u64,
    options: &Options,
    probes: &LazyProbes,
    given_up: &mut Vec<Engine>,
) -> Result<Member> {
    let pid = stopped.pid;
    let Prepared {
        mut engine,
        kind,
        ahead,
    } = match prepared {
        Some(prepared) => prepared,
        // It came just now. All of it is copied in the stop, which needs no tracker that would be put into it.
        None => {
            let options = Options {
                tracker: TrackerChoice::Only(TrackerKind::Hash),
                ..*options
            };
            prepare(store, pid, &options, probes, given_up)?
        }
    };
    let parent = stopped.parent;
    let job_stopped = stopped.frozen.is_job_stopped();
    let catch = || -> Result<(i32, i32, Caught)> {
        let failed = |e| SessionError::from(CaptureError::from_sys(pid, e));
        let group = proc::own_group(pid).map_err(failed)?;
        let session = proc::own_session(pid).map_err(failed)?;
        let caught = engine.stopped(kind, ahead, stopped.frozen, stop, true)?;
        let caught = caught.map_err(|_| SessionError::Control {
            why: "found another program in a stopped process".into(),
        })?;
        Ok((group, session, caught))
    };
    match catch() {
        Ok((group, session, caught)) => Ok(Member {
            pid,
            parent,
            group,
            session,
            stopped: job_stopped,
            engine,
            caught,
        }),
        Err(e) => {
            given_up.push(engine);
            Err(e.of_process(pid))
        }
    }
}
