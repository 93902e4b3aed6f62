//! What tracees report, and waiting for it (waitpid(2)).

use super::{Tid, cont};
use crate::sys::{Result, SysError};
use std::collections::BTreeMap;
use std::io;
use std::sync::Mutex;

const PTRACE_EVENT_STOP: i32 = 128;

/// What a wait for a tracee returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Stopped on request or at its start (`PTRACE_EVENT_STOP`).
    Stopped,
    /// In a job-control stop.
    GroupStopped,
    /// About to receive this signal.
    Signal(i32),
    /// At the entry or the exit of a system call.
    Syscall,
    /// Made a new thread or a child (`PTRACE_EVENT_CLONE`, `PTRACE_EVENT_FORK`).
    Clone,
    /// Ended, with the wait status.
    Exited(i32),
}

/// Waits until a tracee reports. Fails with EINTR when a signal handler ran in this thread.
pub fn wait(tid: Tid) -> Result<Event> {
    wait_with(tid, 0).map(|event| event.expect("a blocking wait returns with an event"))
}

/// Waits until a thread that was made by a tracee is stopped at its start.
pub fn wait_for_start(tid: Tid) -> Result<()> {
    while !matches!(wait(tid)?, Event::Stopped | Event::GroupStopped) {
        cont(tid, 0)?;
    }
    Ok(())
}

/// What a tracee has to report, without waiting for it.
pub fn try_wait(tid: Tid) -> Result<Option<Event>> {
    wait_with(tid, libc::WNOHANG)
}

/// Lets a tracee that has ended go for good. One that lives keeps what it has to report.
pub fn meet_end(tid: Tid) {
    // SAFETY: zeroed, a siginfo_t is valid; the kernel fills it.
    let code = unsafe {
        let mut info: libc::siginfo_t = std::mem::zeroed();
        // Looks only: stops of a tracee are reported, and taken, whatever was asked for.
        let options = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT | libc::__WALL;
        libc::waitid(libc::P_PID, tid as libc::id_t, &mut info, options);
        info.si_code
    };
    if matches!(code, libc::CLD_EXITED | libc::CLD_KILLED | libc::CLD_DUMPED) {
        let _ = try_wait(tid);
    }
}

/// Waits for the end of any child or tracee of this thread, and lets those that stop meanwhile go on. `None` when
/// there is none.
pub fn meet_any_end() -> Option<Tid> {
    loop {
        let mut status = 0;
        // SAFETY: `status` is a live integer that the kernel fills.
        let tid = unsafe { libc::waitpid(-1, &mut status, libc::__WALL | libc::__WNOTHREAD) };
        if tid == -1 && io::Error::last_os_error().kind() == io::ErrorKind::Interrupted {
            continue;
        }
        if tid <= 0 {
            return None;
        }
        match decode(status) {
            Event::Exited(status) => {
                remember_end(tid, status);
                return Some(tid);
            }
            _ => drop(cont(tid, 0)),
        }
    }
}

/// Statuses of tracees that a wait here has met at their end. When the tracer is the parent too, no
/// other wait gets them.
static EXITED: Mutex<BTreeMap<Tid, i32>> = Mutex::new(BTreeMap::new());

fn remember_end(tid: Tid, status: i32) {
    EXITED.lock().expect("no holder panics").insert(tid, status);
}

/// The wait status of a process whose end a wait for its main thread has met.
pub fn exit_status(pid: i32) -> Option<i32> {
    EXITED.lock().expect("no holder panics").get(&pid).copied()
}

fn wait_with(tid: Tid, options: i32) -> Result<Option<Event>> {
    let mut status = 0;
    // SAFETY: `status` is a live integer that the kernel fills.
    match unsafe { libc::waitpid(tid, &mut status, libc::__WALL | options) } {
        -1 => Err(SysError::last("waitpid", format_args!("thread {tid}"))),
        0 => Ok(None),
        _ => {
            let event = decode(status);
            if let Event::Exited(status) = event {
                remember_end(tid, status);
            }
            Ok(Some(event))
        }
    }
}

fn decode(status: i32) -> Event {
    if !libc::WIFSTOPPED(status) {
        return Event::Exited(status);
    }
    let signal = libc::WSTOPSIG(status);
    match status >> 16 {
        PTRACE_EVENT_STOP if signal == libc::SIGTRAP => Event::Stopped,
        PTRACE_EVENT_STOP => Event::GroupStopped,
        libc::PTRACE_EVENT_CLONE | libc::PTRACE_EVENT_FORK => Event::Clone,
        _ if signal == libc::SIGTRAP | 0x80 => Event::Syscall,
        _ => Event::Signal(signal),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wait_statuses_are_told_apart() {
        let stopped = |event: i32, signal: i32| event << 16 | signal << 8 | 0x7f;
        assert_eq!(
            decode(stopped(PTRACE_EVENT_STOP, libc::SIGTRAP)),
            Event::Stopped
        );
        assert_eq!(
            decode(stopped(PTRACE_EVENT_STOP, libc::SIGSTOP)),
            Event::GroupStopped
        );
        assert_eq!(decode(stopped(0, libc::SIGTRAP | 0x80)), Event::Syscall);
        assert_eq!(
            decode(stopped(0, libc::SIGTRAP)),
            Event::Signal(libc::SIGTRAP)
        );
        assert_eq!(
            decode(stopped(0, libc::SIGUSR1)),
            Event::Signal(libc::SIGUSR1)
        );
        assert_eq!(
            decode(stopped(libc::PTRACE_EVENT_CLONE, libc::SIGTRAP)),
            Event::Clone
        );
        assert_eq!(decode(7 << 8), Event::Exited(7 << 8));
    }
}
