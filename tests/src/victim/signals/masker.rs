//! A thread that holds a blocked signal pending for a while, then takes it.

use std::sync::atomic::Ordering;

use super::super::fault::{broken, must, os_error};
use super::super::pace::nap;
use super::super::workers::{Beat, gettid};
use super::handler::TALLY;
use super::{get_mask, set_mask};

const BIT: u64 = 1 << (libc::SIGUSR2 - 1);

/// Rounds for ever: send, still blocked and pending, unblock, taken exactly once.
pub fn run(beat: &Beat, rollbacks: bool) {
    let mut taken = TALLY.usr2.load(Ordering::SeqCst);
    loop {
        // SAFETY: takes numbers only.
        if unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), gettid(), libc::SIGUSR2) } != 0
        {
            broken(os_error("tgkill SIGUSR2 of this thread"));
        }
        nap(3);
        if must(get_mask()) & BIT == 0 {
            broken("SIGUSR2 is not blocked any more");
        }
        if TALLY.usr2.load(Ordering::SeqCst) != taken {
            broken("SIGUSR2 came although it is blocked");
        }
        if !pending() && !rollbacks {
            broken("SIGUSR2 was sent and is blocked, but is not pending");
        }
        must(set_mask(libc::SIG_UNBLOCK, &[libc::SIGUSR2]));
        let now = TALLY.usr2.load(Ordering::SeqCst);
        must(set_mask(libc::SIG_BLOCK, &[libc::SIGUSR2]));
        if now != taken + 1 && !rollbacks {
            broken(format_args!(
                "SIGUSR2 was unblocked, and came {} times",
                now.wrapping_sub(taken)
            ));
        }
        taken = TALLY.usr2.load(Ordering::SeqCst);
        beat.beat();
    }
}

fn pending() -> bool {
    // SAFETY: the set is filled by sigpending before use.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigpending(&raw mut set);
        libc::sigismember(&raw const set, libc::SIGUSR2) == 1
    }
}
