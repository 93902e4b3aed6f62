//! Programs on terminals, and where processes are among sessions and foregrounds.

use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::background::Background;
use crate::ksnap::Ksnap;
use crate::python::Python;
use crate::tree::{Pids, children_of, end_captured, stat_of};

const LIMIT: Duration = Duration::from_secs(60);

/// Waits until something is so.
pub fn await_that(what: &str, mut is_so: impl FnMut() -> bool) -> Result<()> {
    let end = Instant::now() + LIMIT;
    while !is_so() {
        ensure!(Instant::now() < end, "not within {LIMIT:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// Holds the master of a terminal that a program runs on: types what it is told to, in hexadecimal digits, and says what
/// the program writes, in the same way.
const HOLDER: &str = r#"
import os, pty, select, sys
pid, master = pty.fork()
if pid == 0:
    os.environ.update(PS1='% ', TERM='dumb', HISTFILE='', INPUTRC='/dev/null')
    os.execvp(sys.argv[1], sys.argv[1:])
print('child', pid)
while True:
    ready = select.select([0, master], [], [])[0]
    if master in ready:
        try:
            data = os.read(master, 4096)
        except OSError:
            data = b''
        if not data:
            break
        print(data.hex())
    if 0 in ready:
        for word in os.read(0, 4096).split():
            os.write(master, bytes.fromhex(word.decode()))
print('ended', os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"#;

/// A program on a terminal whose master the test's child holds.
pub struct Terminal {
    holder: Background,
    /// The holder's id, also when ksnap has brought it back.
    pub root: i32,
    /// The program's.
    pub child: i32,
    /// What the program has written that no test has taken yet.
    seen: String,
}

impl Terminal {
    /// Starts a program on a terminal of its own.
    pub fn start(program: &[&str]) -> Result<Self> {
        let mut command = Command::new(Python::interpreter()?);
        command.args(["-u", "-c", HOLDER]).args(program);
        let mut holder = Background::start(command)?;
        let line = holder.line(LIMIT)?.context("no child")?;
        let child = line.strip_prefix("child ").context("no child")?.parse()?;
        Ok(Self {
            root: holder.pid(),
            holder,
            child,
            seen: String::new(),
        })
    }

    /// What somebody at the keyboard would type.
    pub fn type_in(&mut self, text: &str) -> Result<()> {
        let digits: String = text.bytes().map(|byte| format!("{byte:02x}")).collect();
        self.holder
            .stdin()?
            .write_all(format!("{digits}\n").as_bytes())?;
        Ok(())
    }

    fn take(&mut self, line: &str) -> Result<()> {
        let digits = |n: usize| u8::from_str_radix(line.get(n..n + 2)?, 16).ok();
        let bytes: Option<Vec<u8>> = (0..line.len()).step_by(2).map(digits).collect();
        let bytes = bytes.with_context(|| format!("the holder says {line}"))?;
        self.seen.push_str(&String::from_utf8_lossy(&bytes));
        Ok(())
    }

    /// Waits until the program has written this, and gives all up to it.
    pub fn expect(&mut self, text: &str) -> Result<String> {
        loop {
            if let Some(at) = self.seen.find(text) {
                let rest = self.seen.split_off(at + text.len());
                return Ok(std::mem::replace(&mut self.seen, rest));
            }
            let why = |holder: &Background| format!("{text:?} does not come: {}", holder.stderr());
            let line = self.holder.line(LIMIT)?;
            let line = line.with_context(|| format!("{}, {:?}", why(&self.holder), self.seen))?;
            self.take(&line)?;
        }
    }

    /// Has a shell run a command, and gives what that writes. The shell is at its prompt again then.
    pub fn run(&mut self, command: &str) -> Result<String> {
        // The echo of what is typed does not have the sum in it.
        self.type_in(&format!("{command}; echo end$((40+2)).\n"))?;
        let said = self.expect("end42.\r\n")?;
        self.expect("% ")?;
        let (_, said) = said.split_once(".\r\n").context("no echo")?;
        Ok(said.trim_end_matches("end42.\r\n").to_owned())
    }

    /// Captures the holder's tree, ends it, and brings it back. Gives the notes.
    pub fn again(&mut self, ksnap: &Ksnap) -> Result<(Pids, String)> {
        let pids = end_captured(ksnap, self.root)?;
        self.holder.wait(LIMIT)?.context("the holder lives")?;
        pids.are_gone()?;
        while let Ok(Some(line)) = self.holder.line(LIMIT) {
            self.take(&line)?;
        }
        self.holder = ksnap.start(&["restore", "latest", "--wait", "--json"])?;
        loop {
            let line = self.holder.line(LIMIT)?;
            let line = line.with_context(|| self.holder.stderr())?;
            // The tree runs already, and writes to the same pipe.
            match serde_json::from_str::<Value>(&line) {
                Ok(said @ Value::Object(_)) => {
                    ensure!(said["pid"] == pids.0[0], "{said}");
                    return Ok((pids, said["notes"].to_string()));
                }
                _ => self.take(&line)?,
            }
        }
    }

    /// Waits until the program has ended, and gives how.
    pub fn ended(&mut self) -> Result<String> {
        let finished = self.holder.finish(LIMIT)?;
        Ok(finished.stdout)
    }
}

/// Session, terminal and foreground of a process (proc_pid_stat(5)).
pub fn place_of(pid: i32) -> Result<[i64; 4]> {
    let stat = stat_of(pid).with_context(|| format!("process {pid} is gone"))?;
    let field = |n: usize| stat[n].parse::<i64>();
    Ok([field(2)?, field(3)?, field(4)?, field(5)?])
}

/// The child of a process with this argument, which may have to become that yet.
pub fn await_child(parent: i32, argument: &str) -> Result<i32> {
    let mut found = child_with(parent, argument);
    await_that(argument, || {
        found = child_with(parent, argument);
        found.is_ok()
    })
    .with_context(|| format!("{found:?}"))?;
    found
}

/// The child of a process that has this argument now.
pub fn child_with(parent: i32, argument: &str) -> Result<i32> {
    let mut lines = Vec::new();
    for pid in children_of(parent)? {
        let line = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        if line.split('\0').any(|word| word == argument) {
            return Ok(pid);
        }
        lines.push(line);
    }
    bail!("no child of {parent} with {argument}: {lines:?}")
}

/// The places of processes are as they were, the number of the terminal included where others have left it free, and
/// that is the terminal that they have open.
pub fn are_as_before(before: &[(i32, [i64; 4])], notes: &str) -> Result<()> {
    let shell = before[1].0;
    let open = std::fs::metadata(format!("/proc/{shell}/fd/0"))?.rdev();
    // Encoded in the same way.
    let (now, session) = (open as i64, place_of(shell)?[1]);
    for (pid, was) in before {
        let (mut expected, is_in) = (*was, was[1] == session);
        if is_in && notes.contains("the terminal that was /dev/pts/") {
            expected[2] = now;
        }
        let is = place_of(*pid)?;
        ensure!(
            is == expected,
            "{pid}: {is:?} instead of {expected:?}: {notes}"
        );
        ensure!(!is_in || is[2] == now, "{pid}: {is:?}, and {now} is open");
    }
    ensure!(!notes.contains("controlling terminal"), "{notes}");
    ensure!(!notes.contains("foreground"), "{notes}");
    Ok(())
}
