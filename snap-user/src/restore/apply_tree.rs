//! Carrying out the plans of several processes that go back together.

use super::apply::{Applied, Applying};
use super::files::{FilesPlan, Joint, Made};
use super::memory::Pages;
use super::plan::RestorePlan;
use super::{RestoreError, fault};
use crate::model::{ProcessState, SavedFile};
use crate::sys::{self, Frozen};
use std::os::fd::BorrowedFd;

/// One of the processes.
pub struct Part<'a> {
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
    /// The way of what they share.
    pub plan: &'a FilesPlan,
    /// What the processes lack of them.
    pub made: &'a Made,
}

/// Puts all of them into the states of their snapshots. What they share is set when all have its descriptors, once.
/// `touch` is called when nothing can be refused any more, and nothing was touched.
///
/// # Errors
/// [`RestoreError::TreeHalfway`]: all of them must then stay stopped. Any other: nothing was touched.
pub fn apply_tree<E: From<RestoreError>>(
    parts: Vec<Part<'_>>,
    files: TreeFiles<'_>,
    touch: impl FnOnce() -> std::result::Result<(), E>,
) -> std::result::Result<(Vec<Applied>, Vec<String>), E> {
    let mut all = Vec::with_capacity(parts.len());
    let mut changed = Vec::with_capacity(parts.len());
    for part in parts {
        let states = (part.target, part.live);
        all.push(Applying::new(
            part.frozen,
            part.plan,
            states,
            part.pages,
            part.process,
        )?);
        changed.push(part.changed);
    }
    touch()?;
    // The process that is being worked on, and how many are back.
    let (mut at, mut back) = (0, 0);
    match run(&mut all, &changed, files, (&mut at, &mut back)) {
        Ok(notes) => Ok((all.into_iter().map(Applying::into_applied).collect(), notes)),
        Err(e) => {
            let pids = |some: &[Applying<'_>]| some.iter().map(Applying::pid).collect();
            Err(RestoreError::TreeHalfway {
                root: all[0].pid(),
                pid: all[at].pid(),
                step: all[at].step,
                why: e.to_string(),
                back: pids(&all[..back]),
                mixed: pids(&all[back..]),
            }
            .into())
        }
    }
}

fn run(
    all: &mut [Applying<'_>],
    changed: &[&[SavedFile]],
    files: TreeFiles<'_>,
    (at, back): (&mut usize, &mut usize),
) -> sys::Result<Vec<String>> {
    let TreeFiles {
        wanted,
        live,
        plan,
        made,
    } = files;
    for (n, one) in all.iter_mut().enumerate() {
        *at = n;
        one.begin(made)?;
        if n == 0 {
            fault::point("one of the tree begun");
        }
    }
    for (n, one) in all.iter_mut().enumerate() {
        *at = n;
        one.unlock(made)?;
    }
    for (n, (one, changed)) in all.iter_mut().zip(changed).enumerate() {
        *at = n;
        one.write_back(changed)?;
    }
    *at = 0;
    all[0].step = "setting what open files hold";
    fault::point(all[0].step);
    let notes = made.settle_files(plan, wanted.view(0), live.view(0))?;
    for (n, one) in all.iter_mut().enumerate() {
        *at = n;
        one.settle_process(made, wanted.view(n))?;
    }
    for (n, one) in all.iter_mut().enumerate() {
        *at = n;
        one.finish()?;
        *back = n + 1;
        if n == 0 {
            fault::point("one of the tree put back");
        }
        fault::failure("one of the tree put back")?;
    }
    fault::point("all done");
    Ok(notes)
}
