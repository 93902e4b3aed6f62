//! How long snapshots stop a redis-server under load, and what they cost its clients.
//!
//! One load runs all the time. Windows without and with snapshots alternate, so that a machine that
//! grows slower or faster meanwhile favours neither. Only snapshots inside the windows count; the first
//! one after ksnap attaches, which reads all memory, is reported by itself.

use super::load::{self, Fared};
use super::{floor, others, report::Report};
use crate::table::Sorted;
use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tests::{Background, Ksnap, Redis};

/// From one snapshot to the next.
pub const EVERY: &str = "100ms";
/// Length of a window.
const WINDOW: Duration = Duration::from_secs(5);
/// Between attaching and a window, and between the end of the snapshots and a window.
const SETTLE: Duration = Duration::from_secs(1);
/// How long the first snapshot may take.
const FIRST: Duration = Duration::from_secs(120);
/// Snapshots of the idle server.
const IDLE: &str = "30";

/// Measures for about `seconds` under snapshots, and as long without, on a server of `mib` MiB.
pub fn measure(ksnap: &Path, mib: u64, seconds: u64) -> Result<Report> {
    let ksnap = Ksnap::with_binary(ksnap.to_owned())?;
    let redis = Redis::start()?;
    eprintln!(
        "filling redis-server (process {}) with {mib} MiB",
        redis.pid()
    );
    let keys = load::fill(&redis, mib)?;

    eprintln!("the floor: snapshots of the idle server");
    let idle = idle(&ksnap, &redis)?;
    let page_ns = floor::copy_of_a_page_ns();

    let mut load = load::start(&redis, keys)?;
    let mut measured = Vec::new();
    for pace in [Pace::AsAsked, Pace::Bounded] {
        measured.push(alternate(&ksnap, &redis, pace, seconds)?);
    }
    ensure!(
        load.running()?,
        "redis-benchmark ended early: {}",
        load.stderr()
    );
    drop(load);

    let gcore = {
        eprintln!("the same by gcore and criu");
        let folder = tempfile::tempdir()?;
        others::gcore(&redis, folder.path())?
    };
    let criu = {
        let folder = tempfile::tempdir()?;
        others::criu(&redis, folder.path())?
    };
    Ok(Report {
        mib,
        keys,
        idle,
        page_ns,
        measured,
        gcore,
        criu,
    })
}

/// How often snapshots are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// As often as asked, or as storing them allows.
    AsAsked,
    /// As the default has it: no more often than their price allows.
    Bounded,
}

impl Pace {
    /// As in the output.
    pub fn name(self) -> &'static str {
        match self {
            Self::AsAsked => "--max-overhead off",
            Self::Bounded => "--max-overhead 10%, the default",
        }
    }

    fn argument(self) -> &'static str {
        match self {
            Self::AsAsked => "off",
            Self::Bounded => "10%",
        }
    }

    /// Few snapshots are taken where their price is bounded: they need longer windows.
    fn window(self) -> Duration {
        match self {
            Self::AsAsked => WINDOW,
            Self::Bounded => 4 * WINDOW,
        }
    }
}

/// Windows without and with snapshots, in alternation.
pub struct Measured {
    /// How often they were taken.
    pub pace: Pace,
    /// Windows without snapshots.
    pub without: Vec<Fared>,
    /// Windows with snapshots.
    pub with: Vec<Fared>,
    /// Length of all windows with snapshots.
    pub lasted: Duration,
    /// Costs of the snapshots in the windows.
    pub taken: Vec<Value>,
    /// Costs of the first snapshot of each watch.
    pub first: Vec<Value>,
}

fn alternate(ksnap: &Ksnap, redis: &Redis, pace: Pace, seconds: u64) -> Result<Measured> {
    let pairs = seconds.div_ceil(WINDOW.as_secs()).max(2);
    let window = pace.window() * u32::try_from(seconds)? / u32::try_from(pairs * WINDOW.as_secs())?;
    let mut measured = Measured {
        pace,
        without: Vec::new(),
        with: Vec::new(),
        lasted: Duration::ZERO,
        taken: Vec::new(),
        first: Vec::new(),
    };
    for pair in 1..=pairs {
        eprintln!(
            "{}, window {pair} of {pairs}: without snapshots, then with",
            pace.name()
        );
        std::thread::sleep(SETTLE);
        measured
            .without
            .push(load::observe(redis, window.min(WINDOW))?);
        let watched = watched(ksnap, redis, pace, window)?;
        measured.with.push(watched.fared);
        measured.taken.extend(watched.taken);
        measured.first.push(watched.first);
        measured.lasted += window;
    }
    ensure!(
        !measured.taken.is_empty(),
        "no snapshot was taken in any window"
    );
    Ok(measured)
}

/// Costs of snapshots of a server that does nothing.
fn idle(ksnap: &Ksnap, redis: &Redis) -> Result<Vec<Value>> {
    let pid = redis.pid().to_string();
    let events = ksnap.json(&["watch", &pid, "--every", EVERY, "--count", IDLE])?;
    // The first one reads all memory.
    let costs: Vec<Value> = events
        .into_iter()
        .filter(|event| event["event"] == "taken")
        .skip(1)
        .map(|mut event| event["costs"].take())
        .collect();
    ensure!(costs.len() > 2, "too few snapshots of the idle server");
    Ok(costs)
}

/// A window under snapshots.
struct Watched {
    fared: Fared,
    /// Costs of the snapshots in it.
    taken: Vec<Value>,
    /// Costs of the first one after attaching, before it.
    first: Value,
}

fn watched(ksnap: &Ksnap, redis: &Redis, pace: Pace, window: Duration) -> Result<Watched> {
    let mut watch = ksnap.start(&[
        "watch",
        &redis.pid().to_string(),
        "--every",
        EVERY,
        "--max-overhead",
        pace.argument(),
        "--json",
    ])?;
    let mut first = taken(&mut watch, FIRST)?.context("no first snapshot in time")?;
    std::thread::sleep(SETTLE);
    let begun = wall_clock_ns();
    let fared = load::observe(redis, window)?;
    let ended = wall_clock_ns();
    watch.signal(Signal::SIGINT)?;
    let finished = watch.finish(FIRST)?;
    let events: Vec<Value> = serde_json::Deserializer::from_str(&finished.stdout)
        .into_iter::<Value>()
        .collect::<Result<_, _>>()
        .context("ksnap watch printed something else than JSON")?;
    if let Some(failed) = events.iter().find(|event| event["event"] == "failed") {
        bail!("a snapshot failed: {}", failed["why"]);
    }
    let taken = events
        .into_iter()
        .filter(|event| {
            event["event"] == "taken"
                && event["time_ns"]
                    .as_u64()
                    .is_some_and(|time| (begun..ended).contains(&time))
        })
        .map(|mut event| event["costs"].take())
        .collect();
    Ok(Watched {
        fared,
        taken,
        first: first["costs"].take(),
    })
}

/// The next snapshot that a watcher reports.
fn taken(watch: &mut Background, limit: Duration) -> Result<Option<Value>> {
    let end = Instant::now() + limit;
    while let Some(line) = watch.line(end.saturating_duration_since(Instant::now()))? {
        let event: Value =
            serde_json::from_str(&line).with_context(|| format!("not JSON: {line}"))?;
        if event["event"] == "taken" {
            return Ok(Some(event));
        }
    }
    Ok(None)
}

fn wall_clock_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_nanos() as u64)
}

/// Sum of some phases of each snapshot.
pub fn phases(costs: &[Value], names: &[&str]) -> Sorted {
    Sorted::new(costs.iter().map(|cost| {
        names
            .iter()
            .map(|name| cost["phases"][name].as_u64().unwrap_or(0))
            .sum()
    }))
}
