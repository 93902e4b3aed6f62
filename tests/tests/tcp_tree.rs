//! Connections of all processes of a tree, which go on together.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tests::background::{Background, Ended};
use tests::footprint::{adopt_orphans, await_gone, outlives_kills};
use tests::netns::free_port;
use tests::postgres::Postgres;
use tests::tcp::{bring_back, is_back, run, take_incomplete, take_with};
use tests::tree::children_of;
use tests::{Ksnap, Python, require};

const LIMIT: Duration = Duration::from_secs(120);
/// Transactions of one run of pgbench, and how many clients share them.
const TRANSACTIONS: u64 = 2400;
const CLIENTS: u64 = 4;
/// What each does, as pgbench's own transaction, with a pause: it is under way whenever the server goes, and does not
/// make up for the time in which that was gone.
const TRANSACTION: &str = r"
\set aid random(1, 100000)
\set tid random(1, 10)
\set delta random(-5000, 5000)
BEGIN;
UPDATE pgbench_accounts SET abalance = abalance + :delta WHERE aid = :aid;
UPDATE pgbench_tellers SET tbalance = tbalance + :delta WHERE tid = :tid;
UPDATE pgbench_branches SET bbalance = bbalance + :delta WHERE bid = 1;
INSERT INTO pgbench_history (tid, bid, aid, delta, mtime) VALUES (:tid, 1, :aid, :delta, CURRENT_TIMESTAMP);
END;
\sleep 15 ms
";

/// bash, and a child of it that answers what comes by a connection which both have. When the child has been told to end,
/// bash answers.
const BOTH: &str = r#"
exec 3<>/dev/tcp/127.0.0.1/PORT
(
    while read -r line <&3; do
        [ "$line" = end ] && exit
        echo "child: $line" >&3
    done
) &
wait
read -r line <&3
echo "parent: $line" >&3
"#;

/// The other side of the connection of [`BOTH`].
struct Asked {
    tree: Background,
    lines: BufReader<TcpStream>,
}

impl Asked {
    fn start() -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        let port = listener.local_addr()?.port().to_string();
        let mut command = Command::new("bash");
        command.arg("-c").arg(BOTH.replace("PORT", &port));
        let tree = Background::start(command)?;
        let (connection, _) = listener.accept()?;
        connection.set_read_timeout(Some(LIMIT))?;
        let mut asked = Self {
            tree,
            lines: BufReader::new(connection),
        };
        // The child is there when it answers.
        asked.ask("hello", "child: hello")?;
        Ok(asked)
    }

    fn pid(&self) -> i32 {
        self.tree.pid()
    }

    fn tell(&mut self, word: &str) -> Result<()> {
        Ok(writeln!(self.lines.get_mut(), "{word}")?)
    }

    fn hear(&mut self, answer: &str) -> Result<()> {
        let mut line = String::new();
        self.lines.read_line(&mut line)?;
        ensure!(line.trim_end() == answer, "{line:?} instead of {answer:?}");
        Ok(())
    }

    fn ask(&mut self, word: &str, answer: &str) -> Result<()> {
        self.tell(word)?;
        self.hear(answer)
    }

    fn finish(&mut self) -> Result<()> {
        self.tell("end")?;
        self.ask("and you", "parent: and you")
    }
}

/// A process and its only child.
fn both(root: i32) -> Result<[i32; 2]> {
    match children_of(root)?[..] {
        [child] => Ok([root, child]),
        ref all => bail!("children of {root}: {all:?}"),
    }
}

#[test]
fn a_connection_that_two_processes_have_goes_on_with_both() -> Result<()> {
    require!(Root, Ksnap, Program("bash"), AllProcesses);
    adopt_orphans()?;
    let ksnap = Ksnap::new()?;
    let mut asked = Asked::start()?;
    let pid = asked.pid();
    let _ended = Ended(pid, "bash");
    let [_, child] = both(pid)?;
    let _child = Ended(child, "bash");
    for round in 0..2 {
        let holder = take_with(&ksnap, pid, &["--tree"])?;
        if round == 0 {
            asked.tree.wait(LIMIT)?.context("it lives on")?;
        }
        for pid in [pid, child] {
            await_gone(pid, LIMIT)?;
        }
        asked.tell("in between")?;
        is_back(&bring_back(ksnap.command(), &[])?)?;
        await_gone(holder, LIMIT).context("the holder lives on")?;
        asked.hear("child: in between")?;
        asked.ask("again", "child: again")?;
        ensure!(both(pid)? == [pid, child]);
    }
    asked.finish()
}

/// A process and its child, which count by turns, each of which tells the other by a connection between them where it is.
/// A third connection is the child's alone.
const COUNTING: &str = r#"
import os, select, socket, sys
outside = ("127.0.0.1", PORT)
l = socket.create_server(("127.0.0.1", 0))
if os.fork() == 0:
    s = socket.create_connection(l.getsockname())
    l.close()
    other = socket.create_connection(outside)
    f = s.makefile("r")
    for line in f:
        s.sendall(b"%d\n" % (int(line) + 1))
        if select.select([other], [], [], 0)[0]:
            word = other.recv(100)
            if not word:
                break
            other.sendall(b"%s at %d\n" % (word.strip(), int(line)))
    os._exit(0)
s, _ = l.accept()
f = s.makefile("r")
n = 0
while True:
    s.sendall(b"%d\n" % n)
    line = f.readline()
    if not line:
        break
    assert int(line) == n + 1, (line, n)
    n += 1
"#;

/// Has the child say where it is.
fn at(other: &mut BufReader<TcpStream>) -> Result<u64> {
    writeln!(other.get_mut(), "there")?;
    let mut line = String::new();
    other.read_line(&mut line)?;
    let number = line.trim_end().strip_prefix("there at ");
    Ok(number.with_context(|| line.clone())?.parse()?)
}

/// The snapshot of a process of the latest tree.
fn member(ksnap: &Ksnap, pid: i32) -> Result<String> {
    let all = ksnap.json(&["log"])?;
    let mut latest = all.iter().rev();
    let of_it = latest.find(|one| one["pid"] == pid);
    let id = of_it.and_then(|one| one["id"].as_str());
    Ok(id
        .with_context(|| format!("{pid} is not in {all:?}"))?
        .to_owned())
}

#[test]
fn a_connection_between_two_processes_goes_on_and_only_with_both() -> Result<()> {
    require!(Root, Ksnap, Program("python3"), AllProcesses);
    adopt_orphans()?;
    let ksnap = Ksnap::new()?;
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    let port = listener.local_addr()?.port().to_string();
    let mut script = Python::script(&COUNTING.replace("PORT", &port))?;
    let (connection, _) = listener.accept()?;
    connection.set_read_timeout(Some(LIMIT))?;
    let mut other = BufReader::new(connection);
    let pid = script.pid();
    let mut before = at(&mut other)?;
    let [_, child] = both(pid)?;
    let _ended = (Ended(pid, "python"), Ended(child, "python"));
    for round in 0..2 {
        let holder = take_with(&ksnap, pid, &["--tree"])?;
        if round == 0 {
            script.process().wait(LIMIT)?.context("it lives on")?;
        }
        for pid in [pid, child] {
            await_gone(pid, LIMIT)?;
        }
        // One of them would take the others' connections with it.
        for part in [
            run(ksnap.command(), &["restore", "latest", "--tcp", "--alone"])?,
            run(
                ksnap.command(),
                &["restore", &member(&ksnap, child)?, "--tcp"],
            )?,
        ] {
            ensure!(part.code()? != 0, "{part:?}");
            ensure!(part.stderr.contains("the whole tree"), "{part:?}");
            ensure!(part.stderr.contains(&holder.to_string()), "{part:?}");
        }
        is_back(&bring_back(ksnap.command(), &[])?)?;
        await_gone(holder, LIMIT).context("the holder lives on")?;
        let now = at(&mut other)?;
        ensure!(now >= before, "{now} after {before}");
        before = at(&mut other)?;
        ensure!(before > now, "they stand at {now}");
        ensure!(both(pid)? == [pid, child]);
    }
    // It ends when its own connection does, and the parent with it.
    drop(other);
    await_gone(child, LIMIT)?;
    await_gone(pid, LIMIT)
}

/// A benchmark on another machine, as it were, loses nothing and hears of nothing.
#[test]
fn postgres_goes_on_under_a_pgbench_that_is_connected() -> Result<()> {
    require!(Root, Ksnap, Postgres, AllProcesses);
    adopt_orphans()?;
    let ksnap = Ksnap::new()?;
    let mut server = Postgres::start_at(Some(free_port()?))?;
    server.client("pgbench", &["-i", "-q", "-s", "1", "postgres"])?;
    let each = (TRANSACTIONS / CLIENTS).to_string();
    let clients = CLIENTS.to_string();
    let file = server.folder().join("transaction");
    std::fs::write(&file, TRANSACTION)?;
    let file = file.to_str().context("a strange folder")?;
    let options = ["-n", "-c", &clients, "-t", &each, "-f", file, "postgres"];
    let mut bench = server.remote_client("pgbench", &options)?;
    let root = server.pid();
    let _ended = Ended(root, "postgres");
    let done = "select count(*) from pgbench_history";
    let count = |server: &Postgres| -> Result<u64> { Ok(server.query(done)?.parse()?) };
    for round in 0..2 {
        let begun = count(&server)?;
        let end = Instant::now() + LIMIT;
        while count(&server)? < begun + 20 {
            ensure!(Instant::now() < end, "it stands at {begun}");
        }
        let children = children_of(root)?;
        let holder = take_incomplete(&ksnap, root, &["--tree", "--files"])?;
        if round == 0 {
            server.process().wait(LIMIT)?.context("it lives on")?;
        }
        for pid in [root].iter().chain(&children) {
            await_gone(*pid, LIMIT)?;
        }
        ensure!(server.query(done).is_err(), "somebody else answers");
        ensure!(bench.running()?, "{:?}", bench.finish(LIMIT)?);
        is_back(&bring_back(ksnap.command(), &[])?)?;
        await_gone(holder, LIMIT).context("the holder lives on")?;
    }
    let said = bench.finish(LIMIT)?;
    ensure!(said.code()? == 0, "{said:?}");
    let expected =
        format!("number of transactions actually processed: {TRANSACTIONS}/{TRANSACTIONS}");
    ensure!(said.stdout.contains(&expected), "{said:?}");
    ensure!(count(&server)? == TRANSACTIONS);
    let checked = ["--install-missing", "--heapallindexed", "-d", "postgres"];
    server.client("pg_amcheck", &checked)?;
    kill(Pid::from_raw(root), Signal::SIGINT)?;
    await_gone(root, LIMIT)
}

/// Where ksnap is killed for certain, and whether the tree lives on then.
const POINTS: [(&str, bool); 3] = [
    ("tcp-taken", true),
    ("tcp-intended", false),
    // One of the two is gone already.
    ("tcp-killed", false),
];

#[test]
fn ksnap_killed_while_it_ends_a_tree_leaves_all_of_it_or_nothing() -> Result<()> {
    require!(Root, Ksnap, Program("bash"), AllProcesses);
    adopt_orphans()?;
    let ksnap = Ksnap::new()?;
    let mut asked = Asked::start()?;
    let pid = asked.pid();
    let [_, child] = both(pid)?;
    let _ended = (Ended(pid, "bash"), Ended(child, "bash"));
    for (point, lives) in POINTS {
        let mut command = ksnap.command();
        command.env("KSNAP_KILL_AT", point);
        let words = ["snap", &pid.to_string(), "--tree", "--kill", "--tcp"];
        let killed = run(command, &words)?;
        ensure!(
            killed.status.signal() == Some(libc::SIGKILL),
            "it was not killed at {point} (not a debug build?): {killed:?}"
        );
        if !lives && asked.tree.running()? {
            asked.tree.wait(LIMIT)?.context("it lives on")?;
        }
        for one in [pid, child] {
            match lives {
                true => ensure!(
                    outlives_kills(one, LIMIT)?,
                    "killed at {point}, {one} is gone"
                ),
                false => await_gone(one, LIMIT).with_context(|| format!("killed at {point}"))?,
            }
        }
        if !lives {
            is_back(&bring_back(ksnap.command(), &[])?)?;
        }
        asked.ask(point, &format!("child: {point}"))?;
        ensure!(both(pid)? == [pid, child]);
    }
    asked.finish()
}
