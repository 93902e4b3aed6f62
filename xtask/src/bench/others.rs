//! The same job by other tools.

use super::load::Pinger;
use crate::host;
use anyhow::Result;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use tests::Redis;

/// What became of it.
pub enum Other {
    /// It was done.
    Done {
        /// From start to end.
        took: Duration,
        /// The longest that the server did not answer, in nanoseconds.
        silent_ns: u64,
        /// What it wrote, in bytes.
        bytes: u64,
    },
    /// It cannot be done here.
    Skipped {
        /// What is missing.
        missing: String,
        /// How to get it.
        how: String,
    },
}

/// `gcore`: gdb writes an ELF core, the process stopped meanwhile.
pub fn gcore(redis: &Redis, folder: &Path) -> Result<Other> {
    if host::find("gcore").is_none() {
        return Ok(Other::Skipped {
            missing: "gcore".into(),
            how: "apt-get install gdb".into(),
        });
    }
    let mut command = Command::new("gcore");
    command
        .arg("-o")
        .arg(folder.join("core"))
        .arg(redis.pid().to_string());
    timed(redis, &mut command, folder)
}

/// `criu dump --leave-running`.
pub fn criu(redis: &Redis, folder: &Path) -> Result<Other> {
    let skipped = |missing: &str, how: &str| {
        Ok(Other::Skipped {
            missing: missing.into(),
            how: how.into(),
        })
    };
    if host::find("criu").is_none() {
        return skipped("criu", "install CRIU 4 (Debian 12 has no package of it)");
    }
    let check = Command::new("criu")
        .arg("check")
        .stdin(Stdio::null())
        .output()?;
    if !check.status.success() {
        let said = String::from_utf8_lossy(&check.stderr)
            .trim()
            .replace('\n', "; ");
        return skipped("what `criu check` looks for", &said);
    }
    let mut command = Command::new("criu");
    command
        .args([
            "dump",
            "--leave-running",
            "--tcp-established",
            "--shell-job",
            "-t",
            &redis.pid().to_string(),
            "-D",
        ])
        .arg(folder);
    timed(redis, &mut command, folder)
}

fn timed(redis: &Redis, command: &mut Command, folder: &Path) -> Result<Other> {
    let pinger = Pinger::start(redis)?;
    let begun = Instant::now();
    let output = command.stdin(Stdio::null()).output()?;
    let took = begun.elapsed();
    let silent_ns = pinger.finish()?.at(1.0);
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr)
            .trim()
            .replace('\n', "; ");
        return Ok(Other::Skipped {
            missing: format!("success of {}", command.get_program().display()),
            how: said,
        });
    }
    let bytes = std::fs::read_dir(folder)?
        .flatten()
        .filter_map(|entry| entry.metadata().ok())
        .map(|metadata| metadata.len())
        .sum();
    Ok(Other::Done {
        took,
        silent_ns,
        bytes,
    })
}
