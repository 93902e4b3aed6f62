//! `ksnap rollback` where it cannot be done: refused with the reason, and the process is as it was.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tests::{Footprint, Ksnap, Victim, require};

const LIMIT: Duration = Duration::from_secs(60);
const NOBODY: u32 = 65534;

/// Ids are given out by whoever has the privilege. Without it that is known beforehand, and nothing is touched.
#[test]
fn threads_that_an_ordinary_user_cannot_make_again_are_refused_before_anything_is_touched()
-> Result<()> {
    require!(Root, Ksnap, OtherUsers);
    let victim = Victim::spawn_as(NOBODY, "threads", &["--rollbacks"])?;
    threads_cannot_be_made_again(Ksnap::as_user(NOBODY)?, victim)
}

/// All capabilities in a user namespace are none over the ids of a PID namespace that was there before.
#[test]
fn threads_that_root_of_a_user_namespace_cannot_make_again_are_refused() -> Result<()> {
    require!(Root, Ksnap, UserNamespace);
    let victim = Victim::spawn_in_user_namespace("threads", &["--rollbacks"])?;
    threads_cannot_be_made_again(Ksnap::in_user_namespace_of(victim.pid())?, victim)
}

fn threads_cannot_be_made_again(ksnap: Ksnap, mut victim: Victim) -> Result<()> {
    let pid = victim.pid().to_string();
    let end = Instant::now() + LIMIT;
    let id = loop {
        ensure!(Instant::now() < end, "no snapshot has a thread that ends");
        let (id, _, high) = ksnap.snap_between(&mut victim)?;
        victim.wait_beyond(high + 50, LIMIT)?;
        let shown = ksnap.json(&["show", &id])?.remove(0);
        let threads = shown["threads"].as_array().context("no threads")?;
        let has_ended = |thread: &serde_json::Value| {
            let tid = &thread["tid"];
            !std::path::Path::new(&format!("/proc/{pid}/task/{tid}")).exists()
        };
        if threads.iter().any(has_ended) {
            break id;
        }
    };
    let before = Footprint::of(victim.pid())?;
    let then = victim.status()?.counter;
    let ended = ksnap.run(&["rollback", &pid, &id, "-y"])?;
    ensure!(ended.code()? == 1, "{ended:?}");
    ensure!(ended.stderr.contains("cannot be made again"), "{ended:?}");
    ensure!(ended.stderr.contains("CAP_CHECKPOINT_RESTORE"), "{ended:?}");
    Footprint::of(victim.pid())?.nothing_left_since(&before)?;
    victim.wait_beyond(then + 10, LIMIT)?;
    victim.check()?;
    let told = ksnap.run(&["doctor", "--json"])?.stdout;
    let told: serde_json::Value = serde_json::from_str(&told)?;
    let checks = told["checks"].as_array().context("no checks")?;
    let ids = checks.iter().find(|check| check["name"] == "thread_ids");
    ensure!(
        ids.is_some_and(|check| check["outcome"] == "unsupported"),
        "{ids:?}"
    );
    victim.quit()
}

#[test]
fn after_an_exec_a_rollback_is_refused_and_changes_nothing() -> Result<()> {
    require!(Root, Ksnap);
    let ksnap = Ksnap::new()?;
    let mut victim = Victim::spawn("exec", &["--every-ms", "300"])?;
    let pid = victim.pid();
    let (first, _, high) = ksnap.snap_between(&mut victim)?;
    let lives = |victim: &mut Victim| -> Result<Option<u64>> {
        Ok(victim.status()?.reply["lives"].as_u64())
    };
    let now = lives(&mut victim)?;
    let end = Instant::now() + LIMIT;
    while lives(&mut victim)? <= now {
        ensure!(Instant::now() < end, "no exec");
        std::thread::sleep(Duration::from_millis(20));
    }
    let before = Footprint::of(pid)?;
    let ended = ksnap.run(&["rollback", &pid.to_string(), &first, "-y"])?;
    ensure!(ended.code()? == 1, "{ended:?}");
    ensure!(
        ended.stderr.contains("exec") || ended.stderr.contains("program"),
        "{ended:?}"
    );
    Footprint::of(pid)?.nothing_left_since(&before)?;
    let then = victim.check()?.counter;
    ensure!(then > high, "the count went back to {then}");
    victim.wait_beyond(then + 1, LIMIT)?;
    victim.quit()
}

#[test]
fn a_snapshot_of_another_process_is_refused_and_changes_nothing() -> Result<()> {
    require!(Root, Ksnap);
    let ksnap = Ksnap::new()?;
    let slow = ["--mib", "8", "--rate", "250", "--rollbacks"];
    let mut one = Victim::spawn("counter", &slow)?;
    let mut other = Victim::spawn("counter", &slow)?;
    let (id, ..) = ksnap.snap_between(&mut one)?;
    ksnap.snap_between(&mut other)?;
    let before = Footprint::of(other.pid())?;
    let then = other.status()?.counter;
    let ended = ksnap.run(&["rollback", &other.pid().to_string(), &id, "-y"])?;
    ensure!(ended.code()? == 1, "{ended:?}");
    ensure!(ended.stderr.contains("not found"), "{ended:?}");
    Footprint::of(other.pid())?.nothing_left_since(&before)?;
    ensure!(other.check()?.counter >= then, "it went back");
    one.quit()?;
    other.quit()
}
