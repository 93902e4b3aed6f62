//! What the first write to a protected page costs on this machine.

use super::{Result, TrackError, TrackerKind};
use crate::sys::{MayHold, Pagemap, ScratchMap, Userfaultfd, WpRegister};
use rustix::time::{ClockId, clock_gettime};

/// Large enough that the clock and the first touch of the page tables do not show.
const PAGES: u64 = 1 << 14;
const ROUNDS: usize = 3;
/// From one write to the next, in pages: odd, so that all of them are met, and far, so that neither caches nor
/// translations are near.
const STRIDE: u64 = 6_121;

/// Nanoseconds that this thread has run: what others have of its processor meanwhile does not count.
fn run_ns() -> u64 {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Nanoseconds that a write to a page under asynchronous write protection takes longer than one to
/// a page that is not: the median of a few rounds, scattered over 64 MiB of this process itself. Takes some hundred
/// milliseconds. The fault log's own part is not in it.
///
/// # Errors
/// [`TrackError::Unavailable`] where the kernel lacks the mechanism; else a failed system call.
pub fn fault_cost_ns() -> Result<u64> {
    let mut map = ScratchMap::new(PAGES)?;
    let uffd = Userfaultfd::create()?;
    let mut pagemap = Pagemap::open(std::process::id().cast_signed())?;
    let range = map.range();
    let mut write_all = |byte| {
        let start = run_ns();
        (0..PAGES).for_each(|n| map.write(n * STRIDE % PAGES, byte));
        run_ns() - start
    };
    write_all(0);
    if uffd.register(range)? != WpRegister::Done {
        return Err(TrackError::Unavailable {
            kind: TrackerKind::WriteProtect,
            why: "the kernel refuses to register memory".into(),
        });
    }
    let mut rounds = [0; ROUNDS];
    for (byte, round) in (1..).zip(&mut rounds) {
        pagemap.scan_and_protect(range, MayHold::Files)?;
        let protected = write_all(byte);
        let plain = write_all(byte);
        *round = protected.saturating_sub(plain);
    }
    rounds.sort_unstable();
    Ok(rounds[ROUNDS / 2] / PAGES)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::track::{Support, support};

    #[test]
    fn a_fault_costs_more_than_a_store_and_less_than_a_millisecond() {
        match (support(TrackerKind::WriteProtect), fault_cost_ns()) {
            (Support::Yes, cost) => {
                let ns = cost.expect("the tracker works, so its cost can be measured");
                assert!((50..1_000_000).contains(&ns), "{ns} ns");
            }
            (_, cost) => assert!(cost.is_err(), "{cost:?} without the mechanism"),
        }
    }
}
