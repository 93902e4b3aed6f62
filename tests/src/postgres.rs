//! A server of PostgreSQL with a cluster of its own.

use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

use crate::background::Background;
use crate::tree::children_of;

const LIMIT: Duration = Duration::from_secs(120);
const PATIENCE: Duration = Duration::from_millis(50);

/// A running server: a postmaster and its children. Killed when dropped, as far as this process has started it.
pub struct Postgres {
    process: Background,
    port: Option<u16>,
    user: (u32, u32),
    folder: TempDir,
}

impl Postgres {
    /// Where the programs of the newest version are; Debian has them outside of PATH.
    pub fn programs() -> Option<PathBuf> {
        let versions = std::fs::read_dir("/usr/lib/postgresql")
            .into_iter()
            .flatten();
        let folders = versions.flatten().map(|entry| entry.path().join("bin"));
        let has = |folder: &PathBuf, name: &str| folder.join(name).is_file();
        folders
            .filter(|folder| has(folder, "initdb") && has(folder, "pgbench"))
            .max()
    }

    /// A new cluster, served at a Unix socket alone.
    pub fn start() -> Result<Self> {
        Self::start_at(None)
    }

    /// A new cluster, served at a Unix socket, and at this port of 127.0.0.1.
    pub fn start_at(port: Option<u16>) -> Result<Self> {
        // It refuses to run as root.
        let home = std::fs::metadata("/var/lib/postgresql").context("no user for PostgreSQL")?;
        let user = (home.uid(), home.gid());
        let folder = tempfile::Builder::new()
            .prefix("ksnap-postgres-")
            .permissions(std::fs::Permissions::from_mode(0o755))
            .tempdir()?;
        chown(folder.path(), Some(user.0), Some(user.1))?;
        let data = folder.path().join("data");
        let made = Self::command("initdb", user)?
            .args([
                "-A",
                "trust",
                "-U",
                "test",
                "-E",
                "UTF8",
                "--no-locale",
                "-N",
            ])
            .arg("-D")
            .arg(&data)
            .output()?;
        let said = String::from_utf8_lossy(&made.stderr);
        ensure!(made.status.success(), "initdb: {said}");
        let mut command = Self::command("postgres", user)?;
        command.arg("-D").arg(&data).arg("-k").arg(folder.path());
        command.args(["-c", "shared_buffers=16MB"]);
        match port {
            None => command.args(["-c", "listen_addresses="]),
            Some(port) => command
                .args(["-c", "listen_addresses=127.0.0.1"])
                .env("PGPORT", port.to_string()),
        };
        // Who waits for a disk cannot be stopped meanwhile.
        command.args(["-c", "fsync=off"]);
        // Whoever vacuums comes and goes.
        command.args(["-c", "autovacuum_naptime=1h"]);
        let postgres = Self {
            process: Background::start(command)?,
            port,
            user,
            folder,
        };
        postgres.await_ready()?;
        Ok(postgres)
    }

    fn command(program: &str, (user, group): (u32, u32)) -> Result<Command> {
        let folder = Self::programs().context("no PostgreSQL")?;
        let mut command = Command::new("setpriv");
        command
            .args(["--reuid", &user.to_string(), "--regid", &group.to_string()])
            .args(["--clear-groups", "--"])
            .arg(folder.join(program));
        Ok(command)
    }

    /// The postmaster's process id: what starts it becomes it.
    pub fn pid(&self) -> i32 {
        self.process.pid()
    }

    /// The process that was started, until it is another one that was brought back.
    pub fn process(&mut self) -> &mut Background {
        &mut self.process
    }

    /// Where its socket and its cluster are.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Runs a client, and gives what it prints.
    pub fn client(&self, program: &str, args: &[&str]) -> Result<String> {
        let mut command = Self::command(program, self.user)?;
        if let Some(port) = self.port {
            // Its socket is named by it.
            command.env("PGPORT", port.to_string());
        }
        command.arg("-h").arg(self.folder.path());
        let output = command.args(["-U", "test"]).args(args).output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{program} {args:?}: {said}");
        Ok(String::from_utf8(output.stdout)?)
    }

    /// A client that stays connected, for queries on its standard input.
    pub fn session(&self) -> Result<Session> {
        let mut command = Self::command("psql", self.user)?;
        command.arg("-h").arg(self.folder.path());
        command.args(["-U", "test", "-XAtq", "postgres"]);
        Ok(Session(Background::start(command)?))
    }

    /// A client that runs on, connected by TCP.
    pub fn remote_client(&self, program: &str, args: &[&str]) -> Result<Background> {
        let port = self.port.context("it is not served by TCP")?.to_string();
        let mut command = Self::command(program, self.user)?;
        command.args(["-h", "127.0.0.1", "-p", &port, "-U", "test"]);
        command.args(args);
        Background::start(command)
    }

    /// What a query gives, fields apart by a bar.
    pub fn query(&self, query: &str) -> Result<String> {
        let said = self.client("psql", &["-XAtc", query, "postgres"])?;
        Ok(said.trim().to_owned())
    }

    /// Waits until it answers.
    pub fn await_ready(&self) -> Result<()> {
        let end = Instant::now() + LIMIT;
        loop {
            match self.query("select 1") {
                Ok(_) => return Ok(()),
                Err(e) if Instant::now() > end => bail!("{e:#}; {}", self.process.stderr()),
                Err(_) => std::thread::sleep(PATIENCE),
            }
        }
    }

    /// Processes that serve a client, by what they call themselves.
    fn backends(&self) -> Result<usize> {
        let mut found = 0;
        for pid in children_of(self.pid())? {
            let name = std::fs::read_to_string(format!("/proc/{pid}/cmdline"));
            found += usize::from(name.is_ok_and(|name| name.contains("[local]")));
        }
        Ok(found)
    }

    /// Waits until nobody is connected but who asks.
    pub fn await_alone(&self) -> Result<()> {
        self.await_alone_but(0)
    }

    /// Waits until so many others are connected beside who asks.
    pub fn await_alone_but(&self, others: usize) -> Result<()> {
        let end = Instant::now() + LIMIT;
        let query = "select count(*) from pg_stat_activity where backend_type = 'client backend'";
        while self.query(query)? != (others + 1).to_string() {
            ensure!(Instant::now() < end, "somebody is connected");
            std::thread::sleep(PATIENCE);
        }
        // Who asked is gone a moment later.
        while self.backends()? != others {
            ensure!(Instant::now() < end, "somebody is connected");
            std::thread::sleep(PATIENCE);
        }
        Ok(())
    }
}

/// A connected client.
pub struct Session(Background);

impl Session {
    /// The one line that queries give, the last of which asks for it.
    pub fn ask(&mut self, queries: &str) -> Result<String> {
        self.0
            .stdin()?
            .write_all(format!("{queries};\n").as_bytes())?;
        let line = self.0.line(LIMIT)?;
        line.with_context(|| format!("{queries}: {}", self.0.stderr()))
    }
}
