//! `rollback --tree`: the living processes of a tree, put back to one moment together or not at all.
//!
//! All are prepared while they run, one after the other; then all are stopped, by job control, so that none runs if ksnap
//! dies; then all are planned, and only when no plan is refused anything is touched. Those who descend from them and were
//! not there then are stopped with them, and ended when all of them are back.

use super::engine::Engine;
use super::events::LazyProbes;
use super::rollback::{find_to_go_back_to, of_one_to_put_back};
use super::rollback_parts::{Found, Prepared, Writing};
use super::rollback_tree_stop::{Standing, refuse, refuse_ended, refuse_watched};
use super::rollback_world::Live;
use super::tree_engine::TreeEngine;
use super::tree_files::{HeldFile, Holder, held_files, shared_files};
use super::types::{hex, unhex};
use super::{LogEntry, Options, Result, RolledBack, SessionError, control};
use crate::model::{PageSet, ProcessState, ProcessTree, SavedFile, SharedFile, SnapshotId};
use crate::restore::files::{self, Joint, Owner};
use crate::restore::{
    Applied, Part, RestoreError, RestorePlan, TreeFiles, apply_tree, fault, plan_but_files,
};
use crate::store::Store;
use crate::sys::{Frozen, SysError, monotonic_ns};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::os::fd::AsFd;
use std::path::Path;

/// A tree that was rolled back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RolledBackTree {
    /// The snapshot of its root, by which the tree is named.
    #[serde(serialize_with = "hex", deserialize_with = "unhex")]
    pub to: SnapshotId,
    /// The processes, parents before their children.
    pub processes: Vec<RolledBackProcess>,
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
    refuse_ended(&store, &tree)?;
    let probes = LazyProbes::new(options.probes);
    let count = tree.members.len() as u64;
    let each = Options {
        memory: options.memory / count,
        mirror: options.mirror / count,
        ..*options
    };
    // These outlive the stop: dropping them waits for their threads.
    let mut members = Vec::with_capacity(tree.members.len());
    for member in &tree.members {
        let one = Member::prepare(&store, member.pid, member.id, &each, &probes);
        members.push(one.map_err(|e| of_one_to_put_back(member.pid, e))?);
    }
    go_back(&tree, &mut members)
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
        refuse_ended(&self.store, &tree)?;
        let mut members = Vec::with_capacity(tree.members.len());
        let prepared = self.take_out(&tree, &mut members);
        let done = prepared.and_then(|()| go_back(&tree, &mut members));
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
    fn take_out(&mut self, tree: &ProcessTree, members: &mut Vec<Member>) -> Result<()> {
        for member in &tree.members {
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
                Ok(prepared) => members.push(Member { engine, prepared }),
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
fn go_back(tree: &ProcessTree, members: &mut [Member]) -> Result<RolledBackTree> {
    let stop = monotonic_ns();
    let mut standing = Standing::stop(tree)?;
    fault::point("stopped");
    let done = match put_back(tree, members, &mut standing) {
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
    let back = members.iter_mut().zip(done.each).zip(stopped);
    let processes = back
        .map(|((member, (applied, pages, mut notes)), stopped)| {
            notes.extend(member.engine.follow_back(&member.prepared, &pages));
            let target = member.engine.target();
            RolledBackProcess {
                pid: target.pid,
                comm: target.comm.clone(),
                back: RolledBack {
                    to: member.prepared.snapshot.id(),
                    seq: member.prepared.snapshot.header().seq,
                    written: applied.written,
                    discarded: applied.discarded,
                    stop_ns,
                    stopped,
                    notes,
                },
            }
        })
        .collect();
    Ok(RolledBackTree {
        to: tree.members[0].id,
        processes,
        ended,
        stop_ns,
        notes,
    })
}

/// A process, and what is loaded for it.
struct Member {
    engine: Engine,
    prepared: Prepared,
}

impl Member {
    fn prepare(
        store: &Store,
        pid: i32,
        to: SnapshotId,
        options: &Options,
        probes: &LazyProbes,
    ) -> Result<Self> {
        let mut engine = Engine::attach_sharing_to_put_back(store, pid, to, options, probes)?;
        let prepared = engine.prepare_to_go_back(to)?;
        Ok(Self { engine, prepared })
    }

    fn pid(&self) -> i32 {
        self.engine.target().pid
    }
}

/// What was done inside the stop: for each process what came of it, the pages that may have been written, and notes.
struct Done {
    each: Vec<(Applied, PageSet, Vec<String>)>,
    notes: Vec<String>,
}

/// The part inside the stop: what is dirty, all plans, and then their application.
fn put_back(tree: &ProcessTree, members: &mut [Member], standing: &mut Standing) -> Result<Done> {
    let mut found = Vec::with_capacity(members.len());
    for (member, frozen) in members.iter_mut().zip(&mut standing.members.0) {
        let pid = member.pid();
        let looked = member.engine.look_stopped(frozen, &member.prepared);
        found.push(looked.map_err(|e| of_one_to_put_back(pid, e))?);
    }
    let mut refused = Vec::new();
    let mut plans = Vec::with_capacity(members.len());
    for (member, found) in members.iter().zip(&found) {
        plans.push(plan_one(member, found, &mut refused)?);
    }
    let mut notes = Vec::new();
    let states: Vec<&ProcessState> = members.iter().map(|m| &m.prepared.target).collect();
    let now: Vec<&ProcessState> = found.iter().map(|f| &f.live).collect();
    let damaged = |why: String| SessionError::Usage(format!("the tree is damaged: {why}"));
    let mut wanted = Joint::new(&states, &tree.shared).map_err(damaged)?;
    let mut live = Joint::new(&now, &shared_now(&now, &mut notes)).map_err(damaged)?;
    let world = Live {
        pid: tree.members[0].pid,
    };
    let mut files = wanted.plan_in_place(&mut live, &states, &now, &world);
    drop(states);
    refused.append(&mut files.all.refusals);
    refuse(tree, refused)?;
    notes.append(&mut files.all.notes);
    let mut writings: Vec<Writing> = Vec::with_capacity(members.len());
    let mut seen = BTreeSet::new();
    let each = members
        .iter_mut()
        .zip(&mut plans)
        .zip(&mut found)
        .enumerate();
    for (n, ((member, plan), found)) in each {
        plan.files = std::mem::take(&mut files.members[n]);
        let loaded = member.engine.load_rest(plan, found, &mut member.prepared);
        let mut writing = loaded.map_err(|e| e.of_process(member.pid()))?;
        // Several may have a file, whose content is written once.
        writing
            .changed
            .retain(|file: &SavedFile| seen.insert(file.identity));
        writings.push(writing);
    }
    let owners: Vec<Owner<'_>> = members
        .iter()
        .map(|m| (m.pid(), m.engine.target().pidfd.as_fd()))
        .collect();
    // The last thing that may be refused.
    let options = files::Options::default();
    let made = match files::make(&files.all, wanted.view(0), &owners, &options) {
        Ok(made) => made,
        Err(e) => return Err(not_made(tree, &e)),
    };
    notes.extend(made.notes.iter().cloned());
    let mut parts = Vec::with_capacity(members.len());
    for (n, frozen) in standing.members.0.iter_mut().enumerate() {
        let prepared = &members[n].prepared;
        parts.push(Part {
            frozen,
            plan: &plans[n],
            target: &prepared.target,
            live: &found[n].live,
            pages: writings[n].pages(prepared),
            changed: &writings[n].changed,
            process: owners[n].1,
        });
    }
    let files = TreeFiles {
        wanted: &mut wanted,
        live: &mut live,
        plan: &files.all,
        made: &made,
    };
    let (applied, more) = apply_tree(parts, files, || mark_all(members))?;
    notes.extend(more);
    let each = applied.into_iter().zip(writings).zip(plans);
    let each = each.map(|((mut applied, writing), plan)| {
        let mut notes = plan.notes;
        notes.append(&mut applied.notes);
        (applied, writing.may_differ, notes)
    });
    Ok(Done {
        each: each.collect(),
        notes,
    })
}

/// Plans one process, its files aside. What is refused is added to what others are refused for.
fn plan_one(member: &Member, found: &Found, refused: &mut Vec<String>) -> Result<RestorePlan> {
    let world = Live { pid: member.pid() };
    match plan_but_files(&member.prepared.target, &found.live, &world) {
        Ok(plan) => Ok(plan),
        Err(RestoreError::Refused { pid, reasons }) => {
            let named = |why: String| format!("process {pid}: {why}");
            refused.extend(reasons.into_iter().map(named));
            Ok(RestorePlan::default())
        }
        Err(e) => Err(e.into()),
    }
}

/// Open files that several of the stopped processes share now.
fn shared_now(now: &[&ProcessState], notes: &mut Vec<String>) -> Vec<Vec<SharedFile>> {
    let held: Vec<Vec<HeldFile>> = now.iter().map(|state| held_files(state)).collect();
    let holders = now.iter().zip(&held).map(|(state, files)| Holder {
        pid: state.pid,
        files,
    });
    shared_files(&holders.collect::<Vec<_>>(), notes)
}

fn not_made(tree: &ProcessTree, error: &SysError) -> SessionError {
    RestoreError::Refused {
        pid: tree.members[0].pid,
        reasons: vec![format!("an open file of the tree: {error}")],
    }
    .into()
}

/// From here on each of them is on a mixed state for whoever comes after a ksnap that died.
fn mark_all(members: &[Member]) -> Result<()> {
    for (n, member) in members.iter().enumerate() {
        if let Err(e) = member.engine.mark_mixed() {
            // Those that were marked before stay so.
            let marked = members[..n].iter().filter(|m| !m.engine.mixed);
            marked.for_each(|m| m.engine.unmark_mixed());
            return Err(e);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::TreeMember;
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
