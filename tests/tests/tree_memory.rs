//! Memory of a tree that is brought back: what comes when it is touched, and who fills it.

use std::io::Write;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tests::background::Background;
use tests::footprint::{adopt_orphans, await_gone, await_state, state_of};
use tests::subject::request;
use tests::tree::{Pids, children_of, end_captured, goes_on_twice, living, none_but};
use tests::victim::rng::Rng;
use tests::{Ksnap, Victim, require};

const LIMIT: Duration = Duration::from_secs(60);
/// Private memory of each of three processes.
const MIB: &str = "48";
/// Pages of that, of all of them.
const PAGES: u64 = 3 * (48 << 20) / 4096;

/// A ksnap with which memory comes slowly, so that there is time to do something meanwhile.
fn slow() -> Result<Ksnap> {
    Ok(Ksnap::new()?.with_variable("KSNAP_FILL_DELAY_MS", "2".into()))
}

/// A tree with much memory, captured and ended.
fn captured(ksnap: &Ksnap) -> Result<(Victim, Pids)> {
    let mut victim = Victim::spawn("tree", &["--mib", MIB])?;
    victim.check()?;
    let pids = end_captured(ksnap, victim.pid())?;
    victim.process().wait(LIMIT)?.context("the victim lives")?;
    pids.are_gone()?;
    Ok((victim, pids))
}

fn lazy_pages(said: &Value) -> Result<u64> {
    said["lazy_pages"]
        .as_u64()
        .with_context(|| said.to_string())
}

/// Starts a restore, and gives what it says as soon as the tree runs.
fn begun(ksnap: &Ksnap, options: &[&str]) -> Result<(Background, Value)> {
    let args = [&["restore", "latest", "--wait", "--json"], options].concat();
    let mut process = ksnap.start(&args)?;
    let line = process.line(LIMIT)?;
    let line = line.with_context(|| process.stderr())?;
    let said = serde_json::from_str(&line).context(line)?;
    Ok((process, said))
}

/// The process that fills the memory of what this ksnap has brought back, as long as it does.
fn filler_of(ksnap: &Background) -> Option<i32> {
    let is_filler = |pid: &i32| {
        let comm = std::fs::read_to_string(format!("/proc/{pid}/comm"));
        comm.is_ok_and(|comm| comm.trim_end() == "ksnap-fill")
    };
    let children = children_of(ksnap.pid()).unwrap_or_default();
    children.into_iter().find(is_filler)
}

#[test]
fn memory_that_comes_when_it_is_touched_is_right_in_all_processes() -> Result<()> {
    require!(Root, Ksnap, ChosenIds);
    for options in [&[][..], &["--pids", "namespace"]] {
        goes_on_twice(("tree", &["--mib", MIB]), options, |victim| {
            let lazy = lazy_pages(victim.ready())?;
            ensure!(lazy > PAGES * 9 / 10, "{}", victim.ready());
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn all_memory_of_a_tree_comes_first_where_that_is_asked_for() -> Result<()> {
    require!(Root, Ksnap, ChosenIds);
    for options in [&["--eager"][..], &["--eager", "--pids", "namespace"]] {
        goes_on_twice(("tree", &["--mib", "16"]), options, |victim| {
            ensure!(lazy_pages(victim.ready())? == 0, "{}", victim.ready());
            Ok(())
        })?;
    }
    Ok(())
}

/// While nobody fills anything, all of them come to touch what is missing, or to fork: both wait.
#[test]
fn children_that_are_made_while_memory_is_coming_have_what_their_parents_had() -> Result<()> {
    require!(Root, Ksnap, ChosenIds);
    let ksnap = slow()?;
    let (_folder, pids) = captured(&ksnap)?;
    let mut held = 0;
    for round in 0..6 {
        let (mut process, said) = begun(&ksnap, &[])?;
        ensure!(said["pid"] == pids.0[0], "{said}");
        let filler = filler_of(&process).map(Pid::from_raw);
        if let Some(filler) = filler
            && kill(filler, Signal::SIGSTOP).is_ok()
            && await_state(filler.as_raw(), 'T', LIMIT).is_ok()
        {
            held += 1;
            process.stdin()?.write_all(b"check 77\n")?;
            // Some thread of the first waits for memory, or for its fork to be taken note of.
            kill(filler, Signal::SIGCONT)?;
        }
        let reply = request(&mut process, "quit", round, LIMIT)?;
        ensure!(reply["ok"] == true, "{reply}");
        let ended = process.finish(LIMIT)?;
        ensure!(!ended.stderr.contains("BROKEN"), "{ended:?}");
        pids.are_gone()?;
    }
    eprintln!("held {held} times");
    ensure!(held > 0, "all memory was there at once, each time");
    Ok(())
}

/// Until all memory is there, the end of ksnap is the end of all of them, and of what they have begun meanwhile.
#[test]
fn a_killed_ksnap_takes_a_tree_with_it_whose_memory_is_coming() -> Result<()> {
    require!(Root, Ksnap, ChosenIds);
    adopt_orphans()?;
    let ksnap = slow()?;
    let (_folder, pids) = captured(&ksnap)?;
    let before = living()?;
    let mut rng = Rng::new(21);
    let (mut whole, mut none) = (0, 0);
    for round in 0..16 {
        let what = || format!("after kill {round}");
        let mut command = ksnap.command();
        command.args(["restore", "latest", "--wait", "--json"]);
        if round % 2 == 0 {
            command.env("KSNAP_KILL_AT", "memory is coming");
        }
        let mut process = Background::start(command)?;
        process.line(LIMIT)?.with_context(|| process.stderr())?;
        // They make children to look at their memory.
        let _ = process.stdin()?.write_all(b"check 77\n");
        std::thread::sleep(Duration::from_micros(rng.word() % 20_000));
        process.signal(Signal::SIGKILL)?;
        process.wait(LIMIT)?.context("ksnap does not end")?;
        match request(&mut process, "quit", round, LIMIT) {
            Ok(reply) => {
                ensure!(reply["ok"] == true, "{reply} {}", what());
                whole += 1;
            }
            Err(_) => none += 1,
        }
        pids.are_gone().with_context(what)?;
        none_but(&before).with_context(what)?;
        let said = process.finish(LIMIT)?.stderr;
        let broken = said.lines().find(|line| line.contains("should hold"));
        ensure!(broken.is_none(), "{broken:?} {}", what());
    }
    eprintln!("whole {whole} times, not there {none} times");
    ensure!(none > 0, "no kill came early enough");
    let (mut process, _) = begun(&ksnap, &[])?;
    let reply = request(&mut process, "quit", 99, LIMIT)?;
    ensure!(reply["ok"] == true, "{reply}");
    pids.are_gone()
}

/// Whoever fills the memory is no more needed than ksnap: its end is the end of all of them as well, and ksnap says so.
#[test]
fn a_tree_ends_with_whoever_fills_its_memory() -> Result<()> {
    require!(Root, Ksnap, ChosenIds);
    adopt_orphans()?;
    let ksnap = slow()?;
    let (_folder, pids) = captured(&ksnap)?;
    let before = living()?;
    let mut ended = 0;
    for round in 0..6 {
        let (mut process, _) = begun(&ksnap, &[])?;
        let _ = process.stdin()?.write_all(b"check 77\n");
        if let Some(filler) = filler_of(&process) {
            // Done meanwhile, where that fails.
            let _ = kill(Pid::from_raw(filler), Signal::SIGKILL);
        }
        match request(&mut process, "quit", round, LIMIT) {
            Ok(reply) => ensure!(reply["ok"] == true, "{reply}"),
            Err(_) => {
                let done = process.finish(LIMIT)?;
                ensure!(done.code()? != 0, "{done:?}");
                ensure!(done.stderr.contains("was killed"), "{done:?}");
                ended += 1;
            }
        }
        pids.are_gone()?;
        process.wait(LIMIT)?.context("ksnap does not end")?;
        none_but(&before)?;
    }
    ensure!(ended > 0, "all memory was there at once, each time");
    Ok(())
}

/// What has not come yet is no zero in a snapshot.
#[test]
fn a_snapshot_that_is_taken_while_memory_is_coming_has_all_of_it() -> Result<()> {
    require!(Root, Ksnap, ChosenIds);
    let ksnap = slow()?;
    let (_folder, pids) = captured(&ksnap)?;
    for options in [&[][..], &["--pids", "namespace"]] {
        let (mut process, said) = begun(&ksnap, options)?;
        let root = said["pid"].as_i64().context("no pid")? as i32;
        let again = end_captured(&ksnap, root)?;
        ensure!(again.0.len() == 3, "{:?}", again.0);
        process.wait(LIMIT)?.context("ksnap does not end")?;
        again.are_gone()?;
        let (mut process, said) = begun(&ksnap, &["--eager"])?;
        ensure!(said["own_pid"] == pids.0[0] && lazy_pages(&said)? == 0);
        let reply = request(&mut process, "quit", 1, LIMIT)?;
        ensure!(reply["ok"] == true, "{reply}");
        process.wait(LIMIT)?.context("ksnap does not end")?;
    }
    pids.are_gone()
}

/// Memory of a process and of all below it that is in use, in KiB.
fn in_use(pid: i32) -> Result<u64> {
    if state_of(pid) == 'Z' {
        return Ok(0);
    }
    let path = format!("/proc/{pid}/smaps_rollup");
    let text = std::fs::read_to_string(&path).context(path)?;
    let anonymous = text
        .lines()
        .find_map(|line| line.strip_prefix("Anonymous:"));
    let kib = anonymous.and_then(|rest| rest.trim().strip_suffix(" kB"));
    let own: u64 = kib.context("no anonymous memory")?.trim().parse()?;
    let below = children_of(pid)?.into_iter().map(in_use);
    Ok(own + below.sum::<Result<u64>>()?)
}

#[test]
fn copies_of_a_tree_take_the_memory_of_what_they_touch() -> Result<()> {
    require!(Root, Ksnap);
    const COPIES: usize = 4;
    let ksnap = slow()?;
    let mut victim = Victim::spawn("tree", &["--mib", MIB])?;
    victim.check()?;
    ksnap.run(&["snap", &victim.pid().to_string(), "--tree"])?;
    let all = in_use(victim.pid())?;
    let mut process = ksnap.start(&["fork", "latest", "-n", &COPIES.to_string(), "--json"])?;
    let mut inits = Vec::new();
    let mut copies = 0;
    for _ in 0..COPIES {
        let line = process.line(LIMIT)?.context("too few copies")?;
        let copy: Value = serde_json::from_str(&line)?;
        ensure!(lazy_pages(&copy)? > PAGES * 9 / 10, "{copy}");
        inits.push(copy["init"].as_i64().context("no process 1")? as i32);
        copies += in_use(copy["pid"].as_i64().context("no pid")? as i32)?;
    }
    ensure!(process.wait(LIMIT)?.is_some(), "ksnap does not end");
    eprintln!("{all} KiB, and {COPIES} copies {copies} KiB");
    ensure!(copies * 2 < all, "{copies} KiB instead of {all} at most");
    for n in 0..COPIES {
        let reply = request(&mut process, "quit", n, LIMIT)?;
        ensure!(
            reply["ok"] == true && reply["pid"] == victim.pid(),
            "{reply}"
        );
    }
    for init in inits {
        await_gone(init, LIMIT)?;
    }
    victim.check()?;
    victim.quit()
}
