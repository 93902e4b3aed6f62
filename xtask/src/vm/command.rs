//! `cargo xtask vm`.

use super::{GuestCommand, Payload, Selection};
use anyhow::Context;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// Boot a Debian kernel and run a program of the host in it
#[derive(clap::Args)]
pub struct Options {
    /// The kernel
    #[arg(long, value_enum, default_value = "all")]
    kernel: Selection,
    /// Programs or folders to take along, at the same path
    #[arg(long)]
    with: Vec<PathBuf>,
    /// The program is a test executable: its own counts are the result
    #[arg(long)]
    tests: bool,
    /// Environment variables for it, as NAME=VALUE
    #[arg(long)]
    env: Vec<String>,
    /// The guest folder it runs in
    #[arg(long, default_value = "/")]
    folder: PathBuf,
    /// Guest seconds it may take
    #[arg(long, default_value_t = 60)]
    limit: u64,
    /// The program and its arguments
    #[arg(trailing_var_arg = true, required = true)]
    command: Vec<String>,
}

/// Runs the command in each selected kernel, and prints what came of it.
///
/// # Errors
/// When a virtual machine cannot be made; lacking what it takes is a printed skip.
pub fn run(options: Options) -> anyhow::Result<ExitCode> {
    let Options {
        kernel,
        with,
        tests,
        env,
        folder,
        limit,
        command,
    } = options;
    let mut payload = Payload::new();
    payload.add_in_place(&command[0]);
    for path in with {
        payload.add_in_place(path);
    }
    let guest = if tests {
        GuestCommand::tests(&command[0], &command[0], &command[1..])
    } else {
        GuestCommand::new(&command[0], &command)
    };
    for pair in env {
        let (name, value) = pair.split_once('=').context("--env takes NAME=VALUE")?;
        payload.env(name, value);
    }
    payload.command(guest.folder(folder).limit(Duration::from_secs(limit)));
    let mut success = true;
    for kernel in kernel.kernels() {
        let outcome = match super::run(*kernel, &payload) {
            Ok(outcome) => outcome,
            Err(error) if error.is_skip() => {
                println!("vm {kernel}: skipped: {error}");
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        for result in &outcome.results {
            println!("{}", result.output.trim_end());
        }
        for warning in &outcome.warnings {
            println!("vm {kernel}: guest set-up: {warning}");
        }
        println!("{outcome}");
        success &= outcome.is_success();
    }
    Ok(if success {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
