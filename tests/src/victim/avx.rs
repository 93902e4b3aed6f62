//! `avx [--threads 2]`: threads that are busy all the time with known values in vector registers (AVX-512 where
//! the processor has it, else AVX2), mask registers, the x87 stack, and the MXCSR and x87 control words.

use std::sync::{Arc, OnceLock};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::args::Args;
use super::fault::must;
use super::protocol::{Started, State};
use super::simd::{self, Spinner};
use super::table::poke;
use super::workers::Workers;

/// Some tens of milliseconds without touching memory.
const SPIN: u64 = 4_000_000;

struct Avx {
    width: simd::Width,
    // Where the first thread's registers are loaded from.
    loaded: Arc<OnceLock<usize>>,
    workers: Workers,
}

/// Starts the victim.
pub fn start(args: &Args) -> Result<Started> {
    let threads: u64 = args.value("threads", 2)?;
    let width = simd::available().context("this processor has neither AVX2 nor AVX-512")?;
    let loaded = Arc::new(OnceLock::new());
    let mut workers = Workers::new();
    for number in 0..threads {
        let loaded = Arc::clone(&loaded);
        workers.spawn(&format!("avx-{number}"), move |beat| {
            let mut spinner = Spinner::new(0xa5a5_0000 + number, width);
            loaded.get_or_init(|| spinner.loaded() as usize);
            loop {
                must(spinner.round(SPIN));
                beat.beat();
            }
        })?;
    }
    loaded.wait();
    Ok(Started::new(Avx {
        width,
        loaded,
        workers,
    }))
}

impl State for Avx {
    fn counter(&self) -> u64 {
        self.workers.total()
    }

    fn status(&self) -> Result<(), String> {
        self.workers.alive()
    }

    fn check(&self) -> Result<(), String> {
        // The registers are checked by the threads that own them. A round that was already running may have
        // loaded its registers before whatever this check is to find: the second one has not.
        self.workers.working()?;
        self.workers.working()
    }

    fn details(&self) -> Value {
        let loaded: *const u8 = std::ptr::with_exposed_provenance(*self.loaded.wait());
        json!({ "avx": format!("{:?}", self.width), "workers": self.workers.report(), "poke": poke(loaded) })
    }
}
