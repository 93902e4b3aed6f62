//! Carrying out a plan.

use super::files::{self, Made};
use super::memory::{self, Pages};
use super::plan::{MapOp, RestorePlan};
use super::state::{self, Held};
use super::{RestoreError, Result, fault, threads, waits};
use crate::model::{Backing, PageSet, ProcessState, Protection, SavedFile, Vma};
use crate::sys::{self, Frozen, Gadgets, Remote, SysError, proc};
use std::os::fd::AsFd;

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
    (target, live): (&ProcessState, &ProcessState),
    pages: &Pages<'_>,
    (made, changed): (&Made, &[&SavedFile]),
    process: impl AsFd,
) -> Result<Applied> {
    let pid = frozen.pid();
    let insn =
        Gadgets::find_syscall(pid, &proc::maps(pid)?)?.ok_or_else(|| RestoreError::Refused {
            pid,
            reasons: vec!["its code holds no system call instruction to borrow".into()],
        })?;
    let mut step = "ending threads";
    let mut run = || -> sys::Result<Applied> {
        fault::point(step);
        for &tid in &plan.end_threads {
            threads::end(frozen, tid, insn)?;
        }
        for registration in &plan.registrations {
            threads::unregister(registration, insn)?;
        }
        let worker = frozen.threads()[0];
        step = "lifting its resource limits";
        let mut held = Held::new(pid, insn);
        let mut notes = state::apply(&plan.limits.before, &mut held)?;
        held.finish(worker)?;
        let mut remote = Remote::new(worker, insn)?;
        step = "changing mappings";
        fault::point(step);
        if let Some(brk) = plan.brk {
            set_brk(&mut remote, brk)?;
        }
        for op in &plan.mappings {
            change_mapping(pid, &mut remote, op)?;
        }
        drop(remote);
        step = "taking guard pages away";
        let mut held = Held::new(pid, insn);
        state::apply(&plan.memory.before, &mut held)?;
        held.finish(worker)?;
        let mut remote = Remote::new(worker, insn)?;
        step = "writing memory";
        fault::point(step);
        let mapped: PageSet = target
            .vmas
            .iter()
            .filter(|v| !v.is_special())
            .map(|v| v.range)
            .collect();
        let (written, absent) = memory::write(pid, pages, &mapped)?;
        memory::discard(pid, &absent, &target.vmas, &mut remote)?;
        step = "opening and closing descriptors";
        fault::point(step);
        made.install(&mut remote, pid, &process, &plan.files)?;
        step = "writing the contents of files";
        fault::point(step);
        files::write_back(pid, target, changed, pages.content)?;
        step = "setting what open files hold";
        fault::point(step);
        notes.extend(made.settle(&mut remote, pid, &plan.files, target, live)?);
        drop(remote);
        step = "registering threads";
        fault::point(step);
        for registration in &plan.registrations {
            threads::register_again(registration, insn)?;
        }
        step = "making threads";
        fault::point(step);
        fault::failure(step)?;
        for thread in &plan.start_threads {
            threads::start(frozen, worker, insn, thread)?;
        }
        step = "setting attributes";
        fault::point(step);
        let mut held = Held::new(pid, insn);
        notes.extend(state::apply(&plan.memory.after, &mut held)?);
        notes.extend(state::apply(&plan.state, &mut held)?);
        held.finish(worker)?;
        step = "continuing its waits";
        fault::point(step);
        let remote = |n: usize| Remote::new(target.threads[n].tid, insn);
        let waits = waits::begin_all(pid, &target.threads, remote, &mut notes)?;
        step = "setting resource limits";
        let mut held = Held::new(pid, insn);
        notes.extend(state::apply(&plan.limits.after, &mut held)?);
        held.finish(worker)?;
        step = "setting registers";
        fault::point(step);
        for (n, (thread, wait)) in target.threads.iter().zip(waits).enumerate() {
            threads::set_registers(thread.tid, thread, wait)?;
            if n == 0 {
                fault::point("registers of one thread set");
            }
        }
        fault::point("all done");
        Ok(Applied {
            written,
            discarded: absent.pages(),
            notes,
        })
    };
    run().map_err(|e| RestoreError::Halfway {
        pid,
        step,
        why: e.to_string(),
    })
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
