//! `uffd [--rate 500]`: a program that tracks its own writes.
//!
//! By asynchronous write protection and `PAGEMAP_SCAN`, on private and on shared memory, as garbage collectors and
//! emulators do. After some writes it asks the kernel which pages were written since it asked last: exactly those must
//! be. Whoever else walks its page tables must leave that record alone.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, ensure};
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

const PAGES: usize = 1024;

/// include/uapi/linux/userfaultfd.h
const UFFD_API: u64 = 0xaa;
const UFFDIO_API: u64 = 0xc018_aa3f;
const UFFDIO_REGISTER: u64 = 0xc020_aa00;
const REGISTER_MODE_WP: u64 = 2;
/// Write protection of shared memory and of pages that are not there, and without messages.
const FEATURES: u64 = 1 << 12 | 1 << 13 | 1 << 15;
/// include/uapi/linux/fs.h
const PAGEMAP_SCAN: u64 = 0xc060_6610;
const PAGE_IS_WRITTEN: u64 = 1 << 1;
const SCAN_PROTECTS_AND_CHECKS: u64 = 1 | 2;

/// `struct pm_scan_arg`
#[repr(C)]
#[derive(Default)]
struct Scan {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

/// `struct page_region`
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Region {
    start: u64,
    end: u64,
    categories: u64,
}

fn control<T>(fd: RawFd, request: u64, arg: &mut T) -> Result<i32, String> {
    // SAFETY: `arg` is a live structure of the layout that the request has.
    let done = unsafe { libc::ioctl(fd, request, std::ptr::from_mut(arg)) };
    match done < 0 {
        true => Err(os_error(&format!("ioctl {request:#x}"))),
        false => Ok(done),
    }
}

struct Area {
    name: &'static str,
    memory: Mapping,
    salt: u64,
    generations: Vec<u64>,
    written: BTreeSet<usize>,
}

impl Area {
    fn new(name: &'static str, memory: Mapping, salt: u64) -> Self {
        let mut area = Self {
            name,
            memory,
            salt,
            generations: vec![0; PAGES],
            written: BTreeSet::new(),
        };
        (0..PAGES).for_each(|index| area.write(index));
        area
    }

    fn page(&self, index: usize) -> *mut u64 {
        self.memory.at().wrapping_add(index * PAGE).cast()
    }

    fn write(&mut self, index: usize) {
        self.generations[index] += 1;
        let generation = self.generations[index];
        // SAFETY: the page is this area's own.
        unsafe { page::fill(self.page(index), self.salt, index as u64, generation) };
        self.written.insert(index);
    }

    fn verify(&self) -> Result<(), String> {
        (0..PAGES).try_for_each(|index| {
            let generation = self.generations[index];
            // SAFETY: the page is this area's own.
            unsafe { page::verify(self.page(index), self.salt, index as u64, generation) }
        })
    }

    /// Asks the kernel what was written, and compares.
    fn ask(&mut self, pagemap: &File) -> Result<(), String> {
        let mut regions = vec![Region::default(); PAGES];
        let start = self.memory.at() as u64;
        let mut scan = Scan {
            size: size_of::<Scan>() as u64,
            flags: SCAN_PROTECTS_AND_CHECKS,
            start,
            end: start + (PAGES * PAGE) as u64,
            vec: regions.as_mut_ptr() as u64,
            vec_len: PAGES as u64,
            category_mask: PAGE_IS_WRITTEN,
            return_mask: PAGE_IS_WRITTEN,
            ..Scan::default()
        };
        let count = control(pagemap.as_raw_fd(), PAGEMAP_SCAN, &mut scan)?;
        let index = |at: u64| (at - start) as usize / PAGE;
        let found = regions[..count as usize].iter();
        let found: BTreeSet<usize> = found.flat_map(|r| index(r.start)..index(r.end)).collect();
        let written = std::mem::take(&mut self.written);
        if found != written {
            return Err(format!(
                "of {} pages written in the {} area the kernel tells {}, and {} others",
                written.len(),
                self.name,
                written.intersection(&found).count(),
                found.difference(&written).count()
            ));
        }
        Ok(())
    }
}

struct Uffd {
    areas: Arc<Mutex<[Area; 2]>>,
    workers: Workers,
    // Tracking ends with it.
    _uffd: OwnedFd,
}

fn watch(uffd: &OwnedFd, memory: &Mapping) -> Result<(), String> {
    let mut register = [memory.at() as u64, memory.len() as u64, REGISTER_MODE_WP, 0];
    control(uffd.as_raw_fd(), UFFDIO_REGISTER, &mut register).map(drop)
}

/// Starts the victim.
pub fn start(args: &Args) -> Result<Started> {
    let rate: u64 = args.value("rate", 500)?;
    // SAFETY: a system call without pointers.
    let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | 1) };
    ensure!(fd >= 0, "{}", os_error("userfaultfd"));
    // SAFETY: a new descriptor that nobody else has.
    let uffd = unsafe { OwnedFd::from_raw_fd(fd as RawFd) };
    let mut api = [UFFD_API, FEATURES, 0];
    control(uffd.as_raw_fd(), UFFDIO_API, &mut api).map_err(anyhow::Error::msg)?;
    let pagemap = File::open("/proc/self/pagemap").context("pagemap")?;
    let private = Mapping::private(PAGES * PAGE)?;
    // SAFETY: advice about this victim's own mapping: a huge page is written as a whole.
    unsafe { libc::madvise(private.at().cast(), private.len(), libc::MADV_NOHUGEPAGE) };
    let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
    let shared = Mapping::with(PAGES * PAGE, libc::PROT_READ | libc::PROT_WRITE, flags, -1)?;
    for memory in [&private, &shared] {
        watch(&uffd, memory).map_err(anyhow::Error::msg)?;
    }
    let mut areas = [
        Area::new("private", private, 0x75_01),
        Area::new("shared", shared, 0x75_02),
    ];
    for area in &mut areas {
        area.ask(&pagemap).map_err(anyhow::Error::msg)?;
    }
    let areas = Arc::new(Mutex::new(areas));
    let mut workers = Workers::new();
    let inner = Arc::clone(&areas);
    workers.spawn("writer", move |beat| {
        let (mut rng, mut pace) = (Rng::new(1), Pace::new(rate));
        loop {
            let mut areas = inner.lock().unwrap_or_else(PoisonError::into_inner);
            let area = rng.below(areas.len());
            let area = &mut areas[area];
            match rng.below(20) {
                0 => must(area.ask(&pagemap)),
                _ => area.write(rng.below(PAGES)),
            }
            drop(areas);
            beat.beat();
            pace.step();
        }
    })?;
    Ok(Started::new(Uffd {
        areas,
        workers,
        _uffd: uffd,
    }))
}

impl State for Uffd {
    fn counter(&self) -> u64 {
        self.workers.total()
    }

    fn status(&self) -> Result<(), String> {
        self.workers.alive()
    }

    fn check(&self) -> Result<(), String> {
        self.workers.working()?;
        let areas = self.areas.lock().unwrap_or_else(PoisonError::into_inner);
        areas.iter().try_for_each(Area::verify)
    }

    fn details(&self) -> Value {
        let areas = self.areas.lock().unwrap_or_else(PoisonError::into_inner);
        json!({
            "workers": self.workers.report(),
            "poke": poke(areas[0].page(7).wrapping_add(400).cast()),
        })
    }
}
