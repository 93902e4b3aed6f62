//! `ksnap serve`

use super::args::Serve;
use super::context::{Context, stdout, write_json};
use super::exit::{CliError, Exit};
use super::render::cloned;
use crate::session::{self, Filling, Rules, Served};
use std::io::Write;

/// Serves until it is interrupted.
pub fn serve(context: &Context, args: &Serve) -> Result<Exit, CliError> {
    let mut failed = None;
    let mut report = |served: &Served| {
        if let Served::Note { what } = served {
            return context.note(what);
        }
        let mut out = stdout();
        let written = match args.json.json {
            true => write_json(&mut out, served),
            false => writeln!(out, "{}", cloned::served(served)),
        };
        if let Err(e) = written.and_then(|()| out.flush()) {
            failed.get_or_insert(e);
        }
        drop(out);
        if let Served::Listening { trusted: 0, .. } = served {
            context.tell("no key is trusted yet, so nobody can connect: `ksnap key trust` the other machine's");
        }
    };
    // What comes is kept; where the store is in memory, room is made for it before.
    let ram = context.ram_to_fill(Filling::Processes(&[]), Rules::default())?;
    let ram = ram.map(|(ram, _)| ram);
    let store = match &ram {
        Some(ram) => ram.dir.clone(),
        None => context.disk()?,
    };
    let listen = args.listen.as_deref();
    session::serve(&store, ram, listen, args.timeout, &mut report)?;
    match failed {
        // Who reads what is printed may go; those who connect come nevertheless.
        Some(e) if e.kind() != std::io::ErrorKind::BrokenPipe => Err(e.into()),
        _ => Ok(Exit::Done),
    }
}
