//! `ksnap export`

use super::args::Export;
use super::context::Context;
use super::exit::{CliError, Exit};
use super::render::human::{bytes, clean, count};
use crate::session;

/// Writes a snapshot in a form that other tools read.
pub fn export(context: &Context, args: &Export) -> Result<Exit, CliError> {
    let core = session::export_core(&context.store()?, &args.reference, &args.core, args.force)?;
    context.print(args.json, &core, |out, _| {
        writeln!(
            out,
            "{} (@{}): {} and {} in {}, {} of {} written",
            core.snapshot.id.short(),
            core.snapshot.seq,
            count(core.threads, "thread"),
            count(core.segments, "memory segment"),
            clean(&core.path.display().to_string()),
            bytes(core.written),
            bytes(core.bytes),
        )
    })?;
    Ok(Exit::Done)
}
