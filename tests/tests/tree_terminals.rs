//! Trees with sessions on terminals: each session comes back with its terminal, and the terminal with its foreground.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tests::background::Ended;
use tests::footprint::{await_state, state_of};
use tests::terminal::{Terminal, are_as_before, await_child, await_that, child_with, place_of};
use tests::tree::{bring_back, end_captured, goes_on_twice, nothing_early, stat_of};
use tests::{Ksnap, Python, Victim, require};

const LIMIT: Duration = Duration::from_secs(60);

/// Whether a process has become the program with this argument alone.
fn has_argument(pid: i32, argument: &str) -> bool {
    let line = std::fs::read_to_string(format!("/proc/{pid}/cmdline"));
    line.is_ok_and(|line| line == format!("sleep\0{argument}\0"))
}

/// A victim that looks at its session all the time, captured, ended and brought back, twice in a row.
fn a_session_goes_on(options: &[&str]) -> Result<()> {
    require!(Root, Ksnap);
    if options.is_empty() {
        require!(ChosenIds);
    }
    goes_on_twice(("session", &[]), options, |victim| {
        let notes = victim.ready()["notes"].to_string();
        ensure!(!notes.contains("controlling terminal"), "{notes}");
        Ok(())
    })
}

#[test]
fn a_session_goes_on_with_its_terminal() -> Result<()> {
    a_session_goes_on(&[])
}

#[test]
fn a_session_goes_on_with_its_terminal_in_a_namespace_of_its_own() -> Result<()> {
    a_session_goes_on(&["--pids", "namespace"])
}

#[test]
fn copies_of_a_session_have_terminals_of_their_own() -> Result<()> {
    require!(Root, Ksnap);
    let ksnap = Ksnap::new()?;
    let mut victim = Victim::spawn("session", &[])?;
    for _ in 0..3 {
        let ended = ksnap.run(&["snap", &victim.pid().to_string(), "--tree"])?;
        ensure!(matches!(ended.code()?, 0 | 3), "{ended:?}");
        victim.check()?;
    }
    let mut process = ksnap.start(&["fork", "latest", "-n", "2", "--json"])?;
    for _ in 0..2 {
        let line = process.line(LIMIT)?.context("too few copies")?;
        let copy: Value = serde_json::from_str(&line)?;
        let notes = copy["notes"].to_string();
        // The one that it had is the running one's.
        ensure!(notes.contains("the terminal that was /dev/pts/"), "{copy}");
    }
    ensure!(process.wait(LIMIT)?.is_some(), "ksnap does not end");
    for n in 0..2 {
        let reply = tests::subject::request(&mut process, "quit", n, LIMIT)?;
        ensure!(reply["ok"] == true, "{reply}");
    }
    victim.check()?;
    victim.quit()
}

/// Jobs in the background, stopped and running, and one in the foreground.
#[test]
fn a_shell_goes_on_leading_its_jobs() -> Result<()> {
    require!(Root, Ksnap, Program("python3"), Program("bash"), ChosenIds);
    let ksnap = Ksnap::new()?;
    let mut terminal = Terminal::start(&["bash", "--noediting", "--norc", "--noprofile", "-i"])?;
    let (holder, shell) = (terminal.root, terminal.child);
    terminal.expect("% ")?;
    terminal.run("stty rows 33 cols 101; before=kept")?;
    terminal.type_in("sleep 100001 &\n")?;
    terminal.expect("% ")?;
    terminal.type_in("sleep 100002\n")?;
    await_that("a job in the foreground", || {
        child_with(shell, "100002")
            .is_ok_and(|job| place_of(shell).is_ok_and(|place| place[3] == i64::from(job)))
    })?;
    let job = child_with(shell, "100002")?;
    terminal.type_in("\x1a")?;
    await_that("a stopped job", || state_of(job) == 'T')?;
    terminal.expect("% ")?;
    let listed = terminal.run("jobs -l")?;
    let running = await_child(shell, "100001")?;
    for word in ["Stopped", "Running", &job.to_string(), &running.to_string()] {
        ensure!(listed.contains(word), "{word}: {listed}");
    }
    let all = [holder, shell, running, job];
    let places = || -> Result<Vec<(i32, [i64; 4])>> {
        all.iter().map(|pid| Ok((*pid, place_of(*pid)?))).collect()
    };
    let before = places()?;
    ensure!(before[1].1[3] == i64::from(shell), "{before:?}");
    // The shell is in the foreground.
    let (pids, notes) = terminal.again(&ksnap)?;
    ensure!(pids.0.len() == 4, "{:?}", pids.0);
    are_as_before(&before, &notes)?;
    await_state(job, 'T', LIMIT)?;
    let listed = terminal.run("jobs -l")?;
    for word in ["Stopped", "Running", &job.to_string(), &running.to_string()] {
        ensure!(listed.contains(word), "{word}: {listed}");
    }
    let said = terminal.run("echo $before; stty size")?;
    ensure!(said.contains("kept\r\n33 101\r\n"), "{said}");
    // A job is.
    terminal.type_in("fg %2\n")?;
    await_that("it goes on in the foreground", || {
        state_of(job) == 'S' && place_of(job).is_ok_and(|place| place[3] == i64::from(job))
    })?;
    let before = places()?;
    let (_pids, notes) = terminal.again(&ksnap)?;
    are_as_before(&before, &notes)?;
    terminal.type_in("\x03")?;
    terminal.expect("% ")?;
    let said = terminal.run("echo code $?")?;
    ensure!(said.contains("code 130"), "{said}");
    await_that("it has ended", || state_of(job) == '?')?;
    ensure!(state_of(running) == 'S', "Ctrl-C reached it");
    ensure!(
        place_of(shell)?[3] == i64::from(shell),
        "{:?}",
        place_of(shell)?
    );
    let said = terminal.run("jobs; kill %1; wait %1; echo waited $?")?;
    ensure!(said.contains("waited 143"), "{said}");
    terminal.type_in("exit 5\n")?;
    let said = terminal.ended()?;
    ensure!(said.contains("ended 5"), "{said}");
    pids.are_gone()
}

/// The terminal of a shell whose master is elsewhere.
#[test]
fn a_terminal_that_is_held_elsewhere_is_named() -> Result<()> {
    require!(Root, Ksnap, Program("python3"), ChosenIds);
    let ksnap = Ksnap::new()?;
    let mut terminal =
        Terminal::start(&["sh", "-c", "sleep 100003 & echo here; exec sleep 100004"])?;
    terminal.expect("here")?;
    // Both may still be the shell.
    await_child(terminal.child, "100003")?;
    await_that("it sleeps", || has_argument(terminal.child, "100004"))?;
    let pids = end_captured(&ksnap, terminal.child)?;
    ensure!(pids.0.len() == 2, "{:?}", pids.0);
    ensure!(terminal.ended()?.contains("ended -9"));
    pids.are_gone()?;
    let (back, said) = bring_back(&ksnap, &mut nothing_early)?;
    let notes: Vec<&str> = said["notes"]
        .as_array()
        .context("no notes")?
        .iter()
        .filter_map(|note| note.as_str())
        .filter(|note| note.contains("controlling terminal"))
        .collect();
    let [note] = notes[..] else {
        bail!("one note for the session: {said}");
    };
    for word in [
        &format!("process {}", terminal.child),
        "/dev/pts/",
        "a process outside of the tree has its master",
    ] {
        ensure!(note.contains(word), "{word}: {note}");
    }
    for pid in &pids.0 {
        ensure!(place_of(*pid)?[2] == 0, "{:?}", place_of(*pid)?);
    }
    for pid in &pids.0 {
        kill(Pid::from_raw(*pid), Signal::SIGKILL)?;
    }
    drop(back);
    pids.are_gone()
}

/// One that leads a session begins one without a terminal, also where ksnap's has the number of the one that it had.
#[test]
fn a_leader_alone_goes_on_without_its_terminal_which_is_named() -> Result<()> {
    require!(Root, Ksnap, Program("python3"), ChosenIds);
    let ksnap = Ksnap::new()?;
    let mut terminal = Terminal::start(&["sleep", "100007"])?;
    let pid = terminal.child;
    await_that("it sleeps", || has_argument(pid, "100007"))?;
    let ended = ksnap.run(&["snap", &pid.to_string(), "--kill"])?;
    ensure!(matches!(ended.code()?, 0 | 3), "{ended:?}");
    ensure!(terminal.ended()?.contains("ended -9"));
    let tool = ksnap.command();
    let words = std::iter::once(tool.get_program()).chain(tool.get_args());
    let words: Vec<&str> = words.filter_map(|word| word.to_str()).collect();
    let mut terminal = Terminal::start(&[&words[..], &["restore", "latest"]].concat())?;
    terminal.expect("and has no controlling terminal")?;
    await_that("it is there", || stat_of(pid).is_some())?;
    let _ended = Ended(pid, "sleep");
    ensure!(place_of(pid)?[2] == 0, "{:?}", place_of(pid)?);
    Ok(())
}

/// What waits in a terminal is in no snapshot.
#[test]
fn what_waits_in_a_terminal_is_named() -> Result<()> {
    require!(Root, Ksnap, Program("python3"));
    let ksnap = Ksnap::new()?;
    let python = Python::script(
        "import os, pty, time\n\
         pid, master = pty.fork()\n\
         if pid == 0:\n\
         \x20   os.write(1, b'x' * 100)\n\
         \x20   time.sleep(1000)\n\
         os.write(master, b'typed\\n')\n\
         time.sleep(1000)\n",
    )?;
    let words = [
        "6 bytes that were typed",
        "107 bytes that were written to it",
    ];
    // The kernel brings it there a moment later.
    let mut said = String::new();
    await_that("what waits is named", || {
        let snap = ksnap.run(&["snap", &python.pid().to_string(), "--tree", "--json"]);
        said = snap.map_or_else(|e| format!("{e:#}"), |ended| ended.stdout);
        words.iter().all(|word| said.contains(word))
    })
    .with_context(|| said.clone())
}
