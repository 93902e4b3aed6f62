//! What can be said on the command line.

#[cfg(feature = "object-storage")]
mod bucket;
mod keeping;
mod reading;
mod remote;
mod reviving;
mod taking;
#[cfg(test)]
mod tests;

#[cfg(feature = "object-storage")]
pub use bucket::{Pull, Push};
pub use keeping::{Flush, Prune, Removing, Squash, Tag};
pub use reading::{Diff, Export, Gdb, Log, Show, Verify};
pub use remote::{Clone, Key, KeyVerb, Serve};
use reviving::with_watch;
pub use reviving::{Fork, PidChoice, Restore, Reviving, Rollback};
pub use taking::{Inspect, Live, Profile, Run, Sealing, Snap, Taking, Watch, Watching};

use super::help;
use super::units;
use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;

/// Incremental snapshots of running processes, and rollback to any of them.
#[derive(Debug, Parser)]
#[command(name = "ksnap", version, max_term_width = 100, after_help = help::MAIN)]
#[command(propagate_version = true, subcommand_required = true)]
pub struct Cli {
    /// The command.
    #[command(subcommand)]
    pub verb: Verb,
    #[command(flatten)]
    pub global: Global,
}

/// Options of every verb.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Options of every command")]
pub struct Global {
    /// Folder of the snapshots [env: KSNAP_STORE] [default: /var/lib/ksnap for root, else
    /// ~/.local/state/ksnap]
    // KSNAP_STORE is read where the default is worked out, so that an empty value counts as unset.
    #[arg(long, global = true, value_name = "DIR", num_args = 0..=1)]
    pub store: Option<Option<PathBuf>>,
    /// Keep the snapshots in memory, of which they take SIZE at most (a quarter of it unless said otherwise), and nothing
    /// on a disk; `ksnap flush` writes them to the folder of --store [env: KSNAP_RAM, the folder in memory]
    // KSNAP_RAM is read where the default is worked out.
    #[arg(
        long,
        global = true,
        value_name = "SIZE",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "",
        value_parser = units::ram
    )]
    pub ram: Option<units::RamSize>,
    /// File with the private keys that open what was sealed with --encrypt-to: AGE-SECRET-KEY lines, as age-keygen
    /// writes them [env: KSNAP_IDENTITY]
    // KSNAP_IDENTITY is read where it is used, so that an empty value counts as unset.
    #[arg(long, global = true, value_name = "FILE")]
    pub identity: Option<PathBuf>,
    /// Print errors only
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub quiet: bool,
    /// Say more on standard error; -vv for what the probes say, -vvv for everything [env: KSNAP_LOG]
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub verbose: u8,
    /// Colours; auto: on a terminal, unless NO_COLOR is set
    #[arg(
        long,
        global = true,
        value_enum,
        value_name = "WHEN",
        default_value = "auto"
    )]
    pub color: When,
    /// Never ask: what would ask is refused unless it has -y
    #[arg(long, global = true)]
    pub no_input: bool,
}

/// When to do something that depends on the terminal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum When {
    /// On a terminal.
    #[default]
    Auto,
    /// Whatever the output goes to.
    Always,
    /// Not at all.
    Never,
}

/// Commands.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Start a command under continuous snapshots
    #[command(after_help = help::RUN)]
    Run(Run),
    /// Snapshot running processes continuously
    #[command(after_help = help::WATCH)]
    Watch(Watch),
    /// Take one snapshot of a running process, which runs on
    #[command(after_help = help::SNAP)]
    Snap(Snap),
    /// Say what of a running process can be brought back, what only partly, and why
    #[command(after_help = help::INSPECT)]
    Inspect(Inspect),
    /// List snapshots, newest last
    #[command(after_help = help::LOG)]
    Log(Log),
    /// Describe a snapshot
    #[command(after_help = help::SHOW)]
    Show(Show),
    /// Write the snapshots that lie in memory (--ram) to the disk
    #[command(after_help = help::FLUSH)]
    Flush(Flush),
    /// Compare two snapshots
    #[command(after_help = help::DIFF)]
    Diff(Diff),
    /// Check that what is stored is whole
    #[command(after_help = help::VERIFY)]
    Verify(Verify),
    /// Give a snapshot a name, which also protects it; list names
    #[command(after_help = help::TAG)]
    Tag(Tag),
    /// Remove snapshots by rule; what others need of them is kept
    #[command(after_help = help::PRUNE)]
    Prune(Prune),
    /// Merge a stretch of snapshots into one
    #[command(after_help = help::SQUASH)]
    Squash(Squash),
    /// Write a snapshot as a core file, for debuggers
    #[command(after_help = help::EXPORT)]
    Export(Export),
    /// Open a snapshot in gdb
    #[command(after_help = help::GDB)]
    Gdb(Gdb),
    /// Bring a snapshot back as a new process
    #[command(after_help = help::RESTORE, mut_args(with_watch))]
    Restore(Restore),
    /// Start copies of a snapshot, each in a PID namespace of its own
    #[command(after_help = help::FORK)]
    Fork(Fork),
    /// Bring a snapshot, or a running process, to another machine
    #[command(after_help = help::CLONE)]
    Clone(Clone),
    /// Receive snapshots from other machines, and bring them back when asked
    #[command(after_help = help::SERVE)]
    Serve(Serve),
    /// Show this user's key, and say whose keys are trusted
    #[command(after_help = help::KEY)]
    Key(Key),
    /// Copy a snapshot to object storage: S3, Google Cloud Storage, Azure or a folder
    #[cfg(feature = "object-storage")]
    #[command(after_help = help::PUSH)]
    Push(Push),
    /// Bring a snapshot from object storage into the store
    #[cfg(feature = "object-storage")]
    #[command(after_help = help::PULL)]
    Pull(Pull),
    /// Put a live process back to a snapshot, in place
    #[command(after_help = help::ROLLBACK)]
    Rollback(Rollback),
    /// Measure what snapshots of a process cost, and who dirties its memory
    #[command(after_help = help::PROFILE)]
    Profile(Profile),
    /// Say what works on this machine, what is missing, and how to get it
    #[command(after_help = help::DOCTOR)]
    Doctor(Doctor),
    /// Print completions for a shell
    #[command(after_help = help::COMPLETIONS)]
    Completions(Completions),
    /// Print the manual page, of ksnap or of one command
    #[command(after_help = help::MAN)]
    Man(Man),
}

/// `--json`
#[derive(Clone, Copy, Debug, Args)]
pub struct Json {
    /// Print JSON, as docs/json.md describes it
    #[arg(long)]
    pub json: bool,
}

fn count(text: &str) -> Result<u64, String> {
    match text.parse() {
        Ok(0) => Err("it must be 1 or more".into()),
        Ok(count) => Ok(count),
        Err(_) => Err("not a number".into()),
    }
}

/// A process id. `-5` never gets here: clap takes it for an option.
fn pid(text: &str) -> Result<i32, String> {
    match text.parse() {
        Ok(pid) if pid > 0 => Ok(pid),
        _ => Err("a process id is a positive number".into()),
    }
}

/// `ksnap doctor`
#[derive(Debug, Args)]
pub struct Doctor {
    #[command(flatten)]
    pub json: Json,
}

/// `ksnap completions`
#[derive(Debug, Args)]
pub struct Completions {
    /// The shell
    pub shell: clap_complete::Shell,
}

/// `ksnap man`
#[derive(Debug, Args)]
pub struct Man {
    /// The command; ksnap itself if left out
    pub command: Option<String>,
}
