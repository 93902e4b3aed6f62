//! `threads [--live 8] [--rate 300]`: threads coming and going all the time, some joined, some detached.
//!
//! Each short-lived thread checks its own stack, its thread-local value and its thread id across a few sleeps,
//! and rewrites a page of a shared table. The spawner demands the right answer from each thread that it joins.

use std::cell::Cell;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use anyhow::Result;
use serde_json::{Value, json};

use super::args::Args;
use super::fault::{broken, must};
use super::mem::Mapping;
use super::pace::{Pace, nap};
use super::page::PAGE;
use super::protocol::{Started, State};
use super::rng::{Rng, mix};
use super::table::Table;
use super::workers::{PATIENCE, Workers, gettid};

const PAGES: usize = 64;

thread_local! {
    static MINE: Cell<u64> = const { Cell::new(0) };
}

struct Shared {
    table: Mutex<Table>,
    started: AtomicU64,
    finished: AtomicU64,
}

struct Threads {
    shared: Arc<Shared>,
    workers: Workers,
    live: u64,
    _memory: Mapping,
}

/// Starts the victim.
pub fn start(args: &Args) -> Result<Started> {
    let live: usize = args.value("live", 8)?;
    let rate: u64 = args.value("rate", 300)?;
    let memory = Mapping::private(PAGES * PAGE)?;
    // SAFETY: the mapping has that many pages, and lives as long as the victim.
    let table = unsafe { Table::new(memory.at(), PAGES, 0x7472) };
    let shared = Arc::new(Shared {
        table: Mutex::new(table),
        started: AtomicU64::new(0),
        finished: AtomicU64::new(0),
    });
    let mut workers = Workers::new();
    let inner = Arc::clone(&shared);
    workers.spawn("spawner", move |beat| {
        let (mut rng, mut pace) = (Rng::new(1), Pace::new(rate));
        let mut joinable: VecDeque<(u64, JoinHandle<u64>)> = VecDeque::new();
        loop {
            let seed = rng.word();
            let handle = spawn(&inner, seed);
            // One in four is left to itself.
            if !seed.is_multiple_of(4) {
                joinable.push_back((seed, handle));
            }
            if joinable.len() >= live {
                join(joinable.pop_front());
            }
            beat.beat();
            pace.step();
        }
    })?;
    Ok(Started::new(Threads {
        shared,
        workers,
        live: live as u64,
        _memory: memory,
    }))
}

fn spawn(shared: &Arc<Shared>, seed: u64) -> JoinHandle<u64> {
    let inner = Arc::clone(shared);
    let spawned = std::thread::Builder::new()
        .stack_size(64 << 10)
        .spawn(move || {
            let answer = work(&inner, seed);
            inner.finished.fetch_add(1, Ordering::SeqCst);
            answer
        });
    shared.started.fetch_add(1, Ordering::SeqCst);
    must(spawned.map_err(|error| format!("cannot start a thread: {error}")))
}

fn join(thread: Option<(u64, JoinHandle<u64>)>) {
    let Some((seed, handle)) = thread else { return };
    match handle.join() {
        Ok(answer) if answer == expected(seed) => {}
        Ok(answer) => broken(format_args!(
            "a thread answered {answer:#x} instead of {:#x}",
            expected(seed)
        )),
        Err(_) => broken("a thread panicked"),
    }
}

fn expected(seed: u64) -> u64 {
    (0..200).fold(seed, |value, at| mix(value ^ at))
}

fn work(shared: &Shared, seed: u64) -> u64 {
    let tid = gettid();
    MINE.set(seed);
    let canaries: [u64; 200] = std::array::from_fn(|at| mix(seed ^ at as u64));
    let canaries = std::hint::black_box(canaries);
    let mut rng = Rng::new(seed);
    for _ in 0..3 {
        nap(seed % 8);
        must(
            shared
                .table
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .step(&mut rng),
        );
        if gettid() != tid {
            broken(format_args!(
                "a thread started as {tid} and is now {}",
                gettid()
            ));
        }
        if MINE.get() != seed {
            broken(format_args!(
                "thread {tid}: its thread-local value is {:#x}, not {seed:#x}",
                MINE.get()
            ));
        }
        if let Some(at) = (0..200).find(|at| canaries[*at] != mix(seed ^ *at as u64)) {
            broken(format_args!(
                "thread {tid}: word {at} of its stack is {:#x}",
                canaries[at]
            ));
        }
    }
    expected(seed)
}

impl State for Threads {
    fn counter(&self) -> u64 {
        self.shared.finished.load(Ordering::SeqCst)
    }

    fn status(&self) -> Result<(), String> {
        self.workers.alive()
    }

    fn check(&self) -> Result<(), String> {
        self.workers.working()?;
        self.shared
            .table
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .verify_all()?;
        // Threads end within milliseconds, so those that have not finished are few, unless some were lost.
        let mut outstanding = u64::MAX;
        for _ in 0..PATIENCE {
            let finished = self.shared.finished.load(Ordering::SeqCst);
            outstanding = self
                .shared
                .started
                .load(Ordering::SeqCst)
                .saturating_sub(finished);
            if outstanding <= 4 * self.live {
                return Ok(());
            }
            nap(1);
        }
        Err(format!(
            "{outstanding} of the started threads never finish: some were lost"
        ))
    }

    fn details(&self) -> Value {
        json!({
            "workers": self.workers.report(),
            "started": self.shared.started.load(Ordering::SeqCst),
            "poke": self.shared.table.lock().unwrap_or_else(PoisonError::into_inner).poke(),
        })
    }
}
