//! `hugepages [--mib 32] [--rate 2000] [--hugetlb]`: random 4 KiB writes into transparent huge pages, or into those
//! of hugetlbfs.
//!
//! From time to time a 2 MiB range is dropped and faulted in again as one huge page. `ready` says how much of
//! the memory is huge (0 where transparent huge pages are off).

use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::args::Args;
use super::fault::{must, os_error};
use super::mem::Mapping;
use super::pace::Pace;
use super::page::PAGE;
use super::protocol::{Started, State};
use super::rng::Rng;
use super::table::Table;
use super::workers::Workers;

const HUGE: usize = 2 << 20;

struct HugePages {
    // One table for each huge page, so that one can be dropped and made anew.
    tables: Arc<Mutex<Vec<Table>>>,
    memory: Arc<Mapping>,
    workers: Workers,
}

/// Starts the victim.
pub fn start(args: &Args) -> Result<Started> {
    let mib: usize = args.value("mib", 32)?;
    let rate: u64 = args.value("rate", 2000)?;
    ensure!(mib >= 2, "--mib must be at least 2");
    let len = (mib << 20) / HUGE * HUGE;
    let memory = match args.flag("hugetlb")? {
        true => {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_HUGETLB;
            Mapping::with(len, libc::PROT_READ | libc::PROT_WRITE, flags, -1)?
        }
        false => Mapping::aligned(len, HUGE)?,
    };
    let memory = Arc::new(memory);
    // SAFETY: advice about this victim's own mapping; refused where huge pages are not compiled in.
    unsafe { libc::madvise(memory.at().cast(), memory.len(), libc::MADV_HUGEPAGE) };
    let count = memory.len() / HUGE;
    let tables: Vec<Table> = (0..count).map(|number| table(&memory, number, 0)).collect();
    let tables = Arc::new(Mutex::new(tables));
    let mut workers = Workers::new();
    let (inner, mapping) = (Arc::clone(&tables), Arc::clone(&memory));
    workers.spawn("writer", move |beat| {
        let (mut rng, mut pace, mut round) = (Rng::new(1), Pace::new(rate), 0);
        loop {
            let mut tables = inner.lock().unwrap_or_else(PoisonError::into_inner);
            // Table 0 stays: it is the one that tests may damage.
            let number = rng.below(count);
            if number > 0 && rng.below(2000) == 0 {
                must(tables[number].verify_all());
                round += 1;
                must(drop_range(&mapping, number));
                tables[number] = table(&mapping, number, round);
            }
            must(tables[number].step(&mut rng));
            drop(tables);
            beat.beat();
            pace.step();
        }
    })?;
    Ok(Started::new(HugePages {
        tables,
        memory,
        workers,
    }))
}

fn table(memory: &Mapping, number: usize, round: u64) -> Table {
    let at = memory.at().wrapping_add(number * HUGE);
    // SAFETY: the ranges are disjoint parts of the mapping, which lives as long as the victim.
    unsafe { Table::new(at, HUGE / PAGE, number as u64 | (round << 32)) }
}

fn drop_range(memory: &Mapping, number: usize) -> Result<(), String> {
    let at = memory.at().wrapping_add(number * HUGE);
    // SAFETY: the range is a part of the mapping, and its table is replaced by the caller.
    match unsafe { libc::madvise(at.cast(), HUGE, libc::MADV_DONTNEED) } {
        0 => Ok(()),
        _ => Err(os_error("madvise DONTNEED of a huge page")),
    }
}

/// How many KiB of the mapping are transparent huge pages.
fn huge_kib(memory: &Mapping) -> u64 {
    let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap_or_default();
    let range = memory.at() as usize..memory.at() as usize + memory.len();
    let (mut inside, mut sum) = (false, 0);
    for line in smaps.lines() {
        let start = line
            .split_once('-')
            .and_then(|(start, _)| usize::from_str_radix(start, 16).ok());
        if let Some(start) = start {
            inside = range.contains(&start);
        } else if let Some(size) = line.strip_prefix("AnonHugePages:").filter(|_| inside) {
            sum += size
                .trim()
                .trim_end_matches(" kB")
                .parse::<u64>()
                .unwrap_or_default();
        }
    }
    sum
}

impl State for HugePages {
    fn counter(&self) -> u64 {
        self.workers.total()
    }

    fn status(&self) -> Result<(), String> {
        self.workers.alive()
    }

    fn check(&self) -> Result<(), String> {
        self.workers.working()?;
        self.tables
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
            .try_for_each(Table::verify_all)
    }

    fn details(&self) -> Value {
        json!({
            "workers": self.workers.report(),
            "huge_kib": huge_kib(&self.memory),
            "poke": self.tables.lock().unwrap_or_else(PoisonError::into_inner)[0].poke(),
        })
    }
}
