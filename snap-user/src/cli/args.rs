//! What can be said on the command line.

use super::help;
use super::units;
use crate::session::{
    CloneOptions, Durability, FileOptions, Options, Pids, ReviveOptions, Rules, Schedule, Then,
    TrackerChoice, default_memory,
};
use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

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

fn tracker(text: &str) -> Result<TrackerChoice, String> {
    text.parse()
}

fn durability(text: &str) -> Result<Durability, String> {
    match text {
        "none" => Ok(Durability::None),
        "interval" => Ok(Durability::Interval),
        "each" => Ok(Durability::Each),
        _ => Err("it is none, interval or each".into()),
    }
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

/// How snapshots are taken.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "How snapshots are taken")]
pub struct Taking {
    /// How written pages are found: auto, wp, soft-dirty or hash; see `ksnap doctor`
    #[arg(long, value_name = "TRACKER", default_value = "auto", value_parser = tracker)]
    pub tracker: TrackerChoice,
    /// Do without the eBPF probes
    #[arg(long)]
    pub no_probes: bool,
    /// Inside each stop, compare all memory with what the store would give back (slow)
    #[arg(long)]
    pub audit: bool,
    /// Most memory for copied pages that wait to be stored, of all processes together [default: a quarter of what
    /// is available, at least 512M]
    #[arg(long, value_name = "SIZE", value_parser = units::size)]
    pub memory: Option<u64>,
    /// Most memory for what pages were before, of all processes together: where it is known, what changed in a page is
    /// stored instead of all of it; 0 to do without
    #[arg(long, value_name = "SIZE", default_value = "256M", value_parser = units::size_or_none)]
    pub mirror: u64,
    /// Save what is in files that the process has open for writing, and in deleted ones: a rollback
    /// to the snapshot brings it back
    #[arg(long)]
    pub files: bool,
    /// When a snapshot is made durable: each before it counts as taken; interval, all of the last second together;
    /// none, when the kernel likes. What a power failure can take; no crash of ksnap takes anything
    #[arg(long, value_name = "WHEN", default_value = "each", value_parser = durability)]
    pub durability: Durability,
}

impl Taking {
    /// As the session takes it.
    pub fn options(&self) -> Options {
        Options {
            tracker: self.tracker,
            probes: !self.no_probes,
            audit: self.audit,
            memory: self.memory.unwrap_or_else(default_memory),
            mirror: self.mirror,
            files: self.files,
            keep: Rules::default(),
            bounded: false,
            then: Then::GoOn,
            durability: self.durability,
        }
    }
}

/// Which snapshots are kept while others are taken.
#[derive(Clone, Copy, Debug, Args)]
#[command(next_help_heading = "Which snapshots are kept (all, unless said otherwise)")]
pub struct Keeping {
    /// Keep those of the last D: 60s, 2h, 7d
    #[arg(long = "keep", value_name = "D", value_parser = units::duration)]
    pub within: Option<Duration>,
    /// Keep the last N
    #[arg(long = "keep-last", value_name = "N", value_parser = count)]
    pub last: Option<u64>,
    /// Most room for them on the disk; the oldest go first
    #[arg(long, value_name = "SIZE", value_parser = units::size)]
    pub max_size: Option<u64>,
}

impl Keeping {
    /// As the session takes it.
    pub fn rules(&self) -> Rules {
        Rules {
            keep_last: self.last,
            keep_within: self.within,
            max_size: self.max_size,
        }
    }
}

/// When snapshots are taken.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "When snapshots are taken")]
pub struct Timing {
    /// From one snapshot to the next: 100ms, 2s, 1m
    #[arg(long, value_name = "D", default_value = "1s", value_parser = units::duration)]
    pub every: Duration,
    /// End after this many snapshots
    #[arg(long, value_name = "N", value_parser = count)]
    pub count: Option<u64>,
    /// End after this long
    #[arg(long = "for", value_name = "D", value_parser = units::duration)]
    pub lasting: Option<Duration>,
    /// Most that snapshots may cost the process: 10%, or off. Where taking them as often as asked would
    /// cost more of the time that passes (stops, write faults, and ksnap's own work where no processor
    /// is idle), they are taken less often
    #[arg(long, value_name = "SHARE", default_value = "10%", env = "KSNAP_MAX_OVERHEAD", value_parser = units::share)]
    pub max_overhead: units::Share,
}

impl Timing {
    /// As the session takes it.
    pub fn schedule(&self) -> Schedule {
        Schedule {
            every: self.every,
            count: self.count,
            lasting: self.lasting,
            max_overhead: self.max_overhead.0,
        }
    }
}

/// The live status line.
#[derive(Clone, Copy, Debug, Args)]
pub struct Live {
    /// The status line on standard error; auto: on a terminal that no one else writes to
    #[arg(long, value_enum, value_name = "WHEN", default_value = "auto")]
    pub progress: When,
}

/// `ksnap run`
#[derive(Debug, Args)]
pub struct Run {
    #[command(flatten)]
    pub when: Timing,
    #[command(flatten)]
    pub keeping: Keeping,
    #[command(flatten)]
    pub taking: Taking,
    #[command(flatten)]
    pub live: Live,
    /// The command and its arguments, after `--`
    #[arg(required = true, last = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
}

/// `ksnap watch`
#[derive(Debug, Args)]
pub struct Watch {
    /// The processes
    #[arg(required = true, value_name = "PID", value_parser = pid)]
    pub pids: Vec<i32>,
    #[command(flatten)]
    pub when: Timing,
    #[command(flatten)]
    pub keeping: Keeping,
    #[command(flatten)]
    pub taking: Taking,
    #[command(flatten)]
    pub live: Live,
    #[command(flatten)]
    pub json: Json,
}

/// `ksnap snap`
#[derive(Debug, Args)]
pub struct Snap {
    /// The process
    #[arg(value_parser = pid)]
    pub pid: i32,
    /// End the process once its snapshot is stored; it does not run in between
    #[arg(long, conflicts_with = "stop")]
    pub kill: bool,
    /// Stop the process (SIGSTOP) once its snapshot is stored
    #[arg(long)]
    pub stop: bool,
    /// Refuse, rather than go on without, what could not be saved
    #[arg(long)]
    pub strict: bool,
    /// The process and all of its descendants, at one moment
    #[arg(long)]
    pub tree: bool,
    #[command(flatten)]
    pub taking: Taking,
    #[command(flatten)]
    pub json: Json,
}

/// `ksnap inspect`
#[derive(Debug, Args)]
pub struct Inspect {
    /// The process
    #[arg(value_parser = pid)]
    pub pid: i32,
    /// The process and all of its descendants, as parts of one tree
    #[arg(long)]
    pub tree: bool,
    #[command(flatten)]
    pub json: Json,
}

/// `ksnap log`
#[derive(Debug, Args)]
pub struct Log {
    /// Only snapshots of this process
    #[arg(long, value_parser = pid)]
    pub pid: Option<i32>,
    /// Only the last N
    #[arg(short = 'n', long = "last", value_name = "N")]
    pub last: Option<usize>,
    /// Draw which snapshot follows which
    #[arg(long, conflicts_with = "json")]
    pub graph: bool,
    #[command(flatten)]
    pub json: Json,
}

/// `ksnap show`
#[derive(Debug, Args)]
pub struct Show {
    /// The snapshot
    #[arg(value_name = "REF", default_value = "latest")]
    pub reference: String,
    #[command(flatten)]
    pub json: Json,
}

/// `ksnap flush`
#[derive(Debug, Args)]
pub struct Flush {
    /// The store on the disk [default: that of --store]
    #[arg(long, value_name = "DIR")]
    pub to: Option<PathBuf>,
    /// Only say what would be written, and how long it would take
    #[arg(short = 'n', long)]
    pub dry_run: bool,
    #[command(flatten)]
    pub json: Json,
}

/// `ksnap diff`
#[derive(Debug, Args)]
pub struct Diff {
    /// The first snapshot
    pub a: String,
    /// The second snapshot
    pub b: String,
    #[command(flatten)]
    pub json: Json,
}

/// `ksnap verify`
#[derive(Debug, Args)]
pub struct Verify {
    /// The snapshot to check, with all that it needs; everything if left out
    #[arg(value_name = "REF", conflicts_with = "rebuild")]
    pub reference: Option<String>,
    /// First make the lists of headers anew, which make listings quick, from the snapshots alone
    #[arg(long)]
    pub rebuild: bool,
    #[command(flatten)]
    pub json: Json,
}

/// `ksnap tag`
#[derive(Debug, Args)]
pub struct Tag {
    /// The name; all are listed if it is left out
    #[arg(value_name = "NAME", required_if_eq("delete", "true"))]
    pub name: Option<String>,
    /// The snapshot
    #[arg(value_name = "REF", default_value = "latest")]
    pub reference: String,
    /// Take the name away; the snapshot stays
    #[arg(short, long)]
    pub delete: bool,
    /// Give the name to this snapshot also when another one has it
    #[arg(short, long)]
    pub force: bool,
    #[command(flatten)]
    pub json: Json,
}

/// What removes snapshots asks first.
#[derive(Clone, Copy, Debug, Args)]
pub struct Removing {
    /// Only say what would be removed
    #[arg(short = 'n', long)]
    pub dry_run: bool,
    /// Do not ask
    #[arg(short, long)]
    pub yes: bool,
}

/// `ksnap prune`
#[derive(Debug, Args)]
pub struct Prune {
    /// Keep the last N of each session
    #[arg(long, value_name = "N", value_parser = count)]
    pub keep_last: Option<u64>,
    /// Keep those of the last D: 60s, 2h, 7d
    #[arg(long, value_name = "D", value_parser = units::duration)]
    pub keep_within: Option<Duration>,
    /// Most room on the disk for all of them; beyond it the oldest go, also those that another rule keeps
    #[arg(long, value_name = "SIZE", value_parser = units::size)]
    pub max_size: Option<u64>,
    /// Only snapshots of this process
    #[arg(long, value_parser = pid)]
    pub pid: Option<i32>,
    #[command(flatten)]
    pub removing: Removing,
    #[command(flatten)]
    pub json: Json,
}

impl Prune {
    /// As the session takes it.
    pub fn rules(&self) -> Rules {
        Rules {
            keep_last: self.keep_last,
            keep_within: self.keep_within,
            max_size: self.max_size,
        }
    }
}

/// `ksnap squash`
#[derive(Debug, Args)]
pub struct Squash {
    /// What lies between two snapshots, A..B, or before one, ..B
    #[arg(value_name = "A..B")]
    pub range: String,
    #[command(flatten)]
    pub removing: Removing,
    #[command(flatten)]
    pub json: Json,
}

/// `ksnap export`
#[derive(Debug, Args)]
pub struct Export {
    /// The snapshot
    #[arg(value_name = "REF")]
    pub reference: String,
    /// Write an ELF core to this file
    #[arg(long, value_name = "FILE", required = true)]
    pub core: PathBuf,
    /// Replace the file if it exists
    #[arg(long)]
    pub force: bool,
    #[command(flatten)]
    pub json: Json,
}

/// `ksnap gdb`
#[derive(Debug, Args)]
pub struct Gdb {
    /// The snapshot
    #[arg(value_name = "REF", default_value = "latest")]
    pub reference: String,
    /// The debugger
    #[arg(long, value_name = "PATH", default_value = "gdb")]
    pub gdb: PathBuf,
    /// More arguments for the debugger, after `--`
    #[arg(last = true, value_name = "ARGUMENT")]
    pub arguments: Vec<OsString>,
}

/// How a snapshot is brought back.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "How the snapshot is brought back")]
pub struct Reviving {
    /// Go on when a file that was mapped is another one now
    #[arg(long)]
    pub allow_changed_files: bool,
    /// Fill all memory before the first instruction; else large mappings are filled as they are touched
    #[arg(long)]
    pub eager: bool,
    /// Refuse when anything would differ from what it was
    #[arg(long)]
    pub strict: bool,
    /// Network that it is in
    #[arg(long, value_enum, value_name = "WHICH", default_value = "shared")]
    pub net: NetChoice,
    /// Open PATH as descriptor N in place of what it was; fd:M for a descriptor of ksnap's own
    #[arg(long, value_name = "N=PATH")]
    pub map_fd: Vec<String>,
    /// Look for files under NEW that were under OLD
    #[arg(long, value_name = "OLD=NEW")]
    pub map_path: Vec<String>,
    /// Of a tree, its first process alone
    #[arg(long)]
    pub alone: bool,
    #[command(flatten)]
    pub json: Json,
}

impl Reviving {
    /// As the session takes it.
    ///
    /// # Errors
    /// A sentence for the user.
    pub fn options(&self, pids: Option<PidChoice>) -> Result<ReviveOptions, String> {
        let mut files = FileOptions::default();
        for text in &self.map_fd {
            files.map_fd(text)?;
        }
        for text in &self.map_path {
            files.map_path(text)?;
        }
        Ok(ReviveOptions {
            pids: pids.map(Pids::from),
            eager: self.eager,
            allow_changed_files: self.allow_changed_files,
            strict: self.strict,
            network: self.net == NetChoice::Private,
            files,
            alone: self.alone,
        })
    }
}

/// Networks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum NetChoice {
    /// ksnap's
    #[default]
    Shared,
    /// One of its own, with a loopback device alone
    Private,
}

/// Process ids of what is brought back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PidChoice {
    /// Those of the snapshot
    Same,
    /// New ones: a C library that remembers its thread ids remembers the old ones
    New,
    /// Those of the snapshot, in a PID namespace of their own
    Namespace,
}

impl From<PidChoice> for Pids {
    fn from(choice: PidChoice) -> Self {
        match choice {
            PidChoice::Same => Self::Same,
            PidChoice::New => Self::New,
            PidChoice::Namespace => Self::Namespace,
        }
    }
}

/// `ksnap restore`
#[derive(Debug, Args)]
pub struct Restore {
    /// The snapshot
    #[arg(value_name = "REF")]
    pub reference: String,
    /// Process ids that it gets [default: same; namespace if it had one]
    #[arg(long, value_enum, value_name = "WHICH")]
    pub pids: Option<PidChoice>,
    /// Wait until it ends, and end with its exit status
    #[arg(long)]
    pub wait: bool,
    /// Watch it from then on: its snapshots go on from this one
    #[arg(long)]
    pub watch: bool,
    #[command(flatten)]
    pub reviving: Reviving,
    #[command(flatten)]
    pub when: Timing,
    #[command(flatten)]
    pub keeping: Keeping,
    #[command(flatten)]
    pub taking: Taking,
    #[command(flatten)]
    pub live: Live,
}

/// What only means something for a process that is watched.
fn with_watch(arg: clap::Arg) -> clap::Arg {
    const OF_WATCHING: [&str; 14] = [
        "every",
        "count",
        "lasting",
        "within",
        "last",
        "max_size",
        "tracker",
        "no_probes",
        "audit",
        "memory",
        "mirror",
        "files",
        "durability",
        "progress",
    ];
    match OF_WATCHING.contains(&arg.get_id().as_str()) {
        true => arg.requires("watch"),
        false => arg,
    }
}

/// `ksnap fork`
#[derive(Debug, Args)]
pub struct Fork {
    /// The snapshot
    #[arg(value_name = "REF")]
    pub reference: String,
    /// How many copies
    #[arg(short = 'n', long = "copies", value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub copies: u32,
    /// Process ids that they get [default: namespace]
    #[arg(long, value_enum, value_name = "WHICH")]
    pub pids: Option<PidChoice>,
    #[command(flatten)]
    pub reviving: Reviving,
}

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
    /// Go on when a file that is mapped is another one there
    #[arg(long)]
    pub allow_changed_files: bool,
    /// Network that it is in there
    #[arg(long, value_enum, value_name = "WHICH", default_value = "shared")]
    pub net: NetChoice,
    /// Rounds of snapshots while the process runs, at most: each sends what was written during the one before
    #[arg(long, value_name = "N", default_value_t = 6, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub rounds: u32,
    /// Give the other machine up after so long without a sign of life
    #[arg(long, value_name = "D", default_value = "30s", value_parser = units::duration)]
    pub timeout: Duration,
    #[command(flatten)]
    pub taking: Taking,
    #[command(flatten)]
    pub json: Json,
}

impl Clone {
    /// As the session takes it.
    pub fn options(&self) -> CloneOptions {
        CloneOptions {
            restore: !self.no_restore,
            end: self.end,
            pids: self.pids.map(Pids::from),
            eager: self.eager,
            allow_changed_files: self.allow_changed_files,
            network: self.net == NetChoice::Private,
            rounds: self.rounds,
            stall: self.timeout,
            taking: self.taking.options(),
        }
    }
}

/// `ksnap serve`
#[derive(Debug, Args)]
pub struct Serve {
    /// Address to listen on, with or without a port [default: all addresses, port 5762]
    #[arg(long, value_name = "ADDR[:PORT]")]
    pub listen: Option<String>,
    /// Give another machine up after so long without a sign of life
    #[arg(long, value_name = "D", default_value = "30s", value_parser = units::duration)]
    pub timeout: Duration,
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
    /// A name for it. A host with that name must have this key
    #[arg(
        long,
        value_name = "NAME",
        default_value = "",
        hide_default_value = true
    )]
    pub name: String,
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

/// `ksnap rollback`
#[derive(Debug, Args)]
pub struct Rollback {
    /// The process
    #[arg(value_parser = pid)]
    pub pid: i32,
    /// The snapshot to go back to
    #[arg(value_name = "REF")]
    pub reference: String,
    /// Do not ask
    #[arg(short, long)]
    pub yes: bool,
    #[command(flatten)]
    pub taking: Taking,
    #[command(flatten)]
    pub json: Json,
}

/// `ksnap profile`
#[derive(Debug, Args)]
pub struct Profile {
    /// The process
    #[arg(value_parser = pid)]
    pub pid: i32,
    /// From one snapshot to the next: 100ms, 2s, 1m
    #[arg(long, value_name = "D", default_value = "100ms", value_parser = units::duration)]
    pub every: Duration,
    /// How long to measure
    #[arg(long = "for", value_name = "D", default_value = "10s", value_parser = units::duration)]
    pub lasting: Duration,
    #[command(flatten)]
    pub taking: Taking,
    #[command(flatten)]
    pub json: Json,
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

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn parse(words: &str) -> Result<Verb, clap::error::ErrorKind> {
        Cli::try_parse_from(words.split(' '))
            .map(|cli| cli.verb)
            .map_err(|error| error.kind())
    }

    #[test]
    fn the_definition_holds_together() {
        Cli::command().debug_assert();
    }

    #[test]
    fn run_keeps_everything_after_the_dashes() {
        let verb = parse("ksnap run --every 100ms --count 3 -- sh -c --json").unwrap();
        let Verb::Run(run) = verb else {
            panic!("{verb:?}")
        };
        assert_eq!(run.command, ["sh", "-c", "--json"]);
        let schedule = run.when.schedule();
        assert_eq!(schedule.every, Duration::from_millis(100));
        assert_eq!((schedule.count, schedule.lasting), (Some(3), None));
        let memory = run.taking.options().memory;
        let usual = Options {
            memory,
            ..Options::default()
        };
        assert_eq!(run.taking.options(), usual);
        assert!(parse("ksnap run").is_err());
        assert!(parse("ksnap run sleep 5").is_err());
    }

    #[test]
    fn options_reach_the_session() {
        let verb = parse(
            "ksnap watch 7 --tracker soft-dirty --no-probes --audit --memory 1G --mirror 0 --for 2m",
        );
        let Ok(Verb::Watch(watch)) = verb else {
            panic!("{verb:?}")
        };
        let options = watch.taking.options();
        assert_eq!(options.tracker, "soft-dirty".parse().unwrap());
        assert!(!options.probes && options.audit);
        assert_eq!((options.memory, options.mirror), (1 << 30, 0));
        assert_eq!(
            watch.when.schedule().lasting,
            Some(Duration::from_secs(120))
        );
    }

    #[test]
    fn nonsense_is_refused() {
        use clap::error::ErrorKind::ValueValidation;
        for words in [
            "ksnap watch 0",
            "ksnap watch x",
            "ksnap watch 1 --tracker best",
            "ksnap watch 1 --every 5",
            "ksnap watch 1 --count 0",
            "ksnap snap 1 --memory 3",
            "ksnap snap 1 --mirror 3",
            "ksnap watch 1 --durability always",
            "ksnap watch 1 --keep 5",
            "ksnap watch 1 --keep-last 0",
            "ksnap prune --max-size 3",
        ] {
            assert_eq!(parse(words).unwrap_err(), ValueValidation, "{words}");
        }
        assert!(parse("ksnap -q -v log").is_err());
    }

    #[test]
    fn the_store_is_on_a_disk_or_in_memory_or_asked_about() {
        let global = |words: &str| {
            let cli = Cli::try_parse_from(words.split(' ')).unwrap();
            (cli.global.store, cli.global.ram.map(|size| size.0))
        };
        assert_eq!(global("ksnap log"), (None, None));
        let named = Some(Some(PathBuf::from("/x")));
        assert_eq!(global("ksnap log --store /x"), (named.clone(), None));
        assert_eq!(global("ksnap --store=/x --ram log"), (named, Some(None)));
        assert_eq!(
            global("ksnap watch --ram=1G 7"),
            (None, Some(Some(1 << 30)))
        );
        assert_eq!(global("ksnap watch --ram 7"), (None, Some(None)));
        assert_eq!(global("ksnap show --store --json"), (Some(None), None));
        assert!(parse("ksnap watch 7 --ram=3").is_err());
    }

    #[test]
    fn the_default_memory_is_the_sessions() {
        assert_eq!(units::size("512M"), Ok(crate::session::LEAST_MEMORY));
        assert_eq!(units::size("256M"), Ok(crate::session::DEFAULT_MIRROR));
    }
}
