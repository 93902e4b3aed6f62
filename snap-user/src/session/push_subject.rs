//! What `push` takes from the store: a snapshot of a process or those of a tree, and for whom it is sealed there.

use super::{Result, SessionError};
use crate::bucket::{About, Kin, PlacedKey, SnapshotName};
use crate::image::{Manifest, SessionId};
use crate::model::ProcessTree;
use crate::store::{Recipients, Snapshot, Store};

/// What is pushed as one: a process, or all of a tree.
pub(super) struct Subject {
    /// How they belong together, if they are several.
    pub(super) tree: Option<ProcessTree>,
    /// The first process first.
    pub(super) members: Vec<Part>,
    /// The public keys that it is sealed for in the store; none: it is plain there.
    sealed_for: Vec<String>,
}

/// A process that is pushed.
pub(super) struct Part {
    pub(super) snapshot: Snapshot,
    pub(super) manifest: Manifest,
}

impl Subject {
    pub(super) fn find(store: &Store, reference: &str) -> Result<Self> {
        let id = store.resolve(reference, None)?;
        // A process that was captured alone with its descendants, of which there were none, is one process.
        let tree = store
            .tree(id)?
            .filter(|tree| tree.members.len() > 1 || !tree.zombies.is_empty());
        let ids = match &tree {
            Some(tree) => tree.members.iter().map(|member| member.id).collect(),
            None => vec![id],
        };
        let (mut members, mut sealed_for) = (Vec::with_capacity(ids.len()), None);
        for id in ids {
            let snapshot = store.snapshot(id)?;
            let keys = sealed_for_in(store, snapshot.header().session)?;
            if sealed_for.get_or_insert_with(|| keys.clone()) != &keys && !store.seals() {
                return Err(SessionError::Usage(format!(
                    "not all processes of {reference} are sealed for the same keys: name those that it is to be sealed for with --encrypt-to"
                )));
            }
            let manifest = snapshot.manifest()?;
            members.push(Part { snapshot, manifest });
        }
        Ok(Self {
            tree,
            members,
            sealed_for: sealed_for.unwrap_or_default(),
        })
    }

    /// For whom it is to be sealed: for whom the user says, else for those for whom it is here. `None`: it is plain.
    pub(super) fn recipients(&self, store: &Store) -> Result<Option<Recipients>> {
        if store.seals() {
            return Ok(Some(store.keys().recipients().clone()));
        }
        match self.sealed_for.is_empty() {
            true => Ok(None),
            false => Ok(Some(Recipients::from_names(&self.sealed_for)?)),
        }
    }
}

/// The public keys that a session is sealed for.
fn sealed_for_in(store: &Store, session: SessionId) -> Result<Vec<String>> {
    if !store.is_sealed(session)? {
        return Ok(Vec::new());
    }
    let keys = store.session_info(session)?.recipients;
    // Never taken for plain.
    match keys.is_empty() && !store.seals() {
        false => Ok(keys),
        true => Err(SessionError::Usage(format!(
            "session {session} is sealed, and does not say for which keys: name those that it is to be sealed for with --encrypt-to"
        ))),
    }
}

impl Part {
    /// How its index is named, if it is pushed by itself, sealed with this key or plain.
    pub(super) fn name(&self, key: Option<&PlacedKey>) -> SnapshotName {
        let (header, comm) = (self.snapshot.header(), &self.manifest.state.comm);
        SnapshotName {
            time_ns: header.time_ns,
            kin: key.map_or_else(|| Kin::of(comm), |key| key.key.kin(comm)),
            session: header.session,
            id: header.id,
        }
    }

    pub(super) fn about(&self) -> About<'_> {
        let (header, state) = (self.snapshot.header(), &self.manifest.state);
        About {
            arch: header.arch as u16,
            id: header.id,
            session: header.session,
            time_ns: header.time_ns,
            pid: state.pid,
            comm: &state.comm,
            stop_ns: header.stop_ns,
        }
    }

    pub(super) fn state_bytes(&self) -> Result<Vec<u8>> {
        Manifest::encode(&self.manifest.state, &self.manifest.costs)
            .map_err(|e| SessionError::Remote(format!("the process state cannot be written: {e}")))
    }

    /// Addresses of its pages.
    pub(super) fn pages(&self) -> Result<Vec<u64>> {
        let table = self.snapshot.page_table()?;
        Ok(table.iter().map(|(addr, _)| addr).collect())
    }
}
