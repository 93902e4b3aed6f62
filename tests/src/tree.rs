//! Trees of processes under test: captured and ended, and brought back.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::background::Background;
use crate::footprint::{await_gone, processes, state_of};
use crate::ksnap::Ksnap;
use crate::paths;
use crate::subject::Victim;

const LIMIT: Duration = Duration::from_secs(60);

/// The processes of a tree, ended when dropped: they may be nobody's children by then.
pub struct Pids(pub Vec<i32>);

impl Drop for Pids {
    fn drop(&mut self) {
        for pid in &self.0 {
            if let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/cmdline")) {
                // What has such an id by now may be somebody else.
                if !stat.is_empty() && self.is_ours(*pid) {
                    let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
                }
            }
        }
    }
}

impl Pids {
    /// Below this process, or handed to process 1.
    fn is_ours(&self, pid: i32) -> bool {
        let own = std::process::id() as i32;
        let mut at = pid;
        for _ in 0..64 {
            match parent_of(at) {
                Some(parent) if parent == own || parent == 1 => return true,
                Some(parent) => at = parent,
                None => return false,
            }
        }
        false
    }

    /// Waits until all of them are gone.
    pub fn are_gone(&self) -> Result<()> {
        self.0.iter().try_for_each(|pid| await_gone(*pid, LIMIT))
    }
}

/// What is behind the name in `/proc/PID/stat` (proc_pid_stat(5)): the state comes first.
pub fn stat_of(pid: i32) -> Option<Vec<String>> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let rest = stat.rsplit_once(')')?.1;
    Some(rest.split_whitespace().map(str::to_owned).collect())
}

/// The parent of a process that is there.
pub fn parent_of(pid: i32) -> Option<i32> {
    stat_of(pid)?.get(1)?.parse().ok()
}

/// The children of a process that has one thread.
pub fn children_of(pid: i32) -> Result<Vec<i32>> {
    let path = format!("/proc/{pid}/task/{pid}/children");
    let listed = std::fs::read_to_string(&path).context(path)?;
    Ok(listed
        .split_whitespace()
        .map(str::parse)
        .collect::<std::result::Result<_, _>>()?)
}

/// Living processes of the victim's program, and of ksnap's: what a restore that failed would leave. Tests that run
/// beside this one have some as well, which come and go.
pub fn living() -> Result<Vec<i32>> {
    let programs = [paths::victim()?, paths::ksnap()?].map(std::fs::canonicalize);
    let programs = programs.into_iter().collect::<std::io::Result<Vec<_>>>()?;
    processes(|pid| {
        let exe = std::fs::read_link(format!("/proc/{pid}/exe"));
        let is_one = exe.is_ok_and(|exe| programs.contains(&exe));
        is_one && !matches!(state_of(pid), 'Z' | 'X' | '?') && !is_of_another_test(pid, &programs)
    })
}

/// Whether a process is below a test that is not this one: one of the same folder, and none of these programs, which may be
/// there as well.
fn is_of_another_test(pid: i32, programs: &[PathBuf]) -> bool {
    let own = std::process::id() as i32;
    let tests = std::env::current_exe().ok();
    let tests = tests.as_deref().and_then(std::path::Path::parent);
    let mut at = pid;
    for _ in 0..64 {
        match parent_of(at) {
            Some(parent) if parent != own && parent > 1 => at = parent,
            _ => return false,
        }
        let exe = std::fs::read_link(format!("/proc/{at}/exe"));
        if exe.is_ok_and(|exe| exe.parent() == tests && !programs.contains(&exe)) {
            return true;
        }
    }
    false
}

/// Waits until all that live are those that lived before: what is ended takes a moment to be gone.
pub fn none_but(before: &[i32]) -> Result<()> {
    let end = Instant::now() + LIMIT;
    loop {
        let now = living()?;
        if now.iter().all(|pid| before.contains(pid)) {
            return Ok(());
        }
        ensure!(Instant::now() < end, "{before:?} were there, now {now:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Captures a tree and ends it.
pub fn end_captured(ksnap: &Ksnap, root: i32) -> Result<Pids> {
    let zombies = zombies_below(root)?;
    let ended = ksnap.run(&["snap", &root.to_string(), "--tree", "--kill", "--json"])?;
    ensure!(matches!(ended.code()?, 0 | 3), "{ended:?}");
    let said: Value = serde_json::from_str(&ended.stdout)?;
    let pids = said["processes"].as_array().context("no processes")?;
    let pids: Vec<i32> = pids
        .iter()
        .filter_map(|process| process["pid"].as_i64().map(|pid| pid as i32))
        .collect();
    ensure!(pids.first() == Some(&root), "{said}");
    // Whoever has them now waits for them later than for those that were killed, or before.
    for zombie in zombies {
        await_gone(zombie, LIMIT)?;
    }
    Ok(Pids(pids))
}

/// The processes below this one that have ended and were not waited for.
fn zombies_below(pid: i32) -> Result<Vec<i32>> {
    let mut found = Vec::new();
    for child in children_of(pid)? {
        match state_of(child) {
            'Z' => found.push(child),
            _ => found.extend(zombies_below(child).unwrap_or_default()),
        }
    }
    Ok(found)
}

/// Also gives what ksnap said. The tree runs by then, and writes to the same pipe: `early` takes what it has written.
pub fn bring_back(
    ksnap: &Ksnap,
    early: &mut dyn FnMut(&str) -> Result<()>,
) -> Result<(Background, Value)> {
    let mut process = ksnap.start(&["restore", "latest", "--wait", "--json"])?;
    loop {
        let line = process
            .line(LIMIT)
            .and_then(|line| line.context("ksnap says nothing"))
            .with_context(|| process.stderr())?;
        match serde_json::from_str(&line) {
            Ok(said @ Value::Object(_)) => return Ok((process, said)),
            _ => early(&line)?,
        }
    }
}

/// A victim of three processes, captured, ended and brought back with these options, twice in a row. `looks` tells what is
/// wrong with one that is back. Without options it has its old id.
pub fn goes_on_twice(
    (name, args): (&str, &[&str]),
    options: &[&str],
    looks: impl Fn(&Victim) -> Result<()>,
) -> Result<()> {
    let ksnap = Ksnap::new()?;
    let mut first = Victim::spawn(name, args)?;
    let mut counter = first.check()?.counter;
    let pids = end_captured(&ksnap, first.pid())?;
    ensure!(pids.0.len() == 3, "{:?}", pids.0);
    first.process().wait(LIMIT)?.context("the victim lives")?;
    pids.are_gone()?;
    for round in 0..2 {
        let what = || format!("brought back {} times", round + 1);
        let mut args = vec!["restore", "latest", "--wait", "--json"];
        args.extend(options);
        let mut victim = Victim::brought_back(ksnap.start(&args)?).with_context(what)?;
        looks(&victim).with_context(what)?;
        victim.wait_beyond(counter + 20, LIMIT).with_context(what)?;
        counter = victim.check().with_context(what)?.counter;
        if options.is_empty() {
            ensure!(victim.pid() == first.pid(), "another id: {}", what());
        }
        let pids = end_captured(&ksnap, victim.pid()).with_context(what)?;
        ensure!(pids.0.len() == 3, "{:?}, {}", pids.0, what());
        victim.process().wait(LIMIT)?.context("it lives")?;
        pids.are_gone()?;
    }
    ksnap.ok(&["verify"])?;
    Ok(())
}

/// For [`bring_back`]: the tree writes nothing.
pub fn nothing_early(line: &str) -> Result<()> {
    bail!("{line}")
}
