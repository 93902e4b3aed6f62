//! A store in memory: it outlives ksnap and the process, stays within its size, and gets to the disk whole.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;
use tests::victim::rng::Rng;
use tests::{Footprint, Ksnap, Victim, Watch, require};

const LIMIT: Duration = Duration::from_secs(60);

/// A place for a store in memory of a test's own. What is mounted there is unmounted in the end.
struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("ksnap-ram-").tempdir()?;
        Ok(Self { folder })
    }

    fn dir(&self) -> PathBuf {
        self.folder.path().join("ram")
    }

    /// A ksnap that has its store in memory here.
    fn ksnap(&self) -> Result<Ksnap> {
        Ok(Ksnap::new()?.with_variable("KSNAP_RAM", self.dir()))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.dir()).status();
    }
}

fn mounted_size(dir: &Path) -> Result<u64> {
    let stat = nix::sys::statvfs::statvfs(dir)?;
    Ok(stat.blocks() * stat.fragment_size())
}

fn ids(ksnap: &Ksnap, options: &[&str]) -> Result<Vec<String>> {
    let log = ksnap.json(&[&["log"], options].concat())?;
    log.iter()
        .map(|entry| Ok(entry["id"].as_str().context("no id")?.to_owned()))
        .collect()
}

fn one(mut all: Vec<Value>) -> Value {
    all.remove(0)
}

#[test]
fn a_store_in_memory_outlives_ksnap_and_the_process_and_comes_back_from_the_disk() -> Result<()> {
    require!(Root, Ksnap, Mount);
    let place = Place::new()?;
    let ksnap = place.ksnap()?;
    let mut victim = Victim::spawn("counter", &["--mib", "8", "--rollbacks"])?;
    let before = Footprint::of(victim.pid())?;
    let pid = victim.pid().to_string();
    let options = ["--ram=200M", "--every", "20ms", "--audit"];
    let mut watch = Watch::start(&ksnap, victim.pid(), &options)?;
    watch.wait_taken(10, LIMIT)?;
    ensure!(mounted_size(&place.dir())? == 200 << 20);
    watch.process().signal(Signal::SIGKILL)?;
    watch.process().finish(LIMIT)?;
    drop(watch);
    // Adopted: the same session goes on, with the size that it has.
    let taken = ids(&ksnap, &["--ram"])?;
    let mut watch = Watch::start(
        &ksnap,
        victim.pid(),
        &["--ram", "--every", "20ms", "--audit"],
    )?;
    watch.wait_taken(5, LIMIT)?;
    let watched = watch.interrupt(LIMIT)?;
    watched.none_failed()?;
    ensure!(mounted_size(&place.dir())? == 200 << 20);
    let all = ids(&ksnap, &["--ram"])?;
    ensure!(
        all.starts_with(&taken) && all.len() >= taken.len() + 5,
        "{taken:?} {all:?}"
    );
    let sessions: BTreeSet<String> = ksnap
        .json(&["log", "--ram"])?
        .iter()
        .map(|entry| entry["session"].to_string())
        .collect();
    ensure!(sessions.len() == 1, "{sessions:?}");
    ksnap.ok(&["verify", "--ram"])?;
    ksnap.ok(&["rollback", &pid, &taken[5], "--ram", "-y"])?;
    victim.check()?;
    watched.left_nothing(&before)?;
    // Nothing of it is on the disk: not even a store.
    ensure!(!ksnap.store().exists(), "something was written to the disk");
    let last = one(ksnap.json(&["snap", &pid, "--ram", "--kill"])?);
    drop(victim);
    ensure!(ids(&ksnap, &["--ram"])?.len() == all.len() + 1);
    let described = one(ksnap.json(&["show", "--store", "--ram"])?);
    ensure!(described["in_memory"] == true, "{described}");
    ensure!(
        described["flush"]["snapshots"] == all.len() + 1,
        "{described}"
    );
    ensure!(
        described["flush"]["expected_ns"].as_u64() > Some(0),
        "{described}"
    );
    let plan = one(ksnap.json(&["flush", "--dry-run"])?);
    ensure!(
        plan["snapshots"] == all.len() + 1 && !ksnap.store().exists(),
        "{plan}"
    );
    let done = one(ksnap.json(&["flush"])?);
    ensure!(done["snapshots"] == all.len() + 1, "{done}");
    ensure!(
        done["bytes"].as_u64() <= plan["bytes"].as_u64(),
        "{done} {plan}"
    );
    ensure!(ids(&ksnap, &[])? == ids(&ksnap, &["--ram"])?);
    ksnap.ok(&["verify"])?;
    ensure!(one(ksnap.json(&["flush"])?)["snapshots"] == 0);
    let id = last["id"].as_str().context("no id")?;
    ksnap.ok(&["diff", &taken[0], id])?;
    Ok(())
}

#[test]
fn a_small_store_in_memory_stays_small_and_the_disk_gets_what_it_loses_later() -> Result<()> {
    require!(Root, Ksnap, Mount);
    let place = Place::new()?;
    let ksnap = place.ksnap()?;
    let mut victim = Victim::spawn("counter", &["--mib", "8"])?;
    let options = ["--ram=64M", "--every", "10ms"];
    let mut watch = Watch::start(&ksnap, victim.pid(), &options)?;
    watch.wait_taken(1, LIMIT)?;
    let mut stored = 0;
    let mut flushed = BTreeSet::new();
    let (mut rounds, mut before) = (0, 0);
    while stored < 256 << 20 {
        let taken = watch
            .next("taken", LIMIT)?
            .context("no snapshot within a minute")?;
        stored += taken["file_bytes"].as_u64().unwrap_or(0);
        rounds += 1;
        // The slower the machine, the larger the snapshots: before any that memory has no room for is gone.
        if rounds % 40 == 0 || stored - before > 32 << 20 {
            before = stored;
            // While it is written and pruned.
            ksnap.ok(&["flush"])?;
            let report = one(ksnap.json(&["verify"])?);
            ensure!(report["clean"] == true, "{report}");
            let there: BTreeSet<String> = ids(&ksnap, &[])?.into_iter().collect();
            ensure!(there.is_superset(&flushed), "the disk lost some");
            flushed = there;
        }
    }
    let watched = watch.interrupt(LIMIT)?;
    ensure!(mounted_size(&place.dir())? == 64 << 20);
    ksnap.ok(&["verify", "--ram"])?;
    let left: BTreeSet<String> = ids(&ksnap, &["--ram"])?.into_iter().collect();
    ensure!(
        left.len() < watched.taken.len() / 2,
        "{} of {}",
        left.len(),
        watched.taken.len()
    );
    ksnap.ok(&["flush"])?;
    let there: BTreeSet<String> = ids(&ksnap, &[])?.into_iter().collect();
    ensure!(there.is_superset(&left) && there.is_superset(&flushed));
    ensure!(there.len() > left.len());
    ksnap.ok(&["verify"])?;
    victim.check()?;
    victim.quit()
}

#[test]
fn a_flush_that_is_killed_at_random_moments_leaves_whole_snapshots_and_goes_on() -> Result<()> {
    require!(Root, Ksnap, Mount);
    let place = Place::new()?;
    let ksnap = place.ksnap()?;
    let mut victim = Victim::spawn("counter", &["--mib", "8", "--rollbacks"])?;
    let pid = victim.pid().to_string();
    let options = ["--ram=512M", "--every", "5ms", "--keep-last", "300"];
    let mut watch = Watch::start(&ksnap, victim.pid(), &options)?;
    watch.wait_taken(350, 4 * LIMIT)?;
    ksnap.ok(&["tag", "early", "latest~9", "--ram"])?;
    ksnap.ok(&["rollback", &pid, "latest~5", "--ram", "-y"])?;
    let so_far = watch.ids()?.len();
    watch.wait_taken(so_far + 20, LIMIT)?;
    watch.interrupt(LIMIT)?.none_failed()?;
    let all: BTreeSet<String> = ids(&ksnap, &["--ram"])?.into_iter().collect();
    let mut took = one(ksnap.json(&["flush"])?)["took_ns"]
        .as_u64()
        .context("no time")?;
    std::fs::remove_dir_all(ksnap.store())?;
    let mut rng = Rng::new(4);
    let (mut kills, mut partly) = (0, 0);
    for round in 0..40 {
        let mut flush = ksnap.start(&["flush"])?;
        flush.close_stdin();
        // The speed is measured before anything is written.
        let end = std::time::Instant::now() + LIMIT;
        while !flush.stderr().contains(" about ")
            && flush.running()?
            && std::time::Instant::now() < end
        {
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_nanos(rng.word() % took));
        flush.signal(Signal::SIGKILL)?;
        let was_killed = flush.finish(LIMIT)?.code().is_err();
        kills += u32::from(was_killed);
        // One that is killed before it has made the folder leaves nothing that could be verified.
        let there: BTreeSet<String> = if ksnap.store().exists() {
            let report = one(ksnap.json(&["verify"])?);
            ensure!(report["clean"] == true, "round {round}: {report}");
            ids(&ksnap, &[])?.into_iter().collect()
        } else {
            ensure!(was_killed, "round {round}: flushed nothing");
            BTreeSet::new()
        };
        ensure!(there.is_subset(&all), "round {round}");
        // Disks are slower at one time than at another, and one that goes on has less left to do.
        took = match (was_killed, there.is_empty()) {
            (false, _) => (took / 2).max(1_000_000),
            (true, true) => took * 3 / 2,
            (true, false) => took,
        };
        partly += u32::from(!there.is_empty() && there.len() < all.len());
        if there.len() == all.len() {
            std::fs::remove_dir_all(ksnap.store())?;
        }
    }
    ensure!(
        kills > 10 && partly > 3,
        "{kills} killed, {partly} in the middle"
    );
    ksnap.ok(&["flush"])?;
    let there: BTreeSet<String> = ids(&ksnap, &[])?.into_iter().collect();
    ensure!(there == all);
    let tags = ksnap.json(&["tag"])?;
    ensure!(tags[0].to_string().contains("early"), "{tags:?}");
    // From the copy, without a watcher; what comes from memory later finds its number free.
    ksnap.ok(&["rollback", &pid, "early", "-y"])?;
    victim.check()?;
    ksnap.ok(&["snap", &pid, "--audit"])?;
    ksnap.ok(&["snap", &pid, "--ram", "--audit"])?;
    ksnap.ok(&["flush"])?;
    ksnap.ok(&["verify"])?;
    ensure!(ids(&ksnap, &[])?.len() == all.len() + 2);
    victim.check()?;
    victim.quit()
}

#[test]
fn a_watch_in_memory_flushes_when_it_is_told_to_end_or_the_power_fails() -> Result<()> {
    require!(Root, Ksnap, Mount);
    for signal in [Signal::SIGTERM, Signal::SIGPWR] {
        let place = Place::new()?;
        let ksnap = place.ksnap()?;
        let mut victim = Victim::spawn("counter", &["--mib", "8"])?;
        let before = Footprint::of(victim.pid())?;
        let options = ["--ram=128M", "--every", "20ms"];
        let mut watch = Watch::start(&ksnap, victim.pid(), &options)?;
        watch.wait_taken(5, LIMIT)?;
        ensure!(!ksnap.store().exists());
        watch.process().signal(signal)?;
        let ended = watch.process().finish(LIMIT)?;
        ensure!(ended.code()? == 130, "{ended:?}");
        ensure!(ended.stderr.contains("flushed"), "{ended:?}");
        let there = ids(&ksnap, &[])?;
        ensure!(there.len() >= 5 && there == ids(&ksnap, &["--ram"])?);
        ksnap.ok(&["verify"])?;
        Footprint::of(victim.pid())?.nothing_left_since(&before)?;
        victim.check()?;
        victim.quit()?;
    }
    Ok(())
}

#[test]
fn a_command_under_snapshots_in_memory_goes_on_when_ksnap_has_flushed() -> Result<()> {
    require!(Root, Ksnap, Mount);
    let place = Place::new()?;
    let ksnap = place.ksnap()?;
    // Until its input is closed.
    let mut run = ksnap.start(&["run", "--ram=64M", "--every", "50ms", "--", "cat"])?;
    let end = std::time::Instant::now() + LIMIT;
    while ids(&ksnap, &["--ram"]).map_or(0, |ids| ids.len()) < 3 {
        ensure!(
            std::time::Instant::now() < end && run.running()?,
            "{}",
            run.stderr()
        );
        std::thread::sleep(Duration::from_millis(50));
    }
    run.signal(Signal::SIGTERM)?;
    while !ksnap.store().join("ksnap-store").exists() {
        ensure!(
            std::time::Instant::now() < end && run.running()?,
            "{}",
            run.stderr()
        );
        std::thread::sleep(Duration::from_millis(20));
    }
    // Once it is whole: the watching is over then.
    while !run.stderr().contains("flushed") {
        ensure!(
            std::time::Instant::now() < end && run.running()?,
            "{}",
            run.stderr()
        );
        std::thread::sleep(Duration::from_millis(20));
    }
    run.close_stdin();
    ensure!(run.finish(LIMIT)?.code()? == 0);
    ensure!(ids(&ksnap, &[])? == ids(&ksnap, &["--ram"])?);
    ksnap.ok(&["verify"]).map(drop)
}

#[test]
fn what_other_processes_left_makes_room_for_a_new_one() -> Result<()> {
    require!(Root, Ksnap, Mount);
    let place = Place::new()?;
    let ksnap = place.ksnap()?;
    for round in 0..6 {
        let victim = Victim::spawn("counter", &["--mib", "12"])?;
        let mut watch = Watch::start(&ksnap, victim.pid(), &["--ram=64M", "--every", "10ms"])?;
        watch.wait_taken(12, LIMIT)?;
        let watched = watch.interrupt(LIMIT)?;
        watched
            .none_failed()
            .with_context(|| format!("round {round}"))?;
        victim.quit()?;
    }
    ksnap.ok(&["verify", "--ram"])?;
    ensure!(mounted_size(&place.dir())? == 64 << 20);
    Ok(())
}

#[test]
fn what_is_cloned_from_and_to_memory_is_put_where_room_was_made_for_it() -> Result<()> {
    require!(Root, Ksnap, Mount);
    let (here, there) = (Place::new()?, Place::new()?);
    let with_keys = |place: &Place| -> Result<Ksnap> {
        let ksnap = place.ksnap()?;
        let config = ksnap.store().with_file_name("config");
        Ok(ksnap.with_variable("KSNAP_CONFIG", config))
    };
    let (source, target) = (with_keys(&here)?, with_keys(&there)?);
    for (one, other) in [(&source, &target), (&target, &source)] {
        let key = one.ok(&["key", "show"])?;
        other.ok(&["key", "trust", key.trim()])?;
    }
    let mut server = target.start(&["serve", "--listen", "127.0.0.1:0", "--json", "--ram=64M"])?;
    let line = server.line(LIMIT)?.context("the server says nothing")?;
    let said: Value = serde_json::from_str(&line)?;
    let address = said["address"].as_str().context("no address")?;
    ensure!(mounted_size(&there.dir())? == 64 << 20);
    let victim = Victim::spawn("counter", &["--mib", "2"])?;
    let pid = victim.pid().to_string();
    let done = source.run(&["clone", &pid, address, "--no-restore", "--ram=80M"])?;
    ensure!(matches!(done.code()?, 0 | 3), "{done:?}");
    ensure!(mounted_size(&here.dir())? == 80 << 20);
    for ksnap in [&source, &target] {
        ensure!(ids(ksnap, &["--ram"])?.len() == 1);
        ensure!(!ksnap.store().exists(), "something is on the disk");
    }
    victim.quit()
}

#[test]
fn a_folder_that_is_not_in_memory_is_no_store_in_memory() -> Result<()> {
    require!(Root, Ksnap, Mount);
    let place = Place::new()?;
    let ksnap = Ksnap::new()?.with_variable("KSNAP_RAM", PathBuf::from("/proc"));
    let victim = Victim::spawn("counter", &["--mib", "2"])?;
    let pid = victim.pid().to_string();
    let refused = ksnap.run(&["snap", &pid, "--ram"])?;
    ensure!(refused.code()? == 2, "{refused:?}");
    ensure!(refused.stderr.contains("KSNAP_RAM"), "{refused:?}");
    // Nothing to flush, and no place that it could come from.
    let ksnap = place.ksnap()?;
    let refused = ksnap.run(&["flush"])?;
    ensure!(refused.code()? == 10, "{refused:?}");
    victim.quit()
}
