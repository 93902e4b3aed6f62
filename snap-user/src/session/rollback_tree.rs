//! `rollback --tree`: the living processes of a tree, put back to one moment together or not at all.
//!
//! All are prepared while they run, one after the other; then all are stopped, by job control, so that none runs if ksnap
//! dies; then all are planned, and only when no plan is refused anything is touched. Those who descend from them and were
//! not there then are stopped with them, and ended when all of them are back.

use super::engine::Engine;
use super::events::LazyProbes;
use super::rollback::{find_to_go_back_to, of_one_to_put_back};
use super::rollback_parts::Prepared;
use super::rollback_tree_lost::Lost;
use super::rollback_tree_put_back::put_back;
use super::rollback_tree_stop::{Standing, refuse_watched, who_lives};
use super::tree_engine::TreeEngine;
use super::types::{hex, unhex};
use super::{LogEntry, Options, Result, RolledBack, SessionError, control};
use crate::model::{ProcessTree, SnapshotId, TreeMember};
use crate::restore::{RestoreError, fault};
use crate::store::Store;
use crate::sys::{Frozen, monotonic_ns};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// A tree that was rolled back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RolledBackTree {
    /// The snapshot of its root, by which the tree is named.
    #[serde(serialize_with = "hex", deserialize_with = "unhex")]
    pub to: SnapshotId,
    /// The processes, parents before their children.
    pub processes: Vec<RolledBackProcess>,
    /// Those of them that had ended since, and were made again.
    pub made: Vec<i32>,
    /// Processes that the tree did not have, and that were ended.
    pub ended: Vec<i32>,
    /// How long all of them were stopped, in nanoseconds.
    pub stop_ns: u64,
    /// What the user should know of the tree as a whole, a sentence each.
    pub notes: Vec<String>,
}

/// A process of a tree that was rolled back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RolledBackProcess {
    /// The process.
    pub pid: i32,
    /// Its name.
    pub comm: String,
    /// What was done.
    #[serde(flatten)]
    pub back: RolledBack,
}

/// The tree that a process and its descendants are to go back to: the snapshot of its root, and its record; `None` where
/// only the ksnap that watches them can read it.
pub fn find_tree_to_go_back_to(
    dir: &Path,
    pid: i32,
    reference: &str,
) -> Result<Option<(LogEntry, ProcessTree)>> {
    let store = Store::open(dir)?;
    let reference = among_trees(&store, pid, reference);
    let Some(entry) = find_to_go_back_to(dir, pid, &reference)? else {
        return Ok(None);
    };
    let tree = tree_of(&store, pid, entry.id)?;
    Ok(Some((entry, tree)))
}

/// The latest that is meant is a tree: one that is being published has snapshots already, and no record yet.
fn among_trees(store: &Store, pid: i32, reference: &str) -> String {
    let steps = reference.strip_prefix("latest");
    let steps = steps.filter(|steps| steps.is_empty() || steps.starts_with('~'));
    match (steps, store.latest_tree(pid)) {
        (Some(steps), Ok(Some(root))) => format!("{root}{steps}"),
        // Whoever looks for it says what is wrong.
        _ => reference.to_owned(),
    }
}

fn tree_of(store: &Store, pid: i32, root: SnapshotId) -> Result<ProcessTree> {
    let short = root.short();
    let Some(tree) = store.tree(root)? else {
        let there = match store.latest_tree(pid)? {
            Some(id) => format!("the newest tree of process {pid} is {}", id.short()),
            None => format!("no tree of process {pid} is in the store (ksnap snap {pid} --tree)"),
        };
        return Err(SessionError::Usage(format!(
            "snapshot {short} names no tree, but one process: {there}; without --tree that process alone goes back"
        )));
    };
    match tree.members[0].pid {
        same if same == pid => Ok(tree),
        other => Err(SessionError::Usage(format!(
            "the tree {short} begins with process {other}, not with {pid}: ksnap rollback {other} {short} --tree"
        ))),
    }
}

/// Rolls a process and its descendants back to the moment at which they were captured together: through the ksnap that
/// watches them as a tree, or right here.
///
/// # Errors
/// A refusal leaves all of them as they were. A failure halfway leaves all of them stopped.
pub fn rollback_tree(
    dir: &Path,
    pid: i32,
    reference: &str,
    options: &Options,
) -> Result<RolledBackTree> {
    let store = Store::open(dir)?;
    let reference = &among_trees(&store, pid, reference);
    let found = store.resolve(reference, Some(pid));
    if let Some(mut watcher) = control::connect(dir, pid)? {
        control::refuse_own(options.own)?;
        return watcher.rollback_tree(&control::named(found, reference)?);
    }
    let to = found?;
    let tree = tree_of(&store, pid, to)?;
    refuse_watched(dir, &tree)?;
    let lives = who_lives(&store, &tree)?;
    let probes = LazyProbes::new(options.probes);
    let count = tree.members.len() as u64;
    let each = Options {
        memory: options.memory / count,
        mirror: options.mirror / count,
        ..*options
    };
    // These outlive the stop: dropping them waits for their threads.
    let mut members = Vec::with_capacity(tree.members.len());
    for (place, member) in places(&tree, &lives, true) {
        let one = Member::prepare(&store, (place, member.pid, member.id), &each, &probes);
        members.push(one.map_err(|e| of_one_to_put_back(member.pid, e))?);
    }
    let mut lost = load_lost(&store, &tree, &lives)?;
    go_back(&tree, &lives, &mut members, &mut lost)
}

/// The members that live, or those that do not, with their places.
fn places<'a>(
    tree: &'a ProcessTree,
    lives: &'a [bool],
    living: bool,
) -> impl Iterator<Item = (usize, &'a TreeMember)> {
    let all = tree.members.iter().enumerate();
    all.filter(move |(place, _)| lives[*place] == living)
}

fn load_lost(store: &Store, tree: &ProcessTree, lives: &[bool]) -> Result<Vec<Lost>> {
    let lost = places(tree, lives, false);
    lost.map(|(place, _)| Lost::prepare(store, tree, place))
        .collect()
}

impl TreeEngine<'_> {
    /// Rolls its processes back to a tree that was captured of them. Snapshots that follow have it as their parent.
    ///
    /// # Errors
    /// A refusal leaves all of them as they were. A failure halfway leaves all of them stopped.
    pub(super) fn roll_back(&mut self, reference: &str) -> Result<RolledBackTree> {
        let reference = &among_trees(&self.store, self.root, reference);
        let to = match SnapshotId::from_hex(reference) {
            Some(id) => id,
            None => {
                let first = self.first().ok_or_else(|| self.is_changing())?;
                let session = first.session();
                self.store
                    .resolve_in_session(session, reference, self.root)?
            }
        };
        let tree = tree_of(&self.store, self.root, to)?;
        let lives = who_lives(&self.store, &tree)?;
        // Their sessions are to be written by those that are made again.
        self.let_go_of_ended();
        let mut lost = load_lost(&self.store, &tree, &lives)?;
        let mut members = Vec::with_capacity(tree.members.len());
        let prepared = self.take_out(&tree, &lives, &mut members);
        let done = prepared.and_then(|()| go_back(&tree, &lives, &mut members, &mut lost));
        let halfway = matches!(
            done,
            Err(SessionError::Restore(RestoreError::TreeHalfway { .. }))
        );
        for mut member in members {
            member.engine.mixed |= halfway;
            if done.is_err() {
                member.engine.did_not_go_back();
            }
            self.add(member.engine);
        }
        if let Ok(back) = &done {
            self.let_go_of(|engine| back.ended.contains(&engine.target.pid));
        }
        done
    }

    /// Takes the engines of these processes, each with what is loaded for it. It is for the caller to put them back.
    fn take_out(
        &mut self,
        tree: &ProcessTree,
        lives: &[bool],
        members: &mut Vec<Member>,
    ) -> Result<()> {
        for (place, member) in places(tree, lives, true) {
            let pid = member.pid;
            let found = self.engines.iter().position(|one| one.target.pid == pid);
            let mut engine = match found {
                Some(at) => self.engines.remove(at),
                // It has come back below the root since.
                None => Engine::attach_sharing_to_put_back(
                    &self.store,
                    pid,
                    member.id,
                    &self.options,
                    self.probes,
                )?,
            };
            match engine.prepare_to_go_back(member.id) {
                Ok(prepared) => members.push(Member {
                    place,
                    engine,
                    prepared,
                }),
                Err(e) => {
                    engine.did_not_go_back();
                    self.add(engine);
                    return Err(of_one_to_put_back(pid, e));
                }
            }
        }
        Ok(())
    }
}

/// Stops all of them, puts them back, and lets them go on.
fn go_back(
    tree: &ProcessTree,
    lives: &[bool],
    members: &mut [Member],
    lost: &mut [Lost],
) -> Result<RolledBackTree> {
    let stop = monotonic_ns();
    let mut standing = Standing::stop(tree, lives)?;
    fault::point("stopped");
    let done = match put_back(tree, lives, (members, lost), &mut standing) {
        Ok(done) => done,
        Err(e) => {
            if matches!(e, SessionError::Restore(RestoreError::TreeHalfway { .. })) {
                standing.leave_stopped();
            }
            return Err(e);
        }
    };
    let mut notes = done.notes;
    notes.append(&mut standing.notes);
    let ended = standing.end_born(&mut notes);
    fault::point("those born since ended");
    standing.bury_strangers(tree, &done.keeps, &mut notes);
    for member in members.iter_mut() {
        member.engine.unmark_mixed();
        member.engine.mixed = false;
    }
    let stopped: Vec<bool> = standing
        .members
        .0
        .iter()
        .map(Frozen::is_job_stopped)
        .collect();
    drop(standing);
    let stop_ns = monotonic_ns() - stop;
    tracing::debug!(stop_us = stop_ns / 1000, "rolled back");
    let mut processes = Vec::with_capacity(tree.members.len());
    for (member, (applied, pages, mut notes)) in members.iter_mut().zip(done.each) {
        notes.extend(member.engine.follow_back(&member.prepared, &pages));
        let target = member.engine.target();
        let snapshot = &member.prepared.snapshot;
        let (pid, comm) = (target.pid, target.comm.clone());
        let back = (applied.written, applied.discarded, notes);
        processes.push((member.place, pid, comm, snapshot, back));
    }
    for (one, (filled, notes)) in lost.iter().zip(done.made) {
        let (pid, comm) = (one.pid(), one.state.comm.clone());
        let back = (filled.pages, 0, notes);
        processes.push((one.place, pid, comm, &one.snapshot, back));
    }
    processes.sort_by_key(|(place, ..)| *place);
    let processes = processes.into_iter().zip(stopped);
    let processes = processes.map(|((_, pid, comm, snapshot, back), stopped)| {
        let (written, discarded, notes) = back;
        RolledBackProcess {
            pid,
            comm,
            back: RolledBack {
                to: snapshot.id(),
                seq: snapshot.header().seq,
                written,
                discarded,
                stop_ns,
                stopped,
                notes,
            },
        }
    });
    Ok(RolledBackTree {
        to: tree.members[0].id,
        processes: processes.collect(),
        made: lost.iter().map(Lost::pid).collect(),
        ended,
        stop_ns,
        notes,
    })
}

/// A process that lives, and what is loaded for it.
pub(super) struct Member {
    /// Its place in the tree.
    pub(super) place: usize,
    pub(super) engine: Engine,
    pub(super) prepared: Prepared,
}

impl Member {
    fn prepare(
        store: &Store,
        (place, pid, to): (usize, i32, SnapshotId),
        options: &Options,
        probes: &LazyProbes,
    ) -> Result<Self> {
        let mut engine = Engine::attach_sharing_to_put_back(store, pid, to, options, probes)?;
        let prepared = engine.prepare_to_go_back(to)?;
        Ok(Self {
            place,
            engine,
            prepared,
        })
    }

    pub(super) fn pid(&self) -> i32 {
        self.engine.target().pid
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::tests::support::{info, new_store, publish};

    #[test]
    fn the_latest_of_a_tree_is_one_and_no_snapshot_that_is_becoming_one() {
        let (_folder, store) = new_store();
        let mut session = store.create_session(&info(10)).expect("a session");
        let mut last = None;
        for n in 0..3 {
            let done = publish(&mut session, last, [], [(n, 7)]).expect("published");
            last = Some(done.id);
            if n == 2 {
                break;
            }
            let root = TreeMember {
                id: done.id,
                pid: 10,
                parent: None,
                group: 10,
                session: 10,
                stopped: false,
                foreground: None,
            };
            let tree = ProcessTree {
                time_ns: n + 1,
                members: vec![root],
                ..ProcessTree::default()
            };
            store.publish_tree(&tree).expect("a tree");
        }
        let meant = |reference| {
            let reference = among_trees(&store, 10, reference);
            store.resolve(&reference, Some(10)).expect("there")
        };
        let seq = |id| store.snapshot(id).expect("there").header().seq;
        assert_eq!(seq(meant("latest")), 2);
        assert_eq!(seq(meant("latest~")), 1);
        assert_eq!(seq(meant("@3")), 3);
        assert_eq!(among_trees(&store, 11, "latest"), "latest");
        assert_eq!(among_trees(&store, 10, "later"), "later");
    }
}
