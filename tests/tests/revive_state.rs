//! What a process that is brought back, or put back in place, finds of its limits, and of the time that its sleeps had
//! left.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tests::background::Ended;
use tests::footprint::{call_of, threads_of};
use tests::python::{ask, bring_back};
use tests::{Ksnap, Python, require};

const LIMIT: Duration = Duration::from_secs(60);

const LIMITS: &str = r#"
import mmap, os, resource, signal
got = []
signal.signal(signal.SIGUSR1, lambda *_: got.append(1))
big = mmap.mmap(-1, 96 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
big[0] = 7
os.dup2(os.open("/dev/zero", os.O_RDONLY), 300)
def limits():
    soft = lambda which: resource.getrlimit(which)[0]
    return "%d %d" % (soft(resource.RLIMIT_AS), soft(resource.RLIMIT_NOFILE))
def lower(which, to):
    resource.setrlimit(which, (to, resource.getrlimit(which)[1]))
print("ready")
while True:
    word = os.read(0, 100).decode().strip()
    if word == "hold":
        print(big[0], os.fstat(300).st_rdev)
    elif word == "limits":
        print(limits())
    elif word == "drop":
        big.close()
        os.close(300)
        print("dropped")
    elif word == "lower":
        size = int(open("/proc/self/statm").read().split()[0]) * 4096
        lower(resource.RLIMIT_NOFILE, 50)
        lower(resource.RLIMIT_AS, size)
        print(limits())
    elif word == "block":
        print(signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1]))
    elif word == "signals":
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR1])
        print(len(got))
"#;

#[test]
fn a_limit_lowered_since_does_not_stop_a_rollback_halfway() -> Result<()> {
    require!(Root, Ksnap, Program("python3"));
    let ksnap = Ksnap::new()?;
    let mut python = Python::script(LIMITS)?;
    ensure!(python.line(LIMIT)? == "ready");
    std::thread::sleep(Duration::from_millis(50));
    let pid = python.pid();
    let held = ask(python.process(), "hold")?;
    let limits = ask(python.process(), "limits")?;
    let open = ksnap.snap_in_part(pid, &[])?;
    ask(python.process(), "drop")?;
    let low = ask(python.process(), "lower")?;
    ensure!(low != limits);
    let lowered = ksnap.snap_in_part(pid, &[])?;
    for _ in 0..2 {
        ksnap.ok(&["rollback", &pid.to_string(), &open, "-y"])?;
        ensure!(ask(python.process(), "hold")? == held);
        ensure!(ask(python.process(), "limits")? == limits);
        ksnap.ok(&["rollback", &pid.to_string(), &lowered, "-y"])?;
        ensure!(ask(python.process(), "limits")? == low);
    }
    Ok(())
}

#[test]
fn low_limits_come_back_and_are_in_nobodys_way() -> Result<()> {
    require!(Root, Ksnap, Program("python3"), ChosenIds);
    let ksnap = Ksnap::new()?;
    let mut python = Python::script(LIMITS)?;
    let _end = Ended(python.pid(), "python");
    ensure!(python.line(LIMIT)? == "ready");
    std::thread::sleep(Duration::from_millis(50));
    let held = ask(python.process(), "hold")?;
    ask(python.process(), "block")?;
    let low = ask(python.process(), "lower")?;
    kill(Pid::from_raw(python.pid()), Signal::SIGUSR1)?;
    ksnap.snap_in_part(python.pid(), &["--kill"])?;
    // ksnap's own limit is lower than the highest descriptor of the process.
    let inner = ksnap.command();
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -S -n 60; exec \"$0\" \"$@\""]);
    command.arg(inner.get_program()).args(inner.get_args());
    let pid = python.pid();
    let mut back = bring_back(python.process(), pid, command)?;
    ensure!(ask(&mut back, "limits")? == low);
    ensure!(ask(&mut back, "hold")? == held);
    ensure!(ask(&mut back, "signals")? == "1", "a queued signal is lost");
    Ok(())
}

/// Three threads, each in a wait of a thousand seconds that a stop interrupts and the kernel continues.
const SLEEPERS: &str = r#"
import ctypes, threading, time, os
libc = ctypes.CDLL(None)
class Time(ctypes.Structure):
    _fields_ = [("s", ctypes.c_long), ("ns", ctypes.c_long)]
def call(name, *args):
    getattr(libc, name)(*args)
    print("it is over\n", end="")
def start(*args):
    threading.Thread(target=call, args=args, daemon=True).start()
times = [Time(1000, 0) for _ in range(2)]
at = [ctypes.byref(time) for time in times]
start("nanosleep", at[0], at[0])
start("clock_nanosleep", 1, 0, at[1], None)
start("poll", None, 0, 1000000)
print("ready")
os.read(0, 1)
"#;

const WAITS: [&str; 3] = ["nanosleep", "clock_nanosleep", "poll"];

/// What poll(3) of the C library calls.
#[cfg(target_arch = "x86_64")]
const POLL: i64 = libc::SYS_poll;
#[cfg(not(target_arch = "x86_64"))]
const POLL: i64 = libc::SYS_ppoll;

/// Waits until each of the threads has begun its wait.
fn await_waits(pid: i32) -> Result<()> {
    let end = Instant::now() + LIMIT;
    let calls = [libc::SYS_nanosleep, libc::SYS_clock_nanosleep, POLL];
    let waits = |tid: &i32| call_of(*tid).is_some_and(|(call, _)| calls.contains(&call));
    while threads_of(pid)?.into_iter().filter(waits).count() < WAITS.len() {
        ensure!(Instant::now() < end, "its threads do not wait");
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// What was left of each wait in the latest snapshot, in nanoseconds.
fn left(ksnap: &Ksnap) -> Result<Vec<u64>> {
    let shown = ksnap.json(&["show", "latest"])?.remove(0);
    let threads = shown["threads"].as_array().context("no threads")?;
    let mut all: Vec<u64> = threads
        .iter()
        .filter_map(|thread| thread["time_left_ns"].as_u64())
        .collect();
    all.sort_unstable();
    ensure!(all.len() == WAITS.len(), "{} waits: {threads:?}", all.len());
    Ok(all)
}

#[test]
fn a_wait_goes_on_for_the_time_that_was_left() -> Result<()> {
    require!(Root, Ksnap, Program("python3"), ChosenIds, Probes);
    const WHOLE: u64 = 1_000_000_000_000;
    let ksnap = Ksnap::new()?;
    let mut python = Python::script(SLEEPERS)?;
    let _end = Ended(python.pid(), "python");
    ensure!(python.line(LIMIT)? == "ready");
    let pid = python.pid();
    await_waits(pid)?;
    std::thread::sleep(Duration::from_millis(1500));
    let reference = ksnap.snap_in_part(pid, &[])?;
    let mut before = left(&ksnap)?;
    let slept = 1_000_000_000;
    ensure!(before.iter().all(|ns| *ns < WHOLE - slept), "{before:?}");
    let no_more = |before: &[u64], now: &[u64]| {
        let mut pairs = before.iter().zip(now);
        ensure!(
            pairs.all(|(before, now)| now <= before && *now > WHOLE / 2),
            "{before:?}, then {now:?}"
        );
        Ok(())
    };
    // In place: what goes on is what was left then.
    std::thread::sleep(Duration::from_millis(300));
    ksnap.ok(&["rollback", &pid.to_string(), &reference, "-y"])?;
    ksnap.snap_in_part(pid, &["--kill"])?;
    let now = left(&ksnap)?;
    no_more(&before, &now)?;
    before = now;
    let mut process = bring_back(python.process(), pid, ksnap.command())?;
    for _ in 0..3 {
        ksnap.snap_in_part(pid, &["--kill"])?;
        let now = left(&ksnap)?;
        no_more(&before, &now)?;
        before = now;
        process = bring_back(&mut process, pid, ksnap.command())?;
    }
    Ok(())
}

#[test]
fn a_wait_that_goes_on_comes_to_its_end() -> Result<()> {
    require!(Root, Ksnap, Program("python3"), ChosenIds);
    let ksnap = Ksnap::new()?;
    let script = SLEEPERS
        .replace("Time(1000, 0)", "Time(15, 0)")
        .replace("1000000", "15000");
    let mut python = Python::script(&script)?;
    let _end = Ended(python.pid(), "python");
    ensure!(python.line(LIMIT)? == "ready");
    // And they are in the middle of their waits for as long as it takes to stop them.
    await_waits(python.pid())?;
    ksnap.snap_in_part(python.pid(), &["--kill"])?;
    let pid = python.pid();
    let mut back = bring_back(python.process(), pid, ksnap.command())?;
    for _ in WAITS {
        let line = back.line(LIMIT)?;
        ensure!(line.as_deref() == Some("it is over"), "{line:?}");
    }
    Ok(())
}
