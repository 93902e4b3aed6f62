//! Verbs that tell what the store has.

use super::{Json, pid};
use clap::Args;
use std::ffi::OsString;
use std::path::PathBuf;

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
    /// First make the lists of headers anew, which make listings quick, and damaged descriptions of sessions, from the
    /// snapshots alone
    #[arg(long)]
    pub rebuild: bool,
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
