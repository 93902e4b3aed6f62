//! `ksnap run` and `ksnap watch`

use super::args::{Run, Watch};
use super::context::Context;
use super::exit::{CliError, Exit};
use super::reporter::Reporter;
use crate::session::{self, Options};

/// Watches a process until the schedule ends, it ends, or Ctrl-C.
pub fn watch(context: &Context, args: &Watch) -> Result<Exit, CliError> {
    let mut reporter = Reporter::new(context, args.live, args.json.json, false);
    let summary = session::watch(
        &context.store()?,
        args.pid,
        &args.when.schedule(),
        &Options {
            keep: args.keeping.rules(),
            ..args.taking.options()
        },
        &mut |progress| reporter.report(progress),
    )?;
    Ok(reporter.finish(Some(args.pid), &summary))
}

/// Starts a command under snapshots, and ends as it does.
pub fn run(context: &Context, args: &Run) -> Result<Exit, CliError> {
    let mut reporter = Reporter::new(context, args.live, false, true);
    let (summary, status) = session::run(
        &context.store()?,
        &args.command,
        &args.when.schedule(),
        &Options {
            keep: args.keeping.rules(),
            ..args.taking.options()
        },
        &mut |progress| reporter.report(progress),
    )?;
    reporter.finish(None, &summary);
    Ok(Exit::of_command(status))
}
