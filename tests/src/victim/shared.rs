//! `shared [anon|memfd|shm|all] [--alone] [--rate 500] [--rollbacks]`: memory shared with a second process.
//!
//! Each area has a control page, pages that this process writes, and pages that a forked second process writes.
//! The writer of a page keeps its generation in private memory; the second process also publishes it in the
//! control page under a sequence lock, so that the first can verify the other's pages. With `--rollbacks` the
//! other's pages are not verified (it is not rolled back with this process). `--alone` has no second process.

use std::ffi::CString;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Result, bail, ensure};
use serde_json::{Value, json};

use super::args::Args;
use super::fault::{must, os_error};
use super::mem::Mapping;
use super::pace::{Pace, nap};
use super::page::{self, PAGE};
use super::protocol::{Started, State};
use super::rng::Rng;
use super::table::Table;
use super::workers::{PATIENCE, Workers};

/// Pages of each writer; a control page has room for 256 pairs.
const EACH: usize = 200;
const SALT: u64 = 0x7368;

/// One page's state as its writer publishes it: odd while it is being written.
#[repr(C)]
struct Published {
    sequence: AtomicU64,
    generation: AtomicU64,
}

/// A mapping of a control page, this process's pages and the other's.
struct Area {
    name: &'static str,
    memory: Mapping,
}

struct Shared {
    areas: Arc<Vec<Area>>,
    tables: Arc<Mutex<Vec<Table>>>,
    other: Option<i32>,
    verify_other: bool,
    workers: Workers,
}

/// Starts the victim.
pub fn start(args: &Args) -> Result<Started> {
    let rate: u64 = args.value("rate", 500)?;
    let (rollbacks, alone) = (args.rollbacks()?, args.flag("alone")?);
    let which = args.words.first().map_or("all", String::as_str);
    let names: Vec<&str> = ["anon", "memfd", "shm"]
        .into_iter()
        .filter(|name| which == "all" || which == *name)
        .collect();
    ensure!(
        !names.is_empty(),
        "no shared memory is called {which:?}: anon, memfd, shm or all"
    );
    let areas: Vec<Area> = names.into_iter().map(Area::new).collect::<Result<_>>()?;
    let areas = Arc::new(areas);
    // Before any thread exists, so that the child may use everything.
    let other = if alone {
        None
    } else {
        Some(fork_other(&areas)?)
    };
    let tables = areas.iter().map(|area| area.table(0)).collect();
    let tables: Arc<Mutex<Vec<Table>>> = Arc::new(Mutex::new(tables));
    let mut workers = Workers::new();
    let inner = Arc::clone(&tables);
    workers.spawn("writer", move |beat| {
        let (mut rng, mut pace) = (Rng::new(1), Pace::new(rate));
        loop {
            let mut tables = inner.lock().unwrap_or_else(PoisonError::into_inner);
            let number = rng.below(tables.len());
            must(tables[number].step(&mut rng));
            drop(tables);
            beat.beat();
            pace.step();
        }
    })?;
    Ok(Started::new(Shared {
        areas,
        tables,
        other,
        verify_other: other.is_some() && !rollbacks,
        workers,
    }))
}

impl Area {
    fn new(name: &'static str) -> Result<Self> {
        let len = (1 + 2 * EACH) * PAGE;
        let label = CString::new(format!("/ksnap-victim-{}", std::process::id()))?;
        // SAFETY: the name is a C string; both calls give a new descriptor or -1.
        let fd = unsafe {
            match name {
                "memfd" => libc::memfd_create(label.as_ptr(), libc::MFD_CLOEXEC),
                "shm" => libc::shm_open(
                    label.as_ptr(),
                    libc::O_CREAT | libc::O_EXCL | libc::O_RDWR,
                    0o600,
                ),
                _ => {
                    let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
                    let memory = Mapping::with(len, libc::PROT_READ | libc::PROT_WRITE, flags, -1)?;
                    return Ok(Self { name, memory });
                }
            }
        };
        if fd < 0 {
            bail!(os_error(&format!("open shared memory {name}")));
        }
        // SAFETY: just made, and owned by nobody else.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        if name == "shm" {
            // At once, so that nothing is left behind however this process ends.
            // SAFETY: the name is a C string.
            unsafe { libc::shm_unlink(label.as_ptr()) };
        }
        // SAFETY: takes numbers only.
        if unsafe { libc::ftruncate(fd.as_raw_fd(), len as i64) } != 0 {
            bail!(os_error(&format!("size shared memory {name}")));
        }
        let memory = Mapping::with(
            len,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED,
            fd.as_raw_fd(),
        )?;
        Ok(Self { name, memory })
    }

    fn pages_of(&self, writer: usize) -> *mut u8 {
        self.memory.at().wrapping_add((1 + writer * EACH) * PAGE)
    }

    fn table(&self, writer: usize) -> Table {
        // SAFETY: the writers' pages are disjoint, and the area lives as long as the process.
        unsafe { Table::new(self.pages_of(writer), EACH, SALT + writer as u64) }
    }

    fn published(&self) -> &[Published] {
        // SAFETY: the control page is zero at first, which is a valid state, and only used through atomics.
        unsafe { std::slice::from_raw_parts(self.memory.at().cast(), EACH) }
    }

    /// Verifies the other process's page, between two of its writes.
    fn verify_other(&self, index: usize) -> Result<(), String> {
        let published = &self.published()[index];
        let mut last = Ok(());
        for _ in 0..PATIENCE {
            let before = published.sequence.load(Ordering::Acquire);
            if before.is_multiple_of(2) && before > 0 {
                let at = self.pages_of(1).wrapping_add(index * PAGE).cast();
                // SAFETY: a page of this area; words are read one by one, and torn reads are thrown away below.
                last = unsafe {
                    page::verify(
                        at,
                        SALT + 1,
                        index as u64,
                        published.generation.load(Ordering::Acquire),
                    )
                };
                std::sync::atomic::fence(Ordering::Acquire);
                if published.sequence.load(Ordering::Acquire) == before {
                    return last.map_err(|reason| {
                        format!("{} area, the other process's pages: {reason}", self.name)
                    });
                }
            }
            nap(1);
        }
        Err(format!(
            "{} area: page {index} of the other process is never quiet: {last:?}",
            self.name
        ))
    }
}

/// Starts the second process, and waits until it has filled its pages.
fn fork_other(areas: &[Area]) -> Result<i32> {
    // SAFETY: this process has one thread; the child runs `other_process` and never returns.
    let child = match unsafe { libc::fork() } {
        -1 => bail!(os_error("fork")),
        0 => other_process(areas),
        child => child,
    };
    for area in areas {
        for published in area.published() {
            while published.sequence.load(Ordering::Acquire) == 0 {
                must(runs(child));
                nap(1);
            }
        }
    }
    Ok(child)
}

fn other_process(areas: &[Area]) -> ! {
    // SAFETY: takes numbers only. The child must not outlive the victim.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
    let mut tables: Vec<Table> = areas.iter().map(|area| area.table(1)).collect();
    for area in areas {
        for published in area.published() {
            published.generation.store(1, Ordering::Release);
            published.sequence.store(2, Ordering::Release);
        }
    }
    let mut rng = Rng::new(2);
    loop {
        for (area, table) in areas.iter().zip(&mut tables) {
            let index = rng.below(EACH);
            let published = &area.published()[index];
            // Odd, whatever a rollback of the other process put there.
            let sequence = published.sequence.load(Ordering::Acquire) | 1;
            published.sequence.store(sequence, Ordering::Release);
            table.rewrite(index);
            published
                .generation
                .store(table.generation(index), Ordering::Release);
            published.sequence.store(sequence + 1, Ordering::Release);
        }
        nap(2);
    }
}

/// Demands that the child process runs.
fn runs(child: i32) -> Result<(), String> {
    let mut status = 0;
    // SAFETY: status is valid for writing.
    match unsafe { libc::waitpid(child, &raw mut status, libc::WNOHANG) } {
        0 => Ok(()),
        -1 => Err(os_error("waitpid of the second process")),
        _ => Err(format!(
            "the second process {child} ended with wait status {status:#x}"
        )),
    }
}

impl State for Shared {
    fn counter(&self) -> u64 {
        self.workers.total()
    }

    fn status(&self) -> Result<(), String> {
        self.workers.alive()?;
        self.other.map_or(Ok(()), runs)
    }

    fn check(&self) -> Result<(), String> {
        self.status()?;
        self.workers.working()?;
        self.tables
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
            .try_for_each(Table::verify_all)?;
        if self.verify_other {
            for area in self.areas.iter() {
                (0..EACH).try_for_each(|index| area.verify_other(index))?;
            }
        }
        Ok(())
    }

    fn details(&self) -> Value {
        let tables = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        json!({ "workers": self.workers.report(), "other": self.other, "poke": tables[0].poke() })
    }
}
