//! Verbs between two machines.

use super::{Json, PidChoice, Sealing, Taking};
use crate::cli::units;
use crate::session::{CloneOptions, Pids};
use clap::{Args, Subcommand, ValueEnum};
use std::time::Duration;

/// `ksnap clone`
#[derive(Debug, Args)]
pub struct Clone {
    /// The snapshot, or the id of the running process
    #[arg(value_name = "REF|PID")]
    pub what: String,
    /// The other machine, where `ksnap serve` runs
    #[arg(value_name = "HOST[:PORT]")]
    pub host: String,
    /// End the process here, once it runs there
    #[arg(long = "move", conflicts_with_all = ["copy", "no_restore"])]
    pub end: bool,
    /// Leave the process running here as well [default]
    #[arg(long)]
    pub copy: bool,
    /// Only store the snapshot there
    #[arg(long, conflicts_with_all = ["pids", "eager", "net", "allow_changed_files"])]
    pub no_restore: bool,
    /// Process ids that it gets there [default: same; namespace if one of them is taken]
    #[arg(long, value_enum, value_name = "WHICH")]
    pub pids: Option<PidChoice>,
    /// Fill all memory before the first instruction there
    #[arg(long)]
    pub eager: bool,
    /// Start it there at once, in a PID namespace, and have its memory fetched as it is touched, and in the background
    #[arg(long, conflicts_with_all = ["eager", "no_restore"])]
    pub lazy: bool,
    /// Go on when a file that is mapped is another one there
    #[arg(long)]
    pub allow_changed_files: bool,
    /// Network that it is in there
    #[arg(long, value_enum, value_name = "WHICH", default_value = "shared")]
    pub net: NetThere,
    /// Rounds of snapshots while the process runs, at most: each sends what was written during the one before
    #[arg(long, value_name = "N", default_value_t = 6, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub rounds: u32,
    /// Give the other machine up after so long without a sign of life
    #[arg(long, value_name = "D", default_value = "30s", value_parser = units::duration)]
    pub timeout: Duration,
    /// Give up, and let the process go on here, when it has stood still for so long and is not stored there yet
    #[arg(long, value_name = "D", default_value = "30s", value_parser = units::duration)]
    pub max_stop: Duration,
    #[command(flatten)]
    pub taking: Taking,
    #[command(flatten)]
    pub json: Json,
}

/// Networks of the other machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum NetThere {
    /// That of its ksnap
    #[default]
    Shared,
    /// One of its own, with a loopback device alone
    Private,
}

impl Clone {
    /// As the session takes it.
    pub fn options(&self) -> CloneOptions {
        CloneOptions {
            restore: !self.no_restore,
            end: self.end,
            pids: self.pids.map(Pids::from),
            eager: self.eager,
            lazy: self.lazy,
            allow_changed_files: self.allow_changed_files,
            network: self.net == NetThere::Private,
            rounds: self.rounds,
            stall: self.timeout,
            max_stop: self.max_stop,
            taking: self.taking.options(),
        }
    }
}

/// `ksnap serve`
#[derive(Debug, Args)]
pub struct Serve {
    /// Address or host name to listen on, with or without a port [default: all addresses, port 5762]
    #[arg(long, value_name = "ADDR[:PORT]")]
    pub listen: Option<String>,
    /// Give another machine up after so long without a sign of life
    #[arg(long, value_name = "D", default_value = "30s", value_parser = units::duration)]
    pub timeout: Duration,
    #[command(flatten)]
    pub sealing: Sealing,
    #[command(flatten)]
    pub json: Json,
}

/// `ksnap key`
#[derive(Debug, Args)]
#[command(subcommand_required = true)]
pub struct Key {
    /// What to do with keys.
    #[command(subcommand)]
    pub what: KeyVerb,
}

/// What can be done with keys.
#[derive(Debug, Subcommand)]
pub enum KeyVerb {
    /// Print this user's public key, making a pair if there is none
    Show(KeyShow),
    /// Trust a key: who has it may send processes here, which run as the user who serves, and receive some
    Trust(KeyTrust),
    /// Trust a key no more
    Forget(KeyForget),
    /// List the keys that are trusted
    List(KeyList),
}

/// `ksnap key show`
#[derive(Debug, Args)]
pub struct KeyShow {
    #[command(flatten)]
    pub json: Json,
}

/// `ksnap key trust`
#[derive(Debug, Args)]
pub struct KeyTrust {
    /// The key, as `ksnap key show` prints it on the other machine
    #[arg(value_name = "KEY")]
    pub key: String,
    /// A name for it: a host with that name must have this key. It keeps one that it has
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    #[command(flatten)]
    pub json: Json,
}

/// `ksnap key forget`
#[derive(Debug, Args)]
pub struct KeyForget {
    /// The key, or its name
    #[arg(value_name = "KEY|NAME")]
    pub which: String,
}

/// `ksnap key list`
#[derive(Debug, Args)]
pub struct KeyList {
    #[command(flatten)]
    pub json: Json,
}
