//! `cargo xtask run`: the guided demo, or `ksnap` with arguments.

use crate::cargo::{self, Profile};
use crate::{demo, host};
use anyhow::{Context, Result};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitCode, ExitStatus};

/// See ksnap at work on a live process; with arguments after `--`, run ksnap itself
///
/// Builds in the dev profile, which optimizes all dependencies (compression, hashing) and is quick to
/// build; `--release` builds what is measured by `cargo xtask bench`. Without root it goes through
/// sudo where that asks for no password.
#[derive(clap::Args)]
pub struct Options {
    /// Build with all optimizations
    #[arg(long)]
    release: bool,
    /// Stay an ordinary user
    #[arg(long)]
    no_sudo: bool,
    /// Use what is built already (how this command calls itself through sudo)
    #[arg(long, hide = true)]
    built: bool,
    /// Arguments for ksnap
    #[arg(last = true)]
    arguments: Vec<String>,
}

/// Builds, and runs the demo or ksnap.
///
/// # Errors
/// When the build fails or the demo could not prove what it shows.
pub fn run(options: Options) -> Result<ExitCode> {
    let profile = match options.release {
        true => Profile::Release,
        false => Profile::Dev,
    };
    if !options.built {
        cargo::build(profile)?;
    }
    let sudo = !options.no_sudo && !host::is_root() && host::has_sudo();
    if !options.arguments.is_empty() {
        let ksnap = cargo::binary(profile, "ksnap");
        let mut command = match sudo {
            true => Command::new("sudo"),
            false => Command::new(&ksnap),
        };
        if sudo {
            command.args(["-n", "--"]).arg(&ksnap);
        }
        command.args(&options.arguments);
        return exit(command.status().context("cannot start ksnap")?);
    }
    if sudo {
        eprintln!("going on as root (sudo); --no-sudo stays an ordinary user");
        let own = std::env::current_exe().context("cannot tell where this program is")?;
        let mut command = Command::new("sudo");
        command.args(["-n", "--"]).arg(own).args(["run", "--built"]);
        if options.release {
            command.arg("--release");
        }
        return exit(command.status().context("cannot start sudo")?);
    }
    match demo::run(profile) {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(error) => {
            // Without the backtrace that a returned error brings along.
            eprintln!("the demo could not prove what it shows: {error:#}");
            Ok(ExitCode::FAILURE)
        }
    }
}

/// The status of a program that was run in place of this one.
fn exit(status: ExitStatus) -> Result<ExitCode> {
    let code = status
        .code()
        .or(status.signal().map(|signal| 128 + signal))
        .unwrap_or(1);
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)))
}
