//! `ksnap rollback`

use super::args::Rollback;
use super::context::Context;
use super::exit::{CliError, Exit};
use super::render::human::{ago, clean, count};
use super::render::taken;
use crate::session::{self, LogEntry};
use std::path::Path;
use std::time::SystemTime;

/// Puts a live process back to a snapshot, when the user is sure.
pub fn rollback(context: &Context, args: &Rollback) -> Result<Exit, CliError> {
    let store = context.store()?;
    if args.tree {
        return tree(context, args, &store);
    }
    let entry = session::find_to_go_back_to(&store, args.pid, &args.reference)?;
    if !args.yes {
        confirm(context, args, entry.as_ref(), 0)?;
    }
    // By its whole name: what was `latest` when the user said yes may not be any more.
    let reference = match &entry {
        Some(entry) => entry.id.to_string(),
        None => args.reference.clone(),
    };
    let done = session::rollback(&store, args.pid, &reference, &args.taking.options())?;
    context.print(args.json, &done, |out, _| {
        taken::rolled_back(args.pid, &done)
            .iter()
            .try_for_each(|line| writeln!(out, "{line}"))
    })?;
    Ok(Exit::Done)
}

/// Puts a process and its descendants back to a snapshot of all of them.
fn tree(context: &Context, args: &Rollback, store: &Path) -> Result<Exit, CliError> {
    let found = session::find_tree_to_go_back_to(store, args.pid, &args.reference)?;
    if !args.yes {
        let others = found.as_ref().map_or(0, |(_, tree)| tree.members.len() - 1);
        let entry = found.as_ref().map(|(entry, _)| entry);
        confirm(context, args, entry, others as u64)?;
    }
    let reference = match &found {
        Some((entry, _)) => entry.id.to_string(),
        None => args.reference.clone(),
    };
    let done = session::rollback_tree(store, args.pid, &reference, &args.taking.options())?;
    context.print(args.json, &done, |out, _| {
        taken::rolled_back_tree(&done)
            .iter()
            .try_for_each(|line| writeln!(out, "{line}"))
    })?;
    Ok(Exit::Done)
}

/// `others` go back with it. Without an `entry` the snapshot is one that only its watcher can read.
fn confirm(
    context: &Context,
    args: &Rollback,
    entry: Option<&LogEntry>,
    others: u64,
) -> Result<(), CliError> {
    let (with, lost) = match others {
        0 => (String::new(), "What it did since is lost."),
        n => (
            format!(" and {} below it", count(n, "other")),
            "What they did since is lost, and processes that came since are ended.",
        ),
    };
    let question = match entry {
        Some(entry) => format!(
            "Put process {} ({}){with} back to {} (@{}, {})? {lost}",
            entry.pid,
            clean(&entry.comm),
            entry.id.short(),
            entry.seq,
            ago(entry.time_ns, SystemTime::now())
        ),
        None => format!(
            "Put process {} back to {}, which is sealed and only its watcher can read? {lost}",
            args.pid,
            clean(&args.reference)
        ),
    };
    match context.ask(&question) {
        Some(true) => Ok(()),
        Some(false) => Err(CliError::Declined),
        None => Err(CliError::Refused(format!(
            "a rollback loses what process {} did since the snapshot, and there is no terminal to ask on: \
             confirm with -y",
            args.pid
        ))),
    }
}
