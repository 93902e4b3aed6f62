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

/// Has a thread wait for the rest of the time. `None` where it was not in such a wait, or how much is left is not known:
/// the call is issued again then. The memory must be the snapshot's.
///
/// # Errors
/// Those of running calls. The process is none the worse for it.
fn begin(remote: &mut Remote, pid: i32, thread: &ThreadState) -> sys::Result<Option<Wait>> {
    let (Some(call), Some(left)) = (thread.restart_syscall, thread.time_left_ns) else {
        return Ok(None);
    };
    let Some(regs) = Registers::from_prstatus(&thread.gp).filter(Registers::needs_restart_block)
    else {
        return Ok(None);
    };
    let room = remote.map_room(PAGE_SIZE)?;
    let time: Vec<u8> = [left / 1_000_000_000, left % 1_000_000_000]
        .iter()
        .flat_map(|word| word.to_ne_bytes())
        .collect();
    let waited = sys::write_bytes(pid, room, &time).and_then(|()| {
        match shortened(call, regs.arguments(), room, left) {
            Some(args) => remote.begin_wait(call as i64, args).map(Some),
            None => Ok(None),
        }
    });
    remote.unmap_room(room, PAGE_SIZE)?;
    Ok(waited?.map(|result| match result {
        None => Wait::Goes,
        Some(result) => Wait::Over(result),
    }))
}

/// The same for all threads of a process, each run by what `remote` gives for its place.
pub(super) fn begin_all(
    pid: i32,
    threads: &[ThreadState],
    remote: impl Fn(usize) -> sys::Result<Remote>,
) -> sys::Result<Vec<Option<Wait>>> {
    let begin_one = |(n, thread): (usize, &ThreadState)| match thread.time_left_ns {
        Some(_) => begin(&mut remote(n)?, pid, thread),
        None => Ok(None),
    };
    threads.iter().enumerate().map(begin_one).collect()
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
