//! `counter [--mib 64] [--threads 4] [--rate 2000] [--avx 1]`: the demo's victim.
//!
//! A table of so many MiB in one partition per thread; every step rewrites a random page of it, and adds a
//! link to one hash chain that all threads share. `--rate` is steps per second and thread (0: as fast as it
//! goes). `--avx` threads keep known values in vector registers about a fifth of the time.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::args::Args;
use super::fault::must;
use super::mem::Mapping;
use super::pace::{Pace, nap};
use super::page::PAGE;
use super::protocol::{Started, State};
use super::rng::{Rng, mix};
use super::simd::{self, Spinner};
use super::table::Table;
use super::workers::Workers;

const LINKS: usize = 4096;
const SPIN: u64 = 200_000;

/// The last links of a hash chain: link n is a hash of link n−1 and n.
struct Chain {
    count: u64,
    links: Vec<u64>,
}

impl Chain {
    fn new() -> Self {
        Self {
            count: 0,
            links: vec![0; LINKS],
        }
    }

    fn link(&self, count: u64) -> u64 {
        self.links[count as usize % LINKS]
    }

    fn extend(&mut self) {
        let next = self.count + 1;
        let link = mix(self.link(self.count) ^ mix(next));
        self.links[next as usize % LINKS] = link;
        self.count = next;
    }

    fn verify(&self) -> Result<(), String> {
        let oldest = self.count.saturating_sub(LINKS as u64 - 1);
        for next in oldest + 1..=self.count {
            if self.link(next) != mix(self.link(next - 1) ^ mix(next)) {
                return Err(format!(
                    "link {next} of the hash chain does not follow from the one before it"
                ));
            }
        }
        Ok(())
    }
}

struct Counter {
    parts: Vec<Arc<Mutex<Table>>>,
    chain: Arc<Mutex<Chain>>,
    workers: Workers,
    mib: usize,
    width: Option<simd::Width>,
    _memory: Mapping,
}

/// Starts the victim.
pub fn start(args: &Args) -> Result<Started> {
    let mib: usize = args.value("mib", 64)?;
    let threads: usize = args.value("threads", 4)?;
    let rate: u64 = args.value("rate", 2000)?;
    let width = simd::available();
    let spinners: u64 = args.value("avx", 1)?;
    ensure!(threads > 0, "--threads must be at least 1");
    ensure!(mib > 0, "--mib must be at least 1");
    let memory = Mapping::private(mib << 20)?;
    let pages = memory.len() / PAGE / threads;
    ensure!(pages > 0, "{mib} MiB are too few for {threads} threads");
    let chain = Arc::new(Mutex::new(Chain::new()));
    let mut workers = Workers::new();
    let mut parts = Vec::new();
    for part in 0..threads {
        // SAFETY: the parts are disjoint ranges of `memory`, which lives as long as the victim.
        let table = unsafe { Table::new(memory.at().add(part * pages * PAGE), pages, part as u64) };
        parts.push(Arc::new(Mutex::new(table)));
    }
    for (number, part) in parts.iter().enumerate() {
        let (part, chain) = (Arc::clone(part), Arc::clone(&chain));
        workers.spawn(&format!("writer-{number}"), move |beat| {
            let (mut rng, mut pace) = (Rng::new(number as u64), Pace::new(rate));
            loop {
                let mut table = lock(&part);
                must(table.step(&mut rng));
                // Inside the table's lock, so that whoever holds all locks sees equal counts.
                lock(&chain).extend();
                drop(table);
                beat.beat();
                pace.step();
            }
        })?;
    }
    if let Some(width) = width {
        for number in 0..spinners {
            workers.spawn(&format!("avx-{number}"), move |beat| {
                let mut spinner = Spinner::new(number + 1, width);
                loop {
                    must(spinner.round(SPIN));
                    beat.beat();
                    nap(2);
                }
            })?;
        }
    }
    Ok(Started::new(Counter {
        parts,
        chain,
        workers,
        mib,
        width,
        _memory: memory,
    }))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl State for Counter {
    fn counter(&self) -> u64 {
        lock(&self.chain).count
    }

    fn status(&self) -> Result<(), String> {
        self.workers.alive()?;
        lock(&self.chain).verify()
    }

    fn check(&self) -> Result<(), String> {
        self.workers.working()?;
        let parts: Vec<_> = self.parts.iter().map(|part| lock(part)).collect();
        let chain = lock(&self.chain);
        chain.verify()?;
        for (number, part) in parts.iter().enumerate() {
            part.verify_all()
                .map_err(|reason| format!("partition {number}: {reason}"))?;
        }
        let written: u64 = parts.iter().map(|part| part.written()).sum();
        match written == chain.count {
            true => Ok(()),
            false => Err(format!(
                "{written} pages were written, but the chain has {} links",
                chain.count
            )),
        }
    }

    fn details(&self) -> Value {
        let avx = self.width.map(|width| format!("{width:?}"));
        json!({
            "mib": self.mib, "avx": avx, "workers": self.workers.report(), "poke": lock(&self.parts[0]).poke(),
        })
    }
}
