//! `ksnap snap`: one snapshot, alone or through a watcher; each audited.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tests::footprint::{await_state, state_of, threads_of};
use tests::{Footprint, Ksnap, Python, Victim, Watch, effort, require, without_io_uring};

const LIMIT: Duration = Duration::from_secs(60);

/// A job-control stop of a process and its children: nobody writes their memory, not even the kernel on their
/// behalf, once what is under way has ended.
struct Quiet(Vec<Pid>);

impl Quiet {
    fn keep(pid: i32) -> Result<Self> {
        let path = format!("/proc/{pid}/task/{pid}/children");
        let children = std::fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
        let all = children.split_whitespace().map(str::parse);
        let mut all: Vec<i32> = all.collect::<Result<_, _>>()?;
        all.push(pid);
        let quiet = Self(all.into_iter().map(Pid::from_raw).collect());
        for pid in &quiet.0 {
            kill(*pid, Signal::SIGSTOP)?;
        }
        quiet.await_stop()?;
        // What the kernel does without a thread of theirs.
        std::thread::sleep(Duration::from_millis(60));
        Ok(quiet)
    }

    /// Waits until each of their threads is stopped: one that waits for a disk is so only afterwards. Those that the kernel
    /// has made for an io_uring are not.
    fn await_stop(&self) -> Result<()> {
        let is_of_kernel = |tid: i32| {
            let comm = std::fs::read_to_string(format!("/proc/{tid}/comm"));
            comm.is_ok_and(|comm| comm.starts_with("iou-"))
        };
        for pid in &self.0 {
            for tid in threads_of(pid.as_raw())? {
                let end = Instant::now() + LIMIT;
                while !is_of_kernel(tid) && !matches!(state_of(tid), 'T' | 'Z' | 'X' | '?') {
                    ensure!(Instant::now() < end, "thread {tid} does not stop");
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
        }
        Ok(())
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        for pid in &self.0 {
            let _ = kill(*pid, Signal::SIGCONT);
        }
    }
}

/// What others or the kernel write into a process between two snapshots must be in the second one. An audit
/// tells, as long as nothing is written during the stop itself.
fn has_what_others_wrote(name: &str, args: &[&str], options: &[&str]) -> Result<()> {
    let ksnap = Ksnap::new()?;
    let mut victim = Victim::spawn(name, args)?;
    let pid = victim.pid().to_string();
    let before = Footprint::of(victim.pid())?;
    let quiet = Quiet::keep(victim.pid())?;
    let options = [&["--every", "1h", "--audit"], options].concat();
    let mut watch = Watch::start(&ksnap, victim.pid(), &options)?;
    watch.wait_taken(1, LIMIT)?;
    drop(quiet);
    let rounds = effort::times(15);
    for round in 0..rounds as u64 {
        std::thread::sleep(Duration::from_millis(20 + 7 * round));
        let quiet = Quiet::keep(victim.pid())?;
        let ended = ksnap.run(&["snap", &pid])?;
        // 3: requests under way in an io_uring are not captured, and that is said. An audit that fails is 1.
        ensure!(matches!(ended.code()?, 0 | 3), "{ended:?}");
        drop(quiet);
        victim.status()?;
    }
    let watched = watch.interrupt(LIMIT)?;
    watched.took(rounds + 1)?;
    victim.check()?;
    watched.left_nothing(&before)?;
    ksnap.ok(&["verify"])?;
    victim.quit()
}

macro_rules! others {
    ($($test:ident: $name:literal $args:expr, $options:expr;)+) => {
        mod a_snapshot_has_what_others_wrote {
            $(#[test]
            fn $test() -> anyhow::Result<()> {
                tests::require!(Root, Ksnap);
                super::has_what_others_wrote($name, &$args, &$options)
            })+
        }
    };
}

others! {
    shared: "shared" [], [];
    gup_direct: "gup" ["direct"], [];
    gup_helper: "gup" ["helper"], [];
    gup_pipe: "gup" ["pipe"], [];
    gup_all: "gup" [], [];
    gup_all_without_probes: "gup" [], ["--no-probes"];
    gup_all_by_hash: "gup" [], ["--tracker", "hash"];
}

#[test]
fn a_stopped_process_stays_stopped() -> Result<()> {
    require!(Root, Ksnap);
    let ksnap = Ksnap::new()?;
    let mut victim = Victim::spawn("counter", &["--mib", "4"])?;
    let pid = victim.pid().to_string();
    let quiet = Quiet::keep(victim.pid())?;
    for _ in 0..5 {
        ksnap.ok(&["snap", &pid, "--audit"])?;
        // It is let go of, and stops again.
        std::thread::sleep(Duration::from_millis(20));
        await_state(victim.pid(), 'T', LIMIT)?;
    }
    drop(quiet);
    victim.check()?;
    victim.quit()
}

#[test]
fn snapshots_without_a_watcher_make_one_chain() -> Result<()> {
    require!(Root, Ksnap);
    let ksnap = Ksnap::new()?;
    let mut victim = Victim::spawn("maps", &[])?;
    let pid = victim.pid().to_string();
    let before = Footprint::of(victim.pid())?;
    for round in 0..effort::times(8) {
        let taken = victim
            .blame(ksnap.json(&["snap", &pid, "--audit"]))?
            .remove(0);
        let kind = if round == 0 { "base" } else { "delta" };
        ensure!(taken["kind"] == kind, "{taken}");
        Footprint::of(victim.pid())?.nothing_left_since(&before)?;
        victim.status()?;
    }
    victim.check()?;
    let log = ksnap.json(&["log"])?;
    for pair in log.windows(2) {
        ensure!(pair[1]["parent"] == pair[0]["id"], "{pair:?}");
    }
    ksnap.ok(&["verify"])?;
    victim.quit()
}

#[test]
fn snap_goes_through_the_watcher() -> Result<()> {
    require!(Root, Ksnap);
    let ksnap = Ksnap::new()?;
    let mut victim = Victim::spawn("counter", &["--mib", "4"])?;
    let pid = victim.pid().to_string();
    let mut watch = Watch::start(&ksnap, victim.pid(), &["--every", "50ms", "--audit"])?;
    watch.wait_taken(1, LIMIT)?;
    let mut asked = Vec::new();
    for _ in 0..10 {
        let taken = ksnap.json(&["snap", &pid])?.remove(0);
        asked.push(taken["id"].as_str().context("no id")?.to_owned());
    }
    let watched = watch.interrupt(LIMIT)?;
    watched.none_failed()?;
    let ids = watched.ids()?;
    ensure!(asked.iter().all(|id| ids.contains(id)), "{asked:?} {ids:?}");
    victim.check()?;
    ksnap.ok(&["verify"])?;
    victim.quit()
}

#[test]
fn where_io_uring_is_refused_snapshots_are_written_without_it() -> Result<()> {
    require!(Ksnap, Program("python3"));
    let ksnap = Ksnap::new()?;
    let mut script = Python::script(
        "import os, sys\nnoise = os.urandom(8 << 20)\nprint('ready', flush=True)\nsys.stdin.read()",
    )?;
    ensure!(script.line(LIMIT)?.trim() == "ready");
    let mut command = ksnap.command();
    command.args(["doctor", "--json"]);
    let said: serde_json::Value =
        serde_json::from_slice(&without_io_uring(&command)?.output()?.stdout)?;
    let checks = said["checks"].as_array().context("checks")?;
    let check = checks.iter().find(|check| check["name"] == "io_uring");
    ensure!(
        check.context("no check")?["outcome"] == "unsupported",
        "{said}"
    );

    let mut command = ksnap.command();
    command.args(["snap", &script.pid().to_string(), "--audit"]);
    let taken = without_io_uring(&command)?.output()?;
    ensure!(matches!(taken.status.code(), Some(0 | 3)), "{taken:?}");
    let all = ksnap.json(&["log"])?;
    ensure!(all[0]["file_bytes"].as_u64() > Some(8 << 20), "{all:?}");
    ksnap.ok(&["verify"])?;
    Ok(())
}
