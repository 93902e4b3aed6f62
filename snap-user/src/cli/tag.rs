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
        if tags.iter().any(|tag| tag.id.is_some() && tag.seq.is_none())
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
        true => {
            let was = tag.id.map_or("damaged".into(), |id| id.short());
            writeln!(out, "{} is no tag any more; it was {was}", tag.name)
        }
        false => write(out, &tag),
    })?;
    Ok(Exit::Done)
}

fn write(out: &mut dyn Write, tag: &TagEntry) -> io::Result<()> {
    let id = tag.id.map_or("damaged".into(), |id| id.short());
    write!(out, "{}  {id}", clean(&tag.name))?;
    if let (Some(seq), Some(time), Some(pid), Some(comm)) =
        (tag.seq, tag.time_ns, tag.pid, &tag.comm)
    {
        write!(out, "  @{seq}  {}  {pid} {}", utc(time), clean(comm))?;
    }
    writeln!(out)
}
