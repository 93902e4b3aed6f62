//! Carrying out the plans of several processes that go back together.

use super::apply::{Applied, Applying};
use super::files::{Joint, JointPlan, Made};
use super::memory::Pages;
use super::plan::RestorePlan;
use super::revive::{self, Newborn};
use super::{RestoreError, Result, fault};
use crate::model::{ProcessState, SavedFile};
use crate::sys::{self, Frozen};
use std::os::fd::BorrowedFd;

/// One of the processes.
pub struct Part<'a> {
    /// Its place among all.
    pub place: usize,
    /// The process, held in a job-control stop.
    pub frozen: &'a mut Frozen,
    /// What is done to it. Its files have the places that they have among those of all.
    pub plan: &'a RestorePlan,
    /// What it shall be.
    pub target: &'a ProcessState,
    /// What it is.
    pub live: &'a ProcessState,
    /// Its memory.
    pub pages: Pages<'a>,
    /// Saved files whose content is to be written, none of them in two parts.
    pub changed: &'a [SavedFile],
    /// A pidfd of it.
    pub process: BorrowedFd<'a>,
}

/// The open files of all of them.
pub struct TreeFiles<'a> {
    /// As they shall be.
    pub wanted: &'a mut Joint,
    /// As they are.
    pub live: &'a mut Joint,
    /// The way of what they share, and of each by its place. Those that live have a copy of theirs.
    pub plan: &'a JointPlan,
    /// What the processes lack of them.
    pub made: &'a Made,
}

/// One of them that has ended since, and is made again.
pub struct Renewed<'a> {
    /// Its place among all.
    pub place: usize,
    /// The new process, with its memory.
    pub newborn: Newborn,
    /// What it shall be.
    pub part: revive::Part<'a>,
}

/// The processes of a tree that live, each ready to be put back.
pub struct TreeInPlace<'a> {
    all: Vec<Applying<'a>>,
    changed: Vec<&'a [SavedFile]>,
    places: Vec<usize>,
}

/// Where it is.
struct At {
    pid: i32,
    step: &'static str,
    /// How many are back.
    back: usize,
}

impl<'a> TreeInPlace<'a> {
    /// Touches nothing.
    ///
    /// # Errors
    /// Where one of them has nothing by which it can be put back.
    pub fn new(parts: Vec<Part<'a>>) -> Result<Self> {
        let mut tree = Self {
            all: Vec::with_capacity(parts.len()),
            changed: Vec::with_capacity(parts.len()),
            places: Vec::with_capacity(parts.len()),
        };
        for part in parts {
            let states = (part.target, part.live);
            let one = Applying::new(part.frozen, part.plan, states, part.pages, part.process)?;
            tree.all.push(one);
            tree.changed.push(part.changed);
            tree.places.push(part.place);
        }
        Ok(tree)
    }

    /// Puts all of them into the states of their snapshots, with those that are made again. What they share is set when all
    /// have its descriptors, once. Gives what came of each that lives, and what is to be said of all.
    ///
    /// # Errors
    /// [`RestoreError::TreeHalfway`]: all that live must then stay stopped.
    pub fn apply(
        mut self,
        files: TreeFiles<'_>,
        renewed: &mut [Renewed<'_>],
    ) -> Result<(Vec<Applied>, Vec<String>)> {
        let mut at = At {
            pid: self.all[0].pid(),
            step: "",
            back: 0,
        };
        match self.run(files, renewed, &mut at) {
            Ok(notes) => Ok((
                self.all.into_iter().map(Applying::into_applied).collect(),
                notes,
            )),
            Err(e) => Err(self.halfway(&at, &e)),
        }
    }

    /// It failed before any of them was put back.
    pub fn not_begun(&self, pid: i32, step: &'static str, why: &impl ToString) -> RestoreError {
        let at = At { pid, step, back: 0 };
        self.halfway(&at, why)
    }

    fn halfway(&self, at: &At, why: &impl ToString) -> RestoreError {
        let pids = |some: &[Applying<'_>]| some.iter().map(Applying::pid).collect();
        RestoreError::TreeHalfway {
            root: self.all[0].pid(),
            pid: at.pid,
            step: at.step,
            why: why.to_string(),
            back: pids(&self.all[..at.back]),
            mixed: pids(&self.all[at.back..]),
        }
    }

    /// Has each that lives do something.
    fn each(
        &mut self,
        at: &mut At,
        mut act: impl FnMut(usize, &mut Applying<'a>) -> sys::Result<()>,
    ) -> sys::Result<()> {
        for (n, one) in self.all.iter_mut().enumerate() {
            at.pid = one.pid();
            let done = act(n, one);
            at.step = one.step;
            done?;
        }
        Ok(())
    }

    fn run(
        &mut self,
        files: TreeFiles<'_>,
        renewed: &mut [Renewed<'_>],
        at: &mut At,
    ) -> sys::Result<Vec<String>> {
        let TreeFiles {
            wanted,
            live,
            plan,
            made,
        } = files;
        let (changed, places) = (self.changed.clone(), self.places.clone());
        self.each(at, |n, one| {
            one.begin(made)?;
            if n == 0 {
                fault::point("one of the tree begun");
            }
            Ok(())
        })?;
        for Renewed {
            place,
            newborn,
            part,
        } in &mut *renewed
        {
            at.pid = part.target.pid;
            newborn.prepare(part.target, part.plan, part.opened, true, &mut at.step)?;
            at.step = "opening its files";
            newborn.install(made, &plan.members[*place])?;
        }
        self.each(at, |_, one| one.unlock(made))?;
        self.each(at, |n, one| one.write_back(changed[n]))?;
        for one in &mut *renewed {
            at.pid = one.part.target.pid;
            at.step = "writing the contents of its files";
            one.newborn.write_back(one.part.target, one.part.opened)?;
        }
        at.pid = self.all[0].pid();
        at.step = "setting what open files hold";
        fault::point(at.step);
        let notes = made.settle_files(&plan.all, wanted.view(0), live.view(0))?;
        self.each(at, |n, one| {
            one.settle_process(made, wanted.view(places[n]))
        })?;
        for Renewed {
            place,
            newborn,
            part,
        } in &mut *renewed
        {
            at.pid = part.target.pid;
            at.step = "setting what its files hold";
            let states = (wanted.view(*place), part.target);
            newborn.settle(made, &plan.members[*place], states)?;
        }
        let mut back = 0;
        let finished = self.each(at, |n, one| {
            one.finish()?;
            back = n + 1;
            if n == 0 {
                fault::point("one of the tree put back");
            }
            fault::failure("one of the tree put back")
        });
        at.back = back;
        finished?;
        for Renewed { newborn, part, .. } in &mut *renewed {
            at.pid = part.target.pid;
            newborn.become_itself(part.target, part.plan, &mut at.step)?;
        }
        fault::point("all done");
        Ok(notes)
    }
}
