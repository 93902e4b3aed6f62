//! The tests of tracking, capture and rollback on other kernels than the host's.

use super::stage::Stages;
use crate::cargo;
use crate::vm::{self, GuestCommand, Payload, Selection, Status};
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

/// A test executable, and which of its tests depend on the kernel.
struct Wanted {
    package: &'static str,
    target: &'static str,
    /// Parts of names; all tests if empty.
    only: &'static [&'static str],
    /// Guest time; emulation is some ten times slower than the host.
    limit: Duration,
}

const fn wanted(
    package: &'static str,
    target: &'static str,
    only: &'static [&'static str],
    minutes: u64,
) -> Wanted {
    Wanted {
        package,
        target,
        only,
        limit: Duration::from_secs(60 * minutes),
    }
}

/// Every tracker, and the victims whose memory or threads change in ways that kernels differ in. All
/// of them would take most of an hour under emulation.
const WATCH: &[&str] = &[
    "each_tracker_works_alone::",
    "audited_snapshots::maps",
    "audited_snapshots::dontneed",
    "audited_snapshots::hugepages",
    "audited_snapshots::shared_alone",
    "audited_snapshots::threads",
    "without_probes::maps",
    "what_others_write",
];
const ROLLBACK: &[&str] = &[
    "forth::counter",
    "forth::maps",
    "forth::dontneed",
    "forth::hugepages",
    "forth::threads",
    "forth::gup_direct",
    "forth::nanosleep",
    "forth::signals",
    "file_positions",
    "the_counter_goes",
    "threads_that_ended",
];

const WANTED: [Wanted; 7] = [
    wanted(
        "snap-user",
        "snap_user",
        &["sys::", "track::", "probe::", "capture::", "restore::"],
        5,
    ),
    wanted("snap-user", "inject", &[], 5),
    wanted("snap-user", "probe", &[], 10),
    wanted("snap-user", "probe_log", &[], 5),
    wanted("tests", "snap", &[], 10),
    wanted("tests", "watch", WATCH, 15),
    wanted("tests", "rollback", ROLLBACK, 15),
];

/// Boots each kernel and runs in it what depends on one; the end-to-end tests too, unless
/// `interfaces` alone are wanted.
pub fn run(selection: Selection, interfaces: bool, stages: &mut Stages) -> Result<()> {
    let binaries = [
        "build",
        "--quiet",
        "--package",
        "snap-user",
        "--package",
        "tests",
        "--bins",
    ];
    if !stages.run("build", &mut cargo::cargo(&binaries))? {
        return Ok(());
    }
    let executables = executables()?;
    let payload = payload(&executables, interfaces)?;
    for kernel in selection.kernels() {
        let name = format!("tests on Linux {kernel}");
        println!("\n{}", crate::table::heading(&name));
        let begun = Instant::now();
        let mut done =
            |result: &vm::CommandResult| println!("{}\n{result}", result.output.trim_end());
        let mut say = |message: &str| eprintln!("vm {kernel}: {message}");
        match vm::run_with(*kernel, &payload, &mut done, &mut say) {
            Ok(outcome) => {
                for result in &outcome.results {
                    let lines: Vec<&str> = result
                        .output
                        .lines()
                        .filter(|line| line.contains("SKIP "))
                        .collect();
                    stages.notice(&lines);
                }
                for result in outcome
                    .results
                    .iter()
                    .filter(|result| result.status != Status::Passed)
                {
                    stages.result(format!("vm {kernel}: {result}"));
                }
                for warning in &outcome.warnings {
                    println!("vm {kernel}: guest set-up: {warning}");
                }
                let tally = outcome.tally();
                let word = if outcome.is_success() { "ok" } else { "FAILED" };
                stages.result(format!(
                    "test result: {word}. {} passed; {} failed; {} ignored (Linux {}, booted in {:.1} s)",
                    tally.passed, tally.failed, tally.ignored, outcome.release, outcome.boot.as_secs_f64()
                ));
                stages.ended(&name, outcome.is_success(), begun.elapsed());
            }
            Err(error) if error.is_skip() => {
                stages.skip(&name, "a virtual machine", &error.to_string())
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn payload(executables: &[(String, String, PathBuf)], interfaces: bool) -> Result<Payload> {
    let mut payload = Payload::new();
    for name in ["ksnap", "victim"] {
        payload.add_in_place(cargo::binary(cargo::Profile::Dev, name));
    }
    payload.env(
        "KSNAP_BIN",
        cargo::binary(cargo::Profile::Dev, "ksnap").to_string_lossy(),
    );
    let end_to_end = |wanted: &&Wanted| wanted.package == "tests";
    for wanted in WANTED.iter().filter(|w| !(interfaces && end_to_end(w))) {
        let found = executables
            .iter()
            .find(|(package, target, _)| package == wanted.package && target == wanted.target);
        let Some((_, _, path)) = found else {
            bail!(
                "cargo built no test executable {} of package {}",
                wanted.target,
                wanted.package
            );
        };
        payload.add_in_place(path);
        let only = wanted.only.iter().map(|name| (*name).to_owned());
        let arguments = only.chain(["--test-threads=1".to_owned()]);
        let name = format!("{}/{}", wanted.package, wanted.target);
        payload.command(
            GuestCommand::tests(name, path.to_string_lossy(), arguments).limit(wanted.limit),
        );
    }
    Ok(payload)
}

/// Builds the test executables; gives package, target and path of each.
fn executables() -> Result<Vec<(String, String, PathBuf)>> {
    let arguments = [
        "test",
        "--workspace",
        "--no-run",
        "--quiet",
        "--message-format=json-render-diagnostics",
    ];
    let output = cargo::cargo(&arguments)
        .stderr(Stdio::inherit())
        .output()
        .context("cannot start cargo")?;
    if !output.status.success() {
        bail!("building the tests failed: {}", output.status);
    }
    let messages = String::from_utf8_lossy(&output.stdout).into_owned();
    let artifact = |line: &str| -> Option<(String, String, PathBuf)> {
        let message: Value = serde_json::from_str(line).ok()?;
        let is_test = message["profile"]["test"] == true;
        let path = message["executable"].as_str().filter(|_| is_test)?;
        // The library and its binary may have the same name; what is wanted of those is the library.
        if message["target"]["kind"][0] == "bin" {
            return None;
        }
        let manifest = PathBuf::from(message["manifest_path"].as_str()?);
        let package = manifest.parent()?.file_name()?.to_str()?.to_owned();
        Some((
            package,
            message["target"]["name"].as_str()?.to_owned(),
            path.into(),
        ))
    };
    Ok(messages.lines().filter_map(artifact).collect())
}
