//! `ksnap show`

use super::args::Show;
use super::context::Context;
use super::exit::{CliError, Exit};
use super::render;
use crate::session;

/// Describes a snapshot.
pub fn show(context: &Context, args: &Show) -> Result<Exit, CliError> {
    let shown = session::show(&context.store()?, &args.reference)?;
    context.print(args.json, &shown, |out, style| {
        render::show::write(out, style, &shown)
    })?;
    Ok(Exit::Done)
}
