//! A running victim and its protocol.

use std::fs::Permissions;
use std::io::Write;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use tempfile::TempDir;

use crate::background::{Background, Finished};
use crate::{effort, paths, poke};

/// How long a victim may take to prepare itself.
const READY: Duration = Duration::from_secs(60);
/// How long one request may take, repeats included.
const ANSWER: Duration = Duration::from_secs(60);
/// A rollback can swallow a request: ask again after this long.
const REPEAT: Duration = Duration::from_millis(1500);

/// A victim's answer.
#[derive(Clone, Debug)]
pub struct Status {
    /// Grows with the work done; goes back with a rollback.
    pub counter: u64,
    /// The whole reply.
    pub reply: Value,
}

/// The error of a victim that says nothing in time, which may be stopped: one that is broken or gone is another error.
#[derive(Debug)]
pub struct Unanswered(String);

impl std::fmt::Display for Unanswered {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Unanswered {}

/// Asks the victim whose standard streams this process has, and gives its reply, whatever that is.
pub fn request(process: &mut Background, verb: &str, id: usize, limit: Duration) -> Result<Value> {
    let line = format!("{verb} {id}\n");
    process.stdin()?.write_all(line.as_bytes())?;
    loop {
        let line = process.line(limit)?;
        let line = line.with_context(|| format!("no answer to {verb} {id}"))?;
        let reply: Value = serde_json::from_str(&line).with_context(|| line.clone())?;
        if reply["verb"] == verb {
            return Ok(reply);
        }
    }
}

/// A running victim. Killed when dropped.
pub struct Victim {
    process: Background,
    ready: Value,
    pid: i32,
    // The victim may be a grandchild (under `ksnap run`): a pidfd cannot hit a stranger that got its id.
    pidfd: OwnedFd,
    next: u64,
    folder: TempDir,
    binary: Option<TempDir>,
}

impl Victim {
    /// Starts `victim NAME ARGS` and waits until it is ready.
    pub fn spawn(name: &str, args: &[&str]) -> Result<Self> {
        let mut command = Command::new(paths::victim()?);
        command.arg(name).args(args);
        Self::from_command(command)
    }

    /// The same as another user, from a copy of the binary that this user can run. Needs root.
    pub fn spawn_as(user: u32, name: &str, args: &[&str]) -> Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix("ksnap-victim-")
            .permissions(Permissions::from_mode(0o755))
            .tempdir()?;
        let copy = folder.path().join("victim");
        paths::copy_program(&paths::victim()?, &copy)?;
        let mut command = Command::new(copy);
        command.arg(name).args(args).uid(user).gid(user);
        let mut victim = Self::from_command(command)?;
        // The binary must be there as long as the victim, which may execute itself.
        victim.binary = Some(folder);
        Ok(victim)
    }

    /// The same as root of a user namespace of its own.
    pub fn spawn_in_user_namespace(name: &str, args: &[&str]) -> Result<Self> {
        let mut command = Command::new("unshare");
        command
            .args(["-U", "-r", "--"])
            .arg(paths::victim()?)
            .arg(name)
            .args(args);
        Self::from_command(command)
    }

    /// Starts a command that starts a victim and passes its stdin and stdout through
    /// (`ksnap … run -- victim …`), and waits until the victim is ready.
    pub fn from_command(mut command: Command) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("ksnap-victim-").tempdir()?;
        // The command may run as another user.
        std::fs::set_permissions(folder.path(), Permissions::from_mode(0o1777))?;
        command.env("TMPDIR", folder.path());
        let mut process = Background::start(command)?;
        let end = Instant::now() + effort::patience(READY);
        let ready = loop {
            let Some(line) = process.line(end.saturating_duration_since(Instant::now()))? else {
                bail!(
                    "the victim was not ready within {READY:?}; stderr: {}",
                    process.stderr()
                );
            };
            match serde_json::from_str::<Value>(&line) {
                Ok(value) if value["ready"] == true => break value,
                _ => {}
            }
        };
        let pid = ready["pid"]
            .as_i64()
            .context("the victim's first line has no pid")? as i32;
        Self::of(process, ready, pid, folder)
    }

    /// A victim that `ksnap restore --json` brings back, which has its standard streams.
    pub fn brought_back(mut process: Background) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("ksnap-victim-").tempdir()?;
        let Some(line) = process.line(READY)? else {
            bail!(
                "nothing was brought back within {READY:?}; stderr: {}",
                process.stderr()
            );
        };
        let said: Value = serde_json::from_str(&line).with_context(|| line.clone())?;
        let pid = said["pid"].as_i64().context("no pid in what ksnap says")? as i32;
        Self::of(process, said, pid, folder)
    }

    fn of(process: Background, ready: Value, pid: i32, folder: TempDir) -> Result<Self> {
        // SAFETY: pidfd_open takes two integers and gives a new descriptor or -1.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        ensure!(
            fd >= 0,
            "pidfd_open of the victim {pid}: {}",
            std::io::Error::last_os_error()
        );
        // SAFETY: just made, and owned by nobody else.
        let pidfd = unsafe { OwnedFd::from_raw_fd(fd as i32) };
        Ok(Self {
            process,
            ready,
            pid,
            pidfd,
            next: 0,
            folder,
            binary: None,
        })
    }

    /// The victim's own process id.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// The victim's first line, or what ksnap said of it when it brought it back.
    pub fn ready(&self) -> &Value {
        &self.ready
    }

    /// The victim's temporary folder (its TMPDIR), removed with it.
    pub fn folder(&self) -> &std::path::Path {
        self.folder.path()
    }

    /// The process that was started: the victim, or what runs it.
    pub fn process(&mut self) -> &mut Background {
        &mut self.process
    }

    /// Adds to an error how the victim is, and what it said: one that found itself broken has ended, and what
    /// ksnap then says of it is only the consequence.
    pub fn blame<T>(&self, outcome: Result<T>) -> Result<T> {
        outcome.with_context(|| {
            let state = crate::footprint::state_of(self.pid);
            let said = self.process.stderr();
            format!("victim {} (state {state}): {said}", self.pid)
        })
    }

    /// Cheap checks, and the counter.
    pub fn status(&mut self) -> Result<Status> {
        self.ask("status", ANSWER)
    }

    /// Every invariant of the victim; its reason is the error.
    pub fn check(&mut self) -> Result<Status> {
        self.ask("check", ANSWER)
    }

    /// Has the victim change what it holds.
    pub fn change(&mut self) -> Result<Status> {
        self.ask("change", ANSWER)
    }

    /// Checks everything, ends the victim, and demands exit status 0.
    pub fn quit(self) -> Result<()> {
        self.finish()?.success().map(drop)
    }

    /// Checks everything, ends the victim, and waits for the process that was started: the victim, or what runs
    /// it (`ksnap run`), whose status and output the result has.
    pub fn finish(mut self) -> Result<Finished> {
        self.ask("quit", ANSWER)?;
        self.process.finish(Duration::from_secs(60))
    }

    /// Waits until the counter is larger than this.
    pub fn wait_beyond(&mut self, counter: u64, limit: Duration) -> Result<Status> {
        let end = Instant::now() + effort::patience(limit);
        loop {
            let status = self.status()?;
            if status.counter > counter {
                return Ok(status);
            }
            ensure!(
                Instant::now() < end,
                "the counter stays at {}, not beyond {counter}",
                status.counter
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Demands that the counter has gone back: to `most` at most, by what began at `since`, and on from there by what a
    /// victim can do in that time at so many steps a millisecond. Gives the counter.
    pub fn is_back(&mut self, most: u64, since: Instant, pace: u64) -> Result<u64> {
        let counter = self.check()?.counter;
        // A step of each of its threads is under way, and another one when its sleep is over.
        let most = most + since.elapsed().as_millis() as u64 * pace + 32;
        ensure!(
            counter <= most,
            "the counter is {counter}, beyond {most}: it has not gone back"
        );
        Ok(counter)
    }

    /// Waits until the victim ends because it found an invariant broken; gives its reason.
    pub fn expect_broken(mut self, limit: Duration) -> Result<String> {
        let pid = self.pid;
        let what = || format!("the victim {pid} did not notice any damage");
        let finished = self.process.finish(limit).with_context(what)?;
        let (status, said) = (finished.status, finished.stderr);
        ensure!(
            status.code() == Some(crate::victim::fault::BROKEN) && said.contains("BROKEN"),
            "the victim ended with {status} instead of saying what is broken; stderr: {said}"
        );
        Ok(said)
    }

    /// Overwrites the victim's `poke` bytes, behind its back.
    pub fn sabotage(&mut self) -> Result<()> {
        let reply = self.status()?.reply;
        let address = reply["poke"]["address"]
            .as_u64()
            .context("the victim names no bytes to damage")?;
        let length = reply["poke"]["length"]
            .as_u64()
            .context("the victim names no length to damage")?;
        poke::invert(self.pid, address, length as usize)
    }

    /// Sends one request and waits for its reply, repeating it if a rollback may have swallowed it. A reply
    /// that is not ok is an error with the victim's reason, no reply one of [`Unanswered`].
    pub fn ask(&mut self, verb: &str, limit: Duration) -> Result<Status> {
        let end = Instant::now() + effort::patience(limit);
        let first = self.next + 1;
        while Instant::now() < end {
            self.next += 1;
            let line = format!("{verb} {}\n", self.next);
            let sent = self.process.stdin()?.write_all(line.as_bytes());
            let again = Instant::now() + effort::patience(REPEAT);
            while let Some(line) = self
                .process
                .line(again.saturating_duration_since(Instant::now()))?
            {
                let Ok(reply) = serde_json::from_str::<Value>(&line) else {
                    continue;
                };
                let id = reply["id"].as_u64().unwrap_or_default();
                // Replies to older requests come again when a rollback repeats them; each of this call's will do.
                if id < first || reply["verb"] != verb {
                    continue;
                }
                ensure!(
                    reply["ok"] == true,
                    "the victim {} is broken: {}",
                    self.pid,
                    reply["reason"]
                );
                let counter = reply["counter"]
                    .as_u64()
                    .context("a reply without a counter")?;
                return Ok(Status { counter, reply });
            }
            // One that ends when it has answered may have done so before it was asked again.
            if sent.is_err() {
                bail!(
                    "the victim {} is gone; stderr: {}",
                    self.pid,
                    self.process.stderr()
                );
            }
        }
        let said = format!(
            "the victim {} did not answer {verb:?} within {limit:?} (state {}); stderr: {}",
            self.pid,
            crate::footprint::state_of(self.pid),
            self.process.stderr()
        );
        Err(Unanswered(said).into())
    }

    /// Whether the victim process exists and is not a zombie.
    pub fn alive(&self) -> bool {
        !matches!(crate::footprint::state_of(self.pid), 'Z' | 'X' | '?')
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        // SAFETY: pidfd_send_signal takes a descriptor of ours, a signal, no info and no flags.
        unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                self.pidfd.as_raw_fd(),
                libc::SIGKILL,
                std::ptr::null::<libc::siginfo_t>(),
                0,
            )
        };
    }
}
