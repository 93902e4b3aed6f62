//! Runs the `ksnap` binary with a store of its own.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tempfile::TempDir;

use crate::background::{Background, Finished};
use crate::paths;
use crate::subject::Victim;

/// How long a command that should end by itself may take.
const LIMIT: Duration = Duration::from_secs(120);

/// The tool under test, with a store in a temporary folder that goes with it.
pub struct Ksnap {
    binary: PathBuf,
    store: PathBuf,
    user: Option<u32>,
    namespace_of: Option<i32>,
    variables: Vec<(&'static str, PathBuf)>,
    folder: TempDir,
}

impl Ksnap {
    /// Finds the binary and makes an empty place for a store.
    pub fn new() -> Result<Self> {
        Self::with_binary(paths::ksnap()?)
    }

    /// The same with another binary.
    pub fn with_binary(binary: PathBuf) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("ksnap-store-").tempdir()?;
        let store = folder.path().join("store");
        Ok(Self {
            binary,
            store,
            user: None,
            namespace_of: None,
            variables: Vec::new(),
            folder,
        })
    }

    /// The same with a store in a folder of the caller's choice.
    pub fn with_store(store: PathBuf) -> Result<Self> {
        Ok(Self {
            store,
            ..Self::new()?
        })
    }

    /// The same as another user, with a copy of the binary that this user can run. Needs root.
    pub fn as_user(user: u32) -> Result<Self> {
        let mut ksnap = Self::new()?;
        let copy = ksnap.folder.path().join("ksnap");
        paths::copy_program(&ksnap.binary, &copy)?;
        std::os::unix::fs::chown(ksnap.folder.path(), Some(user), Some(user))
            .context("give the store's folder away")?;
        ksnap.binary = copy;
        ksnap.user = Some(user);
        Ok(ksnap)
    }

    /// The same in the user namespace of a process.
    pub fn in_user_namespace_of(pid: i32) -> Result<Self> {
        let mut ksnap = Self::new()?;
        ksnap.namespace_of = Some(pid);
        Ok(ksnap)
    }

    /// The same with a variable in its environment.
    pub fn with_variable(mut self, name: &'static str, value: PathBuf) -> Self {
        self.variables.push((name, value));
        self
    }

    /// Where the store is.
    pub fn store(&self) -> &Path {
        &self.store
    }

    /// `ksnap --store DIR`, to add a verb and arguments to. The caller's own settings are kept out.
    pub fn command(&self) -> Command {
        let mut command = match self.namespace_of {
            // It becomes ksnap.
            Some(pid) => {
                let mut command = Command::new("nsenter");
                command
                    .args(["--user", "--preserve-credentials", "--target"])
                    .arg(pid.to_string())
                    .arg("--")
                    .arg(&self.binary);
                command
            }
            None => Command::new(&self.binary),
        };
        command
            .env_remove("KSNAP_STORE")
            .env_remove("KSNAP_CONFIG")
            .env_remove("KSNAP_RAM")
            .env_remove("KSNAP_IDENTITY")
            .env_remove("KSNAP_ENCRYPT_TO")
            // As often as a test asks: what that costs the victim is of no matter.
            .env("KSNAP_MAX_OVERHEAD", "off")
            .arg("--store")
            .arg(&self.store);
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
        if let Some(user) = self.user {
            command.uid(user).gid(user);
        }
        command
    }

    /// Runs to the end, whatever the exit code.
    pub fn run(&self, args: &[&str]) -> Result<Finished> {
        let mut process = self.start(args)?;
        process.close_stdin();
        process
            .finish(LIMIT)
            .with_context(|| format!("ksnap {}", args.join(" ")))
    }

    /// Runs to the end, and demands that it fails at this point, as only a debug build does.
    pub fn fail_at(&self, point: &str, args: &[&str]) -> Result<Finished> {
        let mut command = self.command();
        command.args(args).env("KSNAP_FAIL_AT", point);
        let failed = Background::start(command)?.finish(LIMIT)?;
        ensure!(
            failed.code()? == 1,
            "it did not fail (not a debug build?): {failed:?}"
        );
        Ok(failed)
    }

    /// Runs to the end, and demands exit code 0; gives stdout.
    pub fn ok(&self, args: &[&str]) -> Result<String> {
        self.run(args)?
            .success()
            .with_context(|| format!("ksnap {}", args.join(" ")))
    }

    /// Runs with `--json` to the end, demands exit code 0, and parses stdout: one JSON document, or a stream of
    /// them.
    pub fn json(&self, args: &[&str]) -> Result<Vec<Value>> {
        let mut all = args.to_vec();
        // Before a `--`, after which words belong to another command.
        let at = args
            .iter()
            .position(|word| *word == "--")
            .unwrap_or(args.len());
        all.insert(at, "--json");
        let text = self.ok(&all)?;
        let values = serde_json::Deserializer::from_str(&text).into_iter::<Value>();
        values
            .collect::<Result<_, _>>()
            .with_context(|| format!("ksnap {}: not JSON: {text}", all.join(" ")))
    }

    /// `ksnap snap PID OPTIONS`, which must succeed; gives the snapshot's id.
    pub fn snap(&self, pid: i32, options: &[&str]) -> Result<String> {
        self.taken(pid, options, &[0])
    }

    /// The same where something of the process may not be in the snapshot, which is exit code 3.
    pub fn snap_in_part(&self, pid: i32, options: &[&str]) -> Result<String> {
        self.taken(pid, options, &[0, 3])
    }

    fn taken(&self, pid: i32, options: &[&str], codes: &[i32]) -> Result<String> {
        let pid = pid.to_string();
        let done = self.run(&[&["snap", &pid, "--json"], options].concat())?;
        ensure!(codes.contains(&done.code()?), "ksnap snap {pid}: {done:?}");
        let taken: Value = serde_json::from_str(&done.stdout)
            .with_context(|| format!("ksnap snap {pid}: not one JSON document: {done:?}"))?;
        let id = taken["id"].as_str();
        Ok(id
            .with_context(|| format!("a snapshot without an id: {taken}"))?
            .to_owned())
    }

    /// An audited snapshot, with the victim's counter before and behind it.
    pub fn snap_between(&self, victim: &mut Victim) -> Result<(String, u64, u64)> {
        let low = victim.status()?.counter;
        let id = self.snap(victim.pid(), &["--audit"])?;
        let high = victim.status()?.counter;
        Ok((id, low, high))
    }

    /// `ksnap rollback PID ID`, which must succeed; gives what it says.
    pub fn roll_back(&self, pid: i32, id: &str) -> Result<Value> {
        let pid = pid.to_string();
        let done = self.json(&["rollback", &pid, id, "-y"])?.remove(0);
        ensure!(done["to"] == id, "{done}");
        Ok(done)
    }

    /// Whether the probes can be loaded here, as `ksnap doctor` finds.
    pub fn has_probes(&self) -> Result<bool> {
        let done = self.run(&["doctor", "--json"])?;
        // Whatever its exit code, which is about all of its checks.
        let said: Value = serde_json::from_str(&done.stdout)
            .with_context(|| format!("ksnap doctor: not one JSON document: {done:?}"))?;
        let checks = said["checks"].as_array().context("no checks")?;
        Ok(checks
            .iter()
            .any(|check| check["name"] == "probes" && check["outcome"] == "supported"))
    }

    /// Starts in the background: `watch`, `run`.
    pub fn start(&self, args: &[&str]) -> Result<Background> {
        let mut command = self.command();
        command.args(args);
        Background::start(command)
    }

    /// `ksnap run OPTIONS -- victim NAME ARGS`, once the victim is ready.
    pub fn run_victim(&self, options: &[&str], name: &str, args: &[&str]) -> Result<Victim> {
        let mut command = self.command();
        command
            .arg("run")
            .args(options)
            .arg("--")
            .arg(paths::victim()?)
            .arg(name)
            .args(args);
        Victim::from_command(command)
    }
}

/// A number in what ksnap says.
pub fn number(value: &Value) -> Result<u64> {
    value
        .as_u64()
        .with_context(|| format!("no number: {value}"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// A stand-in that prints what the script says.
    fn with_script(text: &str) -> (Ksnap, TempDir) {
        let folder = tempfile::tempdir().unwrap();
        let binary = folder.path().join("ksnap");
        std::fs::write(&binary, format!("#!/bin/sh\n{text}\n")).unwrap();
        std::fs::set_permissions(&binary, std::fs::Permissions::from_mode(0o755)).unwrap();
        (Ksnap::with_binary(binary).unwrap(), folder)
    }

    #[test]
    fn json_is_asked_for_before_the_words_of_another_command() {
        let (ksnap, _folder) = with_script(r#"for word; do echo "\"$word\""; done"#);
        let words = ksnap.json(&["run", "--", "cmd", "arg"]).unwrap();
        let store = ksnap.store().to_str().unwrap();
        assert_eq!(
            words,
            ["--store", store, "run", "--json", "--", "cmd", "arg"]
        );
    }

    #[test]
    fn a_failure_tells_the_command_its_status_and_its_words() {
        let (ksnap, _folder) = with_script("echo no such process >&2; exit 14");
        assert_eq!(ksnap.run(&["snap", "1"]).unwrap().code().unwrap(), 14);
        let error = format!("{:#}", ksnap.ok(&["snap", "1"]).unwrap_err());
        for part in ["ksnap snap 1", "14", "no such process"] {
            assert!(error.contains(part), "{error}");
        }
    }
}
