//! `ksnap restore` and `ksnap fork`

use super::args::{Fork, Restore, Reviving};
use super::context::{Context, stdout, write_json};
use super::exit::{CliError, Exit};
use super::render::revived;
use super::reporter::Reporter;
use crate::session::{self, Filling, Options, Pids, ReviveOptions, Revived};
use std::io::Write;

/// Brings a snapshot back as a process.
pub fn restore(context: &Context, args: &Restore) -> Result<Exit, CliError> {
    let mut options = args
        .reviving
        .options(args.pids)
        .map_err(CliError::Refused)?;
    options.files.tcp = args.tcp;
    if args.watch {
        return restore_watched(context, args, &options);
    }
    let mut failed = None;
    let mut each = |one: &Revived| failed = say_of(context, args, one).err();
    let all = session::revive(&context.store()?, &args.reference, 1, &options, &mut each)?;
    if let Some(e) = failed {
        return Err(e);
    }
    match (args.wait, all.first()) {
        (true, Some(process)) => Ok(Exit::of_command(process.wait()?)),
        _ => Ok(exit(&all)),
    }
}

/// Brings a snapshot back as a process, and watches that.
fn restore_watched(
    context: &Context,
    args: &Restore,
    options: &ReviveOptions,
) -> Result<Exit, CliError> {
    let mut reporter = Reporter::new(context, args.watching.live, args.reviving.json.json, true);
    let mut failed = None;
    let filling = Filling::From(&args.reference);
    let (store, keep) = context.store_to_fill(filling, args.watching.keeping.rules())?;
    let taking = Options {
        keep,
        bounded: context.is_in_memory(),
        ..args.watching.taking.options()
    };
    let (process, summary) = session::revive_watched(
        &store,
        &args.reference,
        options,
        (&args.watching.when.schedule(), &taking),
        &mut |one| failed = say_of(context, args, one).err(),
        &mut |pid, progress| reporter.report(pid, progress),
    )?;
    let done = reporter.finish(Some(process.pid), &summary);
    if let Some(e) = failed {
        return Err(e);
    }
    Ok(match (args.wait, done) {
        (true, _) => Exit::of_command(process.wait()?),
        (false, Exit::Done) => exit(&[process]),
        (false, other) => other,
    })
}

/// Starts copies of a snapshot.
pub fn fork(context: &Context, args: &Fork) -> Result<Exit, CliError> {
    let mut options = args
        .reviving
        .options(args.pids)
        .map_err(CliError::Refused)?;
    options.pids.get_or_insert(Pids::Namespace);
    let mut failed = None;
    let mut each = |one: &Revived| {
        if let Err(e) = say(context, &args.reviving, one) {
            failed.get_or_insert(e);
        }
    };
    let store = context.store()?;
    let all = session::revive(&store, &args.reference, args.copies, &options, &mut each)?;
    if let Some(e) = failed {
        return Err(e);
    }
    Ok(exit(&all))
}

fn exit(all: &[Revived]) -> Exit {
    match all.iter().all(|one| one.notes.is_empty()) {
        true => Exit::Done,
        false => Exit::Incomplete,
    }
}

/// While ksnap waits for it, standard output is the program's, which writes there already.
fn say_of(context: &Context, args: &Restore, one: &Revived) -> Result<(), CliError> {
    if !args.wait || args.reviving.json.json {
        return say(context, &args.reviving, one);
    }
    context.tell(&revived::line(one));
    tell_notes(context, one);
    Ok(())
}

fn say(context: &Context, args: &Reviving, one: &Revived) -> Result<(), CliError> {
    let mut out = stdout();
    match args.json.json {
        true => write_json(&mut out, one)?,
        false => writeln!(out, "{}", revived::line(one))?,
    }
    out.flush()?;
    drop(out);
    tell_notes(context, one);
    Ok(())
}

fn tell_notes(context: &Context, one: &Revived) {
    for note in revived::notes(one) {
        context.tell(&note);
    }
}
