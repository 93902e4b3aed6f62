//! Walks of page tables that protect what was written, on one thread or two.

use super::Result;
use crate::model::PageRange;
use crate::sys::{MayHold, Pagemap, ScanResult, SysError, monotonic_ns};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};

/// Pieces of a mapping that threads share.
const PIECES: u64 = 8;
/// Mappings below this size are not cut into pieces.
const LARGE: u64 = 64 << 20;
/// What one page table holds, which two threads would wait for each other at.
const TABLE: u64 = 2 << 20;

/// A walk through parts of an address space, each taken by one thread.
pub(super) struct Walk {
    parts: Vec<(PageRange, MayHold)>,
    next: AtomicUsize,
    /// Whoever is first to set it: the other thread, which takes part then, or the one that has done all without it.
    is_settled: AtomicBool,
    /// There may be pages in swap.
    may_swap: bool,
}

/// What one thread has found.
pub(super) struct Share {
    /// By the place of the part.
    scans: Vec<(usize, ScanResult)>,
    /// How long it took, in nanoseconds.
    pub(super) ns: u64,
}

impl Walk {
    /// For one thread.
    pub(super) fn new(parts: Vec<(PageRange, MayHold)>, may_swap: bool) -> Self {
        Self {
            parts,
            next: AtomicUsize::new(0),
            is_settled: AtomicBool::new(false),
            may_swap,
        }
    }

    /// The same, for two: large parts are cut.
    pub(super) fn shared(parts: &[(PageRange, MayHold)], may_swap: bool) -> Self {
        Self::new(pieces(parts), may_swap)
    }

    /// Settles whether the other thread takes part. `true` for the first who asks.
    fn settle(&self) -> bool {
        !self.is_settled.swap(true, Ordering::AcqRel)
    }

    /// Waits until the other thread takes part.
    #[cfg(test)]
    pub(super) fn await_other(&self) {
        let end = std::time::Instant::now() + std::time::Duration::from_secs(60);
        while !self.is_settled.load(Ordering::Acquire) {
            assert!(std::time::Instant::now() < end, "it never does");
            thread::yield_now();
        }
    }

    /// Takes parts as long as there are any.
    pub(super) fn some(&self, pagemap: &mut Pagemap) -> Result<Share> {
        let begun = monotonic_ns();
        let mut scans = Vec::new();
        loop {
            let at = self.next.fetch_add(1, Ordering::Relaxed);
            let Some((part, holds)) = self.parts.get(at) else {
                let ns = monotonic_ns() - begun;
                return Ok(Share { scans, ns });
            };
            scans.push((at, pagemap.scan_and_protect(*part, *holds)?));
        }
    }
}

impl Share {
    /// Together with what another thread has found.
    pub(super) fn with(mut self, other: Self) -> Self {
        self.scans.extend(other.scans);
        self.scans.sort_by_key(|(at, _)| *at);
        self.ns += other.ns;
        self
    }

    /// What was found, in the order of addresses.
    pub(super) fn into_scans(self) -> impl Iterator<Item = ScanResult> {
        self.scans.into_iter().map(|(_, scan)| scan)
    }
}

/// Cuts large parts where one page table ends and the next begins.
fn pieces(parts: &[(PageRange, MayHold)]) -> Vec<(PageRange, MayHold)> {
    let mut pieces = Vec::new();
    for (part, holds) in parts {
        let mut start = part.start;
        if *holds == MayHold::Anonymous && part.len() >= LARGE {
            let step = (part.len() / PIECES).next_multiple_of(TABLE);
            while part.end - start > step {
                let end = (start + step) & !(TABLE - 1);
                pieces.push((PageRange::new(start, end), *holds));
                start = end;
            }
        }
        pieces.push((PageRange::new(start, part.end), *holds));
    }
    pieces
}

/// A second thread that walks. It waits between walks: one that is started takes some 300 µs until it runs.
pub(super) struct Walker {
    walks: Option<Sender<Arc<Walk>>>,
    shares: Receiver<Result<Share>>,
    thread: Option<JoinHandle<()>>,
}

impl Walker {
    /// Whether there is a processor for it.
    pub(super) fn has_processor() -> bool {
        thread::available_parallelism().map_or(1, usize::from) > 1
    }

    /// `None` where there is no thread to be had.
    pub(super) fn start(pagemap: &Pagemap) -> Option<Self> {
        let mut pagemap = pagemap.try_clone().ok()?;
        let (walks, to_walk) = channel::<Arc<Walk>>();
        let (found, shares) = channel();
        let thread = thread::Builder::new()
            .name("ksnap-walk".to_owned())
            .spawn(move || {
                // Takes the memory for its answers, which would have to come in a stop else.
                pagemap.can_scan();
                for walk in to_walk {
                    pagemap.set_may_swap(walk.may_swap);
                    if walk.settle() && found.send(walk.some(&mut pagemap)).is_err() {
                        return;
                    }
                }
            });
        Some(Self {
            walks: Some(walks),
            shares,
            thread: Some(thread.ok()?),
        })
    }

    /// Takes part in a walk as soon as it can, of which [`Walker::share`] must be asked before the next. `false` if
    /// it never can.
    pub(super) fn begin(&self, walk: &Arc<Walk>) -> bool {
        let walks = self.walks.as_ref().expect("until drop");
        walks.send(walk.clone()).is_ok()
    }

    /// What it has found, once the walk is over for whoever asks. `None` where all was done before it got a processor:
    /// the stopped process does not wait for one.
    pub(super) fn share(&self, walk: &Walk) -> Option<Result<Share>> {
        if walk.settle() {
            return None;
        }
        Some(self.shares.recv().unwrap_or_else(|_| {
            let ended = io::Error::other("the thread that shares the walk has ended");
            Err(SysError::new("PAGEMAP_SCAN", "the second thread", ended).into())
        }))
    }
}

impl Drop for Walker {
    fn drop(&mut self) {
        drop(self.walks.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_cover_the_same_pages_and_end_with_page_tables() {
        let small = (PageRange::new(0x1000, 0x5000), MayHold::Files);
        let odd = 0x7000_0000_3000;
        let large = PageRange::new(odd, odd + (1 << 30) + 0x5000);
        let next = (PageRange::new(large.end, large.end + LARGE), MayHold::Files);
        let pieces = pieces(&[small, (large, MayHold::Anonymous), next]);
        assert_eq!(pieces.first(), Some(&small));
        assert_eq!(pieces.last(), Some(&next), "what may hold files is not cut");
        let cut = &pieces[1..pieces.len() - 1];
        assert!((8..=9).contains(&cut.len()), "{}", cut.len());
        assert_eq!(
            (cut[0].0.start, cut[cut.len() - 1].0.end),
            (large.start, large.end)
        );
        for pair in cut.windows(2) {
            assert_eq!(pair[0].0.end, pair[1].0.start);
            assert_eq!(pair[0].0.end % TABLE, 0);
        }
    }
}
