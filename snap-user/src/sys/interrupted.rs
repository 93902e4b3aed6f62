//! System calls that a stop ends early.
//!
//! Most blocking calls are restarted by the kernel after a stop. Some return EINTR instead, though
//! no handler has run (signal(7), "Interruption of system calls and library functions by stop
//! signals"): a program that was never stopped before need not expect that. Such a thread gets the
//! result that makes the kernel decide: restart the call, or EINTR if a handler runs first.

use super::arch::Registers;
use super::ptrace::{self, Tid};
use super::{memory, monotonic_ns};
use std::cell::RefCell;
use std::collections::HashMap;

/// Where a call has its timeout.
#[derive(Clone, Copy)]
enum Timeout {
    None,
    /// Milliseconds in the argument itself, negative for none.
    Milliseconds(usize),
    /// Address of a timespec, null for none.
    Timespec(usize),
}

/// Calls that return EINTR after a stop: the argument with the timeout, and the result of a wait
/// that has timed out.
fn waits(nr: u64) -> Option<(Timeout, i64)> {
    const AGAIN: i64 = -(libc::EAGAIN as i64);
    Some(match nr as i64 {
        libc::SYS_epoll_wait | libc::SYS_epoll_pwait => (Timeout::Milliseconds(3), 0),
        libc::SYS_epoll_pwait2 => (Timeout::Timespec(3), 0),
        libc::SYS_rt_sigtimedwait => (Timeout::Timespec(2), AGAIN),
        libc::SYS_semtimedop => (Timeout::Timespec(3), AGAIN),
        libc::SYS_io_getevents => (Timeout::Timespec(4), 0),
        libc::SYS_semop | libc::SYS_msgrcv | libc::SYS_msgsnd => (Timeout::None, 0),
        // inotify; a read that has transferred something says so instead.
        libc::SYS_read => (Timeout::None, 0),
        _ => return None,
    })
}

/// A wait that was restarted, to be recognised at the next stop.
struct Wait {
    ip: u64,
    call: (u64, [u64; 6]),
    since: u64,
    switches: u64,
}

thread_local! {
    static WAITS: RefCell<HashMap<Tid, Wait>> = RefCell::default();
}

/// Sees to it that a wait ended early by the stop of `tid` goes on when the thread does. A wait
/// with a timeout that has been restarted before ends when its time is over, counted from the stop
/// that first met it.
pub(super) fn keep_waiting(pid: i32, tid: Tid) -> super::Result<()> {
    let regs = ptrace::registers(tid)?;
    let interrupted =
        regs.syscall_result() == -i64::from(libc::EINTR) && (regs.orig_rax as i64) >= 0;
    let kind = interrupted.then(|| waits(regs.orig_rax)).flatten();
    let Some((timeout, timed_out)) = kind else {
        WAITS.with_borrow_mut(|waits| waits.remove(&tid));
        return Ok(());
    };
    let call = (regs.orig_rax, regs.arguments());
    let now = monotonic_ns();
    let switches = voluntary_switches(pid, tid);
    let since = WAITS.with_borrow_mut(|waits| {
        // Asleep again, then stopped again, and nothing in between: the same wait.
        let same = waits
            .get(&tid)
            .filter(|w| (w.ip, w.call) == (regs.ip(), call) && switches == w.switches + 2);
        let since = same.map_or(now, |w| w.since);
        waits.insert(
            tid,
            Wait {
                ip: regs.ip(),
                call,
                since,
                switches,
            },
        );
        since
    });
    let over = match timeout_ns(pid, timeout, &call.1) {
        Some(lasts) => now - since >= lasts,
        None => false,
    };
    let regs = match over {
        true => Registers {
            rax: timed_out as u64,
            ..regs
        },
        false => regs.with_restart_unless_handled(),
    };
    ptrace::set_registers(tid, &regs)
}

fn timeout_ns(pid: i32, timeout: Timeout, args: &[u64; 6]) -> Option<u64> {
    match timeout {
        Timeout::None => None,
        Timeout::Milliseconds(at) => {
            let ms = args[at] as i32;
            (ms >= 0).then(|| ms as u64 * 1_000_000)
        }
        Timeout::Timespec(at) => {
            let mut bytes = [0u8; 16];
            if args[at] == 0 || memory::read_bytes(pid, args[at], &mut bytes).is_err() {
                return None;
            }
            let word =
                |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
            Some(
                word(0)
                    .saturating_mul(1_000_000_000)
                    .saturating_add(word(8)),
            )
        }
    }
}

/// How often the thread has gone to sleep of its own accord; a stop counts as one.
fn voluntary_switches(pid: i32, tid: Tid) -> u64 {
    std::fs::read_to_string(format!("/proc/{pid}/task/{tid}/status"))
        .ok()
        .and_then(|text| {
            let line = text
                .lines()
                .find_map(|l| l.strip_prefix("voluntary_ctxt_switches:"))?;
            line.trim().parse().ok()
        })
        .unwrap_or(0)
}
