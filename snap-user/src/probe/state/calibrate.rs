//! Which bits of a thread's flags mean what: their numbers are in no type information, and have changed. So
//! a thread of this process tries them out.

use super::StateReader;
use crate::sys::{Trap, set_trap};
use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering};

/// Off, on, off, on, off: enough to tell a bit that follows from one that happens to change.
const ROUNDS: usize = 5;

/// The bit that is set while `trap` is on.
pub(super) fn bit_of(reader: &mut StateReader, trap: Trap) -> Option<u32> {
    let (tid, reached, looked) = (AtomicI32::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
    let (mut always, mut never) = (u64::MAX, u64::MAX);
    let mut works = true;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            tid.store(nix::unistd::gettid().as_raw(), Ordering::SeqCst);
            for round in 0..ROUNDS {
                let on = round % 2 == 1;
                // Nothing here reads a clock while the trap is on.
                let set = round == 0 || set_trap(trap, on);
                reached.store(if set { round + 1 } else { usize::MAX }, Ordering::SeqCst);
                if !set {
                    return;
                }
                while looked.load(Ordering::SeqCst) <= round {
                    std::thread::yield_now();
                }
            }
        });
        for round in 0..ROUNDS {
            while reached.load(Ordering::SeqCst) <= round {
                std::thread::yield_now();
            }
            if reached.load(Ordering::SeqCst) == usize::MAX {
                works = false;
                return;
            }
            let flags = reader.flags(tid.load(Ordering::SeqCst));
            works &= flags.is_some();
            let flags = flags.unwrap_or_default();
            match round % 2 {
                1 => always &= flags,
                _ => never &= !flags,
            }
            looked.store(round + 1, Ordering::SeqCst);
        }
    });
    let follows = always & never;
    (works && follows.count_ones() == 1).then(|| follows.trailing_zeros())
}
