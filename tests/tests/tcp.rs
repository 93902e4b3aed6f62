//! `ksnap snap --kill --tcp` and `ksnap restore --tcp`: connections go on in another process than they began in.

use std::io::{Read, Write};
use std::net::{Ipv6Addr, TcpListener};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tests::background::Ended;
use tests::footprint::{await_gone, await_state};
use tests::netns::{ADDRESSES, Machines};
use tests::stream::Stream;
use tests::tcp::{bring_back, is_back, run, take};
use tests::{Ksnap, Python, Redis, require};

const LIMIT: Duration = Duration::from_secs(60);

/// Waits until a connection of the process has something to send and something not read, for longer than anything is
/// under way: nobody takes it then.
fn await_full_queues(pid: i32) -> Result<()> {
    let end = Instant::now() + LIMIT;
    let mut looks = 0;
    while looks < 10 {
        ensure!(Instant::now() < end, "a queue stays empty");
        looks = if has_full_queues(pid)? { looks + 1 } else { 0 };
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// By `/proc/PID/net/tcp` (proc(5)), whose fifth column has both lengths, and whose tenth the socket.
fn has_full_queues(pid: i32) -> Result<bool> {
    let mut own = Vec::new();
    for entry in std::fs::read_dir(format!("/proc/{pid}/fd"))? {
        let link = std::fs::read_link(entry?.path()).unwrap_or_default();
        own.push(link.to_string_lossy().into_owned());
    }
    for name in ["tcp", "tcp6"] {
        let sockets = std::fs::read_to_string(format!("/proc/{pid}/net/{name}"))?;
        for line in sockets.lines().skip(1) {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let [_, _, _, "01", queues, _, _, _, _, socket, ..] = fields[..] else {
                continue;
            };
            let (sent, read) = queues.split_once(':').context("no queues")?;
            let is_full = |hex| u64::from_str_radix(hex, 16).is_ok_and(|bytes| bytes > 0);
            let is_own = own.contains(&format!("socket:[{socket}]"));
            if is_own && is_full(sent) && is_full(read) {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

/// Waits until the other side of a connection to this port has ended it, of which the second and the fourth column tell.
fn await_close_wait(pid: i32, port: u16) -> Result<()> {
    let end = Instant::now() + LIMIT;
    let own = format!(":{port:04X}");
    let is_one = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        matches!(fields[..], [_, at, _, "08", ..] if at.ends_with(&own))
    };
    let path = format!("/proc/{pid}/net/tcp");
    while !std::fs::read_to_string(&path)?.lines().any(is_one) {
        ensure!(Instant::now() < end, "no connection is ended");
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// Ended and brought back, in the middle of the stream, with what waits in all queues.
fn there_and_back(
    stream: &mut Stream,
    ksnap: &Ksnap,
    rounds: usize,
    command: impl Fn() -> Command,
) -> Result<()> {
    let pid = stream.pid();
    for round in 0..rounds {
        stream.goes_on(20)?;
        stream.hold(true);
        // Both sides fill what there is between them.
        await_full_queues(pid)?;
        let holder = take(ksnap, pid)?;
        if round == 0 {
            stream.program.wait(LIMIT)?.context("it lives on")?;
        }
        await_gone(pid, LIMIT)?;
        let shown = ksnap.ok(&["show", "latest"])?;
        let kept = shown.lines().find(|line| line.contains("kept with"));
        let kept = kept.with_context(|| format!("no connection in {shown}"))?;
        ensure!(
            !kept.contains(" 0 bytes to send") && !kept.contains(" 0 not read"),
            "a queue was empty: {kept}"
        );
        stream.hold(false);
        std::thread::sleep(Duration::from_millis(200));
        is_back(&bring_back(command(), &[])?)?;
        await_gone(holder, LIMIT).context("the holder lives on")?;
    }
    Ok(())
}

#[test]
fn a_stream_between_two_machines_goes_on_twice() -> Result<()> {
    require!(Root, Ksnap, Machines, Program("python3"));
    let machines = Machines::new()?;
    let ksnap = Ksnap::new()?;
    let listener = machines.inside(1, || Ok(TcpListener::bind((ADDRESSES[1], 0))?))?;
    let pause = Duration::from_millis(2);
    let mut stream = Stream::start(&listener, 8000, pause, |c| machines.on(0, &c))?;
    let _ended = Ended(stream.pid(), "python");
    let command = || machines.on(0, &ksnap.command());
    there_and_back(&mut stream, &ksnap, 2, command)?;
    stream.finish()
}

#[test]
fn a_stream_of_ipv6_on_the_loopback_device_goes_on_twice() -> Result<()> {
    require!(Root, Ksnap, Program("python3"), AllProcesses);
    let ksnap = Ksnap::new()?;
    let listener = TcpListener::bind((Ipv6Addr::LOCALHOST, 0))?;
    let pause = Duration::from_millis(2);
    let mut stream = Stream::start(&listener, 6000, pause, |c| c)?;
    let _ended = Ended(stream.pid(), "python");
    there_and_back(&mut stream, &ksnap, 2, || ksnap.command())?;
    stream.finish()
}

#[test]
fn redis_answers_its_client_that_waited_meanwhile() -> Result<()> {
    require!(Root, Ksnap, Program("redis-server"), AllProcesses);
    let ksnap = Ksnap::new()?;
    let mut redis = Redis::start()?;
    let pid = redis.pid();
    let _ended = Ended(pid, "redis");
    let mut client = redis.client()?;
    let mut other = redis.client()?;
    client.set("greeting", "hello")?;
    other.incr("count")?;
    for round in 0..2 {
        take(&ksnap, pid)?;
        if round == 0 {
            redis.ended(LIMIT)?;
        }
        await_gone(pid, LIMIT)?;
        // Into the dark: the kernel of this side sends it again until somebody hears it.
        client.send(&["GET", "greeting"])?;
        is_back(&bring_back(ksnap.command(), &[])?)?;
        let answer = format!("{:?}", client.receive()?);
        ensure!(answer.contains("104, 101, 108, 108, 111"), "{answer}");
        ensure!(other.incr("count")? == round + 2);
    }
    let mut new = redis.client()?;
    ensure!(new.get("greeting")?.as_deref() == Some("hello"));
    Ok(())
}

#[test]
fn what_cannot_go_on_is_refused_and_the_connection_waits() -> Result<()> {
    require!(Root, Ksnap, Machines, Program("python3"));
    let machines = Machines::new()?;
    let ksnap = Ksnap::new()?;
    let listener = machines.inside(1, || Ok(TcpListener::bind((ADDRESSES[1], 0))?))?;
    let pause = Duration::from_millis(4);
    let mut stream = Stream::start(&listener, 4000, pause, |c| machines.on(0, &c))?;
    let pid = stream.pid();
    let _ended = Ended(pid, "python");
    stream.goes_on(10)?;
    take(&ksnap, pid)?;
    stream.program.wait(LIMIT)?.context("it lives on")?;
    await_gone(pid, LIMIT)?;
    let here = || machines.on(0, &ksnap.command());
    // Not at this address.
    let there = || machines.on(1, &ksnap.command());
    let other = bring_back(there(), &["--net", "shared"])?;
    ensure!(
        other.code()? != 0 && other.stderr.contains(ADDRESSES[0]),
        "{other:?}"
    );
    ensure!(
        other.stderr.contains("not one of this machine's"),
        "{other:?}"
    );
    let private = bring_back(here(), &["--net", "private"])?;
    ensure!(private.stderr.contains("--net private"), "{private:?}");
    // Not two of them.
    let copy = run(here(), &["fork", "latest"])?;
    ensure!(copy.stderr.contains("restore --tcp"), "{copy:?}");
    // It goes on in the network that it was in, wherever ksnap is.
    is_back(&bring_back(there(), &[])?)?;
    stream.goes_on(10)?;
    // It has an owner now.
    let again = bring_back(here(), &["--pids", "new"])?;
    ensure!(again.code()? != 0, "{again:?}");
    ensure!(again.stderr.contains("already"), "{again:?}");
    stream.finish()
}

#[test]
fn a_process_whose_connections_may_not_be_taken_is_not_harmed() -> Result<()> {
    require!(
        Root,
        Ksnap,
        Program("python3"),
        Program("setpriv"),
        AllProcesses
    );
    let ksnap = Ksnap::new()?;
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    let mut stream = Stream::start(&listener, 8000, Duration::from_millis(1), |c| c)?;
    let pid = stream.pid().to_string();
    for _ in 0..3 {
        stream.goes_on(10)?;
        // However long ksnap takes, it must not come to its end.
        stream.hold(true);
        let mut bare = Command::new("setpriv");
        let own = ksnap.command();
        bare.args(["--bounding-set", "-net_admin", "--inh-caps", "-net_admin"])
            .arg(own.get_program())
            .args(own.get_args());
        let refused = run(bare, &["snap", &pid, "--kill", "--tcp"])?;
        ensure!(refused.code()? != 0, "{refused:?}");
        ensure!(refused.stderr.contains("CAP_NET_ADMIN"), "{refused:?}");
        stream.hold(false);
    }
    // Nor is one that is captured under load and goes on.
    for _ in 0..3 {
        stream.goes_on(10)?;
        stream.hold(true);
        let taken = ksnap.run(&["snap", &pid, "--audit"])?;
        ensure!(taken.code()? == 0, "{taken:?}");
        stream.hold(false);
    }
    let words = ksnap.run(&["snap", &pid, "--tcp"])?;
    ensure!(
        words.code()? == 2 && words.stderr.contains("--kill"),
        "{words:?}"
    );
    stream.finish()
}

#[test]
fn what_the_other_side_has_ended_is_told() -> Result<()> {
    require!(Root, Ksnap, Program("python3"));
    let ksnap = Ksnap::new()?;
    let mut script = Python::script(
        "import socket, time\n\
         l = socket.create_server(('127.0.0.1', 0))\n\
         print(l.getsockname()[1])\n\
         s, _ = l.accept()\n\
         print('accepted')\n\
         time.sleep(1000)\n",
    )?;
    let port: u16 = script.line(LIMIT)?.trim().parse()?;
    let client = std::net::TcpStream::connect(("127.0.0.1", port))?;
    script.line(LIMIT)?;
    drop(client);
    await_close_wait(script.pid(), port)?;
    let pid = script.pid().to_string();
    let taken = ksnap.run(&["snap", &pid, "--kill", "--tcp"])?;
    ensure!(taken.code()? == 3, "{taken:?}");
    ensure!(taken.stderr.contains("CLOSE_WAIT"), "{taken:?}");
    ensure!(!taken.stderr.contains(" holds "), "{taken:?}");
    Ok(())
}

#[test]
fn a_snapshot_that_nobody_keeps_connections_for_is_refused() -> Result<()> {
    require!(Root, Ksnap, Program("python3"), AllProcesses);
    let ksnap = Ksnap::new()?;
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    let pause = Duration::from_millis(4);
    let mut stream = Stream::start(&listener, 4000, pause, |c| c)?;
    let pid = stream.pid();
    let _ended = Ended(pid, "python");
    let restore = |id: &str| {
        let args = ["restore", id, "--tcp", "--pids", "new"];
        run(ksnap.command(), &args)
    };
    let mut ids = Vec::new();
    let mut keeper = 0;
    for round in 0..2 {
        stream.goes_on(10)?;
        keeper = take(&ksnap, pid)?;
        if round == 0 {
            stream.program.wait(LIMIT)?.context("it lives on")?;
        }
        await_gone(pid, LIMIT)?;
        let listed = ksnap.json(&["log", "-n", "1"])?;
        let newest = listed.first().context("no snapshot")?;
        ids.push(newest["id"].as_str().context("no id")?.to_owned());
        if round == 0 {
            is_back(&bring_back(ksnap.command(), &[])?)?;
        }
    }
    ensure!(ids[0] != ids[1], "{ids:?}");
    let old = restore(&ids[0])?;
    ensure!(old.code()? != 0, "{old:?}");
    let named = format!("process {keeper} (ksnap-tcp) keeps it for another snapshot");
    ensure!(old.stderr.contains(&named), "{old:?}");
    // The one that is kept waits all the same, until it is given up.
    await_state(keeper, 'S', LIMIT)?;
    kill(Pid::from_raw(keeper), Signal::SIGTERM)?;
    await_gone(keeper, LIMIT)?;
    for id in &ids {
        let lost = restore(id)?;
        ensure!(lost.code()? != 0, "{lost:?}");
        ensure!(lost.stderr.contains("no process ksnap-tcp"), "{lost:?}");
    }
    Ok(())
}

#[test]
fn one_that_the_other_side_ends_before_the_silence_is_told_and_another_goes_on() -> Result<()> {
    require!(Root, Ksnap, Program("python3"), AllProcesses);
    let ksnap = Ksnap::new()?.with_variable("KSNAP_TCP_DELAY_MS", "10000".into());
    let mut script = Python::script(
        "import socket\n\
         l = socket.socket()\n\
         l.bind(('127.0.0.1', 0))\n\
         l.listen()\n\
         print(l.getsockname()[1])\n\
         a, _ = l.accept()\n\
         b, _ = l.accept()\n\
         print('accepted')\n\
         while True:\n\
         \x20   b.sendall(b.recv(1))\n",
    )?;
    let port: u16 = script.line(LIMIT)?.trim().parse()?;
    let ending = std::net::TcpStream::connect(("127.0.0.1", port))?;
    let mut going = std::net::TcpStream::connect(("127.0.0.1", port))?;
    going.set_read_timeout(Some(LIMIT))?;
    script.line(LIMIT)?;
    let pid = script.pid();
    let _ended = Ended(pid, "python");
    let mut snap = ksnap.start(&["snap", &pid.to_string(), "--kill", "--tcp"])?;
    // Stopped for as long as the delay: no other stop is that long.
    let until = std::time::Instant::now() + LIMIT;
    let mut stopped = 0;
    while stopped < 50 {
        ensure!(std::time::Instant::now() < until, "it was not stopped");
        let now = tests::footprint::state_of(pid) == 't';
        stopped = if now { stopped + 1 } else { 0 };
        std::thread::sleep(Duration::from_millis(10));
    }
    (&ending).write_all(b"ABC")?;
    drop(ending);
    let taken = snap.finish(LIMIT)?;
    ensure!(taken.code()? == 3, "{taken:?}");
    ensure!(taken.stderr.contains("CLOSE_WAIT"), "{taken:?}");
    ensure!(taken.stderr.contains("holds 1 TCP"), "{taken:?}");
    script.process().wait(LIMIT)?.context("it lives on")?;
    await_gone(pid, LIMIT)?;
    let back = bring_back(ksnap.command(), &[])?;
    ensure!(matches!(back.code()?, 0 | 3), "{back:?}");
    going.write_all(b"x")?;
    let mut got = [0];
    going.read_exact(&mut got)?;
    ensure!(got == *b"x", "{got:?}");
    // Its listener has no SO_REUSEADDR, and listens beside the connection all the same.
    std::net::TcpStream::connect(("127.0.0.1", port))?;
    Ok(())
}
