//! `ksnap clone` that fails, at each moment: the process goes on here, and nothing half is there.

use std::os::unix::process::ExitStatusExt;

use anyhow::{Context, Result, ensure};
use tests::ksnap::number;
use tests::moving::Moving;
use tests::{Breakdown, Footprint, Relay, require};

/// The connection breaks down in the middle: the process runs on, the other machine has nothing half, and the next
/// attempt sends only what is missing.
fn cut(how: Breakdown) -> Result<()> {
    require!(Root, Ksnap, Machines, Program("redis-server"));
    // Silence is waited for so long. Nothing else here is to take as long as that.
    let patience = match how {
        Breakdown::HangUp => "60s",
        Breakdown::Silence => "15s",
    };
    let mut moving = Moving::start(patience, 2000)?;
    let pid = moving.pid().to_string();
    let footprint = Footprint::of(moving.pid())?;
    let pair = &mut moving.pair;
    let relay = Relay::start(&pair.machines, 0, &pair.target(1), 3 << 20, how)?;
    let options = ["--move", "--timeout", patience];
    let address = relay.address();
    let args = [&["clone", &pid, &address, "--json"][..], &options].concat();
    let failed = pair.run(0, &args)?;
    ensure!(
        relay.is_broken() && failed.code()? == 1,
        "{}",
        failed.stderr
    );
    ensure!(
        failed.stderr.contains("goes on with it"),
        "{}",
        failed.stderr
    );
    // There, nothing has begun.
    pair.event(1, "failed")?;
    ensure!(pair.tool(1).json(&["log"])?.is_empty(), "half a snapshot");
    moving.is_not_there()?;
    // Here all is as it was.
    moving.is_unharmed()?;
    Footprint::of(moving.pid())?.nothing_left_since(&footprint)?;

    relay.mend();
    let pair = &moving.pair;
    let done = pair.clone_to(0, &pid, &relay.address(), &options)?;
    let (pages, sent) = (
        number(&done["rounds"][0]["pages"])?,
        number(&done["rounds"][0]["sent_pages"])?,
    );
    ensure!(
        sent + 500 < pages,
        "{sent} of {pages} pages sent: nothing was kept"
    );
    moving.has_moved()?;
    let kept = std::fs::read_dir(pair.tool(1).store().join("received"))?.count();
    ensure!(kept == 0, "{kept} files of a transfer that is over");
    Ok(())
}

#[test]
fn a_connection_that_is_cut_leaves_the_process_running_and_the_next_attempt_goes_on() -> Result<()>
{
    cut(Breakdown::HangUp)
}

#[test]
fn a_connection_that_falls_silent_leaves_the_process_running_and_the_next_attempt_goes_on()
-> Result<()> {
    cut(Breakdown::Silence)
}

/// A move that is killed at this point.
fn killed_at(moving: &Moving, point: &str) -> Result<()> {
    let pair = &moving.pair;
    let args = [
        "clone",
        &moving.pid().to_string(),
        &pair.target(1),
        "--move",
    ];
    let clone = pair.run_until(0, point, &args)?;
    ensure!(
        clone.status.signal() == Some(libc::SIGKILL),
        "it was not killed: {clone:?}"
    );
    Ok(())
}

#[test]
fn a_clone_that_is_killed_while_the_process_is_stopped_leaves_it_running() -> Result<()> {
    require!(Root, Ksnap, Machines, Program("redis-server"));
    let mut moving = Moving::start("30s", 100)?;
    killed_at(&moving, "clone-held")?;
    moving.is_unharmed()?;
    moving.is_not_there()?;
    moving.pair.tool(0).ok(&["verify"]).map(drop)
}

/// Killed when the process runs there and was to be ended here, it leaves both.
#[test]
fn a_clone_that_is_killed_when_the_process_runs_there_leaves_both_running() -> Result<()> {
    require!(Root, Ksnap, Machines, Program("redis-server"));
    let mut moving = Moving::start("30s", 100)?;
    killed_at(&moving, "clone-running")?;
    let running = moving.pair.event(1, "running")?;
    let failed = moving.pair.event(1, "failed")?;
    let why = failed["why"].as_str().context("no reason")?;
    ensure!(why.contains("is lost"), "{why}");
    moving.is_unharmed()?;
    let mut there = moving.client_on(1)?;
    ensure!(there.digest()? == moving.digest, "other data there");
    there.set("where", "there")?;
    ensure!(
        moving.client.get("where")?.is_none(),
        "one process, not two"
    );
    let pids = moving.pair.machines.own_processes(1)?;
    let runs = i32::try_from(number(&running["pid"])?)?;
    ensure!(pids.contains(&runs), "{running} {pids:?}");
    Ok(())
}

/// What became of it there is not known here: so it is not ended here, and the error says what to do.
#[test]
fn a_server_that_is_killed_when_the_process_runs_leaves_the_one_here_and_the_error_says_so()
-> Result<()> {
    require!(Root, Ksnap, Machines, Program("redis-server"));
    let mut moving = Moving::start("30s", 100)?;
    let pid = moving.pid().to_string();
    let pair = &mut moving.pair;
    pair.kill_server(1);
    pair.serve_until(1, "serve-running")?;
    let failed = pair.run(0, &["clone", &pid, &pair.target(1), "--move"])?;
    ensure!(
        failed.code()? == 1
            && failed.stderr.contains("was not ended")
            && failed.stderr.contains("look there"),
        "{}",
        failed.stderr
    );
    moving.is_unharmed()?;
    moving.client.set("where", "here")
}

#[test]
fn a_process_that_would_stand_still_for_too_long_goes_on_here() -> Result<()> {
    require!(Root, Ksnap, Machines, Program("redis-server"));
    let mut moving = Moving::start("30s", 100)?;
    let what = moving.pid().to_string();
    let pair = &moving.pair;
    let args = ["clone", &what, &pair.target(1), "--move", "--max-stop"];
    let failed = pair.run(0, &[&args[..], &["1ms"]].concat())?;
    ensure!(
        failed.code()? == 1
            && failed.stderr.contains("stored all of the stopped process")
            && failed.stderr.contains("--max-stop")
            && failed.stderr.contains("cloning again"),
        "{}",
        failed.stderr
    );
    moving.is_unharmed()?;
    moving.is_not_there()?;
    let options = ["--move", "--max-stop", "30s"];
    moving.pair.clone(0, &what, &options)?;
    moving.has_moved()
}

/// Wherever the other machine's server dies, the process goes on here, there is nothing half there, and the next attempt
/// works.
#[test]
fn a_server_that_is_killed_leaves_the_process_running_and_nothing_half() -> Result<()> {
    require!(Root, Ksnap, Machines, Program("redis-server"));
    let mut moving = Moving::start("30s", 500)?;
    let pid = moving.pid().to_string();
    for (point, snapshots) in [("serve-publishing", false), ("serve-restoring", true)] {
        let pair = &mut moving.pair;
        pair.kill_server(1);
        pair.serve_until(1, point)?;
        let failed = pair.run(0, &["clone", &pid, &pair.target(1), "--move"])?;
        ensure!(failed.code()? == 1, "{point}: {}", failed.stderr);
        let stored = pair.tool(1).json(&["log"])?;
        ensure!(stored.is_empty() != snapshots, "{point}");
        moving.is_unharmed().context(point)?;
        moving.is_not_there().context(point)?;
    }
    let pair = &mut moving.pair;
    pair.kill_server(1);
    pair.serve(1, "30s")?;
    pair.clone(0, &pid, &["--move"])?;
    moving.has_moved()
}
