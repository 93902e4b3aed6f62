//! Processes with connections: taken, and brought back.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::background::{Background, Finished};
use crate::ksnap::Ksnap;

const LIMIT: Duration = Duration::from_secs(60);

/// The process that holds the connections of a process that was ended.
fn holder(ended: &Finished) -> Result<i32> {
    let said = &ended.stderr;
    let rest = said
        .split("process ")
        .find_map(|rest| rest.split_once(" holds "));
    let (pid, _) = rest.with_context(|| format!("nobody holds connections: {ended:?}"))?;
    pid.parse().with_context(|| said.clone())
}

/// Takes a snapshot, ends the process and has its connections kept.
pub fn take(ksnap: &Ksnap, pid: i32) -> Result<i32> {
    take_with(ksnap, pid, &[])
}

/// The same, with more options.
pub fn take_with(ksnap: &Ksnap, pid: i32, more: &[&str]) -> Result<i32> {
    taken(ksnap, pid, more, &[0])
}

/// The same, where something else may not have been saved.
pub fn take_incomplete(ksnap: &Ksnap, pid: i32, more: &[&str]) -> Result<i32> {
    taken(ksnap, pid, more, &[0, 3])
}

fn taken(ksnap: &Ksnap, pid: i32, more: &[&str], codes: &[i32]) -> Result<i32> {
    let pid = pid.to_string();
    let ended = ksnap.run(&[&["snap", &pid, "--kill", "--tcp"], more].concat())?;
    ensure!(codes.contains(&ended.code()?), "{ended:?}");
    let holder = holder(&ended)?;
    let name = std::fs::read_to_string(format!("/proc/{holder}/comm"))?;
    ensure!(name.trim() == "ksnap-tcp", "process {holder} is {name}");
    Ok(holder)
}

/// Runs a command with arguments to its end.
pub fn run(mut command: Command, args: &[&str]) -> Result<Finished> {
    command.args(args);
    let mut process = Background::start(command)?;
    process.close_stdin();
    process.finish(LIMIT)
}

/// Brings the latest snapshot back, and tells what was said.
pub fn bring_back(command: Command, more: &[&str]) -> Result<Finished> {
    let args = [&["restore", "latest", "--tcp"], more].concat();
    run(command, &args)
}

/// The process is back, with all of its connections.
pub fn is_back(done: &Finished) -> Result<()> {
    // The standard streams are others, which is said.
    ensure!(matches!(done.code()?, 0 | 3), "{done:?}");
    ensure!(!done.stderr.contains("was a connection"), "{done:?}");
    Ok(())
}
