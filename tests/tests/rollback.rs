//! `ksnap rollback`: back and forth to any snapshot, through the watcher or without one; the program never notices.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tests::victim::rng::Rng;
use tests::{Footprint, Ksnap, Python, Redis, Victim, Watch, effort, require};

const LIMIT: Duration = Duration::from_secs(60);
const NOBODY: u32 = 65534;

/// `ksnap rollback PID ID`, which must succeed.
fn roll_back(ksnap: &Ksnap, pid: i32, id: &str) -> Result<serde_json::Value> {
    let pid = pid.to_string();
    let done = ksnap.json(&["rollback", &pid, id, "-y"])?.remove(0);
    ensure!(done["to"] == id, "{done}");
    Ok(done)
}

/// The ids that the kernel gives out, upwards until the highest one, then from the start again.
struct Ids {
    last: u32,
    came_round: bool,
}

impl Ids {
    fn new() -> Result<Self> {
        let last = Self::given_out()?;
        Ok(Self {
            last,
            came_round: false,
        })
    }

    /// The last field of /proc/loadavg (proc_loadavg(5)).
    fn given_out() -> Result<u32> {
        let text = std::fs::read_to_string("/proc/loadavg")?;
        let last = text.split_whitespace().last().context("nothing in it")?;
        Ok(last.parse()?)
    }

    fn look(&mut self) -> Result<()> {
        let now = Self::given_out()?;
        self.came_round |= now < self.last;
        self.last = now;
        Ok(())
    }
}

/// Watches a victim, and rolls it back so many times to snapshots chosen at random, while snapshots go on.
/// `waits_for_disk`: its threads do (O_DIRECT), and cannot be stopped then; that snapshot fails, the next one
/// is whole.
fn goes_back_and_forth(
    ksnap: &Ksnap,
    mut victim: Victim,
    times: usize,
    options: &[&str],
    waits_for_disk: bool,
) -> Result<()> {
    let pid = victim.pid();
    let before = Footprint::of(pid)?;
    let mut watch = Watch::start(ksnap, pid, &[&["--every", "40ms"], options].concat())?;
    watch.wait_taken(3, LIMIT)?;
    let mut rng = Rng::new(u64::from(std::process::id()));
    let (mut rollbacks, mut refused) = (0, 0);
    let mut ids_in_use = Ids::new()?;
    for _ in 0..effort::times(times) {
        std::thread::sleep(Duration::from_millis(20 + rng.word() % 100));
        ids_in_use.look()?;
        let ids = watch.ids()?;
        let id = &ids[rng.below(ids.len())];
        match roll_back(ksnap, pid, id) {
            Ok(_) => rollbacks += 1,
            // Refused, and nothing touched. Ids are given out in order: another process can have one that was
            // given out before only once the count has come round.
            Err(e) if format!("{e:#}").contains("another process has its id now") => {
                ids_in_use.look()?;
                ensure!(ids_in_use.came_round, "{e:#}");
                refused += 1;
            }
            Err(e) => {
                let said = [watch.process().stderr(), victim.process().stderr()].concat();
                return Err(e.context(said));
            }
        }
        victim.status()?;
    }
    ensure!(refused < rollbacks, "{refused} refused, {rollbacks} done");
    let then = victim.check()?.counter;
    victim.wait_beyond(then, Duration::from_secs(20))?;
    let watched = watch.interrupt(LIMIT)?;
    let failed = watched.failed.iter();
    let failed: Vec<_> = failed
        .filter(|why| !(waits_for_disk && why.contains("sleeps uninterruptibly")))
        .collect();
    ensure!(failed.is_empty(), "{failed:?}");
    let told = watched.rolled_back.len();
    ensure!(told == rollbacks, "{told} of {rollbacks}");
    watched.left_nothing(&before)?;
    victim.check()?;
    ksnap.ok(&["verify"])?;
    victim.quit()
}

fn rolled(name: &str, args: &[&str], options: &[&str]) -> Result<()> {
    let victim = Victim::spawn(name, &[args, &["--rollbacks"]].concat())?;
    goes_back_and_forth(&Ksnap::new()?, victim, 12, options, name == "gup")
}

macro_rules! rolled {
    ($($test:ident: $name:literal $args:expr, $options:expr $(, needs $need:expr)?;)+) => {
        mod every_victim_goes_back_and_forth {
            $(#[test]
            fn $test() -> anyhow::Result<()> {
                tests::require!(Root, Ksnap $(, $need)?);
                super::rolled($name, &$args, &$options)
            })+
        }
    };
}

rolled! {
    counter: "counter" ["--mib", "16"], ["--audit"];
    threads: "threads" [], ["--audit"];
    maps: "maps" [], ["--audit"];
    dontneed: "dontneed" [], ["--audit"];
    deepstack: "deepstack" [], ["--audit"];
    hugepages: "hugepages" ["--mib", "16"], ["--audit"];
    avx: "avx" [], ["--audit"], needs Cpu("avx2");
    rseq: "rseq" [], ["--audit"], needs Rseq;
    sparse: "sparse" [], ["--audit"];
    signals: "signals" [], ["--audit"];
    filemap_private: "filemap" ["private"], ["--audit"];
    shared_alone: "shared" ["--alone"], ["--audit"];
    fork: "fork" [], ["--audit"];
    signal_dispositions: "attributes" ["signals"], ["--audit"];
    timers: "attributes" ["timers"], ["--audit"];
    process_attributes: "attributes" ["process"], ["--audit"];
    memory_attributes: "attributes" ["memory"], ["--audit"];
    signal_dispositions_without_probes: "attributes" ["signals"], ["--audit", "--no-probes"];
    timers_without_probes: "attributes" ["timers"], ["--audit", "--no-probes"];
    process_attributes_without_probes: "attributes" ["process"], ["--audit", "--no-probes"];
    thread_attributes_without_probes: "attributes" ["threads"], ["--audit", "--no-probes"];
    credentials_without_probes: "attributes" ["credentials"], ["--audit", "--no-probes"];
    thread_attributes: "attributes" ["threads"], ["--audit"];
    credentials: "attributes" ["credentials"], ["--audit"];
    gup_direct: "gup" [], [];
    nanosleep: "blocked" ["nanosleep"], ["--audit"];
    clock_nanosleep: "blocked" ["clock_nanosleep"], ["--audit"];
    poll: "blocked" ["poll"], ["--audit"];
    ppoll: "blocked" ["ppoll"], ["--audit"];
    select: "blocked" ["select"], ["--audit"];
    futex: "blocked" ["futex"], ["--audit"];
    futex_timeout: "blocked" ["futex-timeout"], ["--audit"];
    pipe: "blocked" ["pipe"], ["--audit"];
    epoll_wait: "blocked" ["epoll_wait"], ["--audit"];
    sigtimedwait: "blocked" ["sigtimedwait"], ["--audit"];
    wait4: "blocked" ["wait4"], ["--audit"];
    accept: "blocked" ["accept"], ["--audit"];
    recv: "blocked" ["recv"], ["--audit"];
    recv_timeout: "blocked" ["recv-timeout"], ["--audit"];
    read_timeout: "blocked" ["read-timeout"], ["--audit"];
    counter_without_probes: "counter" ["--mib", "8"], ["--audit", "--no-probes"];
    maps_without_probes: "maps" [], ["--audit", "--no-probes"];
    counter_by_hash: "counter" ["--mib", "4"], ["--audit", "--tracker", "hash"];
    maps_by_hash: "maps" [], ["--audit", "--tracker", "hash"];
    counter_by_soft_dirty: "counter" ["--mib", "4"], ["--audit", "--tracker", "soft-dirty"], needs Tracker("soft-dirty");
}

#[test]
fn an_ordinary_user_rolls_back_an_own_process() -> Result<()> {
    require!(Root, Ksnap);
    let ksnap = Ksnap::as_user(NOBODY)?;
    let victim = Victim::spawn_as(NOBODY, "counter", &["--mib", "4", "--rollbacks"])?;
    goes_back_and_forth(&ksnap, victim, 6, &["--audit"], false)
}

/// Ids are given out by whoever has the privilege. Without it that is known beforehand, and nothing is touched.
#[test]
fn threads_that_an_ordinary_user_cannot_make_again_are_refused_before_anything_is_touched()
-> Result<()> {
    require!(Root, Ksnap);
    let victim = Victim::spawn_as(NOBODY, "threads", &["--rollbacks"])?;
    threads_cannot_be_made_again(Ksnap::as_user(NOBODY)?, victim)
}

/// All capabilities in a user namespace are none over the ids of a PID namespace that was there before.
#[test]
fn threads_that_root_of_a_user_namespace_cannot_make_again_are_refused() -> Result<()> {
    require!(Root, Ksnap, UserNamespace);
    let victim = Victim::spawn_in_user_namespace("threads", &["--rollbacks"])?;
    threads_cannot_be_made_again(Ksnap::in_user_namespace_of(victim.pid())?, victim)
}

fn threads_cannot_be_made_again(ksnap: Ksnap, mut victim: Victim) -> Result<()> {
    let pid = victim.pid().to_string();
    let end = Instant::now() + LIMIT;
    let id = loop {
        ensure!(Instant::now() < end, "no snapshot has a thread that ends");
        let (id, _, high) = snapshot(&ksnap, &mut victim)?;
        victim.wait_beyond(high + 50, LIMIT)?;
        let shown = ksnap.json(&["show", &id])?.remove(0);
        let threads = shown["threads"].as_array().context("no threads")?;
        let has_ended = |thread: &serde_json::Value| {
            let tid = &thread["tid"];
            !std::path::Path::new(&format!("/proc/{pid}/task/{tid}")).exists()
        };
        if threads.iter().any(has_ended) {
            break id;
        }
    };
    let before = Footprint::of(victim.pid())?;
    let then = victim.status()?.counter;
    let ended = ksnap.run(&["rollback", &pid, &id, "-y"])?;
    ensure!(ended.code()? == 1, "{ended:?}");
    ensure!(ended.stderr.contains("cannot be made again"), "{ended:?}");
    ensure!(ended.stderr.contains("CAP_CHECKPOINT_RESTORE"), "{ended:?}");
    Footprint::of(victim.pid())?.nothing_left_since(&before)?;
    victim.wait_beyond(then + 10, LIMIT)?;
    victim.check()?;
    let told = ksnap.run(&["doctor", "--json"])?.stdout;
    let told: serde_json::Value = serde_json::from_str(&told)?;
    let checks = told["checks"].as_array().context("no checks")?;
    let ids = checks.iter().find(|check| check["name"] == "thread_ids");
    ensure!(
        ids.is_some_and(|check| check["outcome"] == "unsupported"),
        "{ids:?}"
    );
    victim.quit()
}

#[test]
fn root_of_a_user_namespace_rolls_back_a_process_in_it() -> Result<()> {
    require!(Root, Ksnap, UserNamespace);
    let args = ["--mib", "4", "--rollbacks"];
    let victim = Victim::spawn_in_user_namespace("counter", &args)?;
    let ksnap = Ksnap::in_user_namespace_of(victim.pid())?;
    goes_back_and_forth(&ksnap, victim, 6, &["--audit"], false)
}

/// A snapshot, with the counter's bounds at its moment.
fn snapshot(ksnap: &Ksnap, victim: &mut Victim) -> Result<(String, u64, u64)> {
    let low = victim.status()?.counter;
    let pid = victim.pid().to_string();
    let taken = ksnap.json(&["snap", &pid, "--audit"])?.remove(0);
    let high = victim.status()?.counter;
    let id = taken["id"].as_str().context("a snapshot without an id")?;
    Ok((id.to_owned(), low, high))
}

/// The counter is where the snapshot has it, or what the victim has done since it runs again beyond that.
fn counter_is_back(victim: &mut Victim, low: u64, too_high: u64) -> Result<()> {
    let now = victim.check()?.counter;
    ensure!(
        (low..too_high).contains(&now),
        "the counter is {now}, not between {low} and {too_high}"
    );
    Ok(())
}

/// Steps that the counter victim below does not make in the time of a rollback and a request.
const FAR: u64 = 3000;
const SLOW: &[&str] = &["--mib", "8", "--rate", "250", "--rollbacks"];

fn the_counter_goes_back(watch: bool) -> Result<()> {
    let ksnap = Ksnap::new()?;
    let mut victim = Victim::spawn("counter", SLOW)?;
    let pid = victim.pid();
    let before = Footprint::of(pid)?;
    let watch = match watch {
        true => Some(Watch::start(&ksnap, pid, &["--every", "100ms", "--audit"])?),
        false => None,
    };
    let (first, low, high) = snapshot(&ksnap, &mut victim)?;
    victim.wait_beyond(high + FAR, LIMIT)?;
    let (second, late, later) = snapshot(&ksnap, &mut victim)?;
    for _ in 0..2 {
        roll_back(&ksnap, pid, &first)?;
        counter_is_back(&mut victim, low, high + FAR)?;
        // And forwards.
        roll_back(&ksnap, pid, &second)?;
        counter_is_back(&mut victim, late, later + FAR)?;
    }
    if let Some(watch) = watch {
        let watched = watch.interrupt(LIMIT)?;
        watched.none_failed()?;
        ensure!(watched.rolled_back.len() == 4, "{watched:?}");
    }
    Footprint::of(pid)?.nothing_left_since(&before)?;
    ksnap.ok(&["verify"])?;
    victim.quit()
}

#[test]
fn the_counter_goes_back_and_forwards_through_the_watcher() -> Result<()> {
    require!(Root, Ksnap);
    the_counter_goes_back(true)
}

#[test]
fn the_counter_goes_back_and_forwards_without_a_watcher() -> Result<()> {
    require!(Root, Ksnap);
    the_counter_goes_back(false)
}

#[test]
fn snapshots_after_a_rollback_follow_the_one_it_went_to() -> Result<()> {
    require!(Root, Ksnap);
    let ksnap = Ksnap::new()?;
    let mut victim = Victim::spawn("counter", SLOW)?;
    let pid = victim.pid();
    let mut watch = Watch::start(&ksnap, pid, &["--every", "1h", "--audit"])?;
    watch.wait_taken(1, LIMIT)?;
    let (first, ..) = snapshot(&ksnap, &mut victim)?;
    snapshot(&ksnap, &mut victim)?;
    roll_back(&ksnap, pid, &first)?;
    let (branch, ..) = snapshot(&ksnap, &mut victim)?;
    let log = ksnap.json(&["log"])?;
    let branch = log.iter().find(|entry| entry["id"] == branch.as_str());
    let branch = branch.context("not listed")?;
    ensure!(
        branch["parent"] == first.as_str() && branch["branch"] == true,
        "{branch}"
    );
    watch.interrupt(LIMIT)?.none_failed()?;
    victim.quit()
}

#[test]
fn after_an_exec_a_rollback_is_refused_and_changes_nothing() -> Result<()> {
    require!(Root, Ksnap);
    let ksnap = Ksnap::new()?;
    let mut victim = Victim::spawn("exec", &["--every-ms", "300"])?;
    let pid = victim.pid();
    let (first, _, high) = snapshot(&ksnap, &mut victim)?;
    let lives = |victim: &mut Victim| -> Result<Option<u64>> {
        Ok(victim.status()?.reply["lives"].as_u64())
    };
    let now = lives(&mut victim)?;
    let end = Instant::now() + LIMIT;
    while lives(&mut victim)? <= now {
        ensure!(Instant::now() < end, "no exec");
        std::thread::sleep(Duration::from_millis(20));
    }
    let before = Footprint::of(pid)?;
    let ended = ksnap.run(&["rollback", &pid.to_string(), &first, "-y"])?;
    ensure!(ended.code()? == 1, "{ended:?}");
    ensure!(
        ended.stderr.contains("exec") || ended.stderr.contains("program"),
        "{ended:?}"
    );
    Footprint::of(pid)?.nothing_left_since(&before)?;
    let then = victim.check()?.counter;
    ensure!(then > high, "the count went back to {then}");
    victim.wait_beyond(then + 1, LIMIT)?;
    victim.quit()
}

#[test]
fn a_snapshot_of_another_process_is_refused_and_changes_nothing() -> Result<()> {
    require!(Root, Ksnap);
    let ksnap = Ksnap::new()?;
    let mut one = Victim::spawn("counter", SLOW)?;
    let mut other = Victim::spawn("counter", SLOW)?;
    let (id, ..) = snapshot(&ksnap, &mut one)?;
    snapshot(&ksnap, &mut other)?;
    let before = Footprint::of(other.pid())?;
    let then = other.status()?.counter;
    let ended = ksnap.run(&["rollback", &other.pid().to_string(), &id, "-y"])?;
    ensure!(ended.code()? == 1, "{ended:?}");
    ensure!(ended.stderr.contains("not found"), "{ended:?}");
    Footprint::of(other.pid())?.nothing_left_since(&before)?;
    ensure!(other.check()?.counter >= then, "it went back");
    one.quit()?;
    other.quit()
}

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
        self.say(word)?;
        let answer = self.python.line(LIMIT)?;
        // Back in its read.
        std::thread::sleep(Duration::from_millis(20));
        Ok(answer)
    }

    /// One write, so that the script's read gets it whole.
    fn say(&mut self, word: &str) -> Result<()> {
        use std::io::Write;
        let line = format!("{word}\n");
        Ok(self.python.process().stdin()?.write_all(line.as_bytes())?)
    }

    fn threads(&self) -> Result<Vec<String>> {
        let folder = std::fs::read_dir(format!("/proc/{}/task", self.python.pid()))?;
        let mut tids: Vec<String> = folder
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect::<Result<_>>()?;
        tids.sort();
        Ok(tids)
    }

    fn snapshot(&self, ksnap: &Ksnap) -> Result<String> {
        let pid = self.python.pid().to_string();
        let taken = ksnap.json(&["snap", &pid, "--audit"])?.remove(0);
        Ok(taken["id"].as_str().context("no id")?.to_owned())
    }

    fn quit(mut self) -> Result<()> {
        self.say("quit")?;
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
        roll_back(&ksnap, script.python.pid(), &first)?;
        ensure!(script.ask("where")? == "10");
        ensure!(script.ask("count")? == "3");
        ensure!(script.ask("read")? == "block 001");
        roll_back(&ksnap, script.python.pid(), &second)?;
        ensure!(script.ask("where")? == "30");
        ensure!(script.ask("read")? == "block 003");
    }
    script.quit()
}

#[test]
fn threads_that_ended_since_come_back_with_their_ids() -> Result<()> {
    require!(Root, Ksnap, Program("python3"));
    let ksnap = Ksnap::new()?;
    let mut script = Script::start()?;
    let pid = script.python.pid();
    let before = Footprint::of(pid)?;
    let tid = script.tid.clone();
    ensure!(script.ask("ask")? == format!("1 {tid}"));
    let threads = script.threads()?;
    let alive = script.snapshot(&ksnap)?;
    ensure!(script.ask("end")? == "ended");
    ensure!(!script.threads()?.contains(&tid));
    let ended = script.snapshot(&ksnap)?;
    for _ in 0..3 {
        roll_back(&ksnap, pid, &alive)?;
        ensure!(
            script.threads()? == threads,
            "{:?} {threads:?}",
            script.threads()
        );
        ensure!(script.ask("ask")? == format!("2 {tid}"));
        roll_back(&ksnap, pid, &ended)?;
        ensure!(!script.threads()?.contains(&tid), "{:?}", script.threads());
        ensure!(script.ask("count")? == "3");
    }
    // Another one has been started since: it ends.
    let new = script.ask("again")?;
    ensure!(script.threads()?.contains(&new));
    roll_back(&ksnap, pid, &alive)?;
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
    let taken = ksnap
        .json(&["snap", &pid.to_string(), "--audit"])?
        .remove(0);
    let id = taken["id"].as_str().context("no id")?;
    let digest = client.digest()?;
    for round in 0..5 {
        client.set("key", "new")?;
        client.set(&format!("another{round}"), "value")?;
        ensure!(client.get("key")?.as_deref() == Some("new"));
        std::thread::sleep(Duration::from_millis(60));
        roll_back(&ksnap, pid, id)?;
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

#[test]
fn a_stopped_process_is_rolled_back_and_stays_stopped() -> Result<()> {
    require!(Root, Ksnap);
    use nix::sys::signal::{Signal, kill};
    let ksnap = Ksnap::new()?;
    let mut victim = Victim::spawn("counter", SLOW)?;
    let process = nix::unistd::Pid::from_raw(victim.pid());
    let (first, low, high) = snapshot(&ksnap, &mut victim)?;
    victim.wait_beyond(high + FAR, LIMIT)?;
    kill(process, Signal::SIGSTOP)?;
    let end = Instant::now() + LIMIT;
    while tests::footprint::state_of(victim.pid()) != 'T' {
        ensure!(Instant::now() < end, "not stopped");
        std::thread::sleep(Duration::from_millis(1));
    }
    let done = roll_back(&ksnap, victim.pid(), &first)?;
    ensure!(done["stopped"] == true, "{done}");
    std::thread::sleep(Duration::from_millis(50));
    let state = tests::footprint::state_of(victim.pid());
    ensure!(state == 'T', "state {state} after a rollback");
    let pid = victim.pid().to_string();
    let said = ksnap.ok(&["rollback", &pid, &first, "-y"])?;
    ensure!(said.contains(&format!("kill -CONT {pid}")), "{said}");
    kill(process, Signal::SIGCONT)?;
    counter_is_back(&mut victim, low, high + FAR)?;
    let done = roll_back(&ksnap, victim.pid(), &first)?;
    ensure!(done["stopped"] == false, "{done}");
    victim.quit()
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
    use std::io::Write;
    let ksnap = Ksnap::new()?;
    let mut python = Python::script(GROWING)?;
    let pid = python.pid();
    ensure!(python.line(LIMIT)? == "ready");
    let snapshot = || -> Result<String> {
        std::thread::sleep(Duration::from_millis(50));
        let taken = ksnap
            .json(&["snap", &pid.to_string(), "--audit"])?
            .remove(0);
        Ok(taken["id"].as_str().context("no id")?.to_owned())
    };
    let small = snapshot()?;
    python.process().stdin()?.write_all(b"grow\n")?;
    ensure!(python.line(LIMIT)? == "1");
    let large = snapshot()?;
    // What the rollback throws away is gone when the next one comes, which knows of the larger one only.
    roll_back(&ksnap, pid, &small)?;
    snapshot()?;
    roll_back(&ksnap, pid, &large)?;
    snapshot()?;
    ksnap.ok(&["verify"])?;
    python.process().stdin()?.write_all(b"quit\n")?;
    python.finish(LIMIT)?.success().map(drop)
}
