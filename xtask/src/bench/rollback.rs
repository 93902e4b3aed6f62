//! How long a rollback in place stops a process, by the number of pages that it has to write.
//!
//! A python3 process holds memory of its own and rewrites as many pages of it as asked for, scattered. With a
//! watcher, snapshots go on meanwhile; without one, ksnap has to find out first what differs, while the process
//! runs. The floor is one process_vm_writev(2) after another of as many pages, scattered as much, into the same
//! process: nothing that writes them from outside can be faster.

use crate::host;
use crate::table::{Sorted, Table, heading, nanos, thousands};
use anyhow::{Context, Result, bail, ensure};
use nix::sys::uio::{RemoteIoVec, process_vm_writev};
use nix::unistd::Pid;
use serde_json::{Value, json};
use std::io::{IoSlice, Write};
use std::path::Path;
use std::time::{Duration, Instant};
use tests::{Background, Ksnap, Python};

/// Pages that a rollback has to write.
const SIZES: [usize; 2] = [1_000, 10_000];
/// Pages that the process holds.
const HELD: usize = 32 << 10;
const PAGE: usize = 4096;
/// Rollbacks of each kind.
const ROUNDS: usize = 15;
/// Remote ranges in one call (IOV_MAX).
const BATCH: usize = 1024;
/// From one snapshot to the next.
const EVERY: &str = "100ms";
/// How long anything may take.
const LIMIT: Duration = Duration::from_secs(120);

/// Writes to as many pages as it is asked to, or tells the sum of what it wrote to all of them.
const SCRIPT: &str = r#"
import ctypes, mmap, os, random, sys
PAGES = 32768
memory = mmap.mmap(-1, PAGES * 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
for n in range(PAGES):
    memory[n * 4096:(n + 1) * 4096] = os.urandom(64) * 64
    memory[n * 4096] = 0
print(ctypes.addressof(ctypes.c_char.from_buffer(memory)))
picked, value = random.Random(1), 0
while True:
    words = os.read(0, 100).decode().split()
    if not words:
        sys.exit(0)
    if words[0] == "sum":
        print(sum(memory[n * 4096] for n in range(PAGES)))
    else:
        value = value % 250 + 1
        for n in picked.sample(range(PAGES), int(words[0])):
            memory[n * 4096] = value
        print("written")
"#;

/// What rollbacks of one kind took.
struct Kind {
    pages: usize,
    watched: bool,
    stops: Vec<u64>,
    written: Vec<u64>,
    /// From the command to its end.
    whole: Vec<u64>,
    floor_ns: u64,
}

/// Figures of one run.
pub struct Report(Vec<Kind>);

struct Subject {
    python: Python,
    start: usize,
}

impl Subject {
    fn start() -> Result<Self> {
        let mut python = Python::script(SCRIPT)?;
        let start = python.line(LIMIT)?.parse()?;
        Ok(Self { python, start })
    }

    fn ask(&mut self, what: &str) -> Result<String> {
        let line = format!("{what}\n");
        self.python.process().stdin()?.write_all(line.as_bytes())?;
        self.python.line(LIMIT)
    }

    /// Time to write so many scattered pages into it from outside, what they hold already, as often as rollbacks
    /// are measured; the median.
    fn floor(&self, pages: usize) -> Result<u64> {
        let pid = Pid::from_raw(self.python.pid());
        let page = vec![0u8; PAGE];
        let stride = HELD / pages;
        let ours = vec![page; pages];
        let mut times = Vec::with_capacity(ROUNDS);
        for _ in 0..ROUNDS {
            let begun = Instant::now();
            for first in (0..pages).step_by(BATCH) {
                let batch = first..pages.min(first + BATCH);
                let local: Vec<IoSlice<'_>> = ours[batch.clone()]
                    .iter()
                    .map(|page| IoSlice::new(page))
                    .collect();
                let remote: Vec<RemoteIoVec> = batch
                    .clone()
                    .map(|n| RemoteIoVec {
                        base: self.start + n * stride * PAGE,
                        len: PAGE,
                    })
                    .collect();
                let written = process_vm_writev(pid, &local, &remote)?;
                ensure!(written == batch.len() * PAGE, "{written} bytes written");
            }
            times.push(begun.elapsed().as_nanos() as u64);
        }
        Ok(Sorted::new(times).at(0.5))
    }
}

/// Measures each number of pages, with and without a watcher.
pub fn measure(ksnap: &Path) -> Result<Report> {
    let mut kinds = Vec::new();
    for pages in SIZES {
        for watched in [true, false] {
            let beside = if watched { "with" } else { "without" };
            eprintln!("{ROUNDS} rollbacks of {pages} pages, {beside} a watcher");
            kinds.push(one_kind(ksnap, pages, watched)?);
        }
    }
    Ok(Report(kinds))
}

fn one_kind(ksnap: &Path, pages: usize, watched: bool) -> Result<Kind> {
    let ksnap = Ksnap::with_binary(ksnap.to_owned())?;
    let mut subject = Subject::start()?;
    let pid = subject.python.pid().to_string();
    let watch = match watched {
        true => Some(watch(&ksnap, &pid)?),
        false => None,
    };
    let taken = ksnap.json(&["snap", &pid])?.remove(0);
    let id = taken["id"].as_str().context("a snapshot without an id")?;
    let (mut stops, mut written, mut whole) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        subject.ask(&pages.to_string())?;
        ensure!(subject.ask("sum")? != "0", "nothing was written");
        let begun = Instant::now();
        let done = ksnap.json(&["rollback", &pid, id, "-y"])?.remove(0);
        whole.push(begun.elapsed().as_nanos() as u64);
        ensure!(subject.ask("sum")? == "0", "the memory did not go back");
        let number = |name: &str| -> Result<u64> {
            done[name]
                .as_u64()
                .with_context(|| format!("{done} has no {name}"))
        };
        stops.push(number("stop_ns")?);
        written.push(number("written")?);
    }
    if let Some(mut watch) = watch {
        watch.signal(nix::sys::signal::Signal::SIGINT)?;
        let ended = watch.finish(LIMIT)?;
        ensure!(ended.status.code() == Some(130), "{ended:?}");
    }
    // Last: it overwrites the process's memory.
    let floor_ns = subject.floor(pages)?;
    Ok(Kind {
        pages,
        watched,
        stops,
        written,
        whole,
        floor_ns,
    })
}

/// A watcher with some snapshots behind it.
fn watch(ksnap: &Ksnap, pid: &str) -> Result<Background> {
    let mut watch = ksnap.start(&["watch", pid, "--every", EVERY, "--json"])?;
    let end = Instant::now() + LIMIT;
    let mut taken = 0;
    while taken < 5 {
        let left = end.saturating_duration_since(Instant::now());
        match watch.line(left)? {
            Some(line) if line.contains(r#""event":"taken""#) => taken += 1,
            Some(_) => {}
            None => bail!("no snapshots: {}", watch.stderr()),
        }
    }
    Ok(watch)
}

impl Kind {
    fn ratio(&self) -> f64 {
        Sorted::new(self.stops.iter().copied()).at(0.5) as f64 / self.floor_ns.max(1) as f64
    }
}

impl Report {
    /// One object.
    pub fn json(&self) -> Value {
        let times = |times: &[u64]| {
            let sorted = Sorted::new(times.iter().copied());
            json!({ "p50_ns": sorted.at(0.5), "p90_ns": sorted.at(0.9), "max_ns": sorted.at(1.0) })
        };
        let kinds: Vec<Value> = self
            .0
            .iter()
            .map(|kind| {
                json!({
                    "pages": kind.pages,
                    "watched": kind.watched,
                    "rollbacks": kind.stops.len(),
                    "written": Sorted::new(kind.written.iter().copied()).at(0.5),
                    "stop": times(&kind.stops),
                    "command": times(&kind.whole),
                    "floor_ns": kind.floor_ns,
                    "stop_to_floor": kind.ratio(),
                })
            })
            .collect();
        json!({ "bench": "rollback", "kernel": host::kernel(), "held_pages": HELD, "kinds": kinds })
    }

    /// A table.
    pub fn text(&self) -> String {
        let mut text = format!(
            "{}\npython3 holding {} MiB writes to scattered pages, and is rolled back in place, {ROUNDS} times each. \
             Linux {}.\n\n",
            heading("bench rollback"),
            (HELD * PAGE) >> 20,
            host::kernel()
        );
        let mut table = Table::new([
            "pages",
            "watcher",
            "written",
            "stop p50",
            "p90",
            "max",
            "floor",
            "p50 to floor",
            "whole command",
        ]);
        for kind in &self.0 {
            let sorted = |values: &[u64]| Sorted::new(values.iter().copied());
            let stops = sorted(&kind.stops);
            table.row([
                thousands(kind.pages as u64),
                if kind.watched { "yes" } else { "no" }.to_owned(),
                thousands(sorted(&kind.written).at(0.5)),
                nanos(stops.at(0.5)),
                nanos(stops.at(0.9)),
                nanos(stops.at(1.0)),
                nanos(kind.floor_ns),
                format!("{:.2}", kind.ratio()),
                nanos(sorted(&kind.whole).at(0.5)),
            ]);
        }
        text += &table.lines();
        text + "  The floor: process_vm_writev of as many scattered pages into the same process.\n"
    }
}
