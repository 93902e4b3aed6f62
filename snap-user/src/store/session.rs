//! The one writer of a session.

use super::agreed::Shared;
use super::buffer::WriteBuffer;
use super::checked;
use super::common::Common;
use super::directory::Store;
use super::durability::{Durability, Unsynced, recover};
use super::earlier::Earlier;
use super::error::StoreError;
use super::files::{LockGuard, Locking};
use super::head::Head;
use super::headers::Headers;
use super::names::{self, COPIED, LOCK_FILE, SESSION_FILE, TEMP_PREFIX};
use super::pending::PendingSnapshot;
use super::pruner::Pruner;
use super::seal::KEY_FILE;
use super::stored::Stored;
use super::text::{publish_bytes, publish_text};
use crate::image::{Location, SessionId};
use crate::model::{PageTable, SnapshotId, SnapshotKind};
use serde::{Deserialize, Serialize};
use std::hash::{BuildHasher, RandomState};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

/// What a session says of the process that it watches.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SessionInfo {
    /// Process id.
    pub pid: i32,
    /// Start time in clock ticks since boot, to tell it from a later process with its pid.
    pub start_time: u64,
    /// Command name.
    pub comm: String,
    /// Path of the executable.
    pub exe: String,
    /// Arguments, for display.
    pub cmdline: Vec<String>,
    /// When the session began, nanoseconds since 1970; filled in by [`Store::create_session`] when 0.
    pub created_ns: u64,
    /// Processes that were brought back from snapshots of it and go on in it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub continued: Vec<Continuation>,
    /// The snapshot that was pulled from object storage into it, in hex digits.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub pulled: String,
    /// The public keys for which it is sealed; none where it is not.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub recipients: Vec<String>,
}

/// A process that was brought back from a snapshot, and whose own snapshots follow that one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Continuation {
    /// Process id.
    pub pid: i32,
    /// Start time in clock ticks since boot.
    pub start_time: u64,
    /// The snapshot, in hex digits.
    pub from: String,
    /// Sequence number from which snapshots may be its own.
    pub since: u32,
}

impl SessionInfo {
    /// It is the process that the session began with.
    pub fn began_with(&self, pid: i32, start_time: u64) -> bool {
        (self.pid, self.start_time) == (pid, start_time)
    }

    /// It is of this process: the session began with it, or it goes on in it.
    pub fn is_of(&self, pid: i32, start_time: u64) -> bool {
        self.began_with(pid, start_time) || self.continuation(pid, start_time).is_some()
    }

    /// What this process stores may go into it: it seals for the same keys, or for none, and then as the session was
    /// begun.
    pub fn fits(&self, store: &Store) -> bool {
        !store.seals() || self.recipients == store.recipients()
    }

    /// Where a process came in that goes on in the session.
    pub fn continuation(&self, pid: i32, start_time: u64) -> Option<&Continuation> {
        let same = |one: &&Continuation| (one.pid, one.start_time) == (pid, start_time);
        self.continued.iter().rev().find(same)
    }
}

/// First sequence number of a snapshot that is added to the copy of a session: its home goes on from where it was
/// copied, and what comes from there later must find its numbers free.
pub(super) const OWN_FROM: u32 = 2_000_000_000;

/// The right to add snapshots to a session.
///
/// Holds the session's lock until it is dropped, and the page table of the latest snapshot in memory, so that
/// writing never reads a file again. A snapshot may follow any earlier one: a rollback begins a branch.
#[derive(Debug)]
pub struct Session {
    pub(super) store: Store,
    pub(super) id: SessionId,
    pub(super) dir: PathBuf,
    pub(super) head: Option<Head>,
    pub(super) next_seq: u32,
    /// Lent to the snapshot being written.
    pub(super) buffer: WriteBuffer,
    pub(super) info: SessionInfo,
    pub(super) unsynced: Unsynced,
    /// What other sessions have that are written side by side.
    pub(super) common: Option<Arc<Common>>,
    /// What other sessions have stored.
    pub(super) earlier: Option<Arc<Mutex<Earlier>>>,
    /// What its own snapshots have stored.
    pub(super) stored: Stored,
    /// Shared with whoever removes snapshots of the session.
    pub(super) shared: Arc<Shared>,
    lock: Arc<LockGuard>,
}

pub(super) fn now_ns() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_nanos() as u64)
}

/// A name that no other session has: the process, the time, and 64 random bits.
fn fresh_id(info: &SessionInfo) -> SessionId {
    let mut hasher = blake3::Hasher::new();
    for number in [
        info.pid as u64,
        info.start_time,
        now_ns(),
        std::process::id().into(),
        RandomState::new().hash_one(info.created_ns),
    ] {
        hasher.update(&number.to_le_bytes());
    }
    SessionId(
        *hasher
            .finalize()
            .as_bytes()
            .first_chunk()
            .expect("a hash has 32 bytes"),
    )
}

impl Session {
    pub(super) fn create(store: &Store, info: &SessionInfo) -> Result<Self, StoreError> {
        let mut info = info.clone();
        if info.created_ns == 0 {
            info.created_ns = now_ns();
        }
        let id = fresh_id(&info);
        info.recipients = store.recipients();
        let key = store.keys.begin(id);
        let key = key.map_err(StoreError::io("make a key for", &store.session_path(id)))?;
        let lock = publish_folder(store, id, &info, key.as_deref(), false)?;
        let dir = store.session_path(id);
        Ok(Self {
            store: store.clone(),
            id,
            dir,
            head: None,
            next_seq: 1,
            buffer: WriteBuffer::default(),
            info,
            unsynced: Unsynced::default(),
            common: store.common_of(id)?,
            earlier: None,
            stored: Stored::default(),
            shared: Arc::default(),
            lock: Arc::new(lock),
        })
    }

    pub(super) fn open(store: &Store, id: SessionId) -> Result<Self, StoreError> {
        let info = store.session_info(id)?;
        if !info.fits(store) {
            return Err(StoreError::Misuse {
                why: format!(
                    "session {id} is not sealed for the keys of --encrypt-to; without that option it goes on as it was begun"
                ),
            });
        }
        let dir = store.session_path(id);
        let lock = lock(store, &dir)?;
        recover(store, id)?;
        store.remove_temps(id)?;
        let mut last = 0;
        let names = store
            .files
            .names(&dir)
            .map_err(StoreError::io("list", &dir))?;
        let copied = names.iter().any(|name| name == COPIED);
        for name in names {
            if let Some((seq, _)) = names::parse_snapshot_file(&name) {
                last = last.max(seq);
            }
        }
        // Numbers are not used twice, also not those of snapshots that are gone.
        let listing = store.session_files(id)?.listing();
        store.remove_orphans(&dir, &listing)?;
        if Headers::read(&*store.files, &dir).is_stale(listing.by_seq.len())
            && let Err(error) = store.rebuild_headers(id)
        {
            tracing::debug!("list of headers: {error}");
        }
        if let Some(pack) = &listing.pack {
            last = last.max(pack.absorbed().last().map_or(0, |range| range.1));
        }
        let next_seq = last.checked_add(1).ok_or_else(StoreError::session_full)?;
        let next_seq = match copied {
            true => next_seq.max(OWN_FROM),
            false => next_seq,
        };
        Ok(Self {
            store: store.clone(),
            id,
            dir,
            head: None,
            next_seq,
            buffer: WriteBuffer::default(),
            info,
            unsynced: Unsynced::default(),
            common: store.common_of(id)?,
            earlier: None,
            stored: Stored::default(),
            shared: Arc::default(),
            lock: Arc::new(lock),
        })
    }

    /// Has its snapshots borrow the pages that other sessions have stored by the time that its first hundred have come. A sealed
    /// one shares nothing; nor does one in memory, from where each session is written out by itself.
    pub fn look_for_earlier(&mut self) {
        let is_sealed = !matches!(self.store.is_sealed(self.id), Ok(false));
        if is_sealed || self.store.files.is_in_memory(&self.dir) {
            return;
        }
        let common = self.common.as_ref();
        self.earlier = Some(common.map_or_else(Arc::default, |common| Arc::clone(&common.earlier)));
    }

    /// Removes a session of which nothing has been published. As far as that goes: an empty one does no harm.
    pub fn abandon(self) {
        let store = self.store.clone();
        if let Ok([]) = store.list_session(self.id).as_deref()
            && let Err(error) = store.remove_session(self.id)
        {
            tracing::debug!("session {}: {error}", self.id);
        }
    }

    /// Removes the session with all that was published in it: it is of no use without what was to follow elsewhere. As far
    /// as that goes.
    pub fn discard(self) {
        if let Err(error) = self.store.remove_session(self.id) {
            tracing::warn!("session {} of no use is still there: {error}", self.id);
        }
        // One may have been published that could not be made durable.
        self.store.sweep_trees();
    }

    /// The session's name.
    pub fn id(&self) -> SessionId {
        self.id
    }

    /// The store that it is in.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// The process it watches.
    pub fn info(&self) -> &SessionInfo {
        &self.info
    }

    /// Has a process go on in this session that was brought back from one of its snapshots: its own follow that
    /// one.
    pub fn continue_with(
        &mut self,
        pid: i32,
        start_time: u64,
        from: SnapshotId,
    ) -> Result<(), StoreError> {
        let mut info = self.info.clone();
        info.continued.push(Continuation {
            pid,
            start_time,
            from: from.to_string(),
            since: self.next_seq,
        });
        let text = checked::encode(&info);
        publish_text(&*self.store.files, &self.dir, SESSION_FILE, &text)?;
        self.info = info;
        Ok(())
    }

    /// The snapshot published last by this writer, or last used as a parent.
    pub fn head(&self) -> Option<SnapshotId> {
        self.head.as_ref().map(|head| head.id)
    }

    /// Page table of [`Session::head`].
    pub fn head_table(&self) -> Option<&PageTable<Location>> {
        self.head.as_ref().map(|head| &head.table)
    }

    /// Begins a snapshot. A delta needs the parent whose changes it holds; a base may name the one it follows.
    ///
    /// Reads files only when the parent is not the head, as after a rollback.
    pub fn begin(
        &mut self,
        kind: SnapshotKind,
        parent: Option<SnapshotId>,
    ) -> Result<PendingSnapshot<'_>, StoreError> {
        let parent = match (kind, parent) {
            (_, Some(parent)) => Some((parent, self.seq_of(parent)?)),
            (SnapshotKind::Base, None) => None,
            (SnapshotKind::Delta, None) => {
                return Err(StoreError::Misuse {
                    why: "a delta needs a parent".into(),
                });
            }
        };
        // Before anything of the parent is read: from now on it stays.
        self.shared
            .build_on(parent.map(|(_, seq)| seq), &self.dir)?;
        if let (SnapshotKind::Delta, Some((id, seq))) = (kind, parent)
            && self.head() != Some(id)
        {
            // None of them stays open: they may be removed.
            let files = self.store.apart().session_files(self.id)?;
            let head = self.head.insert(files.head(seq)?);
            self.stored.learn(&files, seq, &head.table);
        }
        self.stored.forget(&self.shared.take_gone());
        PendingSnapshot::begin(self, kind, parent)
    }

    /// When snapshots are made durable from now on.
    pub fn set_durability(&mut self, durability: Durability) {
        self.unsynced.mode = durability;
    }

    /// Makes durable what has waited for it long enough. To be called now and then while nothing is written.
    pub fn sync_if_due(&mut self) -> Result<(), StoreError> {
        match self.unsynced.is_due() {
            true => self.unsynced.sync(&*self.store.files, &self.dir),
            false => Ok(()),
        }
    }

    /// Ends as a killed process does: nothing is made durable any more.
    #[cfg(test)]
    pub(super) fn forget(mut self) {
        self.unsynced = Unsynced::default();
    }

    /// The right to remove snapshots of this session, also while it is being written, from another thread. The
    /// session stays locked until both are dropped.
    pub fn pruner(&self) -> Pruner {
        Pruner::new(&self.store, self.id, &self.shared, &self.lock, true)
    }

    fn seq_of(&self, id: SnapshotId) -> Result<u32, StoreError> {
        if let Some(head) = self.head.as_ref().filter(|head| head.id == id) {
            return Ok(head.seq);
        }
        let files = self.store.session_files(self.id)?;
        files
            .listing()
            .by_seq
            .iter()
            .find_map(|(seq, other)| (*other == id).then_some(*seq))
            .ok_or_else(|| StoreError::NotFound {
                what: format!("parent {id} in {}", self.dir.display()),
            })
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if let Err(error) = self.unsynced.finish(&*self.store.files, &self.dir) {
            tracing::warn!("the last snapshots may not be durable: {error}");
        }
    }
}

impl Store {
    /// Removes what a writer of a session that died has left without a name. The caller holds the session's lock.
    pub(super) fn remove_temps(&self, id: SessionId) -> Result<(), StoreError> {
        let dir = self.session_path(id);
        let names = self.files.names(&dir);
        let names = names.map_err(StoreError::io("list", &dir))?;
        for name in names.iter().filter(|name| name.starts_with(TEMP_PREFIX)) {
            let path = dir.join(name);
            self.files
                .remove_file(&path)
                .map_err(StoreError::io("remove", &path))?;
        }
        Ok(())
    }
}

/// Makes the folder of a session, locked from its first moment. `key`: its key, encrypted, where it is sealed; it is
/// known already. `copied`: its home is in another store.
pub(super) fn publish_folder(
    store: &Store,
    id: SessionId,
    info: &SessionInfo,
    key: Option<&[u8]>,
    copied: bool,
) -> Result<LockGuard, StoreError> {
    // Another process that opens the store may sweep the new folder in the instant before it is locked.
    let swept = |error: &StoreError| match error {
        StoreError::Locked { .. } => true,
        StoreError::Io { source, .. } => source.kind() == std::io::ErrorKind::NotFound,
        _ => false,
    };
    match try_publish_folder(store, id, info, key, copied) {
        Err(error) if swept(&error) => try_publish_folder(store, id, info, key, copied),
        done => done,
    }
}

fn try_publish_folder(
    store: &Store,
    id: SessionId,
    info: &SessionInfo,
    key: Option<&[u8]>,
    copied: bool,
) -> Result<LockGuard, StoreError> {
    let dir = store.session_path(id);
    let temp = store
        .dir
        .join(format!("{TEMP_PREFIX}{}", names::session_dir(id)));
    let files = &*store.files;
    files
        .create_dir(&temp)
        .map_err(StoreError::io("create folder", &temp))?;
    let mut named = false;
    // The lock goes along with the rename, so that no one sees the session unlocked.
    let made = lock(store, &temp).and_then(|lock| {
        if let Some(key) = key {
            let unnamed = temp.join(format!("{TEMP_PREFIX}{KEY_FILE}"));
            publish_bytes(files, &unnamed, &temp.join(KEY_FILE), key)?;
        }
        let text = checked::encode(info);
        publish_text(files, &temp, SESSION_FILE, &text)?;
        if copied {
            publish_text(files, &temp, COPIED, "")?;
        }
        files
            .rename(&temp, &dir)
            .map_err(StoreError::io("publish", &dir))?;
        named = true;
        files
            .sync_dir(&store.dir)
            .map_err(StoreError::io("sync folder", &store.dir))?;
        Ok(lock)
    });
    made.inspect_err(|_| {
        let folder = if named { &dir } else { &temp };
        for name in [KEY_FILE, SESSION_FILE, COPIED, LOCK_FILE] {
            let _ = files.remove_file(&folder.join(name));
        }
        let _ = files.remove_dir(folder);
    })
}

pub(super) fn lock(store: &Store, dir: &std::path::Path) -> Result<LockGuard, StoreError> {
    let path = dir.join(LOCK_FILE);
    match store
        .files
        .lock(&path)
        .map_err(StoreError::io("lock", &path))?
    {
        Locking::Held(guard) => Ok(guard),
        Locking::Busy { pid } => Err(StoreError::Locked {
            session: dir.to_owned(),
            pid,
        }),
    }
}
