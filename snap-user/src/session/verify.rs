//! Checks what is stored.

use super::SessionError;
use super::sealing::left_out;
use super::types::hex_option;
use crate::image::SessionId;
use crate::model::SnapshotId;
use crate::store::{Store, StoreError, marker_line};
use serde::Serialize;
use std::path::{Path, PathBuf};

/// What verification found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Verification {
    /// Everything was checked, and nothing is wrong.
    pub clean: bool,
    /// Snapshots checked.
    pub snapshots: u64,
    /// Pages decoded and compared with their checksums.
    pub pages: u64,
    /// Snapshots of which only the lengths of the files were checked: they are sealed, and the key is missing.
    pub unchecked: u64,
    /// What is worth knowing and does no harm, a sentence each.
    pub notes: Vec<String>,
    /// Everything that is wrong.
    pub problems: Vec<Damage>,
}

/// Something that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Damage {
    /// The snapshot that cannot be relied on; null for what belongs to no snapshot.
    #[serde(serialize_with = "hex_option")]
    pub id: Option<SnapshotId>,
    /// The file.
    pub path: PathBuf,
    /// What is wrong.
    pub what: String,
}

/// What was made anew.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Rebuilt {
    /// Sessions whose list of headers was made anew.
    pub sessions: u64,
    /// Snapshots in these lists.
    pub snapshots: u64,
    /// Sessions that were left alone, and why; a sentence each.
    pub notes: Vec<String>,
}

/// Makes the lists of headers, and descriptions of sessions that are damaged, anew from the snapshots alone. A session that is being written keeps its list, which
/// its writer looks after.
pub fn rebuild(store: &Path) -> Result<Rebuilt, SessionError> {
    let store = Store::open(store)?;
    let mut rebuilt = Rebuilt::default();
    rebuilt.notes.extend(left_out(&store)?);
    for id in store.session_ids()? {
        rebuilt.notes.extend(describe_again(&store, id));
    }
    for (id, _) in store.sessions()? {
        let done = store.pruner(id).and_then(|_lock| store.rebuild_headers(id));
        match done {
            Ok(snapshots) => {
                rebuilt.sessions += 1;
                rebuilt.snapshots += snapshots;
            }
            Err(error) => rebuilt.notes.push(format!("session {id}: {error}")),
        }
    }
    Ok(rebuilt)
}

/// Makes the description of a session anew where it is damaged; what there is to say of that.
fn describe_again(store: &Store, id: SessionId) -> Option<String> {
    let error = store.session_info(id).err()?;
    if !matches!(
        error,
        StoreError::Corrupt { .. } | StoreError::NotFound { .. }
    ) {
        return None;
    }
    let made = store
        .pruner(id)
        .and_then(|right| store.rebuild_description(&right));
    Some(match made {
        Ok(()) => format!(
            "the description of session {id} was made anew from its newest snapshot; its process goes on in a session of its own"
        ),
        Err(error) => format!("the description of session {id} is not made anew: {error}"),
    })
}

/// Checks one snapshot and the files it needs, or everything in the store. Damage is a result, not an error.
pub fn verify(store: &Path, reference: Option<&str>) -> Result<Verification, SessionError> {
    let store = match Store::open(store) {
        Err(StoreError::Corrupt { path, source }) => {
            // Nothing below it is looked at: who knows in which form it is.
            let what = format!(
                "damaged {source}; nothing else was checked: where this is a store of this ksnap, write the line \
                 `{}` into that file, and verify again",
                marker_line()
            );
            return Ok(Verification {
                problems: vec![Damage {
                    id: None,
                    path,
                    what,
                }],
                ..Verification::default()
            });
        }
        opened => opened?,
    };
    let only = match reference {
        None => None,
        // A snapshot whose header is damaged is in no listing; its whole name still finds it.
        Some(reference) => Some(match SnapshotId::from_hex(reference) {
            Some(id) => id,
            None => store.resolve(reference, None)?,
        }),
    };
    let report = store.verify(only)?;
    Ok(Verification {
        clean: report.is_clean() && report.unchecked == 0,
        snapshots: report.snapshots,
        pages: report.pages,
        unchecked: report.unchecked,
        notes: report.notes,
        problems: report
            .problems
            .into_iter()
            .map(|problem| Damage {
                id: problem.id,
                path: problem.path,
                what: problem.what,
            })
            .collect(),
    })
}
