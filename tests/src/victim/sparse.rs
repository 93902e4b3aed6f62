//! `sparse [--pages 2000] [--rate 500]`: a great deal of address space, and few pages in it.
//!
//! A reservation of 64 GiB without access of which a few pages are opened, and 10 GiB of MAP_NORESERVE memory
//! with scattered pages. Work that grows with the size of mappings instead of the pages in them shows here.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Result;
use serde_json::{Value, json};

use super::args::Args;
use super::fault::{must, os_error};
use super::mem::Mapping;
use super::pace::Pace;
use super::page::{self, PAGE};
use super::protocol::{Started, State};
use super::rng::Rng;
use super::table::poke;
use super::workers::Workers;

const RESERVED: usize = 64 << 30;
const SCATTERED: usize = 10 << 30;
/// Opened pages of the reservation: each makes up to two more mappings, and a process has 65,530.
const OPEN: usize = 200;

/// Pages of one large mapping that are in use: their index → generation.
struct Area {
    memory: Mapping,
    salt: u64,
    generations: BTreeMap<usize, u64>,
    most: usize,
    closed: bool,
}

struct Sparse {
    areas: Arc<Mutex<[Area; 2]>>,
    workers: Workers,
}

/// Starts the victim.
pub fn start(args: &Args) -> Result<Started> {
    let most: usize = args.value("pages", 2000)?;
    let rate: u64 = args.value("rate", 500)?;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    let reserved = Mapping::with(RESERVED, libc::PROT_NONE, flags, -1)?;
    let scattered = Mapping::with(SCATTERED, libc::PROT_READ | libc::PROT_WRITE, flags, -1)?;
    // A huge page for each of the scattered ones would fill the machine.
    // SAFETY: advice about this victim's own mapping.
    unsafe { libc::madvise(scattered.at().cast(), SCATTERED, libc::MADV_NOHUGEPAGE) };
    let mut areas = [
        Area {
            memory: reserved,
            salt: 0x7301,
            generations: BTreeMap::new(),
            most: OPEN,
            closed: true,
        },
        Area {
            memory: scattered,
            salt: 0x7302,
            generations: BTreeMap::new(),
            most,
            closed: false,
        },
    ];
    let mut rng = Rng::new(1);
    for area in &mut areas {
        for _ in 0..area.most / 2 {
            area.step(&mut rng).map_err(anyhow::Error::msg)?;
        }
    }
    let areas = Arc::new(Mutex::new(areas));
    let mut workers = Workers::new();
    let inner = Arc::clone(&areas);
    workers.spawn("writer", move |beat| {
        let mut pace = Pace::new(rate);
        loop {
            let area = rng.below(2);
            must(inner.lock().unwrap_or_else(PoisonError::into_inner)[area].step(&mut rng));
            beat.beat();
            pace.step();
        }
    })?;
    Ok(Started::new(Sparse { areas, workers }))
}

impl Area {
    fn page(&self, index: usize) -> *mut u64 {
        self.memory.at().wrapping_add(index * PAGE).cast()
    }

    fn verify(&self, index: usize, generation: u64) -> Result<(), String> {
        // SAFETY: pages with a generation are open, and this area's own.
        unsafe { page::verify(self.page(index), self.salt, index as u64, generation) }
    }

    /// Opens a new page while there are few, else rewrites one that is in use.
    fn step(&mut self, rng: &mut Rng) -> Result<(), String> {
        let index = match self.generations.len() < self.most {
            true => rng.below(self.memory.len() / PAGE),
            false => {
                let from = rng.below(self.memory.len() / PAGE);
                let next = self
                    .generations
                    .range(from..)
                    .next()
                    .or_else(|| self.generations.first_key_value());
                next.map_or(from, |(index, _)| *index)
            }
        };
        match self.generations.get(&index) {
            Some(generation) => self.verify(index, *generation)?,
            None => self.open(index)?,
        }
        let generation = self.generations.entry(index).or_default();
        *generation += 1;
        let generation = *generation;
        // SAFETY: the page is open, and this area's own.
        unsafe { page::fill(self.page(index), self.salt, index as u64, generation) };
        Ok(())
    }

    fn open(&self, index: usize) -> Result<(), String> {
        let at = self.page(index);
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a page of this area's own.
        let open = || unsafe { libc::mprotect(at.cast(), PAGE, protection) };
        if self.closed && open() != 0 {
            return Err(os_error("mprotect of a reserved page"));
        }
        // SAFETY: the page is readable now.
        unsafe { page::verify_zero(at) }
            .map_err(|reason| format!("a page never used before: {reason}"))
    }
}

impl State for Sparse {
    fn counter(&self) -> u64 {
        self.workers.total()
    }

    fn status(&self) -> Result<(), String> {
        self.workers.alive()
    }

    fn check(&self) -> Result<(), String> {
        self.workers.working()?;
        let areas = self.areas.lock().unwrap_or_else(PoisonError::into_inner);
        areas.iter().try_for_each(|area| {
            area.generations
                .iter()
                .try_for_each(|(at, generation)| area.verify(*at, *generation))
        })
    }

    fn details(&self) -> Value {
        let areas = self.areas.lock().unwrap_or_else(PoisonError::into_inner);
        let first = areas[1]
            .generations
            .keys()
            .next()
            .copied()
            .unwrap_or_default();
        json!({
            "workers": self.workers.report(),
            "pages": areas.iter().map(|area| area.generations.len()).sum::<usize>(),
            "poke": poke(areas[1].page(first).wrapping_add(300).cast()),
        })
    }
}
