//! Ending, making and setting threads.

use super::plan::Registration;
use super::waits::{self, Wait};
use crate::model::{RobustList, Rseq, ThreadState, page_down};
use crate::sys::arch::{Registers, fit_extended};
use crate::sys::ptrace::{self, Tid};
use crate::sys::{
    self, CloneArgs, Frozen, LAST_PID, Remote, SysError, THREAD_FLAGS, can_choose_next_id,
    with_next_id,
};
use std::io;
use std::time::Duration;
use zerocopy::IntoBytes;

/// Tries to get a thread id before giving up: another process may take it in between.
const ATTEMPTS: u32 = 50;
/// How long a thread takes to be gone once it has ended.
const GONE_SOON: Duration = Duration::from_millis(2);

/// Whether a thread with this id can be made in this PID namespace, or why not. `maker` is the process that is to
/// make it, where there is one yet: its privilege is as good as ours.
pub fn can_start(tid: i32, maker: Option<i32>) -> Result<(), String> {
    if std::path::Path::new(&format!("/proc/{tid}")).exists() {
        return Err("another process has its id now".into());
    }
    can_choose(maker).map_err(|e| {
        format!("choosing a thread's id needs CAP_CHECKPOINT_RESTORE ({LAST_PID}: {e})")
    })
}

/// Whether the ids of new processes and threads in this PID namespace can be chosen, by this process or by `maker`.
///
/// # Errors
/// Why this process may not.
pub fn can_choose(maker: Option<i32>) -> io::Result<()> {
    match can_choose_next_id() {
        Err(_) if maker.is_some_and(sys::chooses_ids) => Ok(()),
        done => done,
    }
}

/// Ends a thread of a held process.
pub(super) fn end(frozen: &mut Frozen, tid: Tid, insn: u64) -> sys::Result<()> {
    Remote::new(tid, insn)?.exit()?;
    frozen.forget(tid);
    Ok(())
}

/// Makes a thread with a given id by a call that `maker` runs, and registers what the kernel keeps
/// for it. The memory must be the snapshot's by now.
pub(super) fn start(
    frozen: &mut Frozen,
    maker: Tid,
    insn: u64,
    thread: &ThreadState,
) -> sys::Result<()> {
    let mut last = None;
    for _ in 0..ATTEMPTS {
        match clone_with_id(frozen, maker, insn, thread.tid) {
            Ok(()) => return register(frozen.pid(), thread, insn),
            // A thread that has just ended holds its id until it is quite gone.
            Err(e) if e.errno() == Some(libc::EEXIST) => {
                std::thread::sleep(GONE_SOON);
                last = Some(e);
            }
            Err(e) if e.is_denied() => {
                // Choosing the id itself needs a privilege of the target; choosing the one that
                // comes next, of ours.
                if clone_next(frozen, maker, insn, thread.tid)? {
                    return register(frozen.pid(), thread, insn);
                }
                last = Some(e);
            }
            Err(e) => return Err(e),
        }
    }
    Err(last.expect("at least one attempt"))
}

/// Makes a thread by clone3(2), which takes the id as an argument. EEXIST when it is taken, EPERM
/// when the target lacks CAP_CHECKPOINT_RESTORE.
fn clone_with_id(frozen: &mut Frozen, maker: Tid, insn: u64, tid: Tid) -> sys::Result<()> {
    let args = CloneArgs {
        flags: THREAD_FLAGS,
        exit_signal: 0,
        id: Some(tid),
    };
    let made = Remote::new(maker, insn)?.clone_with(&args)?;
    frozen.adopt(made);
    Ok(())
}

/// Makes a thread by clone(2) after asking for `tid` to be the next id. `false` when another
/// process was quicker.
fn clone_next(frozen: &mut Frozen, maker: Tid, insn: u64, tid: Tid) -> sys::Result<bool> {
    let mut remote = Remote::new(maker, insn)?;
    let made = with_next_id(tid, || {
        remote.clone_thread([THREAD_FLAGS, 0, 0, 0, 0, 0], libc::SYS_clone)
    })?;
    drop(remote);
    frozen.adopt(made);
    if made != tid {
        end(frozen, made, insn)?;
    }
    Ok(made == tid)
}

fn set_robust_list(remote: &mut Remote, list: RobustList) -> sys::Result<()> {
    let args = [list.head, list.len, 0, 0, 0, 0];
    remote
        .call("set_robust_list", libc::SYS_set_robust_list, args)
        .map(drop)
}

fn set_rseq(remote: &mut Remote, rseq: Rseq, flags: u32) -> sys::Result<()> {
    let args = rseq_args(Rseq { flags, ..rseq });
    remote.call("rseq", libc::SYS_rseq, args).map(drop)
}

/// Takes back what a thread has registered and the snapshot's has not. The memory must be as it was when it did:
/// the kernel writes to the area that it lets go of (`rseq(2)`).
pub(super) fn unregister(registration: &Registration, insn: u64) -> sys::Result<()> {
    const RSEQ_FLAG_UNREGISTER: u32 = 1;
    match registration.rseq {
        Some((Some(rseq), _)) => {
            let mut remote = Remote::new(registration.tid, insn)?;
            set_rseq(&mut remote, rseq, RSEQ_FLAG_UNREGISTER)
        }
        _ => Ok(()),
    }
}

/// Registers what the snapshot's thread had. The memory must be the snapshot's by now.
pub(super) fn register_again(registration: &Registration, insn: u64) -> sys::Result<()> {
    let mut remote = Remote::new(registration.tid, insn)?;
    if let Some((_, Some(rseq))) = registration.rseq {
        set_rseq(&mut remote, rseq, rseq.flags)?;
    }
    match registration.robust_list {
        Some(list) => set_robust_list(&mut remote, list),
        None => Ok(()),
    }
}

/// What the kernel keeps per thread and a new one lacks.
fn register(pid: i32, thread: &ThreadState, insn: u64) -> sys::Result<()> {
    let mut remote = Remote::new(thread.tid, insn)?;
    if let Some(list) = thread.robust_list {
        set_robust_list(&mut remote, list)?;
    }
    if let Some(rseq) = thread.rseq {
        set_rseq(&mut remote, rseq, rseq.flags)?;
    }
    // Where it is known, it is one of its attributes.
    if thread.attributes.clear_child_tid.is_none()
        && let Some(address) = tid_address(pid, thread)
    {
        remote.call(
            "set_tid_address",
            libc::SYS_set_tid_address,
            [address, 0, 0, 0, 0, 0],
        )?;
    }
    Ok(())
}

/// Arguments of rseq(2) that register what was registered.
pub(super) fn rseq_args(rseq: Rseq) -> [u64; 6] {
    [
        rseq.addr,
        rseq.size.into(),
        rseq.flags.into(),
        rseq.signature.into(),
        0,
        0,
    ]
}

/// More than a thread's descriptor is long up to its id, in any C library.
pub const DESCRIPTOR: u64 = 0x900;

/// Where the kernel clears the thread's id when it ends, for whoever joins it, of a thread of which the snapshot
/// does not tell. C libraries keep it in the thread's descriptor, which holds the thread's id:
/// a few words from the robust list's head, or, in a thread that has not come to register one, somewhere
/// behind the thread pointer.
pub(super) fn tid_address(pid: i32, thread: &ThreadState) -> Option<u64> {
    const REACH: u64 = 64;
    let near_list = thread.robust_list.into_iter().flat_map(|list| {
        // glibc: `tid` lies two words below `robust_head`.
        let near = (list.head - REACH..list.head + REACH).step_by(4);
        std::iter::once(list.head - 16).chain(near)
    });
    let descriptor = Registers::from_prstatus(&thread.gp).map(|regs| regs.thread_pointer());
    let in_descriptor = descriptor
        .into_iter()
        .flat_map(|start| (start..start.saturating_add(DESCRIPTOR)).step_by(4));
    near_list.chain(in_descriptor).find(|&address| {
        let mut word = [0u8; 4];
        page_down(address) != 0
            && sys::read_bytes(pid, address, &mut word).is_ok()
            && i32::from_le_bytes(word) == thread.own_id()
    })
}

/// Sets registers and mask of a stopped thread, which may have another id now, to the snapshot's.
pub(super) fn set_registers(tid: Tid, thread: &ThreadState, wait: Option<Wait>) -> sys::Result<()> {
    let len = ptrace::extended(tid)?.len();
    ptrace::set_extended(tid, &fit_extended(&thread.fp, len))?;
    ptrace::set_sigmask(tid, thread.sigmask)?;
    let regs = Registers::from_prstatus(&thread.gp).ok_or_else(|| {
        SysError::new(
            "PTRACE_SETREGSET",
            format_args!("thread {tid}"),
            io::Error::new(
                io::ErrorKind::InvalidData,
                "the snapshot's registers are of another size",
            ),
        )
    })?;
    let regs = waits::registers(&regs, thread, wait);
    ptrace::set_general(tid, regs.as_bytes())
}
