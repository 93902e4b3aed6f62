//! A session's description made anew, where it is damaged or lost.

use super::checked;
use super::directory::Store;
use super::error::StoreError;
use super::names::SESSION_FILE;
use super::pruner::Pruner;
use super::session::SessionInfo;
use super::text::publish_text;

impl Store {
    /// Makes the description of a session anew from its snapshots. It says no more which process the session is of, since
    /// that may have been one of another machine: no process goes on in it.
    ///
    /// # Errors
    /// It has no snapshot that can be read; or it is sealed, and for whom is known no more.
    pub fn rebuild_description(&self, right: &Pruner) -> Result<(), StoreError> {
        let session = right.session();
        if self.is_sealed(session)? {
            return Err(StoreError::Misuse {
                why: format!(
                    "the description of session {session} says for whom it is sealed, and cannot be made anew"
                ),
            });
        }
        let list = self.list_session(session)?;
        let (Some(first), Some(last)) = (list.first(), list.last()) else {
            return Err(StoreError::NotFound {
                what: format!("a readable snapshot of session {session}"),
            });
        };
        let state = self.snapshot(last.id)?.manifest()?.state;
        let words = state.cmdline.iter();
        let info = SessionInfo {
            pid: state.pid,
            comm: state.comm,
            exe: state.exe,
            cmdline: words
                .map(|word| String::from_utf8_lossy(word).into_owned())
                .collect(),
            created_ns: first.time_ns,
            ..SessionInfo::default()
        };
        let text = checked::encode(&info);
        publish_text(
            &*self.files,
            &self.session_path(session),
            SESSION_FILE,
            &text,
        )
    }
}
