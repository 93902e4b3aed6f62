//! `ksnap profile`

use super::args::{Live, Profile, When};
use super::context::Context;
use super::exit::{CliError, Exit};
use super::reporter::Reporter;
use crate::session::{self, Ended, Filling, Options, Rules, Schedule};
use std::time::Duration;

/// From one snapshot to the next, unless said otherwise.
const EVERY: Duration = Duration::from_millis(100);

/// Takes snapshots of a process for a while, and tells what they cost it.
pub fn profile(context: &Context, args: &Profile) -> Result<Exit, CliError> {
    let schedule = Schedule {
        max_overhead: None,
        every: args.every.unwrap_or(EVERY),
        count: None,
        lasting: Some(args.lasting),
    };
    let live = Live {
        progress: When::Auto,
    };
    let mut reporter = Reporter::new(context, live, false, false);
    let filling = Filling::Processes(&[args.pid]);
    let (store, keep) = context.store_to_fill(filling, Rules::default())?;
    let taking = args.taking.options();
    let (report, summary) = session::profile(
        &store,
        args.pid,
        &schedule,
        &Options {
            keep,
            bounded: context.is_in_memory(),
            own: args.every.map(|_| "--every").or(taking.own),
            ..taking
        },
        &mut |progress| reporter.report(args.pid, progress),
    )?;
    let exit = match &summary {
        Some(summary) => reporter.finish(Some(args.pid), summary),
        None => Exit::Done,
    };
    context.print(args.json, &report, |out, _| {
        out.write_all(report.text().as_bytes())
    })?;
    // What was measured until Ctrl-C is what the user wanted to see.
    Ok(match summary {
        Some(summary)
            if matches!(summary.ended, Ended::Interrupted | Ended::Terminated)
                && summary.taken > 0 =>
        {
            Exit::Done
        }
        _ => exit,
    })
}
