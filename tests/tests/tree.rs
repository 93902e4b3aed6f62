//! Trees of processes: captured at one moment, and brought back as a whole or not at all.

use std::io::ErrorKind;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tests::background::Background;
use tests::footprint::{adopt_orphans, await_gone};
use tests::subject::request;
use tests::tree::{
    Pids, bring_back, children_of, end_captured, goes_on_twice, nothing_early, stat_of,
};
use tests::victim::rng::Rng;
use tests::{Ksnap, Python, Victim, require};

const LIMIT: Duration = Duration::from_secs(60);

/// Captured, ended, brought back, twice in a row.
fn goes_on(options: &[&str]) -> Result<()> {
    require!(Root, Ksnap);
    if options.is_empty() {
        require!(ChosenIds);
    }
    goes_on_twice(("tree", &[]), options, |victim| {
        let others = victim.ready()["others"].as_array().map(Vec::len);
        ensure!(others == Some(2), "{}", victim.ready());
        Ok(())
    })
}

#[test]
fn a_tree_goes_on_with_its_ids() -> Result<()> {
    goes_on(&[])
}

#[test]
fn a_tree_goes_on_in_a_namespace_of_its_own() -> Result<()> {
    goes_on(&["--pids", "namespace"])
}

#[test]
fn a_running_tree_is_not_disturbed_and_copies_live_beside_it() -> Result<()> {
    require!(Root, Ksnap);
    let ksnap = Ksnap::new()?;
    let mut victim = Victim::spawn("tree", &[])?;
    for _ in 0..3 {
        let ended = ksnap.run(&["snap", &victim.pid().to_string(), "--tree", "--audit"])?;
        ensure!(matches!(ended.code()?, 0 | 3), "{ended:?}");
        victim.check()?;
    }
    let mut process = ksnap.start(&["fork", "latest", "-n", "2", "--json"])?;
    for _ in 0..2 {
        let line = process.line(LIMIT)?.context("too few copies")?;
        let copy: Value = serde_json::from_str(&line)?;
        ensure!(copy["own_pid"] == victim.pid(), "{copy}");
    }
    ensure!(process.wait(LIMIT)?.is_some(), "ksnap does not end");
    for n in 0..2 {
        let reply = request(&mut process, "quit", n, LIMIT)?;
        ensure!(
            reply["ok"] == true && reply["pid"] == victim.pid(),
            "{reply}"
        );
    }
    victim.check()?;
    victim.quit()
}

/// As in a container that was entered from outside: the session has no id there, and the group has one.
#[test]
fn trees_go_on_where_their_session_began_outside() -> Result<()> {
    require!(Root, Ksnap, Mount, Program("python3"), ChosenIds);
    // Process 1, which buries whoever is left to it.
    let in_a_group = "import os, sys\n\
                      child = os.fork()\n\
                      if child == 0:\n\
                      \x20   os.setpgid(0, 0)\n\
                      \x20   os.execv(sys.argv[1], sys.argv[1:])\n\
                      ended = 0\n\
                      while ended != child: ended, status = os.wait()\n\
                      sys.exit(os.waitstatus_to_exitcode(status))";
    for name in [
        "a_tree_goes_on_with_its_ids",
        "a_tree_goes_on_in_a_namespace_of_its_own",
        "a_running_tree_is_not_disturbed_and_copies_live_beside_it",
    ] {
        let mut command = Command::new("unshare");
        command
            .args(["--pid", "--fork", "--kill-child", "--mount-proc"])
            .args(["python3", "-c", in_a_group])
            .arg(std::env::current_exe()?)
            .args(["--exact", "--nocapture", name]);
        // Each wait in it has its own limit.
        let done = Background::start(command)?.finish(3 * LIMIT)?;
        let passed = done.code()? == 0 && done.stdout.contains("1 passed");
        ensure!(passed, "{name}: {done:?}");
    }
    Ok(())
}

#[test]
fn a_restore_that_is_killed_leaves_a_whole_tree_or_none() -> Result<()> {
    require!(Root, Ksnap, ChosenIds);
    adopt_orphans()?;
    const KILLS: usize = 30;
    let ksnap = Ksnap::new()?;
    let mut victim = Victim::spawn("tree", &[])?;
    let pids = end_captured(&ksnap, victim.pid())?;
    victim.process().wait(LIMIT)?.context("the victim lives")?;
    pids.are_gone()?;
    let mut rng = Rng::new(5);
    let (mut whole, mut none) = (0, 0);
    for round in 0..KILLS {
        let what = || format!("after kill {round}");
        let mut command = ksnap.command();
        command.args(["restore", "latest", "--wait", "--json"]);
        // In some rounds when the first of them runs already.
        let chosen = round % 3 == 0;
        if chosen {
            command.env("KSNAP_KILL_AT", "release");
        }
        let mut process = Background::start(command)?;
        if !chosen {
            std::thread::sleep(Duration::from_micros(rng.word() % 80_000));
            process.signal(Signal::SIGKILL)?;
        }
        let status = process.wait(LIMIT)?.context("ksnap does not end")?;
        if chosen {
            ensure!(
                status.signal() == Some(libc::SIGKILL),
                "{status} instead of a kill {}: {}",
                what(),
                process.stderr()
            );
            // Those that are ended with ksnap take a moment to be gone.
            pids.are_gone().with_context(what)?;
            continue;
        }
        match lives_on(&pids, &mut process, round).with_context(what)? {
            true => whole += 1,
            false => none += 1,
        }
    }
    eprintln!("whole {whole} times, not there {none} times");
    ensure!(none > 0, "no kill came early enough");
    Victim::brought_back(ksnap.start(&["restore", "latest", "--wait", "--json"])?)?.quit()?;
    pids.are_gone()
}

/// Whether a tree lives on when ksnap is gone. One that does answers, and ends then; else nothing is left of it.
fn lives_on(pids: &Pids, process: &mut Background, id: usize) -> Result<bool> {
    // Whoever writes to one that is ended with ksnap finds that nobody reads, sooner or later.
    let reply = request(process, "quit", id, LIMIT);
    match &reply {
        Ok(reply) => ensure!(reply["ok"] == true, "{reply}"),
        Err(e) => ensure!(finds_nobody(e), "asked to quit: {e:?}"),
    }
    pids.are_gone()
        .with_context(|| format!("asked to quit: {reply:?}"))?;
    let said = process.finish(LIMIT)?.stderr;
    let broken = said.lines().find(|line| is_other_break(line));
    ensure!(broken.is_none(), "{broken:?}, asked to quit: {reply:?}");
    Ok(reply.is_ok())
}

/// Whether a request failed since none has the other ends of the streams any more.
fn finds_nobody(error: &anyhow::Error) -> bool {
    let is_pipe = |e: &std::io::Error| e.kind() == ErrorKind::BrokenPipe;
    let root = error.root_cause();
    root.downcast_ref().is_some_and(is_pipe) || root.to_string().contains("closed its output")
}

/// Whether a line tells of a break that is not the end of those whom the process speaks with, as each of a tree that is
/// being ended may still find.
fn is_other_break(line: &str) -> bool {
    let of_others = ["Broken pipe", "Connection reset", ": 0 bytes, 0 instead of"];
    line.contains("BROKEN") && !of_others.iter().any(|why| line.contains(why))
}

#[test]
fn only_the_end_of_others_excuses_a_victim() {
    let socket = "BROKEN tree (pid 7): the socket";
    assert!(!is_other_break(&format!(
        "{socket}: 0 bytes, 0 instead of 9"
    )));
    assert!(is_other_break(&format!(
        "{socket}: 8 bytes, 8 instead of 9"
    )));
    assert!(!finds_nobody(&anyhow::anyhow!("no answer to quit 3")));
    let closed = Background::start(Command::new("true")).and_then(|mut gone| {
        gone.wait(LIMIT)?;
        request(&mut gone, "quit", 0, LIMIT)
    });
    assert!(finds_nobody(&closed.unwrap_err()));
}

/// Process 1 of a PID namespace ends only when all others there have ended and have been met.
#[test]
fn a_tree_that_begins_with_process_1_of_a_namespace_is_ended() -> Result<()> {
    require!(Root, Ksnap, Program("unshare"));
    let ksnap = Ksnap::new()?;
    let mut command = Command::new("unshare");
    let script = "sleep 1000 & sleep 1000 & echo here; wait";
    command.args(["--pid", "--fork", "--kill-child", "sh", "-c", script]);
    let mut outside = Background::start(command)?;
    ensure!(outside.line(LIMIT)?.as_deref() == Some("here"));
    let [root] = children_of(outside.pid())?[..] else {
        bail!("process 1 is not there");
    };
    let pids = end_captured(&ksnap, root)?;
    ensure!(pids.0.len() == 3, "{:?}", pids.0);
    outside
        .wait(LIMIT)?
        .context("what waits for process 1 lives")?;
    pids.are_gone()
}

/// In a PID namespace of its own all of it ends with its first process, as soon as that is let go.
#[test]
fn a_tree_whose_first_process_ends_at_once_comes_back() -> Result<()> {
    require!(Root, Ksnap);
    let ksnap = Ksnap::new()?;
    let folder = tempfile::tempdir()?;
    let word = folder.path().join("end");
    let script = format!(
        "for n in 0 1 2 3 4 5 6 7 8 9 10 11; do sleep 1000 & done; echo here; \
         while ! [ -e {} ]; do :; done; exit 7",
        word.display()
    );
    let mut command = Command::new("sh");
    command.args(["-c", &script]);
    let mut shell = Background::start(command)?;
    ensure!(shell.line(LIMIT)?.as_deref() == Some("here"));
    let pids = end_captured(&ksnap, shell.pid())?;
    ensure!(pids.0.len() == 13, "{:?}", pids.0);
    shell.wait(LIMIT)?.context("the shell lives")?;
    pids.are_gone()?;
    std::fs::write(&word, "")?;
    for _ in 0..5 {
        let ended = ksnap.run(&["restore", "latest", "--wait", "--pids", "namespace"])?;
        ensure!(ended.code()? == 7, "{ended:?}");
    }
    Ok(())
}

const ORPHANED_GROUP: &str = r#"
import os, time
r, w = os.pipe()
first = os.fork()
if first == 0:
    os.read(r, 1)
    os._exit(0)
os.setpgid(first, first)
second = os.fork()
if second == 0:
    time.sleep(1000)
    os._exit(0)
os.setpgid(second, first)
os.write(w, b".")
os.waitpid(first, 0)
print(first, second)
time.sleep(1000)
"#;

/// A process with a certain id that does nothing. Ended when dropped.
struct Idle(i32);

impl Idle {
    /// As soon as it is free: the id of a group is so a moment after its last member has left /proc.
    fn with_id(id: i32) -> Result<Self> {
        let end = Instant::now() + LIMIT;
        loop {
            match Self::try_with_id(id) {
                Err(_) if Instant::now() < end => std::thread::sleep(Duration::from_millis(5)),
                done => return done,
            }
        }
    }

    /// By clone3(2), whose argument the id is.
    fn try_with_id(id: i32) -> Result<Self> {
        const EXIT_SIGNAL: usize = 4;
        const SET_TID: usize = 8;
        const SET_TID_SIZE: usize = 9;
        let ids = [id];
        let mut args = [0u64; 10];
        args[EXIT_SIGNAL] = libc::SIGCHLD as u64;
        args[SET_TID] = ids.as_ptr() as u64;
        args[SET_TID_SIZE] = 1;
        // SAFETY: the arguments and the array that they point at are live, with a null stack as fork has it; the child
        // makes system calls only.
        let made = unsafe {
            let made = libc::syscall(libc::SYS_clone3, args.as_ptr(), size_of_val(&args));
            if made == 0 {
                loop {
                    libc::pause();
                }
            }
            made
        };
        let why = || {
            format!(
                "a process with the id {id}: {}",
                std::io::Error::last_os_error()
            )
        };
        ensure!(made == i64::from(id), why());
        Ok(Self(id))
    }
}

impl Drop for Idle {
    fn drop(&mut self) {
        let pid = Pid::from_raw(self.0);
        let _ = kill(pid, Signal::SIGKILL);
        let _ = nix::sys::wait::waitpid(pid, None);
    }
}

#[test]
fn a_group_whose_id_is_taken_is_refused_before_anything_is_made() -> Result<()> {
    require!(Root, Ksnap, Program("python3"), ChosenIds);
    let ksnap = Ksnap::new()?;
    let mut python = Python::script(ORPHANED_GROUP)?;
    let line = python.line(LIMIT)?;
    let (first, second) = line.split_once(' ').context("no ids")?;
    let (first, second): (i32, i32) = (first.parse()?, second.parse()?);
    let pids = end_captured(&ksnap, python.pid())?;
    ensure!(pids.0 == [python.pid(), second], "{:?}", pids.0);
    python.process().wait(LIMIT)?.context("python lives")?;
    pids.are_gone()?;
    let other = Idle::with_id(first)?;
    let refused = ksnap.run(&["restore", "latest"])?;
    ensure!(refused.code()? != 0, "{refused:?}");
    for word in [format!("process group {first}"), "is taken".into()] {
        ensure!(refused.stderr.contains(&word), "{word}: {refused:?}");
    }
    pids.are_gone()?;
    drop(other);
    let (_back, said) = bring_back(&ksnap, &mut nothing_early)?;
    ensure!(said["pid"] == python.pid(), "{said}");
    let group = stat_of(second).and_then(|stat| stat.get(2)?.parse::<i32>().ok());
    ensure!(group == Some(first), "{group:?} instead of {first}");
    pids.0.iter().try_for_each(|pid| {
        kill(Pid::from_raw(*pid), Signal::SIGKILL)?;
        await_gone(*pid, LIMIT)
    })
}
