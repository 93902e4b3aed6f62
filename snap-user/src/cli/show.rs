//! `ksnap show`

use super::args::Show;
use super::context::Context;
use super::exit::{CliError, Exit};
use super::render;
use crate::session;

/// Describes a snapshot.
pub fn show(context: &Context, args: &Show) -> Result<Exit, CliError> {
    if context.is_about_the_store() {
        let store = session::describe_store(&context.store()?, &context.disk()?)?;
        for note in &store.notes {
            context.note(note);
        }
        context.print(args.json, &store, |out, _| {
            render::flush::store(out, &store)
        })?;
        return Ok(Exit::Done);
    }
    let shown = session::show(&context.store()?, &args.reference)?;
    context.print(args.json, &shown, |out, style| {
        render::show::write(out, style, &shown)
    })?;
    Ok(Exit::Done)
}
