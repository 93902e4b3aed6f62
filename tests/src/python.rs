//! python3 running a script.

use std::io::Write;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use tempfile::TempDir;

use crate::background::{Background, Finished};
use crate::footprint::await_gone;
use crate::paths;

const LIMIT: Duration = Duration::from_secs(60);

/// A running interpreter; the script talks to the test over stdin and stdout. Killed when dropped.
pub struct Python {
    process: Background,
    _folder: TempDir,
}

impl Python {
    /// The real interpreter: `python3` on PATH may be a launcher script, which is another process at first.
    pub fn interpreter() -> Result<PathBuf> {
        let python = paths::program("python3")
            .context("there is no python3 on PATH: apt-get install python3")?;
        let output = Command::new(python)
            .args(["-c", "import sys; print(sys.executable)"])
            .output()?;
        let path = PathBuf::from(String::from_utf8(output.stdout)?.trim());
        match path.is_file() {
            true => Ok(path),
            false => bail!(
                "python3 does not say where its executable is: {}",
                String::from_utf8_lossy(&output.stderr)
            ),
        }
    }

    /// Starts a script, unbuffered, in a folder of its own.
    pub fn script(text: &str) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("ksnap-python-").tempdir()?;
        let file = folder.path().join("script.py");
        std::fs::write(&file, text)?;
        let mut command = Command::new(Self::interpreter()?);
        command.arg("-u").arg(file).current_dir(folder.path());
        Ok(Self {
            process: Background::start(command)?,
            _folder: folder,
        })
    }

    /// The interpreter's process id.
    pub fn pid(&self) -> i32 {
        self.process.pid()
    }

    /// Its stdin and signals.
    pub fn process(&mut self) -> &mut Background {
        &mut self.process
    }

    /// The next line that the script prints; an error if there is none in time.
    pub fn line(&mut self, limit: Duration) -> Result<String> {
        match self.process.line(limit)? {
            Some(line) => Ok(line),
            None => bail!(
                "the script printed nothing within {limit:?}; stderr: {}",
                self.process.stderr()
            ),
        }
    }

    /// Waits for the script's end.
    pub fn finish(&mut self, limit: Duration) -> Result<Finished> {
        self.process.finish(limit)
    }
}

/// Says a word to a script, in one write, so that its read gets it whole.
pub fn tell(process: &mut Background, word: &str) -> Result<()> {
    Ok(process.stdin()?.write_all(format!("{word}\n").as_bytes())?)
}

/// Says a word to a script, and waits for the line that it answers.
pub fn ask(process: &mut Background, word: &str) -> Result<String> {
    tell(process, word)?;
    let answer = process.line(LIMIT)?;
    let why = || format!("no answer to {word}: {}", process.stderr());
    let answer = answer.with_context(why)?;
    // Back in its read.
    std::thread::sleep(Duration::from_millis(20));
    Ok(answer)
}

/// Waits for a script's end, and brings it back by a command to which the verb is added; the first line is what ksnap
/// says.
pub fn bring_back(process: &mut Background, pid: i32, mut command: Command) -> Result<Background> {
    ensure!(process.wait(LIMIT)?.is_some(), "it lives");
    await_gone(pid, LIMIT)?;
    command.args(["restore", "latest", "--wait", "--json"]);
    let mut back = Background::start(command)?;
    let line = back.line(LIMIT)?;
    let why = || format!("nothing was brought back: {}", back.stderr());
    let said: Value = serde_json::from_str(&line.with_context(why)?)?;
    ensure!(said["pid"] == pid, "{said}");
    Ok(back)
}
