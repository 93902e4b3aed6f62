//! Many system calls of a frozen thread in one go.
//!
//! Each call returns into rt_sigreturn(2) on a frame that holds the registers of the next one; behind the
//! last comes the thread's own state. So the thread runs them all by itself, some microseconds each, and if
//! the tracer dies meanwhile, it runs them to the end and goes on where it was.
//!
//! What a call returns is lost, since the frame overwrites it; what it writes into memory is not.
//!
//! The end is told by a signal that the thread sends to itself, one that does nothing where it has no handler:
//! a tracer stops the thread before its delivery, and without one the kernel throws it away.
//!
//! A thread whose interrupted call continues by its restart block (nanosleep(2), poll(2), futex(2) with a time-out) runs
//! the calls one by one instead, without the sigreturns, which would end that call.

use super::arch::SigFrame;
use super::guarded::Guarded;
use super::ptrace::{self, Event, Options};
use super::{Call, Frozen, Gadgets, Result, SysError, memory, proc};
use crate::model::Vma;
use std::io;
use zerocopy::IntoBytes;

/// Signals that do nothing by default (`signal(7)`).
const HARMLESS: [i32; 3] = [libc::SIGURG, libc::SIGWINCH, libc::SIGCHLD];
/// A frame and the address before it, to which the call returns.
const SLOT: u64 = 320;
/// What results are filled with before: what still is so afterwards was not written.
const UNWRITTEN: u8 = 0xa5;

/// A call that writes its result into memory.
#[derive(Clone, Copy, Debug)]
pub struct Question {
    /// The call.
    pub call: Call,
    /// Which argument is the address of the result; its value above is ignored.
    pub at: usize,
    /// Length of the result in bytes, at most 256.
    pub len: usize,
}

/// Has thread `tid` of a frozen process answer questions. An answer is `None` where the call wrote nothing.
///
/// # Errors
/// `Unsupported` where that is not possible: see [`Guarded::new`]; also where each of the harmless signals
/// has a handler or is pending, or where filters might end the process for the calls.
pub fn ask(
    frozen: &Frozen,
    tid: ptrace::Tid,
    gadgets: &Gadgets,
    vmas: &[Vma],
    questions: &[Question],
) -> Result<Vec<Option<Vec<u8>>>> {
    let pid = frozen.pid();
    let status = proc::task_status(pid, tid)?;
    let unsupported = |why: &str| {
        SysError::new(
            "inject system calls",
            format_args!("thread {tid}"),
            io::Error::new(io::ErrorKind::Unsupported, why),
        )
    };
    let bit = |signal: i32| 1u64 << (signal - 1);
    let [_, handled] = status.dispositions;
    let busy = handled | status.pending;
    let marker = HARMLESS
        .into_iter()
        .find(|signal| busy & bit(*signal) == 0)
        .ok_or_else(|| unsupported("it uses every signal that would do no harm"))?;

    let results: u64 = questions.iter().map(|q| aligned(q.len)).sum();
    let room = results + SLOT * (questions.len() as u64 + 2);
    let mut thread = Guarded::with_room(frozen, tid, gadgets, vmas, room)?;
    let suspended = Options {
        suspend_seccomp: true,
        ..Options::default()
    };
    let filtered = status.seccomp != 0;
    if filtered && ptrace::set_options(tid, suspended).is_err() {
        return Err(unsupported(
            "its system call filters might end it, and suspending them takes CAP_SYS_ADMIN",
        ));
    }

    let first = thread.room();
    memory::write_bytes(pid, first, &vec![UNWRITTEN; results as usize])?;
    let mut calls = Vec::with_capacity(questions.len() + 1);
    let mut at = first;
    for question in questions {
        let mut call = question.call;
        call.args[question.at] = at;
        at += aligned(question.len);
        calls.push((call, u64::MAX));
    }
    // In the ids of its own namespace.
    let [group, own] = status.own_ids;
    let tell = Call {
        nr: libc::SYS_tgkill,
        args: [group as u64, own as u64, marker as u64, 0, 0, 0],
    };
    // A sigreturn has a call that the kernel continues by its restart block end with EINTR (restore_sigcontext in
    // arch/x86/kernel/signal_64.c): such a thread runs none, for the price of some stops for each call.
    let done = match ptrace::registers(tid)?.needs_restart_block() {
        true => each(&mut thread, &calls),
        false => {
            calls.push((tell, !bit(marker)));
            run(&mut thread, first + results, &calls, marker)
        }
    };
    if filtered {
        let _ = ptrace::set_options(tid, Options::default());
    }
    done?;
    let mut bytes = vec![0; results as usize];
    memory::read_bytes(pid, first, &mut bytes)?;
    drop(thread);
    let mut rest = bytes.as_slice();
    Ok(questions
        .iter()
        .map(|question| {
            let (answer, after) = rest.split_at(aligned(question.len) as usize);
            rest = after;
            let answer = &answer[..question.len];
            (!answer.iter().all(|b| *b == UNWRITTEN)).then(|| answer.to_vec())
        })
        .collect())
}

/// Has thread `tid` run calls one by one and gives what each returns, negative for an error number. Takes longer
/// than [`ask`], a stop for each.
///
/// # Errors
/// Those of [`ask`].
pub fn ask_values(
    frozen: &Frozen,
    tid: ptrace::Tid,
    gadgets: &Gadgets,
    vmas: &[Vma],
    calls: &[Call],
) -> Result<Vec<i64>> {
    if proc::task_status(frozen.pid(), tid)?.seccomp != 0 {
        return Err(SysError::new(
            "inject system calls",
            format_args!("thread {tid}"),
            io::Error::new(
                io::ErrorKind::Unsupported,
                "its system call filters might end it",
            ),
        ));
    }
    let mut thread = Guarded::with_room(frozen, tid, gadgets, vmas, 0)?;
    calls.iter().map(|call| thread.call(*call, None)).collect()
}

fn aligned(len: usize) -> u64 {
    (len as u64).next_multiple_of(16)
}

/// Has the thread run them one after the other, and none of the sigreturns behind them.
fn each(thread: &mut Guarded<'_>, calls: &[(Call, u64)]) -> Result<()> {
    for (call, _) in calls {
        thread.call(*call, None)?;
    }
    Ok(())
}

/// Lays the frames out, lets the thread run through them, and waits for its signal.
fn run(thread: &mut Guarded<'_>, slots: u64, calls: &[(Call, u64)], marker: i32) -> Result<()> {
    let tid = thread.tid();
    // Slot n has the frame that begins call n + 1.
    let mut frames = Vec::with_capacity(calls.len() * SLOT as usize);
    for (n, (call, mask)) in calls.iter().enumerate().skip(1) {
        let stack = match n + 1 == calls.len() {
            true => thread.last(),
            false => slots + SLOT * n as u64,
        };
        let frame = SigFrame::new(&thread.registers_for(call, stack), *mask, 0);
        frames.extend(thread.sigreturn().to_le_bytes());
        frames.extend(frame.as_bytes());
        frames.resize(n * SLOT as usize, 0);
    }
    memory::write_bytes(tid, slots, &frames)?;
    memory::write_bytes(tid, thread.last(), &thread.sigreturn().to_le_bytes())?;
    let begin = thread.registers_for(&calls[0].0, slots);
    thread.enter_all(&begin)?;
    ptrace::cont(tid, 0)?;
    loop {
        match ptrace::wait(tid)? {
            Event::Signal(signal) if signal == marker => return Ok(()),
            Event::Exited(_) => return Err(thread.lost("ended")),
            Event::Signal(
                libc::SIGSEGV | libc::SIGBUS | libc::SIGILL | libc::SIGSYS | libc::SIGTRAP,
            ) => {
                return Err(thread.lost("faulted"));
            }
            // Everything else is blocked; a job-control stop comes again when it goes on.
            _ => ptrace::cont(tid, 0)?,
        }
    }
}
