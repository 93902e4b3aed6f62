//! In which order the processes of a tree are made, so that each has its parent, session and group. Pure.
//!
//! A child has its parent's session and group when it is made. A process begins a session of its own by setsid(2),
//! and nobody can enter one later: so children that are in an earlier session of their parent's are made before it
//! begins its own. A group lives as long as it has members, but only a process with its id can begin it.

use std::collections::BTreeMap;

/// A process to be made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kin {
    /// Its id.
    pub pid: i32,
    /// Its parent, by its place; before it. `None` for the first.
    pub parent: Option<usize>,
    /// Its session.
    pub session: i32,
    /// Its process group.
    pub group: i32,
}

/// A step. Processes by their places.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Birthstep {
    /// The parent makes the child.
    Make {
        /// Who is made, by its parent.
        child: usize,
    },
    /// Begins a session of its own, and a group.
    Session(usize),
    /// Joins the group that the other one, or itself, begins with that.
    Join {
        /// Who joins.
        member: usize,
        /// Who has the group's id.
        leader: usize,
    },
    /// Joins a group whose first member is gone: one of that id is made for a moment.
    Revive {
        /// Who makes it, and joins.
        member: usize,
        /// The group's id.
        group: i32,
    },
    /// Joins a group that another one has joined by then.
    Follow {
        /// Who joins.
        member: usize,
        /// Who is in it.
        first: usize,
    },
}

/// The order, and what stays different.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Births {
    /// The first process is there before it.
    pub steps: Vec<Birthstep>,
    /// Who leads the session that each is in then, by places; `None` for one that began outside.
    pub leaders: Vec<Option<usize>>,
    /// A sentence each.
    pub notes: Vec<String>,
}

impl Births {
    /// Groups whose first member is gone, each with the process that begins it again.
    pub fn revived<'a>(&'a self, kin: &'a [Kin]) -> impl Iterator<Item = (i32, i32)> + 'a {
        self.steps.iter().filter_map(move |step| match *step {
            Birthstep::Revive { member, group } => Some((kin[member].pid, group)),
            _ => None,
        })
    }
}

/// A session, by who began it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Origin {
    /// It was there before the tree.
    Outside,
    Member(usize),
}

struct Planner<'a> {
    kin: &'a [Kin],
    /// The group in which the first is born.
    born: i32,
    children: Vec<Vec<usize>>,
    /// The session that each has so far.
    session: Vec<Origin>,
    births: Births,
}

/// Plans the order. `born` is the group that the first process has before the first step, in which those that began
/// outside of the tree are.
pub fn births(kin: &[Kin], born: i32) -> Births {
    let mut children = vec![Vec::new(); kin.len()];
    for (n, one) in kin.iter().enumerate() {
        if let Some(parent) = one.parent {
            children[parent].push(n);
        }
    }
    let mut planner = Planner {
        kin,
        born,
        children,
        session: vec![Origin::Outside; kin.len()],
        births: Births::default(),
    };
    if !kin.is_empty() {
        planner.grow();
        planner.groups();
    }
    let leader = |origin: &Origin| match *origin {
        Origin::Member(leader) => Some(leader),
        Origin::Outside => None,
    };
    planner.births.leaders = planner.session.iter().map(leader).collect();
    planner.births
}

impl Planner<'_> {
    fn leads_session(&self, n: usize) -> bool {
        self.kin[n].session == self.kin[n].pid
    }

    /// Makes all of them, each with the session that it can have.
    fn grow(&mut self) {
        /// What is to be done for a process.
        enum Todo {
            Of(usize),
            Session(usize),
            Make(usize, usize),
        }
        let mut todo = vec![Todo::Of(0)];
        while let Some(next) = todo.pop() {
            match next {
                Todo::Of(n) => {
                    let leads = self.leads_session(n);
                    let own = self.kin[n].pid;
                    // Those of an earlier session come first.
                    let early = |child: &usize| {
                        leads && self.kin[*child].session != own && !self.leads_session(*child)
                    };
                    let (early, late): (Vec<usize>, Vec<usize>) =
                        self.children[n].iter().partition(|child| early(child));
                    // The last is done first.
                    todo.extend(late.into_iter().rev().map(|child| Todo::Make(n, child)));
                    todo.extend(leads.then_some(Todo::Session(n)));
                    todo.extend(early.into_iter().rev().map(|child| Todo::Make(n, child)));
                }
                Todo::Session(n) => {
                    self.births.steps.push(Birthstep::Session(n));
                    self.session[n] = Origin::Member(n);
                }
                Todo::Make(parent, child) => {
                    self.births.steps.push(Birthstep::Make { child });
                    self.session[child] = self.session[parent];
                    todo.push(Todo::Of(child));
                }
            }
        }
        let first = self.kin[0].session;
        for (n, one) in self.kin.iter().enumerate() {
            let wanted = match self.kin.iter().position(|k| k.pid == one.session) {
                Some(leader) => Some(Origin::Member(leader)),
                None if one.session == first => Some(Origin::Outside),
                None => None,
            };
            if wanted != Some(self.session[n]) {
                self.births.notes.push(format!(
                    "process {} was in session {}, which nobody begins any more, and is in its parent's",
                    one.pid, one.session
                ));
            }
        }
    }

    /// Gives each its group, when all are there.
    fn groups(&mut self) {
        let mut begun: BTreeMap<(Origin, i32), usize> = BTreeMap::new();
        // First those who begin one.
        for (n, one) in self.kin.iter().enumerate() {
            if one.group == one.pid {
                begun.insert((self.session[n], one.group), n);
                if !self.leads_session(n) {
                    self.births.steps.push(Birthstep::Join {
                        member: n,
                        leader: n,
                    });
                }
            }
        }
        for (n, one) in self.kin.iter().enumerate() {
            let session = self.session[n];
            if one.group == one.pid {
                continue;
            }
            let step = match begun.get(&(session, one.group)) {
                Some(&leader) if self.kin[leader].pid == one.group => {
                    Birthstep::Join { member: n, leader }
                }
                Some(&first) => Birthstep::Follow { member: n, first },
                // The group that the first one is in as well, and that it has from whoever starts it.
                None if session == Origin::Outside && one.group == self.born => continue,
                None if self.kin.iter().any(|k| k.pid == one.group) => {
                    self.births.notes.push(format!(
                        "process {} was in group {} of another session, and is not",
                        one.pid, one.group
                    ));
                    continue;
                }
                None => {
                    begun.insert((session, one.group), n);
                    Birthstep::Revive {
                        member: n,
                        group: one.group,
                    }
                }
            };
            self.births.steps.push(step);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Birthstep::{Follow, Join, Make, Revive, Session};

    fn kin(list: &[(i32, Option<usize>, i32, i32)]) -> Vec<Kin> {
        let one = |&(pid, parent, session, group): &(i32, Option<usize>, i32, i32)| Kin {
            pid,
            parent,
            session,
            group,
        };
        list.iter().map(one).collect()
    }

    #[test]
    fn children_of_a_leader_are_made_in_its_session() {
        // A shell with a pipeline and a job of its own.
        let births = births(
            &kin(&[
                (10, None, 10, 10),
                (11, Some(0), 10, 11),
                (12, Some(0), 10, 11),
                (13, Some(0), 10, 13),
                (14, Some(3), 10, 13),
            ]),
            5,
        );
        assert!(births.notes.is_empty(), "{births:?}");
        let join = |member, leader| Join { member, leader };
        assert_eq!(
            births.steps,
            [
                Session(0),
                Make { child: 1 },
                Make { child: 2 },
                Make { child: 3 },
                Make { child: 4 },
                join(1, 1),
                join(3, 3),
                join(2, 1),
                join(4, 3),
            ]
        );
    }

    #[test]
    fn who_stayed_in_the_earlier_session_is_made_before_the_new_one_begins() {
        let births = births(
            &kin(&[
                (10, None, 5, 5),
                (11, Some(0), 11, 11),
                (12, Some(1), 5, 5),
                (13, Some(1), 11, 11),
                (14, Some(1), 14, 14),
            ]),
            5,
        );
        assert!(births.notes.is_empty(), "{births:?}");
        assert_eq!(
            births.steps,
            [
                Make { child: 1 },
                Make { child: 2 },
                Session(1),
                Make { child: 3 },
                Make { child: 4 },
                Session(4),
                Join {
                    member: 3,
                    leader: 1
                },
            ]
        );
    }

    #[test]
    fn a_group_whose_first_member_is_gone_is_begun_again() {
        let kin = kin(&[(10, None, 5, 5), (12, Some(0), 5, 11), (13, Some(0), 5, 11)]);
        let births = births(&kin, 5);
        assert_eq!(births.revived(&kin).collect::<Vec<_>>(), [(12, 11)]);
        assert_eq!(
            births.steps[2..],
            [
                Revive {
                    member: 1,
                    group: 11
                },
                Follow {
                    member: 2,
                    first: 1
                },
            ]
        );
    }

    #[test]
    fn a_session_that_nobody_begins_is_named() {
        let births = births(&kin(&[(10, None, 5, 5), (12, Some(0), 7, 7)]), 5);
        assert_eq!(births.notes.len(), 1, "{births:?}");
        assert!(births.notes[0].contains("session 7"), "{births:?}");
    }
}
