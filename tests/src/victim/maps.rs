//! `maps [--rate 500] [--seed 1]`: mmap, munmap, mremap, mprotect and brk churn, with the contents checked.
//!
//! New mappings are placed with `MAP_FIXED_NOREPLACE` in a window of addresses of the victim's own, so it
//! knows exactly what may be there: `check` compares the window with /proc/self/maps, and a mapping too many
//! (one that a rollback forgot to remove) is found as surely as one that is missing.

mod region;

use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Result;
use serde_json::{Value, json};

use self::region::{Break, Region};
use super::args::Args;
use super::fault::{must, os_error};
use super::pace::Pace;
use super::page::PAGE;
use super::protocol::{GATE, Started, State};
use super::rng::Rng;
use super::workers::Workers;

/// Far from where the kernel puts anything on its own.
const WINDOW: usize = 0x2000_0000_0000;
const SLOTS: usize = 48;
const SLOT: usize = 64 << 20;
const MOST_PAGES: usize = 64;

struct Model {
    slots: Vec<Option<Region>>,
    heap: Break,
    rng: Rng,
    salt: u64,
    steps: u64,
}

struct Maps {
    model: Arc<Mutex<Model>>,
    workers: Workers,
}

/// Starts the victim.
pub fn start(args: &Args) -> Result<Started> {
    let rate: u64 = args.value("rate", 500)?;
    let rng = Rng::new(args.value("seed", 1)?);
    let heap = Break::new().map_err(anyhow::Error::msg)?;
    let mut model = Model {
        slots: (0..SLOTS).map(|_| None).collect(),
        heap,
        rng,
        salt: 0,
        steps: 0,
    };
    // Slot 0 is never churned away: it is the one that tests may damage.
    model.create(0).map_err(anyhow::Error::msg)?;
    let model = Arc::new(Mutex::new(model));
    let mut workers = Workers::new();
    let inner = Arc::clone(&model);
    workers.spawn("churn", move |beat| {
        let mut pace = Pace::new(rate);
        loop {
            must(inner.lock().unwrap_or_else(PoisonError::into_inner).step());
            beat.beat();
            pace.step();
        }
    })?;
    Ok(Started::new(Maps { model, workers }))
}

impl Model {
    fn step(&mut self) -> Result<(), String> {
        self.steps += 1;
        let index = 1 + self.rng.below(SLOTS - 1);
        if self.rng.below(12) == 0 {
            // malloc moves the program break too, but only on the main thread, which waits at the gate. It may
            // be waiting for this model behind the gate, so this side only tries.
            return match GATE.try_lock() {
                Ok(_idle) => self.heap.step(&mut self.rng),
                Err(_) => Ok(()),
            };
        }
        let Some(mut region) = self.slots[index].take() else {
            return self.create(index);
        };
        region
            .verify()
            .map_err(|reason| format!("slot {index}: {reason}"))?;
        let (rng, pages) = (&mut self.rng, region.pages());
        let kept = match rng.below(10) {
            0 => {
                region.unmap()?;
                None
            }
            1 if pages > 1 => {
                region.cut_head(1 + rng.below(pages - 1))?;
                Some(region)
            }
            2 if pages > 1 => {
                region.cut_tail(1 + rng.below(pages - 1))?;
                Some(region)
            }
            3 if pages > 1 => {
                region.shrink(1 + rng.below(pages - 1))?;
                Some(region)
            }
            4 if pages < MOST_PAGES => {
                region.grow(pages + 1 + rng.below(MOST_PAGES - pages))?;
                Some(region)
            }
            5 => {
                self.salt += 1;
                region.replace(self.salt)?;
                Some(region)
            }
            6 => {
                region.protect(
                    [
                        libc::PROT_NONE,
                        libc::PROT_READ,
                        libc::PROT_READ | libc::PROT_WRITE,
                    ][rng.below(3)],
                )?;
                Some(region)
            }
            7 => match self
                .slots
                .iter()
                .position(Option::is_none)
                .filter(|free| *free != index)
            {
                Some(free) => {
                    region.move_to(place(free, rng.below(1000)))?;
                    self.slots[free] = Some(region);
                    None
                }
                None => Some(region),
            },
            _ => {
                region.write(rng)?;
                Some(region)
            }
        };
        if let Some(region) = kept {
            region
                .verify()
                .map_err(|reason| format!("slot {index}, after the change: {reason}"))?;
            self.slots[index] = Some(region);
        }
        Ok(())
    }

    fn create(&mut self, index: usize) -> Result<(), String> {
        self.salt += 1;
        let at = place(index, self.rng.below(1000));
        self.slots[index] = Some(Region::create(
            at,
            1 + self.rng.below(MOST_PAGES),
            self.salt,
        )?);
        Ok(())
    }

    fn verify_all(&mut self) -> Result<(), String> {
        for (index, region) in self.slots.iter_mut().enumerate() {
            if let Some(region) = region {
                region
                    .verify_hidden()
                    .map_err(|reason| format!("slot {index}: {reason}"))?;
            }
        }
        self.heap.verify()?;
        self.verify_window()
    }

    /// Compares the window, page by page, with what the kernel says is mapped.
    fn verify_window(&self) -> Result<(), String> {
        let text = std::fs::read_to_string("/proc/self/maps")
            .map_err(|_| os_error("read /proc/self/maps"))?;
        let mut mapped = Vec::new();
        for line in text.lines() {
            let (start, end, protection) =
                parse(line).ok_or_else(|| format!("not a mapping: {line}"))?;
            mapped.extend(
                (start..end)
                    .step_by(PAGE)
                    .filter(|at| in_window(*at))
                    .map(|at| (at, protection)),
            );
        }
        let mut expected: Vec<(usize, i32)> = self
            .slots
            .iter()
            .flatten()
            .flat_map(Region::layout)
            .collect();
        expected.retain(|page| in_window(page.0));
        expected.sort_unstable();
        mapped.sort_unstable();
        if let Some((at, protection)) = expected
            .iter()
            .find(|page| mapped.binary_search(page).is_err())
        {
            return Err(format!(
                "the page at {at:#x} is not mapped with protection {protection}"
            ));
        }
        match mapped
            .iter()
            .find(|page| expected.binary_search(page).is_err())
        {
            Some((at, protection)) => Err(format!(
                "a mapping too many: {at:#x}, protection {protection}"
            )),
            None => Ok(()),
        }
    }
}

fn place(slot: usize, page: usize) -> *mut u8 {
    std::ptr::with_exposed_provenance_mut(WINDOW + slot * SLOT + page * PAGE)
}

fn in_window(at: usize) -> bool {
    (WINDOW..WINDOW + SLOTS * SLOT).contains(&at)
}

fn parse(line: &str) -> Option<(usize, usize, i32)> {
    let (range, rest) = line.split_once(' ')?;
    let (start, end) = range.split_once('-')?;
    let flag = |letter, bit| {
        if rest.get(..3).is_some_and(|flags| flags.contains(letter)) {
            bit
        } else {
            0
        }
    };
    let protection =
        flag('r', libc::PROT_READ) | flag('w', libc::PROT_WRITE) | flag('x', libc::PROT_EXEC);
    Some((
        usize::from_str_radix(start, 16).ok()?,
        usize::from_str_radix(end, 16).ok()?,
        protection,
    ))
}

impl State for Maps {
    fn counter(&self) -> u64 {
        self.model
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .steps
    }

    fn status(&self) -> Result<(), String> {
        self.workers.alive()
    }

    fn check(&self) -> Result<(), String> {
        self.workers.working()?;
        self.model
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .verify_all()
    }

    fn details(&self) -> Value {
        let model = self.model.lock().unwrap_or_else(PoisonError::into_inner);
        json!({
            "workers": self.workers.report(),
            "regions": model.slots.iter().flatten().count(),
            "heap_pages": model.heap.pages(),
            "poke": model.slots[0].as_ref().map(Region::poke),
        })
    }
}
