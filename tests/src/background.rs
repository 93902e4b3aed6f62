//! A child process with collected output and time limits, killed by id when dropped.

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::effort;

/// How long whoever else has a pipe is heard when the child has ended.
const OTHERS: Duration = Duration::from_millis(500);
/// How long the last words of a child may take to be read.
const READ: Duration = Duration::from_secs(60);

/// How a process ended and what it said.
#[derive(Debug)]
pub struct Finished {
    /// Exit status or signal.
    pub status: ExitStatus,
    /// Everything on stdout that [`Background::line`] had not taken.
    pub stdout: String,
    /// Everything on stderr.
    pub stderr: String,
}

impl Finished {
    /// The exit code; a signal is an error.
    pub fn code(&self) -> Result<i32> {
        self.status
            .code()
            .with_context(|| format!("ended by a signal: {}\n{}", self.status, self.stderr))
    }

    /// Demands exit code 0, and gives stdout.
    pub fn success(self) -> Result<String> {
        match self.status.success() {
            true => Ok(self.stdout),
            false => bail!(
                "ended with {}\nstdout: {}\nstderr: {}",
                self.status,
                self.stdout,
                self.stderr
            ),
        }
    }
}

/// A process that is nobody's to wait for, such as one that was brought back, and how its name begins: killed when
/// dropped, if it lives and is still the one.
pub struct Ended(pub i32, pub &'static str);

impl Drop for Ended {
    fn drop(&mut self) {
        // What has the id by now may be somebody else.
        let comm = std::fs::read_to_string(format!("/proc/{}/comm", self.0)).unwrap_or_default();
        if comm.starts_with(self.1) {
            let _ = kill(Pid::from_raw(self.0), Signal::SIGKILL);
        }
    }
}

/// A running child.
pub struct Background {
    what: String,
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<String>,
    stderr: Arc<Mutex<String>>,
    readers: [Reader; 2],
}

/// A thread that takes what comes out of a pipe.
struct Reader {
    thread: JoinHandle<()>,
    /// The end that it reads from, to look at what is in there.
    pipe: OwnedFd,
    /// Held while something is out of the pipe and not yet where it belongs.
    taking: Arc<Mutex<()>>,
}

impl Reader {
    /// `take` gets all that comes, and nothing at the end, and says whether to go on.
    fn start(
        mut from: impl Read + AsFd + Send + 'static,
        mut take: impl FnMut(&[u8]) -> bool + Send + 'static,
    ) -> Result<Self> {
        let pipe = from.as_fd().try_clone_to_owned()?;
        let taking = Arc::new(Mutex::new(()));
        let held = Arc::clone(&taking);
        let thread = std::thread::spawn(move || {
            let mut chunk = [0; 4096];
            loop {
                await_input(&from);
                let _held = lock(&held);
                let got = match from.read(&mut chunk) {
                    Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                    done => done.unwrap_or(0),
                };
                if !take(&chunk[..got]) || got == 0 {
                    return;
                }
            }
        });
        Ok(Self {
            thread,
            pipe,
            taking,
        })
    }

    /// Whether the other end is closed, and all was taken.
    fn is_over(&self) -> bool {
        self.thread.is_finished()
    }

    /// Whether all that has been written so far was taken.
    fn has_all(&self) -> bool {
        // Held, something is on its way.
        let Ok(_taking) = self.taking.try_lock() else {
            return self.is_over();
        };
        let mut waiting: libc::c_int = 0;
        // SAFETY: an open descriptor and a live integer, which the call fills.
        let asked = unsafe { libc::ioctl(self.pipe.as_raw_fd(), libc::FIONREAD, &raw mut waiting) };
        asked != 0 || waiting == 0
    }
}

/// Waits until a read would not wait.
fn await_input(from: &impl AsFd) {
    let mut ready = libc::pollfd {
        fd: from.as_fd().as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one live structure. Where it fails but for a signal, the read waits.
    while unsafe { libc::poll(&raw mut ready, 1, -1) } < 0
        && std::io::Error::last_os_error().kind() == ErrorKind::Interrupted
    {}
}

/// Children that this program has started and not waited for.
static STARTED: Mutex<BTreeSet<i32>> = Mutex::new(BTreeSet::new());

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether somebody waits for a child, as for every [`Background`].
pub fn is_awaited(pid: i32) -> bool {
    lock(&STARTED).contains(&pid)
}

impl Background {
    /// Starts the command with all three standard streams piped.
    pub fn start(mut command: Command) -> Result<Self> {
        let what = command.get_program().to_string_lossy().into_owned();
        // With it python3 writes a line in pieces, and whoever is captured in the middle prints the rest of one.
        command.env_remove("PYTHONUNBUFFERED");
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command
            .spawn()
            .with_context(|| format!("cannot start {what}"))?;
        lock(&STARTED).insert(child.id() as i32);
        let (stdout, errors) = (
            child.stdout.take().context("no stdout pipe")?,
            child.stderr.take().context("no stderr pipe")?,
        );
        let (send, lines) = channel();
        let stderr = Arc::new(Mutex::new(String::new()));
        let collected = Arc::clone(&stderr);
        let mut rest = Vec::new();
        let readers = [
            Reader::start(stdout, move |bytes| {
                rest.extend_from_slice(bytes);
                let line = |line: &[u8]| {
                    let line = String::from_utf8_lossy(line).into_owned();
                    send.send(line).is_ok()
                };
                while let Some(at) = rest.iter().position(|byte| *byte == b'\n') {
                    if !line(&rest[..at]) {
                        return false;
                    }
                    rest.drain(..=at);
                }
                // The last one may have no end.
                !bytes.is_empty() || rest.is_empty() || line(&rest)
            })?,
            Reader::start(errors, move |bytes| {
                let text = String::from_utf8_lossy(bytes);
                collected
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push_str(&text);
                true
            })?,
        ];
        let stdin = child.stdin.take();
        Ok(Self {
            what,
            child,
            stdin,
            lines,
            stderr,
            readers,
        })
    }

    /// The child's process id.
    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// The child's stdin, until it is closed.
    pub fn stdin(&mut self) -> Result<&mut ChildStdin> {
        self.stdin.as_mut().context("stdin is closed")
    }

    /// Closes the child's stdin.
    pub fn close_stdin(&mut self) {
        self.stdin = None;
    }

    /// The next line of stdout, or nothing if none came in time. An error if the child closed stdout.
    pub fn line(&mut self, limit: Duration) -> Result<Option<String>> {
        match self.lines.recv_timeout(limit) {
            Ok(line) => Ok(Some(line)),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => {
                let words = self.last_words();
                Err(anyhow!("{} closed its output; {words}", self.what))
            }
        }
    }

    /// What the child wrote to stderr so far.
    pub fn stderr(&self) -> String {
        self.stderr
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Whether the child is still running.
    pub fn running(&mut self) -> Result<bool> {
        Ok(self.wait(Duration::ZERO)?.is_none())
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill(Pid::from_raw(self.pid()), signal)
            .with_context(|| format!("cannot send {signal} to {}", self.what))
    }

    /// Waits for the end; past the limit the child is killed and that is an error.
    pub fn finish(&mut self, limit: Duration) -> Result<Finished> {
        let limit = effort::patience(limit);
        let Some(status) = self.wait(limit)? else {
            let so_far: Vec<String> = self.lines.try_iter().collect();
            let state = crate::footprint::state_of(self.pid());
            bail!(
                "{} did not end within {limit:?} (state {state}); stdout: {}\nstderr: {}",
                self.what,
                so_far.join("\n"),
                self.stderr()
            );
        };
        // Grandchildren may keep the pipes open; what they say later is not this process's output. Its own is in the
        // pipes by now, if it was not taken yet.
        let ended = Instant::now();
        while !self.readers.iter().all(Reader::is_over) {
            let waited = ended.elapsed();
            if waited > READ || (waited > OTHERS && self.readers.iter().all(Reader::has_all)) {
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        let stdout = self
            .lines
            .try_iter()
            .fold(String::new(), |text, line| text + &line + "\n");
        Ok(Finished {
            status,
            stdout,
            stderr: self.stderr(),
        })
    }

    /// Waits for the end, at most so long.
    pub fn wait(&mut self, limit: Duration) -> Result<Option<ExitStatus>> {
        let end = Instant::now() + limit;
        loop {
            if let Some(status) = self
                .child
                .try_wait()
                .with_context(|| format!("cannot wait for {}", self.what))?
            {
                // Somebody else may have its id from here on.
                lock(&STARTED).remove(&self.pid());
                return Ok(Some(status));
            }
            if Instant::now() >= end {
                return Ok(None);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn last_words(&mut self) -> String {
        let status = match self.wait(Duration::from_millis(500)) {
            Ok(Some(status)) => status.to_string(),
            _ => "still running".to_owned(),
        };
        format!("{status}; stderr: {}", self.stderr())
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        // Not yet waited for, so the id is still this child's.
        let _ = self.child.kill();
        let _ = self.child.wait();
        lock(&STARTED).remove(&self.pid());
    }
}
