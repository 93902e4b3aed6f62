//! Verbs that say what the store keeps, and where.

use super::{Json, count, pid};
use crate::cli::units;
use crate::session::Rules;
use clap::Args;
use std::path::PathBuf;
use std::time::Duration;

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
    /// Prune object storage rather than the store: the URL that `ksnap push` is given
    #[cfg(feature = "object-storage")]
    #[arg(long, value_name = "URL", conflicts_with_all = ["pid", "max_size"])]
    pub bucket: Option<String>,
    /// With --bucket, how long what no snapshot needs is left alone: longer than any push takes. 0 if nobody else uses
    /// the place now
    #[cfg(feature = "object-storage")]
    #[arg(long, value_name = "D", default_value = "24h", requires = "bucket", value_parser = units::duration_or_none)]
    pub grace: Duration,
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
