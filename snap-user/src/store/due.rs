//! What one store has and another one does not.

use super::directory::Store;
use super::error::StoreError;
use super::meta::SnapshotMeta;
use super::session::SessionInfo;
use crate::image::SessionId;

/// What a flush of a session has to copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Due {
    /// The session.
    pub session: SessionId,
    /// Its process.
    pub info: SessionInfo,
    /// Snapshots that the other store does not have.
    pub snapshots: u64,
    /// Bytes of their files, and of the session's pack, whose part that they need is written anew: about so many.
    pub bytes: u64,
    /// Time of the newest of them, nanoseconds since 1970.
    pub newest_ns: u64,
}

/// What a flush of a store has to copy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outstanding {
    /// Sessions with something to copy, the one with the newest snapshot first.
    pub sessions: Vec<Due>,
    /// Sessions that cannot be looked at, and why; a sentence each.
    pub notes: Vec<String>,
}

impl Store {
    /// What [`Store::flush_session`] would copy to the other store. Without another store: everything. A session that
    /// cannot be looked at does not keep the others from being copied.
    pub fn due(&self, to: Option<&Store>) -> Result<Outstanding, StoreError> {
        let mut all = Outstanding::default();
        for (session, info) in self.sessions()? {
            match self.due_of(session, &info, to) {
                Ok(due) => all.sessions.extend(due),
                Err(_) if self.is_session_gone(session) => {}
                Err(error) => all.notes.push(format!(
                    "session {session} of process {} was not written: {error}",
                    info.pid
                )),
            }
        }
        all.sessions
            .sort_by_key(|due| (std::cmp::Reverse(due.newest_ns), due.session));
        Ok(all)
    }

    fn due_of(
        &self,
        session: SessionId,
        info: &SessionInfo,
        to: Option<&Store>,
    ) -> Result<Option<Due>, StoreError> {
        let have = match to {
            Some(to) => to.session_files_if_there(session)?,
            None => None,
        };
        let have = have.map(|files| files.listing());
        let missing = self.list_session(session)?.into_iter().filter(|meta| {
            have.as_ref()
                .is_none_or(|have| !have.by_seq.contains_key(&meta.seq) && !have.is_gone(meta.seq))
        });
        let missing: Vec<SnapshotMeta> = missing.collect();
        if missing.is_empty() {
            return Ok(None);
        }
        let files = self.session_files(session)?.listing();
        let pack = files.pack.as_ref().map_or(0, |p| p.header.file_len());
        let sum: u64 = missing.iter().map(|meta| meta.file_bytes).sum();
        Ok(Some(Due {
            session,
            info: info.clone(),
            snapshots: missing.len() as u64,
            bytes: sum + pack,
            newest_ns: missing.iter().map(|meta| meta.time_ns).max().unwrap_or(0),
        }))
    }
}
