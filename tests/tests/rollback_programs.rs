//! `ksnap rollback` of programs that are not made for it: python3 and redis-server.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tests::python::{ask, tell};
use tests::{Footprint, Ksnap, Python, Redis, Watch, require};

const LIMIT: Duration = Duration::from_secs(60);

/// A script that works on request; between requests it is blocked in a read of its stdin.
const SCRIPT: &str = r#"
import os, queue, sys, threading
name = sys.argv[0] + ".data"
with open(name, "w") as f:
    f.write("".join("block %03d\n" % n for n in range(100)))
fd = os.open(name, os.O_RDWR)
jobs, answers = queue.Queue(), queue.Queue()
def work():
    while True:
        job = jobs.get()
        if job is None:
            return
        answers.put("%d %d" % (job, threading.get_native_id()))
thread = threading.Thread(target=work)
thread.start()
print("ready", thread.native_id)
n = 0
while True:
    word = os.read(0, 100).decode().strip()
    n += 1
    if word == "read":
        print(os.read(fd, 10).decode().strip())
    elif word == "where":
        print(os.lseek(fd, 0, os.SEEK_CUR))
    elif word == "count":
        print(n)
    elif word == "ask":
        jobs.put(n)
        print(answers.get())
    elif word == "end":
        jobs.put(None)
        thread.join()
        print("ended")
    elif word == "again":
        thread = threading.Thread(target=work)
        thread.start()
        print(thread.native_id)
    elif word == "quit":
        jobs.put(None)
        sys.exit(0)
"#;

struct Script {
    python: Python,
    /// The worker thread.
    tid: String,
}

impl Script {
    fn start() -> Result<Self> {
        let mut python = Python::script(SCRIPT)?;
        let line = python.line(LIMIT)?;
        let tid = line.strip_prefix("ready ").context("not ready")?.to_owned();
        // Asleep in its read.
        std::thread::sleep(Duration::from_millis(50));
        Ok(Self { python, tid })
    }

    fn ask(&mut self, word: &str) -> Result<String> {
        ask(self.python.process(), word)
    }

    fn threads(&self) -> Result<Vec<String>> {
        let folder = std::fs::read_dir(format!("/proc/{}/task", self.python.pid()))?;
        let mut tids: Vec<String> = folder
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect::<Result<_>>()?;
        tids.sort();
        Ok(tids)
    }

    /// Has the worker thread end. Whoever waits for it is told a moment before the kernel has forgotten it.
    fn end_worker(&mut self) -> Result<()> {
        ensure!(self.ask("end")? == "ended");
        let end = Instant::now() + LIMIT;
        while self.threads()?.contains(&self.tid) {
            ensure!(Instant::now() < end, "thread {} does not end", self.tid);
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    fn snapshot(&self, ksnap: &Ksnap) -> Result<String> {
        ksnap.snap(self.python.pid(), &["--audit"])
    }

    fn quit(mut self) -> Result<()> {
        tell(self.python.process(), "quit")?;
        self.python.finish(LIMIT)?.success().map(drop)
    }
}

#[test]
fn file_positions_go_back() -> Result<()> {
    require!(Root, Ksnap, Program("python3"));
    let ksnap = Ksnap::new()?;
    let mut script = Script::start()?;
    ensure!(script.ask("read")? == "block 000");
    let first = script.snapshot(&ksnap)?;
    ensure!(script.ask("read")? == "block 001");
    ensure!(script.ask("read")? == "block 002");
    let second = script.snapshot(&ksnap)?;
    for _ in 0..2 {
        ksnap.roll_back(script.python.pid(), &first)?;
        ensure!(script.ask("where")? == "10");
        ensure!(script.ask("count")? == "3");
        ensure!(script.ask("read")? == "block 001");
        ksnap.roll_back(script.python.pid(), &second)?;
        ensure!(script.ask("where")? == "30");
        ensure!(script.ask("read")? == "block 003");
    }
    script.quit()
}

#[test]
fn threads_that_ended_since_come_back_with_their_ids() -> Result<()> {
    require!(Root, Ksnap, Program("python3"), ChosenIds);
    let ksnap = Ksnap::new()?;
    let mut script = Script::start()?;
    let pid = script.python.pid();
    let before = Footprint::of(pid)?;
    let tid = script.tid.clone();
    ensure!(script.ask("ask")? == format!("1 {tid}"));
    let threads = script.threads()?;
    let alive = script.snapshot(&ksnap)?;
    script.end_worker()?;
    let ended = script.snapshot(&ksnap)?;
    for _ in 0..3 {
        ksnap.roll_back(pid, &alive)?;
        ensure!(
            script.threads()? == threads,
            "{:?} {threads:?}",
            script.threads()
        );
        ensure!(script.ask("ask")? == format!("2 {tid}"));
        ksnap.roll_back(pid, &ended)?;
        ensure!(!script.threads()?.contains(&tid), "{:?}", script.threads());
        ensure!(script.ask("count")? == "3");
    }
    // Another one has been started since: it ends.
    let new = script.ask("again")?;
    ensure!(script.threads()?.contains(&new));
    ksnap.roll_back(pid, &alive)?;
    ensure!(
        script.threads()? == threads,
        "{:?} {threads:?}",
        script.threads()
    );
    ensure!(script.ask("ask")? == format!("2 {tid}"));
    Footprint::of(pid)?.nothing_left_since(&before)?;
    script.quit()
}

fn an_open_connection_survives(watch: bool) -> Result<()> {
    let ksnap = Ksnap::new()?;
    let redis = Redis::start()?;
    redis.populate(10_000, 100)?;
    let mut client = redis.client()?;
    client.set("key", "old")?;
    let pid = redis.pid();
    let watch = match watch {
        true => Some(Watch::start(&ksnap, pid, &["--every", "50ms", "--audit"])?),
        false => None,
    };
    let id = &ksnap.snap(pid, &["--audit"])?;
    let digest = client.digest()?;
    for round in 0..5 {
        client.set("key", "new")?;
        client.set(&format!("another{round}"), "value")?;
        ensure!(client.get("key")?.as_deref() == Some("new"));
        std::thread::sleep(Duration::from_millis(60));
        ksnap.roll_back(pid, id)?;
        ensure!(client.get("key")?.as_deref() == Some("old"));
        ensure!(client.get(&format!("another{round}"))?.is_none());
        ensure!(client.digest()? == digest);
    }
    if let Some(watch) = watch {
        watch.interrupt(LIMIT)?.none_failed()?;
    }
    ksnap.ok(&["verify"])?;
    Ok(())
}

#[test]
fn an_open_connection_to_redis_survives_and_sees_the_old_value() -> Result<()> {
    require!(Root, Ksnap, Program("redis-server"));
    an_open_connection_survives(true)
}

#[test]
fn an_open_connection_to_redis_survives_without_a_watcher() -> Result<()> {
    require!(Root, Ksnap, Program("redis-server"));
    an_open_connection_survives(false)
}

/// Memory that grows on request.
const GROWING: &str = r#"
import os, sys
print("ready", flush=True)
kept = []
while True:
    word = os.read(0, 100).decode().strip()
    if word == "quit":
        sys.exit(0)
    kept.append([os.urandom(200).hex() for _ in range(4000)])
    print(len(kept), flush=True)
"#;

#[test]
fn a_snapshot_by_another_ksnap_after_a_rollback_is_whole() -> Result<()> {
    require!(Root, Ksnap, Program("python3"));
    let ksnap = Ksnap::new()?;
    let mut python = Python::script(GROWING)?;
    let pid = python.pid();
    ensure!(python.line(LIMIT)? == "ready");
    let snapshot = || -> Result<String> {
        std::thread::sleep(Duration::from_millis(50));
        ksnap.snap(pid, &["--audit"])
    };
    let small = snapshot()?;
    ensure!(ask(python.process(), "grow")? == "1");
    let large = snapshot()?;
    // What the rollback throws away is gone when the next one comes, which knows of the larger one only.
    ksnap.roll_back(pid, &small)?;
    snapshot()?;
    ksnap.roll_back(pid, &large)?;
    snapshot()?;
    ksnap.ok(&["verify"])?;
    tell(python.process(), "quit")?;
    python.finish(LIMIT)?.success().map(drop)
}
