//! `ksnap snap`

use super::args::Snap;
use super::context::Context;
use super::exit::{CliError, Exit};
use super::render::human::clean;
use super::render::taken;
use crate::session;

/// Takes one snapshot.
pub fn snap(context: &Context, args: &Snap) -> Result<Exit, CliError> {
    if args.strict {
        session::refuse_incomplete(args.pid)?;
    }
    let done = session::snap(&context.store()?, args.pid, &args.taking.options())?;
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
