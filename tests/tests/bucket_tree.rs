//! `ksnap push` and `ksnap pull` of trees of processes: all of them come back from a URL, or none.

use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tests::ksnap::number;
use tests::tree::{Pids, bring_back, end_captured};
use tests::{Background, Ksnap, Moto, Numbers, Victim, require};

const LIMIT: Duration = Duration::from_secs(60);

/// Made for this test; nothing else is encrypted to it.
const KEY: [&str; 2] = [
    "AGE-SECRET-KEY-1ZY2PWXSAYQ3JV2FV9UER2WPM8EQ5G362F4G9X4JET30KYETGDDHQ8H32DM",
    "age1xm0d7wknmguj4wuaw6jzhyn9sjf4ggk7d90fh9q75na9ry78e5ms2nmgj2",
];

fn one(mut values: Vec<Value>) -> Result<Value> {
    ensure!(values.len() == 1, "{values:?}");
    Ok(values.remove(0))
}

/// A shell with two interpreters: numbers go from one to the other.
fn shell() -> Result<Background> {
    let count = "import itertools, sys, time\n\
                 for n in itertools.count(): print(n, flush=True); time.sleep(0.002)";
    let tell = "import sys\n\
                for line in sys.stdin: print('n' + line.strip(), flush=True)";
    let mut command = Command::new("bash");
    command.args(["-c", "python3 -c \"$0\" | python3 -c \"$1\"; echo over"]);
    command.args([count, tell]);
    Background::start(command)
}

#[test]
fn a_shell_and_what_it_runs_come_back_from_s3() -> Result<()> {
    require!(
        Root,
        Ksnap,
        S3,
        Program("bash"),
        Program("python3"),
        ChosenIds
    );
    let moto = Moto::start("snapshots")?;
    let url = "s3://snapshots/some/fleet";
    let here = moto.equip(Ksnap::new()?);
    let mut shell = shell()?;
    let root = shell.pid();
    let mut numbers = Numbers::default();
    numbers.expect(&mut shell, 50)?;
    let pids = end_captured(&here, root)?;
    // python3 may be a script that starts the interpreter.
    ensure!(pids.0.len() >= 3, "{:?}", pids.0);
    shell.wait(LIMIT)?.context("the shell lives")?;
    pids.are_gone()?;
    numbers.rest(&mut shell)?;
    let pushed = one(here.json(&["push", "latest", url])?)?;
    ensure!(
        pushed["processes"] == pids.0.len() && pushed["pid"] == root,
        "{pushed}"
    );
    // What several of them have is sent once.
    ensure!(
        number(&pushed["new_pages"])? < number(&pushed["pages"])?,
        "{pushed}"
    );
    let again = one(here.json(&["push", "latest", url])?)?;
    ensure!(
        again["new_pages"] == 0 && again["sent_chunks"] == 0,
        "{again}"
    );
    drop(here);
    let there = moto.equip(Ksnap::new()?);
    let listed = one(there.json(&["pull", url, "--list"])?)?;
    ensure!(
        listed["tree"] == true && listed["processes"] == pids.0.len() && listed["comm"] == "bash",
        "{listed}"
    );
    let seen = there.ok(&["pull", url, "--list"])?;
    ensure!(
        seen.contains(&format!("tree of {}", pids.0.len())),
        "{seen}"
    );
    // What a tree needs stays.
    let rules = ["--keep-last", "1", "--grace", "0", "-y"];
    let prune = [&["prune", "--bucket", url][..], &rules].concat();
    let pruned = one(there.json(&prune)?)?;
    ensure!(
        pruned["kept"] == 1 && pruned["kept_chunks"] == pushed["chunks"],
        "{pruned}"
    );
    let pulled = one(there.json(&["pull", url])?)?;
    ensure!(
        pulled["pages"] == pushed["pages"] && pulled["processes"] == pids.0.len(),
        "{pulled}"
    );
    there.ok(&["verify"])?;
    let (mut back, said) = bring_back(&there, &mut |line| numbers.take(line))?;
    ensure!(said["pid"] == root, "{said}");
    numbers.expect(&mut back, 100)?;
    back.signal(nix::sys::signal::Signal::SIGKILL)?;
    Ok(())
}

/// A folder as a bucket.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Result<Self> {
        Ok(Self(tempfile::tempdir()?))
    }

    fn url(&self) -> String {
        format!("file://{}/bucket", self.0.path().display())
    }

    fn snapshots(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.0.path().join("bucket/snapshots"));
        let entries = entries.into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).collect()
    }
}

/// Runs what is to be killed at a point, and demands that it was.
fn killed_at(ksnap: &Ksnap, point: &str, args: &[&str]) -> Result<()> {
    let output = ksnap
        .command()
        .args(args)
        .env("KSNAP_KILL_AT", point)
        .output()?;
    ensure!(
        output.status.signal() == Some(libc::SIGKILL),
        "it was not killed at {point} (not a debug build?): {output:?}"
    );
    Ok(())
}

/// A victim of three processes, captured and ended.
fn captured(ksnap: &Ksnap) -> Result<(u64, Pids)> {
    let mut victim = Victim::spawn("tree", &[])?;
    let counter = victim.check()?.counter;
    let pids = end_captured(ksnap, victim.pid())?;
    victim.process().wait(LIMIT)?.context("the victim lives")?;
    pids.are_gone()?;
    Ok((counter, pids))
}

/// All of the victim is there and goes on.
fn goes_on(ksnap: &Ksnap, options: &[&str], counter: u64) -> Result<()> {
    let restore = [&["restore", "latest", "--wait", "--json"][..], options].concat();
    let mut victim = Victim::brought_back(ksnap.start(&restore)?)?;
    let others = victim.ready()["others"].as_array().map(Vec::len);
    ensure!(others == Some(2), "{}", victim.ready());
    victim.wait_beyond(counter + 20, LIMIT)?;
    victim.check()?;
    victim.quit()
}

#[test]
fn what_was_killed_shows_no_tree_and_goes_on() -> Result<()> {
    require!(Root, Ksnap, ChosenIds);
    let (place, here, there) = (Place::new()?, Ksnap::new()?, Ksnap::new()?);
    let url = place.url();
    let (counter, _pids) = captured(&here)?;
    for point in ["push-next-process", "push-publishing"] {
        killed_at(&here, point, &["push", "latest", &url])?;
        ensure!(place.snapshots().is_empty(), "{point}");
        ensure!(there.json(&["pull", &url, "--list"])?.is_empty());
        let nothing = there.run(&["pull", &url])?;
        ensure!(nothing.code()? == 1, "{nothing:?}");
    }
    let pushed = one(here.json(&["push", "latest", &url])?)?;
    ensure!(
        pushed["sent_chunks"] == 0 && pushed["processes"] == 3,
        "{pushed}"
    );
    // Damage is named, wherever it is.
    let object = place.snapshots().remove(0);
    let whole = std::fs::read(&object)?;
    let id = pushed["id"].as_str().context("no id")?;
    for (at, what) in [(300, "table of processes"), (400, "record of processes")] {
        let mut damaged = whole.clone();
        damaged[at] ^= 4;
        std::fs::write(&object, damaged)?;
        let told = there.run(&["pull", &url])?;
        ensure!(
            told.stderr.contains(what) && told.stderr.contains(id) && told.code()? != 0,
            "{told:?}"
        );
        ensure!(there.ok(&["log", "--json"])?.is_empty());
    }
    std::fs::write(&object, whole)?;
    // On its way back, before anything is there and when one process is.
    killed_at(&there, "pull-publishing", &["pull", &url])?;
    ensure!(there.ok(&["log", "--json"])?.is_empty());
    killed_at(&there, "pull-next-process", &["pull", &url])?;
    ensure!(there.json(&["log"])?.len() == 1);
    let pulled = one(there.json(&["pull", &url])?)?;
    ensure!(
        pulled["was_there"] == false && pulled["processes"] == 3,
        "{pulled}"
    );
    ensure!(there.json(&["log"])?.len() == 3);
    there.ok(&["verify"])?;
    goes_on(&there, &[], counter)
}

#[test]
fn a_tree_is_sealed_where_it_arrives_and_wherever_it_is_pushed_to_from_there() -> Result<()> {
    require!(Root, Ksnap, ChosenIds);
    let (place, here, there) = (Place::new()?, Ksnap::new()?, Ksnap::new()?);
    let url = place.url();
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("key");
    std::fs::write(&file, format!("{}\n", KEY[0]))?;
    let own = ["--identity", file.to_str().context("not text")?];
    let (counter, _pids) = captured(&here)?;
    here.ok(&["push", "latest", &url])?;
    there.ok(&["pull", &url, "--encrypt-to", KEY[1]])?;
    let closed = there.run(&["restore", "latest"])?;
    ensure!(
        closed.code()? != 0 && closed.stderr.contains("sealed"),
        "{closed:?}"
    );
    let other = Place::new()?;
    let to = other.url();
    let refused = there.run(&["push", "latest", &to])?;
    ensure!(refused.code()? == 13, "{refused:?}");
    there.ok(&[&["push", "latest", &to][..], &own].concat())?;
    drop(there);
    let last = Ksnap::new()?;
    let refused = last.run(&["pull", &to])?;
    ensure!(
        refused.code()? == 13 && refused.stderr.contains("--identity"),
        "{refused:?}"
    );
    last.ok(&[&["pull", &to][..], &own].concat())?;
    goes_on(&last, &own, counter)
}
