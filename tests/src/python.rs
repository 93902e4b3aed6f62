//! python3 running a script.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::background::{Background, Finished};
use crate::paths;

/// A process that runs a script and is nobody's to wait for, such as one that was brought back: ended when dropped.
pub struct Ended(pub i32);

impl Drop for Ended {
    fn drop(&mut self) {
        // What has the id by now may be somebody else.
        let comm = std::fs::read_to_string(format!("/proc/{}/comm", self.0)).unwrap_or_default();
        if comm.starts_with("python") {
            let _ = kill(Pid::from_raw(self.0), Signal::SIGKILL);
        }
    }
}

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
