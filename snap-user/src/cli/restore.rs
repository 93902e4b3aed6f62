//! `ksnap restore` and `ksnap fork`

use super::args::{Fork, Restore, Reviving};
use super::context::{Context, write_json};
use super::exit::{CliError, Exit};
use super::render::revived;
use crate::session::{self, Pids, Revived};
use std::io::Write;

/// Brings a snapshot back as a process.
pub fn restore(context: &Context, args: &Restore) -> Result<Exit, CliError> {
    let mut all = Vec::new();
    let pids = args.pids.map_or(Pids::Same, Pids::from);
    let complete = revive(context, &args.reference, 1, pids, &args.reviving, &mut all)?;
    match (args.wait, all.first()) {
        (true, Some(process)) => Ok(Exit::of_command(process.wait()?)),
        _ => Ok(complete),
    }
}

/// Starts copies of a snapshot.
pub fn fork(context: &Context, args: &Fork) -> Result<Exit, CliError> {
    let mut all = Vec::new();
    let pids = args.pids.map_or(Pids::Namespace, Pids::from);
    revive(
        context,
        &args.reference,
        args.copies,
        pids,
        &args.reviving,
        &mut all,
    )
}

fn revive(
    context: &Context,
    reference: &str,
    copies: u32,
    pids: Pids,
    args: &Reviving,
    all: &mut Vec<Revived>,
) -> Result<Exit, CliError> {
    let options = args.options(pids);
    let mut failed = None;
    session::revive(&context.store()?, reference, copies, &options, &mut |one| {
        if let Err(e) = say(context, args, &one) {
            failed.get_or_insert(e);
        }
        all.push(one);
    })?;
    if let Some(e) = failed {
        return Err(e);
    }
    Ok(match all.iter().all(|one| one.notes.is_empty()) {
        true => Exit::Done,
        false => Exit::Incomplete,
    })
}

fn say(context: &Context, args: &Reviving, one: &Revived) -> Result<(), CliError> {
    let mut out = super::context::stdout();
    match args.json.json {
        true => write_json(&mut out, one)?,
        false => writeln!(out, "{}", revived::line(one))?,
    }
    out.flush()?;
    for note in revived::notes(one) {
        context.tell(&note);
    }
    Ok(())
}
