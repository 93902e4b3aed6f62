//! `ksnap rollback --tree`: a process and all of its descendants go back together, and none of them notices.

use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tests::family::{Family, capture, pids_in, roll_back};
use tests::footprint::{await_gone, await_state, call_of, state_of};
use tests::tree::children_of;
use tests::victim::rng::Rng;
use tests::{Footprint, Ksnap, Victim, effort, require};

const LIMIT: Duration = Duration::from_secs(60);

/// Rolls a victim with several processes back and forth, at random among the moments at which it was captured.
fn goes_back_and_forth(name: &str, args: &[&str], options: &[&str]) -> Result<()> {
    let ksnap = Ksnap::new()?;
    let mut victim = Victim::spawn(name, args)?;
    let pid = victim.pid();
    let mut ids = Vec::new();
    let mut pids = Vec::new();
    for _ in 0..3 {
        let (id, found) = capture(&ksnap, pid, &[&["--audit"], options].concat())?;
        ids.push(id);
        pids = found;
        let then = victim.check()?.counter;
        victim.wait_beyond(then + 20, LIMIT)?;
    }
    ensure!(pids.len() > 1, "{pids:?}");
    let before: Vec<Footprint> = pids
        .iter()
        .map(|p| Footprint::of(*p))
        .collect::<Result<_>>()?;
    let mut rng = Rng::new(u64::from(std::process::id()));
    for round in 0..effort::times(8) {
        let id = &ids[rng.below(ids.len())];
        let what = || format!("rollback {round}, to {id}");
        let said = victim
            .blame(roll_back(&ksnap, pid, id))
            .with_context(what)?;
        ensure!(pids_in(&said["processes"])? == pids, "{said}");
        let then = victim.check().with_context(what)?.counter;
        victim.wait_beyond(then + 5, LIMIT).with_context(what)?;
    }
    victim.check()?;
    for (pid, before) in pids.iter().zip(&before) {
        Footprint::of(*pid)?.nothing_left_since(before)?;
    }
    ksnap.ok(&["verify"])?;
    victim.quit()
}

#[test]
fn a_tree_goes_back_and_forth_and_loses_nothing() -> Result<()> {
    require!(Root, Ksnap);
    goes_back_and_forth("tree", &[], &[])
}

#[test]
fn a_tree_goes_back_and_forth_without_probes() -> Result<()> {
    require!(Root, Ksnap);
    goes_back_and_forth("tree", &[], &["--no-probes"])
}

/// Each verifies what the other has written into memory that both share.
#[test]
fn memory_that_processes_share_goes_back_for_all_of_them() -> Result<()> {
    require!(Root, Ksnap);
    goes_back_and_forth("shared", &[], &[])
}

#[test]
fn what_is_between_the_processes_goes_back_once() -> Result<()> {
    require!(Root, Ksnap, Program("python3"));
    let mut family = Family::start()?;
    family.say("fill one")?;
    let one = family.capture()?;
    family.shows("one")?;
    family.say("fill second")?;
    let second = family.capture()?;
    for (id, word) in [
        (&one, "one"),
        (&second, "second"),
        (&second, "second"),
        (&one, "one"),
    ] {
        // What is there now is not what was there then, in none of them.
        family.say("fill other")?;
        roll_back(&family.ksnap, family.root(), id)?;
        family.shows(word)?;
    }
    family.end()
}

#[test]
fn ends_that_one_of_them_has_closed_are_connected_again() -> Result<()> {
    require!(Root, Ksnap, Program("python3"));
    let mut family = Family::start()?;
    family.say("fill one")?;
    let one = family.capture()?;
    for _ in 0..2 {
        family.say("close")?;
        roll_back(&family.ksnap, family.root(), &one)?;
        family.shows("one")?;
        // Both ways are open.
        family.say("fill again")?;
        family.shows("again")?;
    }
    family.end()
}

/// Whom the tree did not have is ended, and its parent, who knows nothing of it, does not find it.
#[test]
fn who_was_born_since_is_ended() -> Result<()> {
    require!(Root, Ksnap, Program("python3"));
    let mut family = Family::start()?;
    family.say("fill one")?;
    let one = family.capture()?;
    let born = family.say("born")?["born"].as_i64().context("nobody")? as i32;
    let deeper = await_child(born)?;
    family.others.0.extend([born, deeper]);
    let said = roll_back(&family.ksnap, family.root(), &one)?;
    let mut ended = pids_in(&said["ended"])?;
    ended.sort_unstable();
    let mut expected = vec![born, deeper];
    expected.sort_unstable();
    ensure!(ended == expected, "{said}");
    await_gone(deeper, LIMIT)?;
    await_gone(born, LIMIT)?;
    family.shows("one")?;
    let reaped = family.say(&format!("reap {born}"))?;
    ensure!(reaped["signal"].is_null(), "{reaped}");
    family.end()
}

/// Of children that have ended, those are there that were.
#[test]
fn children_that_had_ended_are_those_that_had_then() -> Result<()> {
    require!(Root, Ksnap, Program("python3"), ChosenIds);
    let mut family = Family::start()?;
    let had_ended = one_that_has_ended(&mut family)?;
    let tree = family.capture()?;
    family.say(&format!("reap {had_ended}"))?;
    let ends_now = one_that_has_ended(&mut family)?;
    let said = roll_back(&family.ksnap, family.root(), &tree)?;
    let nobody = |what: &str| said[what].as_array().is_some_and(Vec::is_empty);
    ensure!(nobody("ended") && nobody("made"), "{said}");
    ensure!(!said["notes"].to_string().contains("ended"), "{said}");
    let reaped = family.say(&format!("reap {had_ended}"))?;
    ensure!(reaped["signal"] == libc::SIGKILL, "{reaped}");
    let reaped = family.say(&format!("reap {ends_now}"))?;
    ensure!(reaped["signal"].is_null(), "{reaped}");
    family.end()
}

fn one_that_has_ended(family: &mut Family) -> Result<i32> {
    let born = family.say("born")?["born"].as_i64().context("nobody")? as i32;
    let deeper = await_child(born)?;
    family.others.0.push(deeper);
    for pid in [born, deeper] {
        kill(Pid::from_raw(pid), Signal::SIGKILL)?;
    }
    await_state(born, 'Z', LIMIT)?;
    Ok(born)
}

fn await_child(pid: i32) -> Result<i32> {
    let end = Instant::now() + LIMIT;
    loop {
        if let [child] = children_of(pid)?[..] {
            return Ok(child);
        }
        ensure!(Instant::now() < end, "process {pid} has no child");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// What a process has on its heap and shares with others, where it stands still.
fn memory_of(pid: i32) -> Result<Vec<(String, Vec<u8>)>> {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let memory = std::fs::File::open(format!("/proc/{pid}/mem"))?;
    let wanted = maps
        .lines()
        .filter(|line| line.ends_with("[heap]") || line.contains("/dev/zero"));
    let mut found = Vec::new();
    for line in wanted {
        let range = line.split(' ').next().context("no range")?;
        let (start, end) = range.split_once('-').context("no range")?;
        let start = u64::from_str_radix(start, 16)?;
        let mut bytes = vec![0; (u64::from_str_radix(end, 16)? - start) as usize];
        memory.read_exact_at(&mut bytes, start)?;
        found.push((range.to_owned(), bytes));
    }
    ensure!(found.len() > 1, "{maps}");
    Ok(found)
}

#[test]
fn where_one_cannot_go_back_none_is_touched() -> Result<()> {
    require!(Root, Ksnap, Program("python3"));
    let mut family = Family::start()?;
    family.say("fill one")?;
    let one = family.capture()?;
    family.say("fill second")?;
    let born = family.say("born")?["born"].as_i64().context("nobody")? as i32;
    family.others.0.push(born);
    family.say("exec")?;
    // A program has its name before it is there: this one sleeps.
    let end = Instant::now() + LIMIT;
    let calls = [libc::SYS_nanosleep, libc::SYS_clock_nanosleep];
    while !call_of(family.child).is_some_and(|(call, _)| calls.contains(&call)) {
        ensure!(Instant::now() < end, "it does not become another program");
        std::thread::sleep(Duration::from_millis(1));
    }
    family.stands_still()?;
    let before = memory_of(family.root())?;
    let why = family.refused(&one)?;
    ensure!(
        why.contains(&format!("process {}: ", family.child)),
        "{why}"
    );
    ensure!(why.contains("exec"), "{why}");
    family.stands_still()?;
    ensure!(
        before == memory_of(family.root())?,
        "its memory was touched"
    );
    for pid in [family.root(), family.child, born] {
        ensure!(
            !matches!(state_of(pid), 'T' | 't'),
            "{pid}: {}",
            state_of(pid)
        );
    }
    ensure!(family.say("mine")?["mine"] == "second");
    family.end()
}

#[test]
fn a_snapshot_of_one_process_and_a_watched_one_are_refused() -> Result<()> {
    require!(Root, Ksnap, Program("python3"));
    let mut family = Family::start()?;
    let (root, child) = (family.root().to_string(), family.child.to_string());
    let tree = family.capture()?;
    let alone = family.ksnap.snap(family.root(), &[])?;
    let refused = family
        .ksnap
        .run(&["rollback", &root, &alone, "--tree", "-y"])?;
    ensure!(refused.code()? == 2, "{refused:?}");
    ensure!(refused.stderr.contains(&tree[..8]), "{refused:?}");
    let other = family
        .ksnap
        .run(&["rollback", &child, &tree, "--tree", "-y"])?;
    ensure!(other.code()? != 0, "{other:?}");
    let mut watch = tests::Watch::start(&family.ksnap, family.child, &["--every", "1h"])?;
    watch.wait_taken(1, LIMIT)?;
    let why = family.refused(&tree)?;
    ensure!(why.contains(&child) && why.contains("watch"), "{why}");
    watch.interrupt(LIMIT)?;
    family.say("fill other")?;
    roll_back(&family.ksnap, family.root(), &tree)?;
    ensure!(family.say("mine")?["mine"] == "");
    family.end()
}

#[test]
fn a_session_on_a_terminal_goes_back_and_forth() -> Result<()> {
    require!(Root, Ksnap);
    goes_back_and_forth("session", &["--rollbacks"], &[])
}
