//! In which order processes that have ended are made again, and groups put back. Pure.

use crate::restore::revive::{Birthstep, Kin, births};

/// What there is of a process of the tree now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Now {
    /// It lives, in this session and group.
    Lives {
        /// Its session.
        session: i32,
        /// Its group.
        group: i32,
    },
    /// It had ended then, and nobody has waited for it yet.
    Remains,
    /// Nothing, or what its parent has not waited for: it is to be made.
    Gone,
}

/// A process of this machine, whether it is one of the tree or not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bystander {
    /// Its id.
    pub pid: i32,
    /// Its name.
    pub comm: String,
    /// Its session.
    pub session: i32,
    /// Its group.
    pub group: i32,
}

/// What one of the processes does, by its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Regroup {
    /// Its parent makes it.
    Make(usize),
    /// Begins a session of its own, and a group.
    Session(usize),
    /// Joins this group, or begins it where that is its own id.
    Join(usize, i32),
    /// Brings this group to the foreground of the terminal of its session.
    Front(usize, i32),
}

/// The group in the foreground of a terminal, which is not the one that was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Front {
    /// Who leads its session, by its place, and lives.
    pub leader: usize,
    /// The group that was there.
    pub then: i32,
    /// The one that is.
    pub now: i32,
}

/// The steps, and what stands in their way.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Again {
    /// In their order.
    pub steps: Vec<Regroup>,
    /// Why it cannot be done, a sentence each.
    pub refused: Vec<String>,
    /// What stays different, a sentence each.
    pub notes: Vec<String>,
}

/// Plans the way back to `kin`, those that had ended behind the others. `now` has for each what there is of it, `all` the
/// processes of the machine: the id of one that is gone may still be that of a group or session. `fronts` are the terminals
/// whose foreground has changed.
pub fn plan(kin: &[Kin], now: &[Now], all: &[Bystander], fronts: &[Front]) -> Again {
    let places = |now: &Now| match *now {
        Now::Lives { session, group } => Some((session, group)),
        Now::Remains | Now::Gone => None,
    };
    let mut planner = Planner {
        kin,
        now,
        all,
        places: now.iter().map(places).collect(),
        again: Again::default(),
    };
    planner.free_ids();
    planner.grow();
    planner.sessions();
    planner.groups();
    planner.fronts(fronts);
    planner.again
}

struct Planner<'a> {
    kin: &'a [Kin],
    now: &'a [Now],
    all: &'a [Bystander],
    /// The session and group that each has so far; `None` for one that is not there, or has ended.
    places: Vec<Option<(i32, i32)>>,
    again: Again,
}

impl Planner<'_> {
    fn is_gone(&self, n: usize) -> bool {
        self.now[n] == Now::Gone
    }

    fn join(&mut self, n: usize, group: i32) {
        self.again.steps.push(Regroup::Join(n, group));
        if let Some(place) = &mut self.places[n] {
            place.1 = group;
        }
    }

    /// An id is not free as long as it is that of a group or session. Who lives in such a group leaves it until it has
    /// its first process again.
    fn free_ids(&mut self) {
        let gone: Vec<usize> = (0..self.kin.len()).filter(|n| self.is_gone(*n)).collect();
        for n in gone {
            let id = self.kin[n].pid;
            // What is left of those that are gone is waited for before.
            let is_left = |other: &Bystander| {
                (0..self.kin.len()).any(|n| self.is_gone(n) && self.kin[n].pid == other.pid)
            };
            let others: Vec<_> = self.all.iter().filter(|other| !is_left(other)).collect();
            for other in others {
                let what = match (other.session == id, other.group == id) {
                    (true, _) => "session",
                    (false, true) => "process group",
                    (false, false) => continue,
                };
                let lives = |m: &usize| self.kin[*m].pid == other.pid && self.places[*m].is_some();
                let member = (0..self.kin.len()).find(lives);
                match member {
                    Some(member) if what == "process group" => self.join(member, other.pid),
                    _ => self.again.refused.push(format!(
                        "process {id} has ended since, and its id is still that of the {what} that process {} ({}) is in: end that one first (kill {})",
                        other.pid, other.comm, other.pid
                    )),
                }
            }
        }
    }

    /// Makes those that are gone, each in its parent's session or one of its own, in the order of those of a new tree.
    fn grow(&mut self) {
        let Some(first) = self.kin.first() else {
            return;
        };
        for step in births(self.kin, first.group).steps {
            match step {
                Birthstep::Make { child } if self.is_gone(child) => {
                    let parent = self.kin[child].parent;
                    self.places[child] = parent.and_then(|parent| self.places[parent]);
                    self.again.steps.push(Regroup::Make(child));
                }
                Birthstep::Session(n) if self.is_gone(n) => {
                    self.places[n] = Some((self.kin[n].pid, self.kin[n].pid));
                    self.again.steps.push(Regroup::Session(n));
                }
                // Groups have an order of their own: not all of those are there that a new tree would have.
                _ => {}
            }
        }
    }

    /// Of those that live it is said with their other attributes.
    fn sessions(&mut self) {
        for (n, one) in self.kin.iter().enumerate() {
            if let Some((session, _)) = self.places[n]
                && self.is_gone(n)
                && session != one.session
            {
                self.again.notes.push(format!(
                    "process {}, which is made again, was in session {} and is in that of its parent, {session}",
                    one.pid, one.session
                ));
            }
        }
    }

    /// Gives each its group: first those who begin one.
    fn groups(&mut self) {
        for begins in [true, false] {
            for n in 0..self.kin.len() {
                let one = self.kin[n];
                let Some((session, group)) = self.places[n] else {
                    continue;
                };
                let begins_it = one.group == one.pid;
                // 0 is the group of one that began outside of its PID namespace.
                if begins_it != begins || group == one.group || one.group == 0 {
                    continue;
                }
                if session != one.session || session == one.pid {
                    // Where the session is another one, that is said of it; who leads one leads its group.
                    continue;
                }
                match begins || self.has_group(session, one.group) {
                    true => self.join(n, one.group),
                    false => self.again.notes.push(format!(
                        "process {}: its process group was {} and is {group}: nobody is in that one any more",
                        one.pid, one.group
                    )),
                }
            }
        }
    }

    /// When all groups are there.
    fn fronts(&mut self, fronts: &[Front]) {
        for Front { leader, then, now } in fronts {
            let session = self.kin[*leader].session;
            match self.has_group(session, *then) {
                true => self.again.steps.push(Regroup::Front(*leader, *then)),
                false => self.again.notes.push(format!(
                    "process {}: the group in the foreground of its terminal was {then} and is {now}: nobody is in that one any more",
                    self.kin[*leader].pid
                )),
            }
        }
    }

    /// Whether somebody is in this group by then, in the same session.
    fn has_group(&self, session: i32, group: i32) -> bool {
        let is_member = |pid: i32| self.kin.iter().any(|one| one.pid == pid);
        self.places.contains(&Some((session, group)))
            || self.all.iter().any(|other| {
                !is_member(other.pid) && (other.session, other.group) == (session, group)
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kin(list: &[(i32, Option<usize>, i32, i32)]) -> Vec<Kin> {
        let one = |&(pid, parent, session, group): &(i32, Option<usize>, i32, i32)| Kin {
            pid,
            parent,
            session,
            group,
        };
        list.iter().map(one).collect()
    }

    fn lives(session: i32, group: i32) -> Now {
        Now::Lives { session, group }
    }

    /// As many bystanders as live.
    fn all(kin: &[Kin], now: &[Now]) -> Vec<Bystander> {
        let living = kin.iter().zip(now).filter_map(|(one, now)| match *now {
            Now::Lives { session, group } => Some(Bystander {
                pid: one.pid,
                comm: "x".into(),
                session,
                group,
            }),
            _ => None,
        });
        living.collect()
    }

    /// A shell, a pipeline of two, and a daemon with a child.
    fn shell() -> Vec<Kin> {
        kin(&[
            (10, None, 10, 10),
            (11, Some(0), 10, 11),
            (12, Some(0), 10, 11),
            (13, Some(0), 13, 13),
            (14, Some(3), 13, 13),
        ])
    }

    #[test]
    fn who_lives_as_it_was_does_nothing() {
        let kin = shell();
        let now = [
            lives(10, 10),
            lives(10, 11),
            lives(10, 11),
            lives(13, 13),
            lives(13, 13),
        ];
        assert_eq!(plan(&kin, &now, &all(&kin, &now), &[]), Again::default());
    }

    #[test]
    fn a_subtree_is_made_parents_first_in_a_session_of_its_own() {
        let kin = shell();
        let now = [
            lives(10, 10),
            lives(10, 11),
            lives(10, 11),
            Now::Gone,
            Now::Gone,
        ];
        let again = plan(&kin, &now, &all(&kin, &now), &[]);
        let steps = [Regroup::Make(3), Regroup::Session(3), Regroup::Make(4)];
        assert_eq!(again.steps, steps);
        assert_eq!((again.refused, again.notes), (vec![], vec![]));
    }

    #[test]
    fn who_is_in_the_group_of_one_that_is_gone_makes_way_for_it() {
        let kin = shell();
        let mut now = [
            lives(10, 10),
            Now::Gone,
            lives(10, 11),
            lives(13, 13),
            lives(13, 13),
        ];
        let again = plan(&kin, &now, &all(&kin, &now), &[]);
        let steps = [
            Regroup::Join(2, 12),
            Regroup::Make(1),
            Regroup::Join(1, 11),
            Regroup::Join(2, 11),
        ];
        assert_eq!(again.steps, steps);
        assert!(again.refused.is_empty(), "{again:?}");
        // One that is nobody's of the tree does not.
        let mut machine = all(&kin, &now);
        machine.push(Bystander {
            pid: 99,
            comm: "tee".into(),
            session: 10,
            group: 11,
        });
        let again = plan(&kin, &now, &machine, &[]);
        assert_eq!(again.refused.len(), 1, "{again:?}");
        assert!(again.refused[0].contains("process 99 (tee)"), "{again:?}");
        // Nor does a session end as long as somebody is in it.
        now = [
            lives(10, 10),
            lives(10, 11),
            lives(10, 11),
            Now::Gone,
            lives(13, 13),
        ];
        let again = plan(&kin, &now, &all(&kin, &now), &[]);
        assert!(again.refused[0].contains("session"), "{again:?}");
    }

    /// What is left of the others is waited for before anybody is made.
    #[test]
    fn a_group_of_which_nobody_lives_is_in_nobodys_way() {
        let kin = shell();
        let now = [
            lives(10, 10),
            Now::Gone,
            Now::Gone,
            lives(13, 13),
            lives(13, 13),
        ];
        let mut machine = all(&kin, &now);
        machine.extend([11, 12].map(|pid| Bystander {
            pid,
            comm: "left".into(),
            session: 10,
            group: 11,
        }));
        let again = plan(&kin, &now, &machine, &[]);
        assert!(again.refused.is_empty(), "{again:?}");
        let steps = [
            Regroup::Make(1),
            Regroup::Make(2),
            Regroup::Join(1, 11),
            Regroup::Join(2, 11),
        ];
        assert_eq!(again.steps, steps);
    }

    #[test]
    fn groups_that_changed_go_back_where_somebody_is_in_them() {
        let kin = shell();
        let now = [
            lives(10, 10),
            lives(10, 10),
            lives(10, 12),
            lives(13, 13),
            lives(14, 14),
        ];
        let again = plan(&kin, &now, &all(&kin, &now), &[]);
        assert_eq!(again.steps, [Regroup::Join(1, 11), Regroup::Join(2, 11)]);
        assert!(again.notes.is_empty(), "{again:?}");
        let gone = self::kin(&[(10, None, 10, 10), (12, Some(0), 10, 11)]);
        let now = [lives(10, 10), lives(10, 12)];
        let again = plan(&gone, &now, &all(&gone, &now), &[]);
        assert!(again.steps.is_empty(), "{again:?}");
        assert!(again.notes[0].contains("its process group was 11 and is 12"));
    }

    #[test]
    fn a_group_comes_to_the_foreground_when_it_is_there_again() {
        let kin = kin(&[(10, None, 10, 10), (11, Some(0), 10, 11)]);
        let now = [lives(10, 10), Now::Gone];
        let front = |then| Front {
            leader: 0,
            then,
            now: 10,
        };
        let again = plan(&kin, &now, &all(&kin, &now), &[front(11)]);
        let steps = [
            Regroup::Make(1),
            Regroup::Join(1, 11),
            Regroup::Front(0, 11),
        ];
        assert_eq!(again.steps, steps);
        let again = plan(&kin, &now, &all(&kin, &now), &[front(12)]);
        assert_eq!(again.steps, steps[..2]);
        assert!(again.notes[0].contains("was 12 and is 10"), "{again:?}");
    }

    #[test]
    fn a_session_that_its_parent_is_not_in_any_more_is_named() {
        let kin = kin(&[(10, None, 5, 5), (11, Some(0), 5, 5)]);
        let now = [lives(10, 10), Now::Gone];
        let again = plan(&kin, &now, &all(&kin, &now), &[]);
        assert_eq!(again.steps, [Regroup::Make(1)]);
        assert_eq!(again.notes.len(), 1, "{again:?}");
        assert!(again.notes[0].contains("was in session 5"), "{again:?}");
    }

    #[test]
    fn what_had_ended_and_is_there_still_is_left_alone() {
        let kin = kin(&[
            (10, None, 10, 10),
            (11, Some(0), 10, 11),
            (12, Some(0), 10, 10),
        ]);
        let now = [lives(10, 10), Now::Remains, Now::Gone];
        let again = plan(&kin, &now, &all(&kin, &now), &[]);
        assert_eq!(again.steps, [Regroup::Make(2)]);
    }
}
