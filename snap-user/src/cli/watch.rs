//! `ksnap run` and `ksnap watch`

use super::args::{Run, Watch};
use super::context::Context;
use super::exit::{CliError, Exit};
use super::flush;
use super::keys;
use super::reporter::Reporter;
use crate::session::{self, Ended, Filling, Options, Progress, SessionError, Unwatched};
use std::process::ExitStatus;

/// Watches processes until the schedule ends, they end, or Ctrl-C.
pub fn watch(context: &Context, args: &Watch) -> Result<Exit, CliError> {
    let several = args.pids.iter().any(|pid| *pid != args.pids[0]);
    let reporter = Reporter::new(context, args.watching.live, args.json.json, false);
    let mut reporter = reporter.of_several(several);
    refuse_in_memory(context, args.tree)?;
    let pids = processes(args)?;
    let filling = Filling::Processes(&pids);
    let (store, keep) = context.store_to_fill(filling, args.watching.keeping.rules())?;
    keys::tell(context, &store, &pids)?;
    let mut all = session::watch(
        &store,
        &args.pids,
        &args.watching.when.schedule(),
        &Options {
            keep,
            bounded: context.is_in_memory(),
            tree: args.tree,
            ..args.watching.taking.options()
        },
        &mut |pid, progress| reporter.report(pid, progress),
    )?;
    let told_to_end = |one: &session::Watched| {
        let summary = one.outcome.as_ref();
        summary.is_ok_and(|summary| summary.ended == Ended::Terminated)
    };
    let flushed = match context.is_in_memory() && all.iter().any(told_to_end) {
        true => flush::at_the_end(context),
        false => Ok(()),
    };
    let exit = match several {
        true => reporter.finish_all(&all),
        false => {
            let one = all.remove(0);
            reporter.finish(Some(one.pid), &one.outcome?)
        }
    };
    flushed.map(|()| exit)
}

/// A store in memory is kept from filling up by dropping the oldest snapshots of each process, and those of a tree stay
/// for as long as the tree does.
fn refuse_in_memory(context: &Context, tree: bool) -> Result<(), CliError> {
    match tree && context.is_in_memory() {
        true => Err(CliError::Refused(
            "a tree is watched in a store on a disk only: leave --ram out, and bound what is kept with --keep or \
             --keep-last"
                .into(),
        )),
        false => Ok(()),
    }
}

/// Whose snapshots are going to be in the store.
fn processes(args: &Watch) -> Result<Vec<i32>, CliError> {
    if !args.tree {
        return Ok(args.pids.clone());
    }
    let mut all = Vec::new();
    for pid in &args.pids {
        all.extend(session::look_at_tree(*pid)?);
    }
    Ok(all)
}

/// Starts a command under snapshots, and ends as it does, unless it went well and an audit found that ksnap did not.
pub fn run(context: &Context, args: &Run) -> Result<Exit, CliError> {
    let mut reporter = Reporter::new(context, args.watching.live, false, true);
    let mut pid = 0;
    refuse_in_memory(context, args.tree)?;
    let (store, keep) =
        context.store_to_fill(Filling::Processes(&[]), args.watching.keeping.rules())?;
    let (outcome, status) = session::run(
        &store,
        &args.command,
        &args.watching.when.schedule(),
        &Options {
            keep,
            bounded: context.is_in_memory(),
            tree: args.tree,
            ..args.watching.taking.options()
        },
        &mut |progress| {
            if let Progress::Attached { pid: of, .. } = progress {
                pid = *of;
            }
            reporter.report(pid, progress);
        },
        // Before the command ends, which may take as long as it likes.
        &mut |outcome| match outcome {
            Unwatched::Over(summary) => {
                if context.is_in_memory()
                    && summary.ended == Ended::Terminated
                    && let Err(error) = flush::at_the_end(context)
                {
                    context.complain(&error);
                }
            }
            Unwatched::TooShort => {
                context.note(
                    "the command ended before ksnap was attached: there is no snapshot of it",
                );
            }
            Unwatched::Failed(error) => {
                context.complain(error);
                context.note("the command goes on without snapshots");
            }
        },
    )?;
    if let Unwatched::Over(summary) = &outcome {
        reporter.finish(None, summary);
    }
    Ok(exit_of_run(&outcome, status))
}

fn exit_of_run(outcome: &Unwatched, status: ExitStatus) -> Exit {
    match (outcome, Exit::of_command(status)) {
        (Unwatched::Failed(error @ SessionError::Audit { .. }), Exit::Command(0)) => {
            error.trouble().into()
        }
        (_, exit) => exit,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;

    #[test]
    fn differences_that_an_audit_found_are_told_by_the_exit_code_of_run_unless_the_command_has_its_own()
     {
        let audit = || SessionError::Audit { pages: Vec::new() };
        let other = || SessionError::Usage("no".into());
        // Wait statuses: exit code in the second byte, signal in the first (wait(2)).
        for (error, raw, code) in [
            (audit(), 0, 1),
            (audit(), 7 << 8, 7),
            (audit(), 9, 137),
            // The command goes on without snapshots, which is said, and ends as it does.
            (other(), 0, 0),
        ] {
            let text = error.to_string();
            let exit = exit_of_run(&Unwatched::Failed(error), ExitStatus::from_raw(raw));
            assert_eq!(exit.code(), code, "{text} {raw}");
        }
        let short = exit_of_run(&Unwatched::TooShort, ExitStatus::from_raw(0));
        assert_eq!(short.code(), 0);
    }
}
