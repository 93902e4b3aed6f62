//! redis-server with data on the first of two machines, and what becomes of it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::background::Background;
use crate::footprint::tracer_of;
use crate::remote::Pair;
use crate::resp::{Reply, Resp};

const PORT: u16 = 7901;
const LIMIT: Duration = Duration::from_secs(60);

/// A server that is to move from machine 0 to machine 1.
pub struct Moving {
    /// The machines.
    pub pair: Pair,
    /// The server on machine 0.
    pub server: Background,
    /// A connection to it, made before anything moves.
    pub client: Resp,
    /// Of its data.
    pub digest: String,
}

impl Moving {
    /// Starts machines that are so patient with each other, and the server, filled with so many values of 4 KiB.
    pub fn start(timeout: &str, values: u32) -> Result<Self> {
        Self::on(Pair::new(timeout)?, values)
    }

    /// The same on machines that are there.
    pub fn on(pair: Pair, values: u32) -> Result<Self> {
        // In the /tmp of each, which goes with the machines.
        let folder = PathBuf::from("/tmp/ksnap-redis");
        for machine in [0, 1] {
            let mut make = Command::new("mkdir");
            make.arg("-p").arg(&folder);
            Background::start(pair.machines.on(machine, &make))?
                .finish(LIMIT)?
                .success()?;
        }
        let server = redis(&pair, &folder)?;
        let mut client = client(&pair, 0)?;
        fill(&mut client, values)?;
        Ok(Self {
            digest: client.digest()?,
            pair,
            server,
            client,
        })
    }

    /// The server's process id.
    pub fn pid(&self) -> i32 {
        self.server.pid()
    }

    /// A connection to the server on a machine, once it answers.
    pub fn client_on(&self, machine: usize) -> Result<Resp> {
        client(&self.pair, machine)
    }

    /// It goes on here with all of its data, and nobody traces it.
    pub fn is_unharmed(&mut self) -> Result<()> {
        ensure!(self.client.digest()? == self.digest, "other data here");
        let tracer = tracer_of(self.pid())?;
        ensure!(tracer == 0, "thread {tracer} traces it");
        Ok(())
    }

    /// No part of it is on the other machine.
    pub fn is_not_there(&self) -> Result<()> {
        // What is killed with the server there, or by it, takes a moment to be gone.
        let end = Instant::now() + LIMIT;
        while servers_on(&self.pair, 1)? != 0 {
            ensure!(Instant::now() < end, "half a process");
            std::thread::sleep(Duration::from_millis(10));
        }
        self.pair.tool(1).ok(&["verify"]).map(drop)
    }

    /// It runs there with all of its data, and has ended here.
    pub fn has_moved(&self) -> Result<()> {
        ended(&self.pair, 0, self.pid())?;
        ensure!(self.client_on(1)?.digest()? == self.digest, "other data");
        Ok(())
    }
}

fn redis(pair: &Pair, folder: &Path) -> Result<Background> {
    let mut command = Command::new("redis-server");
    command
        .args([
            "--port",
            &PORT.to_string(),
            "--save",
            "",
            "--appendonly",
            "no",
        ])
        .args([
            "--enable-debug-command",
            "yes",
            "--daemonize",
            "no",
            "--logfile",
        ])
        .arg(folder.join("log"))
        .arg("--dir")
        .arg(folder)
        .current_dir(folder);
    Background::start(pair.machines.on(0, &command))
}

/// A connection to the server on a machine, once it answers.
fn client(pair: &Pair, machine: usize) -> Result<Resp> {
    let end = Instant::now() + LIMIT;
    loop {
        let answered = pair.machines.client(machine, PORT).and_then(|mut client| {
            ensure!(
                client.command(&["PING"])? == Reply::Simple("PONG".into()),
                "no answer"
            );
            Ok(client)
        });
        match answered {
            Ok(client) => return Ok(client),
            Err(e) if Instant::now() > end => return Err(e.context("redis-server does not answer")),
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// Fills the server with values that do not compress, so many of 4 KiB.
fn fill(client: &mut Resp, pages: u32) -> Result<()> {
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    for number in 0..pages {
        let value: String = (0..4096 / 16)
            .map(|_| {
                seed ^= seed << 13;
                seed ^= seed >> 7;
                seed ^= seed << 17;
                format!("{seed:016x}")
            })
            .collect();
        client.set(&format!("filling{number}"), &value)?;
    }
    Ok(())
}

/// Waits until a process of a machine has ended, which is called so there.
pub fn ended(pair: &Pair, machine: usize, pid: i32) -> Result<()> {
    let end = Instant::now() + LIMIT;
    while pair.machines.own_processes(machine)?.contains(&pid) {
        ensure!(Instant::now() < end, "process {pid} still runs");
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// How many processes of a machine are called redis-server.
pub fn servers_on(pair: &Pair, machine: usize) -> Result<usize> {
    let is_server = |pid: &i32| {
        let comm = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        comm.trim() == "redis-server"
    };
    Ok(pair
        .machines
        .processes(machine)?
        .iter()
        .filter(|pid| is_server(pid))
        .count())
}
