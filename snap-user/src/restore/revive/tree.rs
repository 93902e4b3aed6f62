//! The processes of a tree, made one by the other, and let go as one.

use super::family::{Births, Birthstep, Kin};
use super::newborn::{Newborn, Opened};
use super::plan::NewPlan;
use super::release;
use super::terminals::Lines;
use crate::model::{PageRange, ProcessState, Zombie};
use crate::restore::fault;
use crate::restore::files::{self, Joint, JointPlan};
use crate::restore::{RestoreError, Result};
use crate::sys::{self, Birth, Guard, Lazy, Released, Stub, StubCall};
use std::os::fd::AsFd;
use std::sync::Arc;

/// A process of a tree, and how it is made.
pub struct Part<'a> {
    /// What it shall be.
    pub target: &'a ProcessState,
    /// Its memory and attributes.
    pub plan: &'a NewPlan,
    /// What it inherits.
    pub opened: &'a Opened,
    /// It was in a job-control stop, and is so again.
    pub stopped: bool,
}

/// Who is to be made.
#[derive(Clone, Copy)]
pub struct Roster<'a> {
    /// The processes, those that had ended behind the others.
    pub kin: &'a [Kin],
    /// The ids that they are to have in their PID namespace.
    pub own_ids: &'a [Option<i32>],
    /// The order.
    pub births: &'a Births,
    /// Those that had ended.
    pub zombies: &'a [Zombie],
    /// The id of one that begins the session of the first, and is gone then.
    pub ghost: Option<i32>,
}

/// Starts the processes of a tree, each made by its parent, in their sessions and groups; those that had ended have
/// ended when this returns. `lines` are the terminals that sessions take. `avoid` is address space that must be free in
/// all, `lazy` what memory of theirs comes later.
///
/// # Errors
/// [`RestoreError::Unborn`]; nothing is left of any of them then.
pub fn start_tree(
    birth: Birth<'_>,
    roster: Roster<'_>,
    lines: &mut Lines,
    avoid: &[PageRange],
    lazy: &[Arc<Lazy>],
) -> Result<Vec<Stub>> {
    let Roster {
        kin,
        own_ids,
        births,
        zombies,
        ghost,
    } = roster;
    let mut step = "starting the first process of a tree";
    let mut at = kin[0].pid;
    let mut run = || -> sys::Result<Vec<Stub>> {
        let mut stubs: Vec<Option<Stub>> = kin.iter().map(|_| None).collect();
        let mut ghost = match ghost {
            Some(_) => {
                let birth = Birth {
                    pid: ghost,
                    ..birth
                };
                let mut ghost = Stub::start(birth, avoid, lazy)?;
                ghost.run(&[setsid()])?;
                Some(ghost)
            }
            None => None,
        };
        let mut first = match &mut ghost {
            Some(ghost) => {
                let mut first = ghost.fork(birth.pid, true)?;
                first.take_init(ghost);
                first
            }
            None => Stub::start(birth, avoid, lazy)?,
        };
        if birth.network {
            first.bring_up_loopback()?;
        }
        stubs[0] = Some(first);
        step = "making it, its session and its group";
        for one in &births.steps {
            at = kin[one.whom()].pid;
            take(one, kin, own_ids, &mut stubs)?;
            if let Birthstep::Session(leader) = *one {
                let stub = stubs[leader].as_mut().expect("it has just begun a session");
                lines.take(leader, stub)?;
            }
        }
        step = "bringing groups to the foreground of their terminals";
        lines.settle(&mut stubs)?;
        let living = kin.len() - zombies.len();
        step = "ending what had ended";
        for (zombie, stub) in zombies.iter().zip(stubs.drain(living..)) {
            at = zombie.pid;
            let mut stub = stub.expect("every process was made");
            stub.set_name(&zombie.comm)?;
            stub.end_as(zombie.status)?;
        }
        if let Some(ghost) = ghost {
            ghost.end_as(0)?;
        }
        let mut all: Vec<Stub> = stubs.into_iter().flatten().collect();
        for zombie in zombies {
            // What the snapshot has of such signals is queued later.
            all[zombie.parent as usize].default_action(libc::SIGCHLD)?;
        }
        Ok(all)
    };
    run().map_err(|source| RestoreError::Unborn {
        pid: at,
        step,
        source,
    })
}

fn setsid() -> StubCall {
    StubCall::new("setsid", "itself", libc::SYS_setsid, [0; 6])
}

impl Birthstep {
    fn whom(&self) -> usize {
        match *self {
            Self::Make { child } => child,
            Self::Session(n) => n,
            Self::Join { member, .. }
            | Self::Revive { member, .. }
            | Self::Follow { member, .. } => member,
        }
    }
}

fn take(
    step: &Birthstep,
    kin: &[Kin],
    own_ids: &[Option<i32>],
    stubs: &mut [Option<Stub>],
) -> sys::Result<()> {
    fn of(stubs: &mut [Option<Stub>], n: usize) -> &mut Stub {
        stubs[n].as_mut().expect("made by a step before")
    }
    let own = |stubs: &mut [Option<Stub>], n: usize| of(stubs, n).threads()[0].own;
    let join = |stub: &mut Stub, group: i32| {
        let args = [0, group as u64, 0, 0, 0, 0];
        let call = StubCall::new("setpgid", format!("group {group}"), libc::SYS_setpgid, args);
        stub.run(&[call]).map(drop)
    };
    match *step {
        Birthstep::Make { child } => {
            let parent = kin[child].parent.expect("only the first has none");
            stubs[child] = Some(of(stubs, parent).fork(own_ids[child], true)?);
        }
        Birthstep::Session(n) => {
            of(stubs, n).run(&[setsid()])?;
        }
        Birthstep::Join { member, leader } => {
            let group = own(stubs, leader);
            join(of(stubs, member), group)?;
        }
        Birthstep::Revive { member, group } => {
            let keeps = own_ids[member].is_some();
            let maker = of(stubs, member);
            let mut helper = maker.fork(keeps.then_some(group), false)?;
            let id = helper.threads()[0].own;
            join(&mut helper, id)?;
            join(maker, id)?;
            helper.end_as(0)?;
            maker.reap(id)?;
        }
        Birthstep::Follow { member, first } => {
            let pid = of(stubs, first).pid();
            let group = sys::proc::own_group(pid)?;
            join(of(stubs, member), group)?;
        }
    }
    Ok(())
}

/// Everything else, once their memory is filled; then they run, all of them or none. `keep_ids`: they have the
/// snapshot's ids. Returns for each what will differ, a sentence each; `notes` gets that of what they share.
///
/// # Errors
/// [`RestoreError::Unborn`]; nothing is left of any of them then.
pub fn finish_tree(
    mut newborns: Vec<Newborn>,
    parts: &[Part<'_>],
    joint: &mut Joint,
    files: &JointPlan,
    keep_ids: bool,
    notes: &mut Vec<String>,
) -> Result<Vec<(Released, Vec<String>)>> {
    let mut step = "making it";
    let mut at = parts[0].target.pid;
    let outcome = complete(
        &mut newborns,
        parts,
        joint,
        files,
        keep_ids,
        &mut step,
        &mut at,
    );
    let unborn = |source| RestoreError::Unborn {
        pid: at,
        step,
        source,
    };
    let (more, guard) = outcome.map_err(unborn)?;
    notes.extend(more);
    release::release(newborns, parts, guard).map_err(|source| RestoreError::Unborn {
        pid: parts[0].target.pid,
        step: "letting the tree go",
        source,
    })
}

fn complete(
    newborns: &mut [Newborn],
    parts: &[Part<'_>],
    joint: &mut Joint,
    files: &JointPlan,
    keep_ids: bool,
    step: &mut &'static str,
    at: &mut i32,
) -> sys::Result<(Vec<String>, Option<Guard>)> {
    let nothing = ProcessState::default();
    release::begin_filling(newborns, step)?;
    for (newborn, part) in newborns.iter_mut().zip(parts) {
        *at = newborn.pid;
        newborn.prepare(part.target, part.plan, part.opened, keep_ids, step)?;
    }
    let guard = release::watch_over(newborns, step)?;
    *step = "opening the files of the tree";
    let ids = newborns.iter().zip(parts);
    let options = files::Options {
        pids: ids.flat_map(|(n, part)| n.ids(part.target)).collect(),
        ..parts[0].opened.options.clone()
    };
    let (pid, pidfd) = (newborns[0].stub.pid(), newborns[0].stub.pidfd());
    let made = files::make(&files.all, joint.view(0), &[(pid, pidfd.as_fd())], &options)?;
    for (n, (newborn, part)) in newborns.iter_mut().zip(parts).enumerate() {
        *at = newborn.pid;
        *step = "opening its files";
        newborn.install(&made, &files.members[n])?;
        *step = "writing the contents of its files";
        newborn.write_back(part.target, part.opened)?;
    }
    *step = "setting what the files of the tree hold";
    let mut shared = made.notes.clone();
    shared.extend(made.settle_files(&files.all, joint.view(0), &nothing)?);
    for (n, (newborn, part)) in newborns.iter_mut().zip(parts).enumerate() {
        *at = newborn.pid;
        *step = "setting what its files hold";
        newborn.settle(&made, &files.members[n], (joint.view(n), part.target))?;
    }
    for (newborn, part) in newborns.iter_mut().zip(parts) {
        *at = newborn.pid;
        newborn.become_itself(part.target, part.plan, step)?;
    }
    *at = newborns[0].pid;
    *step = "going on with their connections";
    fault::point(step);
    shared.extend(made.go_on(newborns[0].stub.pid(), joint.view(0))?);
    Ok((shared, guard))
}
