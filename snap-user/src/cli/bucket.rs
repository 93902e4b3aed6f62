//! `ksnap push`, `ksnap pull`, `ksnap prune --bucket`

use super::args::{Prune, Pull, Push};
use super::context::{Context, stdout, write_json};
use super::exit::{CliError, Exit};
use super::render::bucket;
use super::status::Status;
use crate::session::{self, BucketRules, Filling, Pulling, Pushing, Rules};
use std::io::{self, IsTerminal, Write};

fn status(context: &Context) -> Status {
    Status::new(io::stderr().is_terminal() && !context.is_quiet())
}

/// Copies a snapshot to object storage.
pub fn push(context: &Context, args: &Push) -> Result<Exit, CliError> {
    let mut status = status(context);
    let mut report = |pushing: &Pushing| status.update(&bucket::pushing(pushing));
    let store = context.store()?;
    let done = session::push(&store, &args.reference, &args.url, &mut report)?;
    drop(status);
    for note in &done.notes {
        context.note(note);
    }
    context.print(args.json, &done, |out, _| {
        writeln!(out, "{}", bucket::pushed(&done))
    })?;
    Ok(Exit::Done)
}

/// Brings a snapshot into the store, or lists what there is.
pub fn pull(context: &Context, args: &Pull) -> Result<Exit, CliError> {
    if args.list {
        return list(context, args);
    }
    let mut status = status(context);
    let mut report = |pulling: &Pulling| status.update(&bucket::pulling(pulling));
    let filling = Filling::Processes(&[]);
    let (store, _) = context.store_to_fill(filling, Rules::default())?;
    let done = session::pull(&store, &args.url, &args.reference, &mut report)?;
    drop(status);
    for note in &done.notes {
        context.note(note);
    }
    context.print(args.json, &done, |out, _| {
        writeln!(out, "{}", bucket::pulled(&done))
    })?;
    Ok(Exit::Done)
}

fn list(context: &Context, args: &Pull) -> Result<Exit, CliError> {
    let listing = session::list_bucket(&args.url)?;
    let entries = &listing.entries;
    for note in &listing.notes {
        context.note(note);
    }
    let mut out = stdout();
    match args.json.json {
        true => entries
            .iter()
            .try_for_each(|entry| write_json(&mut out, entry))?,
        false => bucket::list(&mut out, context.out_style(), entries)?,
    }
    out.flush()?;
    Ok(Exit::Done)
}

/// Removes snapshots from object storage by rule, and what no snapshot needs.
pub fn prune(context: &Context, args: &Prune, url: &str) -> Result<Exit, CliError> {
    let rules = BucketRules {
        keep: args.rules(),
        grace: args.grace,
    };
    if !args.removing.dry_run && !args.removing.yes {
        let planned = session::prune_bucket(url, &rules, true)?;
        if !planned.removed.is_empty() {
            confirm(context, &bucket::question(&planned))?;
        }
    }
    let done = session::prune_bucket(url, &rules, args.removing.dry_run)?;
    context.print(args.json, &done, |out, _| bucket::pruned(out, &done))?;
    Ok(Exit::Done)
}

fn confirm(context: &Context, question: &str) -> Result<(), CliError> {
    match context.ask(question) {
        Some(true) => Ok(()),
        Some(false) => Err(CliError::Declined),
        None => Err(CliError::Refused(format!(
            "{question} There is no terminal to ask on: confirm with -y, or look first with --dry-run"
        ))),
    }
}
