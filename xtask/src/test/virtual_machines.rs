//! The tests of tracking, capture and rollback on other kernels than the host's.

use super::other_kernel;
use super::stage::Stages;
use super::{guest_programs, guest_python};
use crate::cargo;
use crate::vm::{self, CommandResult, GuestCommand, Kernel, Outcome, Payload, Selection, Status};
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

/// A test executable, and which of its tests depend on the kernel.
struct Wanted {
    package: &'static str,
    target: &'static str,
    /// Parts of names, or, behind [`EXACT`], names; all tests if empty.
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

/// Those that work below: under another kernel too they notice damage.
const VICTIMS: &[&str] = &[
    "counter::notices_damage",
    "maps::notices_damage",
    "dontneed::notices_damage",
    "hugepages::notices_damage",
    "threads::notices_damage",
    "shared_alone::notices_damage",
];

/// Each kind of writer that no page fault announces, and the chain that snapshots make.
const SNAP: &[&str] = &[
    "others_wrote::shared",
    "others_wrote::gup_direct",
    "others_wrote::gup_helper",
    "others_wrote::gup_pipe",
    "without_a_watcher",
    "through_the_watcher",
    "stays_stopped",
];

/// Every tracker, and the victims whose memory or threads change in ways that kernels differ in. All
/// of them would take most of an hour under emulation.
const WATCH: &[&str] = &[
    "tracked_by_the_best",
    "each_tracker_works_alone::soft_dirty",
    "each_tracker_works_alone::wp",
    "each_tracker_works_alone::hash_maps",
    "audited_snapshots::maps",
    "audited_snapshots::dontneed",
    "audited_snapshots::hugepages",
    "audited_snapshots::shared_alone",
    "audited_snapshots::threads",
    "audited_snapshots::exec",
    "without_probes::maps",
    "an_ordinary_user::watches_a_counter",
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
    "the_counter_goes",
];

const ROLLBACK_PROGRAMS: &[&str] = &["file_positions", "threads_that_ended"];

const POSTCOPY: &[&str] = &["a_busy_process", "memory_that_is_given_back"];

/// Two machines whose cable delays and loses: the host's kernel may not have `tc netem`.
const CLONE: &[&str] = &["over_a_bad_cable"];

const WANTED: [Wanted; 12] = [
    wanted(
        "snap-user",
        "snap_user",
        &["sys::", "track::", "probe::", "capture::", "restore::"],
        5,
    ),
    wanted("snap-user", "inject", &[], 5),
    wanted("snap-user", "probe", &[], 10),
    wanted("snap-user", "probe_hazards", &[], 10),
    wanted("snap-user", "probe_log", &[], 5),
    wanted("tests", "victims", VICTIMS, 10),
    wanted("tests", "snap", SNAP, 10),
    wanted("tests", "watch", WATCH, 15),
    wanted("tests", "rollback", ROLLBACK, 15),
    wanted("tests", "rollback_programs", ROLLBACK_PROGRAMS, 10),
    wanted("tests", "postcopy", POSTCOPY, 15),
    wanted("tests", "clone", CLONE, 10),
];

/// Has the test executables take no part of a name for it.
const EXACT: &str = "--exact";

/// One of each end, where little time is to be taken: with `--interfaces`.
const BRIEF: [Wanted; 3] = [
    wanted(
        "tests",
        "watch",
        &[EXACT, "every_victim_lives_through_audited_snapshots::maps"],
        10,
    ),
    wanted(
        "tests",
        "rollback",
        &[EXACT, "every_victim_goes_back_and_forth::counter"],
        10,
    ),
    wanted("tests", "clone", CLONE, 10),
];

/// Whether a kernel runs anything of an executable: clones are compared with what the best tracker finds.
fn runs_on(kernel: Kernel, target: &str) -> bool {
    kernel == Kernel::V6_12 || !OF_MACHINES.contains(&target)
}

/// Tests of what a kernel cannot have.
fn out_of_place(kernel: Kernel) -> &'static [&'static str] {
    match kernel {
        // Write protection is tracked from 6.7 on.
        Kernel::V6_1 => &[
            "each_tracker_works_alone::wp",
            "a_busy_process",
            "memory_that_is_given_back",
            // A tmpfs, which the guest runs from, has O_DIRECT from 6.6 on.
            "direct_reads_are_hazards",
        ],
        Kernel::V6_12 => &[],
    }
}

/// Executables whose tests run a python3.
const OF_PYTHON: [&str; 2] = ["inject", "rollback_programs"];

/// Those whose tests make machines, and run what `guest_programs` has.
const OF_MACHINES: [&str; 1] = ["clone"];

/// What the guest has of the host's programs.
struct Programs {
    python: Option<Vec<PathBuf>>,
    machines: Option<Vec<PathBuf>>,
}

impl Programs {
    /// Finds them; what is missing is a skip.
    fn find(stages: &mut Stages) -> Self {
        let mut of = |found: Result<Vec<PathBuf>, String>, tests: &[&str], what: &str| {
            let skip = |why: String| {
                let tests = format!("on other kernels: {}", tests.join(", "));
                stages.skip(&tests, what, &why);
            };
            found.map_err(skip).ok()
        };
        Self {
            python: of(guest_python::files(), &OF_PYTHON, "a python3 to take along"),
            machines: of(
                guest_programs::files(),
                &OF_MACHINES,
                "programs to take along",
            ),
        }
    }

    /// Whether the tests of an executable can run.
    fn are_enough(&self, target: &str) -> bool {
        (self.python.is_some() || !OF_PYTHON.contains(&target))
            && (self.machines.is_some() || !OF_MACHINES.contains(&target))
    }

    fn files(&self) -> impl Iterator<Item = &PathBuf> {
        self.python.iter().chain(&self.machines).flatten()
    }
}

/// By how much snapshots and rollbacks of each test are fewer than on the host, and waits longer
/// (`tests::effort`).
const SLOW: &str = "5";

/// Boots each kernel and runs in it what depends on one; of the end-to-end tests no more than [`BRIEF`] if
/// `interfaces` are wanted, and the executables named by `filter`, if any. Kernels run beside each other where there are processors for it.
pub fn run(
    selection: Selection,
    interfaces: bool,
    filter: &[String],
    stages: &mut Stages,
) -> Result<()> {
    // Loading the probes takes an emulated processor ten seconds each time, and each test of theirs does.
    let slow = |w: &Wanted| w.package == "tests" || w.target.starts_with("probe");
    let named = |w: &Wanted| filter.is_empty() || filter.iter().any(|f| f == w.target);
    let brief = BRIEF.iter().filter(|_| interfaces);
    let wanted: Vec<&Wanted> = WANTED
        .iter()
        .filter(|w| !(interfaces && slow(w)))
        .chain(brief)
        .filter(|w| named(w))
        .collect();
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
    let programs = Programs::find(stages);
    let kernels = selection.kernels();
    let mut ready = Vec::new();
    for &kernel in kernels {
        // One after the other: they may install the same things.
        match vm::prepare(kernel, &mut |message| eprintln!("vm {kernel}: {message}")) {
            Ok(()) => {
                let mut payload = payload(kernel, &executables, &wanted, &programs)?;
                if (filter.is_empty() || filter.iter().any(|name| name == "other_kernel"))
                    && let Err(how) = other_kernel::add(&mut payload)
                {
                    stages.skip(&other_kernel::stage(kernel), "setpriv", &how);
                }
                ready.push((kernel, payload));
            }
            Err(error) if error.is_skip() => {
                stages.skip(&stage(kernel), "a virtual machine", &error.to_string());
            }
            Err(error) => return Err(error.into()),
        }
    }
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    for batch in ready.chunks(processors) {
        let names: Vec<String> = batch.iter().map(|(kernel, _)| stage(*kernel)).collect();
        println!("\n{}", crate::table::heading(&names.join(", ")));
        let begun = Instant::now();
        let outcomes: Vec<_> = std::thread::scope(|scope| {
            let machines: Vec<_> = batch
                .iter()
                .map(|(kernel, payload)| scope.spawn(|| boot(*kernel, payload)))
                .collect();
            let join = |machine: std::thread::ScopedJoinHandle<'_, _>| match machine.join() {
                Ok(outcome) => outcome,
                Err(panic) => std::panic::resume_unwind(panic),
            };
            machines.into_iter().map(join).collect()
        });
        for ((kernel, _), outcome) in batch.iter().zip(outcomes) {
            match outcome {
                Ok(outcome) => enter(&outcome, begun.elapsed().min(outcome.total), stages),
                Err(error) if error.is_skip() => {
                    stages.skip(&stage(*kernel), "a virtual machine", &error.to_string());
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(())
}

fn stage(kernel: Kernel) -> String {
    format!("tests on Linux {kernel}")
}

fn boot(kernel: Kernel, payload: &Payload) -> vm::Result<Outcome> {
    let mut done = |result: &CommandResult| {
        println!(
            "{}\nvm {kernel}: {result}",
            other_kernel::shortened(&result.output)
        );
    };
    vm::run_with(kernel, payload, &mut done, &mut |message| {
        eprintln!("vm {kernel}: {message}");
    })
}

/// Takes what one boot gave into the summary.
fn enter(outcome: &Outcome, took: Duration, stages: &mut Stages) {
    let kernel = outcome.kernel;
    for result in &outcome.results {
        let skips = result.output.lines().filter(|line| line.contains("SKIP "));
        stages.notice(&skips.collect::<Vec<_>>());
        if result.status != Status::Passed {
            stages.result(format!("vm {kernel}: {result}"));
        }
    }
    for warning in &outcome.warnings {
        println!("vm {kernel}: guest set-up: {warning}");
    }
    let tally = outcome.tally();
    let word = if outcome.is_success() { "ok" } else { "FAILED" };
    stages.result(format!(
        "test result: {word}. {} passed; {} failed; {} ignored (Linux {}, booted in {:.1} s)",
        tally.passed,
        tally.failed,
        tally.ignored,
        outcome.release,
        outcome.boot.as_secs_f64()
    ));
    stages.ended(&stage(kernel), outcome.is_success(), took);
    other_kernel::bring_back(kernel, &outcome.results, stages);
}

fn payload(
    kernel: Kernel,
    executables: &[(String, String, PathBuf)],
    wanted: &[&Wanted],
    programs: &Programs,
) -> Result<Payload> {
    let mut payload = Payload::new();
    for name in ["ksnap", "victim"] {
        payload.add_in_place(cargo::binary(cargo::Profile::Dev, name));
    }
    for file in programs.files() {
        payload.add_in_place(file);
    }
    payload.env(
        "KSNAP_BIN",
        cargo::binary(cargo::Profile::Dev, "ksnap").to_string_lossy(),
    );
    payload.env("KSNAP_TESTS_SLOW", SLOW);
    // What these kernels have is known: a test that finds something missing is a failure there.
    payload.env("KSNAP_TESTS_STRICT", "1");
    payload.env("KSNAP_TESTS_TRACKER", kernel.tracker());
    payload.env("KSNAP_TESTS_FAULTS", kernel.fault_source());
    for wanted in wanted {
        if !programs.are_enough(wanted.target) || !runs_on(kernel, wanted.target) {
            continue;
        }
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
        let left_out = out_of_place(kernel).iter();
        let skipped = left_out.flat_map(|name| ["--skip", name]);
        let only = wanted.only.iter().copied();
        let arguments = only.chain(skipped).chain(["--test-threads=1"]);
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
