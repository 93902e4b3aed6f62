//! `filemap [private|shared|both] [--unlinked] [--mib 4] [--rate 500]`: mappings of files.
//!
//! A private mapping of which every second page is rewritten (copy-on-write) while the others stay the file's;
//! the file itself must never change. A shared mapping that is rewritten all over; the file must show it.
//! The files are in the temporary folder, and have no name any more with `--unlinked`.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::args::Args;
use super::fault::must;
use super::mem::Mapping;
use super::pace::Pace;
use super::page::{self, PAGE};
use super::protocol::{Started, State};
use super::rng::Rng;
use super::table::Table;
use super::workers::Workers;

const PRIVATE: u64 = 0x6670;
const SHARED: u64 = 0x6673;

#[repr(C, align(4096))]
struct Page([u8; PAGE]);

struct Area {
    table: Table,
    file: File,
    path: std::path::PathBuf,
    salt: u64,
    _memory: Mapping,
}

struct FileMap {
    areas: Arc<Mutex<Vec<Area>>>,
    workers: Workers,
}

/// Starts the victim.
pub fn start(args: &Args) -> Result<Started> {
    let mib: usize = args.value("mib", 4)?;
    let rate: u64 = args.value("rate", 500)?;
    let unlinked = args.flag("unlinked")?;
    let which = args.words.first().map_or("both", String::as_str);
    let mut areas = Vec::new();
    for (name, salt, flags) in [
        ("private", PRIVATE, libc::MAP_PRIVATE),
        ("shared", SHARED, libc::MAP_SHARED),
    ] {
        if which == name || which == "both" {
            areas.push(Area::new(name, salt, flags, mib << 20, unlinked)?);
        }
    }
    ensure!(
        !areas.is_empty(),
        "no mapping is called {which:?}: private, shared or both"
    );
    let areas = Arc::new(Mutex::new(areas));
    let mut workers = Workers::new();
    let inner = Arc::clone(&areas);
    workers.spawn("writer", move |beat| {
        let (mut rng, mut pace) = (Rng::new(1), Pace::new(rate));
        loop {
            let mut areas = inner.lock().unwrap_or_else(PoisonError::into_inner);
            let number = rng.below(areas.len());
            must(areas[number].step(&mut rng));
            drop(areas);
            beat.beat();
            pace.step();
        }
    })?;
    Ok(Started::new(FileMap { areas, workers }))
}

impl Area {
    fn new(name: &str, salt: u64, flags: i32, len: usize, unlinked: bool) -> Result<Self> {
        let path = std::env::temp_dir().join(format!("ksnap-victim-{}-{name}", std::process::id()));
        let what = || format!("the file {}", path.display());
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)
            .with_context(what)?;
        let mut buffer = Box::new(Page([0; PAGE]));
        for index in 0..len / PAGE {
            // SAFETY: the buffer is one aligned page.
            unsafe { page::fill(buffer.0.as_mut_ptr().cast(), salt, index as u64, 1) };
            file.write_all_at(&buffer.0, (index * PAGE) as u64)
                .with_context(what)?;
        }
        if unlinked {
            std::fs::remove_file(&path).with_context(what)?;
        }
        let memory = Mapping::with(
            len,
            libc::PROT_READ | libc::PROT_WRITE,
            flags,
            file.as_raw_fd(),
        )?;
        // SAFETY: the mapping has that many pages, holds generation 1, and lives as long as the table.
        let table = unsafe { Table::adopt(memory.at(), len / PAGE, salt) };
        Ok(Self {
            table,
            file,
            path,
            salt,
            _memory: memory,
        })
    }

    fn step(&mut self, rng: &mut Rng) -> Result<(), String> {
        let at = rng.below(self.table.pages());
        let index = if self.salt == PRIVATE { at & !1 } else { at };
        self.table.write(index)?;
        self.verify_file(index)?;
        self.table.verify(rng.below(self.table.pages()))
    }

    /// Demands of the file what it must show: the first generation under a private mapping, else the mapping's.
    fn verify_file(&self, index: usize) -> Result<(), String> {
        let mut buffer = Page([0; PAGE]);
        self.file
            .read_exact_at(&mut buffer.0, (index * PAGE) as u64)
            .map_err(|error| format!("read {}: {error}", self.path.display()))?;
        let generation = if self.salt == PRIVATE {
            1
        } else {
            self.table.generation(index)
        };
        // SAFETY: the buffer is one aligned page.
        unsafe {
            page::verify(
                buffer.0.as_ptr().cast(),
                self.salt,
                index as u64,
                generation,
            )
        }
        .map_err(|reason| format!("file {}: {reason}", self.path.display()))
    }
}

impl State for FileMap {
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
            area.table.verify_all()?;
            (0..area.table.pages()).try_for_each(|index| area.verify_file(index))
        })
    }

    fn details(&self) -> Value {
        let areas = self.areas.lock().unwrap_or_else(PoisonError::into_inner);
        let files: Vec<_> = areas
            .iter()
            .map(|area| area.path.display().to_string())
            .collect();
        json!({ "workers": self.workers.report(), "files": files, "poke": areas[0].table.poke() })
    }
}
