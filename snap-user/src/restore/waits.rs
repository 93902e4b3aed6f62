//! Waits that go on: a thread that was in the middle of a sleep sleeps for the rest of it.
//!
//! The kernel remembers when an interrupted sleep is over in the thread that sleeps, where nothing but that sleep
//! puts it. So the thread begins the same call anew, with the time that is left, and is interrupted in it; put back
//! to where it was captured, it continues that one.

use crate::model::{PAGE_SIZE, ThreadState};
use crate::sys::arch::Registers;
use crate::sys::{self, Remote};

/// How a wait that was interrupted goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wait {
    /// The kernel continues it.
    Goes,
    /// It is over, with this result.
    Over(i64),
}

/// A call that waits, which the kernel would continue by what it remembers of it.
struct Interrupted {
    call: u64,
    args: [u64; 6],
    left_ns: u64,
}

/// The call that a thread was in the middle of. `None` where it was not in such a wait, or how much is left is not
/// known.
fn interrupted(thread: &ThreadState) -> Option<Interrupted> {
    let regs = Registers::from_prstatus(&thread.gp).filter(Registers::needs_restart_block)?;
    Some(Interrupted {
        call: thread.restart_syscall?,
        args: regs.arguments(),
        left_ns: thread.time_left_ns?,
    })
}

/// Has a thread wait for the rest of the time, which is written to `room`. `None` where this is none of the calls that
/// can.
fn begin(mut remote: Remote, pid: i32, room: u64, wait: &Interrupted) -> sys::Result<Option<Wait>> {
    let left = wait.left_ns;
    let Some(args) = shortened(wait.call, wait.args, room, left) else {
        return Ok(None);
    };
    let time: Vec<u8> = [left / 1_000_000_000, left % 1_000_000_000]
        .iter()
        .flat_map(|word| word.to_ne_bytes())
        .collect();
    sys::write_bytes(pid, room, &time)?;
    let result = remote.begin_wait(wait.call as i64, args)?;
    Ok(Some(result.map_or(Wait::Goes, Wait::Over)))
}

/// Has each thread of a process that was in the middle of a wait, run by what `remote` gives for its place, wait for the
/// rest of the time. `None` for the others: what of them was in the middle of a call issues it again. `notes` tells of
/// those whose rest of the time is known and could not be had. The memory must be the snapshot's.
///
/// # Errors
/// The process has a page more than it had.
pub(super) fn begin_all(
    pid: i32,
    threads: &[ThreadState],
    remote: impl Fn(usize) -> sys::Result<Remote>,
    notes: &mut Vec<String>,
) -> sys::Result<Vec<Option<Wait>>> {
    let waiting: Vec<_> = threads.iter().map(interrupted).collect();
    let mut waits = vec![None; threads.len()];
    let Some(first) = waiting.iter().position(Option::is_some) else {
        return Ok(waits);
    };
    // One for all of them: the kernel reads it when the wait begins.
    let room = remote(first).and_then(|mut remote| remote.map_room(PAGE_SIZE));
    for (n, thread) in threads.iter().enumerate() {
        let Some(wait) = &waiting[n] else {
            continue;
        };
        let begun = match &room {
            Ok(room) => remote(n)
                .and_then(|remote| begin(remote, pid, *room, wait))
                .map_err(|e| e.to_string()),
            Err(e) => Err(e.to_string()),
        };
        match begun {
            Ok(wait) => waits[n] = wait,
            Err(why) => notes.push(format!(
                "thread {}: its wait begins anew ({why})",
                thread.own_id()
            )),
        }
    }
    if let Ok(room) = room {
        remote(first)?.unmap_room(room, PAGE_SIZE)?;
    }
    Ok(waits)
}

/// The call's arguments with the time that is left: at `room` as a `struct timespec`, or in milliseconds.
fn shortened(call: u64, args: [u64; 6], room: u64, left_ns: u64) -> Option<[u64; 6]> {
    let [a, b, c, d, ..] = args;
    Some(match call as i64 {
        libc::SYS_nanosleep => [room, b, 0, 0, 0, 0],
        libc::SYS_clock_nanosleep => [a, b, room, d, 0, 0],
        libc::SYS_futex => [a, b, c, room, args[4], args[5]],
        libc::SYS_poll => [a, b, left_ns.div_ceil(1_000_000), 0, 0, 0],
        _ => return None,
    })
}

/// Registers of a thread, captured in a call, that goes on like this.
pub(super) fn registers(regs: &Registers, thread: &ThreadState, wait: Option<Wait>) -> Registers {
    match (wait, thread.restart_syscall) {
        (Some(Wait::Goes), Some(call)) => regs.continuing(call),
        (Some(Wait::Over(result)), _) => regs.returned(result),
        _ => regs.without_restart_block(thread.restart_syscall),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::IntoBytes;

    /// A thread that was in the middle of a call with this number, `left_ns` before the end of it.
    fn in_a_wait(tid: i32, call: i64, left_ns: Option<u64>) -> ThreadState {
        /// `ERESTART_RESTARTBLOCK`, as the kernel leaves it in the result.
        const BY_BLOCK: u64 = -516i64 as u64;
        let regs = Registers {
            rax: BY_BLOCK,
            orig_rax: call as u64,
            ..Registers::default()
        };
        ThreadState {
            tid,
            gp: regs.as_bytes().to_vec(),
            restart_syscall: Some(call as u64),
            time_left_ns: left_ns,
            ..ThreadState::default()
        }
    }

    #[test]
    fn a_wait_that_cannot_go_on_is_told_and_begins_anew() {
        let threads = [
            in_a_wait(7, libc::SYS_nanosleep, Some(5)),
            in_a_wait(8, libc::SYS_nanosleep, None),
            in_a_wait(9, libc::SYS_poll, Some(5)),
        ];
        let full = |_| {
            let full = std::io::Error::from_raw_os_error(libc::ENOMEM);
            Err(sys::SysError::new("mmap", "a page", full))
        };
        let mut notes = Vec::new();
        let waits = begin_all(1, &threads, full, &mut notes).unwrap();
        assert_eq!(waits, [None; 3]);
        let told = |tid| format!("thread {tid}: its wait begins anew (");
        assert_eq!(notes.len(), 2, "{notes:?}");
        assert!(notes[0].starts_with(&told(7)), "{notes:?}");
        assert!(notes[1].starts_with(&told(9)), "{notes:?}");
    }

    #[test]
    fn only_the_time_of_a_call_changes() {
        let args = [1, 2, 3, 4, 5, 6];
        let with = |nr: i64| shortened(nr as u64, args, 0x9000, 1_500_000);
        assert_eq!(with(libc::SYS_nanosleep).unwrap()[..2], [0x9000, 2]);
        assert_eq!(
            with(libc::SYS_clock_nanosleep).unwrap()[..4],
            [1, 2, 0x9000, 4]
        );
        assert_eq!(with(libc::SYS_futex), Some([1, 2, 3, 0x9000, 5, 6]));
        assert_eq!(with(libc::SYS_poll).unwrap()[..3], [1, 2, 2]);
        assert_eq!(with(libc::SYS_read), None);
    }
}
