//! Who may read what is stored: the keys that the user names, and what there is to say of sealed sessions.

use super::{Result, control};
use crate::store::{Identities, Keys, Recipients, SealedSession, Store, StoreError};
use crate::sys::proc;
use std::path::Path;

/// Has everything that this process does from now on read sealed sessions with the keys in a file, and seal the sessions
/// that it begins for these recipients: keys, or files with keys.
///
/// # Errors
/// What was named and is no key, or cannot be read.
pub fn use_keys(identity: Option<&Path>, encrypt_to: &[String]) -> Result<()> {
    if identity.is_none() && encrypt_to.is_empty() {
        return Ok(());
    }
    let identities = match identity {
        Some(path) => Identities::read(path)?,
        None => Identities::default(),
    };
    let keys = Keys::new(identities, Recipients::parse(encrypt_to)?);
    Ok(Keys::set_for_process(keys)?)
}

fn count(sessions: usize) -> String {
    match sessions {
        1 => "a sealed session".into(),
        n => format!("{n} sealed sessions"),
    }
}

/// What to do about sessions that cannot be read.
fn way(closed: &[SealedSession]) -> &'static str {
    way_in(closed.iter().any(|session| session.wrong_key))
}

/// What to do about what is sealed: a key was named, and is the wrong one, or none was.
pub(super) fn way_in(wrong_key: bool) -> &'static str {
    match wrong_key {
        true => "none of the keys in the file of --identity opens it",
        false => "name the file with the key with --identity FILE, or in KSNAP_IDENTITY",
    }
}

/// What a listing leaves out.
pub(super) fn left_out(store: &Store) -> Result<Option<String>> {
    let closed = store.sealed_sessions()?;
    let snapshots: usize = closed.iter().map(|session| session.snapshots.len()).sum();
    let snapshots = match snapshots {
        1 => "1 snapshot".into(),
        n => format!("{n} snapshots"),
    };
    let are = if closed.len() == 1 { "is" } else { "are" };
    Ok((!closed.is_empty()).then(|| {
        format!(
            "{} with {snapshots} cannot be read and {are} left out: {}",
            count(closed.len()),
            way(&closed)
        )
    }))
}

/// What a listing of a store leaves out because it is sealed; a sentence.
pub fn sealed_note(dir: &Path) -> Result<Option<String>> {
    left_out(&Store::open(dir)?)
}

/// An error where something of a process was asked for that is not there, and may be in a session that cannot be read.
pub(super) fn may_be_sealed(store: &Store, pid: i32) -> Result<()> {
    match store.sealed_sessions()?.first() {
        None => Ok(()),
        Some(session) => Err(session
            .error(format!(
                "session {}, which may be of process {pid},",
                session.id
            ))
            .into()),
    }
}

/// What there is to say before snapshots are taken of these processes: where they go on in none of the sessions that
/// they have, or what is stored is plain though earlier snapshots are sealed. Sentences.
pub fn sealing_notes(dir: &Path, pids: &[i32]) -> Result<Vec<String>> {
    let store = match Store::open(dir) {
        Err(StoreError::NoStore { .. }) => return Ok(Vec::new()),
        opened => opened?,
    };
    let mut notes = Vec::new();
    let closed = store.sealed_sessions()?;
    if !closed.is_empty() {
        let stored = match store.seals() {
            true => "sealed",
            false => "not sealed: --encrypt-to seals it",
        };
        notes.push(format!(
            "{} cannot be read: {}; an earlier session of the process may be among them, so a new one begins, which is {stored}",
            count(closed.len()),
            way(&closed)
        ));
    }
    if !store.seals() {
        return Ok(notes);
    }
    let sessions = store.sessions()?;
    for &pid in pids {
        // The watcher goes on in its own.
        if matches!(control::connect(dir, pid), Ok(Some(_))) {
            continue;
        }
        let Ok(stat) = proc::stat(pid, None) else {
            continue;
        };
        let mut own = sessions
            .iter()
            .filter(|(_, info)| info.is_of(pid, stat.start_time));
        if own.clone().next().is_some() && !own.any(|(_, info)| info.fits(&store)) {
            notes.push(format!(
                "earlier snapshots of process {pid} are not sealed for these keys and stay as they are: a new session begins"
            ));
        }
    }
    Ok(notes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::describe_store;
    use crate::store::{Disk, SessionInfo};
    use std::sync::Arc;

    /// Made for this test; nothing else is encrypted to it.
    const KEY: &str = "age1xm0d7wknmguj4wuaw6jzhyn9sjf4ggk7d90fh9q75na9ry78e5ms2nmgj2";

    #[test]
    fn what_is_left_out_of_the_description_of_a_store_is_counted() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path();
        let recipients = Recipients::parse(&[KEY.to_owned()]).unwrap();
        let keys = Keys::new(Identities::default(), recipients);
        let store = Store::open_or_create_with_keys(Arc::new(Disk), keys, dir).unwrap();
        assert_eq!(
            describe_store(dir, dir).unwrap().notes,
            Vec::<String>::new()
        );
        for (snapshots, said) in [
            (
                1,
                "a sealed session with 1 snapshot cannot be read and is left out: ",
            ),
            (
                2,
                "2 sealed sessions with 3 snapshots cannot be read and are left out: ",
            ),
        ] {
            let session = store.create_session(&SessionInfo::default()).unwrap();
            let inside = dir.join(session.id().to_string());
            for n in 1..=snapshots {
                let id = format!("{n:032x}");
                std::fs::write(inside.join(format!("{n:08}-{id}.ksnap")), "").unwrap();
            }
            let described = describe_store(dir, dir).unwrap();
            assert_eq!((described.sessions, described.snapshots), (0, 0));
            let notes = described.notes;
            assert!(notes.len() == 1 && notes[0].starts_with(said), "{notes:?}");
        }
    }
}
