//! How long a base of memory that nothing makes shorter takes to be on the disk, beside what writing as many bytes takes.

use crate::host;
use crate::table::{Sorted, Table, heading, nanos};
use anyhow::{Result, ensure};
use nix::fcntl::OFlag;
use serde_json::{Value, json};
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use tests::{Ksnap, Python, without_io_uring};

const ROUNDS: usize = 5;
const LIMIT: Duration = Duration::from_secs(120);
/// Bytes of a write of the floor, and what direct I/O wants their place in memory to be a multiple of.
const PIECE: usize = 1 << 20;
const ALIGN: usize = 4096;

/// Figures of one run, in nanoseconds.
pub struct Report {
    mib: u64,
    /// `ksnap snap`, from its start to its end.
    ksnap: Vec<u64>,
    /// The same where the kernel refuses io_uring.
    refused: Vec<u64>,
    /// Writing as many bytes past the page cache, one piece after the other, and a sync.
    floor: Vec<u64>,
    /// gcore, which leaves them in the page cache; nothing where it is missing.
    gcore: Vec<u64>,
}

/// Measures on a process with `mib` MiB of noise.
pub fn measure(ksnap: &Path, mib: u64) -> Result<Report> {
    let mut process = Python::script(&format!(
        "import os, sys\nnoise = [os.urandom(1 << 20) for _ in range({mib})]\nprint('ready', flush=True)\nsys.stdin.read()"
    ))?;
    ensure!(
        process.line(LIMIT)?.trim() == "ready",
        "the process with noise does not start"
    );
    let pid = process.pid().to_string();
    let mut report = Report {
        mib,
        ksnap: Vec::new(),
        refused: Vec::new(),
        floor: Vec::new(),
        gcore: Vec::new(),
    };
    eprintln!(
        "{ROUNDS} bases of process {pid}, which has {mib} MiB of noise, each in a store of its own"
    );
    for _ in 0..ROUNDS {
        let snap = || -> Result<(Ksnap, Command)> {
            let ksnap = Ksnap::with_binary(ksnap.to_owned())?;
            let mut command = ksnap.command();
            command.args(["snap", &pid, "--durability", "each"]);
            Ok((ksnap, command))
        };
        let (_store, mut command) = snap()?;
        report.ksnap.push(timed(&mut command)?);
        let (_store, command) = snap()?;
        report
            .refused
            .push(timed(&mut without_io_uring(&command)?)?);
        let folder = tempfile::tempdir()?;
        report.floor.push(write(&folder.path().join("floor"), mib)?);
        if host::find("gcore").is_some() {
            let mut gcore = Command::new("gcore");
            gcore.arg("-o").arg(folder.path().join("core")).arg(&pid);
            report.gcore.push(timed(&mut gcore)?);
        }
    }
    Ok(report)
}

/// Runs a command that has to succeed, `ksnap` perhaps in part; gives the time that it took.
fn timed(command: &mut Command) -> Result<u64> {
    let begun = Instant::now();
    let output = command.stdin(Stdio::null()).output()?;
    let took = begun.elapsed();
    ensure!(
        matches!(output.status.code(), Some(0 | 3)),
        "{command:?}: {output:?}"
    );
    Ok(took.as_nanos() as u64)
}

/// Writes so many MiB of noise to a new file; gives the time that it took.
fn write(path: &Path, mib: u64) -> Result<u64> {
    let mut room = vec![0; PIECE + ALIGN];
    let start = room.as_ptr().align_offset(ALIGN);
    let piece = &mut room[start..start + PIECE];
    File::open("/dev/urandom")?.read_exact(piece)?;
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    let mut file = options
        .clone()
        .custom_flags(OFlag::O_DIRECT.bits())
        .open(path)
        .or_else(|_| options.open(path))?;
    let begun = Instant::now();
    for _ in 0..mib {
        file.write_all(piece)?;
    }
    file.sync_data()?;
    Ok(begun.elapsed().as_nanos() as u64)
}

fn median(values: &[u64]) -> u64 {
    Sorted::new(values.iter().copied()).at(0.5)
}

impl Report {
    /// For people.
    pub fn text(&self) -> String {
        let floor = median(&self.floor);
        let mut table = Table::new(["", "until it is on the disk", "of the floor"]);
        let mut row = |name: &str, took: &[u64]| {
            let took = median(took);
            table.row([
                name.to_owned(),
                nanos(took),
                format!("{:.2}", took as f64 / floor as f64),
            ]);
        };
        row("floor: as many bytes, direct, and a sync", &self.floor);
        row("ksnap snap", &self.ksnap);
        row("the same without io_uring", &self.refused);
        if !self.gcore.is_empty() {
            row("gcore, into the page cache", &self.gcore);
        }
        let title = format!("base: {} MiB of noise, median of {ROUNDS}", self.mib);
        format!("{}{}", heading(&title), table.lines())
    }

    /// For machines.
    pub fn json(&self) -> Value {
        json!({
            "measurement": "base",
            "mib": self.mib,
            "ksnap_ns": self.ksnap,
            "without_io_uring_ns": self.refused,
            "floor_ns": self.floor,
            "gcore_ns": self.gcore,
        })
    }
}
