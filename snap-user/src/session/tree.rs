//! `snap --tree`: a process and all of its descendants, captured at one moment.
//!
//! Each of them is an ordinary snapshot in a session of its own. What makes them a tree is a record that is published
//! when all of them are stored; whatever happens before leaves single snapshots, and no tree.

use super::engine::{Engine, wall_clock_ns};
use super::events::LazyProbes;
use super::family::{self, Stopped};
use super::stop::{Ahead, Caught};
use super::types::hex;
use super::{Options, Result, SessionError, Taken, Then};
use crate::capture::CaptureError;
use crate::model::{
    FileKind, OpenFile, ProcessTree, SharedFile, SnapshotId, SnapshotKind, TreeMember,
};
use crate::store::Store;
use crate::sys::{self, compare_files_of, monotonic_ns, proc};
use crate::track::{TrackerChoice, TrackerKind};
use serde::Serialize;
use std::cmp::Ordering;
use std::collections::BTreeMap;
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

/// Captures a process and all of its descendants at one moment.
///
/// # Errors
/// What concerns one of them concerns all: nothing but single snapshots is left in the store then, and all of them
/// run on.
pub fn snap_tree(dir: &Path, pid: i32, options: &Options) -> Result<TakenTree> {
    let store = Store::open_or_create(dir)?;
    let probes = LazyProbes::new(options.probes);
    let expected = family::look(pid)?;
    let each = Options {
        memory: options.memory / expected.len() as u64,
        mirror: options.mirror / expected.len() as u64,
        then: Then::GoOn,
        ..*options
    };
    let mut prepared = Vec::with_capacity(expected.len());
    for member in expected {
        match prepare(&store, member, &each, &probes) {
            Ok(one) => prepared.push(one),
            // Only the root must be there.
            Err(_) if member != pid && !proc::is_alive(member) => {}
            Err(e) => return Err(e),
        }
    }
    let (time_ns, stop) = (wall_clock_ns(), monotonic_ns());
    let family = family::freeze(pid)?;
    let mut unsupported = family.notes;
    let mut members = Vec::with_capacity(family.members.len());
    for stopped in family.members {
        let one = take_out(&mut prepared, stopped.pid)?;
        members.push(capture(&store, stopped, one, stop, &each, &probes)?);
    }
    // They were of processes that have ended meanwhile.
    drop(prepared);
    let shared = shared_files(&members, &mut unsupported);
    let stop_ns = monotonic_ns() - stop;
    let hold = options.then != Then::GoOn;
    if !hold {
        members
            .iter_mut()
            .for_each(|member| drop(member.caught.frozen.take()));
    }
    let mut processes: Vec<TakenProcess> = Vec::with_capacity(members.len());
    for member in &mut members {
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
            .iter()
            .zip(&processes)
            .map(|(member, process)| TreeMember {
                id: process.taken.id,
                pid: member.pid,
                parent: member.parent,
                group: member.group,
                session: member.session,
                stopped: member.stopped,
            })
            .collect(),
        zombies: family.zombies,
        shared,
    };
    store.publish_tree(&tree)?;
    for member in members {
        match (member.caught.frozen, options.then) {
            (Some(frozen), Then::Stop) => frozen.end_with(libc::SIGSTOP)?,
            (Some(frozen), Then::Kill) => frozen.end_with(libc::SIGKILL)?,
            _ => {}
        }
    }
    Ok(TakenTree {
        id: tree.members[0].id,
        processes,
        zombies: tree.zombies.len(),
        stop_ns,
        unsupported,
    })
}

fn prepare(store: &Store, pid: i32, options: &Options, probes: &LazyProbes) -> Result<Prepared> {
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
            engine.give_up();
            Err(e.of_process(pid))
        }
    }
}

/// What was prepared for this process, unless it has become another one since.
fn take_out(prepared: &mut Vec<Prepared>, pid: i32) -> Result<Option<Prepared>> {
    let Some(at) = prepared.iter().position(|p| p.engine.target.pid == pid) else {
        return Ok(None);
    };
    let mut one = prepared.swap_remove(at);
    let start = proc::stat(pid, None)
        .map_err(SessionError::from)?
        .start_time;
    if one.engine.target.start_time == start && one.engine.is_same_program()? {
        return Ok(Some(one));
    }
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
            prepare(store, pid, &options, probes)?
        }
    };
    let job_stopped = stopped.frozen.is_job_stopped();
    let failed = |e| SessionError::from(CaptureError::from_sys(pid, e));
    let group = proc::own_group(pid).map_err(failed)?;
    let session = proc::own_session(pid).map_err(failed)?;
    let outcome = engine.stopped(kind, ahead, stopped.frozen, stop, true);
    match outcome {
        Ok(Ok(caught)) => Ok(Member {
            pid,
            parent: stopped.parent,
            group,
            session,
            stopped: job_stopped,
            engine,
            caught,
        }),
        Ok(Err(_)) => {
            engine.give_up();
            Err(SessionError::Control {
                why: "found another program in a stopped process".into(),
            })
        }
        Err(e) => {
            engine.give_up();
            Err(e.of_process(pid))
        }
    }
}

/// What open files must agree in to be one.
type Likeness = (FileKind, (u64, u64), u32, u64);

/// A process and a descriptor of it.
type Held = (i32, i32);

/// Open files that several of the stopped processes share (`kcmp(2)`).
fn shared_files(members: &[Member], notes: &mut Vec<String>) -> Vec<Vec<SharedFile>> {
    let likeness =
        |file: &OpenFile| -> Likeness { (file.kind, file.identity, file.flags, file.position) };
    // Each open file by a descriptor of it.
    let mut alike: BTreeMap<Likeness, Vec<(SharedFile, Held)>> = BTreeMap::new();
    for (at, member) in members.iter().enumerate() {
        for (n, file) in member.caught.files.iter().enumerate() {
            let mut descriptors = member.caught.descriptors.iter();
            if let Some(descriptor) = descriptors.find(|d| d.file as usize == n) {
                let place = SharedFile {
                    member: at as u32,
                    file: n as u32,
                };
                alike
                    .entry(likeness(file))
                    .or_default()
                    .push((place, (member.pid, descriptor.fd)));
            }
        }
    }
    let mut shared = Vec::new();
    let mut unknown = None;
    for mut group in alike.into_values().filter(|group| group.len() > 1) {
        group.sort_by(|(a, x), (b, y)| {
            let order = match a.member == b.member {
                // Told apart when they were read.
                true if a == b => Ordering::Equal,
                _ => compare_files_of(*x, *y).unwrap_or_else(|e: sys::SysError| {
                    unknown.get_or_insert(e.to_string());
                    Ordering::Equal
                }),
            };
            order.then(a.cmp(b))
        });
        let same = |a: &(SharedFile, Held), b: &(SharedFile, Held)| {
            a.0.member != b.0.member
                && compare_files_of(a.1, b.1).is_ok_and(|order| order == Ordering::Equal)
        };
        for run in group.chunk_by(same).filter(|run| run.len() > 1) {
            shared.push(run.iter().map(|(place, _)| *place).collect());
        }
    }
    if let Some(why) = unknown {
        notes.push(format!(
            "which open files the processes share is not known ({why}): each gets its own"
        ));
    }
    shared
}
