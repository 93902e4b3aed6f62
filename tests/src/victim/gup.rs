//! `gup [WAY…] [--rate 300] [--rollbacks]`: memory that the kernel writes on someone's behalf, past the page
//! tables' write protection or through get_user_pages.
//!
//! Ways: `direct` (O_DIRECT reads, plain and vectored), `helper` (process_vm_writev from a child process), `pipe`
//! (vmsplice out of a pipe), `aio`, `uring`, `uring-fixed` (into registered, pinned buffers). Without a name all
//! that work here are used; `ready` lists them, and why others do not. A way that was named must work.
//!
//! With `--rollbacks` there is only `direct`: a request or a pipe that is on its way in the kernel when memory
//! goes back would write into it afterwards, which no rollback can prevent.
//!
//! Each way has pages of its own, and a thread that has the kernel put known versions into them.

mod aio;
mod uring;
mod ways;

use std::fs::File;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value, json};

use super::args::Args;
use super::fault::must;
use super::mem::Mapping;
use super::pace::Pace;
use super::page::{self, PAGE};
use super::protocol::{Started, State};
use super::rng::Rng;
use super::table::poke;
use super::workers::Workers;

/// Pages of each way.
const PAGES: usize = 64;
/// Different contents of each page.
const VERSIONS: usize = 8;
const MOST_AT_ONCE: usize = 8;
const SALT: u64 = 0x6775;
const WAYS: &[&str] = &["direct", "helper", "pipe", "aio", "uring", "uring-fixed"];

/// Has the kernel write `pages` pages of this version, beginning with page `first`, to `at`.
trait Way: Send {
    fn put(
        &mut self,
        at: *mut u8,
        first: usize,
        pages: usize,
        version: usize,
    ) -> Result<(), String>;
}

/// The file that reads come from: version v of page i is at page `v * PAGES + i`.
#[derive(Clone)]
struct Source(Arc<File>);

/// The pages of one way, and which version each of them must be.
struct Target {
    name: &'static str,
    memory: Mapping,
    versions: Vec<usize>,
}

struct Gup {
    targets: Vec<Arc<Mutex<Target>>>,
    missing: Map<String, Value>,
    workers: Workers,
}

/// Starts the victim.
pub fn start(args: &Args) -> Result<Started> {
    let rate: u64 = args.value("rate", 300)?;
    let rollbacks = args.rollbacks()?;
    if let Some(unknown) = args
        .words
        .iter()
        .find(|word| !WAYS.contains(&word.as_str()))
    {
        bail!("there is no way {unknown:?}: {}", WAYS.join(", "));
    }
    let source = Source::make()?;
    let (mut opened, mut missing): (Vec<(Target, Box<dyn Way>)>, _) = (Vec::new(), Map::new());
    for name in WAYS {
        let named = args.words.iter().any(|word| word == name);
        if !named && !args.words.is_empty() {
            continue;
        }
        let target = Target::new(name)?;
        match open(name, &source, &target.memory, rollbacks) {
            Ok(way) => opened.push((target, way)),
            Err(error) if named => return Err(error.context(format!("way {name}"))),
            Err(error) => drop(missing.insert((*name).to_owned(), format!("{error:#}").into())),
        }
    }
    ensure!(
        !opened.is_empty(),
        "no way for the kernel to write memory works here: {missing:?}"
    );
    let (mut workers, mut targets) = (Workers::new(), Vec::new());
    for (seed, (mut target, mut way)) in opened.into_iter().enumerate() {
        let name = target.name;
        // Through the kernel from the start.
        let every = (0..PAGES).step_by(MOST_AT_ONCE);
        every
            .into_iter()
            .try_for_each(|first| target.put(way.as_mut(), first, MOST_AT_ONCE, 0))
            .map_err(anyhow::Error::msg)?;
        let target = Arc::new(Mutex::new(target));
        targets.push(Arc::clone(&target));
        workers.spawn(name, move |beat| {
            let (mut rng, mut pace) = (Rng::new(seed as u64), Pace::new(rate));
            loop {
                must(
                    target
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .step(way.as_mut(), &mut rng),
                );
                beat.beat();
                pace.step();
            }
        })?;
    }
    Ok(Started::new(Gup {
        targets,
        missing,
        workers,
    }))
}

fn open(name: &str, source: &Source, memory: &Mapping, rollbacks: bool) -> Result<Box<dyn Way>> {
    ensure!(
        name == "direct" || !rollbacks,
        "a rollback cannot take back what is on its way in the kernel"
    );
    Ok(match name {
        "direct" => Box::new(ways::Direct::open(source)?),
        // Forks: before there are threads.
        "helper" => Box::new(ways::Helper::start()?),
        "pipe" => Box::new(ways::Pipe::open()?),
        "aio" => Box::new(aio::Aio::open(source)?),
        "uring" => Box::new(uring::Uring::open(source, None)?),
        _ => Box::new(uring::Uring::open(source, Some(memory))?),
    })
}

impl Source {
    /// Writes the file, and opens it again past the page cache.
    fn make() -> Result<Self> {
        let path = std::env::temp_dir().join(format!("ksnap-victim-{}-source", std::process::id()));
        let what = || format!("the file {}", path.display());
        let file = File::options()
            .write(true)
            .create_new(true)
            .open(&path)
            .with_context(what)?;
        let page = Mapping::private(PAGE)?;
        for version in 0..VERSIONS {
            for index in 0..PAGES {
                // SAFETY: one page of this function's own.
                let bytes = unsafe {
                    page::fill(page.at().cast(), SALT, index as u64, version as u64);
                    std::slice::from_raw_parts(page.at(), PAGE)
                };
                file.write_all_at(bytes, Self::offset(index, version) as u64)
                    .with_context(what)?;
            }
        }
        file.sync_all().with_context(what)?;
        let direct = File::options()
            .read(true)
            .custom_flags(libc::O_DIRECT)
            .open(&path);
        // Where the file system has no O_DIRECT, AIO and io_uring still read through it.
        let file = direct.or_else(|_| File::open(&path)).with_context(what)?;
        std::fs::remove_file(&path).with_context(what)?;
        Ok(Self(Arc::new(file)))
    }

    fn offset(index: usize, version: usize) -> usize {
        (version * PAGES + index) * PAGE
    }
}

impl Target {
    fn new(name: &'static str) -> Result<Self> {
        Ok(Self {
            name,
            memory: Mapping::private(PAGES * PAGE)?,
            versions: vec![0; PAGES],
        })
    }

    fn page(&self, index: usize) -> *mut u8 {
        self.memory.at().wrapping_add(index * PAGE)
    }

    fn verify(&self, index: usize) -> Result<(), String> {
        let version = self.versions[index] as u64;
        // SAFETY: a page of this target's own.
        unsafe { page::verify(self.page(index).cast(), SALT, index as u64, version) }
            .map_err(|reason| format!("way {}: {reason}", self.name))
    }

    fn put(
        &mut self,
        way: &mut dyn Way,
        first: usize,
        pages: usize,
        version: usize,
    ) -> Result<(), String> {
        way.put(self.page(first), first, pages, version)
            .map_err(|reason| format!("way {}: {reason}", self.name))?;
        self.versions[first..first + pages].fill(version);
        (first..first + pages).try_for_each(|index| self.verify(index))
    }

    fn step(&mut self, way: &mut dyn Way, rng: &mut Rng) -> Result<(), String> {
        let first = rng.below(PAGES);
        let pages = 1 + rng.below(MOST_AT_ONCE.min(PAGES - first));
        // What is overwritten unseen could have been damaged.
        (first..first + pages).try_for_each(|index| self.verify(index))?;
        self.put(way, first, pages, rng.below(VERSIONS))
    }
}

impl State for Gup {
    fn counter(&self) -> u64 {
        self.workers.total()
    }

    fn status(&self) -> Result<(), String> {
        self.workers.alive()
    }

    fn check(&self) -> Result<(), String> {
        self.workers.working()?;
        self.targets.iter().try_for_each(|target| {
            let target = target.lock().unwrap_or_else(PoisonError::into_inner);
            (0..PAGES).try_for_each(|index| target.verify(index))
        })
    }

    fn details(&self) -> Value {
        let lock = |target: &Arc<Mutex<Target>>| {
            let target = target.lock().unwrap_or_else(PoisonError::into_inner);
            (
                target.name,
                target.page(PAGES / 2).wrapping_add(800).cast_const(),
            )
        };
        let ways: Vec<_> = self.targets.iter().map(|target| lock(target).0).collect();
        json!({
            "workers": self.workers.report(),
            "ways": ways,
            "missing": self.missing,
            "poke": poke(lock(&self.targets[0]).1),
        })
    }
}
