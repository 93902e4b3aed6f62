//! What has become of the processes of a stopped tree, and the steps by which they are there again, in their groups.

use super::Result;
use super::revive_kin::kin;
use super::rollback_tree_stop::Standing;
use crate::model::{PageRange, ProcessState, ProcessTree, Zombie};
use crate::restore::again::{self, Bystander, Front, Growth, Hand, Now, Regroup, Remains};
use crate::restore::can_choose_ids;
use crate::restore::revive::Kin;
use crate::sys::{Frozen, proc};

/// The way back of a tree as such, by places: its processes, and those that had ended behind them.
pub(super) struct Regrowth {
    kin: Vec<Kin>,
    steps: Vec<Regroup>,
    hands: Vec<Option<Hand>>,
    remains: Vec<Remains>,
    ended: Vec<(usize, i32, String)>,
    sets_groups: bool,
}

impl Regrowth {
    /// Plans it. `states` are the processes as they shall be, by their places; those that `standing` does not have have
    /// ended since.
    pub(super) fn plan(
        tree: &ProcessTree,
        states: &[&ProcessState],
        standing: &Standing,
        refused: &mut Vec<String>,
        notes: &mut Vec<String>,
    ) -> Result<Self> {
        let mut all = Self {
            kin: kin(tree, states),
            steps: Vec::new(),
            hands: Vec::new(),
            remains: Vec::new(),
            ended: Vec::new(),
            sets_groups: false,
        };
        let mut now: Vec<Now> = Vec::with_capacity(all.kin.len());
        for member in &tree.members {
            now.push(match standing.place_of(member.pid) {
                Some(_) => Now::Lives {
                    session: proc::own_session(member.pid)?,
                    group: proc::own_group(member.pid)?,
                },
                None => Now::Gone,
            });
        }
        for (n, zombie) in (tree.members.len()..).zip(&tree.zombies) {
            now.push(match all.can_end_again(tree, zombie, standing) {
                Ok(true) => {
                    all.ended.push((n, zombie.status, zombie.comm.clone()));
                    Now::Gone
                }
                Ok(false) => Now::Remains,
                Err(why) => {
                    notes.push(format!(
                        "process {} ({}), which had ended and was not waited for, is gone: process {} has waited for it since, and {why}",
                        zombie.pid, zombie.comm, tree.members[zombie.parent as usize].pid
                    ));
                    Now::Remains
                }
            });
        }
        let mut elsewhere = None;
        for (n, member) in tree.members.iter().enumerate() {
            if now[n] == Now::Gone {
                all.look_at_remains(tree, n, standing, refused);
                continue;
            }
            let outer = proc::stat(member.pid, None)?.field(5) as i32;
            if outer != proc::own_group(member.pid)? {
                elsewhere = Some(member.pid);
            }
        }
        if let Some(pid) = elsewhere {
            all.give_up(tree, &now, pid, refused, notes);
            return Ok(all);
        }
        all.sets_groups = true;
        let fronts = fronts(tree, states, &now);
        let is_as_it_was = |(one, now): (&Kin, &Now)| match *now {
            Now::Lives { group, .. } => group == one.group,
            Now::Remains => true,
            Now::Gone => false,
        };
        // Looking at all processes of the machine takes a while.
        if fronts.is_empty() && all.kin.iter().zip(&now).all(is_as_it_was) {
            return Ok(all);
        }
        let mut again = again::plan(&all.kin, &now, &bystanders(), &fronts);
        refused.append(&mut again.refused);
        notes.append(&mut again.notes);
        all.steps = again.steps;
        Ok(all)
    }

    /// Whether one that had ended, and that its parent has waited for since, is made again, and ends as it did.
    fn can_end_again(
        &self,
        tree: &ProcessTree,
        zombie: &Zombie,
        standing: &Standing,
    ) -> std::result::Result<bool, String> {
        if standing.left.iter().any(|left| left.pid == zombie.pid) {
            return Ok(false);
        }
        if let Ok(stat) = proc::stat(zombie.pid, None) {
            return Err(format!("its id is taken ({})", stat.comm));
        }
        if zombie.own_pid != zombie.pid {
            return Err("its id in its PID namespace cannot be chosen from here".into());
        }
        let maker = tree.members[zombie.parent as usize].pid;
        let denied = |e| format!("choosing an id needs CAP_CHECKPOINT_RESTORE ({e})");
        can_choose_ids(Some(maker)).map_err(denied)?;
        Ok(true)
    }

    /// Where process `pid` is in another PID namespace groups are numbered otherwise than ksnap's are, and what others are in
    /// cannot be looked up: nobody is made, and no group put back.
    fn give_up(
        &mut self,
        tree: &ProcessTree,
        now: &[Now],
        pid: i32,
        refused: &mut Vec<String>,
        notes: &mut Vec<String>,
    ) {
        let members = tree.members.iter().zip(now);
        let gone = members.filter(|(_, now)| **now == Now::Gone);
        refused.extend(gone.map(|(member, _)| format!(
            "process {} has ended since, and is not made again in a tree of which one (process {pid}) is in another PID namespace than ksnap: end the rest as well, and ksnap restore brings all of it back",
            member.pid
        )));
        let ended = self.ended.drain(..);
        notes.extend(ended.map(|(n, _, comm)| format!(
            "process {} ({comm}), which had ended and was not waited for, is gone: in a tree of which one (process {pid}) is in another PID namespace than ksnap none is made",
            self.kin[n].pid
        )));
        self.remains.clear();
    }

    /// Who is to wait for what is left of a process that is to be made again.
    fn look_at_remains(
        &mut self,
        tree: &ProcessTree,
        n: usize,
        standing: &Standing,
        refused: &mut Vec<String>,
    ) {
        let pid = tree.members[n].pid;
        let Some(left) = standing.left.iter().find(|left| left.pid == pid) else {
            refused.extend(proc::stat(pid, None).ok().map(|stat| match proc::is_alive(pid) {
                true => format!(
                    "process {pid} has ended since, and its id is taken by another process ({})",
                    stat.comm
                ),
                false => format!(
                    "process {pid} ({}) has ended since, and process {}, which it was left to, has not waited for it yet: do the same again in a moment",
                    stat.comm, stat.ppid
                ),
            }));
            return;
        };
        let is_parent = |m: &usize| tree.members[*m].pid == left.parent;
        let parent = (0..tree.members.len()).find(is_parent);
        match parent.filter(|m| standing.place_of(tree.members[*m].pid).is_some()) {
            Some(parent) => self.remains.push(Remains {
                pid,
                parent,
                status: left.status,
                comm: left.comm.clone(),
            }),
            None => refused.push(format!(
                "process {pid} ({}) has ended since, and process {}, which the tree did not have, has not waited for it: end that one first (kill {})",
                left.comm, left.parent, left.parent
            )),
        }
    }

    /// Groups are put back by these steps, and not with other attributes.
    pub(super) fn sets_groups(&self) -> bool {
        self.sets_groups
    }

    /// Finds out how those that live do what they have to; by the places of the tree.
    pub(super) fn find_hands(
        &mut self,
        frozen: &[(usize, &Frozen)],
        states: &[&ProcessState],
        refused: &mut Vec<String>,
    ) -> Result<()> {
        self.hands = self.kin.iter().map(|_| None).collect();
        if self.steps.is_empty() {
            return Ok(());
        }
        for (place, frozen) in frozen {
            self.hands[*place] = Hand::of(frozen, awaits_signal(states[*place]))?;
            if self.hands[*place].is_none() {
                refused.push(format!(
                    "process {}: its code holds no system call instruction to borrow that a return follows",
                    frozen.pid()
                ));
            }
        }
        Ok(())
    }

    pub(super) fn growth<'a>(&'a self, avoid: &'a [PageRange]) -> Growth<'a> {
        Growth::new(&self.kin, &self.hands, &self.remains, &self.ended, avoid)
    }

    pub(super) fn steps(&self) -> &[Regroup] {
        &self.steps
    }
}

/// Terminals whose foreground is not what it was, of sessions whose leaders live and have them still.
fn fronts(tree: &ProcessTree, states: &[&ProcessState], now: &[Now]) -> Vec<Front> {
    let leaders = tree.members.iter().enumerate();
    let living = leaders.filter(|(n, _)| matches!(now[*n], Now::Lives { .. }));
    // A new one of the same number is another group, of which the terminal knows nothing.
    let is_gone = |group: i32| {
        let mut gone = tree
            .members
            .iter()
            .zip(now)
            .filter(|(_, now)| **now == Now::Gone);
        gone.any(|(member, _)| member.pid == group)
    };
    let changed = living.filter_map(|(leader, member)| {
        let then = member.foreground?;
        let stat = proc::stat(member.pid, None).ok()?;
        // proc_pid_stat(5): tty_nr, tpgid.
        let has_it = stat.field(7) as u32 == states[leader].attributes.terminal;
        let now = stat.field(8) as i32;
        (has_it && (now != then || is_gone(then))).then_some(Front { leader, then, now })
    });
    changed.collect()
}

/// All processes of this machine.
fn bystanders() -> Vec<Bystander> {
    let all = proc::processes().into_iter();
    all.filter_map(|pid| {
        let stat = proc::stat(pid, None).ok()?;
        Some(Bystander {
            pid,
            session: stat.field(6) as i32,
            group: stat.field(5) as i32,
            comm: stat.comm,
        })
    })
    .collect()
}

/// A signal of a child's end was waiting for it.
pub(super) fn awaits_signal(state: &ProcessState) -> bool {
    let mut pending = state.threads.iter().flat_map(|thread| &thread.pending);
    pending.any(|signal| signal.signo == libc::SIGCHLD)
}

/// The place of the living process that one that has ended descends from.
pub(super) fn ancestor(tree: &ProcessTree, lives: &[bool], place: usize) -> usize {
    let mut at = place;
    while !lives[at] {
        at = tree.members[at].parent.map_or(0, |parent| parent as usize);
    }
    at
}
