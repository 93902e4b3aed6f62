//! `--identity` and `--encrypt-to`: who may read what is stored.

use super::args::{Sealing, Verb};
use super::context::Context;
use super::exit::CliError;
use crate::session;
use std::path::Path;

/// What a verb says of who may read what it stores, if it stores snapshots.
fn sealing(verb: &Verb) -> Option<&Sealing> {
    let taking = match verb {
        Verb::Run(args) => &args.watching.taking,
        Verb::Watch(args) => &args.watching.taking,
        Verb::Snap(args) => &args.taking,
        Verb::Profile(args) => &args.taking,
        Verb::Clone(args) => &args.taking,
        Verb::Restore(args) if args.watch => &args.watching.taking,
        Verb::Serve(args) => return Some(&args.sealing),
        #[cfg(feature = "object-storage")]
        Verb::Push(args) => return Some(&args.sealing),
        #[cfg(feature = "object-storage")]
        Verb::Pull(args) => return Some(&args.sealing),
        _ => return None,
    };
    Some(&taking.sealing)
}

/// Has this process read and seal with the keys that the user has named.
pub fn use_keys(context: &Context, verb: &Verb) -> Result<(), CliError> {
    // They open no store.
    if let Verb::Completions(_) | Verb::Man(_) | Verb::Doctor(_) | Verb::Key(_) = verb {
        return Ok(());
    }
    if let Verb::Rollback(args) = verb
        && !args.taking.sealing.encrypt_to.is_empty()
    {
        return Err(CliError::Refused(
            "a rollback stores nothing that --encrypt-to could seal: leave it out".into(),
        ));
    }
    let recipients = match sealing(verb) {
        None => Vec::new(),
        Some(sealing) if sealing.encrypt_to.is_empty() => of_environment()?,
        Some(sealing) => sealing.encrypt_to.clone(),
    };
    Ok(session::use_keys(
        context.identity().as_deref(),
        &recipients,
    )?)
}

/// KSNAP_ENCRYPT_TO; an empty one counts as unset.
fn of_environment() -> Result<Vec<String>, CliError> {
    match std::env::var_os("KSNAP_ENCRYPT_TO") {
        None => Ok(Vec::new()),
        Some(value) if value.is_empty() => Ok(Vec::new()),
        // Not passed over: what was to be sealed would be stored in plain.
        Some(value) => match value.into_string() {
            Ok(value) => Ok(vec![value]),
            Err(value) => Err(CliError::Refused(format!(
                "KSNAP_ENCRYPT_TO is {value:?}, which is not text: it is a key, age1…, or the name of a file with such keys"
            ))),
        },
    }
}

/// Says what becomes of earlier sessions of these processes.
pub fn tell(context: &Context, store: &Path, pids: &[i32]) -> Result<(), CliError> {
    for note in session::sealing_notes(store, pids)? {
        context.note(&note);
    }
    Ok(())
}
