//! Open files of every kind come back: with all that a program sees of them, backwards and forwards.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tests::python::ask;
use tests::{Footprint, Ksnap, Python, Victim, require};

const LIMIT: Duration = Duration::from_secs(60);

/// What a rollback says of what it could not put back.
fn notes(done: &Value) -> Result<Vec<String>> {
    let notes = done["notes"].as_array().context("no notes")?;
    Ok(notes
        .iter()
        .filter_map(|note| note.as_str().map(str::to_owned))
        .collect())
}

/// The kernel's own `O_LARGEFILE`; the C library's is 0 on 64-bit machines.
const LARGE_FILE: u64 = 0o100_000;

/// Every descriptor as `ksnap show` has it, without what differs from one open file to the next that is made.
fn descriptors(ksnap: &Ksnap, id: &str) -> Result<Vec<Value>> {
    let shown = ksnap.json(&["show", id])?.remove(0);
    let list = shown["descriptors"].as_array().context("no descriptors")?;
    let plain = |descriptor: &Value| {
        let mut descriptor = descriptor.clone();
        let kind = descriptor["kind"].as_str().unwrap_or_default().to_owned();
        if let Some(fields) = descriptor.as_object_mut() {
            fields.remove("identity");
            fields.remove("file");
            if kind != "regular" {
                fields.remove("link");
                fields.remove("detail");
                // Set when an end of a pipe is opened through the other one; it means nothing there.
                let flags = fields["flags"].as_u64().unwrap_or_default();
                fields.insert("flags".into(), (flags & !LARGE_FILE).into());
            }
        }
        descriptor
    };
    Ok(list.iter().map(plain).collect())
}

/// There and back, twice; what the victim checks, and what the kernel says, is as it was.
fn comes_back(kind: &str, told: &[&str]) -> Result<()> {
    let ksnap = Ksnap::new()?;
    let mut victim = Victim::spawn("files", &[kind])?;
    let pid = victim.pid();
    let footprint = Footprint::of(pid)?;
    victim.check()?;
    let before = ksnap.snap(pid, &[])?;
    victim.change()?;
    victim.check()?;
    let after = ksnap.snap(pid, &[])?;
    let mut notes = Vec::new();
    for _ in 0..2 {
        notes = self::notes(&ksnap.roll_back(pid, &before)?)?;
        ensure!(
            victim.check()?.reply["changed"] == false,
            "{kind}: its memory has not gone back"
        );
        let again = ksnap.snap(pid, &[])?;
        let (was, is) = (descriptors(&ksnap, &before)?, descriptors(&ksnap, &again)?);
        ensure!(was == is, "{kind}: {was:#?} became {is:#?}");
        ksnap.roll_back(pid, &after)?;
        ensure!(
            victim.check()?.reply["changed"] == true,
            "{kind}: its memory has not gone forwards"
        );
    }
    // What cannot be as it was is told, and nothing else.
    let expected = |note: &String| told.iter().any(|told| note.contains(told));
    let unexpected: Vec<&String> = notes.iter().filter(|note| !expected(note)).collect();
    ensure!(unexpected.is_empty(), "{kind}: {unexpected:?}");
    for told in told {
        ensure!(
            notes.iter().any(|note| note.contains(told)),
            "{kind}: nobody told {told:?}: {notes:?}"
        );
    }
    // And once more, from a state that nobody has rolled back.
    ksnap.roll_back(pid, &before)?;
    victim.check()?;
    victim.change()?;
    victim.check()?;
    ksnap.roll_back(pid, &before)?;
    victim.check()?;
    Footprint::of(pid)?.nothing_left_since(&footprint)?;
    ksnap.ok(&["verify"])?;
    victim.quit()
}

macro_rules! kinds {
    ($($test:ident: $kind:literal, tells $told:expr $(, needs $need:expr)?;)+) => {
        mod every_kind_comes_back {
            $(#[test]
            fn $test() -> anyhow::Result<()> {
                tests::require!(Root, Ksnap $(, $need)?);
                super::comes_back($kind, &$told)
            })+
        }
    };
}

kinds! {
    regular: "regular", tells [];
    fifo: "fifo", tells [];
    pipe: "pipe", tells [];
    unix: "unix", tells [];
    unix_named: "unix-named", tells [];
    inet: "inet", tells ["closed by the other side"], needs RawSockets;
    netlink: "netlink", tells [], needs RawSockets;
    counters: "counters", tells [];
    memfd: "memfd", tells [];
    epoll: "epoll", tells [];
    inotify: "inotify", tells [], needs FileHandles;
    pidfd: "pidfd", tells [];
    signals: "signals", tells [];
    terminal: "terminal", tells [];
    locks: "locks", tells [];
    table: "table", tells [];
}

/// Writes and reads files on request; between requests it is blocked in a read of its stdin.
const WRITER: &str = r#"
import os, sqlite3, sys
folder = os.path.dirname(os.path.abspath(sys.argv[0]))
path = os.path.join(folder, "log")
log = os.open(path, os.O_RDWR | os.O_CREAT)
os.write(log, b"one\n" * 5000)
lost = os.open(os.path.join(folder, "lost"), os.O_RDWR | os.O_CREAT)
os.write(lost, b"nameless")
os.unlink(os.path.join(folder, "lost"))
data = sqlite3.connect(os.path.join(folder, "data"), isolation_level=None)
data.execute("create table t (n integer primary key, text)")
def rows(n):
    data.execute("begin")
    for i in range(n):
        data.execute("insert into t (text) values (?)", ("row " * 50,))
    data.execute("commit")
rows(500)
print("ready", flush=True)
while True:
    word = os.read(0, 100).decode().strip()
    if word == "change":
        os.lseek(log, 8, 0)
        os.write(log, b"two\n" * 9000)
        rows(700)
        data.execute("update t set text = 'other' where n % 3 = 0")
        os.close(lost)
        print("changed", flush=True)
    elif word == "shrink":
        os.ftruncate(log, 3)
        print("shrunk", flush=True)
    elif word == "look":
        whole = data.execute("pragma integrity_check").fetchone()[0]
        count, other = data.execute("select count(*), sum(text = 'other') from t").fetchone()
        try:
            nameless = os.pread(lost, 100, 0).decode()
        except OSError:
            nameless = "closed"
        text = os.pread(log, 1 << 20, 0)
        kinds = "".join(sorted(set(text.decode()))).strip()
        print(whole, count, other, len(text), kinds, nameless, os.lseek(log, 0, 1), flush=True)
    elif word == "quit":
        sys.exit(0)
"#;

struct Writer {
    python: Python,
}

impl Writer {
    fn start() -> Result<Self> {
        let mut python = Python::script(WRITER)?;
        ensure!(python.line(LIMIT)? == "ready");
        Ok(Self { python })
    }

    fn ask(&mut self, word: &str) -> Result<String> {
        ask(self.python.process(), word)
    }
}

#[test]
fn contents_of_files_come_back_with_the_process_that_writes_them() -> Result<()> {
    require!(Root, Ksnap, Program("python3"));
    let ksnap = Ksnap::new()?;
    let mut writer = Writer::start()?;
    let pid = writer.python.pid();
    let snapshot = || ksnap.snap(pid, &["--files", "--audit"]);
    let first = writer.ask("look")?;
    ensure!(first == "ok 500 0 20000 eno nameless 20000", "{first}");
    let a = snapshot()?;
    ensure!(writer.ask("change")? == "changed");
    let second = writer.ask("look")?;
    ensure!(second == "ok 1200 400 36008 enotw closed 36008", "{second}");
    let b = snapshot()?;
    ensure!(writer.ask("shrink")? == "shrunk");
    let third = writer.ask("look")?;
    for _ in 0..2 {
        ksnap.roll_back(pid, &a)?;
        let now = writer.ask("look")?;
        ensure!(now == first, "{now} instead of {first}");
        ksnap.roll_back(pid, &b)?;
        let now = writer.ask("look")?;
        ensure!(now == second, "{now} instead of {second}, not {third}");
    }
    // What was rolled back is what the next snapshot follows.
    ksnap.roll_back(pid, &a)?;
    let c = snapshot()?;
    ensure!(writer.ask("shrink")? == "shrunk");
    ksnap.roll_back(pid, &c)?;
    let now = writer.ask("look")?;
    ensure!(now == first, "{now} instead of {first}");
    ksnap.ok(&["verify"])?;
    writer.ask("quit").err().context("it goes on")?;
    Ok(())
}

#[test]
fn contents_of_files_come_back_with_a_new_process() -> Result<()> {
    require!(Root, Ksnap, Program("python3"), ChosenIds);
    use std::io::Write;
    let ksnap = Ksnap::new()?;
    let mut writer = Writer::start()?;
    let pid = writer.python.pid();
    let folder = std::fs::read_link(format!("/proc/{pid}/cwd"))?;
    let first = writer.ask("look")?;
    let ended = ksnap.run(&["snap", &pid.to_string(), "--files", "--kill"])?;
    ensure!(matches!(ended.code()?, 0 | 3), "{ended:?}");
    let python = writer.python.process();
    python.wait(LIMIT)?.context("it lives after snap --kill")?;
    for options in [&["--pids", "same"], &["--pids", "new"]] {
        // One has changed since and one is gone; the third never had a name in all that time.
        if options[1] == "same" {
            std::fs::write(folder.join("log"), "three")?;
            std::fs::remove_file(folder.join("data"))?;
        }
        let mut args = vec!["restore", "latest", "--wait", "--json"];
        args.extend(options);
        let mut back = ksnap.start(&args)?;
        let said = back.line(LIMIT)?.context("ksnap says nothing")?;
        back.stdin()?.write_all(b"look\n")?;
        let now = back.line(LIMIT)?.context("it does not answer")?;
        ensure!(now == first, "{now} instead of {first}: {said}");
        back.stdin()?.write_all(b"quit\n")?;
        let finished = back.finish(LIMIT)?;
        ensure!(finished.code()? == 0, "{finished:?}");
    }
    // Others may have the file as well as a copy does: it is not put back for one.
    std::fs::write(folder.join("log"), "four")?;
    let ended = ksnap.run(&["restore", "latest", "--pids", "new"])?;
    ensure!(ended.code()? != 0, "{ended:?}");
    ensure!(std::fs::read(folder.join("log"))? == b"four");
    Ok(())
}

#[test]
fn without_files_their_contents_stay_as_they_are() -> Result<()> {
    require!(Root, Ksnap, Program("python3"));
    let ksnap = Ksnap::new()?;
    let mut writer = Writer::start()?;
    let pid = writer.python.pid();
    let a = ksnap.snap(pid, &[])?;
    ensure!(writer.ask("shrink")? == "shrunk");
    ksnap.roll_back(pid, &a)?;
    let now = writer.ask("look")?;
    ensure!(now == "ok 500 0 3 eno nameless 20000", "{now}");
    writer.ask("quit").err().context("it goes on")?;
    Ok(())
}

/// A socket to a virtual machine's host, which nothing can bring back, beside an ordinary descriptor.
const STRANGE: &str = r#"
import os, socket, sys
strange = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
plain = os.open("/dev/null", os.O_RDONLY)
print(strange.fileno(), plain, flush=True)
os.read(0, 100)
"#;

#[test]
fn what_cannot_come_back_is_told_before_and_refused_by_strict() -> Result<()> {
    require!(Root, Ksnap, Program("python3"));
    let ksnap = Ksnap::new()?;
    let mut python = Python::script(STRANGE)?;
    let line = python.line(LIMIT)?;
    let (strange, plain) = line.split_once(' ').context("no numbers")?;
    let pid = python.pid().to_string();
    let ended = ksnap.run(&["inspect", &pid, "--json"])?;
    ensure!(ended.code()? == 3, "{ended:?}");
    let found: Value = serde_json::from_str(&ended.stdout)?;
    let judged = |fd: &str| -> Result<&Value> {
        let all = found["descriptors"].as_array().context("no descriptors")?;
        let is_it = |d: &&Value| d["fd"].as_i64() == fd.parse().ok();
        Ok(&all.iter().find(is_it).context("not listed")?["verdict"])
    };
    ensure!(
        judged(strange)? == "not" && judged(plain)? == "whole",
        "{found}"
    );
    ensure!(!ksnap.store().exists(), "inspect has made a store");
    let text = ksnap.run(&["inspect", &pid])?;
    ensure!(text.stdout.contains("AF_VSOCK"), "{text:?}");

    let ended = ksnap.run(&["snap", &pid, "--strict"])?;
    ensure!(
        ended.code()? == 1 && ended.stderr.contains("AF_VSOCK"),
        "{ended:?}"
    );
    let ended = ksnap.run(&["snap", &pid])?;
    ensure!(
        ended.code()? == 3 && ended.stderr.contains("AF_VSOCK"),
        "{ended:?}"
    );
    Ok(())
}
