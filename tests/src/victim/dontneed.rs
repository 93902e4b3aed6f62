//! `dontneed [--rate 500]`: memory whose contents go away without a write.
//!
//! On small and huge private pages: MADV_DONTNEED of one page and of whole 2 MiB ranges, MADV_FREE; on shared
//! memory: MADV_REMOVE. A model says of each page what it must hold: a generation, zero, or (after MADV_FREE,
//! until the next write) either the old contents or zero.

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

const HUGE: usize = 2 << 20;
const HUGE_PAGES: usize = HUGE / PAGE;

#[derive(Clone, Copy, Debug)]
enum Content {
    Zero,
    Generation(u64),
    // MADV_FREE of this generation: the kernel may take the page at any time until it is written.
    Freed(u64),
}

/// One kind of memory, and what each of its pages must hold.
struct Area {
    name: &'static str,
    memory: Mapping,
    salt: u64,
    shared: bool,
    contents: Vec<Content>,
    generation: u64,
}

struct DontNeed {
    areas: Arc<Mutex<Vec<Area>>>,
    workers: Workers,
}

/// Starts the victim.
pub fn start(args: &Args) -> Result<Started> {
    let rate: u64 = args.value("rate", 500)?;
    let huge = Mapping::aligned(4 * HUGE, HUGE)?;
    // SAFETY: advice about this victim's own mapping; refused where huge pages are off, which is no matter.
    unsafe { libc::madvise(huge.at().cast(), huge.len(), libc::MADV_HUGEPAGE) };
    let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
    let shared = Mapping::with(HUGE, libc::PROT_READ | libc::PROT_WRITE, flags, -1)?;
    let mut areas = vec![
        Area::new("small", Mapping::private(HUGE)?, 0x64_01, false),
        Area::new("huge", huge, 0x64_02, false),
        Area::new("shared", shared, 0x64_03, true),
    ];
    for area in &mut areas {
        for index in 0..area.contents.len() {
            area.write(index);
        }
    }
    let areas = Arc::new(Mutex::new(areas));
    let mut workers = Workers::new();
    let inner = Arc::clone(&areas);
    workers.spawn("dropper", move |beat| {
        let (mut rng, mut pace) = (Rng::new(1), Pace::new(rate));
        loop {
            let mut areas = inner.lock().unwrap_or_else(PoisonError::into_inner);
            let area = rng.below(areas.len());
            must(areas[area].step(&mut rng));
            drop(areas);
            beat.beat();
            pace.step();
        }
    })?;
    Ok(Started::new(DontNeed { areas, workers }))
}

impl Area {
    fn new(name: &'static str, memory: Mapping, salt: u64, shared: bool) -> Self {
        let contents = vec![Content::Zero; memory.len() / PAGE];
        Self {
            name,
            memory,
            salt,
            shared,
            contents,
            generation: 0,
        }
    }

    fn page(&self, index: usize) -> *mut u64 {
        self.memory.at().wrapping_add(index * PAGE).cast()
    }

    fn write(&mut self, index: usize) {
        self.generation += 1;
        self.contents[index] = Content::Generation(self.generation);
        // SAFETY: the page is this area's own.
        unsafe { page::fill(self.page(index), self.salt, index as u64, self.generation) };
    }

    fn verify(&self, index: usize) -> Result<(), String> {
        let (at, number) = (self.page(index), index as u64);
        let result = match self.contents[index] {
            // SAFETY: the page is this area's own.
            Content::Zero => unsafe { page::verify_zero(at) },
            // SAFETY: as above.
            Content::Generation(generation) => unsafe {
                page::verify(at, self.salt, number, generation)
            },
            // Zero is asked last: the kernel may take the page between the two looks.
            // SAFETY: as above.
            Content::Freed(generation) => unsafe {
                page::verify(at, self.salt, number, generation).or_else(|_| page::verify_zero(at))
            },
        };
        result.map_err(|reason| format!("{} area, {:?}: {reason}", self.name, self.contents[index]))
    }

    fn advise(
        &mut self,
        first: usize,
        pages: usize,
        advice: i32,
        then: fn(Content) -> Content,
    ) -> Result<(), String> {
        // What goes away unseen could have been damaged.
        (first..first + pages).try_for_each(|index| self.verify(index))?;
        // SAFETY: advice about this area's own pages; the model follows below.
        if unsafe { libc::madvise(self.page(first).cast(), pages * PAGE, advice) } != 0 {
            return Err(os_error(&format!(
                "madvise {advice} of {pages} pages of the {} area",
                self.name
            )));
        }
        for index in first..first + pages {
            self.contents[index] = then(self.contents[index]);
        }
        (first..first + pages).try_for_each(|index| self.verify(index))
    }

    fn step(&mut self, rng: &mut Rng) -> Result<(), String> {
        let index = rng.below(self.contents.len());
        self.verify(index)?;
        let drop = if self.shared {
            libc::MADV_REMOVE
        } else {
            libc::MADV_DONTNEED
        };
        match rng.below(20) {
            0..3 => self.advise(index, 1, drop, |_| Content::Zero),
            3 => {
                let most = (self.contents.len() - index).min(40);
                self.advise(index, 1 + rng.below(most), drop, |_| Content::Zero)
            }
            // A whole huge page, filled again at once half of the time.
            4 if rng.below(4) == 0 => {
                let first = index / HUGE_PAGES * HUGE_PAGES;
                self.advise(first, HUGE_PAGES, drop, |_| Content::Zero)?;
                let refill = if rng.below(2) == 0 { HUGE_PAGES } else { 3 };
                (first..first + refill).for_each(|index| self.write(index));
                Ok(())
            }
            5..7 if !self.shared => {
                self.advise(index, 1, libc::MADV_FREE, |content| match content {
                    Content::Zero => Content::Zero,
                    Content::Generation(generation) | Content::Freed(generation) => {
                        Content::Freed(generation)
                    }
                })
            }
            _ => {
                self.write(index);
                self.verify(index)
            }
        }
    }
}

impl State for DontNeed {
    fn counter(&self) -> u64 {
        self.workers.total()
    }

    fn status(&self) -> Result<(), String> {
        self.workers.alive()
    }

    fn check(&self) -> Result<(), String> {
        self.workers.working()?;
        let areas = self.areas.lock().unwrap_or_else(PoisonError::into_inner);
        areas
            .iter()
            .try_for_each(|area| (0..area.contents.len()).try_for_each(|index| area.verify(index)))
    }

    fn details(&self) -> Value {
        let areas = self.areas.lock().unwrap_or_else(PoisonError::into_inner);
        json!({
            "workers": self.workers.report(),
            "poke": poke(areas[0].page(7).wrapping_add(400).cast()),
        })
    }
}
