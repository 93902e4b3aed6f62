//! `ksnap clone` and `ksnap serve`: processes that move between two machines.

use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::Value;
use tempfile::TempDir;
use tests::{
    Background, Breakdown, Footprint, Ksnap, Pair, Relay, Reply, Resp, Victim, effort, require,
};

const PORT: u16 = 7901;
const LIMIT: Duration = Duration::from_secs(20);
/// What is counted while a server moves.
const COUNTER: &str = "counter";

/// redis-server on the first machine.
struct Redis {
    server: Background,
    _folder: TempDir,
}

fn redis(pair: &Pair) -> Result<Redis> {
    let folder = tempfile::Builder::new().prefix("ksnap-redis-").tempdir()?;
    let mut command = Command::new("redis-server");
    command
        .args([
            "--port",
            &PORT.to_string(),
            "--save",
            "",
            "--appendonly",
            "no",
        ])
        .args([
            "--enable-debug-command",
            "yes",
            "--daemonize",
            "no",
            "--logfile",
        ])
        .arg(folder.path().join("log"))
        .arg("--dir")
        .arg(folder.path())
        .current_dir(folder.path());
    let server = Background::start(pair.machines.on(0, &command))?;
    client(pair, 0)?;
    Ok(Redis {
        server,
        _folder: folder,
    })
}

/// A connection to the server on a machine, once it answers.
fn client(pair: &Pair, machine: usize) -> Result<Resp> {
    let end = Instant::now() + LIMIT;
    loop {
        let answered = pair.machines.client(machine, PORT).and_then(|mut client| {
            ensure!(
                client.command(&["PING"])? == Reply::Simple("PONG".into()),
                "no answer"
            );
            Ok(client)
        });
        match answered {
            Ok(client) => return Ok(client),
            Err(e) if Instant::now() > end => return Err(e.context("redis-server does not answer")),
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// Fills the server with values that do not compress, so many of 4 KiB.
fn fill(client: &mut Resp, pages: u32) -> Result<()> {
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    for number in 0..pages {
        let value: String = (0..4096 / 16)
            .map(|_| {
                seed ^= seed << 13;
                seed ^= seed >> 7;
                seed ^= seed << 17;
                format!("{seed:016x}")
            })
            .collect();
        client.set(&format!("filling{number}"), &value)?;
    }
    Ok(())
}

fn ended(pid: i32) -> Result<()> {
    let end = Instant::now() + LIMIT;
    let runs = || match std::fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) => !stat.contains(") Z "),
        Err(_) => false,
    };
    while runs() {
        ensure!(Instant::now() < end, "process {pid} still runs");
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// How many processes of a machine are called redis-server.
fn servers_on(pair: &Pair, machine: usize) -> Result<usize> {
    let is_server = |pid: &i32| {
        let comm = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        comm.trim() == "redis-server"
    };
    Ok(pair
        .machines
        .processes(machine)?
        .iter()
        .filter(|pid| is_server(pid))
        .count())
}

fn number(value: &Value) -> Result<u64> {
    value
        .as_u64()
        .with_context(|| format!("no number: {value}"))
}

/// Counts in the server on a machine until the connection breaks. In the end it gives the last number that was
/// acknowledged.
fn count_until_cut(pair: &Pair, machine: usize) -> Result<JoinHandle<i64>> {
    let mut client = client(pair, machine)?;
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

fn back_and_forth(pair: &mut Pair, moves: usize) -> Result<()> {
    let redis = redis(pair)?;
    fill(&mut client(pair, 0)?, 200)?;
    let mut pid = redis.server.pid();
    for round in 0..moves {
        let (from, to) = (round % 2, (round + 1) % 2);
        let mut before = client(pair, from)?;
        before.set(&format!("round{round}"), &round.to_string())?;
        let digest = before.digest()?;
        let counting = count_until_cut(pair, from)?;
        let done = pair
            .clone(from, &pid.to_string(), &["--move"])
            .with_context(|| format!("move {round}"))?;
        ensure!(
            done["ended"] == true && done["downtime_ns"].as_u64().is_some(),
            "{done}"
        );
        ended(pid)?;
        pid = i32::try_from(number(&done["running"]["pid"])?)?;
        let mut after = client(pair, to)?;
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
    back_and_forth(&mut Pair::new("30s")?, effort::times(20))
}

#[test]
fn redis_moves_over_a_bad_cable() -> Result<()> {
    require!(Root, Ksnap, Machines, Netem, Program("redis-server"));
    let mut pair = Pair::new("30s")?;
    pair.machines
        .disturb(&["delay", "10ms", "3ms", "loss", "1%"])?;
    back_and_forth(&mut pair, effort::times(4))
}

/// The connection breaks down in the middle: the process runs on, the other machine has nothing half, and the next
/// attempt sends only what is missing.
fn cut(how: Breakdown) -> Result<()> {
    require!(Root, Ksnap, Machines, Program("redis-server"));
    let mut pair = Pair::new("2s")?;
    let redis = redis(&pair)?;
    let mut before = client(&pair, 0)?;
    fill(&mut before, 2000)?;
    let (pid, digest) = (redis.server.pid().to_string(), before.digest()?);
    let footprint = Footprint::of(redis.server.pid())?;
    let relay = Relay::start(&pair.machines, 0, &pair.target(1), 3 << 20, how)?;
    let options = ["--move", "--timeout", "2s"];
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
    // Here all is as it was.
    ensure!(before.digest()? == digest, "the data is another");
    Footprint::of(redis.server.pid())?.nothing_left_since(&footprint)?;
    // There, nothing has begun.
    pair.event(1, "failed")?;
    ensure!(pair.tool(1).json(&["log"])?.is_empty(), "half a snapshot");
    pair.tool(1).ok(&["verify"])?;
    ensure!(servers_on(&pair, 1)? == 0, "half a process");

    relay.mend();
    let done = pair.clone_to(0, &pid, &relay.address(), &options)?;
    let (pages, sent) = (
        number(&done["rounds"][0]["pages"])?,
        number(&done["rounds"][0]["sent_pages"])?,
    );
    ensure!(
        sent + 500 < pages,
        "{sent} of {pages} pages sent: nothing was kept"
    );
    ended(redis.server.pid())?;
    ensure!(client(&pair, 1)?.digest()? == digest, "other data");
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

#[test]
fn a_clone_that_is_killed_while_the_process_is_stopped_leaves_it_running() -> Result<()> {
    require!(Root, Ksnap, Machines, Program("redis-server"));
    let pair = Pair::new("30s")?;
    let redis = redis(&pair)?;
    let mut before = client(&pair, 0)?;
    fill(&mut before, 100)?;
    let (pid, digest) = (redis.server.pid(), before.digest()?);
    let clone = pair.run_until(
        0,
        "clone-held",
        &["clone", &pid.to_string(), &pair.target(1), "--move"],
    )?;
    ensure!(
        clone.status.signal() == Some(libc::SIGKILL),
        "it was not killed: {clone:?}"
    );
    ensure!(before.digest()? == digest, "other data");
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    ensure!(status.contains("TracerPid:\t0"), "{status}");
    ensure!(servers_on(&pair, 1)? == 0, "half a process");
    pair.tool(0).ok(&["verify"])?;
    pair.tool(1).ok(&["verify"])?;
    Ok(())
}

/// Killed when the process runs there and was to be ended here, it leaves both.
#[test]
fn a_clone_that_is_killed_when_the_process_runs_there_leaves_both_running() -> Result<()> {
    require!(Root, Ksnap, Machines, Program("redis-server"));
    let mut pair = Pair::new("30s")?;
    let redis = redis(&pair)?;
    let mut before = client(&pair, 0)?;
    fill(&mut before, 100)?;
    let (pid, digest) = (redis.server.pid(), before.digest()?);
    let clone = pair.run_until(
        0,
        "clone-running",
        &["clone", &pid.to_string(), &pair.target(1), "--move"],
    )?;
    ensure!(
        clone.status.signal() == Some(libc::SIGKILL),
        "it was not killed: {clone:?}"
    );
    let running = pair.event(1, "running")?;
    let failed = pair.event(1, "failed")?;
    let why = failed["why"].as_str().context("no reason")?;
    ensure!(why.contains("is lost"), "{why}");
    ensure!(before.digest()? == digest, "other data here");
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    ensure!(status.contains("TracerPid:\t0"), "{status}");
    let mut there = client(&pair, 1)?;
    ensure!(there.digest()? == digest, "other data there");
    there.set("where", "there")?;
    ensure!(before.get("where")?.is_none(), "one process, not two");
    let pids = pair.machines.processes(1)?;
    let runs = i32::try_from(number(&running["pid"])?)?;
    ensure!(pids.contains(&runs), "{running} {pids:?}");
    Ok(())
}

/// What became of it there is not known here: so it is not ended here, and the error says what to do.
#[test]
fn a_server_that_is_killed_when_the_process_runs_leaves_the_one_here_and_the_error_says_so()
-> Result<()> {
    require!(Root, Ksnap, Machines, Program("redis-server"));
    let mut pair = Pair::new("30s")?;
    let redis = redis(&pair)?;
    let mut before = client(&pair, 0)?;
    fill(&mut before, 100)?;
    let (pid, digest) = (redis.server.pid(), before.digest()?);
    pair.kill_server(1);
    pair.serve_until(1, "serve-running")?;
    let failed = pair.run(0, &["clone", &pid.to_string(), &pair.target(1), "--move"])?;
    ensure!(
        failed.code()? == 1
            && failed.stderr.contains("was not ended")
            && failed.stderr.contains("look there"),
        "{}",
        failed.stderr
    );
    ensure!(before.digest()? == digest, "other data");
    before.set("where", "here")?;
    Ok(())
}

#[test]
fn a_process_that_would_stand_still_for_too_long_goes_on_here() -> Result<()> {
    require!(Root, Ksnap, Machines, Program("redis-server"));
    let pair = Pair::new("30s")?;
    let redis = redis(&pair)?;
    let mut before = client(&pair, 0)?;
    fill(&mut before, 100)?;
    let (pid, digest) = (redis.server.pid(), before.digest()?);
    let what = pid.to_string();
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
    ensure!(before.digest()? == digest, "other data");
    ensure!(servers_on(&pair, 1)? == 0, "half a process");
    pair.clone(0, &what, &["--move", "--max-stop", "30s"])?;
    ended(pid)?;
    ensure!(client(&pair, 1)?.digest()? == digest, "other data");
    Ok(())
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

/// Wherever the other machine's server dies, the process goes on here, there is nothing half there, and the next attempt
/// works.
#[test]
fn a_server_that_is_killed_leaves_the_process_running_and_nothing_half() -> Result<()> {
    require!(Root, Ksnap, Machines, Program("redis-server"));
    let mut pair = Pair::new("30s")?;
    let redis = redis(&pair)?;
    let mut before = client(&pair, 0)?;
    fill(&mut before, 500)?;
    let (pid, digest) = (redis.server.pid().to_string(), before.digest()?);
    for (point, snapshots) in [("serve-publishing", false), ("serve-restoring", true)] {
        pair.kill_server(1);
        pair.serve_until(1, point)?;
        let failed = pair.run(0, &["clone", &pid, &pair.target(1), "--move"])?;
        ensure!(failed.code()? == 1, "{point}: {}", failed.stderr);
        ensure!(before.digest()? == digest, "{point}: other data");
        ensure!(servers_on(&pair, 1)? == 0, "{point}: half a process");
        ensure!(
            pair.tool(1).json(&["log"])?.is_empty() != snapshots,
            "{point}"
        );
        pair.tool(1).ok(&["verify"])?;
    }
    pair.kill_server(1);
    pair.serve(1, "30s")?;
    pair.clone(0, &pid, &["--move"])?;
    ended(redis.server.pid())?;
    ensure!(client(&pair, 1)?.digest()? == digest, "other data");
    Ok(())
}

#[test]
fn a_copy_runs_on_both_machines() -> Result<()> {
    require!(Root, Ksnap, Machines, Program("redis-server"));
    let pair = Pair::new("30s")?;
    let redis = redis(&pair)?;
    let mut here = client(&pair, 0)?;
    fill(&mut here, 100)?;
    let digest = here.digest()?;
    let done = pair.clone(0, &redis.server.pid().to_string(), &["--pids", "namespace"])?;
    ensure!(done["ended"] == false, "{done}");
    let mut there = client(&pair, 1)?;
    ensure!(
        there.digest()? == digest && here.digest()? == digest,
        "other data"
    );
    there.set("where", "there")?;
    here.set("where", "here")?;
    ensure!(
        there.get("where")?.as_deref() == Some("there"),
        "not a copy"
    );
    Ok(())
}

#[test]
fn a_watched_process_moves_through_its_watcher() -> Result<()> {
    require!(Root, Ksnap, Machines, Program("redis-server"));
    let pair = Pair::new("30s")?;
    let redis = redis(&pair)?;
    let mut before = client(&pair, 0)?;
    fill(&mut before, 100)?;
    let (pid, digest) = (redis.server.pid().to_string(), before.digest()?);
    let mut watcher = pair.start(0, &["watch", &pid, "--every", "200ms", "--json"])?;
    while !watcher
        .line(LIMIT)?
        .context("it watches nothing")?
        .contains("\"taken\"")
    {}
    pair.clone(0, &pid, &["--move"])?;
    ended(redis.server.pid())?;
    ensure!(client(&pair, 1)?.digest()? == digest, "other data");
    ensure!(
        watcher.wait(LIMIT)?.is_some(),
        "the watcher goes on without a process"
    );
    Ok(())
}

#[test]
fn a_stored_snapshot_is_brought_back_on_the_other_machine() -> Result<()> {
    require!(Root, Ksnap, Machines, Program("redis-server"));
    let pair = Pair::new("30s")?;
    let mut redis = redis(&pair)?;
    let mut before = client(&pair, 0)?;
    fill(&mut before, 100)?;
    let digest = before.digest()?;
    let pid = redis.server.pid().to_string();
    pair.run(0, &["snap", &pid])?;
    before.set("after", "the first")?;
    pair.run(0, &["snap", &pid, "--kill"])?;
    ensure!(redis.server.wait(LIMIT)?.is_some(), "it was to be ended");
    // Not the last one: what it holds is what it was.
    pair.clone(0, "latest~", &[])?;
    ensure!(client(&pair, 1)?.digest()? == digest, "other data");
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
    let pair = Pair::new("30s")?;
    let redis = redis(&pair)?;
    let pid = redis.server.pid().to_string();
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
    ensure!(client(&pair, 0).is_ok(), "the process is gone");
    Ok(())
}
