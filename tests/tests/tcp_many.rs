//! Hundreds of TCP connections, taken with few open files allowed, and given back when the process cannot be ended.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tests::background::{Background, Ended, Finished};
use tests::footprint::await_gone;
use tests::{Ksnap, Python, require};

const LIMIT: Duration = Duration::from_secs(120);
const CONNECTIONS: usize = 300;

/// Uses one connection after the other, all the time: it ends when one is out of use.
const SCRIPT: &str = "\
import socket
l = socket.create_server(('127.0.0.1', 0), backlog=1000)
print(l.getsockname()[1])
all = [l.accept()[0] for _ in range(COUNT)]
for s in all:
    s.setblocking(False)
print('accepted')
while True:
    for s in all:
        try:
            s.send(s.recv(1))
        except BlockingIOError:
            pass
";

/// `ksnap` that may have so many open files: soft and hard limit.
fn limited(ksnap: &Ksnap, limits: &str, args: &[&str]) -> Result<Finished> {
    let own = ksnap.command();
    let mut command = Command::new("prlimit");
    command
        .arg(format!("--nofile={limits}"))
        .arg(own.get_program())
        .args(own.get_args())
        .args(args);
    for (name, value) in own.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    let mut process = Background::start(command)?;
    process.close_stdin();
    process.finish(LIMIT)
}

fn all_answer(connections: &mut [TcpStream]) -> Result<()> {
    for (number, connection) in connections.iter_mut().enumerate() {
        let word = [number as u8];
        connection.write_all(&word)?;
        let mut got = [0];
        let read = connection.read_exact(&mut got);
        read.with_context(|| format!("connection {number}"))?;
        ensure!(got == word, "connection {number}: {got:?}");
    }
    Ok(())
}

#[test]
fn hundreds_of_connections_are_refused_or_given_back_or_go_on() -> Result<()> {
    require!(
        Root,
        Ksnap,
        Program("python3"),
        Program("prlimit"),
        AllProcesses,
        ChosenIds
    );
    let ksnap = Ksnap::new()?;
    let count = CONNECTIONS.to_string();
    let mut script = Python::script(&SCRIPT.replace("COUNT", &count))?;
    let port: u16 = script.line(LIMIT)?.trim().parse()?;
    let mut connections = Vec::new();
    for _ in 0..CONNECTIONS {
        let connection = TcpStream::connect(("127.0.0.1", port))?;
        connection.set_read_timeout(Some(LIMIT))?;
        connections.push(connection);
    }
    script.line(LIMIT)?;
    let pid = script.pid();
    let _ended = Ended(pid, "python");
    let word = pid.to_string();
    let take = ["snap", &word, "--kill", "--tcp"];
    all_answer(&mut connections)?;

    let refused = limited(&ksnap, "256:256", &take)?;
    ensure!(refused.code()? == 1, "{refused:?}");
    for words in ["ulimit -n", "leave --tcp out"] {
        ensure!(refused.stderr.contains(words), "{refused:?}");
    }
    all_answer(&mut connections)?;

    let failing = Ksnap::new()?.with_variable("KSNAP_FAIL_AT", "tcp-killing".into());
    for _ in 0..5 {
        let failed = failing.run(&take)?;
        ensure!(
            failed.code()? == 1 && failed.stderr.contains("KSNAP_FAIL_AT"),
            "it did not fail (not a debug build?): {failed:?}"
        );
        all_answer(&mut connections)?;
    }

    let taken = limited(&ksnap, "256:4096", &take)?;
    ensure!(taken.code()? == 0, "{taken:?}");
    let holds = format!("holds {count} TCP");
    ensure!(taken.stderr.contains(&holds), "{taken:?}");
    script.process().wait(LIMIT)?.context("it lives on")?;
    await_gone(pid, LIMIT)?;
    let back = limited(&ksnap, "256:4096", &["restore", "latest", "--tcp"])?;
    ensure!(matches!(back.code()?, 0 | 3), "{back:?}");
    ensure!(!back.stderr.contains("was a connection"), "{back:?}");
    all_answer(&mut connections)
}
