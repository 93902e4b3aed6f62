//! How long a redis-server takes to be back: to its first instruction, and to its first answer; and ten
//! copies of it, with the memory that they take together.

use super::load;
use crate::table::{Table, bytes, heading, nanos};
use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use std::path::Path;
use std::time::{Duration, Instant};
use tests::{Background, Ksnap, Redis, Reply, Resp};

/// Restores of one kind.
const ROUNDS: usize = 5;
/// Copies started at once.
const COPIES: usize = 10;
const LIMIT: Duration = Duration::from_secs(180);

/// One restore.
#[derive(Clone, Copy, Debug)]
pub struct Back {
    /// From the start of the command to the process's first instruction, as ksnap says, in nanoseconds.
    pub first_instruction_ns: u64,
    /// From the start of the command to the first answer to a PING, in nanoseconds.
    pub first_ping_ns: u64,
    /// From the start of the command until all memory is there and ksnap has ended, in nanoseconds.
    pub whole_ns: u64,
}

/// Figures of one run.
pub struct Report {
    mib: u64,
    /// The first restore, which makes the flat image.
    first: Back,
    /// With the flat image there.
    lazy: Vec<Back>,
    /// All memory before the first instruction.
    eager: Vec<Back>,
    /// Start of the command to the first instruction of the last copy, in nanoseconds.
    copies_ns: Vec<u64>,
    /// Proportional memory of all copies together, in bytes.
    copies_pss: u64,
    /// The same of one server before.
    one_pss: u64,
}

/// Measures on a server of `mib` MiB.
pub fn measure(ksnap: &Path, mib: u64) -> Result<Report> {
    let ksnap = Ksnap::with_binary(ksnap.to_owned())?;
    let mut redis = Redis::start()?;
    eprintln!(
        "filling redis-server (process {}) with {mib} MiB",
        redis.pid()
    );
    load::fill(&redis, mib)?;
    let (pid, port) = (redis.pid(), redis.port());
    let one_pss = pss(pid)?;
    let ended = ksnap.run(&["snap", &pid.to_string(), "--kill"])?;
    ensure!(matches!(ended.code()?, 0 | 3), "{ended:?}");
    redis.ended(LIMIT)?;

    eprintln!("the first restore");
    let first = back(&ksnap, port, &[])?;
    let rounds = |options: &[&str]| -> Result<Vec<Back>> {
        (0..ROUNDS).map(|_| back(&ksnap, port, options)).collect()
    };
    eprintln!("{ROUNDS} more, then {ROUNDS} at once");
    let lazy = rounds(&[])?;
    let eager = rounds(&["--eager"])?;
    eprintln!("{COPIES} copies, {ROUNDS} times");
    let mut copies_ns = Vec::new();
    let mut copies_pss = 0;
    for _ in 0..ROUNDS {
        let (took, together) = copies(&ksnap)?;
        copies_ns.push(took);
        copies_pss = copies_pss.max(together);
    }
    Ok(Report {
        mib,
        first,
        lazy,
        eager,
        copies_ns,
        copies_pss,
        one_pss,
    })
}

fn pong(port: u16) -> Option<()> {
    let mut client = Resp::connect(port).ok()?;
    matches!(client.command(&["PING"]), Ok(Reply::Simple(pong)) if pong == "PONG").then_some(())
}

/// One restore, ended again.
fn back(ksnap: &Ksnap, port: u16, options: &[&str]) -> Result<Back> {
    let mut args = vec!["restore", "latest", "--json"];
    args.extend(options);
    let begun = Instant::now();
    let mut process = ksnap.start(&args)?;
    while pong(port).is_none() {
        ensure!(begun.elapsed() < LIMIT, "no answer: {}", process.stderr());
        std::thread::sleep(Duration::from_micros(200));
    }
    let first_ping_ns = begun.elapsed().as_nanos() as u64;
    let said = said(&mut process)?;
    ensure!(process.wait(LIMIT)?.is_some(), "ksnap does not end");
    let whole_ns = begun.elapsed().as_nanos() as u64;
    end(said["pid"].as_i64().context("no pid")? as i32)?;
    Ok(Back {
        first_instruction_ns: said["took_ns"].as_u64().context("no time")?,
        first_ping_ns,
        whole_ns,
    })
}

fn said(process: &mut Background) -> Result<Value> {
    let line = process.line(LIMIT)?.context("ksnap says nothing")?;
    serde_json::from_str(&line).with_context(|| line.clone())
}

fn end(pid: i32) -> Result<()> {
    kill(Pid::from_raw(pid), Signal::SIGKILL)?;
    let end = Instant::now() + LIMIT;
    while Path::new(&format!("/proc/{pid}")).exists() {
        ensure!(Instant::now() < end, "process {pid} does not end");
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// Starts copies; gives how long that took, and the memory of all of them.
fn copies(ksnap: &Ksnap) -> Result<(u64, u64)> {
    let count = COPIES.to_string();
    let begun = Instant::now();
    let args = ["fork", "latest", "-n", &count, "--net", "private", "--json"];
    let mut process = ksnap.start(&args)?;
    let copies: Vec<Value> = (0..COPIES)
        .map(|_| said(&mut process))
        .collect::<Result<_>>()?;
    let took = begun.elapsed().as_nanos() as u64;
    ensure!(process.wait(LIMIT)?.is_some(), "ksnap does not end");
    let mut together = 0;
    for copy in &copies {
        for whose in ["pid", "init"] {
            together += pss(copy[whose].as_i64().context("no pid")? as i32)?;
        }
    }
    for copy in &copies {
        end(copy["init"].as_i64().context("no process 1")? as i32)?;
    }
    Ok((took, together))
}

/// Proportional set size (`/proc/PID/smaps_rollup`), in bytes.
fn pss(pid: i32) -> Result<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"));
    let kib: u64 = line
        .and_then(|line| line.split_whitespace().next()?.parse().ok())
        .context("no Pss")?;
    Ok(kib << 10)
}

fn median(values: impl Iterator<Item = u64>) -> u64 {
    let mut values: Vec<u64> = values.collect();
    values.sort_unstable();
    values[values.len() / 2]
}

impl Report {
    /// For people.
    pub fn text(&self) -> String {
        let mut table = Table::new(["", "first instruction", "first PING", "all memory"]);
        let mut row = |name: &str, backs: &[Back]| {
            let of = |what: fn(&Back) -> u64| nanos(median(backs.iter().map(what)));
            table.row([
                name.to_owned(),
                of(|b| b.first_instruction_ns),
                of(|b| b.first_ping_ns),
                of(|b| b.whole_ns),
            ]);
        };
        row("the first time", &[self.first]);
        row("again, median", &self.lazy);
        row("again, --eager", &self.eager);
        format!(
            "{}{}\n{COPIES} copies: {} to the last one's first instruction; {} in memory, one server before: {}\n",
            heading(&format!("restore: redis-server with {} MiB", self.mib)),
            table.lines(),
            nanos(median(self.copies_ns.iter().copied())),
            bytes(self.copies_pss),
            bytes(self.one_pss),
        )
    }

    /// For machines.
    pub fn json(&self) -> Value {
        let backs = |all: &[Back]| -> Vec<Value> {
            all.iter()
                .map(|b| {
                    json!({
                        "first_instruction_ns": b.first_instruction_ns,
                        "first_ping_ns": b.first_ping_ns,
                        "whole_ns": b.whole_ns,
                    })
                })
                .collect()
        };
        json!({
            "measurement": "restore",
            "mib": self.mib,
            "first": backs(&[self.first]),
            "lazy": backs(&self.lazy),
            "eager": backs(&self.eager),
            "copies": COPIES,
            "copies_ns": self.copies_ns,
            "copies_pss": self.copies_pss,
            "one_pss": self.one_pss,
        })
    }
}
