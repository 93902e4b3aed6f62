//! What a process that is brought back finds of the files and segments that it had mapped.

use std::io::Write;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tests::background::Ended;
use tests::footprint::await_gone;
use tests::python::{ask, bring_back};
use tests::{Ksnap, Python, require};

const LIMIT: Duration = Duration::from_secs(60);

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
    require!(Root, Ksnap, Program("python3"), ChosenIds);
    let ksnap = Ksnap::new()?;
    let folder = tempfile::tempdir()?;
    let data = folder.path().join("data.bin");
    std::fs::write(&data, vec![5u8; 16384])?;
    let script = format!("import os\nos.chdir({:?})\n{MAPPED}", folder.path());
    let mut python = Python::script(&script)?;
    let _end = Ended(python.pid(), "python");
    ensure!(python.line(LIMIT)? == "ready");
    std::thread::sleep(Duration::from_millis(50));
    ksnap.snap_in_part(python.pid(), &["--kill"])?;
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
    require!(Root, Ksnap, Program("python3"), ChosenIds);
    let ksnap = Ksnap::new()?;
    let mut python = Python::script(NAMELESS)?;
    let _end = Ended(python.pid(), "python");
    ensure!(python.line(LIMIT)? == "ready");
    std::thread::sleep(Duration::from_millis(50));
    let pid = python.pid();
    ksnap.snap_in_part(pid, &["--audit"])?;
    ask(python.process(), "write")?;
    ksnap.snap_in_part(pid, &["--audit"])?;
    // What it wrote is gone, and what the file had is there again.
    ask(python.process(), "forget")?;
    ksnap.snap_in_part(pid, &["--audit"])?;
    let written = ask(python.process(), "write")?;
    ksnap.snap_in_part(pid, &["--kill", "--audit"])?;
    let mut process = bring_back(python.process(), pid, ksnap.command())?;
    for _ in 0..2 {
        let now = ask(&mut process, "tell")?;
        ensure!(now == written, "{now} instead of {written}");
        ksnap.snap_in_part(pid, &["--kill", "--audit"])?;
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
    require!(Root, Ksnap, Program("python3"), Program("ipcrm"), ChosenIds);
    let ksnap = Ksnap::new()?;
    let mut python = Python::script(SEGMENT)?;
    let pid = python.pid();
    let _end = Ended(pid, "python");
    let id = python.line(LIMIT)?;
    let neighbour = NEIGHBOUR.replace("ID", &id);
    let _segment = Segment(id);
    std::thread::sleep(Duration::from_millis(50));
    ksnap.snap_in_part(pid, &["--kill"])?;
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
    require!(Root, Ksnap, Program("python3"), Program("ipcrm"), ChosenIds);
    let ksnap = Ksnap::new()?;
    let mut python = Python::script(SEGMENT)?;
    let _end = Ended(python.pid(), "python");
    let id = python.line(LIMIT)?;
    let segment = Segment(id);
    std::thread::sleep(Duration::from_millis(50));
    ksnap.snap_in_part(python.pid(), &["--kill"])?;
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
