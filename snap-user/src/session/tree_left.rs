//! Sessions of processes that were in a watched tree and have ended: once the rules have removed the trees that they were
//! in, nothing needs them any more.

use super::prune::{What, remove};
use super::{Result, SessionError};
use crate::image::SessionId;
use crate::store::{Rules, Store, StoreError};
use crate::sys::{renice, yield_io};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

/// From one look at them to the next.
const PAUSE: Duration = Duration::from_secs(5);
/// As for whoever keeps the sessions that are written.
const NICE: i32 = 19;

/// Removes what no tree needs and nobody has named, on a thread of its own that comes after all others. Looks once more
/// on drop.
pub(super) struct Leftovers {
    sessions: Option<Sender<SessionId>>,
    thread: Option<JoinHandle<()>>,
}

impl Leftovers {
    /// Without rules everything is kept.
    pub(super) fn start(store: &Store, rules: &Rules) -> Self {
        if rules.is_empty() {
            return Self {
                sessions: None,
                thread: None,
            };
        }
        let (sessions, left) = channel();
        let store = store.clone();
        let work = move || {
            renice(NICE);
            yield_io();
            keep(&store, &left);
        };
        let started = std::thread::Builder::new()
            .name("ksnap-keep-left".into())
            .spawn(work);
        let thread = started.inspect_err(|e| {
            tracing::warn!("snapshots of processes that end are kept: no thread: {e}");
        });
        Self {
            sessions: Some(sessions),
            thread: thread.ok(),
        }
    }

    /// The process of this session has ended.
    pub(super) fn add(&self, session: SessionId) {
        if let Some(sessions) = &self.sessions {
            // If its thread has died, snapshots are kept rather than lost.
            let _ = sessions.send(session);
        }
    }
}

impl Drop for Leftovers {
    fn drop(&mut self) {
        self.sessions = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn keep(store: &Store, left: &Receiver<SessionId>) {
    let mut all = Vec::new();
    loop {
        match left.recv_timeout(PAUSE) {
            Ok(session) => all.push(session),
            Err(RecvTimeoutError::Timeout) => all.retain(|one| stays(store, *one)),
            Err(RecvTimeoutError::Disconnected) => {
                all.retain(|one| stays(store, *one));
                return;
            }
        }
    }
}

/// Removes what nothing needs, and tells whether anything stays.
fn stays(store: &Store, session: SessionId) -> bool {
    match remove_unneeded(store, session) {
        Ok(stays) => stays,
        Err(SessionError::Store(StoreError::NotFound { .. })) => false,
        Err(e) => {
            tracing::debug!("session {session}: {e}");
            true
        }
    }
}

fn remove_unneeded(store: &Store, session: SessionId) -> Result<bool> {
    let pruner = store.pruner(session)?;
    let list = pruner.snapshots()?;
    let needed = pruner.protected(&list)?;
    let unneeded = list.iter().filter(|meta| !needed.contains(&meta.id));
    let unneeded: Vec<String> = unneeded.map(|meta| meta.id.to_string()).collect();
    if unneeded.is_empty() {
        return Ok(!list.is_empty());
    }
    let done = remove(&pruner, &What::Snapshots(unneeded), false)?;
    Ok(!done.whole_session)
}
