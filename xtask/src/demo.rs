//! The guided demo: snapshots of a process at work, and back to one of them.
//!
//! Everything shown is verified: the process itself says where its counter is and whether its data
//! holds together.

mod costs;
mod doctor;
mod history;
mod watched;

use crate::cargo::{self, Profile};
use crate::table::{bytes, heading, nanos, thousands};
use anyhow::{Context, Result, ensure};
use history::History;
use std::time::{Duration, Instant};
use tests::Ksnap;
use watched::Watched;

/// From one snapshot to the next.
const EVERY: &str = "100ms";
/// How long the process works before it is sent back.
const WORK: Duration = Duration::from_millis(4000);
/// How long it may take at most.
const PATIENCE: Duration = Duration::from_secs(40);
/// How long the process may take to get back to where it was.
const CATCH_UP: Duration = Duration::from_secs(20);

/// Runs the demo with the binaries of a profile.
///
/// # Errors
/// When anything that it shows does not hold.
pub fn run(profile: Profile) -> Result<()> {
    println!(
        "{}",
        heading("ksnap: snapshots of a running process, and back to any of them")
    );
    println!();
    let ksnap = Ksnap::with_binary(cargo::binary(profile, "ksnap"))?;

    title(1, "What this machine can do");
    doctor::show(&ksnap)?;

    title(2, "A program to work on");
    let mut watched = Watched::start(&ksnap, &cargo::binary(profile, "victim"), EVERY)?;
    println!("  {}", watched.description());
    println!("  It knows nothing of ksnap, and can check all of its data by itself at any time.");
    println!(
        "  `ksnap run --every {EVERY} -- victim counter` runs it, and takes 10 snapshots a second."
    );

    title(3, "It works, ksnap takes snapshots");
    watched.work(WORK)?;
    let mut history = History::read(&ksnap, watched.pid())?;
    // On a busy machine it takes longer until there is something to see.
    let end = Instant::now() + PATIENCE;
    while !history.is_enough() && Instant::now() < end {
        watched.work(WORK)?;
        history = History::read(&ksnap, watched.pid())?;
    }
    println!(
        "  Each delta holds only the pages that changed. `stop` is how long the program stood still for it."
    );
    let target = history.middle()?.clone();
    print!("{}", history.table(target.seq, &watched));

    title(4, &format!("Back to snapshot @{}", target.seq));
    let before = watched.ask()?;
    let begun = Instant::now();
    let done = ksnap
        .json(&["rollback", &watched.pid().to_string(), &target.id, "-y"])
        .context("the rollback failed")?;
    let done = done.first().context("ksnap rollback printed nothing")?;
    let after = watched.ask()?;
    let gone = begun.elapsed();
    println!(
        "  `ksnap rollback {} @{}`, in the living process: same process id, same threads, same open files.",
        watched.pid(),
        target.seq
    );
    println!(
        "  {} pages written back; the program stood still for {}.",
        thousands(done["written"].as_u64().unwrap_or(0)),
        nanos(done["stop_ns"].as_u64().unwrap_or(0))
    );

    title(5, "What the program itself says");
    let window = watched.counter_at(target.time_ns, target.stop_ns)?;
    let latest = window.1 + watched.most_steps(gone);
    println!(
        "  counter at the snapshot   {} to {}",
        thousands(window.0),
        thousands(window.1)
    );
    println!("  counter before rollback   {}", thousands(before));
    println!(
        "  counter after rollback    {}   it went back",
        thousands(after)
    );
    ensure!(
        after < before && (window.0..=latest).contains(&after),
        "the counter is {after} after the rollback; at the snapshot it was between {} and {}, before the rollback {before}",
        window.0,
        window.1
    );
    watched
        .check()
        .context("the program's own check after the rollback")?;
    println!(
        "  all its data checked      every page, the hash chain, AVX registers, all threads: whole"
    );
    let caught_up = watched.wait_beyond(before, CATCH_UP)?;
    watched
        .check()
        .context("the program's own check after it ran on")?;
    println!(
        "  and it runs on            {}   beyond where it was, and still whole",
        thousands(caught_up)
    );

    title(6, "What it cost");
    let pid = watched.pid();
    costs::show(&ksnap, pid)?;
    println!(
        "  ({} build of ksnap; `cargo xtask bench stop` measures redis-server with 1 GiB.)",
        match profile {
            Profile::Dev => "Dev",
            Profile::Release => "Release",
        }
    );

    title(7, "And the store");
    watched.end()?;
    let history = History::read(&ksnap, pid)?;
    let verdict = ksnap.json(&["verify"])?;
    let verdict = verdict.first().context("ksnap verify printed nothing")?;
    ensure!(
        verdict["clean"] == true,
        "ksnap verify found problems: {}",
        verdict["problems"]
    );
    println!(
        "  {} snapshots in {}; `ksnap verify` read every page of them and found nothing wrong.",
        history.len(),
        bytes(history.bytes())
    );
    println!();
    println!("{}", heading("All of it was checked, and holds."));
    println!("Now with a program of yours:  cargo xtask run -- run --every 100ms -- COMMAND");
    println!("                              cargo xtask run -- --help");
    Ok(())
}

fn title(number: u32, text: &str) {
    if number > 1 {
        println!();
    }
    println!("{}", heading(&format!("{number}. {text}")));
}
