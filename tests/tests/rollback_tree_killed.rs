//! A rollback of a tree is killed at chosen points, or fails in the middle: all of its processes stay stopped until
//! another one has put all of them right. The points are in debug builds only.

use std::os::unix::process::ExitStatusExt;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tests::clan::Clan;
use tests::family::{Family, capture, roll_back};
use tests::footprint::{await_gone, await_state, state_of};
use tests::tree::parent_of;
use tests::{Background, Ksnap, Victim, require};

const LIMIT: Duration = Duration::from_secs(60);
/// The processes are stopped, and nothing of them has been touched.
const UNTOUCHED: &str = "stopped";
/// Points after that, in their order.
const POINTS: [&str; 13] = [
    "ending threads",
    "half of the memory written",
    "opening and closing descriptors",
    "one of the tree begun",
    "writing the contents of files",
    "setting what open files hold",
    "making threads",
    "setting attributes",
    "setting registers",
    "registers of one thread set",
    "one of the tree put back",
    "all done",
    "those born since ended",
];

fn stay_stopped(pids: &[i32]) -> Result<()> {
    let end = Instant::now() + LIMIT;
    // The kernel lets go of what a dead tracer traced.
    while !pids.iter().all(|pid| state_of(*pid) == 'T') {
        let states: String = pids.iter().map(|pid| state_of(*pid)).collect();
        ensure!(Instant::now() < end, "not all are stopped: {states}");
        std::thread::sleep(Duration::from_millis(1));
    }
    std::thread::sleep(Duration::from_millis(20));
    let states: String = pids.iter().map(|pid| state_of(*pid)).collect();
    ensure!(states.chars().all(|s| s == 'T'), "some went on: {states}");
    Ok(())
}

fn let_go(pids: &[i32]) -> Result<()> {
    for pid in pids {
        kill(Pid::from_raw(*pid), Signal::SIGCONT)?;
    }
    Ok(())
}

/// How many processes the store says are on mixed states.
fn marks(ksnap: &Ksnap) -> Result<usize> {
    let mut marks = 0;
    for session in std::fs::read_dir(ksnap.store())? {
        let Ok(names) = std::fs::read_dir(session?.path()) else {
            continue;
        };
        for name in names {
            marks += usize::from(name?.file_name().to_string_lossy().starts_with("mixed-"));
        }
    }
    Ok(marks)
}

fn killed_at(ksnap: &Ksnap, root: i32, id: &str, point: &str) -> Result<()> {
    let mut command = ksnap.command();
    command
        .args(["rollback", &root.to_string(), id, "--tree", "-y"])
        .env("KSNAP_KILL_AT", point);
    let ended = Background::start(command)?.finish(LIMIT)?;
    match ended.status.signal() {
        Some(libc::SIGKILL) => Ok(()),
        _ => bail!("it was not killed (not a debug build?): {ended:?}"),
    }
}

#[test]
fn a_killed_rollback_leaves_all_of_the_tree_stopped_until_another_puts_it_right() -> Result<()> {
    require!(Root, Ksnap);
    let ksnap = Ksnap::new()?;
    let mut victim = Victim::spawn("tree", &[])?;
    let root = victim.pid();
    let (id, pids) = capture(&ksnap, root, &[])?;
    ensure!(pids.len() == 3, "{pids:?}");
    for point in [&[UNTOUCHED], &POINTS[..]].concat() {
        let what = || format!("killed at '{point}'");
        let then = victim.check().with_context(what)?.counter;
        victim.wait_beyond(then + 5, LIMIT).with_context(what)?;
        killed_at(&ksnap, root, &id, point).with_context(what)?;
        stay_stopped(&pids).with_context(what)?;
        if point != UNTOUCHED {
            ensure!(
                marks(&ksnap)? == pids.len(),
                "{} marks, {}",
                marks(&ksnap)?,
                what()
            );
            for pid in &pids {
                let refused = ksnap.run(&["snap", &pid.to_string()])?;
                ensure!(refused.code()? == 1, "{refused:?}");
                ensure!(refused.stderr.contains("mixed state"), "{refused:?}");
            }
            let said = roll_back(&ksnap, root, &id).with_context(what)?;
            let processes = said["processes"].as_array().context("no processes")?;
            ensure!(processes.iter().all(|one| one["stopped"] == true), "{said}");
            ensure!(marks(&ksnap)? == 0, "marks are left, {}", what());
            stay_stopped(&pids).with_context(what)?;
        }
        let_go(&pids)?;
        victim.check().with_context(what)?;
    }
    ksnap.ok(&["verify"])?;
    victim.quit()
}

/// Points at which some of the tree are made again.
const MAKING: [&str; 9] = [
    "what was left of one waited for",
    "one that had ended made again",
    "making its mappings",
    "one of the tree begun",
    "setting the bounds of its memory",
    "making its threads",
    "taking out what is not its own",
    "all done",
    "those made again are held",
];

/// Those that are made again are gone then, or stand with the others.
#[test]
fn a_rollback_that_is_killed_leaves_nobody_running_whom_it_makes_again() -> Result<()> {
    require!(Root, Ksnap, Program("python3"), ChosenIds);
    let mut clan = Clan::start()?;
    let then = clan.say("count")?;
    let id = clan.capture()?;
    let root = clan.root();
    for point in MAKING {
        let what = || format!("killed at '{point}'");
        clan.say("count").with_context(what)?;
        clan.end(&["deeper", "child"]).with_context(what)?;
        clan.say("end apart 3").with_context(what)?;
        await_state(clan.apart, 'Z', LIMIT).with_context(what)?;
        killed_at(&clan.ksnap, root, &id, point).with_context(what)?;
        stay_stopped(&[root]).with_context(what)?;
        for pid in [clan.child, clan.deeper, clan.apart] {
            let end = Instant::now() + LIMIT;
            // 'X' and '?': gone, or about to be.
            while !matches!(state_of(pid), 'T' | 'Z' | 'X' | '?') {
                ensure!(Instant::now() < end, "{pid}: {}, {}", state_of(pid), what());
                std::thread::sleep(Duration::from_millis(1));
            }
            if state_of(pid) == 'Z' && parent_of(pid) != Some(root) {
                // Whoever has it now waits for it.
                await_gone(pid, LIMIT).with_context(what)?;
            }
        }
        ensure!(marks(&clan.ksnap)? > 0, "nobody is marked, {}", what());
        roll_back(&clan.ksnap, root, &id).with_context(what)?;
        ensure!(marks(&clan.ksnap)? == 0, "marks are left, {}", what());
        let all = [root, clan.child, clan.deeper, clan.apart];
        // Whoever was stopped stays so, and with it those that come from it.
        stay_stopped(&all).with_context(what)?;
        let_go(&all)?;
        clan.goes_on_from(&then).with_context(what)?;
        for pid in [clan.child, clan.apart] {
            let said = clan.say(&format!("wait {pid} now"))?;
            ensure!(said["pid"] == 0, "{said}, {}", what());
        }
    }
    clan.ksnap.ok(&["verify"])?;
    Ok(())
}

#[test]
fn one_that_fails_in_the_middle_names_who_is_back_and_who_is_not() -> Result<()> {
    require!(Root, Ksnap, Program("python3"));
    let mut family = Family::start()?;
    family.say("fill one")?;
    let one = family.capture()?;
    family.say("fill second")?;
    let born = family.say("born")?["born"].as_i64().context("nobody")? as i32;
    family.others.0.push(born);
    let (root, child) = (family.root(), family.child);
    let words = ["rollback", &root.to_string(), &one, "--tree", "-y"];
    let failed = family.ksnap.fail_at("one of the tree put back", &words)?;
    for words in [
        format!("; put back: {root};"),
        format!("not put back: {child};"),
        format!("ksnap rollback {root} SNAPSHOT --tree"),
        format!("kill -9 {root} {child}"),
    ] {
        ensure!(failed.stderr.contains(&words), "{words}: {failed:?}");
    }
    stay_stopped(&[root, child, born])?;
    ensure!(marks(&family.ksnap)? == 2, "{}", marks(&family.ksnap)?);
    let said = roll_back(&family.ksnap, root, &one)?;
    ensure!(said["ended"][0] == born, "{said}");
    ensure!(marks(&family.ksnap)? == 0, "marks are left");
    stay_stopped(&[root, child])?;
    let_go(&[root, child])?;
    family.shows("one")?;
    await_gone(born, LIMIT)?;
    family.end()
}
