//! System calls that a stop ends early.
//!
//! Most blocking calls are restarted by the kernel after a stop. Some return EINTR instead, though
//! no handler has run (signal(7), "Interruption of system calls and library functions by stop
//! signals"): a program that was never stopped before need not expect that. Such a thread gets the
//! result that makes the kernel decide: restart the call, or EINTR if a handler runs first.

use super::arch::Registers;
use super::ptrace::{self, Tid};
use super::{clock_ns, memory, monotonic_ns, pidfd};
use crate::model::Deadlines;
use nix::sys::socket::{getsockopt, sockopt};
use nix::sys::time::TimeValLike;
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
    /// Of the socket that the first argument names, for receiving; read(2) may be of something else.
    Receive,
    /// Of that socket, for sending and connecting.
    Send,
}

/// Calls that return EINTR after a stop: the argument with the timeout, and the result of a wait
/// that has timed out.
fn waits(nr: u64) -> Option<(Timeout, i64)> {
    const AGAIN: i64 = -(libc::EAGAIN as i64);
    const IN_PROGRESS: i64 = -(libc::EINPROGRESS as i64);
    Some(match nr as i64 {
        libc::SYS_epoll_wait | libc::SYS_epoll_pwait => (Timeout::Milliseconds(3), 0),
        libc::SYS_epoll_pwait2 => (Timeout::Timespec(3), 0),
        libc::SYS_rt_sigtimedwait => (Timeout::Timespec(2), AGAIN),
        libc::SYS_semtimedop => (Timeout::Timespec(3), AGAIN),
        libc::SYS_io_getevents => (Timeout::Timespec(4), 0),
        libc::SYS_semop | libc::SYS_msgrcv | libc::SYS_msgsnd => (Timeout::None, 0),
        // inotify, or a socket with a time-out; a read that has transferred something says so instead.
        libc::SYS_read | libc::SYS_readv => (Timeout::Receive, AGAIN),
        libc::SYS_recvfrom | libc::SYS_recvmsg | libc::SYS_accept | libc::SYS_accept4 => {
            (Timeout::Receive, AGAIN)
        }
        libc::SYS_write | libc::SYS_writev | libc::SYS_sendto | libc::SYS_sendmsg => {
            (Timeout::Send, AGAIN)
        }
        // Called again, it waits for the connection that is being made.
        libc::SYS_connect => (Timeout::Send, IN_PROGRESS),
        _ => return None,
    })
}

/// A wait that was restarted. At the next stop it is recognised by the mark that its thread still carries: one that
/// has come back to the program in between has lost it.
struct Wait {
    ip: u64,
    call: (u64, [u64; 6]),
    since: u64,
}

/// A call that the kernel continues by its restart block, as it was first met.
struct Continued {
    ip: u64,
    args: [u64; 6],
    nr: u64,
}

thread_local! {
    static CONTINUED: RefCell<HashMap<Tid, Continued>> = RefCell::default();
    static WAITS: RefCell<HashMap<Tid, Wait>> = RefCell::default();
}

/// Sees to it that a wait ended early by the stop of `tid` goes on when the thread does. A wait
/// with a timeout that has been restarted before ends when its time is over, counted from the stop
/// that first met it.
pub(super) fn keep_waiting(pid: i32, tid: Tid) -> super::Result<()> {
    let regs = ptrace::registers(tid)?;
    note_continued(tid, &regs);
    let interrupted =
        regs.syscall_result() == -i64::from(libc::EINTR) && (regs.orig_rax as i64) >= 0;
    let kind = interrupted.then(|| waits(regs.orig_rax)).flatten();
    let kind = kind.filter(|(timeout, _)| match timeout {
        // Without a time-out the kernel restarts it: this EINTR has another reason.
        Timeout::Send => socket_timeout(pid, *timeout, &regs.arguments()).is_some(),
        _ => true,
    });
    let Some((timeout, timed_out)) = kind else {
        WAITS.with_borrow_mut(|waits| waits.remove(&tid));
        return Ok(());
    };
    let call = (regs.orig_rax, regs.arguments());
    let now = monotonic_ns();
    let since = WAITS.with_borrow_mut(|waits| {
        let same = waits
            .get(&tid)
            .filter(|w| (w.ip, w.call) == (regs.ip(), call) && regs.has_restart_mark());
        let since = same.map_or(now, |w| w.since);
        let ip = regs.ip();
        waits.insert(tid, Wait { ip, call, since });
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

/// The threads are put where they were before: what is known of their waits is of another time.
pub(super) fn forget_waits(threads: &[Tid]) {
    WAITS.with_borrow_mut(|waits| waits.retain(|tid, _| !threads.contains(tid)));
}

fn note_continued(tid: Tid, regs: &Registers) {
    if !regs.needs_restart_block() {
        CONTINUED.with_borrow_mut(|calls| calls.remove(&tid));
    } else if regs.orig_rax != libc::SYS_restart_syscall as u64 {
        let call = Continued {
            ip: regs.ip(),
            args: regs.arguments(),
            nr: regs.orig_rax,
        };
        CONTINUED.with_borrow_mut(|calls| calls.insert(tid, call));
    }
}

/// The system call that a stop has interrupted and the kernel would continue by its restart block.
///
/// A call that has been continued once is restart_syscall(2) to the kernel from then on. Which one it was
/// is known if this thread has stopped it before, and else told from the code before the instruction, or
/// from what the arguments can be.
pub fn continued_call(pid: i32, tid: Tid, regs: &Registers) -> Option<ContinuedCall> {
    if !regs.needs_restart_block() {
        return None;
    }
    let known = |nr| ContinuedCall {
        nr,
        is_guessed: false,
    };
    if regs.orig_rax != libc::SYS_restart_syscall as u64 {
        return Some(known(regs.orig_rax));
    }
    let met = CONTINUED.with_borrow(|calls| {
        let call = calls.get(&tid)?;
        ((call.ip, call.args) == (regs.ip(), regs.arguments())).then_some(call.nr)
    });
    let told = met.or_else(|| {
        // `mov eax, NUMBER` right before the instruction, as C libraries have it.
        let mut code = [0u8; 5];
        let insn = regs
            .ip()
            .wrapping_sub(super::arch::SYSCALL_INSN.len() as u64);
        memory::read_bytes(pid, insn.wrapping_sub(5), &mut code).ok()?;
        let nr = u32::from_le_bytes(code[1..].try_into().expect("four bytes"));
        (code[0] == 0xb8)
            .then_some(nr.into())
            .filter(|nr| has_restart_block(*nr))
    });
    told.map(known).or_else(|| {
        let is_time = |at| memory::read_bytes(pid, at, &mut [0; 16]).is_ok();
        call_by_arguments(regs.arguments(), is_time).map(|nr| ContinuedCall {
            nr,
            is_guessed: true,
        })
    })
}

/// A system call that the kernel would continue by its restart block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ContinuedCall {
    /// Its number.
    pub nr: u64,
    /// It is what the arguments look like: good enough to issue it again with the same arguments, which the kernel checks,
    /// and not with others.
    pub is_guessed: bool,
}

/// What is left of the time-out of a call that continues by its restart block, in nanoseconds; `None` for one
/// without, one until a moment that its own arguments name, and one that counts processor time.
pub fn time_left(call: u64, args: [u64; 6], until: &Deadlines) -> Option<u64> {
    const WAIT: u64 = libc::FUTEX_WAIT as u64;
    let left = |clock, end: u64| Some(end.saturating_sub(clock_ns(clock).max(0) as u64));
    match call as i64 {
        libc::SYS_nanosleep => left(libc::CLOCK_MONOTONIC, until.sleep.1),
        libc::SYS_clock_nanosleep if args[1] & libc::TIMER_ABSTIME as u64 == 0 => {
            let (clock, end) = until.sleep;
            // Those of processes and threads are negative.
            (clock >= 0).then(|| left(clock, end)).flatten()
        }
        libc::SYS_futex if args[1] & !(libc::FUTEX_PRIVATE_FLAG as u64) == WAIT && args[3] != 0 => {
            left(libc::CLOCK_MONOTONIC, until.futex)
        }
        libc::SYS_poll if args[2] as i32 >= 0 => left(libc::CLOCK_MONOTONIC, until.poll),
        _ => None,
    }
}

/// Calls that continue by a restart block when a stop interrupts them.
fn has_restart_block(nr: u64) -> bool {
    matches!(
        nr as i64,
        libc::SYS_nanosleep | libc::SYS_clock_nanosleep | libc::SYS_poll | libc::SYS_futex
    )
}

/// `is_time`: there is memory at an address, where a time may be.
fn call_by_arguments([a, b, c, d, ..]: [u64; 6], is_time: impl Fn(u64) -> bool) -> Option<u64> {
    const LOWEST: u64 = 0x1_0000;
    let pointer = |word: u64| (LOWEST..super::arch::USER_END).contains(&word);
    let flags = (libc::FUTEX_PRIVATE_FLAG | libc::FUTEX_CLOCK_REALTIME) as u64;
    let waits = [libc::FUTEX_WAIT as u64, libc::FUTEX_WAIT_BITSET as u64];
    let nr = if a < 16 && b <= 1 && pointer(c) && is_time(c) {
        libc::SYS_clock_nanosleep
    } else if pointer(a) && pointer(b) {
        libc::SYS_nanosleep
    } else if pointer(a) && waits.contains(&(b & !flags)) && pointer(d) {
        libc::SYS_futex
    } else if b < 1 << 20 && (pointer(a) || b == 0) {
        libc::SYS_poll
    } else {
        return None;
    };
    Some(nr as u64)
}

fn timeout_ns(pid: i32, timeout: Timeout, args: &[u64; 6]) -> Option<u64> {
    match timeout {
        Timeout::None => None,
        Timeout::Receive | Timeout::Send => socket_timeout(pid, timeout, args),
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

/// The time-out of a socket in nanoseconds; `None` where there is none, or no socket.
fn socket_timeout(pid: i32, timeout: Timeout, args: &[u64; 6]) -> Option<u64> {
    let process = pidfd::pidfd_open(pid).ok()?;
    let socket = pidfd::pidfd_getfd(&process, args[0] as i32).ok()?;
    let time = match timeout {
        Timeout::Send => getsockopt(&socket, sockopt::SendTimeout),
        _ => getsockopt(&socket, sockopt::ReceiveTimeout),
    };
    let ns = time.ok()?.num_nanoseconds();
    (ns > 0).then_some(ns as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_is_that_of_the_call_and_nothing_is_where_the_end_is_an_argument() {
        let later = monotonic_ns() + 3_600_000_000_000;
        let until = Deadlines {
            sleep: (libc::CLOCK_MONOTONIC, later),
            futex: later,
            poll: later,
        };
        let left = |nr: i64, args| time_left(nr as u64, args, &until);
        let at = 0x7f00_0000_1000;
        for (nr, args) in [
            (libc::SYS_nanosleep, [at, 0, 0, 0, 0, 0]),
            (libc::SYS_clock_nanosleep, [1, 0, at, 0, 0, 0]),
            (libc::SYS_futex, [at, 128, 5, at, 0, 0]),
            (libc::SYS_poll, [at, 1, 5000, 0, 0, 0]),
        ] {
            let ns = left(nr, args).unwrap();
            assert!((1..=3_600_000_000_000).contains(&ns), "{nr}: {ns}");
        }
        for (nr, args) in [
            (libc::SYS_clock_nanosleep, [1, 1, at, 0, 0, 0]),
            (libc::SYS_futex, [at, 128, 5, 0, 0, 0]),
            (libc::SYS_futex, [at, 0x89, 5, at, 0, 0]),
            (libc::SYS_poll, [at, 1, u64::from(u32::MAX), 0, 0, 0]),
            (libc::SYS_read, [0; 6]),
        ] {
            assert_eq!(left(nr, args), None, "{nr}");
        }
        let over = Deadlines::default();
        assert_eq!(
            time_left(libc::SYS_nanosleep as u64, [0; 6], &over),
            Some(0)
        );
    }

    #[test]
    fn calls_are_told_by_what_their_arguments_can_be() {
        let at = 0x7f00_0000_1000;
        let is_time = |address| address == at;
        let is = |args, nr: i64| assert_eq!(call_by_arguments(args, is_time), Some(nr as u64));
        is([0, 0, at, at, 0, 0], libc::SYS_clock_nanosleep);
        is([1, 1, at, 0, 0, 0], libc::SYS_clock_nanosleep);
        is([at, at, 5, 5, 5, 5], libc::SYS_nanosleep);
        is([at, 128, 2, at, 0, 0], libc::SYS_futex);
        is([at, 0x189, 2, at, 0, u32::MAX.into()], libc::SYS_futex);
        is([at, 3, 1000, 0, 0, 0], libc::SYS_poll);
        is([0, 0, 1000, 0, 0, 0], libc::SYS_poll);
        // A time-out that is as large as an address.
        is([0, 0, 1_000_000, 0, 0, 0], libc::SYS_poll);
        assert_eq!(call_by_arguments([at, 1 << 60, 0, 0, 0, 0], is_time), None);
    }
}
