//! `ksnap rollback`

use super::args::Rollback;
use super::context::Context;
use super::exit::{CliError, Exit};
use super::render::human::{ago, clean};
use super::render::taken;
use crate::session::{self, LogEntry};
use std::time::SystemTime;

/// Puts a live process back to a snapshot, when the user is sure.
pub fn rollback(context: &Context, args: &Rollback) -> Result<Exit, CliError> {
    let store = context.store()?;
    let entry = session::find_to_go_back_to(&store, args.pid, &args.reference)?;
    if !args.yes {
        confirm(context, &entry)?;
    }
    // By its whole name: what was `latest` when the user said yes may not be any more.
    let done = session::rollback(
        &store,
        args.pid,
        &entry.id.to_string(),
        &args.taking.options(),
    )?;
    context.print(args.json, &done, |out, _| {
        taken::rolled_back(args.pid, &done)
            .iter()
            .try_for_each(|line| writeln!(out, "{line}"))
    })?;
    Ok(Exit::Done)
}

fn confirm(context: &Context, entry: &LogEntry) -> Result<(), CliError> {
    let question = format!(
        "Put process {} ({}) back to {} (@{}, {})? What it did since is lost.",
        entry.pid,
        clean(&entry.comm),
        entry.id.short(),
        entry.seq,
        ago(entry.time_ns, SystemTime::now())
    );
    match context.ask(&question) {
        Some(true) => Ok(()),
        Some(false) => Err(CliError::Declined),
        None => Err(CliError::Refused(format!(
            "a rollback loses what process {} did since the snapshot, and there is no terminal to ask on: \
             confirm with -y",
            entry.pid
        ))),
    }
}
