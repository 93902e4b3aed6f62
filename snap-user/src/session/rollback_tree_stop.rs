//! Stopping the processes of a tree that is to go back in place: who is there still, who has come since, and what of them
//! stays as it is.

use super::family::{self, Family, Herd, Stopped};
use super::tree_terminals::{Grouped, foreground};
use super::{Result, control};
use crate::model::ProcessTree;
use crate::restore::RestoreError;
use crate::store::Store;
use crate::sys::{Frozen, Hold, proc};
use std::path::Path;

/// Who watches one of them goes on from its own snapshots, and knows nothing of the others.
pub(super) fn refuse_watched(dir: &Path, tree: &ProcessTree) -> Result<()> {
    let mut watched = Vec::new();
    for member in &tree.members {
        if control::connect(dir, member.pid)?.is_some() {
            watched.push(format!(
                "process {} is being watched by itself, and not as a part of this tree: end that watch first (Ctrl-C)",
                member.pid
            ));
        }
    }
    refuse(tree, watched)
}

/// Only the same processes can be put back in place.
pub(super) fn refuse_ended(store: &Store, tree: &ProcessTree) -> Result<()> {
    let mut ended = Vec::new();
    for member in &tree.members {
        let pid = member.pid;
        let session = store.snapshot(member.id)?.header().session;
        let info = store.session_info(session)?;
        let is_same = |stat: proc::Stat| info.is_of(pid, stat.start_time);
        if !proc::is_alive(pid) || !proc::stat(pid, None).is_ok_and(is_same) {
            ended.push(format!("process {pid} ({}) has ended since", info.comm));
        }
    }
    if !ended.is_empty() {
        ended.push(way_of_new_ones(tree));
    }
    refuse(tree, ended)
}

fn way_of_new_ones(tree: &ProcessTree) -> String {
    format!(
        "what has ended cannot go back in place: end the rest of the tree as well, and ksnap restore {} brings all of it back",
        tree.members[0].id.short()
    )
}

/// Refuses for these reasons, if there are any.
pub(super) fn refuse(tree: &ProcessTree, reasons: Vec<String>) -> Result<()> {
    match reasons.is_empty() {
        true => Ok(()),
        false => Err(RestoreError::Refused {
            pid: tree.members[0].pid,
            reasons,
        }
        .into()),
    }
}

/// The stopped processes. All go on when this is dropped, children before their parents.
pub(super) struct Standing {
    /// Those who descend from the others and were not there.
    born: Herd<Frozen>,
    /// Those of the tree, in its order.
    pub(super) members: Herd<Frozen>,
    pub(super) notes: Vec<String>,
}

impl Standing {
    /// Stops all of them.
    ///
    /// # Errors
    /// Where one of the tree is not there any more; all run on then.
    pub(super) fn stop(tree: &ProcessTree) -> Result<Self> {
        let mut family = family::freeze(tree.members[0].pid, Hold::JobControl)?;
        let mut notes = differences(tree, &family);
        notes.append(&mut family.notes);
        let mut all = std::mem::take(&mut family.members.0);
        let mut members = Vec::with_capacity(tree.members.len());
        let mut lost = Vec::new();
        for member in &tree.members {
            match all.iter().position(|one| one.pid == member.pid) {
                Some(at) => members.push(all.remove(at).frozen),
                None => lost.push(format!("process {} has ended since", member.pid)),
            }
        }
        if !lost.is_empty() {
            lost.push(way_of_new_ones(tree));
        }
        let standing = Self {
            born: Herd(all.into_iter().map(|one| one.frozen).collect()),
            members: Herd(members),
            notes,
        };
        refuse(tree, lost)?;
        Ok(standing)
    }

    /// They failed to go back: none of them may run.
    pub(super) fn leave_stopped(mut self) {
        for all in [&mut self.born, &mut self.members] {
            all.0.drain(..).for_each(Frozen::leave_stopped);
        }
    }

    /// Ends those that were not there, children first: process 1 of a PID namespace ends after all others there. Their
    /// parents learn of it as of any end. Gives who they were.
    pub(super) fn end_born(&mut self, notes: &mut Vec<String>) -> Vec<i32> {
        let mut ended = Vec::with_capacity(self.born.0.len());
        while let Some(frozen) = self.born.0.pop() {
            let pid = frozen.pid();
            match frozen.end_with(libc::SIGKILL) {
                Ok(()) => ended.push(pid),
                Err(e) => notes.push(format!(
                    "process {pid}, which the tree did not have, could not be ended: {e}"
                )),
            }
        }
        ended.sort_unstable();
        ended
    }
}

/// What of a stopped tree is not as it was and stays so, a sentence each.
fn differences(tree: &ProcessTree, family: &Family) -> Vec<String> {
    let mut notes = Vec::new();
    for zombie in &tree.zombies {
        if !family.zombies.iter().any(|now| now.pid == zombie.pid) {
            notes.push(format!(
                "process {} ({}), which had ended and was not waited for, is gone: process {} has waited for it since",
                zombie.pid, zombie.comm, tree.members[zombie.parent as usize].pid
            ));
        }
    }
    let is_member = |pid: i32| tree.members.iter().any(|member| member.pid == pid);
    for zombie in &family.zombies {
        let parent = family.members.0[zombie.parent as usize].pid;
        if is_member(parent) && !tree.zombies.iter().any(|then| then.pid == zombie.pid) {
            notes.push(format!(
                "process {} ({}) has ended since, and process {parent} has not waited for it yet",
                zombie.pid, zombie.comm
            ));
        }
    }
    let grouped = |one: &Stopped| Grouped::of(one.pid, proc::own_group(one.pid).unwrap_or(0));
    let zombies = family.zombies.iter().map(|z| Grouped::of(z.pid, z.group));
    let all: Vec<Grouped> = family
        .members
        .0
        .iter()
        .map(grouped)
        .chain(zombies)
        .collect();
    for member in &tree.members {
        let pid = member.pid;
        let mut differs = |what: &str, now: Option<i32>, then: i32| {
            if let Some(now) = now.filter(|now| *now != then) {
                notes.push(format!("process {pid}: its {what} was {then} and is {now}"));
            }
        };
        differs("process group", proc::own_group(pid).ok(), member.group);
        differs("session", proc::own_session(pid).ok(), member.session);
        if let Some(then) = member.foreground {
            let what = "terminal's group in the foreground";
            differs(what, foreground(pid, &all), then);
        }
    }
    notes
}
