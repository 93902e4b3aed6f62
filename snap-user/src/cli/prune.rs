//! `ksnap prune`, `ksnap squash`

use super::args::{Json, Prune, Removing, Squash};
use super::context::Context;
use super::exit::{CliError, Exit};
use super::render::human::{bytes, clean, count};
use crate::session::{self, PrunedSession, Pruning, SessionError};
use std::io::{self, Write};

/// Removes snapshots by rule.
pub fn prune(context: &Context, args: &Prune) -> Result<Exit, CliError> {
    #[cfg(feature = "object-storage")]
    if let Some(url) = &args.bucket {
        return super::bucket::prune(context, args, url);
    }
    let store = context.store()?;
    let remove = |dry_run| session::prune(&store, &args.rules(), args.pid, dry_run);
    removal(context, args.removing, args.json, &remove)
}

/// Merges a stretch of snapshots.
pub fn squash(context: &Context, args: &Squash) -> Result<Exit, CliError> {
    let store = context.store()?;
    let remove = |dry_run| session::squash(&store, &args.range, dry_run);
    removal(context, args.removing, args.json, &remove)
}

fn removal(
    context: &Context,
    removing: Removing,
    json: Json,
    remove: &dyn Fn(bool) -> Result<Pruning, SessionError>,
) -> Result<Exit, CliError> {
    if !removing.dry_run && !removing.yes {
        let planned = remove(true)?;
        if planned.removed > 0 {
            confirm(context, &planned)?;
        }
    }
    let done = remove(removing.dry_run)?;
    for note in &done.notes {
        context.tell(&clean(note));
    }
    context.print(json, &done, |out, _| write(out, &done))?;
    Ok(Exit::Done)
}

fn confirm(context: &Context, planned: &Pruning) -> Result<(), CliError> {
    let what = format!(
        "{} of {}",
        count(planned.removed, "snapshot"),
        planned.removed + planned.kept
    );
    let question = format!(
        "Remove {what}, {} of {}?",
        bytes(planned.bytes_before.saturating_sub(planned.bytes_after)),
        bytes(planned.bytes_before)
    );
    match context.ask(&question) {
        Some(true) => Ok(()),
        Some(false) => Err(CliError::Declined),
        None => Err(CliError::Refused(format!(
            "this removes {what}, and there is no terminal to ask on: confirm with -y, or look first with --dry-run"
        ))),
    }
}

fn write(out: &mut dyn Write, done: &Pruning) -> io::Result<()> {
    for session in &done.sessions {
        write_session(out, session, done.dry_run)?;
    }
    let (verb, now) = match done.dry_run {
        true => ("would remove", "would take"),
        false => ("removed", "take"),
    };
    writeln!(
        out,
        "{verb} {}; the {} kept {now} {}, before {}",
        count(done.removed, "snapshot"),
        done.kept,
        bytes(done.bytes_after),
        bytes(done.bytes_before),
    )?;
    for (freed, what) in [
        (done.flat_freed, "flat images that nobody used"),
        (
            done.received_freed,
            "pages of transfers that were broken off long ago",
        ),
    ] {
        if freed > 0 {
            writeln!(out, "{verb} {} of {what}", bytes(freed))?;
        }
    }
    Ok(())
}

fn write_session(out: &mut dyn Write, session: &PrunedSession, dry_run: bool) -> io::Result<()> {
    write!(
        out,
        "process {} ({}), session {}:",
        session.pid,
        clean(&session.comm),
        &session.session[..12]
    )?;
    let mut ranges: Vec<(u32, u32)> = Vec::new();
    for gone in &session.removed {
        match ranges.last_mut() {
            Some(range) if range.1 + 1 == gone.seq => range.1 = gone.seq,
            _ => ranges.push((gone.seq, gone.seq)),
        }
    }
    for (first, last) in ranges {
        match first == last {
            true => write!(out, " @{first}")?,
            false => write!(out, " @{first}–@{last}")?,
        }
    }
    if session.whole_session {
        write!(out, ", the whole session")?;
    }
    if !dry_run && session.merged_pages > 0 {
        write!(out, ", {} merged", count(session.merged_pages, "page"))?;
    }
    if session.by_watcher {
        write!(out, " (by its watcher)")?;
    }
    writeln!(out)
}
