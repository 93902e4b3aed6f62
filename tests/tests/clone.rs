//! `ksnap clone` and `ksnap serve`: processes that move between two machines.

use std::process::Command;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use tests::ksnap::number;
use tests::moving::{Moving, ended, servers_on};
use tests::{Background, Ksnap, Pair, Victim, effort, require};

const LIMIT: Duration = Duration::from_secs(60);
/// What is counted while a server moves.
const COUNTER: &str = "counter";

/// Counts in the server on a machine until the connection breaks. In the end it gives the last number that was
/// acknowledged.
fn count_until_cut(moving: &Moving, machine: usize) -> Result<JoinHandle<i64>> {
    let mut client = moving.client_on(machine)?;
    let first = client.incr(COUNTER)?;
    Ok(std::thread::spawn(move || {
        let mut last = first;
        while let Ok(number) = client.incr(COUNTER) {
            last = number;
            // Somebody else needs the processor too.
            std::thread::sleep(Duration::from_micros(200));
        }
        last
    }))
}

/// What the other tests here rely on.
#[test]
fn the_machines_have_neither_files_in_tmp_nor_process_ids_in_common() -> Result<()> {
    require!(Root, Ksnap, Machines);
    let pair = Pair::new("30s")?;
    let ask = |machine: usize, script: &str| {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        Background::start(pair.machines.on(machine, &command))?
            .finish(LIMIT)?
            .success()
    };
    ask(0, "echo here > /tmp/ksnap-only-here")?;
    ensure!(!std::path::Path::new("/tmp/ksnap-only-here").exists());
    ensure!(ask(1, "cat /tmp/ksnap-only-here || echo nothing")?.trim() == "nothing");
    ensure!(ask(0, "readlink /proc/self/ns/pid")? != ask(1, "readlink /proc/self/ns/pid")?);
    // The first process there is not that of machine 0, in its own /proc neither.
    let own = pair.machines.own_processes(1)?;
    ensure!(own.contains(&1), "{own:?}");
    ensure!(
        ask(
            1,
            "readlink /proc/1/ns/pid /proc/self/ns/pid | uniq | wc -l"
        )?
        .trim()
            == "1"
    );
    Ok(())
}

fn back_and_forth(pair: Pair, moves: usize) -> Result<()> {
    let moving = Moving::on(pair, 200)?;
    let pair = &moving.pair;
    let mut pid = moving.pid();
    for round in 0..moves {
        let (from, to) = (round % 2, (round + 1) % 2);
        let mut before = moving.client_on(from)?;
        before.set(&format!("round{round}"), &round.to_string())?;
        let digest = before.digest()?;
        let counting = count_until_cut(&moving, from)?;
        let done = pair
            .clone(from, &pid.to_string(), &["--move"])
            .with_context(|| format!("move {round}"))?;
        ensure!(
            done["ended"] == true && done["downtime_ns"].as_u64().is_some(),
            "{done}"
        );
        ended(pair, from, pid)?;
        pid = i32::try_from(number(&done["running"]["pid"])?)?;
        let mut after = moving.client_on(to)?;
        let acknowledged = counting.join().map_err(|_| anyhow!("no count"))?;
        let counted = after.get(COUNTER)?.context("the counter is lost")?;
        ensure!(
            counted.parse::<i64>()? >= acknowledged,
            "move {round}: {counted} after {acknowledged} was acknowledged"
        );
        let later = done["rounds"].as_array().context("no rounds")?;
        let written = later[1..].iter().any(|round| round["pages"] != 0);
        ensure!(written, "move {round}: nothing was written meanwhile");
        after.command(&["DEL", COUNTER])?;
        ensure!(after.digest()? == digest, "other data after move {round}");
        for earlier in 0..=round {
            let value = after.get(&format!("round{earlier}"))?;
            ensure!(
                value.as_deref() == Some(earlier.to_string().as_str()),
                "{earlier}: {value:?}"
            );
        }
        ensure!(
            servers_on(pair, from)? == 0 && servers_on(pair, to)? == 1,
            "move {round}"
        );
        // What it came with is in the other store already, or was there before.
        if round > 0 {
            let (pages, sent) = (
                &done["rounds"][0]["pages"],
                &done["rounds"][0]["sent_pages"],
            );
            ensure!(
                number(sent)? * 2 < number(pages)?,
                "{sent} of {pages} pages sent again"
            );
        }
    }
    for machine in [0, 1] {
        pair.tool(machine).ok(&["verify"])?;
    }
    Ok(())
}

#[test]
fn redis_moves_back_and_forth_and_loses_no_key() -> Result<()> {
    require!(Root, Ksnap, Machines, Program("redis-server"));
    back_and_forth(Pair::new("30s")?, effort::times(20))
}

#[test]
fn redis_moves_over_a_bad_cable() -> Result<()> {
    require!(Root, Ksnap, Machines, Netem, Program("redis-server"));
    let pair = Pair::new("30s")?;
    pair.machines
        .disturb(&["delay", "10ms", "3ms", "loss", "1%"])?;
    back_and_forth(pair, effort::times(4))
}

#[test]
fn what_cannot_be_cloned_is_refused_before_anybody_is_connected_to() -> Result<()> {
    require!(Root, Ksnap);
    let ksnap = Ksnap::new()?;
    let config = ksnap.store().with_file_name("config");
    let ksnap = ksnap.with_variable("KSNAP_CONFIG", config);
    let victim = Victim::spawn("tree", &[])?;
    let taken = ksnap.run(&["snap", &victim.pid().to_string(), "--tree"])?;
    ensure!(matches!(taken.code()?, 0 | 3), "{taken:?}");
    let tree = ksnap.run(&["clone", "latest", "nowhere.invalid"])?;
    ensure!(
        tree.code()? == 2 && tree.stderr.contains("is a tree of processes"),
        "{}",
        tree.stderr
    );
    // Larger than any id that a process can have.
    let ended = ksnap.run(&["clone", "1234567890", "nowhere.invalid"])?;
    ensure!(
        ended.code()? == 14 && ended.stderr.contains("no process has this id"),
        "{}",
        ended.stderr
    );
    victim.quit()
}

#[test]
fn a_copy_runs_on_both_machines() -> Result<()> {
    require!(Root, Ksnap, Machines, Program("redis-server"));
    let mut moving = Moving::start("30s", 100)?;
    let pid = moving.pid().to_string();
    let done = moving.pair.clone(0, &pid, &["--pids", "namespace"])?;
    ensure!(done["ended"] == false, "{done}");
    let mut there = moving.client_on(1)?;
    ensure!(there.digest()? == moving.digest, "other data there");
    moving.is_unharmed()?;
    there.set("where", "there")?;
    moving.client.set("where", "here")?;
    ensure!(
        there.get("where")?.as_deref() == Some("there"),
        "not a copy"
    );
    Ok(())
}

#[test]
fn a_watched_process_moves_through_its_watcher() -> Result<()> {
    require!(Root, Ksnap, Machines, Program("redis-server"));
    let moving = Moving::start("30s", 100)?;
    let pid = moving.pid().to_string();
    let watch = ["watch", &pid, "--every", "200ms", "--json"];
    let mut watcher = moving.pair.start(0, &watch)?;
    while !watcher
        .line(LIMIT)?
        .context("it watches nothing")?
        .contains("\"taken\"")
    {}
    moving.pair.clone(0, &pid, &["--move"])?;
    moving.has_moved()?;
    ensure!(
        watcher.wait(LIMIT)?.is_some(),
        "the watcher goes on without a process"
    );
    Ok(())
}

#[test]
fn a_stored_snapshot_is_brought_back_on_the_other_machine() -> Result<()> {
    require!(Root, Ksnap, Machines, Program("redis-server"));
    let mut moving = Moving::start("30s", 100)?;
    let pid = moving.pid().to_string();
    moving.pair.run(0, &["snap", &pid])?;
    moving.client.set("after", "the first")?;
    moving.pair.run(0, &["snap", &pid, "--kill"])?;
    ensure!(moving.server.wait(LIMIT)?.is_some(), "it was to be ended");
    // Not the last one: what it holds is what it was.
    let pair = &moving.pair;
    pair.clone(0, "latest~", &[])?;
    moving.has_moved()?;
    ensure!(
        pair.run(0, &["clone", "latest", &pair.target(1), "--move"])?
            .code()?
            == 2,
        "--move"
    );
    Ok(())
}

#[test]
fn who_does_not_know_the_other_is_told_what_to_do_and_nothing_happens() -> Result<()> {
    require!(Root, Ksnap, Machines, Program("redis-server"));
    let mut moving = Moving::start("30s", 0)?;
    let pid = moving.pid().to_string();
    let pair = &moving.pair;
    let target = pair.target(1);
    pair.run(0, &["key", "forget", tests::netns::ADDRESSES[1]])?
        .success()?;
    let nobody = pair.run(0, &["clone", &pid, &target])?;
    ensure!(
        nobody.code()? == 2 && nobody.stderr.contains("key trust"),
        "{}",
        nobody.stderr
    );
    let other = pair.run(
        0,
        &["key", "trust", &format!("ed25519:{}", "5a".repeat(32))],
    )?;
    other.success()?;
    let stranger = pair.run(0, &["clone", &pid, &target])?;
    ensure!(
        stranger.code()? == 13 && stranger.stderr.contains("key show"),
        "{}",
        stranger.stderr
    );
    ensure!(
        pair.tool(1).json(&["log"])?.is_empty(),
        "something was stored"
    );
    moving.is_unharmed()
}
