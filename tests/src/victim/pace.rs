//! A steady rate of work, so that a victim leaves time for the other programs of a small machine.

use std::time::Duration;

/// Sleeps between steps so that about `rate` steps happen in a second.
pub struct Pace {
    batch: u64,
    nap: Duration,
    done: u64,
}

impl Pace {
    /// `rate` in steps per second; 0 never sleeps.
    pub fn new(rate: u64) -> Self {
        match rate {
            0 => Self {
                batch: u64::MAX,
                nap: Duration::ZERO,
                done: 0,
            },
            1..=1000 => Self {
                batch: 1,
                nap: Duration::from_micros(1_000_000 / rate),
                done: 0,
            },
            _ => Self {
                batch: rate / 1000,
                nap: Duration::from_millis(1),
                done: 0,
            },
        }
    }

    /// Counts one step, and sleeps when it is time to. The length of the sleep is nobody's invariant.
    pub fn step(&mut self) {
        self.done += 1;
        if self.done.is_multiple_of(self.batch) {
            std::thread::sleep(self.nap);
        }
    }
}

/// A short sleep in milliseconds.
pub fn nap(milliseconds: u64) {
    std::thread::sleep(Duration::from_millis(milliseconds));
}
