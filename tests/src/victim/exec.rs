//! `exec [--every-ms 100]`: re-executes itself for ever, and carries a count from life to life.
//!
//! The count goes through the arguments, its seal through the environment. Each life has a table of its own at
//! addresses of its own. The protocol goes on across lives; only the first one says that it is ready.

use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::args::Args;
use super::fault::{broken, must};
use super::mem::Mapping;
use super::pace::Pace;
use super::page::PAGE;
use super::protocol::{GATE, Started, State};
use super::rng::{Rng, mix};
use super::table::Table;
use super::workers::Workers;

const PAGES: usize = 256;
const SEAL: &str = "KSNAP_VICTIM_SEAL";

struct Exec {
    table: Arc<Mutex<Table>>,
    lives: u64,
    before: u64,
    workers: Workers,
    _memory: Mapping,
}

/// Starts the victim, or its next life.
pub fn start(args: &Args) -> Result<Started> {
    let every: u64 = args.value("every-ms", 100)?;
    let lives: u64 = args.value("lives", 0)?;
    let before: u64 = args.value("before", 0)?;
    ensure!(every > 0, "--every-ms must be at least 1");
    if lives > 0 && std::env::var(SEAL).ok() != Some(seal(lives, before)) {
        broken(format_args!(
            "life {lives} with count {before} has a wrong seal: {:?}",
            std::env::var(SEAL)
        ));
    }
    let memory = Mapping::private(PAGES * PAGE)?;
    // SAFETY: the mapping has that many pages, and lives as long as this life.
    let table = Arc::new(Mutex::new(unsafe { Table::new(memory.at(), PAGES, lives) }));
    let mut workers = Workers::new();
    let inner = Arc::clone(&table);
    workers.spawn("writer", move |beat| {
        let (mut rng, mut pace) = (Rng::new(lives), Pace::new(1000));
        loop {
            must(
                inner
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .step(&mut rng),
            );
            beat.beat();
            pace.step();
        }
    })?;
    let inner = Arc::clone(&table);
    // Not a worker: its one beat would be its end. It is not the main thread, so the kernel must end that one
    // and give its id to this.
    std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(every));
        // A request that was read must be answered in the same life.
        let _idle = GATE.lock().unwrap_or_else(PoisonError::into_inner);
        let table = inner.lock().unwrap_or_else(PoisonError::into_inner);
        must(table.verify_all());
        let (lives, before) = (lives + 1, before + table.written());
        let error = Command::new("/proc/self/exe")
            .args(["exec", "--every-ms", &every.to_string()])
            .args([
                "--lives",
                &lives.to_string(),
                "--before",
                &before.to_string(),
            ])
            .env(SEAL, seal(lives, before))
            .exec();
        broken(format_args!("execve of itself: {error}"))
    });
    let state = Exec {
        table,
        lives,
        before,
        workers,
        _memory: memory,
    };
    Ok(Started {
        announce: lives == 0,
        ..Started::new(state)
    })
}

fn seal(lives: u64, before: u64) -> String {
    format!("{:016x}", mix(lives ^ mix(before)))
}

impl State for Exec {
    fn counter(&self) -> u64 {
        self.before
            + self
                .table
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .written()
    }

    fn status(&self) -> Result<(), String> {
        self.workers.alive()
    }

    fn check(&self) -> Result<(), String> {
        self.workers.working()?;
        self.table
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .verify_all()
    }

    fn details(&self) -> Value {
        let table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        json!({ "workers": self.workers.report(), "lives": self.lives, "poke": table.poke() })
    }
}
