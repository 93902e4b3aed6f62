//! Real programs under audited snapshots and rollbacks, and their own consistency checks afterwards.

use std::io::Write;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tests::victim::rng::Rng;
use tests::{Background, Footprint, Ksnap, Python, Redis, Watch, require};

const LIMIT: Duration = Duration::from_secs(120);

/// Connections of the load.
const CLIENTS: usize = 4;

/// A modest load: sets, increments, list and hash commands on a few thousand keys.
fn load(redis: &Redis) -> Result<Background> {
    redis.load(&[
        "-t",
        "set,incr,lpush,lpop,sadd,hset",
        "-r",
        "5000",
        "-d",
        "200",
        "-c",
        &CLIENTS.to_string(),
        "-l",
        "-n",
        "20000",
    ])
}

/// How many sockets a process has open.
fn sockets_of(pid: i32) -> Result<usize> {
    Ok(sockets_in(&Footprint::of(pid)?))
}

fn sockets_in(footprint: &Footprint) -> usize {
    let links = footprint.fds.values();
    links.filter(|link| link.starts_with("socket:")).count()
}

/// redis's own check: everything is written out and read back, and must be the same.
fn redis_is_consistent(redis: &Redis) -> Result<()> {
    let mut client = redis.client()?;
    let (digest, keys) = (client.digest()?, client.integer(&["DBSIZE"])?);
    client.command(&["DEBUG", "RELOAD"])?;
    ensure!(client.digest()? == digest, "other contents after a reload");
    ensure!(
        client.integer(&["DBSIZE"])? == keys,
        "other keys after a reload"
    );
    ensure!(keys > 0, "no keys");
    Ok(())
}

#[test]
fn redis_under_load_lives_through_hundreds_of_audited_snapshots() -> Result<()> {
    require!(
        Root,
        Ksnap,
        Program("redis-server"),
        Program("redis-benchmark")
    );
    let ksnap = Ksnap::new()?;
    let redis = Redis::start_with(&["--io-threads", "2"])?;
    redis.populate(5000, 400)?;
    let before = Footprint::of(redis.pid())?;
    let sockets = sockets_in(&before);
    let mut load = load(&redis)?;
    let options = ["--every", "15ms", "--count", "250", "--audit"];
    let watched = Watch::start(&ksnap, redis.pid(), &options)?.finish(LIMIT)?;
    watched.took(250)?;
    ensure!(load.running()?, "the load has ended: {}", load.stderr());
    drop(load);
    redis_is_consistent(&redis)?;
    ksnap.ok(&["verify"])?;
    // The server closes its ends of the connections a moment after those of the load and of the check are closed.
    let end = Instant::now() + LIMIT;
    while sockets_of(redis.pid())? > sockets {
        ensure!(Instant::now() < end, "connections stay open");
        std::thread::sleep(Duration::from_millis(5));
    }
    watched.left_nothing(&before)
}

#[test]
fn redis_under_load_goes_back_to_random_snapshots() -> Result<()> {
    require!(
        Root,
        Ksnap,
        Program("redis-server"),
        Program("redis-benchmark")
    );
    let ksnap = Ksnap::new()?;
    let redis = Redis::start()?;
    redis.populate(5000, 400)?;
    let pid = redis.pid();
    let mut client = redis.client()?;
    client.set("marker", "0")?;
    let mut watch = Watch::start(&ksnap, pid, &["--every", "30ms", "--audit"])?;
    let mut rng = Rng::new(7);
    for round in 1..=12 {
        // A quiet moment whose contents are known exactly.
        client.set("marker", &round.to_string())?;
        let digest = client.digest()?;
        let quiet = ksnap.snap(pid, &[])?;
        let idle = sockets_of(pid)?;
        let mut work = load(&redis)?;
        // From here on all connections of the load are open; those that are not could not come back.
        let end = Instant::now() + LIMIT;
        while sockets_of(pid)? < idle + CLIENTS {
            ensure!(work.running()?, "the load has ended: {}", work.stderr());
            ensure!(Instant::now() < end, "the load is not connected");
            std::thread::sleep(Duration::from_millis(1));
        }
        let so_far = watch.ids()?.len();
        watch.wait_taken(so_far + 2 + rng.below(4), LIMIT)?;
        let ids = watch.ids()?.split_off(so_far);
        ksnap.roll_back(pid, &ids[rng.below(ids.len())])?;
        std::thread::sleep(Duration::from_millis(50));
        // The load's connections are of the future as redis sees it, and it has forgotten some.
        drop(work);
        ksnap.roll_back(pid, &quiet)?;
        ensure!(client.get("marker")? == Some(round.to_string()));
        ensure!(client.digest()? == digest, "round {round}: other contents");
    }
    let watched = watch.interrupt(LIMIT)?;
    watched.none_failed()?;
    ensure!(
        watched.rolled_back.len() == 24,
        "{}",
        watched.rolled_back.len()
    );
    redis_is_consistent(&redis)?;
    ksnap.ok(&["verify"])?;
    Ok(())
}

/// Threads that extend hash chains and share a table under a lock; the result follows from the number of rounds.
const COMPUTATION: &str = r#"
import hashlib, sys, threading, time
# Rounds of each thread; none: until told.
ROUNDS = [int(word) for word in sys.stdin.readline().split()]
THREADS, told, done = 4, threading.Event(), [0] * 4
table, lock, ends = {}, threading.Lock(), [None] * THREADS
def work(me):
    link = b"%d" % me
    n = 0
    while n < ROUNDS[me] if ROUNDS else not told.is_set():
        link = hashlib.sha256(link + b"%d" % n).digest()
        with lock:
            key = (me, link[0])
            table[key] = table.get(key, 0) + n
        n += 1
        # Who works until told leaves time for others.
        if not ROUNDS and n % 16 == 0: time.sleep(0.001)
    ends[me], done[me] = link, n
threads = [threading.Thread(target=work, args=(n,)) for n in range(THREADS)]
print("started")
# Until somebody watches.
sys.stdin.readline()
print("working")
for thread in threads: thread.start()
if not ROUNDS:
    sys.stdin.readline()
    told.set()
for thread in threads: thread.join()
if not ROUNDS: print(*done)
whole = hashlib.sha256(repr((ends, sorted(table.items()))).encode()).hexdigest()
print("result", whole)
"#;

fn computation(rounds: &str) -> Result<Python> {
    let mut python = Python::script(COMPUTATION)?;
    writeln!(python.process().stdin()?, "{rounds}")?;
    ensure!(python.line(LIMIT)? == "started");
    Ok(python)
}

/// Starts it, and waits until it has begun.
fn go(python: &mut Python) -> Result<()> {
    writeln!(python.process().stdin()?, "go")?;
    ensure!(python.line(LIMIT)? == "working");
    Ok(())
}

/// Ends one that works until told.
fn stop(python: &mut Python) -> Result<()> {
    Ok(writeln!(python.process().stdin()?, "stop")?)
}

/// What the computation gives without ksnap.
fn expected(rounds: &str) -> Result<String> {
    let mut python = computation(rounds)?;
    go(&mut python)?;
    python.line(LIMIT)
}

#[test]
fn a_computation_with_threads_in_python_comes_to_its_result_under_hundreds_of_snapshots()
-> Result<()> {
    require!(Root, Ksnap, Program("python3"));
    let ksnap = Ksnap::new()?;
    let mut python = computation("")?;
    // Ends with its process.
    let mut watched = Watch::start(&ksnap, python.pid(), &["--every", "15ms", "--audit"])?;
    go(&mut python)?;
    watched.wait_taken(200, LIMIT)?;
    stop(&mut python)?;
    let rounds = python.line(LIMIT)?;
    let result = python.line(LIMIT)?;
    ensure!(result == expected(&rounds)?, "{rounds} rounds");
    ensure!(python.finish(LIMIT)?.code()? == 0);
    let watched = watched.finish(LIMIT)?;
    watched.took(200)?;
    ensure!(
        watched.ended["ended"] == "target_exited",
        "{}",
        watched.ended
    );
    ksnap.ok(&["verify"])?;
    Ok(())
}

#[test]
fn a_computation_in_python_that_goes_back_and_forth_comes_to_its_result() -> Result<()> {
    require!(Root, Ksnap, Program("python3"));
    let ksnap = Ksnap::new()?;
    const ROUNDS: &str = "400000 400000 400000 400000";
    let expected = expected(ROUNDS)?;
    let mut python = computation(ROUNDS)?;
    let mut watch = Watch::start(&ksnap, python.pid(), &["--every", "30ms", "--audit"])?;
    go(&mut python)?;
    // From one taken before that it would wait again, and some of those are yet to be told of.
    let first = ksnap.snap(python.pid(), &[])?;
    let working = |watch: &mut Watch| -> Result<Vec<String>> {
        let mut ids = watch.ids()?;
        match ids.iter().position(|id| *id == first) {
            Some(from) => Ok(ids.split_off(from)),
            None => Ok(Vec::new()),
        }
    };
    let end = Instant::now() + LIMIT;
    while working(&mut watch)?.len() < 3 {
        ensure!(Instant::now() < end, "no snapshots since it works");
        std::thread::sleep(Duration::from_millis(5));
    }
    let mut rng = Rng::new(8);
    for _ in 0..15 {
        std::thread::sleep(Duration::from_millis(10 + rng.word() % 60));
        let ids = working(&mut watch)?;
        ksnap.roll_back(python.pid(), &ids[rng.below(ids.len())])?;
    }
    ensure!(python.line(LIMIT)? == expected);
    ensure!(python.finish(LIMIT)?.code()? == 0);
    let watched = watch.finish(LIMIT)?;
    watched.none_failed()?;
    ensure!(watched.rolled_back.len() == 15);
    ksnap.ok(&["verify"])?;
    Ok(())
}

/// Transactions on a table whose rows always have the same sum, at a rate of a few hundred a second; on request
/// the database's own check.
const DATABASE: &str = r#"
import random, select, sqlite3, sys, time
db = sqlite3.connect(sys.argv[0] + ".db" if sys.stdin.readline().strip() == "file" else ":memory:", isolation_level=None)
# Who waits for a disk cannot be stopped meanwhile.
db.execute("pragma synchronous = off")
db.execute("create table account (id integer primary key, amount integer, note text)")
db.execute("create index by_amount on account (amount)")
db.execute("create table log (id integer primary key, text text)")
db.execute("begin")
for n in range(2000): db.execute("insert into account values (?, 1000, ?)", (n, "x" * (n % 200)))
db.execute("commit")
print("started")
count = 0
while True:
    a, b, much = random.randrange(2000), random.randrange(2000), random.randrange(100)
    db.execute("begin")
    db.execute("update account set amount = amount - ?, note = ? where id = ?", (much, "y" * much, a))
    db.execute("update account set amount = amount + ? where id = ?", (much, b))
    db.execute("insert into log (text) values (?)", ("z" * much,))
    db.execute("commit")
    count += 1
    time.sleep(0.001)
    if select.select([0], [], [], 0)[0]:
        word, number = sys.stdin.readline().split()
        total, = db.execute("select sum(amount) from account").fetchone()
        rows, = db.execute("select count(*) from log").fetchone()
        check, = db.execute("pragma integrity_check").fetchone()
        # In one piece: a rollback into the middle of it would give the rest again.
        sys.stdout.write(f"{number} {check} {total == 2000 * 1000} {rows == count} {count}\n")
        if word != "check":
            sys.exit(0)
"#;

struct Database {
    python: Python,
    asked: u64,
}

impl Database {
    fn start(place: &str) -> Result<Self> {
        let mut python = Python::script(DATABASE)?;
        writeln!(python.process().stdin()?, "{place}")?;
        ensure!(python.line(LIMIT)? == "started");
        Ok(Self { python, asked: 0 })
    }

    /// The number of transactions.
    fn check(&mut self, word: &str) -> Result<u64> {
        self.asked += 1;
        let number = self.asked.to_string();
        writeln!(self.python.process().stdin()?, "{word} {number}")?;
        loop {
            let line = self.python.line(LIMIT)?;
            let (which, said) = line.split_once(' ').context("no answer")?;
            let count = said.strip_prefix("ok True True ");
            let count = count.with_context(|| format!("sqlite says: {line}"))?;
            // A rollback into the middle of an older answer gives that one again.
            if which == number {
                return Ok(count.parse()?);
            }
        }
    }

    fn quit(mut self) -> Result<()> {
        self.check("quit")?;
        self.python.finish(LIMIT)?.success().map(drop)
    }
}

#[test]
fn sqlite_on_a_file_lives_through_hundreds_of_audited_snapshots() -> Result<()> {
    require!(Root, Ksnap, Program("python3"));
    let ksnap = Ksnap::new()?;
    let mut database = Database::start("file")?;
    let before = Footprint::of(database.python.pid())?;
    let options = ["--every", "15ms", "--count", "200", "--audit"];
    let watched = Watch::start(&ksnap, database.python.pid(), &options)?.finish(LIMIT)?;
    watched.took(200)?;
    let count = database.check("check")?;
    ensure!(count > 0, "no transactions");
    watched.left_nothing(&before)?;
    ksnap.ok(&["verify"])?;
    database.quit()
}

/// In memory: a file would stay new while the process that writes it goes back.
#[test]
fn sqlite_in_memory_goes_back_to_random_snapshots() -> Result<()> {
    require!(Root, Ksnap, Program("python3"));
    let ksnap = Ksnap::new()?;
    let mut database = Database::start("memory")?;
    let pid = database.python.pid();
    let mut watch = Watch::start(&ksnap, pid, &["--every", "30ms", "--audit"])?;
    watch.wait_taken(2, LIMIT)?;
    let mut rng = Rng::new(9);
    for _ in 0..8 {
        let low = database.check("check")?;
        let known = &ksnap.snap(pid, &[])?;
        let high = database.check("check")?;
        std::thread::sleep(Duration::from_millis(50 + rng.word() % 200));
        let ids = watch.ids()?;
        ksnap.roll_back(pid, &ids[rng.below(ids.len())])?;
        database.check("check")?;
        let start = Instant::now();
        ksnap.roll_back(pid, known)?;
        let now = database.check("check")?;
        // Each transaction takes more than a millisecond.
        let most = high + start.elapsed().as_millis() as u64 + 1;
        ensure!((low..=most).contains(&now), "{now}, not {low} to {most}");
    }
    let watched = watch.interrupt(LIMIT)?;
    watched.none_failed()?;
    ensure!(watched.rolled_back.len() == 16);
    ksnap.ok(&["verify"])?;
    database.quit()
}
