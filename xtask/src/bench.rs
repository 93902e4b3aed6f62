//! `cargo xtask bench`: measurements, each with what is needed to judge it in the same run.

mod codec;
mod floor;
mod load;
mod others;
mod report;
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
    /// How long to measure under snapshots, and as long without
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(2..))]
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
    /// How small changed pages of real programs become, and how fast, beside LZ4, zstd and XBZRLE
    Codec,
}

/// Runs one measurement or all.
///
/// # Errors
/// When a measurement could not be made.
pub fn run(options: Options) -> Result<ExitCode> {
    let wanted = |name| options.name.is_none_or(|only| only == name);
    if options.name.is_none() && !options.json {
        println!("measurements: stop, codec\n");
    }
    if wanted(Name::Stop) {
        let (json, text) = stop(&options)?;
        print(options.json, &json, &text);
    }
    if wanted(Name::Codec) {
        let report = codec::measure()?;
        print(options.json, &report.json(), &report.text());
    }
    Ok(ExitCode::SUCCESS)
}

fn print(as_json: bool, json: &serde_json::Value, text: &str) {
    match as_json {
        true => println!("{json}"),
        false => print!("{text}"),
    }
}

fn stop(options: &Options) -> Result<(serde_json::Value, String)> {
    ensure!(
        crate::host::find("redis-server").is_some()
            && crate::host::find("redis-benchmark").is_some(),
        "redis-server or redis-benchmark is missing: apt-get install redis-server redis-tools"
    );
    let ksnap = match &options.ksnap {
        Some(file) => file.clone(),
        None => {
            cargo::build(Profile::Release)?;
            cargo::binary(Profile::Release, "ksnap")
        }
    };
    let result = stop::measure(&ksnap, options.mib, options.seconds)?;
    Ok((result.json(), result.text()))
}
