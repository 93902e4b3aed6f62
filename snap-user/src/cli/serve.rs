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
    let (store, _) = context.store_to_fill(Filling::Processes(&[]), Rules::default())?;
    session::serve(&store, args.listen.as_deref(), args.timeout, &mut report)?;
    match failed {
        // Who reads what is printed may go; those who connect come nevertheless.
        Some(e) if e.kind() != std::io::ErrorKind::BrokenPipe => Err(e.into()),
        _ => Ok(Exit::Done),
    }
}
