//! Verbs that take snapshots.

use super::{Json, When, count, pid};
use crate::cli::units;
use crate::session::{Durability, Options, Rules, Schedule, Then, TrackerChoice, default_memory};
use clap::Args;
use std::ffi::OsString;
use std::time::Duration;

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
    /// Most memory for copied pages that wait to be stored, of all processes together, but no less than 8M for each
    /// [default: a quarter of what is available, at least 512M]
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
    #[command(flatten)]
    pub sealing: Sealing,
}

/// Who may read what is stored.
#[derive(Clone, Debug, Default, Args)]
pub struct Sealing {
    /// Seal what is stored, so that only the holder of a key can read it: a public key of age, age1…, or a file with
    /// such keys, one a line; may be given more than once. Reading it takes --identity [env: KSNAP_ENCRYPT_TO]
    // KSNAP_ENCRYPT_TO is read where it is used: an empty value counts as unset, and it asks for no --watch.
    #[arg(long, value_name = "RECIPIENT")]
    pub encrypt_to: Vec<String>,
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
            own: self.own(),
            tree: false,
        }
    }

    /// An option that a watcher which is there already cannot follow. The usual value asks for nothing.
    fn own(&self) -> Option<&'static str> {
        let usual = Options::default();
        let given = [
            ("--tracker", self.tracker != usual.tracker),
            ("--no-probes", self.no_probes),
            ("--memory", self.memory.is_some()),
            ("--mirror", self.mirror != usual.mirror),
            ("--durability", self.durability != usual.durability),
        ];
        given
            .into_iter()
            .find_map(|(name, given)| given.then_some(name))
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

/// What there is to say of watching: how often, what is kept, how snapshots are taken, what is shown.
#[derive(Debug, Args)]
pub struct Watching {
    #[command(flatten)]
    pub when: Timing,
    #[command(flatten)]
    pub keeping: Keeping,
    #[command(flatten)]
    pub taking: Taking,
    #[command(flatten)]
    pub live: Live,
}

/// `ksnap run`
#[derive(Debug, Args)]
pub struct Run {
    /// Of the command and all of its descendants, at one moment each: one can be rolled back or restored as a whole
    #[arg(long, conflicts_with = "max_size")]
    pub tree: bool,
    #[command(flatten)]
    pub watching: Watching,
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
    /// Each with all of its descendants, at one moment: a tree that can be rolled back or restored as a whole
    #[arg(long, conflicts_with = "max_size")]
    pub tree: bool,
    #[command(flatten)]
    pub watching: Watching,
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
    /// With --kill: keep its TCP connections for `ksnap restore --tcp`. Until then the other sides hear nothing
    /// (CAP_NET_ADMIN)
    #[arg(long, requires = "kill")]
    pub tcp: bool,
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

/// `ksnap profile`
#[derive(Debug, Args)]
pub struct Profile {
    /// The process
    #[arg(value_parser = pid)]
    pub pid: i32,
    /// From one snapshot to the next: 100ms, 2s, 1m [default: 100ms]
    #[arg(long, value_name = "D", value_parser = units::duration)]
    pub every: Option<Duration>,
    /// How long to measure
    #[arg(long = "for", value_name = "D", default_value = "10s", value_parser = units::duration)]
    pub lasting: Duration,
    #[command(flatten)]
    pub taking: Taking,
    #[command(flatten)]
    pub json: Json,
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
