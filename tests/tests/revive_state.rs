//! What a process that is brought back, or put back in place, finds of its limits, of the time that its sleeps had
//! left, and of the files that it had mapped; and how its snapshots go on.

use std::io::Write;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tests::footprint::await_gone;
use tests::python::Ended;
use tests::{Background, Ksnap, Python, Victim, require};

const LIMIT: Duration = Duration::from_secs(60);

fn tell(process: &mut Background, word: &str) -> Result<()> {
    // One write, so that the script's read gets it whole.
    Ok(process.stdin()?.write_all(format!("{word}\n").as_bytes())?)
}

fn ask(process: &mut Background, word: &str) -> Result<String> {
    tell(process, word)?;
    let answer = process.line(LIMIT)?;
    let why = || format!("no answer to {word}: {}", process.stderr());
    let answer = answer.with_context(why)?;
    // Back in its read.
    std::thread::sleep(Duration::from_millis(20));
    Ok(answer)
}

/// Takes a snapshot; gives its id.
fn snap(ksnap: &Ksnap, pid: i32, options: &[&str]) -> Result<String> {
    let pid = pid.to_string();
    let mut args = vec!["snap", &pid, "--json"];
    args.extend(options);
    let done = ksnap.run(&args)?;
    ensure!(matches!(done.code()?, 0 | 3), "{done:?}");
    let taken: Value = serde_json::from_str(&done.stdout)?;
    Ok(taken["id"].as_str().context("no id")?.to_owned())
}

/// Ends a script and brings it back, with options before the verb's; its first line is what ksnap says.
fn bring_back(process: &mut Background, pid: i32, mut command: Command) -> Result<Background> {
    ensure!(process.wait(LIMIT)?.is_some(), "it lives");
    await_gone(pid, LIMIT)?;
    command.args(["restore", "latest", "--wait", "--json"]);
    let mut back = Background::start(command)?;
    let line = back.line(LIMIT)?;
    let why = || format!("nothing was brought back: {}", back.stderr());
    let said: Value = serde_json::from_str(&line.with_context(why)?)?;
    ensure!(said["pid"] == pid, "{said}");
    Ok(back)
}

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
    let open = snap(&ksnap, pid, &[])?;
    ask(python.process(), "drop")?;
    let low = ask(python.process(), "lower")?;
    ensure!(low != limits);
    let lowered = snap(&ksnap, pid, &[])?;
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
    require!(Root, Ksnap, Program("python3"));
    let ksnap = Ksnap::new()?;
    let mut python = Python::script(LIMITS)?;
    let _end = Ended(python.pid());
    ensure!(python.line(LIMIT)? == "ready");
    std::thread::sleep(Duration::from_millis(50));
    let held = ask(python.process(), "hold")?;
    ask(python.process(), "block")?;
    let low = ask(python.process(), "lower")?;
    kill(Pid::from_raw(python.pid()), Signal::SIGUSR1)?;
    snap(&ksnap, python.pid(), &["--kill"])?;
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
    require!(Root, Ksnap, Program("python3"));
    const WHOLE: u64 = 1_000_000_000_000;
    let ksnap = Ksnap::new()?;
    let mut python = Python::script(SLEEPERS)?;
    let _end = Ended(python.pid());
    ensure!(python.line(LIMIT)? == "ready");
    std::thread::sleep(Duration::from_millis(1500));
    let pid = python.pid();
    let reference = snap(&ksnap, pid, &[])?;
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
    snap(&ksnap, pid, &["--kill"])?;
    let now = left(&ksnap)?;
    no_more(&before, &now)?;
    before = now;
    let mut process = bring_back(python.process(), pid, ksnap.command())?;
    for _ in 0..3 {
        snap(&ksnap, pid, &["--kill"])?;
        let now = left(&ksnap)?;
        no_more(&before, &now)?;
        before = now;
        process = bring_back(&mut process, pid, ksnap.command())?;
    }
    Ok(())
}

#[test]
fn a_wait_that_goes_on_comes_to_its_end() -> Result<()> {
    require!(Root, Ksnap, Program("python3"));
    let ksnap = Ksnap::new()?;
    let script = SLEEPERS
        .replace("Time(1000, 0)", "Time(2, 0)")
        .replace("1000000", "2000");
    let mut python = Python::script(&script)?;
    let _end = Ended(python.pid());
    ensure!(python.line(LIMIT)? == "ready");
    std::thread::sleep(Duration::from_millis(500));
    snap(&ksnap, python.pid(), &["--kill"])?;
    let pid = python.pid();
    let mut back = bring_back(python.process(), pid, ksnap.command())?;
    for _ in WAITS {
        let line = back.line(LIMIT)?;
        ensure!(line.as_deref() == Some("it is over"), "{line:?}");
    }
    Ok(())
}

const MAPPED: &str = r#"
import mmap, os, sys
file = open("data.bin", "r+b")
memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
memory[0] = 1
file.close()
print("ready")
while True:
    os.read(0, 100)
    print(memory[0], memory[8192])
"#;

#[test]
fn a_mapped_file_that_has_changed_is_named_and_taken_only_when_allowed() -> Result<()> {
    require!(Root, Ksnap, Program("python3"));
    let ksnap = Ksnap::new()?;
    let folder = tempfile::tempdir()?;
    let data = folder.path().join("data.bin");
    std::fs::write(&data, vec![5u8; 16384])?;
    let script = format!("import os\nos.chdir({:?})\n{MAPPED}", folder.path());
    let mut python = Python::script(&script)?;
    let _end = Ended(python.pid());
    ensure!(python.line(LIMIT)? == "ready");
    std::thread::sleep(Duration::from_millis(50));
    snap(&ksnap, python.pid(), &["--kill"])?;
    let pid = python.pid();
    let mut back = bring_back(python.process(), pid, ksnap.command())?;
    ensure!(ask(&mut back, "tell")? == "1 5");
    kill(Pid::from_raw(pid), Signal::SIGKILL)?;
    ensure!(back.wait(LIMIT)?.is_some());
    // As long as it was, at the same place.
    std::fs::OpenOptions::new()
        .write(true)
        .open(&data)?
        .write_all(&[6; 16384])?;
    let refused = ksnap.run(&["restore", "latest"])?;
    ensure!(refused.code()? == 1, "{refused:?}");
    for word in [
        "data.bin",
        "has been written since",
        "--allow-changed-files",
    ] {
        ensure!(refused.stderr.contains(word), "{word}: {}", refused.stderr);
    }
    await_gone(pid, LIMIT)?;
    let mut back = ksnap.start(&[
        "restore",
        "latest",
        "--wait",
        "--json",
        "--allow-changed-files",
    ])?;
    back.line(LIMIT)?.context("nothing was brought back")?;
    ensure!(ask(&mut back, "tell")? == "1 6");
    kill(Pid::from_raw(pid), Signal::SIGKILL)?;
    ensure!(back.wait(LIMIT)?.is_some());
    std::fs::write(&data, [6; 100])?;
    let refused = ksnap.run(&["restore", "latest"])?;
    ensure!(
        refused.stderr.contains("100 bytes instead of 16384"),
        "{refused:?}"
    );
    Ok(())
}

/// Entries of the log, oldest first.
fn log(ksnap: &Ksnap) -> Result<Vec<Value>> {
    ksnap.json(&["log"])
}

/// Brought back and watched, snapshots follow the one that it was brought back from.
fn goes_on_watched(options: &[&str]) -> Result<()> {
    require!(Root, Ksnap);
    let ksnap = Ksnap::new()?;
    // Slow enough that what a rollback takes away does not come back while it is being looked for.
    let slow = ["--mib", "48", "--rate", "20", "--rollbacks"];
    let mut first = Victim::spawn("counter", &slow)?;
    let from = snap(&ksnap, first.pid(), &[])?;
    let then = first.status()?.counter;
    first.wait_beyond(then + 50, LIMIT)?;
    snap(&ksnap, first.pid(), &["--kill"])?;
    first.process().wait(LIMIT)?.context("it lives")?;
    await_gone(first.pid(), LIMIT)?;
    let before = log(&ksnap)?;
    let mut args = vec![
        "restore", &from, "--watch", "--every", "20ms", "--count", "6",
    ];
    args.extend(["--audit", "--wait", "--json"]);
    args.extend(options);
    let mut victim = Victim::brought_back(ksnap.start(&args)?)?;
    let counter = victim.check()?.counter;
    victim.wait_beyond(counter + 50, LIMIT)?;
    let end = Instant::now() + LIMIT;
    let all = loop {
        let all = log(&ksnap)?;
        if all.len() == before.len() + 6 {
            break all;
        }
        ensure!(Instant::now() < end, "only {} snapshots", all.len());
        std::thread::sleep(Duration::from_millis(20));
    };
    let new = &all[before.len()..];
    ensure!(new[0]["parent"] == from.as_str(), "{}", new[0]);
    ensure!(new[0]["branch"] == true, "{}", new[0]);
    for pair in new.windows(2) {
        ensure!(pair[1]["parent"] == pair[0]["id"], "{}", pair[1]);
    }
    let whole = |entry: &Value| entry["session"] == all[0]["session"] && entry["kind"] == "delta";
    ensure!(new.iter().all(whole), "{new:?}");
    let graph = ksnap.ok(&["log", "--graph"])?;
    ensure!(graph.contains("|-."), "{graph}");
    // Whoever watches it next goes on there as well, and it goes back in place.
    let own = victim.pid();
    while ksnap.store().join(format!("{own}.sock")).exists() {
        ensure!(Instant::now() < end, "the watch does not end");
        std::thread::sleep(Duration::from_millis(5));
    }
    let next = snap(&ksnap, own, &["--audit"])?;
    let last = log(&ksnap)?.pop().context("no log")?;
    ensure!(
        last["id"] == next.as_str() && last["parent"] == new[5]["id"],
        "{last}"
    );
    let then = victim.status()?.counter;
    victim.wait_beyond(then + 500, LIMIT)?;
    let to = new[5]["id"].as_str().context("no id")?;
    ksnap.ok(&["rollback", &own.to_string(), to, "-y"])?;
    ensure!(victim.status()?.counter < then + 500, "not rolled back");
    victim.check()?;
    ksnap.ok(&["verify"])?;
    victim.quit()
}

#[test]
fn a_restored_process_is_watched_and_its_snapshots_follow_the_restored_one() -> Result<()> {
    goes_on_watched(&[])
}

#[test]
fn so_is_one_with_a_namespace_of_its_own() -> Result<()> {
    goes_on_watched(&["--pids", "namespace"])
}

#[test]
fn a_session_that_another_ksnap_writes_is_not_continued_and_nothing_is_started() -> Result<()> {
    require!(Root, Ksnap);
    let ksnap = Ksnap::new()?;
    let mut victim = Victim::spawn("counter", &["--mib", "1"])?;
    let pid = victim.pid().to_string();
    let mut watch = ksnap.start(&["watch", &pid, "--every", "10ms", "--json"])?;
    // The first event says that it watches, the second that there is a snapshot.
    watch.line(LIMIT)?.context("no event")?;
    watch.line(LIMIT)?.context("no snapshot")?;
    let refused = ksnap.run(&["restore", "latest", "--watch", "--pids", "namespace"])?;
    ensure!(refused.code()? == 2, "{refused:?}");
    ensure!(refused.stderr.contains("is being watched"), "{refused:?}");
    let refused = ksnap.run(&["restore", "latest", "--every", "1s"])?;
    ensure!(
        refused.code()? == 2 && refused.stderr.contains("--watch"),
        "{refused:?}"
    );
    watch.signal(Signal::SIGTERM)?;
    ensure!(watch.wait(LIMIT)?.is_some());
    victim.check()?;
    victim.quit()
}

const NAMELESS: &str = r#"
import ctypes, hashlib, mmap, os
libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p] + [ctypes.c_size_t] * 5
with open("gone.bin", "wb") as file:
    file.write(b"".join(bytes([n]) * 4096 for n in range(200)))
file = open("gone.bin", "r+b")
size = 200 * 4096
at = libc.mmap(None, size, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE, file.fileno(), 0)
memory = (ctypes.c_ubyte * size).from_address(at)
file.close()
os.unlink("gone.bin")
memory[4096] = 77
print("ready")
while True:
    word = os.read(0, 100).decode().strip()
    if word == "write":
        memory[8192] = 88
    elif word == "forget":
        libc.madvise(ctypes.c_void_p(at), ctypes.c_size_t(size), mmap.MADV_DONTNEED)
    print(hashlib.sha256(memory).hexdigest())
"#;

#[test]
fn a_private_mapping_of_a_file_that_is_gone_comes_back_with_its_content() -> Result<()> {
    require!(Root, Ksnap, Program("python3"));
    let ksnap = Ksnap::new()?;
    let mut python = Python::script(NAMELESS)?;
    let _end = Ended(python.pid());
    ensure!(python.line(LIMIT)? == "ready");
    std::thread::sleep(Duration::from_millis(50));
    let pid = python.pid();
    snap(&ksnap, pid, &["--audit"])?;
    ask(python.process(), "write")?;
    snap(&ksnap, pid, &["--audit"])?;
    // What it wrote is gone, and what the file had is there again.
    ask(python.process(), "forget")?;
    snap(&ksnap, pid, &["--audit"])?;
    let written = ask(python.process(), "write")?;
    snap(&ksnap, pid, &["--kill", "--audit"])?;
    let mut process = bring_back(python.process(), pid, ksnap.command())?;
    for _ in 0..2 {
        let now = ask(&mut process, "tell")?;
        ensure!(now == written, "{now} instead of {written}");
        snap(&ksnap, pid, &["--kill", "--audit"])?;
        process = bring_back(&mut process, pid, ksnap.command())?;
    }
    Ok(())
}

const SEGMENT: &str = r#"
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
libc.shmat.restype = ctypes.c_void_p
KEY = os.getpid() | 0x5e000000
id = libc.shmget(KEY, 100000, 0o1600)
def attach():
    at = libc.shmat(id, None, 0)
    assert at != ctypes.c_void_p(-1).value, os.strerror(ctypes.get_errno())
    return at
first = attach()
def memory(at):
    return (ctypes.c_char * 100000).from_address(at)
memory(first)[50000] = b"x"
print(id)
while True:
    word = os.read(0, 100).decode().strip()
    if word == "tell":
        second = attach()
        print(memory(first)[50000], memory(second)[50000])
        libc.shmdt(ctypes.c_void_p(second))
    elif word == "detach":
        print(libc.shmdt(ctypes.c_void_p(first)))
"#;

/// Removes a segment when the test is over.
struct Segment(String);

impl Drop for Segment {
    fn drop(&mut self) {
        let _ = Command::new("ipcrm").args(["-m", &self.0]).status();
    }
}

const NEIGHBOUR: &str = r#"
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
libc.shmat.restype = ctypes.c_void_p
at = libc.shmat(ID, None, 0)
assert at != ctypes.c_void_p(-1).value, os.strerror(ctypes.get_errno())
memory = (ctypes.c_char * 100000).from_address(at)
memory[50000] = b"y"
print("attached")
while os.read(0, 100):
    print(memory[50000])
"#;

/// Whoever is attached meanwhile works with what is in it now.
#[test]
fn a_segment_that_others_are_attached_to_keeps_its_content() -> Result<()> {
    require!(Root, Ksnap, Program("python3"), Program("ipcrm"));
    let ksnap = Ksnap::new()?;
    let mut python = Python::script(SEGMENT)?;
    let pid = python.pid();
    let _end = Ended(pid);
    let id = python.line(LIMIT)?;
    let neighbour = NEIGHBOUR.replace("ID", &id);
    let _segment = Segment(id);
    std::thread::sleep(Duration::from_millis(50));
    snap(&ksnap, pid, &["--kill"])?;
    ensure!(python.process().wait(LIMIT)?.is_some());
    await_gone(pid, LIMIT)?;
    let mut neighbour = Python::script(&neighbour)?;
    ensure!(neighbour.line(LIMIT)? == "attached");
    let mut back = ksnap.start(&["restore", "latest", "--wait", "--json"])?;
    let said: Value = serde_json::from_str(&back.line(LIMIT)?.context("not brought back")?)?;
    ensure!(said["notes"].to_string().contains("attached"), "{said}");
    ensure!(ask(&mut back, "tell")? == "b'y' b'y'");
    ensure!(ask(neighbour.process(), "tell")? == "b'y'");
    kill(Pid::from_raw(pid), Signal::SIGKILL)?;
    ensure!(back.wait(LIMIT)?.is_some());
    Ok(())
}

#[test]
fn a_segment_of_system_v_is_attached_again() -> Result<()> {
    require!(Root, Ksnap, Program("python3"), Program("ipcrm"));
    let ksnap = Ksnap::new()?;
    let mut python = Python::script(SEGMENT)?;
    let _end = Ended(python.pid());
    let id = python.line(LIMIT)?;
    let segment = Segment(id);
    std::thread::sleep(Duration::from_millis(50));
    snap(&ksnap, python.pid(), &["--kill"])?;
    let pid = python.pid();
    let mut back = bring_back(python.process(), pid, ksnap.command())?;
    ensure!(ask(&mut back, "tell")? == "b'x' b'x'");
    ensure!(ask(&mut back, "detach")? == "0");
    kill(Pid::from_raw(python.pid()), Signal::SIGKILL)?;
    ensure!(back.wait(LIMIT)?.is_some());
    await_gone(python.pid(), LIMIT)?;
    // With nothing to attach to it is memory of the process alone, and that is said.
    drop(segment);
    let mut alone = ksnap.start(&["restore", "latest", "--wait", "--json"])?;
    let said: Value = serde_json::from_str(&alone.line(LIMIT)?.context("not brought back")?)?;
    ensure!(said["notes"].to_string().contains("System V"), "{said}");
    kill(Pid::from_raw(python.pid()), Signal::SIGKILL)?;
    ensure!(alone.wait(LIMIT)?.is_some());
    Ok(())
}
