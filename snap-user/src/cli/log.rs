//! `ksnap log`

use super::args::Log;
use super::context::{Context, stdout, write_json};
use super::exit::{CliError, Exit};
use super::render;
use crate::session;
use std::io::Write;

/// Lists snapshots; with `--json` one object a line.
pub fn log(context: &Context, args: &Log) -> Result<Exit, CliError> {
    let entries = session::log(&context.store()?, args.pid, args.last)?;
    let sealed = session::sealed_note(&context.store()?)?;
    if let Some(note) = &sealed {
        context.note(note);
    }
    let mut out = stdout();
    if args.json.json {
        entries
            .iter()
            .try_for_each(|entry| write_json(&mut out, entry))?;
    } else if entries.is_empty() {
        let whose = args
            .pid
            .map_or(String::new(), |pid| format!(" of process {pid}"));
        // Those that the note counts may be of any process.
        context.tell(&match sealed {
            Some(_) => format!("no snapshots{whose} that can be read without the key"),
            None => format!("no snapshots{whose} yet"),
        });
    } else {
        render::log::write(&mut out, context.out_style(), &entries, args.graph)?;
    }
    out.flush()?;
    Ok(Exit::Done)
}
