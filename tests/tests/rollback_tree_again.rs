//! `ksnap rollback --tree` where processes have ended since: they are made again, as children of those that live.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tests::background::Background;
use tests::clan::{Clan, take_id};
use tests::family::{capture, pids_in, roll_back};
use tests::footprint::{await_gone, await_state, state_of};
use tests::terminal::await_child;
use tests::tree::{Pids, bring_back, parent_of};
use tests::{Ksnap, Watch, require};

const LIMIT: Duration = Duration::from_secs(60);

fn made_by(said: &Value) -> Result<Vec<i32>> {
    pids_in(&said["made"])
}

/// Whoever it is ends: it is there again as what it was, and its parent gets the status of its next end.
fn is_made_again(names: &[&str], options: &[&str]) -> Result<()> {
    require!(Root, Ksnap, Program("python3"), ChosenIds);
    let mut clan = Clan::start()?;
    clan.say("count")?;
    let then = clan.say("count")?;
    let (id, _) = capture(&clan.ksnap, clan.root(), options)?;
    for round in 0..2 {
        let what = || format!("round {round}");
        clan.say("count")?;
        clan.end(names).with_context(what)?;
        let said = roll_back(&clan.ksnap, clan.root(), &id).with_context(what)?;
        ensure!(made_by(&said)?.len() == names.len(), "{said}");
        let expected = [clan.root(), clan.child, clan.apart, clan.deeper];
        let mut pids = pids_in(&said["processes"])?;
        pids.sort_unstable();
        let mut all = expected.to_vec();
        all.sort_unstable();
        ensure!(pids == all, "{said}");
        clan.goes_on_from(&then).with_context(what)?;
        // Its parent knows of no end.
        for pid in [clan.child, clan.apart] {
            let said = clan.say(&format!("wait {pid} now"))?;
            ensure!(said["pid"] == 0, "{said}, {}", what());
        }
    }
    // And back once more, with all of them there.
    roll_back(&clan.ksnap, clan.root(), &id)?;
    clan.goes_on_from(&then)?;
    clan.end(&["deeper", "child", "apart"])?;
    clan.ksnap.ok(&["verify"])?;
    Ok(())
}

#[test]
fn one_that_has_ended_is_made_again() -> Result<()> {
    is_made_again(&["apart"], &["--audit"])
}

/// Its parent has not waited for it, and does not find it ended behind the rollback.
#[test]
fn one_that_nobody_has_waited_for_is_made_again() -> Result<()> {
    is_made_again(&["deeper"], &[])
}

#[test]
fn a_process_and_its_child_are_made_again_and_so_is_all_but_the_first() -> Result<()> {
    is_made_again(&["deeper", "child"], &[])?;
    is_made_again(&["deeper", "child", "apart"], &["--files"])
}

#[test]
fn one_that_was_captured_without_probes_is_made_again() -> Result<()> {
    is_made_again(&["deeper", "child", "apart"], &["--no-probes"])
}

/// What is made again is captured, goes back and is brought back as all others are.
#[test]
fn snapshots_go_on_with_those_that_were_made_again() -> Result<()> {
    require!(Root, Ksnap, Program("python3"), ChosenIds);
    let mut clan = Clan::start()?;
    let first = clan.capture()?;
    clan.say("count")?;
    clan.end(&["deeper", "child"])?;
    roll_back(&clan.ksnap, clan.root(), &first)?;
    let then = clan.say("count")?;
    let second = clan.capture()?;
    clan.say("count")?;
    roll_back(&clan.ksnap, clan.root(), &second)?;
    clan.goes_on_from(&then)?;
    clan.end(&["apart"])?;
    roll_back(&clan.ksnap, clan.root(), &second)?;
    clan.goes_on_from(&then)?;
    // A delta of its earlier ones.
    let child = clan.child;
    let listed = clan.ksnap.json(&["log"])?;
    let of_child = listed.iter().filter(|one| one["pid"] == child);
    let kinds: Vec<&Value> = of_child.map(|one| &one["kind"]).collect();
    ensure!(kinds == ["base", "delta"], "{kinds:?}");
    let (_, pids) = capture(&clan.ksnap, clan.root(), &["--kill"])?;
    clan.is_gone()?;
    clan.ksnap.ok(&["verify"])?;
    let (_back, said) = bring_back(&clan.ksnap, &mut |_| Ok(()))?;
    ensure!(said["pid"] == pids[0], "{said}");
    for pid in &pids[1..] {
        ensure!(state_of(*pid) != 'Z', "{pid}");
    }
    Ok(())
}

/// The watcher goes on with them.
#[test]
fn a_watcher_goes_on_with_those_that_were_made_again() -> Result<()> {
    require!(Root, Ksnap, Program("python3"), ChosenIds);
    let mut clan = Clan::start()?;
    let options = ["--tree", "--every", "1h", "--audit"];
    let mut watch = Watch::start(&clan.ksnap, clan.root(), &options)?;
    watch.wait_taken(1, LIMIT)?;
    let then = clan.say("count")?;
    let id = clan.capture()?;
    for round in 0..2 {
        let what = || format!("round {round}");
        clan.say("count")?;
        clan.end(&["deeper", "child"]).with_context(what)?;
        // With or without a snapshot of the tree as it is then.
        if round == 1 {
            let (_, pids) = capture(&clan.ksnap, clan.root(), &[])?;
            ensure!(pids.len() == 2, "{pids:?}");
        }
        let said = roll_back(&clan.ksnap, clan.root(), &id).with_context(what)?;
        ensure!(made_by(&said)? == [clan.child, clan.deeper], "{said}");
        clan.goes_on_from(&then).with_context(what)?;
        let after = clan.say("count")?;
        let later = clan.capture().with_context(what)?;
        clan.say("count")?;
        roll_back(&clan.ksnap, clan.root(), &later).with_context(what)?;
        clan.goes_on_from(&after).with_context(what)?;
    }
    watch.interrupt(LIMIT)?.none_failed()?;
    clan.ksnap.ok(&["verify"])?;
    roll_back(&clan.ksnap, clan.root(), &id)?;
    clan.goes_on_from(&then)
}

/// What had ended and was not waited for is so again.
#[test]
fn what_had_ended_has_ended_again_as_it_did() -> Result<()> {
    require!(Root, Ksnap, Program("python3"), ChosenIds);
    let mut clan = Clan::start()?;
    clan.say("end apart 3")?;
    await_state(clan.apart, 'Z', LIMIT)?;
    let (id, pids) = capture(&clan.ksnap, clan.root(), &[])?;
    ensure!(pids.len() == 3, "{pids:?}");
    for _ in 0..2 {
        let said = clan.say(&format!("wait {}", clan.apart))?;
        ensure!(said["status"] == 3 << 8, "{said}");
        await_gone(clan.apart, LIMIT)?;
        roll_back(&clan.ksnap, clan.root(), &id)?;
        ensure!(state_of(clan.apart) == 'Z', "{}", state_of(clan.apart));
        ensure!(parent_of(clan.apart) == Some(clan.root()));
    }
    // As it is still there, it stays.
    roll_back(&clan.ksnap, clan.root(), &id)?;
    let said = clan.say(&format!("wait {}", clan.apart))?;
    ensure!(said["status"] == 3 << 8, "{said}");
    Ok(())
}

/// A refusal names the process and the reason, and the others are as they were.
fn refused(clan: &mut Clan, id: &str, words: &[&str]) -> Result<()> {
    let before = clan.say("count apart")?;
    clan.stands_still()?;
    let root = clan.root().to_string();
    let refused = clan.ksnap.run(&["rollback", &root, id, "--tree", "-y"])?;
    ensure!(refused.code()? == 1, "{refused:?}");
    for word in [&["nothing was touched"], words].concat() {
        ensure!(refused.stderr.contains(word), "{word}: {refused:?}");
    }
    clan.stands_still()?;
    let after = clan.say("count apart")?;
    let counts = [&before, &after].map(|said| said["apart"]["count"].as_i64());
    ensure!(counts[1] == counts[0].map(|n| n + 1), "{before} {after}");
    Ok(())
}

#[test]
fn where_a_foreign_process_has_the_id_nothing_is_touched() -> Result<()> {
    require!(Root, Ksnap, Program("python3"), ChosenIds);
    let mut clan = Clan::start()?;
    let then = clan.say("count")?;
    let id = clan.capture()?;
    clan.end(&["deeper", "child"])?;
    let other = take_id(clan.child)?;
    let name = format!("process {} (python3) has ended since", clan.child);
    refused(&mut clan, &id, &[&name, "sleep"])?;
    ensure!(
        !matches!(state_of(clan.child), 'T' | 'Z' | '?'),
        "it is not what it was"
    );
    drop(other);
    roll_back(&clan.ksnap, clan.root(), &id)?;
    clan.goes_on_from(&then)
}

#[test]
fn where_only_a_child_lives_nothing_is_touched() -> Result<()> {
    require!(Root, Ksnap, Program("python3"), ChosenIds);
    let mut clan = Clan::start()?;
    let then = clan.say("count")?;
    let id = clan.capture()?;
    kill(Pid::from_raw(clan.child), Signal::SIGKILL)?;
    let said = clan.say(&format!("wait {}", clan.child))?;
    ensure!(said["status"] == libc::SIGKILL, "{said}");
    let name = format!("process {} (python3) lives", clan.deeper);
    let way = format!("kill {}", clan.deeper);
    refused(&mut clan, &id, &[&name, &way])?;
    kill(Pid::from_raw(clan.deeper), Signal::SIGKILL)?;
    await_gone(clan.deeper, LIMIT)?;
    roll_back(&clan.ksnap, clan.root(), &id)?;
    clan.goes_on_from(&then)
}

#[test]
fn without_its_first_process_a_tree_is_refused() -> Result<()> {
    require!(Root, Ksnap, Program("python3"));
    let clan = Clan::start()?;
    let id = clan.capture()?;
    let root = clan.root();
    kill(Pid::from_raw(root), Signal::SIGKILL)?;
    await_state(root, 'Z', LIMIT)?;
    let root = root.to_string();
    let refused = clan.ksnap.run(&["rollback", &root, &id, "--tree", "-y"])?;
    ensure!(refused.code()? == 1, "{refused:?}");
    ensure!(refused.stderr.contains("ksnap restore"), "{refused:?}");
    Ok(())
}

/// Whoever may not choose ids is told so before anything is touched.
#[test]
fn an_ordinary_user_makes_nobody_again() -> Result<()> {
    const NOBODY: u32 = 65534;
    require!(Root, Ksnap, Program("python3"), OtherUsers, BuildForAll);
    let mut clan = Clan::start_for(Ksnap::as_user(NOBODY)?, |python| {
        let mut command = Command::new("setpriv");
        let id = NOBODY.to_string();
        command
            .args(["--reuid", &id, "--regid", &id, "--clear-groups"])
            .arg(python.get_program())
            .args(python.get_args());
        command
    })?;
    let id = clan.capture()?;
    clan.end(&["deeper", "child"])?;
    let name = format!("process {} (python3) has ended since", clan.child);
    refused(&mut clan, &id, &[&name, "CAP_CHECKPOINT_RESTORE"])
}

/// A server that has given up its privileges has none to choose ids: ksnap does it then.
#[test]
fn a_tree_of_an_ordinary_user_is_made_again() -> Result<()> {
    const NOBODY: u32 = 65534;
    require!(Root, Ksnap, Program("python3"), ChosenIds, OtherUsers);
    let mut clan = Clan::start_for(Ksnap::new()?, |python| {
        let mut command = Command::new("setpriv");
        let id = NOBODY.to_string();
        command
            .args(["--reuid", &id, "--regid", &id, "--clear-groups"])
            .arg(python.get_program())
            .args(python.get_args());
        command
    })?;
    let then = clan.say("count")?;
    let id = clan.capture()?;
    clan.end(&["deeper", "child", "apart"])?;
    roll_back(&clan.ksnap, clan.root(), &id)?;
    clan.goes_on_from(&then)
}

/// Its program is where it sees it, and nobody else does.
#[test]
fn one_in_another_mount_namespace_is_made_again() -> Result<()> {
    require!(Root, Ksnap, Program("bash"), ChosenIds, Mount);
    let ksnap = Ksnap::new()?;
    let folder = tempfile::tempdir()?;
    let program = folder.path().join("own");
    let script = "mount -t tmpfs none \"$1\" && cp \"$(command -v sleep)\" \"$1/own\" && { \"$1/own\" 1000 & } \
        && echo $! && while read x; do :; done";
    let mut command = Command::new("unshare");
    command.args(["--mount", "bash", "-c", script, "bash"]);
    command.arg(folder.path());
    let mut shell = Background::start(command)?;
    let child: i32 = shell.line(LIMIT)?.context("no child")?.parse()?;
    let _child = Pids(vec![child]);
    await_child(shell.pid(), "1000")?;
    ensure!(!program.exists(), "{program:?} is there for all");
    let (id, pids) = capture(&ksnap, shell.pid(), &[])?;
    ensure!(pids == [shell.pid(), child], "{pids:?}");
    kill(Pid::from_raw(child), Signal::SIGKILL)?;
    await_gone(child, LIMIT)?;
    let said = roll_back(&ksnap, shell.pid(), &id)?;
    ensure!(made_by(&said)? == [child], "{said}");
    ensure!(std::fs::read_link(format!("/proc/{child}/exe"))? == program);
    ensure!(parent_of(child) == Some(shell.pid()));
    Ok(())
}

/// Where it fails before the others are touched, they go on as if nothing had been, and who had waited for nobody finds
/// the same end.
#[test]
fn what_fails_before_the_others_are_touched_is_taken_back() -> Result<()> {
    require!(Root, Ksnap, Program("python3"), ChosenIds);
    let mut clan = Clan::start()?;
    let then = clan.say("count")?;
    let id = clan.capture()?;
    clan.say("end deeper 3")?;
    await_state(clan.deeper, 'Z', LIMIT)?;
    clan.say("end child 4")?;
    await_state(clan.child, 'Z', LIMIT)?;
    await_gone(clan.deeper, LIMIT)?;
    let root = clan.root().to_string();
    let words = ["rollback", &root, &id, "--tree", "-y"];
    let failed = clan
        .ksnap
        .fail_at("one that had ended made again", &words)?;
    ensure!(failed.stderr.contains("nothing was touched"), "{failed:?}");
    ensure!(state_of(clan.child) == 'Z', "{}", state_of(clan.child));
    let said = clan.say(&format!("wait {}", clan.child))?;
    ensure!(said["status"] == 4 << 8, "{said}");
    roll_back(&clan.ksnap, clan.root(), &id)?;
    clan.goes_on_from(&then)
}

/// Who lives goes back to its group, and whoever is in the group of one that is gone makes way for it.
#[test]
fn groups_go_back() -> Result<()> {
    require!(Root, Ksnap, Program("python3"), ChosenIds);
    let mut clan = Clan::start()?;
    let then = clan.say("count")?;
    let id = clan.capture()?;
    let moved = clan.say(&format!("group deeper {}", clan.deeper))?;
    ensure!(moved["group"] == clan.deeper, "{moved}");
    let said = roll_back(&clan.ksnap, clan.root(), &id)?;
    ensure!(!said.to_string().contains("group"), "{said}");
    clan.goes_on_from(&then)
}
