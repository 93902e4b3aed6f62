//! `ksnap tag`

use super::args::Tag;
use super::context::Context;
use super::exit::{CliError, Exit};
use super::render::human::{clean, utc};
use crate::session::{self, TagEntry};
use std::io::{self, Write};

/// Lists names, gives one, or takes one away.
pub fn tag(context: &Context, args: &Tag) -> Result<Exit, CliError> {
    let store = context.store()?;
    let Some(name) = &args.name else {
        let tags = session::tags(&store)?;
        if tags.iter().any(|tag| tag.seq.is_none())
            && let Some(note) = session::sealed_note(&store)?
        {
            context.note(&note);
        }
        context.print(args.json, &tags, |out, _| {
            tags.iter().try_for_each(|tag| write(out, tag))
        })?;
        if tags.is_empty() && !args.json.json {
            context.tell("no tags yet");
        }
        return Ok(Exit::Done);
    };
    let tag = match args.delete {
        true => session::delete_tag(&store, name)?,
        false => session::set_tag(&store, name, &args.reference, args.force)?,
    };
    context.print(args.json, &tag, |out, _| match args.delete {
        true => writeln!(
            out,
            "{} is no tag any more; it was {}",
            tag.name,
            tag.id.short()
        ),
        false => write(out, &tag),
    })?;
    Ok(Exit::Done)
}

fn write(out: &mut dyn Write, tag: &TagEntry) -> io::Result<()> {
    write!(out, "{}  {}", tag.name, tag.id.short())?;
    if let (Some(seq), Some(time), Some(pid), Some(comm)) =
        (tag.seq, tag.time_ns, tag.pid, &tag.comm)
    {
        write!(out, "  @{seq}  {}  {pid} {}", utc(time), clean(comm))?;
    }
    writeln!(out)
}
