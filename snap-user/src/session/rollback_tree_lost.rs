//! Processes of a tree that have ended since it was captured, and are made again in its rollback.

use super::revive::{Pids, ReviveOptions};
use super::revive_contents::contents_to_write;
use super::revive_here::{Here, check_processor};
use super::revive_memory::{Filled, Memory, SegmentsInUse, Written};
use super::revive_open::{Commons, open};
use super::{Result, SessionError};
use crate::model::{Backing, PageRange, ProcessState, ProcessTree, Vma};
use crate::restore::RestoreError;
use crate::restore::files::{self, Joint, JointPlan};
use crate::restore::revive::{
    self, Entered, NewPlan, Newborn, Opened, OtherKernel, Surroundings, plan_attributes_below,
};
use crate::store::{Flat, Session, Snapshot, Store, StoreError};
use crate::sys::{Frozen, open_link, proc};
use std::collections::btree_map::Entry;
use std::sync::Arc;

/// One of them, and what it is made of.
pub(super) struct Lost {
    /// Its place in the tree.
    pub(super) place: usize,
    pub(super) snapshot: Snapshot,
    pub(super) state: ProcessState,
    flat: Flat,
    /// It goes on in the session that it was in.
    session: Session,
    stopped: bool,
}

impl Lost {
    /// Loads what takes long, while the others run.
    ///
    /// # Errors
    /// Where somebody else writes its session.
    pub(super) fn prepare(store: &Store, tree: &ProcessTree, place: usize) -> Result<Self> {
        let member = &tree.members[place];
        let snapshot = store.snapshot(member.id)?;
        let state = snapshot.manifest()?.state;
        check_processor(&state)?;
        let session = store.open_session(snapshot.header().session);
        let session = session.map_err(|e| match e {
            StoreError::Locked { pid, .. } => SessionError::Usage(format!(
                "process {} has ended since, and what was captured of it is being written{}: end that first",
                member.pid,
                pid.map_or(String::new(), |pid| format!(" by process {pid}"))
            )),
            other => other.into(),
        })?;
        Ok(Self {
            place,
            flat: store.checked_flat(&snapshot)?,
            snapshot,
            state,
            session,
            stopped: member.stopped,
        })
    }

    pub(super) fn pid(&self) -> i32 {
        self.state.pid
    }

    /// Plans it as a child of a process in this state: the living one that it descends from. What is refused is added to
    /// what others are refused for.
    pub(super) fn plan(&self, maker: &ProcessState, refused: &mut Vec<String>) -> Result<NewPlan> {
        let pid = self.pid();
        let mut named = |why: String| refused.push(format!("process {pid}: {why}"));
        if self.state.threads.iter().any(|t| t.own_id() != t.tid) {
            named("it has ended since, and its id in a PID namespace other than ksnap's cannot be chosen from here: run ksnap in that namespace".into());
        }
        let options = ReviveOptions {
            files: seen_by(maker.pid),
            ..ReviveOptions::default()
        };
        // It is born in the namespaces of its parent.
        let entered = Entered::default();
        let here = Here::of(&options, Pids::Same, &entered, &self.state, &self.snapshot)?;
        let mut add = |error: RestoreError| match error {
            RestoreError::Refused { reasons, .. } => {
                reasons.into_iter().for_each(&mut named);
                Ok(NewPlan::default())
            }
            other => Err(other),
        };
        let mut planned = match revive::plan(&self.state, &Again { here, pid }) {
            Ok(plan) => plan,
            Err(e) => add(e)?,
        };
        match plan_attributes_below(&self.state, maker) {
            Ok((attributes, limits)) => {
                (planned.attributes, planned.limits) = (attributes, limits);
                planned.notes.append(&mut planned.attributes.notes);
            }
            Err(e) => drop(add(e)?),
        }
        planned.notes.extend(self.terminal_note(maker));
        planned.notes.extend(self.state.unsupported.iter().cloned());
        Ok(planned)
    }

    /// It has the controlling terminal that its parent has, or, where it begins a session, none.
    fn terminal_note(&self, maker: &ProcessState) -> Option<String> {
        let attributes = &self.state.attributes;
        let begins = attributes.session == self.pid();
        let now = if begins { 0 } else { maker.attributes.terminal };
        (attributes.terminal != 0 && attributes.terminal != now).then(|| {
            "its controlling terminal does not come back in a rollback: it goes on without one, and without job control".to_owned()
        })
    }
}

/// How files are found for a child of this process, which may see others under their names than ksnap does.
fn seen_by(maker: i32) -> files::Options {
    let place = |pid: i32| (proc::link(pid, "root").ok(), proc::link(pid, "ns/mnt").ok());
    let mut options = files::Options::default();
    if place(maker) != place(std::process::id() as i32) {
        let root = (String::new(), format!("/proc/{maker}/root"));
        options.map_paths.push(root);
    }
    options
}

/// The machine, on which the id of one that has ended is free as soon as its parent has waited for it.
struct Again<'a> {
    here: Here<'a>,
    pid: i32,
}

impl Surroundings for Again<'_> {
    fn can_map(&self, vma: &Vma) -> std::result::Result<(), String> {
        self.here.can_map(vma)
    }

    fn segment(&self, vma: &Vma) -> Option<i32> {
        self.here.segment(vma)
    }

    fn can_start_thread(&self, tid: i32) -> std::result::Result<(), String> {
        match proc::stat(tid, None) {
            // Whoever has that of the process is known before it comes to this.
            Ok(stat) if tid != self.pid => Err(format!("its id is taken ({})", stat.comm)),
            _ => Ok(()),
        }
    }

    fn other_kernel(&self) -> Option<&OtherKernel> {
        self.here.other_kernel()
    }
}

/// What new processes are made from, opened before any is there.
pub(super) struct Supplies {
    each: Vec<Supply>,
    in_use: SegmentsInUse,
}

struct Supply {
    planned: NewPlan,
    opened: Opened,
    memory: Memory,
    notes: Vec<String>,
}

impl Supplies {
    /// Opens it. Each has a plan, and who makes it, or from whom that one comes. `living` are the processes that live, as
    /// they are and as they shall be: memory that they share with new ones is theirs, and is put back by them.
    pub(super) fn open(
        lost: &[Lost],
        (mut plans, makers): (Vec<NewPlan>, &[&ProcessState]),
        living: &[(&ProcessState, &ProcessState)],
        joint: &Joint,
        files: &mut JointPlan,
        notes: &mut Vec<String>,
    ) -> Result<Self> {
        let mut commons = Commons::default();
        let mut written = share_with(living, &plans, &mut commons)?;
        commons.share(lost.iter().map(|one| &one.state).zip(&plans), notes)?;
        commons.lend(joint.files(), &mut files.all.sources);
        let mut each = Vec::with_capacity(lost.len());
        let all = lost.iter().zip(plans.drain(..)).zip(makers);
        for ((one, mut planned), maker) in all {
            planned.files.sources = joint.sources(&files.all, one.place);
            let mut notes = std::mem::take(&mut planned.notes);
            let how = seen_by(maker.pid);
            let (mut opened, more) = open(&one.state, &mut planned, how, &mut commons)?;
            notes.extend(more);
            if maker.exe == one.state.exe {
                // The kernel has it already, whatever it takes to have it set.
                opened.exe = None;
            }
            let options = files::Options::default();
            let contents = contents_to_write(&one.snapshot, &one.state, &planned.files, &options)?;
            opened.contents = Arc::new(contents);
            let memory = Memory::new(
                &one.flat,
                None,
                &one.state,
                &planned,
                &Vec::new,
                true,
                &mut written,
            )?;
            each.push(Supply {
                planned,
                opened,
                memory,
                notes,
            });
        }
        Ok(Self {
            in_use: SegmentsInUse::of(each.iter().map(|one| &one.memory), &Entered::default())?,
            each,
        })
    }

    /// Address space that must be free in all of them.
    pub(super) fn space(&self) -> Vec<PageRange> {
        self.each
            .iter()
            .flat_map(|one| one.planned.space())
            .collect()
    }

    /// What is made of one of them.
    pub(super) fn part<'a>(&'a self, n: usize, lost: &'a Lost) -> revive::Part<'a> {
        let supply = &self.each[n];
        revive::Part {
            target: &lost.state,
            plan: &supply.planned,
            opened: &supply.opened,
            stopped: lost.stopped,
        }
    }

    /// Fills the memory of one of them.
    pub(super) fn fill(
        &self,
        n: usize,
        newborn: &mut Newborn,
        notes: &mut Vec<String>,
    ) -> Result<Filled> {
        let memory = &self.each[n].memory;
        memory.fill(newborn, None, true, &self.in_use, notes)
    }

    /// What is to be said of one of them.
    pub(super) fn notes(&self, n: usize) -> &[String] {
        &self.each[n].notes
    }
}

impl Lost {
    /// It is all that it was: from here on it is held with the others, and goes on in its session. Who descends from one
    /// that is `stopped`, and stays so, is stopped as well.
    pub(super) fn join(
        &mut self,
        newborn: Newborn,
        stopped: bool,
    ) -> Result<(Frozen, Vec<String>)> {
        let start_time = proc::stat(newborn.pid(), None)?.start_time;
        let (pid, from) = (self.pid(), self.snapshot.id());
        self.session.continue_with(pid, start_time, from)?;
        Ok(newborn.hold(self.stopped || stopped)?)
    }
}

/// Opens memory of new processes that living ones have mapped. Gives the pages of it that are put back by those.
fn share_with(
    living: &[(&ProcessState, &ProcessState)],
    plans: &[NewPlan],
    commons: &mut Commons,
) -> Result<Written> {
    let mut written = Written::default();
    for object in plans.iter().flat_map(|plan| &plan.objects) {
        let is_it = |vma: &&Vma| object_of(vma).is_some_and(|(id, _)| id == object.identity);
        let mapped = |state: &ProcessState| state.vmas.iter().find(is_it).map(|vma| vma.range);
        let held = living
            .iter()
            .find_map(|(now, _)| Some((now.pid, mapped(now)?)));
        let Some((pid, range)) = held else { continue };
        if let Entry::Vacant(place) = commons.objects.entry(object.identity) {
            let path = format!("/proc/{pid}/map_files/{:x}-{:x}", range.start, range.end);
            place.insert(Arc::new(open_link(&path, libc::O_RDWR as u32)?));
        }
        let all = living.iter().flat_map(|(_, then)| &then.vmas);
        let pages = all.filter(is_it).filter_map(|vma| {
            let (_, offset) = object_of(vma)?;
            Some(PageRange::new(offset, offset + vma.range.len()))
        });
        written.insert(object.identity, pages.collect());
    }
    Ok(written)
}

/// The memory behind a shared mapping, as plans name it, and where in it the mapping begins.
fn object_of(vma: &Vma) -> Option<((u64, u64), u64)> {
    match &vma.backing {
        Backing::File {
            dev, inode, offset, ..
        } if vma.shared => Some(((u64::from(dev.0) << 32 | u64::from(dev.1), *inode), *offset)),
        _ => None,
    }
}
