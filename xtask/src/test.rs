//! `cargo xtask test`: every check there is, with one summary.

mod expected;
mod guest_programs;
mod guest_python;
mod install;
mod other_kernel;
mod stage;
mod suite;
mod virtual_machines;

use crate::table::heading;
use crate::vm::Selection;
use crate::{cargo, host};
use anyhow::Result;
use stage::Stages;
use std::process::ExitCode;

/// Run every check: formatting, lints, unit, property and end-to-end tests
///
/// As root on a Debian machine it installs the programs that the tests work on (redis-server, python3,
/// sqlite3, gdb, strace and others) where they are missing. Elsewhere each test that lacks something is skipped, and
/// says what it lacks and how to get it.
#[derive(clap::Args)]
pub struct Options {
    /// Instead, run the tests of tracking, capture and rollback on Debian kernels under QEMU
    #[arg(long, value_enum, value_name = "KERNEL", num_args = 0..=1, default_missing_value = "all")]
    vm: Option<Selection>,
    /// With --vm: only what uses the kernel directly (trackers, injected calls), and one victim that is watched and
    /// rolled back, not all end-to-end tests, which take several times as long there
    #[arg(long, requires = "vm")]
    interfaces: bool,
    /// Fail where a test or a step is skipped, unless for something that is known to be missing on some machines: kernels
    /// differ
    #[arg(long)]
    no_skips: bool,
    /// Only tests whose name contains one of these; formatting and lints are left out then. With --vm: only these
    /// test executables
    filter: Vec<String>,
}

/// Runs all stages, whatever becomes of the first ones.
///
/// # Errors
/// When a stage cannot be run at all.
pub fn run(options: Options) -> Result<ExitCode> {
    let mut stages = Stages::new(options.no_skips);
    match options.vm {
        Some(selection) => {
            virtual_machines::run(selection, options.interfaces, &options.filter, &mut stages)?;
        }
        None => on_this_machine(&options.filter, &mut stages)?,
    }
    println!("\n{}", heading("Summary"));
    print!("{}", stages.summary());
    Ok(match stages.passed() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

fn on_this_machine(filter: &[String], stages: &mut Stages) -> Result<()> {
    println!(
        "Linux {}, {}",
        host::kernel(),
        if host::is_root() {
            "root"
        } else {
            "an ordinary user"
        }
    );
    install::programs(stages);
    install::s3(stages);
    install::azure(stages);
    if filter.is_empty() {
        if host::find("cargo-fmt").is_some() {
            stages.run(
                "formatting",
                &mut cargo::cargo(&["fmt", "--all", "--check"]),
            )?;
            let mut probes = cargo::cargo(&["fmt", "--check"]);
            probes.current_dir(cargo::root().join("snap-ebpf"));
            stages.run("formatting of the probes", &mut probes)?;
        } else {
            stages.skip("formatting", "rustfmt", "rustup component add rustfmt");
        }
        if host::find("cargo-clippy").is_some() {
            let lints = [
                "clippy",
                "--workspace",
                "--all-targets",
                // Built by nobody else but the measurement.
                "--features",
                "xtask/codec-bench",
                "--quiet",
                "--",
                "-D",
                "warnings",
            ];
            stages.run("lints", &mut cargo::cargo(&lints))?;
        } else {
            stages.skip("lints", "clippy", "rustup component add clippy");
        }
    }
    // The tests run both: the tool and the programs it works on. Built by themselves first, so that a
    // failure is seen as what it is.
    let binaries = [
        "build",
        "--quiet",
        "--package",
        "snap-user",
        "--package",
        "tests",
        "--bins",
    ];
    if stages.run("build", &mut cargo::cargo(&binaries))? {
        suite::run(filter, stages)?;
    }
    Ok(())
}
