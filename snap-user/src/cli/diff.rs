//! `ksnap diff`

use super::args::Diff;
use super::context::Context;
use super::exit::{CliError, Exit};
use super::render;
use crate::session;

/// Compares two snapshots. Ends with 0 whether they differ or not: a difference is the usual case.
pub fn diff(context: &Context, args: &Diff) -> Result<Exit, CliError> {
    let diff = session::diff(&context.store()?, &args.a, &args.b)?;
    context.print(args.json, &diff, |out, style| {
        render::diff::write(out, style, &diff)
    })?;
    Ok(Exit::Done)
}
