//! `ksnap restore --watch`: the snapshots of a process that was brought back go on where it was brought back from.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;
use tests::family::roll_back;
use tests::footprint::await_gone;
use tests::tree::end_captured;
use tests::{Ksnap, Victim, require};

const LIMIT: Duration = Duration::from_secs(60);

/// Entries of the log, oldest first.
fn log(ksnap: &Ksnap) -> Result<Vec<Value>> {
    ksnap.json(&["log"])
}

/// Brought back and watched, snapshots follow the one that it was brought back from.
fn goes_on_watched(options: &[&str]) -> Result<()> {
    require!(Root, Ksnap);
    if options.is_empty() {
        require!(ChosenIds);
    }
    let ksnap = Ksnap::new()?;
    // Slow enough that what a rollback takes away does not come back while it is being looked for.
    let slow = ["--mib", "48", "--rate", "20", "--rollbacks"];
    let mut first = Victim::spawn("counter", &slow)?;
    let from = ksnap.snap_in_part(first.pid(), &[])?;
    let then = first.status()?.counter;
    first.wait_beyond(then + 50, LIMIT)?;
    ksnap.snap_in_part(first.pid(), &["--kill"])?;
    first.process().wait(LIMIT)?.context("it lives")?;
    await_gone(first.pid(), LIMIT)?;
    let before = log(&ksnap)?;
    let mut args = vec![
        "restore", &from, "--watch", "--every", "20ms", "--count", "6",
    ];
    args.extend(["--audit", "--wait", "--json"]);
    args.extend(options);
    let mut victim = Victim::brought_back(ksnap.start(&args)?)?;
    let counter = victim.check()?.counter;
    victim.wait_beyond(counter + 50, LIMIT)?;
    let end = Instant::now() + LIMIT;
    let all = loop {
        let all = log(&ksnap)?;
        if all.len() == before.len() + 6 {
            break all;
        }
        ensure!(Instant::now() < end, "only {} snapshots", all.len());
        std::thread::sleep(Duration::from_millis(20));
    };
    let new = &all[before.len()..];
    ensure!(new[0]["parent"] == from.as_str(), "{}", new[0]);
    ensure!(new[0]["branch"] == true, "{}", new[0]);
    for pair in new.windows(2) {
        ensure!(pair[1]["parent"] == pair[0]["id"], "{}", pair[1]);
    }
    let whole = |entry: &Value| entry["session"] == all[0]["session"] && entry["kind"] == "delta";
    ensure!(new.iter().all(whole), "{new:?}");
    let graph = ksnap.ok(&["log", "--graph"])?;
    ensure!(graph.contains("|-."), "{graph}");
    // Whoever watches it next goes on there as well, and it goes back in place.
    let own = victim.pid();
    while ksnap.store().join(format!("{own}.sock")).exists() {
        ensure!(Instant::now() < end, "the watch does not end");
        std::thread::sleep(Duration::from_millis(5));
    }
    let next = ksnap.snap_in_part(own, &["--audit"])?;
    let last = log(&ksnap)?.pop().context("no log")?;
    ensure!(
        last["id"] == next.as_str() && last["parent"] == new[5]["id"],
        "{last}"
    );
    let then = victim.status()?.counter;
    victim.wait_beyond(then + 500, LIMIT)?;
    let to = new[5]["id"].as_str().context("no id")?;
    ksnap.ok(&["rollback", &own.to_string(), to, "-y"])?;
    ensure!(victim.status()?.counter < then + 500, "not rolled back");
    victim.check()?;
    ksnap.ok(&["verify"])?;
    victim.quit()
}

#[test]
fn a_restored_process_is_watched_and_its_snapshots_follow_the_restored_one() -> Result<()> {
    goes_on_watched(&[])
}

#[test]
fn so_is_one_with_a_namespace_of_its_own() -> Result<()> {
    goes_on_watched(&["--pids", "namespace"])
}

#[test]
fn a_session_that_another_ksnap_writes_is_not_continued_and_nothing_is_started() -> Result<()> {
    require!(Root, Ksnap);
    let ksnap = Ksnap::new()?;
    let mut victim = Victim::spawn("counter", &["--mib", "1"])?;
    let pid = victim.pid().to_string();
    let mut watch = ksnap.start(&["watch", &pid, "--every", "10ms", "--json"])?;
    // The first event says that it watches, the second that there is a snapshot.
    watch.line(LIMIT)?.context("no event")?;
    watch.line(LIMIT)?.context("no snapshot")?;
    let refused = ksnap.run(&["restore", "latest", "--watch", "--pids", "namespace"])?;
    ensure!(refused.code()? == 2, "{refused:?}");
    ensure!(refused.stderr.contains("is being watched"), "{refused:?}");
    let refused = ksnap.run(&["restore", "latest", "--every", "1s"])?;
    ensure!(
        refused.code()? == 2 && refused.stderr.contains("--watch"),
        "{refused:?}"
    );
    watch.signal(Signal::SIGTERM)?;
    ensure!(watch.wait(LIMIT)?.is_some());
    victim.check()?;
    victim.quit()
}

/// All of its processes, each in the session that it has been in before.
#[test]
fn a_restored_tree_is_watched_as_one_and_its_snapshots_follow_the_restored_ones() -> Result<()> {
    require!(Root, Ksnap, ChosenIds);
    let ksnap = Ksnap::new()?;
    // Enough that some of it comes later.
    let mut first = Victim::spawn("tree", &["--mib", "12"])?;
    let counter = first.check()?.counter;
    let pids = end_captured(&ksnap, first.pid())?;
    first.process().wait(LIMIT)?.context("it lives")?;
    pids.are_gone()?;
    let before = log(&ksnap)?;
    ensure!(before.len() == pids.0.len(), "{before:?}");
    let args = ["restore", "latest", "--watch", "--every", "50ms"];
    let args = [&args[..], &["--audit", "--wait", "--json"]].concat();
    let mut victim = Victim::brought_back(ksnap.start(&args)?)?;
    ensure!(victim.pid() == first.pid(), "another id");
    let lazy = victim.ready()["lazy_pages"].as_u64();
    ensure!(lazy > Some(0), "{}", victim.ready());
    victim.wait_beyond(counter + 20, LIMIT)?;
    let end = Instant::now() + LIMIT;
    let new = loop {
        let new = log(&ksnap)?.split_off(before.len());
        if new.len() >= 3 * pids.0.len() {
            break new;
        }
        ensure!(Instant::now() < end, "only {} snapshots", new.len());
        std::thread::sleep(Duration::from_millis(20));
    };
    for from in &before {
        let next = new.iter().find(|one| one["pid"] == from["pid"]);
        let next = next.with_context(|| format!("nothing follows {from}"))?;
        ensure!(next["parent"] == from["id"], "{next} behind {from}");
        ensure!(next["session"] == from["session"] && next["kind"] == "delta");
    }
    let root = victim.pid();
    // Not to what it was brought back from: that was another process.
    for reference in ["latest~", "latest"] {
        // For a check it makes children, which nobody makes again: neither of both was taken meanwhile.
        let so_far = log(&ksnap)?.len();
        while log(&ksnap)?.len() < so_far + 3 * pids.0.len() {
            ensure!(Instant::now() < end, "no more snapshots");
            std::thread::sleep(Duration::from_millis(20));
        }
        roll_back(&ksnap, root, reference)?;
        let then = victim.check()?.counter;
        victim.wait_beyond(then + 5, LIMIT)?;
    }
    ksnap.ok(&["verify"])?;
    victim.quit()
}
