//! `ksnap inspect`

use super::args::Inspect;
use super::context::Context;
use super::exit::{CliError, Exit};
use super::render::inspection;
use crate::session;

/// Says what of a process can be brought back.
pub fn inspect(context: &Context, args: &Inspect) -> Result<Exit, CliError> {
    if args.tree {
        let found = session::inspect_tree(args.pid)?;
        context.print(args.json, &found, |out, style| {
            for (at, one) in found.iter().enumerate() {
                if at > 0 {
                    writeln!(out)?;
                }
                inspection::write(out, style, one)?;
            }
            Ok(())
        })?;
        return Ok(match found.iter().all(|one| one.unsupported.is_empty()) {
            true => Exit::Done,
            false => Exit::Incomplete,
        });
    }
    let found = session::inspect(args.pid)?;
    context.print(args.json, &found, |out, style| {
        inspection::write(out, style, &found)
    })?;
    Ok(match found.unsupported.is_empty() {
        true => Exit::Done,
        false => Exit::Incomplete,
    })
}
