//! Sessions that a watch of a tree has begun, and whose processes have ended: once the rules have removed the trees that
//! they were in, nothing needs them any more.

use super::prune::{What, remove};
use super::{Result, SessionError};
use crate::image::SessionId;
use crate::model::SnapshotId;
use crate::store::{Store, StoreError};
use crate::sys::{renice, yield_io};
use std::collections::HashSet;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// From one look at them to the next.
const PAUSE: Duration = Duration::from_secs(5);
/// As for whoever keeps the sessions that are written.
const NICE: i32 = 19;

/// Removes those that no tree needs and nobody has named, on a thread of its own that comes after all others. Looks once
/// more on drop.
pub(super) struct Leftovers {
    sessions: Option<Sender<SessionId>>,
    thread: Option<JoinHandle<()>>,
}

impl Leftovers {
    pub(super) fn start(store: &Store) -> Self {
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
    let mut next = Instant::now() + PAUSE;
    loop {
        match left.recv_timeout(next.saturating_duration_since(Instant::now())) {
            Ok(session) => all.push(session),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return look(store, &mut all),
        }
        if Instant::now() >= next {
            look(store, &mut all);
            next = Instant::now() + PAUSE;
        }
    }
}

fn look(store: &Store, all: &mut Vec<SessionId>) {
    if all.is_empty() {
        return;
    }
    match store.named_or_in_trees() {
        Ok(needed) => all.retain(|one| stays(store, *one, &needed)),
        Err(e) => tracing::debug!("what trees need is not known: {e}"),
    }
}

/// Removes a session none of whose snapshots is needed; tells whether it is to be looked at again.
fn stays(store: &Store, session: SessionId, needed: &HashSet<SnapshotId>) -> bool {
    match remove_unneeded(store, session, needed) {
        Ok(stays) => stays,
        Err(SessionError::Store(StoreError::NotFound { .. })) => false,
        Err(e) => {
            tracing::debug!("session {session}: {e}");
            true
        }
    }
}

fn remove_unneeded(
    store: &Store,
    session: SessionId,
    needed: &HashSet<SnapshotId>,
) -> Result<bool> {
    // Others than its first process have gone on in it.
    if !store.session_info(session)?.continued.is_empty() {
        return Ok(false);
    }
    let list = store.list_session(session)?;
    if list.is_empty() {
        // Its process ended before anything was stored of it.
        store.open_session(session)?.abandon();
        return Ok(false);
    }
    if list.iter().any(|meta| needed.contains(&meta.id)) {
        return Ok(true);
    }
    // As a whole: nothing has to be merged for that.
    let all = list.iter().map(|meta| meta.id.to_string()).collect();
    let done = remove(&store.pruner(session)?, &What::Snapshots(all), false)?;
    Ok(!done.whole_session)
}
