//! `ksnap rollback --tree` of real programs.

use std::collections::BTreeMap;
use std::io::Write;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tests::background::Background;
use tests::family::{capture, pids_in, roll_back};
use tests::footprint::{await_gone, processes, state_of};
use tests::postgres::Postgres;
use tests::terminal::{Terminal, await_child, await_that, place_of};
use tests::tree::{Pids, children_of, parent_of, stat_of};
use tests::{Ksnap, Nginx, Python, require};

const LIMIT: Duration = Duration::from_secs(60);

/// Requests go on, and the master leads its workers, behind each rollback as before it: also when the workers are others
/// by then, which are ended for those that were.
#[test]
fn nginx_and_its_workers_go_back_together() -> Result<()> {
    require!(Root, Ksnap, Program("nginx"), ChosenIds);
    let ksnap = Ksnap::new()?;
    let mut server = Nginx::start()?;
    let root = server.process().pid();
    let (first, pids) = capture(&ksnap, root, &[])?;
    ensure!(pids.len() == 3, "{pids:?}");
    let _workers = Pids(pids[1..].to_vec());
    server.answers_all(20)?;
    let (second, again) = capture(&ksnap, root, &[])?;
    ensure!(again == pids, "{again:?}");
    for id in [&first, &second, &second, &first] {
        server.answers_all(20)?;
        let said = roll_back(&ksnap, root, id)?;
        ensure!(
            said["ended"].as_array().is_some_and(Vec::is_empty),
            "{said}"
        );
        server.answers_all(20)?;
    }
    // Reloading replaces the workers: the master talks to them, and waits for their ends.
    kill(Pid::from_raw(root), Signal::SIGHUP)?;
    let end = Instant::now() + LIMIT;
    let is_there = |pid: i32| std::path::Path::new(&format!("/proc/{pid}")).exists();
    while is_there(pids[1]) || is_there(pids[2]) {
        ensure!(Instant::now() < end, "the old workers stay");
        std::thread::sleep(Duration::from_millis(20));
    }
    server.answers_all(5)?;
    let workers = children_of(root)?;
    let said = roll_back(&ksnap, root, &first)?;
    let made = pids_in(&said["made"])?;
    ensure!(made == pids[1..], "{said}");
    ensure!(pids_in(&said["ended"])? == workers, "{said}");
    ensure!(children_of(root)? == made, "the old workers are not back");
    server.answers_all(20)?;
    // One that fails is replaced, and is back in its place.
    kill(Pid::from_raw(made[0]), Signal::SIGKILL)?;
    await_that("another worker", || {
        children_of(root).is_ok_and(|now| now.len() == 2 && !now.contains(&made[0]))
    })?;
    roll_back(&ksnap, root, &second)?;
    let mut now = children_of(root)?;
    now.sort_unstable();
    ensure!(now == made, "{now:?} instead of {made:?}");
    server.answers_all(20)?;
    kill(Pid::from_raw(root), Signal::SIGQUIT)?;
    let ended = server.process().wait(LIMIT)?.context("nginx lives")?;
    ensure!(ended.success(), "{ended}");
    ksnap.ok(&["verify"])?;
    Ok(())
}

/// A shell finds its job again, in a group of its own, and learns of its end when that comes.
#[test]
fn a_job_of_a_shell_that_has_ended_is_there_again() -> Result<()> {
    require!(Root, Ksnap, Program("bash"), ChosenIds);
    let ksnap = Ksnap::new()?;
    let mut command = Command::new("bash");
    let script = "set -m; sleep 1000 & j=$!; echo $j; while read x; do eval \"$x\"; done";
    command.args(["-c", script]);
    let mut shell = Background::start(command)?;
    let job: i32 = shell.line(LIMIT)?.context("no job")?.parse()?;
    let _job = Pids(vec![job]);
    let root = shell.pid();
    await_child(root, "1000")?;
    let (id, pids) = capture(&ksnap, root, &[])?;
    ensure!(pids == [root, job], "{pids:?}");
    for _ in 0..3 {
        shell
            .stdin()?
            .write_all(b"kill $j; wait $j; echo gone $?\n")?;
        let said = shell.line(LIMIT)?.context("the shell has ended")?;
        ensure!(said == format!("gone {}", 128 + libc::SIGTERM), "{said}");
        await_gone(job, LIMIT)?;
        roll_back(&ksnap, root, &id)?;
        let stat = stat_of(job).context("no job")?;
        ensure!(
            stat[1..3] == [root.to_string(), job.to_string()],
            "{stat:?}"
        );
        shell.stdin()?.write_all(b"jobs -r | grep -c sleep\n")?;
        let said = shell.line(LIMIT)?.context("the shell has ended")?;
        ensure!(said == "1", "{said}");
    }
    ksnap.ok(&["verify"])?;
    Ok(())
}

/// The group that a pipeline is in has the id of its first process, as long as the others live.
#[test]
fn a_pipeline_whose_first_process_has_ended_is_whole_again() -> Result<()> {
    require!(Root, Ksnap, Program("bash"), ChosenIds);
    let ksnap = Ksnap::new()?;
    let mut command = Command::new("bash");
    let script = "set -m; sleep 1001 | sleep 1002 & while read x; do eval \"$x\"; done";
    command.args(["-c", script]);
    let mut shell = Background::start(command)?;
    let root = shell.pid();
    let (first, second) = (await_child(root, "1001")?, await_child(root, "1002")?);
    let _both = Pids(vec![first, second]);
    let (id, pids) = capture(&ksnap, root, &[])?;
    ensure!(pids.len() == 3, "{pids:?}");
    let group = |pid: i32| stat_of(pid).and_then(|stat| stat.get(2)?.parse::<i32>().ok());
    for _ in 0..2 {
        kill(Pid::from_raw(first), Signal::SIGTERM)?;
        await_gone(first, LIMIT)?;
        ensure!(group(second) == Some(first), "{:?}", group(second));
        // One that fails when the second has left the group already puts it back, though nobody is there that began it.
        let words = ["rollback", &root.to_string(), &id, "--tree", "-y"];
        let failed = ksnap.fail_at("one that had ended made again", &words)?;
        ensure!(failed.stderr.contains("nothing was touched"), "{failed:?}");
        ensure!(group(second) == Some(first), "{failed:?}");
        ensure!(
            state_of(second) != 'T' && state_of(root) != 'T',
            "{failed:?}"
        );
        await_gone(first, LIMIT)?;
        let said = roll_back(&ksnap, root, &id)?;
        ensure!(pids_in(&said["made"])? == [first], "{said}");
        ensure!(group(first) == Some(first), "{:?}", group(first));
        ensure!(group(second) == Some(first), "{:?}", group(second));
    }
    // Both are one job.
    shell
        .stdin()?
        .write_all(b"kill %1; wait; echo over $(jobs -r | wc -l)\n")?;
    let said = shell.line(LIMIT)?.context("the shell has ended")?;
    ensure!(said == "over 0", "{said}");
    await_gone(first, LIMIT)?;
    await_gone(second, LIMIT)?;
    Ok(())
}

/// What was in the foreground of a terminal is there again: keys go to it.
#[test]
fn the_foreground_of_a_terminal_goes_back() -> Result<()> {
    require!(Root, Ksnap, Program("python3"), Program("bash"), ChosenIds);
    let ksnap = Ksnap::new()?;
    let mut terminal = Terminal::start(&["bash", "--norc", "-i"])?;
    terminal.expect("% ")?;
    let shell = terminal.child;
    terminal.type_in("sleep 1000\n")?;
    let sleeper = await_child(shell, "1000")?;
    let front = |pid: i32| place_of(pid).map(|place| place[3]);
    await_that("it is in the foreground", || {
        front(shell).is_ok_and(|group| group == i64::from(sleeper))
    })?;
    terminal.expect("sleep 1000\r\n")?;
    let (id, pids) = capture(&ksnap, terminal.root, &[])?;
    ensure!(pids == [terminal.root, shell, sleeper], "{pids:?}");
    for _ in 0..2 {
        terminal.type_in("\x03")?;
        terminal.expect("% ")?;
        await_gone(sleeper, LIMIT)?;
        ensure!(front(shell)? == i64::from(shell));
        let said = roll_back(&ksnap, terminal.root, &id)?;
        ensure!(pids_in(&said["made"])? == [sleeper], "{said}");
        ensure!(front(shell)? == i64::from(sleeper), "{said}");
        ensure!(place_of(sleeper)?[..3] == [sleeper.into(), shell.into(), place_of(shell)?[2]]);
    }
    terminal.type_in("\x03")?;
    terminal.expect("% ")?;
    let said = terminal.run("echo $?")?;
    ensure!(said.trim() == format!("{}", 128 + libc::SIGINT), "{said}");
    Ok(())
}

/// A worker that is killed in the middle of its work takes that with it. Behind a rollback all of it is done.
#[test]
fn a_worker_of_a_pool_of_python_is_back_with_its_work() -> Result<()> {
    require!(Root, Ksnap, Program("python3"), ChosenIds);
    let ksnap = Ksnap::new()?;
    let mut python = Python::script(
        "import hashlib, multiprocessing\n\
         def work(n):\n\
         \x20   h = hashlib.sha256(str(n).encode())\n\
         \x20   for i in range(600000): h.update(h.digest())\n\
         \x20   return h.hexdigest()[:8]\n\
         if __name__ == '__main__':\n\
         \x20   multiprocessing.set_start_method('fork')\n\
         \x20   with multiprocessing.Pool(3) as pool:\n\
         \x20       for n, got in enumerate(pool.imap(work, range(40))):\n\
         \x20           print(n, got, flush=True)\n\
         \x20   print('expected', work(0), work(13), work(39), flush=True)\n",
    )?;
    let root = python.pid();
    let mut lines = vec![python.line(LIMIT)?, python.line(LIMIT)?];
    let (id, pids) = capture(&ksnap, root, &[])?;
    let _pids = Pids(pids[1..].to_vec());
    ensure!(pids.len() >= 4, "{pids:?}");
    for round in 0..2 {
        kill(Pid::from_raw(pids[1]), Signal::SIGKILL)?;
        // Another one takes its place: one of python's threads has made it.
        let worker = |pid: i32| parent_of(pid) == Some(root) && state_of(pid) != 'Z';
        await_that("another worker", || {
            let now = processes(worker).unwrap_or_default();
            now.len() == pids.len() - 1 && !now.contains(&pids[1])
        })?;
        let said = roll_back(&ksnap, root, &id)?;
        ensure!(
            pids_in(&said["made"])? == [pids[1]],
            "{said}, round {round}"
        );
        ensure!(pids_in(&said["ended"])?.len() == 1, "{said}, round {round}");
    }
    let finished = python.finish(4 * LIMIT)?;
    ensure!(finished.code()? == 0, "{finished:?}");
    lines.extend(finished.stdout.lines().map(str::to_owned));
    let expected = lines.pop().context("no lines")?;
    let mut results: BTreeMap<u32, &str> = BTreeMap::new();
    for line in &lines {
        let (n, got) = line.split_once(' ').with_context(|| line.clone())?;
        // What was done before the rollback is done again, and is the same.
        let before = results.insert(n.parse()?, got);
        ensure!(before.is_none_or(|before| before == got), "{lines:?}");
    }
    ensure!(results.len() == 40, "{lines:?}");
    let some = [0, 13, 39].map(|n| results[&n]).join(" ");
    ensure!(
        expected == format!("expected {some}"),
        "{expected}: {lines:?}"
    );
    Ok(())
}

/// A backend whose client has gone is there again, finds that it has gone, and ends: its postmaster knows it.
#[test]
fn a_backend_of_postgres_that_has_ended_is_there_again() -> Result<()> {
    require!(Root, Ksnap, Postgres, ChosenIds);
    let ksnap = Ksnap::new()?;
    let mut server = Postgres::start()?;
    let mut client = server.session()?;
    let made = "create table t as select 1 as v; checkpoint; select pg_backend_pid()";
    let backend: i32 = client.ask(made)?.parse()?;
    server.await_alone_but(1)?;
    let root = server.pid();
    let (id, pids) = capture(&ksnap, root, &["--files"])?;
    let _pids = Pids(pids[1..].to_vec());
    ensure!(pids.contains(&backend), "{pids:?}");
    ensure!(client.ask("update t set v = 2; select v from t")? == "2");
    drop(client);
    await_gone(backend, LIMIT)?;
    server.await_alone()?;
    let said = roll_back(&ksnap, root, &id)?;
    ensure!(pids_in(&said["made"])? == [backend], "{said}");
    // Its client is gone as before.
    await_gone(backend, LIMIT)?;
    server.await_alone()?;
    ensure!(server.query("select v from t")? == "1");
    server.query("checkpoint")?;
    kill(Pid::from_raw(root), Signal::SIGINT)?;
    let ended = server.process().wait(LIMIT)?.context("it lives")?;
    ensure!(ended.success(), "{ended}");
    Ok(())
}
