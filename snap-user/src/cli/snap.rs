//! `ksnap snap`

use super::args::Snap;
use super::context::Context;
use super::exit::{CliError, Exit};
use super::render::human::clean;
use super::render::taken;
use crate::session::{self, Options, Rules, Then};
use std::path::Path;

/// Takes one snapshot.
pub fn snap(context: &Context, args: &Snap) -> Result<Exit, CliError> {
    let (store, keep) = context.store_to_fill(&[args.pid], Rules::default())?;
    let options = Options {
        keep,
        then: match (args.kill, args.stop) {
            (true, _) => Then::Kill,
            (_, true) => Then::Stop,
            _ => Then::GoOn,
        },
        ..args.taking.options()
    };
    if args.tree {
        return tree(context, args, &store, &options);
    }
    if args.strict {
        session::refuse_incomplete(args.pid, options.probes)?;
    }
    let done = session::snap(&store, args.pid, &options)?;
    context.print(args.json, &done, |out, _| {
        writeln!(out, "{}", taken::taken(&done))
    })?;
    for what in &done.unsupported {
        context.tell(&format!("not saved: {}", clean(what)));
    }
    Ok(match done.unsupported.is_empty() {
        true => Exit::Done,
        false => Exit::Incomplete,
    })
}

/// Takes one snapshot of a process and all of its descendants.
fn tree(context: &Context, args: &Snap, store: &Path, options: &Options) -> Result<Exit, CliError> {
    if args.strict {
        session::refuse_incomplete_tree(args.pid, options.probes)?;
    }
    let done = session::snap_tree(store, args.pid, options)?;
    context.print(args.json, &done, |out, _| {
        taken::tree(&done)
            .iter()
            .try_for_each(|line| writeln!(out, "{line}"))
    })?;
    for what in &done.unsupported {
        context.tell(&format!("not saved: {}", clean(what)));
    }
    Ok(match done.unsupported.is_empty() {
        true => Exit::Done,
        false => Exit::Incomplete,
    })
}
