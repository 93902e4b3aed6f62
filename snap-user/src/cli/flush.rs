//! `ksnap flush`, and what a watch in memory does when the power fails.

use super::args::Flush;
use super::context::Context;
use super::exit::{CliError, Exit};
use super::render;
use super::render::human::{bytes, clean, count};
use super::status::Status;
use crate::session::{self, FlushDone, FlushPlan, SessionError, ram_dir};
use std::io::{self, IsTerminal};

/// Writes what lies in memory to the disk.
pub fn flush(context: &Context, args: &Flush) -> Result<Exit, CliError> {
    let to = match &args.to {
        Some(to) => to.clone(),
        None => context.disk()?,
    };
    // How long it takes is said before, or asked for.
    let measured = args.dry_run || !context.is_quiet();
    let plan = session::plan_flush(&ram_dir()?, &to, measured)?;
    if args.dry_run {
        context.print(args.json, &plan, |out, _| render::flush::plan(out, &plan))?;
        for note in &plan.notes {
            context.complain(&clean(note));
        }
        return Ok(Exit::Done);
    }
    let done = carry_out(context, &plan)?;
    context.print(args.json, &done, |out, _| render::flush::done(out, &done))?;
    Ok(match done.notes.is_empty() {
        true => Exit::Done,
        false => Exit::Incomplete,
    })
}

/// A watch in memory was told to end: what it has taken goes to the disk before it does.
pub fn at_the_end(context: &Context) -> Result<(), CliError> {
    let plan = session::plan_flush(&ram_dir()?, &context.disk()?, false)?;
    let done = carry_out(context, &plan)?;
    context.tell(&render::flush::summary(&done));
    match done.notes.is_empty() {
        true => Ok(()),
        false => Err(CliError::Session(SessionError::Usage(
            "not everything that lies in memory was written to the disk: see above".into(),
        ))),
    }
}

fn carry_out(context: &Context, plan: &FlushPlan) -> Result<FlushDone, SessionError> {
    if plan.snapshots > 0 {
        context.tell(&render::flush::expectation(plan));
    }
    let mut status = Status::new(io::stderr().is_terminal() && !context.is_quiet());
    let (of_all, all) = (count(plan.snapshots, "snapshot"), bytes(plan.bytes));
    let done = session::flush(plan, &mut |snapshots, written| {
        status.update(&format!(
            "{snapshots} of {of_all}, {} of {all} on the disk",
            bytes(written)
        ));
    });
    drop(status);
    let notes = match &done {
        Ok(done) => &done.notes,
        Err(failed) => &failed.notes,
    };
    for note in notes {
        context.complain(&clean(note));
    }
    done.map_err(|failed| failed.error)
}
