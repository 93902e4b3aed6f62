//! `cargo xtask bench`: measurements, each with what is needed to judge it in the same run.

mod floor;
mod load;
mod others;
mod report;
mod restore;
mod stop;

use crate::cargo::{self, Profile};
use anyhow::{Result, ensure};
use std::path::PathBuf;
use std::process::ExitCode;

/// Measure ksnap (release build) on real programs; without a name, everything
#[derive(clap::Args)]
pub struct Options {
    /// What to measure
    #[arg(value_enum)]
    name: Option<Name>,
    /// Print one JSON object a measurement
    #[arg(long)]
    json: bool,
    /// How long to measure under snapshots, and as long without; four times as long where their price is
    /// bounded
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(2..))]
    seconds: u64,
    /// What redis-server holds
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u64).range(16..))]
    mib: u64,
    /// Measure this ksnap instead of building one
    #[arg(long, value_name = "FILE")]
    ksnap: Option<PathBuf>,
}

/// The measurements there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Name {
    /// How long snapshots stop a redis-server under load, ten times a second
    Stop,
    /// How long a redis-server takes to be back, and ten copies of it
    Restore,
}

/// Runs one measurement or all.
///
/// # Errors
/// When a measurement could not be made.
pub fn run(options: Options) -> Result<ExitCode> {
    ensure!(
        crate::host::find("redis-server").is_some()
            && crate::host::find("redis-benchmark").is_some(),
        "redis-server or redis-benchmark is missing: apt-get install redis-server redis-tools"
    );
    let ksnap = match options.ksnap {
        Some(file) => file,
        None => {
            cargo::build(Profile::Release)?;
            cargo::binary(Profile::Release, "ksnap")
        }
    };
    if options.name.is_none() && !options.json {
        println!("measurements: stop, restore\n");
    }
    match options.name {
        None | Some(Name::Stop) => {
            let result = stop::measure(&ksnap, options.mib, options.seconds)?;
            match options.json {
                true => println!("{}", result.json()),
                false => print!("{}", result.text()),
            }
        }
        Some(_) => {}
    }
    if matches!(options.name, None | Some(Name::Restore)) {
        let result = restore::measure(&ksnap, options.mib)?;
        match options.json {
            true => println!("{}", result.json()),
            false => print!("{}", result.text()),
        }
    }
    Ok(ExitCode::SUCCESS)
}
