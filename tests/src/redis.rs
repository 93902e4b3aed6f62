//! redis-server on a free loopback port, and redis-benchmark as its load.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use crate::background::Background;
use crate::netns::free_port;
use crate::resp::{Reply, Resp};

/// A running redis-server without persistence. Killed when dropped.
pub struct Redis {
    server: Background,
    port: u16,
    _folder: TempDir,
}

impl Redis {
    /// Starts a server and waits until it answers.
    pub fn start() -> Result<Self> {
        Self::start_with(&[])
    }

    /// Starts a server with more options (`--io-threads 4`, …).
    pub fn start_with(options: &[&str]) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("ksnap-redis-").tempdir()?;
        let port = free_port()?;
        let mut command = Command::new("redis-server");
        command.args([
            "--port",
            &port.to_string(),
            "--bind",
            "127.0.0.1",
            "--save",
            "",
            "--appendonly",
            "no",
        ]);
        command
            .args(["--enable-debug-command", "yes", "--daemonize", "no"])
            .args(options);
        command
            .arg("--dir")
            .arg(folder.path())
            .current_dir(folder.path());
        let mut redis = Self {
            server: Background::start(command)?,
            port,
            _folder: folder,
        };
        let end = Instant::now() + Duration::from_secs(60);
        loop {
            let pong = redis
                .client()
                .and_then(|mut client| client.command(&["PING"]));
            match pong {
                Ok(Reply::Simple(pong)) if pong == "PONG" => return Ok(redis),
                _ if !redis.server.running()? || Instant::now() > end => {
                    let mut said = String::new();
                    while let Ok(Some(line)) = redis.server.line(Duration::ZERO) {
                        said += &(line + "\n");
                    }
                    bail!(
                        "redis-server does not answer at port {port}: {said}{}",
                        redis.server.stderr()
                    );
                }
                _ => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    /// The server's process id.
    pub fn pid(&self) -> i32 {
        self.server.pid()
    }

    /// The server's port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// A new connection.
    pub fn client(&self) -> Result<Resp> {
        Resp::connect(self.port)
    }

    /// Fills the server with `keys` values of `bytes` bytes each, inside the server.
    pub fn populate(&self, keys: u64, bytes: u64) -> Result<()> {
        self.client()?
            .command(&[
                "DEBUG",
                "POPULATE",
                &keys.to_string(),
                "key",
                &bytes.to_string(),
            ])
            .map(drop)
    }

    /// Whether the server process runs.
    pub fn running(&mut self) -> Result<bool> {
        self.server.running()
    }

    /// Waits until the server process has ended.
    pub fn ended(&mut self, limit: Duration) -> Result<()> {
        self.server
            .wait(limit)?
            .map(drop)
            .context("the server lives")
    }

    /// Starts `redis-benchmark` on this server in the background, with the given arguments
    /// (`-t set -r 100000 -d 400 -P 8 -n 10000000`). It is killed when the result is dropped.
    pub fn load(&self, args: &[&str]) -> Result<Background> {
        let mut command = Command::new("redis-benchmark");
        command
            .args(["-h", "127.0.0.1", "-p", &self.port.to_string()])
            .args(args);
        Background::start(command)
    }

    /// Runs `redis-benchmark --csv` to the end; gives requests per second by test name.
    pub fn benchmark(&self, args: &[&str], limit: Duration) -> Result<Vec<(String, f64)>> {
        let text = self
            .load(&[args, &["--csv"]].concat())?
            .finish(limit)?
            .success()?;
        let row = |line: &str| -> Option<(String, f64)> {
            let mut columns = line.split(',').map(|column| column.trim_matches('"'));
            Some((columns.next()?.to_owned(), columns.next()?.parse().ok()?))
        };
        let rows: Vec<_> = text.lines().filter_map(row).collect();
        match rows.is_empty() {
            true => bail!("redis-benchmark printed no figures: {text}"),
            false => Ok(rows),
        }
    }
}
