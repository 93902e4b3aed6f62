//! `deepstack [--mib 6] [--thread-mib 32] [--rate 20]`: recursion that grows the main stack and a thread's stack
//! deep, with canaries in each frame that are checked on the way back. At the deepest frame it rests, so that
//! snapshots see deep stacks and not only shallow ones.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::args::Args;
use super::fault::broken;
use super::pace::{Pace, nap};
use super::protocol::{Started, State};
use super::rng::{Rng, mix};
use super::table::poke;
use super::workers::{Beat, Workers};

/// Canary words of one frame: 2 KiB, so that no frame skips a page.
const WORDS: usize = 256;
/// About what one frame takes in all.
const FRAME: usize = WORDS * 8 + 160;

struct DeepStack {
    workers: Workers,
    // The bytes of the thread's lowest frame, which never returns.
    anchor: Arc<AtomicUsize>,
    deepest: Arc<AtomicU64>,
}

/// Starts the victim.
pub fn start(args: &Args) -> Result<Started> {
    let main_mib: usize = args.value("mib", 6)?;
    let thread_mib: usize = args.value("thread-mib", 32)?;
    let rate: u64 = args.value("rate", 20)?;
    let limit = main_stack_limit();
    ensure!(
        main_mib << 20 < limit - (1 << 20),
        "--mib {main_mib} does not fit the stack limit of {limit} bytes"
    );
    let mut workers = Workers::new();
    let (anchor, deepest) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicU64::new(0)));
    let (inner, most) = (Arc::clone(&anchor), Arc::clone(&deepest));
    // Twice as much: how large a frame really is depends on the compiler.
    workers.spawn_with_stack("deep-thread", thread_mib << 21, move |beat| {
        climb(beat, thread_mib << 20, rate, 2, &inner, &most);
    })?;
    while anchor.load(Ordering::Acquire) == 0 {
        nap(1);
    }
    let beat = workers.adopt("deep-main");
    let main = Box::new(move || {
        climb(
            &beat,
            main_mib << 20,
            rate,
            3,
            &AtomicUsize::new(0),
            &AtomicU64::new(0),
        )
    });
    let state = DeepStack {
        workers,
        anchor,
        deepest,
    };
    Ok(Started {
        main: Some(main),
        ..Started::new(state)
    })
}

fn main_stack_limit() -> usize {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: limit is valid for writing.
    unsafe { libc::getrlimit(libc::RLIMIT_STACK, &raw mut limit) };
    usize::try_from(limit.rlim_cur)
        .unwrap_or(usize::MAX)
        .min(1 << 40)
}

/// Goes down to random depths of up to about so many bytes, for ever.
fn climb(
    beat: &Beat,
    bytes: usize,
    rate: u64,
    seed: u64,
    anchor: &AtomicUsize,
    deepest: &AtomicU64,
) {
    let mut canaries = [0; WORDS];
    fill(&mut canaries, seed, 0);
    anchor.store(canaries[100..].as_ptr() as usize, Ordering::Release);
    let (mut rng, mut pace) = (Rng::new(seed), Pace::new(rate));
    let most = bytes / FRAME;
    loop {
        let depth = 1 + rng.below(most);
        deepest.fetch_max(depth as u64, Ordering::Relaxed);
        let (salt, rest) = (rng.word(), 1 + rng.word() % 5);
        let sum = descend(salt, depth, rest);
        let expected = (1..=depth as u64).fold(0, |sum: u64, at| sum.wrapping_add(mix(salt ^ at)));
        if sum != expected {
            broken(format_args!(
                "a recursion {depth} frames deep gave {sum:#x} instead of {expected:#x}"
            ));
        }
        verify(&canaries, seed, 0);
        beat.beat();
        pace.step();
    }
}

#[inline(never)]
fn descend(salt: u64, depth: usize, rest: u64) -> u64 {
    let mut canaries = [0; WORDS];
    fill(&mut canaries, salt, depth);
    let below = match depth {
        1 => {
            nap(rest);
            0
        }
        _ => descend(salt, depth - 1, rest),
    };
    verify(&canaries, salt, depth);
    below.wrapping_add(mix(salt ^ depth as u64))
}

/// In place: a copy would double the frame.
fn fill(canaries: &mut [u64; WORDS], salt: u64, depth: usize) {
    let start = mix(salt ^ mix(depth as u64));
    for (at, word) in std::hint::black_box(canaries).iter_mut().enumerate() {
        *word = start.wrapping_add(at as u64);
    }
}

fn verify(canaries: &[u64; WORDS], salt: u64, depth: usize) {
    let start = mix(salt ^ mix(depth as u64));
    for (at, word) in std::hint::black_box(canaries).iter().enumerate() {
        if *word != start.wrapping_add(at as u64) {
            let thread = super::workers::gettid();
            broken(format_args!(
                "thread {thread}: canary {at} of the frame {depth} above the deepest is {word:#x}"
            ));
        }
    }
}

impl State for DeepStack {
    fn counter(&self) -> u64 {
        self.workers.total()
    }

    fn status(&self) -> Result<(), String> {
        self.workers.alive()
    }

    fn check(&self) -> Result<(), String> {
        // The canaries are checked by the threads that own them: two rounds see each change to the anchors.
        self.workers.working()?;
        self.workers.working()
    }

    fn details(&self) -> Value {
        let anchor: *const u8 =
            std::ptr::with_exposed_provenance(self.anchor.load(Ordering::Acquire));
        json!({
            "workers": self.workers.report(),
            "deepest_frames": self.deepest.load(Ordering::Relaxed),
            "poke": poke(anchor),
        })
    }
}
