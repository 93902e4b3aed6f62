//! `ksnap watch --tree`: a process and all of its descendants, captured at one moment again and again.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tests::family::{pids_in, roll_back};
use tests::python::{ask, tell};
use tests::tree::{Pids, children_of};
use tests::victim::rng::Rng;
use tests::{Footprint, Ksnap, Nginx, Python, Victim, Watch, effort, require};

const LIMIT: Duration = Duration::from_secs(60);
const OFTEN: [&str; 4] = ["--tree", "--every", "50ms", "--audit"];

/// What is left in a store of the ways to watchers.
fn sockets(ksnap: &Ksnap) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(ksnap.store())? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        found.extend(Some(name).filter(|name| name.ends_with(".sock")));
    }
    Ok(found)
}

/// The processes of a tree that was taken.
fn taken(event: &Value) -> Result<Vec<i32>> {
    pids_in(&event["processes"])
}

fn goes_back_and_forth(name: &str, options: &[&str]) -> Result<()> {
    let ksnap = Ksnap::new()?;
    let mut victim = Victim::spawn(name, &[])?;
    let pid = victim.pid();
    let before = Footprint::of(pid)?;
    let mut watch = Watch::start(&ksnap, pid, &[&OFTEN, options].concat())?;
    let pids = taken(&watch.wait_taken(3, LIMIT)?)?;
    ensure!(pids.len() > 1 && pids[0] == pid, "{pids:?}");
    ensure!(
        watch.attached()["below"] == pids.len() - 1,
        "{}",
        watch.attached()
    );
    let mut rng = Rng::new(u64::from(std::process::id()));
    let rounds = effort::times(8);
    for round in 0..rounds {
        std::thread::sleep(Duration::from_millis(20 + rng.word() % 100));
        let ids = watch.ids()?;
        let id = &ids[rng.below(ids.len())];
        let what = || format!("rollback {round}, to {id}");
        let said = victim
            .blame(roll_back(&ksnap, pid, id))
            .with_context(what)?;
        ensure!(pids_in(&said["processes"])? == pids, "{said}");
        let then = victim.check().with_context(what)?.counter;
        victim.wait_beyond(then + 5, LIMIT).with_context(what)?;
    }
    let watched = watch.interrupt(LIMIT)?;
    watched.none_failed()?;
    ensure!(watched.rolled_back.len() == rounds, "{watched:?}");
    watched.left_nothing(&before)?;
    ensure!(sockets(&ksnap)?.is_empty(), "{:?}", sockets(&ksnap)?);
    victim.check()?;
    ksnap.ok(&["verify"])?;
    victim.quit()
}

#[test]
fn a_tree_goes_back_and_forth_through_its_watcher() -> Result<()> {
    require!(Root, Ksnap);
    goes_back_and_forth("tree", &[])
}

#[test]
fn a_tree_goes_back_and_forth_through_its_watcher_without_probes() -> Result<()> {
    require!(Root, Ksnap);
    goes_back_and_forth("tree", &["--no-probes"])
}

#[test]
fn memory_that_processes_share_goes_back_through_the_watcher() -> Result<()> {
    require!(Root, Ksnap);
    goes_back_and_forth("shared", &[])
}

/// `born` starts a child that waits, and prints its id; `end` ends the first one that is left, and waits for it.
const PARENT: &str = r#"
import os, signal, sys
children = []
print("ready")
while True:
    word = os.read(0, 100).decode().strip()
    if word == "born":
        pid = os.fork()
        if pid == 0:
            while True:
                signal.pause()
        children.append(pid)
        print(pid)
    elif word == "end":
        pid = children.pop(0)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        print(pid)
    elif word == "many":
        # Gone at once: what is attached to may not be there any more.
        for _ in range(300):
            pid = os.fork()
            if pid == 0:
                os.execvp("true", ["true"])
            os.waitpid(pid, 0)
        print(0)
    else:
        for pid in children:
            os.kill(pid, signal.SIGKILL)
        sys.exit(0)
"#;

struct Parent(Python);

impl Parent {
    fn start() -> Result<Self> {
        let mut python = Python::script(PARENT)?;
        ensure!(python.line(LIMIT)? == "ready");
        Ok(Self(python))
    }

    fn ask(&mut self, word: &str) -> Result<i32> {
        Ok(ask(self.0.process(), word)?.parse()?)
    }

    fn end(mut self) -> Result<()> {
        tell(self.0.process(), "quit")?;
        self.0.finish(LIMIT)?.success().map(drop)
    }
}

/// Waits for a tree of exactly these.
fn wait_for(watch: &mut Watch, pids: &[i32]) -> Result<Value> {
    let end = Instant::now() + effort::patience(LIMIT);
    loop {
        let event = watch
            .next("taken_tree", LIMIT)?
            .context("no tree is taken")?;
        if taken(&event)? == pids {
            return Ok(event);
        }
        ensure!(Instant::now() < end, "{event} instead of {pids:?}");
    }
}

#[test]
fn who_comes_is_taken_in_and_who_ends_is_let_go_of() -> Result<()> {
    require!(Root, Ksnap, Program("python3"));
    let ksnap = Ksnap::new()?;
    let mut parent = Parent::start()?;
    let root = parent.0.pid();
    let mut watch = Watch::start(&ksnap, root, &[&OFTEN[..], &["--keep-last", "3"]].concat())?;
    wait_for(&mut watch, &[root])?;
    let first = parent.ask("born")?;
    let second = parent.ask("born")?;
    wait_for(&mut watch, &[root, first, second])?;
    parent.ask("many")?;
    wait_for(&mut watch, &[root, first, second])?;
    ensure!(parent.ask("end")? == first);
    wait_for(&mut watch, &[root, second])?;
    // Who has come since is ended.
    let third = parent.ask("born")?;
    wait_for(&mut watch, &[root, second, third])?;
    wait_for(&mut watch, &[root, second, third])?;
    let now = children_of(root)?;
    ensure!(now.len() == 2, "{now:?}");
    // One that an event names may be gone by now: few are kept.
    roll_back(&ksnap, root, "latest")?;
    ensure!(children_of(root)? == now, "{:?}", children_of(root)?);
    let watched = watch.interrupt(LIMIT)?;
    watched.none_failed()?;
    // What the rules keep, and nothing of those that ended before.
    let listed = ksnap.json(&["log"])?;
    let of = |pid: i32| listed.iter().filter(|entry| entry["pid"] == pid).count();
    ensure!(of(root) == 3, "{listed:?}");
    ensure!(of(first) == 0, "{listed:?}");
    let others = listed.iter().filter(|entry| {
        let pid = entry["pid"].as_i64().unwrap_or(0) as i32;
        ![root, second, third].contains(&pid)
    });
    ensure!(others.count() == 0, "{listed:?}");
    // Nor of those of whom there never was one.
    let folders = std::fs::read_dir(ksnap.store())?.flatten();
    let sessions =
        folders.filter_map(|e| std::fs::read_to_string(e.path().join("session.json")).ok());
    let sessions: Vec<String> = sessions.collect();
    ensure!(
        sessions.len() == 3,
        "{sessions:?}, {root} {first} {second} {third}"
    );
    ksnap.ok(&["verify"])?;
    parent.end()
}

#[test]
fn requests_go_to_the_watcher_of_the_tree_or_say_what_to_do() -> Result<()> {
    require!(Root, Ksnap);
    let ksnap = Ksnap::new()?;
    let mut victim = Victim::spawn("tree", &[])?;
    let pid = victim.pid();
    let mut watch = Watch::start(&ksnap, pid, &["--tree", "--every", "1h", "--audit"])?;
    let pids = taken(&watch.wait_taken(1, LIMIT)?)?;
    let (root, child) = (pid.to_string(), pids[1].to_string());
    for args in [
        &["snap", &root][..],
        &["snap", &child],
        // The whole tree would be.
        &["snap", &child, "--tree", "--kill"],
        &["rollback", &root, "latest", "-y"],
        &["rollback", &child, "latest", "-y"],
    ] {
        let refused = ksnap.run(args)?;
        ensure!(refused.code()? == 1, "{args:?}: {refused:?}");
        let way = format!("ksnap snap {root} --tree");
        ensure!(refused.stderr.contains(&way), "{args:?}: {refused:?}");
    }
    for args in [
        &["watch", &child, "--count", "1"][..],
        &["watch", &root, "--tree"],
    ] {
        let refused = ksnap.run(args)?;
        ensure!(refused.code()? == 11, "{args:?}: {refused:?}");
    }
    let said = ksnap.json(&["snap", &root, "--tree", "--files"])?.remove(0);
    ensure!(pids_in(&said["processes"])? == pids, "{said}");
    let id = said["id"].as_str().context("no id")?;
    let then = victim.check()?.counter;
    victim.wait_beyond(then + 20, LIMIT)?;
    roll_back(&ksnap, pid, id)?;
    ksnap.ok(&["rollback", &root, "latest~", "--tree", "-y"])?;
    victim.check()?;
    ksnap.ok(&["snap", &root, "--tree"])?;
    // Each session is written by it, and removed from by it.
    let pruned = ksnap.json(&["prune", "--keep-last", "1", "-y"])?.remove(0);
    ensure!(
        pruned["notes"].as_array().is_some_and(Vec::is_empty),
        "{pruned}"
    );
    let sessions = pruned["sessions"].as_array().context("no sessions")?;
    let by_watcher = sessions.iter().filter(|one| one["by_watcher"] == true);
    ensure!(by_watcher.count() == pids.len(), "{pruned}");
    ksnap.ok(&["verify"])?;
    let watched = watch.interrupt(LIMIT)?;
    watched.none_failed()?;
    ensure!(watched.rolled_back.len() == 2, "{watched:?}");
    victim.quit()
}

#[test]
fn a_watcher_that_is_killed_leaves_all_of_them_running_and_nothing_in_the_way() -> Result<()> {
    require!(Root, Ksnap);
    let ksnap = Ksnap::new()?;
    let mut victim = Victim::spawn("tree", &[])?;
    let pid = victim.pid();
    let mut rng = Rng::new(u64::from(std::process::id()));
    let mut pids = Vec::new();
    for _ in 0..effort::times(5) {
        let mut watch = Watch::start(&ksnap, pid, &["--tree", "--every", "10ms"])?;
        pids = taken(&watch.wait_taken(2, LIMIT)?)?;
        std::thread::sleep(Duration::from_millis(rng.word() % 50));
        watch.process().signal(Signal::SIGKILL)?;
        watch.process().finish(LIMIT)?;
        let then = victim.check()?.counter;
        victim.wait_beyond(then + 20, LIMIT)?;
        ksnap.ok(&["verify"])?;
    }
    // Whatever lies there still: it leads nobody to another one.
    let root = pid.to_string();
    let mut alone = Watch::start(&ksnap, pid, &["--every", "1h"])?;
    alone.wait_taken(1, LIMIT)?;
    let refused = ksnap.run(&["snap", &pids[1].to_string(), "--kill"])?;
    ensure!(refused.code()? == 1, "{refused:?}");
    ensure!(refused.stderr.contains("not process"), "{refused:?}");
    alone.interrupt(LIMIT)?.none_failed()?;
    victim.check()?;
    let mut watch = Watch::start(&ksnap, pid, &["--tree", "--every", "1h"])?;
    watch.wait_taken(1, LIMIT)?;
    watch.interrupt(LIMIT)?.none_failed()?;
    ensure!(sockets(&ksnap)?.is_empty(), "{:?}", sockets(&ksnap)?);
    ksnap.ok(&["snap", &root, "--tree", "--audit"])?;
    for pid in pids {
        ksnap.snap(pid, &["--audit"])?;
    }
    victim.check()?;
    victim.quit()
}

#[test]
fn a_command_is_run_with_all_that_it_starts() -> Result<()> {
    require!(Root, Ksnap);
    let ksnap = Ksnap::new()?;
    let options = ["--tree", "--every", "50ms", "--progress", "never"];
    let mut victim = ksnap.run_victim(&options, "tree", &[])?;
    let root = victim.pid();
    let end = Instant::now() + effort::patience(LIMIT);
    // There is no store before the first snapshot.
    let trees = || {
        let listed = ksnap.json(&["log"]).unwrap_or_default();
        listed.iter().filter(|one| one["pid"] == root).count()
    };
    while trees() < 3 {
        ensure!(Instant::now() < end, "no snapshots");
        std::thread::sleep(Duration::from_millis(50));
    }
    let then = victim.check()?.counter;
    roll_back(&ksnap, root, "@1")?;
    victim.wait_beyond(then, LIMIT)?;
    victim.check()?;
    victim.quit()?;
    ksnap.ok(&["verify"])?;
    Ok(())
}

/// Requests go on while it is watched, and behind each rollback.
#[test]
fn nginx_is_watched_with_its_workers() -> Result<()> {
    require!(Root, Ksnap, Program("nginx"));
    let ksnap = Ksnap::new()?;
    let mut server = Nginx::start()?;
    let root = server.process().pid();
    let mut watch = Watch::start(&ksnap, root, &OFTEN)?;
    let pids = taken(&watch.wait_taken(3, LIMIT)?)?;
    ensure!(pids.len() == 3, "{pids:?}");
    let _workers = Pids(pids[1..].to_vec());
    for back in [1, 3, 2] {
        server.answers_all(20)?;
        let ids = watch.ids()?;
        let said = roll_back(&ksnap, root, &ids[ids.len() - back])?;
        ensure!(pids_in(&said["processes"])? == pids, "{said}");
        server.answers_all(20)?;
        watch.wait_taken(ids.len() + 2, LIMIT)?;
    }
    let watched = watch.interrupt(LIMIT)?;
    watched.none_failed()?;
    server.answers_all(20)?;
    ksnap.ok(&["verify"])?;
    kill(Pid::from_raw(root), Signal::SIGQUIT)?;
    let ended = server.process().wait(LIMIT)?.context("nginx lives")?;
    ensure!(ended.success(), "{ended}");
    Ok(())
}
