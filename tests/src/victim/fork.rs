//! `fork [--mib 4] [--rate 20] [--rollbacks]`: children that write copy-on-write memory and check it.
//!
//! The parent forks while it holds a table; the child demands to see the parent's table, rewrites part of it,
//! and demands its own contents, while the parent goes on rewriting the same pages. The child's exit status
//! says which of the two saw the other's writes.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Result;
use serde_json::{Value, json};

use super::args::Args;
use super::fault::{broken, must, os_error};
use super::mem::Mapping;
use super::pace::Pace;
use super::page::PAGE;
use super::protocol::{Started, State};
use super::rng::Rng;
use super::table::Table;
use super::workers::Workers;

/// Exit status of a child that found all as it must be.
const FINE: i32 = 33;

struct Fork {
    table: Arc<Mutex<Table>>,
    children: Arc<AtomicU64>,
    workers: Workers,
    _memory: Mapping,
}

/// Starts the victim.
pub fn start(args: &Args) -> Result<Started> {
    let mib: usize = args.value("mib", 4)?;
    let rate: u64 = args.value("rate", 20)?;
    let rollbacks = args.rollbacks()?;
    let memory = Mapping::private(mib << 20)?;
    // SAFETY: the mapping has that many pages, and lives as long as the victim.
    let table = unsafe { Table::new(memory.at(), memory.len() / PAGE, 0x666f) };
    let (table, children) = (Arc::new(Mutex::new(table)), Arc::new(AtomicU64::new(0)));
    let mut workers = Workers::new();
    let (inner, count) = (Arc::clone(&table), Arc::clone(&children));
    workers.spawn("forker", move |beat| {
        let (mut rng, mut pace) = (Rng::new(1), Pace::new(rate));
        loop {
            let mut table = inner.lock().unwrap_or_else(PoisonError::into_inner);
            let child = fork_child(&mut table, &mut rng);
            for _ in 0..50 {
                must(table.step(&mut rng));
            }
            drop(table);
            reap(child, rollbacks);
            count.fetch_add(1, Ordering::SeqCst);
            beat.beat();
            pace.step();
        }
    })?;
    Ok(Started::new(Fork {
        table,
        children,
        workers,
        _memory: memory,
    }))
}

fn fork_child(table: &mut Table, rng: &mut Rng) -> i32 {
    // SAFETY: the child uses only the table, which this thread holds locked, and leaves with _exit.
    match unsafe { libc::fork() } {
        -1 => broken(os_error("fork")),
        0 => {
            // SAFETY: takes numbers only. A child must not outlive the victim.
            unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
            must(
                table
                    .verify_all()
                    .map_err(|reason| format!("forked child, before its writes: {reason}")),
            );
            for _ in 0..100 {
                must(
                    table
                        .step(rng)
                        .map_err(|reason| format!("forked child: {reason}")),
                );
            }
            must(
                table
                    .verify_all()
                    .map_err(|reason| format!("forked child, after its writes: {reason}")),
            );
            // SAFETY: ends the child without running the parent's exit handlers.
            unsafe { libc::_exit(FINE) }
        }
        child => child,
    }
}

fn reap(child: i32, rollbacks: bool) {
    let mut status = 0;
    // SAFETY: status is valid for writing.
    let got = unsafe { libc::waitpid(child, &raw mut status, 0) };
    let error = std::io::Error::last_os_error();
    if got == child && libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == FINE {
        return;
    }
    // A rolled-back parent waits for a child that it has reaped in another future.
    if got == -1 && rollbacks && error.raw_os_error() == Some(libc::ECHILD) {
        return;
    }
    match got {
        -1 => broken(format_args!("waitpid of child {child}: {error}")),
        _ => broken(format_args!(
            "child {child} ended with wait status {status:#x} instead of exit code {FINE}"
        )),
    }
}

impl State for Fork {
    fn counter(&self) -> u64 {
        self.children.load(Ordering::SeqCst)
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
        json!({ "workers": self.workers.report(), "poke": table.poke() })
    }
}
