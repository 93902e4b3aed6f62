//! `cargo xtask`: builds, runs, tests and measures ksnap. One file per subcommand, which owns its
//! options.

mod build_ebpf;
mod setup;
mod toolchain;
mod vm;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Builds, runs, tests and measures ksnap.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    BuildEbpf(build_ebpf::Options),
    Setup(setup::Options),
    Vm(vm::command::Options),
}

fn main() -> anyhow::Result<ExitCode> {
    match Cli::parse().command {
        Command::BuildEbpf(options) => build_ebpf::run(options).map(|()| ExitCode::SUCCESS),
        Command::Setup(options) => setup::run(options).map(|()| ExitCode::SUCCESS),
        Command::Vm(options) => vm::command::run(options),
    }
}
