//! `ksnap run` and `ksnap watch`

use super::args::{Run, Watch};
use super::context::Context;
use super::exit::{CliError, Exit};
use super::reporter::Reporter;
use crate::session::{self, Options, Progress};

/// Watches processes until the schedule ends, they end, or Ctrl-C.
pub fn watch(context: &Context, args: &Watch) -> Result<Exit, CliError> {
    let several = args.pids.iter().any(|pid| *pid != args.pids[0]);
    let reporter = Reporter::new(context, args.live, args.json.json, false);
    let mut reporter = reporter.of_several(several);
    let mut all = session::watch(
        &context.store()?,
        &args.pids,
        &args.when.schedule(),
        &Options {
            keep: args.keeping.rules(),
            ..args.taking.options()
        },
        &mut |pid, progress| reporter.report(pid, progress),
    )?;
    if several {
        return Ok(reporter.finish_all(&all));
    }
    let one = all.remove(0);
    Ok(reporter.finish(Some(one.pid), &one.outcome?))
}

/// Starts a command under snapshots, and ends as it does.
pub fn run(context: &Context, args: &Run) -> Result<Exit, CliError> {
    let mut reporter = Reporter::new(context, args.live, false, true);
    let mut pid = 0;
    let (summary, status) = session::run(
        &context.store()?,
        &args.command,
        &args.when.schedule(),
        &Options {
            keep: args.keeping.rules(),
            ..args.taking.options()
        },
        &mut |progress| {
            if let Progress::Attached { pid: of, .. } = progress {
                pid = *of;
            }
            reporter.report(pid, progress);
        },
    )?;
    reporter.finish(None, &summary);
    Ok(Exit::of_command(status))
}
