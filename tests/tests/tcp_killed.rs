//! ksnap is killed while it takes the connections of a process: that lives on with them, or is brought back with them.

use std::collections::BTreeSet;
use std::net::TcpListener;
use std::os::unix::process::ExitStatusExt;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use tests::background::Ended;
use tests::footprint::{adopt_orphans, await_gone, outlives_kills, processes};
use tests::stream::Stream;
use tests::tcp::{bring_back, is_back, run, take};
use tests::victim::rng::Rng;
use tests::{Ksnap, require};

const LIMIT: Duration = Duration::from_secs(60);

/// Where ksnap is killed for certain, and whether the process lives on then.
const POINTS: [(&str, bool); 3] = [
    ("tcp-taken", true),
    ("tcp-intended", false),
    ("tcp-killed", false),
];

/// Processes of ksnap, by their names: a child may not yet have its own.
fn ksnaps() -> Result<Vec<i32>> {
    processes(|pid| {
        std::fs::read_to_string(format!("/proc/{pid}/comm"))
            .is_ok_and(|comm| comm.starts_with("ksnap"))
    })
}

/// Whether one process has a pidfd of another, which tells by its `Pid:` (proc(5)) until that one is gone.
fn has_pidfd_of(holder: i32, pid: i32) -> bool {
    let told = format!("Pid:\t{pid}");
    let files = std::fs::read_dir(format!("/proc/{holder}/fdinfo"));
    files.into_iter().flatten().flatten().any(|file| {
        std::fs::read_to_string(file.path()).is_ok_and(|text| text.lines().any(|l| l == told))
    })
}

fn sockets_of(pid: i32) -> BTreeSet<String> {
    let files = std::fs::read_dir(format!("/proc/{pid}/fd"));
    let links = files.into_iter().flatten().flatten();
    let links = links.filter_map(|file| {
        std::fs::read_link(file.path())
            .ok()?
            .into_os_string()
            .into_string()
            .ok()
    });
    links.filter(|link| link.starts_with("socket:")).collect()
}

/// Whether the process lives on when a ksnap that took its connections has been killed, and its child has undone all,
/// or has killed the process. Nobody holds a connection of one that lives.
fn lives_on(pid: i32) -> Result<bool> {
    let end = Instant::now() + LIMIT;
    while ksnaps()?.into_iter().any(|ksnap| has_pidfd_of(ksnap, pid)) {
        ensure!(
            Instant::now() < end,
            "a child of ksnap waits for process {pid}"
        );
        std::thread::sleep(Duration::from_millis(2));
    }
    if !outlives_kills(pid, LIMIT)? {
        return Ok(false);
    }
    let own = sockets_of(pid);
    ensure!(!own.is_empty(), "process {pid} has no connection any more");
    for ksnap in ksnaps()? {
        let held = sockets_of(ksnap);
        ensure!(
            held.is_disjoint(&own),
            "process {ksnap} of ksnap holds {held:?} of a process that lives"
        );
    }
    Ok(true)
}

#[test]
fn ksnap_killed_at_any_moment_leaves_a_connection_that_goes_on() -> Result<()> {
    require!(Root, Ksnap, Program("python3"), AllProcesses);
    adopt_orphans()?;
    let ksnap = Ksnap::new()?;
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    let mut stream = Stream::start(&listener, 20_000, Duration::ZERO, |c| c)?;
    let pid = stream.pid();
    let _ended = Ended(pid, "python");
    let mut rng = Rng::new(0x7c9);
    let (mut lived, mut ended) = (0, 0);
    // How long it takes when nobody kills it.
    let begun = Instant::now();
    take(&ksnap, pid)?;
    let usual = begun.elapsed();
    stream.program.wait(LIMIT)?.context("it lives on")?;
    await_gone(pid, LIMIT)?;
    is_back(&bring_back(ksnap.command(), &[])?)?;
    let mut goes_on = |stream: &mut Stream| -> Result<bool> {
        let lives = lives_on(pid)?;
        match lives {
            true => lived += 1,
            false => {
                ended += 1;
                await_gone(pid, LIMIT)?;
                is_back(&bring_back(ksnap.command(), &[])?)?;
            }
        }
        stream.goes_on(5)?;
        Ok(lives)
    };
    let words = ["snap", &pid.to_string(), "--kill", "--tcp"];
    for (point, lives) in POINTS {
        stream.goes_on(5)?;
        let mut command = ksnap.command();
        command.env("KSNAP_KILL_AT", point);
        let killed = run(command, &words)?;
        ensure!(
            killed.status.signal() == Some(libc::SIGKILL),
            "it was not killed at {point} (not a debug build?): {killed:?}"
        );
        let lived = goes_on(&mut stream).with_context(|| format!("killed at {point}"))?;
        ensure!(lived == lives, "killed at {point}, it lives: {lived}");
    }
    for round in 0..12 {
        stream.goes_on(5)?;
        let mut process = ksnap.start(&words)?;
        match round {
            // One that had no time for anything, and one that nobody kills: both outcomes are met.
            0 => process.signal(Signal::SIGKILL)?,
            11 => {}
            _ => {
                let part = rng.below(1000) as f64 / 1000.0;
                std::thread::sleep(usual.mul_f64(0.4 + 0.6 * part));
                process.signal(Signal::SIGKILL)?;
            }
        }
        process.wait(LIMIT)?.context("ksnap does not end")?;
        goes_on(&mut stream).with_context(|| format!("round {round}"))?;
    }
    eprintln!("{lived} times it lived on, {ended} times it was brought back");
    // Beside those that were killed at a point.
    ensure!(lived > 1 && ended > 2, "{lived} lived, {ended} ended");
    stream.finish()
}
