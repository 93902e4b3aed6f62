//! `ksnap key`

use super::args::{Key, KeyVerb};
use super::context::Context;
use super::exit::{CliError, Exit};
use super::render::human::clean;
use crate::session;

/// Shows, trusts, forgets and lists keys.
pub fn key(context: &Context, args: &Key) -> Result<Exit, CliError> {
    match &args.what {
        KeyVerb::Show(args) => {
            let own = session::own_key()?;
            if own.made {
                context.note(&format!(
                    "there was no key: a new pair was made in {}",
                    own.folder.display()
                ));
            }
            context.print(args.json, &own, |out, _| writeln!(out, "{}", own.key))?;
        }
        KeyVerb::Trust(args) => {
            let key = session::trust_key(&args.key, args.name.as_deref())?;
            context.print(args.json, &key, |out, _| {
                writeln!(out, "trusted: {}", line(&key))
            })?;
        }
        KeyVerb::Forget(args) => session::forget_key(&args.which)?,
        KeyVerb::List(args) => {
            let all = session::trusted_keys()?;
            context.print(args.json, &all, |out, _| {
                all.iter()
                    .try_for_each(|key| writeln!(out, "{}", line(key)))
            })?;
        }
    }
    Ok(Exit::Done)
}

fn line(key: &session::KeyEntry) -> String {
    format!("{}  {}", key.key, clean(&key.name))
        .trim_end()
        .to_owned()
}
