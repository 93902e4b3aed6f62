//! Carrying out a plan.

use super::files::{self, Made};
use super::memory::{self, Pages};
use super::plan::{MapOp, RestorePlan};
use super::state::{self, Held, StatePlan};
use super::{RestoreError, Result, fault, threads, waits};
use crate::model::{Backing, PageSet, ProcessState, Protection, SavedFile, Vma};
use crate::sys::{self, Frozen, Gadgets, Remote, SysError, proc};
use std::os::fd::BorrowedFd;

/// What a carried-out plan did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Pages that differed and were written.
    pub written: u64,
    /// Pages thrown away.
    pub discarded: u64,
    /// What could not be put back and stays different, a sentence each.
    pub notes: Vec<String>,
}

/// Puts a process held in a job-control stop into the state of a snapshot: threads that end,
/// mappings, page contents, descriptors and what open files hold, new threads, attributes, registers
/// last.
///
/// `made` are the open files that the process lacks, `changed` the saved files whose content has to be
/// written: `pages` must have all of it.
///
/// # Errors
/// [`RestoreError::Halfway`]: the process must then stay stopped.
pub fn apply(
    frozen: &mut Frozen,
    plan: &RestorePlan,
    states: (&ProcessState, &ProcessState),
    pages: &Pages<'_>,
    (made, changed): (&Made, &[SavedFile]),
    process: BorrowedFd<'_>,
) -> Result<Applied> {
    let mut one = Applying::new(frozen, plan, states, *pages, process)?;
    let mut run = || -> sys::Result<()> {
        one.begin(made)?;
        one.write_back(changed)?;
        one.step = "setting what open files hold";
        fault::point(one.step);
        one.settle_files(made)?;
        // Right before they are taken: whoever waits for one gets it in between.
        one.unlock(made)?;
        one.settle_process(made, one.target)?;
        one.finish()?;
        fault::point("all done");
        Ok(())
    };
    let done = run();
    one.outcome(done)
}

/// A process that is being put back, one part after the other. Among several, all of them have had one part before any
/// has the next.
pub(super) struct Applying<'a> {
    frozen: &'a mut Frozen,
    plan: &'a RestorePlan,
    pub(super) target: &'a ProcessState,
    live: &'a ProcessState,
    pages: Pages<'a>,
    pub(super) process: BorrowedFd<'a>,
    /// A system call instruction of its own.
    insn: u64,
    /// The thread that runs calls.
    worker: i32,
    pub(super) step: &'static str,
    done: Applied,
}

impl<'a> Applying<'a> {
    /// Touches nothing.
    ///
    /// # Errors
    /// Where it has nothing by which it can be put back.
    pub(super) fn new(
        frozen: &'a mut Frozen,
        plan: &'a RestorePlan,
        (target, live): (&'a ProcessState, &'a ProcessState),
        pages: Pages<'a>,
        process: BorrowedFd<'a>,
    ) -> Result<Self> {
        let pid = frozen.pid();
        let found = Gadgets::find_syscall(pid, &proc::maps(pid)?)?;
        let insn = found.ok_or_else(|| RestoreError::Refused {
            pid,
            reasons: vec!["its code holds no system call instruction to borrow".into()],
        })?;
        Ok(Self {
            worker: frozen.threads()[0],
            frozen,
            plan,
            target,
            live,
            pages,
            process,
            insn,
            step: "ending threads",
            done: Applied::default(),
        })
    }

    pub(super) fn pid(&self) -> i32 {
        self.frozen.pid()
    }

    /// What came of it.
    pub(super) fn outcome(self, done: sys::Result<()>) -> Result<Applied> {
        match done {
            Ok(()) => Ok(self.done),
            Err(e) => Err(RestoreError::Halfway {
                pid: self.pid(),
                step: self.step,
                why: e.to_string(),
            }),
        }
    }

    pub(super) fn into_applied(self) -> Applied {
        self.done
    }

    fn remote(&self) -> sys::Result<Remote> {
        Remote::new(self.worker, self.insn)
    }

    fn set_attributes(&mut self, steps: &StatePlan) -> sys::Result<()> {
        let mut held = Held::new(self.pid(), self.insn);
        self.done.notes.extend(state::apply(steps, &mut held)?);
        held.finish(self.worker)
    }

    /// Threads that end, mappings, memory, descriptors.
    pub(super) fn begin(&mut self, made: &Made) -> sys::Result<()> {
        let (pid, plan, insn) = (self.pid(), self.plan, self.insn);
        self.step = "ending threads";
        fault::point(self.step);
        for &tid in &plan.end_threads {
            threads::end(self.frozen, tid, insn)?;
        }
        for registration in &plan.registrations {
            threads::unregister(registration, insn)?;
        }
        self.worker = self.frozen.threads()[0];
        self.step = "lifting its resource limits";
        self.set_attributes(&plan.limits.before)?;
        let mut remote = self.remote()?;
        self.step = "changing mappings";
        fault::point(self.step);
        if let Some(brk) = plan.brk {
            set_brk(&mut remote, brk)?;
        }
        for op in &plan.mappings {
            change_mapping(pid, &mut remote, op)?;
        }
        drop(remote);
        self.step = "taking guard pages away";
        let mut held = Held::new(pid, insn);
        state::apply(&plan.memory.before, &mut held)?;
        held.finish(self.worker)?;
        let mut remote = self.remote()?;
        self.step = "writing memory";
        fault::point(self.step);
        let mapped: PageSet = self
            .target
            .vmas
            .iter()
            .filter(|v| !v.is_special())
            .map(|v| v.range)
            .collect();
        // A guard page has no content, and one that was there all along takes none.
        let guards: PageSet = self
            .target
            .attributes
            .memory
            .guards
            .iter()
            .copied()
            .collect();
        let mapped = mapped.subtract(&guards);
        let (written, absent) = memory::write(pid, &self.pages, &mapped)?;
        memory::discard(pid, &absent, &self.target.vmas, &mut remote)?;
        (self.done.written, self.done.discarded) = (written, absent.pages());
        self.step = "opening and closing descriptors";
        fault::point(self.step);
        made.install(&mut remote, pid, self.process, &plan.files)
    }

    /// Gives back locks of the process that it is to have otherwise.
    pub(super) fn unlock(&mut self, made: &Made) -> sys::Result<()> {
        self.step = "giving locks back";
        made.unlock_process(&mut self.remote()?, self.pid(), &self.plan.files)
    }

    /// Writes the contents of files that its descriptors refer to by now.
    pub(super) fn write_back(&mut self, changed: &[SavedFile]) -> sys::Result<()> {
        self.step = "writing the contents of files";
        fault::point(self.step);
        files::write_back(self.pid(), self.target, changed, self.pages.content).map(drop)
    }

    fn settle_files(&mut self, made: &Made) -> sys::Result<()> {
        let notes = made.settle_files(&self.plan.files, self.target, self.live)?;
        self.done.notes.extend(notes);
        Ok(())
    }

    /// What it has to do itself for its open files. `wanted` is what its plan for them was made for.
    pub(super) fn settle_process(&mut self, made: &Made, wanted: &ProcessState) -> sys::Result<()> {
        self.step = "setting what open files hold";
        let (pid, files) = (self.pid(), &self.plan.files);
        let notes = made.settle_process(&mut self.remote()?, pid, files, wanted, self.target)?;
        self.done.notes.extend(notes);
        Ok(())
    }

    /// Registrations, threads, attributes, registers.
    pub(super) fn finish(&mut self) -> sys::Result<()> {
        let (pid, plan, insn) = (self.pid(), self.plan, self.insn);
        self.step = "registering threads";
        fault::point(self.step);
        for registration in &plan.registrations {
            threads::register_again(registration, insn)?;
        }
        self.step = "making threads";
        fault::point(self.step);
        fault::failure(self.step)?;
        for thread in &plan.start_threads {
            threads::start(self.frozen, self.worker, insn, thread)?;
        }
        self.step = "setting attributes";
        fault::point(self.step);
        let mut held = Held::new(pid, insn);
        let notes = &mut self.done.notes;
        notes.extend(state::apply(&plan.memory.after, &mut held)?);
        notes.extend(state::apply(&plan.state, &mut held)?);
        held.finish(self.worker)?;
        self.step = "continuing its waits";
        fault::point(self.step);
        let target = self.target;
        let remote = |n: usize| Remote::new(target.threads[n].tid, insn);
        let waits = waits::begin_all(pid, &target.threads, remote, &mut self.done.notes)?;
        self.step = "setting resource limits";
        self.set_attributes(&plan.limits.after)?;
        self.step = "setting registers";
        fault::point(self.step);
        for (n, (thread, wait)) in target.threads.iter().zip(waits).enumerate() {
            threads::set_registers(thread.tid, thread, wait)?;
            if n == 0 {
                fault::point("registers of one thread set");
            }
        }
        Ok(())
    }
}

fn set_brk(remote: &mut Remote, brk: u64) -> sys::Result<()> {
    let now = remote.call("brk", libc::SYS_brk, [brk, 0, 0, 0, 0, 0])?;
    if now != brk {
        return Err(SysError::new(
            "brk",
            format_args!("{brk:#x}"),
            std::io::Error::from_raw_os_error(libc::ENOMEM),
        ));
    }
    Ok(())
}

/// `PROT_*`
pub(super) fn bits(prot: Protection) -> u64 {
    let bit = |on: bool, flag: i32| if on { flag as u64 } else { 0 };
    bit(prot.read, libc::PROT_READ)
        | bit(prot.write, libc::PROT_WRITE)
        | bit(prot.exec, libc::PROT_EXEC)
}

fn change_mapping(pid: i32, remote: &mut Remote, op: &MapOp) -> sys::Result<()> {
    match op {
        MapOp::Unmap(range) => {
            remote.call(
                "munmap",
                libc::SYS_munmap,
                [range.start, range.len(), 0, 0, 0, 0],
            )?;
        }
        MapOp::Protect(range, prot) => {
            let args = [range.start, range.len(), bits(*prot), 0, 0, 0];
            remote.call("mprotect", libc::SYS_mprotect, args)?;
        }
        MapOp::Map(vma) => map(pid, remote, vma)?,
    }
    Ok(())
}

fn map(pid: i32, remote: &mut Remote, vma: &Vma) -> sys::Result<()> {
    let mut flags = libc::MAP_FIXED;
    flags |= if vma.shared {
        libc::MAP_SHARED
    } else {
        libc::MAP_PRIVATE
    };
    if vma.backing == Backing::Stack {
        flags |= libc::MAP_GROWSDOWN;
    }
    if vma.flags.iter().any(|f| f == "nr") {
        flags |= libc::MAP_NORESERVE;
    }
    let args = |flags: i32, fd: i64, offset: u64| {
        [
            vma.range.start,
            vma.range.len(),
            bits(vma.prot),
            flags as u64,
            fd as u64,
            offset,
        ]
    };
    let Backing::File { path, offset, .. } = &vma.backing else {
        remote.call(
            "mmap",
            libc::SYS_mmap,
            args(flags | libc::MAP_ANONYMOUS, -1, 0),
        )?;
        return Ok(());
    };
    let access = if vma.shared && vma.prot.write {
        libc::O_RDWR
    } else {
        libc::O_RDONLY
    };
    let name = [path.as_bytes(), b"\0"].concat();
    // The name lies in a page of its own for a moment, so that no memory of the program is borrowed.
    let writable = (libc::PROT_READ | libc::PROT_WRITE) as u64;
    let room = crate::model::page_up(name.len() as u64);
    let borrowed = remote.call("mmap", libc::SYS_mmap, {
        let anonymous = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        [0, room, writable, anonymous as u64, u64::MAX, 0]
    })?;
    sys::write_bytes(pid, borrowed, &name)?;
    let open = [
        libc::AT_FDCWD as u64,
        borrowed,
        (access | libc::O_CLOEXEC) as u64,
        0,
        0,
        0,
    ];
    let fd = remote.call("openat", libc::SYS_openat, open)?;
    let mapped = remote.call("mmap", libc::SYS_mmap, args(flags, fd as i64, *offset));
    remote.call("close", libc::SYS_close, [fd, 0, 0, 0, 0, 0])?;
    remote.call("munmap", libc::SYS_munmap, [borrowed, room, 0, 0, 0, 0])?;
    mapped.map(drop)
}
