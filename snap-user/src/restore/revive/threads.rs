//! Threads of a new process, and what the kernel keeps for each.

use crate::model::{ProcessState, ThreadState};
use crate::restore::threads::{rseq_args, set_registers, tid_address};
use crate::sys::{self, Stub, StubCall};

/// Makes all threads but the first, and registers what the kernel keeps for each of them. The memory must
/// be filled.
pub(super) fn make(stub: &mut Stub, target: &ProcessState, keep_ids: bool) -> sys::Result<()> {
    let flags = libc::CLONE_VM
        | libc::CLONE_FS
        | libc::CLONE_FILES
        | libc::CLONE_SIGHAND
        | libc::CLONE_THREAD
        | libc::CLONE_SYSVSEM;
    let ids: Vec<Option<i32>> = target.threads[1..]
        .iter()
        .map(|t| keep_ids.then_some(t.own_id()))
        .collect();
    stub.make_threads(flags as u64, &ids)?;
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
    if let Some(stack) = thread.attributes.alt_stack {
        let mut bytes = stack.sp.to_le_bytes().to_vec();
        // Not that it is in use: the kernel sees that from the stack pointer.
        let flags = stack.flags & !(libc::SS_ONSTACK as u32);
        bytes.extend_from_slice(&u64::from(flags).to_le_bytes());
        bytes.extend_from_slice(&stack.size.to_le_bytes());
        let place = stub.put(&bytes)?;
        let args = [place, 0, 0, 0, 0, 0];
        calls.push(StubCall::new(
            "sigaltstack",
            what(),
            libc::SYS_sigaltstack,
            args,
        ));
    }
    let address = match thread.attributes.clear_child_tid {
        Some(address) => (address != 0).then_some(address),
        None => tid_address(stub.pid(), thread),
    };
    if let Some(address) = address {
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

/// How the process deals with each signal (`struct kernel_sigaction`).
pub(super) fn set_signals(stub: &mut Stub, target: &ProcessState) -> sys::Result<()> {
    let Some(signals) = &target.attributes.signals else {
        return Ok(());
    };
    let mut calls = Vec::with_capacity(signals.len());
    for (n, action) in (1u64..).zip(signals) {
        if [libc::SIGKILL as u64, libc::SIGSTOP as u64].contains(&n) {
            continue;
        }
        let words = [action.handler, action.flags, action.restorer, action.mask];
        let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
        let place = stub.put(&bytes)?;
        calls.push(StubCall::new(
            "rt_sigaction",
            format!("signal {n}"),
            libc::SYS_rt_sigaction,
            [n, place, 0, 8, 0, 0],
        ));
    }
    stub.run(&calls)?;
    stub.forget();
    Ok(())
}

/// Queues pending signals, and sets registers and masks: the last thing before the process runs.
pub(super) fn set(stub: &Stub, target: &ProcessState, insn: u64) -> sys::Result<()> {
    for (n, thread) in target.threads.iter().enumerate() {
        queue(stub, n, thread, insn)?;
    }
    for (thread, new) in target.threads.iter().zip(stub.threads()) {
        set_registers(new.tid, thread)?;
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
    let page = crate::model::PAGE_SIZE;
    let writable = (libc::PROT_READ | libc::PROT_WRITE) as u64;
    let anonymous = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u64;
    let room = remote.call(
        "mmap",
        libc::SYS_mmap,
        [0, page, writable, anonymous, u64::MAX, 0],
    )?;
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
    remote.call("munmap", libc::SYS_munmap, [room, page, 0, 0, 0, 0])?;
    Ok(())
}
