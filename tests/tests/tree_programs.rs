//! Real programs of several processes: they go on where they were, and lose nothing.

use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tests::background::Background;
use tests::tree::{bring_back, end_captured, nothing_early, parent_of, stat_of};
use tests::{Ksnap, Nginx, Numbers, Python, require};

const LIMIT: Duration = Duration::from_secs(60);

/// A shell with job control: a pipeline whose numbers must all arrive, and a background job in a group of its own.
#[test]
fn a_pipeline_of_a_shell_loses_nothing() -> Result<()> {
    require!(Root, Ksnap, Program("bash"), ChosenIds);
    let ksnap = Ksnap::new()?;
    let script = "set -m; sleep 1000 & echo job $!; \
        (i=0; while :; do echo $i; i=$((i+1)); sleep 0.002; done) | while read x; do echo n$x; done | cat; \
        echo over; kill $(jobs -p); wait; echo ended";
    let mut command = Command::new("bash");
    command.args(["-c", script]);
    let mut shell = Background::start(command)?;
    let line = shell.line(LIMIT)?.context("no job")?;
    let job: i32 = line.strip_prefix("job ").context("no job")?.parse()?;
    let mut numbers = Numbers::default();
    numbers.expect(&mut shell, 50)?;
    let root = shell.pid();
    let pids = end_captured(&ksnap, root)?;
    ensure!(pids.0.len() >= 5 && pids.0.contains(&job), "{:?}", pids.0);
    shell.wait(LIMIT)?.context("the shell lives")?;
    pids.are_gone()?;
    numbers.rest(&mut shell)?;
    let (mut back, said) = bring_back(&ksnap, &mut |line| numbers.take(line))?;
    ensure!(said["pid"] == root, "{said}");
    numbers.expect(&mut back, 100)?;
    let group = |pid: i32| stat_of(pid).and_then(|stat| stat.get(2)?.parse::<i32>().ok());
    ensure!(
        group(job) == Some(job),
        "the job is in group {:?}",
        group(job)
    );
    // The shell knows its children: it goes on when the pipeline has ended, and ends the job.
    let children = pids.0.iter().filter(|pid| parent_of(**pid) == Some(root));
    for pid in children.filter(|pid| **pid != job) {
        kill(Pid::from_raw(*pid), Signal::SIGTERM)?;
    }
    let mut line = String::new();
    while line != "over" {
        line = back.line(LIMIT)?.context("the shell does not go on")?;
    }
    let finished = back.finish(LIMIT)?;
    ensure!(finished.stdout.contains("ended"), "{finished:?}");
    pids.are_gone()
}

/// In a container that was entered from outside, ksnap's own session has no id (pid_namespaces(7): it is 0).
#[test]
fn a_tree_goes_on_where_the_session_of_ksnap_began_outside() -> Result<()> {
    require!(Root, Ksnap, Mount, Program("bash"));
    let ksnap = Ksnap::new()?;
    let script = "sleep 1000 & while read x; do echo got $x; done; kill $!; wait; echo ended";
    let mut command = Command::new("bash");
    command.args(["-c", script]);
    let mut shell = Background::start(command)?;
    shell.stdin()?.write_all(b"one\n")?;
    ensure!(shell.line(LIMIT)?.as_deref() == Some("got one"));
    let pids = end_captured(&ksnap, shell.pid())?;
    ensure!(pids.0.len() == 2, "{:?}", pids.0);
    shell.wait(LIMIT)?.context("the shell lives")?;
    pids.are_gone()?;
    let tool = ksnap.command();
    let mut command = Command::new("unshare");
    command
        .args(["--pid", "--fork", "--kill-child", "--mount-proc"])
        .arg(tool.get_program())
        .args(tool.get_args())
        .args(["restore", "latest", "--wait"]);
    let mut back = Background::start(command)?;
    back.stdin()?.write_all(b"two\n")?;
    while back.line(LIMIT)?.with_context(|| back.stderr())? != "got two" {}
    back.close_stdin();
    let finished = back.finish(LIMIT)?;
    ensure!(
        finished.code()? == 0 && finished.stdout.contains("ended"),
        "{finished:?}"
    );
    Ok(())
}

/// A pool of workers in the middle of its work.
#[test]
fn a_pool_of_python_finishes_its_work() -> Result<()> {
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
         \x20           print(n, got)\n\
         \x20   print('expected', [work(n) for n in range(0, 40, 13)])\n",
    )?;
    let mut lines = vec![python.line(LIMIT)?, python.line(LIMIT)?];
    let pids = end_captured(&ksnap, python.pid())?;
    ensure!(pids.0.len() >= 4, "{:?}", pids.0);
    python.process().wait(LIMIT)?.context("python lives")?;
    pids.are_gone()?;
    while let Ok(Some(line)) = python.process().line(LIMIT) {
        lines.push(line);
    }
    let (mut back, _) = bring_back(&ksnap, &mut |line| {
        lines.push(line.to_owned());
        Ok(())
    })?;
    // All of its work may be left.
    let finished = back.finish(4 * LIMIT)?;
    ensure!(finished.code()? == 0, "{finished:?}");
    lines.extend(finished.stdout.lines().map(str::to_owned));
    ensure!(lines.len() == 41, "{lines:?}");
    let results: Vec<&str> = lines[..40]
        .iter()
        .enumerate()
        .map(|(n, line)| line.strip_prefix(&format!("{n} ")).unwrap_or("?"))
        .collect();
    let some: Vec<String> = (0..40)
        .step_by(13)
        .map(|n| format!("'{}'", results[n]))
        .collect();
    ensure!(
        lines[40] == format!("expected [{}]", some.join(", ")),
        "{lines:?}"
    );
    pids.are_gone()
}

/// A page from a server, by a new connection.
/// A server with a master and workers: all answer, and the master still leads them.
#[test]
fn nginx_and_its_workers_answer_again() -> Result<()> {
    require!(Root, Ksnap, Program("nginx"), ChosenIds);
    let ksnap = Ksnap::new()?;
    let mut server = Nginx::start()?;
    let nginx = server.process();
    let root = nginx.pid();
    let pids = end_captured(&ksnap, root)?;
    ensure!(pids.0.len() == 3, "{:?}", pids.0);
    nginx.wait(LIMIT)?.context("nginx lives")?;
    pids.are_gone()?;
    ensure!(server.page().is_err(), "somebody else answers");
    let (mut back, said) = bring_back(&ksnap, &mut nothing_early)?;
    ensure!(said["pid"] == root, "{said}");
    for _ in 0..20 {
        ensure!(server.page()?.contains("hello from a file"));
    }
    // Reloading replaces the workers: the master talks to them, and waits for their ends.
    kill(Pid::from_raw(root), Signal::SIGHUP)?;
    let end = Instant::now() + LIMIT;
    let worker = |pid: i32| Path::new(&format!("/proc/{pid}")).exists();
    while worker(pids.0[1]) || worker(pids.0[2]) {
        ensure!(Instant::now() < end, "the old workers stay");
        std::thread::sleep(Duration::from_millis(20));
    }
    ensure!(server.page()?.contains("hello from a file"));
    kill(Pid::from_raw(root), Signal::SIGQUIT)?;
    let finished = back.finish(LIMIT)?;
    ensure!(finished.code()? == 0, "{finished:?}");
    pids.are_gone()
}
