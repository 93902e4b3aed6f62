//! What no snapshot can be faster than: copying the same number of pages within a process.

use std::hint::black_box;
use std::time::Instant;

const PAGE: usize = 4096;
/// Memory to pick pages from, far more than the caches hold.
const SOURCE_PAGES: usize = 64 << 10;
/// Pages copied in one timing.
const COPIED: usize = 2048;
/// Timings; the median counts.
const ROUNDS: usize = 15;

/// Time to copy one page out of scattered places into a buffer that is used again, in nanoseconds.
pub fn copy_of_a_page_ns() -> f64 {
    // Written, not zeroed: each page has its own memory.
    let source: Vec<u8> = (0..SOURCE_PAGES * PAGE).map(|n| (n / 61) as u8).collect();
    let mut buffer = vec![1u8; COPIED * PAGE];
    let mut place = 0x9e37_79b9_7f4a_7c15u64;
    let mut times: Vec<u64> = (0..ROUNDS)
        .map(|_| {
            let pages: Vec<usize> = (0..COPIED)
                .map(|_| next(&mut place) as usize % SOURCE_PAGES)
                .collect();
            let begun = Instant::now();
            for (to, from) in buffer.chunks_exact_mut(PAGE).zip(pages) {
                to.copy_from_slice(&source[from * PAGE..][..PAGE]);
            }
            black_box(&mut buffer);
            begun.elapsed().as_nanos() as u64
        })
        .collect();
    times.sort_unstable();
    times[ROUNDS / 2] as f64 / COPIED as f64
}

/// Marsaglia's xorshift64: any sequence without a pattern will do.
fn next(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}
