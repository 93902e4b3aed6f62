//! `ksnap profile`

use super::args::{Live, Profile, When};
use super::context::Context;
use super::exit::{CliError, Exit};
use super::reporter::Reporter;
use crate::profile::Recorder;
use crate::session::{self, Ended, Progress, Schedule};

/// Takes snapshots of a process for a while, and tells what they cost it.
pub fn profile(context: &Context, args: &Profile) -> Result<Exit, CliError> {
    let schedule = Schedule {
        every: args.every,
        count: None,
        lasting: Some(args.lasting),
    };
    let live = Live {
        progress: When::Auto,
    };
    let mut reporter = Reporter::new(context, live, false, false);
    let mut recorder = Recorder::new();
    let summary = session::watch(
        &context.store()?,
        args.pid,
        &schedule,
        &args.taking.options(),
        &mut |progress| {
            reporter.report(progress);
            if let Progress::Taken(taken) = progress {
                recorder.snapshot(&taken.costs);
            }
        },
    )?;
    recorder.elapsed(summary.lasted.as_nanos() as u64);
    let exit = reporter.finish(Some(args.pid), &summary);
    let report = recorder.report(&[]);
    context.print(args.json, &report, |out, _| {
        out.write_all(report.text().as_bytes())
    })?;
    // What was measured until Ctrl-C is what the user wanted to see.
    Ok(match summary.ended {
        Ended::Interrupted if summary.taken > 0 => Exit::Done,
        _ => exit,
    })
}
