//! Threads of a new process, and what the kernel keeps for each.

use crate::model::{PAGE_SIZE, ProcessState, ThreadState};
use crate::restore::threads::{rseq_args, set_registers, tid_address};
use crate::restore::waits::Wait;
use crate::sys::{self, Stub, StubCall, THREAD_FLAGS};

/// Makes all threads but the first, and registers what the kernel keeps for each of them. The memory must
/// be filled.
pub(super) fn make(stub: &mut Stub, target: &ProcessState, keep_ids: bool) -> sys::Result<()> {
    let ids: Vec<Option<i32>> = target.threads[1..]
        .iter()
        .map(|t| keep_ids.then_some(t.own_id()))
        .collect();
    stub.make_threads(THREAD_FLAGS, &ids)?;
    for (n, thread) in target.threads.iter().enumerate() {
        let calls = registrations(stub, thread)?;
        stub.run_by(n, &calls)?;
        stub.forget();
    }
    Ok(())
}

fn registrations(stub: &mut Stub, thread: &ThreadState) -> sys::Result<Vec<StubCall>> {
    let what = || format!("thread {}", thread.tid);
    let mut calls = Vec::with_capacity(4);
    let mut name = thread.comm.clone().into_bytes();
    name.truncate(15);
    name.push(0);
    let name = stub.put(&name)?;
    let args = [libc::PR_SET_NAME as u64, name, 0, 0, 0, 0];
    calls.push(StubCall::new(
        "prctl(PR_SET_NAME)",
        what(),
        libc::SYS_prctl,
        args,
    ));
    if let Some(list) = thread.robust_list {
        let args = [list.head, list.len, 0, 0, 0, 0];
        calls.push(StubCall::new(
            "set_robust_list",
            what(),
            libc::SYS_set_robust_list,
            args,
        ));
    }
    if let Some(rseq) = thread.rseq {
        calls.push(StubCall::new(
            "rseq",
            what(),
            libc::SYS_rseq,
            rseq_args(rseq),
        ));
    }
    // Where it is known, it is one of its attributes.
    if thread.attributes.clear_child_tid.is_none()
        && let Some(address) = tid_address(stub.pid(), thread)
    {
        let args = [address, 0, 0, 0, 0, 0];
        calls.push(StubCall::new(
            "set_tid_address",
            what(),
            libc::SYS_set_tid_address,
            args,
        ));
    }
    Ok(calls)
}

/// Queues pending signals, which no thread may take yet.
pub(super) fn queue_all(stub: &Stub, target: &ProcessState, insn: u64) -> sys::Result<()> {
    for (n, thread) in target.threads.iter().enumerate() {
        queue(stub, n, thread, insn)?;
    }
    Ok(())
}

/// Sets registers and masks: the last thing before the process runs.
pub(super) fn set(stub: &Stub, target: &ProcessState, waits: &[Option<Wait>]) -> sys::Result<()> {
    let threads = target.threads.iter().zip(stub.threads());
    for ((thread, new), wait) in threads.zip(waits) {
        set_registers(new.tid, thread, *wait)?;
    }
    Ok(())
}

/// Signals that were queued and not yet taken. Only the process itself may queue what looks as if it came
/// from the kernel (rt_sigqueueinfo(2)).
fn queue(stub: &Stub, n: usize, thread: &ThreadState, insn: u64) -> sys::Result<()> {
    if thread.pending.is_empty() {
        return Ok(());
    }
    let pid = stub.pid();
    let own = stub.threads()[n].own as u64;
    let tgid = stub.threads()[0].own as u64;
    let mut remote = stub.remote(n, insn)?;
    let room = remote.map_room(PAGE_SIZE)?;
    for signal in &thread.pending {
        sys::write_bytes(pid, room, &signal.siginfo)?;
        let signo = signal.signo as u64;
        if signal.shared {
            let args = [tgid, signo, room, 0, 0, 0];
            remote.call("rt_sigqueueinfo", libc::SYS_rt_sigqueueinfo, args)?;
        } else {
            let args = [tgid, own, signo, room, 0, 0];
            remote.call("rt_tgsigqueueinfo", libc::SYS_rt_tgsigqueueinfo, args)?;
        }
    }
    remote.unmap_room(room, PAGE_SIZE)?;
    Ok(())
}
