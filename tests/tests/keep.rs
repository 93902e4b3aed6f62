//! Retention while a process is being watched: rules hold, tags protect, and killing ksnap loses nothing that is kept.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use tests::background::Background;
use tests::victim::rng::Rng;
use tests::{Footprint, Ksnap, Victim, Watch, require};

const LIMIT: Duration = Duration::from_secs(60);

fn seqs(ksnap: &Ksnap) -> Result<Vec<u64>> {
    let log = ksnap.json(&["log"])?;
    Ok(log
        .iter()
        .filter_map(|entry| entry["seq"].as_u64())
        .collect())
}

/// Bytes of everything in the store.
fn size(folder: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        // A file may go while this looks.
        let Ok(metadata) = entry.metadata() else {
            continue;
        };
        bytes += match metadata.is_dir() {
            true => size(&entry.path()).unwrap_or(0),
            false => metadata.len(),
        };
    }
    Ok(bytes)
}

#[test]
fn a_watch_keeps_its_rules_and_its_tags_and_can_roll_back_to_all_that_is_left() -> Result<()> {
    require!(Root, Ksnap);
    let ksnap = Ksnap::new()?;
    let mut victim = Victim::spawn("counter", &["--mib", "24", "--rollbacks"])?;
    let pid = victim.pid().to_string();
    let before = Footprint::of(victim.pid())?;
    let options = ["--every", "20ms", "--keep-last", "5", "--audit"];
    let mut watch = Watch::start(&ksnap, victim.pid(), &options)?;
    watch.wait_taken(3, LIMIT)?;
    let tagged = ksnap.json(&["tag", "early"])?.remove(0);
    let then = victim.status()?.counter;
    watch.wait_taken(80, LIMIT)?;
    // The watcher has the session, and does what others ask.
    let pruned = ksnap.json(&["prune", "--keep-last", "3", "-y"])?.remove(0);
    ensure!(pruned["sessions"][0]["by_watcher"] == true, "{pruned}");
    let left = seqs(&ksnap)?;
    let tag = tagged["seq"].as_u64().context("no number")?;
    ensure!(left[0] == tag && left.len() < 40, "{left:?}");
    let since = Instant::now();
    ksnap.ok(&["rollback", &pid, "early", "-y"])?;
    // Four threads at 2000 steps a second.
    victim.is_back(then, since, 8)?;
    watch.wait_taken(100, LIMIT)?;
    victim.check()?;
    let watched = watch.interrupt(LIMIT)?;
    watched.none_failed()?;
    // Exactly what the rule keeps, once the watching has ended.
    let left = seqs(&ksnap)?;
    ensure!(left.len() == 6 && left[0] == tag, "{left:?}");
    ksnap.ok(&["verify"])?;
    ksnap.ok(&["tag", "-d", "early"])?;
    ksnap.ok(&["prune", "--keep-last", "1", "-y"])?;
    ksnap.ok(&["verify"])?;
    // What is left can be gone back to without a watcher.
    ksnap.ok(&["rollback", &pid, "latest", "-y"])?;
    victim.check()?;
    watched.left_nothing(&before)?;
    victim.quit()
}

#[test]
fn a_watch_stays_within_its_size() -> Result<()> {
    require!(Root, Ksnap);
    let ksnap = Ksnap::new()?;
    let mut victim = Victim::spawn("counter", &["--mib", "16"])?;
    const MOST: u64 = 64 << 20;
    let options = ["--every", "10ms", "--max-size", "64M"];
    let mut watch = Watch::start(&ksnap, victim.pid(), &options)?;
    watch.wait_taken(1, LIMIT)?;
    let start = Instant::now();
    let (mut most, mut looks, mut stored) = (0, 0, 0);
    // Several times as much as it may keep.
    while stored < 4 * MOST && start.elapsed() < LIMIT {
        let taken = watch.next("taken", LIMIT)?.context("the watch ended")?;
        stored += taken["file_bytes"].as_u64().unwrap_or(0);
        most = most.max(size(ksnap.store())?);
        looks += 1;
    }
    watch.interrupt(LIMIT)?.none_failed()?;
    // What is written while a removal is under way comes on top, and how long that takes is up to the
    // machine; but without any removal there would be four times as much.
    ensure!(
        most <= 2 * MOST,
        "{most} bytes in {looks} looks, {stored} stored"
    );
    ensure!(size(ksnap.store())? <= MOST);
    ksnap.ok(&["verify"])?;
    victim.check()?;
    victim.quit()
}

#[test]
fn killed_at_random_moments_while_it_merges_ksnap_leaves_whole_snapshots() -> Result<()> {
    require!(Root, Ksnap);
    let ksnap = Ksnap::new()?;
    let mut victim = Victim::spawn("counter", &["--mib", "8", "--rollbacks"])?;
    let pid = victim.pid().to_string();
    let before = Footprint::of(victim.pid())?;
    ksnap.ok(&["snap", &pid])?;
    ksnap.ok(&["tag", "first"])?;
    let mut rng = Rng::new(77);
    for round in 0..25 {
        let options = ["--every", "5ms", "--keep-last", "2"];
        let mut watch = Watch::start(&ksnap, victim.pid(), &options)?;
        watch.wait_taken(2 + round % 5, LIMIT)?;
        // A removal by request is under way when it dies, or nearly over.
        let mut asked = ksnap.start(&["prune", "--keep-last", "1", "-y"])?;
        std::thread::sleep(Duration::from_micros(rng.word() % 60_000));
        watch.process().signal(Signal::SIGKILL)?;
        asked.finish(LIMIT)?;
        drop(watch);
        let report = ksnap.json(&["verify"])?.remove(0);
        ensure!(report["clean"] == true, "round {round}: {report}");
        ensure!(seqs(&ksnap)?[0] == 1, "round {round}: the tag is gone");
        victim.status()?;
    }
    // A prune of its own, killed as well.
    for round in 0..25 {
        for _ in 0..3 {
            ksnap.ok(&["snap", &pid])?;
        }
        let mut prune = ksnap.start(&["prune", "--keep-last", "1", "-y"])?;
        std::thread::sleep(Duration::from_micros(rng.word() % 40_000));
        let _ = prune.signal(Signal::SIGKILL);
        let _ = prune.finish(LIMIT);
        let report = ksnap.json(&["verify"])?.remove(0);
        ensure!(report["clean"] == true, "round {round}: {report}");
    }
    ksnap.ok(&["prune", "--keep-last", "1", "-y"])?;
    ensure!(seqs(&ksnap)?.len() == 2);
    ksnap.ok(&["rollback", &pid, "first", "-y"])?;
    victim.check()?;
    ksnap.ok(&["verify"])?;
    Footprint::of(victim.pid())?.nothing_left_since(&before)?;
    victim.quit()
}

#[test]
fn small_changes_on_changes_outlive_the_snapshots_between_them() -> Result<()> {
    require!(Root, Ksnap);
    let ksnap = Ksnap::new()?;
    let mut victim = Victim::spawn("counter", &["--mib", "8", "--rollbacks"])?;
    let pid = victim.pid().to_string();
    // Each snapshot changes pages that the one before has changed.
    let options = ["--every", "10ms", "--keep-last", "60", "--mirror", "64M"];
    let mut watch = Watch::start(&ksnap, victim.pid(), &options)?;
    watch.wait_taken(150, LIMIT)?;
    watch.interrupt(LIMIT)?.none_failed()?;
    ensure!(seqs(&ksnap)?.len() == 60);
    // Stretches of several lengths go, so that changes are to versions of which only a pack has any.
    let all = seqs(&ksnap)?;
    for (from, to) in [(3, 5), (12, 22), (30, 31), (40, 58)] {
        let stretch = format!("@{}..@{}", all[from], all[to]);
        ksnap.ok(&["squash", &stretch, "-y"])?;
    }
    ensure!(seqs(&ksnap)?.len() == 60 - 1 - 9 - 17);
    let report = ksnap.json(&["verify"])?.remove(0);
    ensure!(report["clean"] == true, "{report}");
    // Latest first: going back makes the others no younger.
    for seq in seqs(&ksnap)?.iter().rev().step_by(7) {
        ksnap.ok(&["rollback", &pid, &format!("@{seq}"), "-y"])?;
        victim.check()?;
    }
    ksnap.ok(&["prune", "--keep-last", "2", "-y"])?;
    ksnap.ok(&["verify"])?;
    let left = seqs(&ksnap)?;
    ksnap.ok(&["rollback", &pid, &format!("@{}", left[0]), "-y"])?;
    victim.check()?;
    victim.quit()
}

/// `ksnap ARGS` where the store's folder cannot be written.
fn read_only(ksnap: &Ksnap, args: &[&str]) -> Command {
    let script =
        r#"mount --bind "$1" "$1" && mount -o remount,ro,bind "$1" || exit 99; shift; exec "$@""#;
    let mut command = Command::new("unshare");
    let tool = ksnap.command();
    command
        .args(["-m", "sh", "-c", script, "sh"])
        .arg(ksnap.store())
        .arg(tool.get_program())
        .args(tool.get_args())
        .args(args);
    command
}

#[test]
fn a_store_on_a_read_only_file_system_is_read_and_restored_from() -> Result<()> {
    require!(Root, Ksnap, Mount, ChosenIds);
    let ksnap = Ksnap::new()?;
    let mut victim = Victim::spawn("counter", &["--mib", "2"])?;
    let pid = victim.pid().to_string();
    for how in [
        &["snap", &pid][..],
        &["snap", &pid],
        &["snap", &pid, "--kill"],
    ] {
        ksnap.ok(how)?;
    }
    victim.process().wait(LIMIT)?.context("the victim lives")?;
    let core = ksnap.store().with_extension("core");
    let core = core.to_str().context("a path in UTF-8")?;
    for reading in [
        &["log"][..],
        &["show", "latest"],
        &["diff", "latest~", "latest"],
        &["verify"],
        &["tag"],
        &["export", "latest", "--core", core],
    ] {
        let output = read_only(&ksnap, reading).output()?;
        ensure!(output.status.success(), "{reading:?}: {output:?}");
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(!said.contains("Read-only"), "{reading:?}: {output:?}");
    }
    let restore = read_only(&ksnap, &["restore", "latest", "--wait", "--json"]);
    let mut victim = Victim::brought_back(Background::start(restore)?)?;
    victim.check()?;
    for writing in [&["snap", &pid][..], &["tag", "word", "latest"]] {
        let output = read_only(&ksnap, writing).output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(!output.status.success(), "{writing:?}: {output:?}");
        ensure!(
            said.contains("Read-only file system") && said.contains("--store"),
            "{writing:?}: {said}"
        );
    }
    victim.check()?;
    victim.quit()?;
    ensure!(seqs(&ksnap)? == [1, 2, 3]);
    ksnap.ok(&["verify"]).map(drop)
}
