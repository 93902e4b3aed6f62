//! `cargo xtask`: builds, runs, tests and measures ksnap. One file per subcommand, which owns its
//! options.
//!
//! # Layout
//!
//! | file | its one job |
//! |---|---|
//! | `run`, `demo` | `ksnap` itself; the guided demo |
//! | `test` | every check, on the host and in virtual machines |
//! | `bench` | measurements |
//! | `build_ebpf`, `setup`, `toolchain` | the eBPF object from its sources |
//! | `vm` | Debian kernels under QEMU |
//! | `cargo`, `host`, `table` | what the others share |

mod bench;
mod build_ebpf;
mod cargo;
mod demo;
mod host;
mod run;
mod setup;
mod table;
mod test;
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
    Run(run::Options),
    Test(test::Options),
    Bench(bench::Options),
    BuildEbpf(build_ebpf::Options),
    Setup(setup::Options),
    Vm(vm::command::Options),
}

fn main() -> anyhow::Result<ExitCode> {
    match Cli::parse().command {
        Command::Run(options) => run::run(options),
        Command::Test(options) => test::run(options),
        Command::Bench(options) => bench::run(options),
        Command::BuildEbpf(options) => build_ebpf::run(options).map(|()| ExitCode::SUCCESS),
        Command::Setup(options) => setup::run(options).map(|()| ExitCode::SUCCESS),
        Command::Vm(options) => vm::command::run(options),
    }
}
