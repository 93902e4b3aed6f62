//! Stopping the processes of a tree that is to go back in place: who is there still, who has come since, and what of them
//! stays as it is.

use super::family::{self, Herd};
use super::{Result, control};
use crate::model::ProcessTree;
use crate::restore::again::Hand;
use crate::restore::{RestoreError, can_choose_ids};
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

/// Tells for each of them whether it lives. The others are made again.
///
/// # Errors
/// Where one of them can be neither put back nor made again.
pub(super) fn who_lives(store: &Store, tree: &ProcessTree) -> Result<Vec<bool>> {
    let mut lives = Vec::with_capacity(tree.members.len());
    let mut refused = Vec::new();
    for (place, member) in tree.members.iter().enumerate() {
        let pid = member.pid;
        let info = store.session_info(store.snapshot(member.id)?.header().session)?;
        let found = proc::stat(pid, None).ok();
        let same = found.as_ref();
        let same = same.is_some_and(|stat| info.is_of(pid, stat.start_time));
        let alive = proc::is_alive(pid);
        lives.push(alive && same);
        let parent = member
            .parent
            .map(|at| (at as usize, tree.members[at as usize].pid));
        let name = format!("process {pid} ({})", info.comm);
        match (found, parent) {
            (Some(stat), Some((at, parent))) if lives[place] => {
                let is_orphan = !lives[at] || stat.ppid != parent;
                refused.extend(is_orphan.then(|| format!(
                    "{name} lives, but process {parent}, whose child it was, has ended since, and nobody becomes the parent of a process that is there: end it as well (kill {pid}), and it is made again with its parent"
                )));
            }
            (_, None) if lives[place] => {}
            (_, None) => {
                refused.push(format!("{name} has ended since"));
                refused.push(way_of_new_ones(tree));
            }
            (Some(stat), _) if alive => refused.push(format!(
                "{name} has ended since, and its id is taken by another process ({}): end that one first (kill {pid}), if it may go",
                stat.comm
            )),
            (_, Some((_, parent))) => refused.extend(can_choose_ids(Some(parent)).err().map(|e| format!(
                "{name} has ended since, and to make it again with its id takes CAP_CHECKPOINT_RESTORE ({e}): do it as root"
            ))),
        }
    }
    refuse(tree, refused)?;
    Ok(lives)
}

fn way_of_new_ones(tree: &ProcessTree) -> String {
    format!(
        "without its first process a tree does not go back in place: end the rest of it as well, and ksnap restore {} brings all of it back",
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

/// What is left of a process that its parent has not waited for.
pub(super) struct Left {
    pub(super) pid: i32,
    pub(super) parent: i32,
    /// How it ended (`waitpid(2)`).
    pub(super) status: i32,
    pub(super) comm: String,
}

/// The stopped processes. All go on when this is dropped, children before their parents.
pub(super) struct Standing {
    /// Those who descend from the others and were not there.
    born: Herd<Frozen>,
    /// Those of the tree that live, in its order.
    pub(super) members: Herd<Frozen>,
    /// What is left of others below them.
    pub(super) left: Vec<Left>,
    pub(super) notes: Vec<String>,
}

impl Standing {
    /// Stops all of them; `lives` says which of the tree are there.
    ///
    /// # Errors
    /// Where one of those is not there any more; all run on then.
    pub(super) fn stop(tree: &ProcessTree, lives: &[bool]) -> Result<Self> {
        let mut family = family::freeze(tree.members[0].pid, Hold::JobControl)?;
        let notes = std::mem::take(&mut family.notes);
        let pids: Vec<i32> = family.members.0.iter().map(|one| one.pid).collect();
        let left = family.zombies.drain(..).map(|zombie| Left {
            pid: zombie.pid,
            parent: pids[zombie.parent as usize],
            status: zombie.status,
            comm: zombie.comm,
        });
        let left = left.collect();
        let mut all = std::mem::take(&mut family.members.0);
        let mut members = Vec::with_capacity(tree.members.len());
        let mut lost = Vec::new();
        let living = tree.members.iter().zip(lives).filter(|(_, lives)| **lives);
        for (member, _) in living {
            match all.iter().position(|one| one.pid == member.pid) {
                Some(at) => members.push(all.remove(at).frozen),
                None => lost.push(format!(
                    "process {} has ended just now, or its parent has: do the same again",
                    member.pid
                )),
            }
        }
        let standing = Self {
            born: Herd(all.into_iter().map(|one| one.frozen).collect()),
            members: Herd(members),
            left,
            notes,
        };
        refuse(tree, lost)?;
        Ok(standing)
    }

    /// Where it is among those that live; `None` for one that does not.
    pub(super) fn place_of(&self, pid: i32) -> Option<usize> {
        self.members.0.iter().position(|one| one.pid() == pid)
    }

    /// They failed to go back: none of them may run.
    pub(super) fn leave_stopped(mut self) {
        for all in [&mut self.born, &mut self.members] {
            all.0.drain(..).for_each(Frozen::leave_stopped);
        }
    }

    /// Ends those that were not there, children first: process 1 of a PID namespace ends after all others there. Gives who
    /// they were.
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

    /// Has their parents wait for children that have ended and that the tree did not have, of which they know nothing any
    /// more. `keeps` says who is to have a signal of a child's end waiting.
    pub(super) fn bury_strangers(
        &self,
        tree: &ProcessTree,
        keeps: &[bool],
        notes: &mut Vec<String>,
    ) {
        let is_known = |pid: i32| {
            let zombies = tree.zombies.iter().map(|zombie| zombie.pid);
            tree.members
                .iter()
                .map(|m| m.pid)
                .chain(zombies)
                .any(|known| known == pid)
        };
        for (frozen, keeps) in self.members.0.iter().zip(keeps) {
            let pid = frozen.pid();
            let all = proc::children(&[pid]).remove(0).1.into_iter();
            let ended = all.filter(|child| !is_known(*child) && !proc::is_alive(*child));
            let strangers: Vec<i32> = ended
                .filter_map(|child| proc::own_id(child, child).ok())
                .collect();
            if strangers.is_empty() {
                continue;
            }
            let done = match Hand::of(frozen, *keeps) {
                Ok(Some(hand)) => hand.bury(&strangers),
                Ok(None) => continue,
                Err(e) => Err(e),
            };
            notes.extend(done.err().map(|e| {
                format!(
                    "process {pid} finds children that it did not have, and that have ended: {e}"
                )
            }));
        }
    }
}
