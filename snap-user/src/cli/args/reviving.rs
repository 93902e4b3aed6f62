//! Verbs that bring a process back.

use super::{Json, Taking, Watching, pid};
use crate::session::{FileOptions, Network, Pids, ReviveOptions};
use clap::{Args, ValueEnum};

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
    #[arg(long, value_enum, value_name = "WHICH", default_value = "same")]
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
            network: self.net.into(),
            stays: false,
            files,
            alone: self.alone,
        })
    }
}

/// Networks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum NetChoice {
    /// The one that it was in, if that is still there; else ksnap's
    #[default]
    Same,
    /// ksnap's
    Shared,
    /// One of its own, with a loopback device alone
    Private,
}

impl From<NetChoice> for Network {
    fn from(choice: NetChoice) -> Self {
        match choice {
            NetChoice::Same => Self::Same,
            NetChoice::Shared => Self::Shared,
            NetChoice::Private => Self::Private,
        }
    }
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
    /// Process ids that it gets [default: same; namespace if it had one, and for ordinary users]
    #[arg(long, value_enum, value_name = "WHICH")]
    pub pids: Option<PidChoice>,
    /// Go on with its TCP connections, which `ksnap snap --kill --tcp` has kept: at the same address (CAP_NET_ADMIN)
    #[arg(long)]
    pub tcp: bool,
    /// Wait until it ends, and end with its exit status
    #[arg(long)]
    pub wait: bool,
    /// Watch it from then on: its snapshots go on from this one
    #[arg(long)]
    pub watch: bool,
    #[command(flatten)]
    pub reviving: Reviving,
    #[command(flatten)]
    pub watching: Watching,
}

/// What only means something for a process that is watched.
pub(super) fn with_watch(arg: clap::Arg) -> clap::Arg {
    // Its environment variable would ask for watching as well.
    const ELSEWHERE: &str = "max_overhead";
    let watching = Watching::augment_args(clap::Command::new("watching"));
    let id = arg.get_id();
    let is_of_watching = watching.get_arguments().any(|one| one.get_id() == id);
    match is_of_watching && id.as_str() != ELSEWHERE {
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

/// `ksnap rollback`
#[derive(Debug, Args)]
pub struct Rollback {
    /// The process
    #[arg(value_parser = pid)]
    pub pid: i32,
    /// The snapshot to go back to
    #[arg(value_name = "REF")]
    pub reference: String,
    /// The process and all of its descendants, to a snapshot that was taken of them together
    #[arg(long)]
    pub tree: bool,
    /// Do not ask
    #[arg(short, long)]
    pub yes: bool,
    #[command(flatten)]
    pub taking: Taking,
    #[command(flatten)]
    pub json: Json,
}
