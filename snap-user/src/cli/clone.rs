//! `ksnap clone`

use super::args;
use super::context::Context;
use super::exit::{CliError, Exit};
use super::render::{cloned, human::clean};
use crate::session::{self, Filling, Round, Rules};

/// Brings a snapshot or a process to another machine.
pub fn clone(context: &Context, args: &args::Clone) -> Result<Exit, CliError> {
    let mut options = args.options();
    let mut report = |round: &Round| context.tell(&cloned::round(round));
    let done = match process(&args.what) {
        Some(pid) => {
            let (store, keep) =
                context.store_to_fill(Filling::Processes(&[pid]), Rules::default())?;
            options.taking.keep = keep;
            session::clone_live(&store, pid, &args.host, &options, &mut report)?
        }
        None => {
            let store = context.store()?;
            session::clone_stored(&store, &args.what, &args.host, &options, &mut report)?
        }
    };
    context.print(args.json, &done, |out, _| {
        writeln!(out, "{}", cloned::cloned(&done))
    })?;
    for what in &done.unsupported {
        context.tell(&format!("not saved: {}", clean(what)));
    }
    let notes = done.running.iter().flat_map(|running| &running.notes);
    let mut differs = !done.unsupported.is_empty();
    for note in notes {
        context.tell(&format!("  {}", clean(note)));
        differs = true;
    }
    Ok(match differs {
        true => Exit::Incomplete,
        false => Exit::Done,
    })
}

/// A number is a process if one has it.
fn process(text: &str) -> Option<i32> {
    let pid = text.parse().ok().filter(|pid| *pid > 0)?;
    session::is_process(pid).then_some(pid)
}
