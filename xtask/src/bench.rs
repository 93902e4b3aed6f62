//! `cargo xtask bench`: measurements, each with what is needed to judge it in the same run.

mod base;
mod codec;
mod floor;
mod load;
mod others;
mod report;
mod restore;
mod rollback;
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
    /// What redis-server holds, or the process with noise
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
    /// How long rollbacks in place stop a process, by the pages that they write
    Rollback,
    /// How long a redis-server takes to be back, and ten copies of it
    Restore,
    /// How long a base that nothing makes shorter takes to be on the disk
    Base,
    /// How small changed pages of real programs become, and how fast, beside LZ4, zstd and XBZRLE
    Codec,
}

/// Runs one measurement or all.
///
/// # Errors
/// When a measurement could not be made.
pub fn run(options: Options) -> Result<ExitCode> {
    let wanted = |name| options.name.is_none_or(|only| only == name);
    let has = |program| crate::host::find(program).is_some();
    ensure!(
        !(wanted(Name::Stop) || wanted(Name::Restore))
            || has("redis-server") && has("redis-benchmark"),
        "redis-server or redis-benchmark is missing: apt-get install redis-server redis-tools"
    );
    ensure!(
        !(wanted(Name::Rollback) || wanted(Name::Base)) || has("python3"),
        "python3 is missing: apt-get install python3"
    );
    if wanted(Name::Codec) {
        let report = codec::measure()?;
        match options.json {
            true => println!("{}", report.json()),
            false => print!("{}", report.text()),
        }
        if options.name.is_some() {
            return Ok(ExitCode::SUCCESS);
        }
    }
    let ksnap = match &options.ksnap {
        Some(file) => file.clone(),
        None => {
            cargo::build(Profile::Release)?;
            cargo::binary(Profile::Release, "ksnap")
        }
    };
    if options.name.is_none() && !options.json {
        println!("measurements: codec, stop, rollback, restore, base\n");
    }
    if wanted(Name::Stop) {
        let result = stop::measure(&ksnap, options.mib, options.seconds)?;
        match options.json {
            true => println!("{}", result.json()),
            false => println!("{}", result.text()),
        }
    }
    if wanted(Name::Rollback) {
        let result = rollback::measure(&ksnap)?;
        match options.json {
            true => println!("{}", result.json()),
            false => print!("{}", result.text()),
        }
    }
    if wanted(Name::Restore) {
        let result = restore::measure(&ksnap, options.mib)?;
        match options.json {
            true => println!("{}", result.json()),
            false => print!("{}", result.text()),
        }
    }
    if wanted(Name::Base) {
        let result = base::measure(&ksnap, options.mib)?;
        match options.json {
            true => println!("{}", result.json()),
            false => print!("{}", result.text()),
        }
    }
    Ok(ExitCode::SUCCESS)
}
