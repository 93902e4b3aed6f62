//! Two machines with ksnap on them: a store, a key and a server on each.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::background::{Background, Finished};
use crate::ksnap::Ksnap;
use crate::netns::{ADDRESSES, Machines};

const LIMIT: Duration = Duration::from_secs(120);
const PORT: u16 = 5762;

/// Two machines that trust each other.
pub struct Pair {
    /// The network.
    pub machines: Machines,
    tools: [Ksnap; 2],
    servers: Vec<Option<Background>>,
}

impl Pair {
    /// Starts both servers. `timeout`: how long each is patient with the other.
    pub fn new(timeout: &str) -> Result<Self> {
        let tools = [Ksnap::new()?, Ksnap::new()?];
        let binaries = crate::paths::ksnap()?;
        let parent = |path: &Path| path.parent().map(Path::to_owned);
        let keep = tools.each_ref().map(|tool| {
            let folders = [parent(tool.store()), parent(&binaries)];
            folders.into_iter().flatten().collect()
        });
        let mut pair = Self {
            machines: Machines::apart(keep)?,
            tools,
            servers: vec![None, None],
        };
        for (one, other) in [(0, 1), (1, 0)] {
            let key = pair.run(one, &["key", "show"])?.success()?;
            let name = ADDRESSES[one];
            pair.run(other, &["key", "trust", key.trim(), "--name", name])?
                .success()?;
        }
        for machine in [0, 1] {
            pair.serve(machine, timeout)?;
        }
        Ok(pair)
    }

    /// The tool of one machine.
    pub fn tool(&self, machine: usize) -> &Ksnap {
        &self.tools[machine]
    }

    fn command(&self, machine: usize, args: &[&str]) -> Command {
        let tool = &self.tools[machine];
        let mut command = tool.command();
        // Next to the store, and of one machine alone.
        let config = tool.store().with_file_name("config");
        command.env("KSNAP_CONFIG", config).args(args);
        self.machines.on(machine, &command)
    }

    /// Runs ksnap on one machine to the end.
    pub fn run(&self, machine: usize, args: &[&str]) -> Result<Finished> {
        let mut process = self.start(machine, args)?;
        process.close_stdin();
        process
            .finish(LIMIT)
            .with_context(|| format!("ksnap {}", args.join(" ")))
    }

    /// Starts ksnap on one machine.
    pub fn start(&self, machine: usize, args: &[&str]) -> Result<Background> {
        Background::start(self.command(machine, args))
    }

    /// The same, killed at a point of a debug build.
    pub fn run_until(&self, machine: usize, point: &str, args: &[&str]) -> Result<Finished> {
        let mut command = self.command(machine, args);
        command.env("KSNAP_KILL_AT", point);
        Background::start(command)?.finish(LIMIT)
    }

    /// Starts the server of a machine.
    pub fn serve(&mut self, machine: usize, timeout: &str) -> Result<()> {
        let command = self.command(machine, &["serve", "--json", "--timeout", timeout]);
        self.serve_by(machine, command)
    }

    /// The same, with these options.
    pub fn serve_with(&mut self, machine: usize, options: &[&str]) -> Result<()> {
        let command = self.command(machine, &[&["serve", "--json"][..], options].concat());
        self.serve_by(machine, command)
    }

    /// The same, killed at a point of a debug build.
    pub fn serve_until(&mut self, machine: usize, point: &str) -> Result<()> {
        let mut command = self.command(machine, &["serve", "--json"]);
        command.env("KSNAP_KILL_AT", point);
        self.serve_by(machine, command)
    }

    fn serve_by(&mut self, machine: usize, command: Command) -> Result<()> {
        let mut server = Background::start(command)?;
        let line = server.line(LIMIT)?.context("the server says nothing")?;
        anyhow::ensure!(line.contains("listening"), "{line}");
        self.servers[machine] = Some(server);
        Ok(())
    }

    /// Ends the server of a machine at once.
    pub fn kill_server(&mut self, machine: usize) {
        self.servers[machine] = None;
    }

    /// The next that the server of a machine says of this kind.
    pub fn event(&mut self, machine: usize, kind: &str) -> Result<Value> {
        let server = self.servers[machine].as_mut().context("no server")?;
        while let Some(line) = server.line(LIMIT)? {
            // A process that was brought back may write there too.
            if let Ok(value) = serde_json::from_str::<Value>(&line)
                && value["event"] == kind
            {
                return Ok(value);
            }
        }
        bail!("the server ended: {}", server.stderr())
    }

    /// Clones from one machine to the other; what ksnap says of it. That something differs there is no failure.
    pub fn clone(&self, from: usize, what: &str, options: &[&str]) -> Result<Value> {
        self.clone_to(from, what, &self.target(1 - from), options)
    }

    /// The same by another way.
    pub fn clone_to(
        &self,
        from: usize,
        what: &str,
        target: &str,
        options: &[&str],
    ) -> Result<Value> {
        let args = [&["clone", what, target, "--json"][..], options].concat();
        let done = self.run(from, &args)?;
        match done.code()? {
            0 | 3 => serde_json::from_str(&done.stdout)
                .with_context(|| format!("not JSON: {}", done.stdout)),
            code => bail!("exit code {code}: {}", done.stderr),
        }
    }

    /// How a machine is called.
    pub fn target(&self, machine: usize) -> String {
        format!("{}:{PORT}", ADDRESSES[machine])
    }
}
