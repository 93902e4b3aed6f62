//! `ksnap clone --lazy`: a process that runs on another machine before its memory is there.

use std::os::unix::process::ExitStatusExt;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tests::ksnap::number;
use tests::moving::{Moving, servers_on};
use tests::resp::{Reply, Resp};
use tests::{Breakdown, Footprint, Relay, require};

const LIMIT: Duration = Duration::from_secs(60);
/// Values of 4 KiB that the server has.
const VALUES: u32 = 4000;
/// Bytes in a second on the way there: all of them take seconds.
const RATE: u64 = 5 << 20;
/// Most of them, and more than what comes before the first instruction.
const MOST: u64 = 12 << 20;

/// A server, and a narrow way to the other machine, which breaks down after so many bytes.
fn narrow(timeout: &str, bytes: u64, how: Breakdown) -> Result<(Moving, Relay)> {
    let moving = Moving::start(timeout, VALUES)?;
    let pair = &moving.pair;
    let relay = Relay::start(&pair.machines, 0, &pair.target(1), bytes, how)?;
    relay.narrow(RATE);
    Ok((moving, relay))
}

/// The same, and it does not break down.
fn slow() -> Result<(Moving, Relay)> {
    narrow("60s", u64::MAX, Breakdown::HangUp)
}

/// What was fetched behind the first instruction; most of it was, of what there was.
fn fetched_behind(done: &Value) -> Result<u64> {
    let fetched = &done["fetched"];
    let (pages, behind) = (number(&fetched["pages"])?, number(&fetched["behind"])?);
    ensure!(
        behind > u64::from(VALUES) / 2 && behind < pages,
        "{behind} of {pages} pages came behind the first instruction"
    );
    ensure!(fetched["target_id"].is_string(), "it is not stored: {done}");
    Ok(behind)
}

/// What the server says of itself in one line.
fn info(client: &mut Resp, section: &str, key: &str) -> Result<String> {
    let Reply::Bulk(text) = client.command(&["INFO", section])? else {
        anyhow::bail!("no information");
    };
    let text = String::from_utf8(text)?;
    let line = text.lines().find_map(|line| line.strip_prefix(key));
    Ok(line.context("not told")?.trim_start_matches(':').to_owned())
}

#[test]
fn a_server_answers_on_the_other_machine_before_its_memory_is_there() -> Result<()> {
    require!(Root, Ksnap, Machines, Program("redis-server"));
    let (mut moving, relay) = slow()?;
    let pid = moving.pid().to_string();
    let target = relay.address();
    let args = ["clone", &pid, &target, "--move", "--lazy", "--json"];
    let mut clone = moving.pair.start(0, &args)?;
    let running = moving.pair.event(1, "running")?;
    ensure!(running["id"].is_null(), "it is stored already: {running}");
    let mut there = moving.client_on(1)?;
    // One of the last that would come in order.
    let key = format!("filling{}", VALUES - 2);
    let value = there.get(&key)?.context("a key is lost")?;
    ensure!(value.len() == 4096, "{} bytes", value.len());
    there.set("written", "meanwhile")?;
    ensure!(
        clone.running()? && servers_on(&moving.pair, 0)? == 1,
        "all of it had come already"
    );
    // A child that reads all of it, also what has not come to its parent.
    there.command(&["BGSAVE"])?;
    let done = clone.finish(LIMIT)?;
    ensure!(matches!(done.code()?, 0 | 3), "{}", done.stderr);
    let done: Value = serde_json::from_str(&done.stdout)?;
    ensure!(done["ended"] == true, "{done}");
    fetched_behind(&done)?;
    let (down, took) = (
        number(&done["downtime_ns"])?,
        number(&done["fetched"]["took_ns"])?,
    );
    ensure!(down < took, "down for {down} ns of {took} ns");

    let end = Instant::now() + LIMIT;
    while info(&mut there, "persistence", "rdb_bgsave_in_progress")? != "0" {
        ensure!(Instant::now() < end, "the child does not get on");
        std::thread::sleep(Duration::from_millis(20));
    }
    let status = info(&mut there, "persistence", "rdb_last_bgsave_status")?;
    ensure!(status == "ok", "{status}");
    // All of it anew, from what the child has written.
    let reloaded = there.command(&["DEBUG", "RELOAD", "NOSAVE"])?;
    ensure!(reloaded == Reply::Simple("OK".into()), "{reloaded:?}");
    let written = there.get("written")?;
    ensure!(written.as_deref() == Some("meanwhile"), "{written:?}");
    there.command(&["DEL", "written"])?;
    moving.has_moved()?;
    // What came is a snapshot like any other.
    moving.pair.tool(1).ok(&["verify"]).map(drop)
}

#[test]
fn a_copy_is_fetched_while_what_it_is_of_goes_on() -> Result<()> {
    require!(Root, Ksnap, Machines, Program("redis-server"));
    let (mut moving, relay) = slow()?;
    let pid = moving.pid().to_string();
    let target = relay.address();
    let mut clone = moving
        .pair
        .start(0, &["clone", &pid, &target, "--lazy", "--json"])?;
    moving.pair.event(1, "running")?;
    // Over all that has not been fetched.
    for number in 0..VALUES {
        moving.client.set(&format!("filling{number}"), "other")?;
    }
    let done = clone.finish(LIMIT)?;
    ensure!(matches!(done.code()?, 0 | 3), "{}", done.stderr);
    let done: Value = serde_json::from_str(&done.stdout)?;
    ensure!(done["ended"] == false, "{done}");
    fetched_behind(&done)?;
    ensure!(
        moving.client_on(1)?.digest()? == moving.digest,
        "other data there"
    );
    let here = moving.client.get("filling7")?;
    ensure!(here.as_deref() == Some("other"), "{here:?}");
    Ok(())
}

#[test]
fn a_stored_snapshot_is_fetched_too() -> Result<()> {
    require!(Root, Ksnap, Machines, Program("redis-server"));
    let mut moving = Moving::start("30s", 100)?;
    let pid = moving.pid().to_string();
    moving.pair.run(0, &["snap", &pid, "--kill"])?;
    ensure!(moving.server.wait(LIMIT)?.is_some(), "it was to be ended");
    let done = moving.pair.clone(0, "latest", &["--lazy"])?;
    ensure!(done["fetched"]["target_id"].is_string(), "{done}");
    moving.has_moved()?;
    let same = moving.pair.target(1);
    // Back to where the most of it is.
    let there = done["running"]["pid"].to_string();
    let back = moving.pair.clone(1, &there, &["--move", "--lazy"])?;
    let pages = number(&back["rounds"][0]["pages"])?;
    let again = number(&back["fetched"]["pages"])?;
    ensure!(again * 2 < pages, "{again} of {pages} pages fetched again");
    ensure!(
        moving.client_on(0)?.digest()? == moving.digest,
        "other data"
    );
    let args = ["clone", "latest", &same, "--lazy", "--pids", "same"];
    let refused = moving.pair.run(0, &args)?;
    ensure!(
        refused.code()? == 2 && refused.stderr.contains("--pids namespace"),
        "{}",
        refused.stderr
    );
    Ok(())
}

/// The connection breaks down while the process runs there and lacks memory: it is ended there, goes on here as it was, and
/// the next attempt fetches the rest.
fn cut(how: Breakdown) -> Result<()> {
    require!(Root, Ksnap, Machines, Program("redis-server"));
    let patience = match how {
        Breakdown::HangUp => "60s",
        Breakdown::Silence => "15s",
    };
    let (mut moving, relay) = narrow(patience, MOST, how)?;
    let pid = moving.pid().to_string();
    let footprint = Footprint::of(moving.pid())?;
    let pair = &mut moving.pair;
    let options = ["--move", "--lazy", "--timeout", patience];
    let address = relay.address();
    let args = [&["clone", &pid, &address, "--json"][..], &options].concat();
    let failed = pair.run(0, &args)?;
    ensure!(
        relay.is_broken() && failed.code()? == 1,
        "{}",
        failed.stderr
    );
    ensure!(failed.stderr.contains("was not ended"), "{}", failed.stderr);
    // It did run there.
    pair.event(1, "running")?;
    pair.event(1, "failed")?;
    ensure!(pair.tool(1).json(&["log"])?.is_empty(), "half a snapshot");
    moving.is_not_there()?;
    moving.is_unharmed()?;
    Footprint::of(moving.pid())?.nothing_left_since(&footprint)?;

    relay.mend();
    let done = moving.pair.clone_to(0, &pid, &relay.address(), &options)?;
    let fetched = number(&done["fetched"]["pages"])?;
    ensure!(
        fetched + 1000 < u64::from(VALUES),
        "{fetched} pages fetched: nothing was kept"
    );
    moving.has_moved()
}

#[test]
fn a_connection_that_is_cut_ends_what_runs_there_and_not_what_is_here() -> Result<()> {
    cut(Breakdown::HangUp)
}

#[test]
fn a_connection_that_falls_silent_ends_what_runs_there_and_not_what_is_here() -> Result<()> {
    cut(Breakdown::Silence)
}

#[test]
fn whoever_is_killed_while_memory_is_missing_leaves_the_process_here_alone() -> Result<()> {
    require!(Root, Ksnap, Machines, Program("redis-server"));
    let (mut moving, relay) = slow()?;
    let pid = moving.pid().to_string();
    let target = relay.address();
    let args = ["clone", &pid, &target, "--move", "--lazy"];
    let source = moving.pair.run_until(0, "clone-running", &args)?;
    ensure!(
        source.status.signal() == Some(libc::SIGKILL),
        "it was not killed: {source:?}"
    );
    moving.pair.event(1, "failed")?;
    moving.is_unharmed()?;
    moving.is_not_there()?;

    moving.pair.kill_server(1);
    moving.pair.serve_until(1, "serve-lazily-running")?;
    let failed = moving.pair.run(0, &args)?;
    ensure!(failed.code()? == 1, "{}", failed.stderr);
    moving.is_unharmed()?;
    moving.is_not_there()
}

/// What is killed there while it still lives on what is here has not come to its end.
#[test]
fn a_process_that_is_killed_there_before_its_memory_has_come_goes_on_here() -> Result<()> {
    require!(Root, Ksnap, Machines, Program("redis-server"));
    let (mut moving, relay) = slow()?;
    let pid = moving.pid().to_string();
    let target = relay.address();
    let args = ["clone", &pid, &target, "--move", "--lazy"];
    let mut clone = moving.pair.start(0, &args)?;
    let running = moving.pair.event(1, "running")?;
    // It must not come while this waits for its turn.
    relay.narrow(RATE / 20);
    let there = i32::try_from(number(&running["pid"])?)?;
    let there = moving.pair.machines.process(1, there)?;
    kill(Pid::from_raw(there), Signal::SIGKILL)?;
    let failed = clone.finish(LIMIT)?;
    ensure!(
        failed.code()? == 1 && failed.stderr.contains("was killed there"),
        "{}",
        failed.stderr
    );
    moving.is_unharmed()?;
    moving.is_not_there()
}
