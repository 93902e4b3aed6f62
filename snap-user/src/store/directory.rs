//! Open or create a store; its sessions and snapshots.

use super::cache::{FileCache, ImageFile};
use super::chain::SessionFiles;
use super::checked;
use super::common::Common;
use super::error::StoreError;
use super::files::{Disk, Files, Locking};
use super::headers::{self, HEADERS_FILE, Headers};
use super::meta::SnapshotMeta;
use super::names::{self, MARKER, SESSION_FILE, TEMP_PREFIX};
use super::seal::{Keys, Sealing};
use super::session::{OWN_FROM, Session, SessionInfo};
use super::snapshot::Snapshot;
use super::text::{publish_text, read_text};
use crate::image::SessionId;
use crate::model::SnapshotId;
use std::collections::HashMap;
use std::fmt::Debug;
use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const VERSION: u32 = 1;
/// What the marker of a store says.
pub fn marker_line() -> String {
    format!("ksnap store {VERSION}")
}

/// Listings of a session of which everything is pruned meanwhile, until it is taken for empty.
const MOST_LISTINGS: usize = 16;

/// Why a folder without a marker is no place for a store.
const OTHER_THINGS: &str = "the folder holds other things; name another one with --store, which for a new store is new or empty";

/// A folder of snapshots.
///
/// Opening takes no lock: any number of processes may read one store, and write different sessions of it, at
/// the same time. Only a session has a lock, held by the one [`Session`] that writes it.
#[derive(Clone, Debug)]
pub struct Store {
    pub(super) dir: PathBuf,
    /// Sealed files are opened and sealed on their way.
    pub(super) files: Arc<dyn Files>,
    pub(super) sealing: Arc<Sealing>,
    pub(super) keys: Arc<Keys>,
    pub(super) cache: Arc<FileCache>,
    common: Option<Arc<Common>>,
}

/// What one look at a session finds.
struct Listed {
    list: Vec<SnapshotMeta>,
    /// Every snapshot that was there has been pruned before it was read.
    overtaken: bool,
}

/// Whether there is something in a folder that no store puts there before its marker.
fn holds_other_things(files: &dyn Files, dir: &Path) -> io::Result<bool> {
    let names = files.names(dir)?;
    Ok(names
        .iter()
        .any(|name| !name.starts_with(TEMP_PREFIX) && name != MARKER))
}

/// Whether a file is where this folder, or one above it, would have to be.
fn is_below_a_file(dir: &Path) -> bool {
    let there = dir.ancestors().find(|path| path.exists());
    there.is_some_and(|path| !path.is_dir())
}

/// Sorts snapshots, oldest first; those of each session are ascending by sequence number already, and stay so.
///
/// A clock may be set back: a snapshot is at least as new as those that its session had before it. Across sessions there
/// is nothing but the clock to go by.
fn sort_by_age(list: &mut Vec<SnapshotMeta>) {
    let mut newest: HashMap<(SessionId, bool), u64> = HashMap::new();
    let mut aged: Vec<(u64, SnapshotMeta)> = std::mem::take(list)
        .into_iter()
        .map(|meta| {
            // Those that were added to a copy are no newer than what comes from its home later.
            let row = newest
                .entry((meta.session, meta.seq >= OWN_FROM))
                .or_default();
            *row = meta.time_ns.max(*row);
            (*row, meta)
        })
        .collect();
    aged.sort_by_key(|(age, meta)| (*age, meta.seq, meta.id));
    list.extend(aged.into_iter().map(|(_, meta)| meta));
}

impl Store {
    /// Opens a store to read from, or to add sessions to.
    pub fn open(dir: &Path) -> Result<Self, StoreError> {
        Self::open_with(Arc::new(Disk), dir)
    }

    /// Opens a store, making it first if there is none.
    pub fn open_or_create(dir: &Path) -> Result<Self, StoreError> {
        Self::open_or_create_with(Arc::new(Disk), dir)
    }

    /// [`Store::open`] on other files.
    pub fn open_with(files: Arc<dyn Files>, dir: &Path) -> Result<Self, StoreError> {
        Self::open_with_keys(files, Keys::of_process(), dir)
    }

    /// [`Store::open_with`] with other keys than those of the process.
    pub fn open_with_keys(
        files: Arc<dyn Files>,
        keys: Arc<Keys>,
        dir: &Path,
    ) -> Result<Self, StoreError> {
        let no_store = |why: &str| StoreError::NoStore {
            dir: dir.to_owned(),
            why: why.to_owned(),
        };
        let marker = dir.join(MARKER);
        let text = match read_text(&*files, &marker) {
            Ok(text) => text,
            Err(StoreError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                if holds_other_things(&*files, dir).unwrap_or(false) {
                    return Err(no_store(OTHER_THINGS));
                }
                return Err(no_store(
                    "nothing has been stored there yet; take a snapshot first, or name another folder with --store",
                ));
            }
            Err(StoreError::Io { source, .. }) if source.kind() == io::ErrorKind::NotADirectory => {
                return Err(no_store(
                    "that is not a folder; name another one with --store",
                ));
            }
            Err(error) => return Err(error),
        };
        let version = text
            .strip_prefix("ksnap store ")
            .map(|version| version.strip_suffix('\n').unwrap_or(version))
            // As it is written, and there is no version 0: what is a little different is damaged.
            .and_then(|text| {
                let version: u32 = text.parse().ok()?;
                (version > 0 && version.to_string() == text).then_some(version)
            })
            .ok_or_else(|| StoreError::corrupt(&marker, "format marker", format!("{text:?}")))?;
        if version > VERSION {
            return Err(StoreError::NewerVersion {
                path: marker,
                found: version,
                supported: VERSION,
            });
        }
        let sealing = Arc::new(Sealing::new(files, Arc::clone(&keys)));
        let store = Self {
            dir: dir.to_owned(),
            files: Arc::clone(&sealing) as Arc<dyn Files>,
            sealing,
            keys,
            cache: Arc::default(),
            common: None,
        };
        store.recover();
        Ok(store)
    }

    /// [`Store::open_or_create`] on other files.
    pub fn open_or_create_with(files: Arc<dyn Files>, dir: &Path) -> Result<Self, StoreError> {
        Self::open_or_create_with_keys(files, Keys::of_process(), dir)
    }

    /// [`Store::open_or_create_with`] with other keys than those of the process.
    pub fn open_or_create_with_keys(
        files: Arc<dyn Files>,
        keys: Arc<Keys>,
        dir: &Path,
    ) -> Result<Self, StoreError> {
        match Self::open_with_keys(Arc::clone(&files), Arc::clone(&keys), dir) {
            Err(error @ StoreError::NoStore { .. }) if is_below_a_file(dir) => return Err(error),
            Err(StoreError::NoStore { .. }) => {}
            done => return done.inspect(Store::sweep),
        }
        if let Some(above) = dir.parent() {
            // Not behind the seam: folders above the store are not part of it.
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(above)
                .map_err(StoreError::io("create folder", above))?;
        }
        match files.create_dir(dir) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(StoreError::io("create folder", dir)(error));
            }
            _ => {}
        }
        if holds_other_things(&*files, dir).map_err(StoreError::io("list", dir))? {
            return Err(StoreError::NoStore {
                dir: dir.to_owned(),
                why: OTHER_THINGS.into(),
            });
        }
        // Two processes may get here at once: both publish the same text, and either may be last.
        let text = format!("{}\n", marker_line());
        publish_text(&*files, dir, MARKER, &text)?;
        if let Some(above) = dir.parent().filter(|above| !above.as_os_str().is_empty()) {
            files
                .sync_dir(above)
                .map_err(StoreError::io("sync folder", above))?;
        }
        Self::open_with_keys(files, keys, dir)
    }

    /// Removes what a writer that died left at the top: best effort, a reader passes over it anyway.
    pub fn sweep(&self) {
        for name in self.files.names(&self.dir).unwrap_or_default() {
            if !name.starts_with(TEMP_PREFIX) {
                continue;
            }
            let path = self.dir.join(&name);
            // A session in the making holds its lock until after it is renamed into place.
            let Ok(Locking::Held(_guard)) = self.files.lock(&path.join(names::LOCK_FILE)) else {
                continue;
            };
            self.clear(&path);
        }
    }

    /// The store's folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Starts a session for a process. The caller is its only writer.
    pub fn create_session(&self, info: &SessionInfo) -> Result<Session, StoreError> {
        Session::create(self, info)
    }

    /// Goes on writing a session.
    pub fn open_session(&self, id: SessionId) -> Result<Session, StoreError> {
        Session::open(self, id)
    }

    /// All sessions, oldest first. A session without a readable description is passed over, with a warning; one that is
    /// sealed and cannot be read, without ([`Store::sealed_sessions`]).
    pub fn sessions(&self) -> Result<Vec<(SessionId, SessionInfo)>, StoreError> {
        let mut sessions = Vec::new();
        for id in self.session_ids()? {
            match self.session_info(id) {
                Ok(info) => sessions.push((id, info)),
                // Told by who lists them: `Store::sealed_sessions`.
                Err(error) if error.is_sealed() => tracing::debug!("session {id}: {error}"),
                Err(error) => tracing::warn!("session {id}: {error}"),
            }
        }
        sessions.sort_by_key(|(id, info)| (info.created_ns, *id));
        Ok(sessions)
    }

    /// What a session says of itself.
    pub fn session_info(&self, id: SessionId) -> Result<SessionInfo, StoreError> {
        let path = self.session_path(id).join(SESSION_FILE);
        let text = read_text(&*self.files, &path).map_err(|error| match error {
            StoreError::Io { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                StoreError::NotFound {
                    what: format!("session {id} in {}", self.dir.display()),
                }
            }
            error => error,
        })?;
        checked::decode(&path, "session description", &text)
    }

    /// Every readable snapshot, oldest first: within a session by sequence number, across sessions by the clock. Reads one header a snapshot; a damaged one is passed over, with
    /// a warning: [`Store::verify`] names it. Those of sealed sessions are left out where the key is missing.
    pub fn list(&self) -> Result<Vec<SnapshotMeta>, StoreError> {
        let mut list = Vec::new();
        for session in self.session_ids()? {
            match self.list_session(session) {
                Err(_) if self.is_session_gone(session) => {}
                Err(error) if error.is_sealed() => tracing::debug!("session {session}: {error}"),
                // Of which the key is damaged: the others can be read.
                Err(error @ StoreError::Corrupt { .. }) => {
                    tracing::warn!("session {session}: {error}")
                }
                found => list.append(&mut found?),
            }
        }
        sort_by_age(&mut list);
        Ok(list)
    }

    /// The readable snapshots of one session, ascending by sequence number.
    pub fn list_session(&self, session: SessionId) -> Result<Vec<SnapshotMeta>, StoreError> {
        let mut found = self.list_once(session)?;
        // Pruning begins with the oldest: where all are gone, newer ones have taken their place meanwhile.
        for _ in 1..MOST_LISTINGS {
            if !found.overtaken {
                break;
            }
            found = self.list_once(session)?;
        }
        Ok(found.list)
    }

    fn list_once(&self, session: SessionId) -> Result<Listed, StoreError> {
        self.session_key(session)?;
        let comm = match self.session_info(session) {
            Ok(info) => info.comm,
            Err(error) => {
                tracing::warn!("session {session}: {error}");
                String::new()
            }
        };
        let files = self.session_files(session)?;
        let listing = files.listing();
        if let Some((path, what)) = &listing.pack_damage {
            tracing::warn!("{}: {what}", path.display());
        }
        let mut pruned = 0;
        let mut list = Vec::with_capacity(listing.by_seq.len());
        let known = Headers::read(&*self.files, &files.dir);
        for (&seq, &id) in &listing.by_seq {
            let path = files.dir.join(names::snapshot_file(seq, id));
            if let Some(header) = known.get(&*self.files, &files.dir, seq, id) {
                list.push(SnapshotMeta::new(&header, path, &comm));
                continue;
            }
            // Straight from the disk: a listing must not push out the files that reads have open.
            match ImageFile::open(&*self.files, &path) {
                Ok(file) => list.push(SnapshotMeta::new(&file.header, path, &comm)),
                // Pruned since the folder was listed.
                Err(error) if error.is_missing() => pruned += 1,
                Err(error) => tracing::warn!("{error}"),
            }
        }
        Ok(Listed {
            overtaken: list.is_empty() && pruned > 0,
            list,
        })
    }

    /// Bytes of a session's snapshots, and of what those that are gone have left to them. Of a file that several sessions
    /// have, each has its share: all sessions together take what their files take on the disk.
    pub fn session_bytes(&self, session: SessionId) -> Result<u64, StoreError> {
        let list = self.list_session(session)?;
        let listing = self.session_files(session)?.listing();
        let pack = self.pack_bytes(session, &listing);
        let loans = listing
            .loans
            .keys()
            .map(|seq| self.loan_bytes(session, *seq, &listing));
        let own = list.iter().map(|meta| self.own_bytes(meta));
        Ok(pack + loans.sum::<u64>() + own.sum::<u64>())
    }

    /// Makes a session's list of headers anew from its snapshots. Gives how many are in it.
    pub fn rebuild_headers(&self, session: SessionId) -> Result<u64, StoreError> {
        let files = self.session_files(session)?;
        let listing = files.listing();
        let snapshots = listing.by_seq.iter().map(|(seq, id)| (*seq, *id));
        headers::rebuild(&*self.files, &files.dir, snapshots)
    }

    /// Why a session's list of headers should be made anew, if it should.
    pub(super) fn headers_damage(&self, session: SessionId) -> Option<String> {
        let dir = self.session_path(session);
        let known = Headers::read(&*self.files, &dir);
        (known.damaged > 0).then(|| {
            format!(
                "{}: {} of {} records are damaged: listings are slower, nothing is lost; \
                 `ksnap verify --rebuild` makes the file anew",
                dir.join(HEADERS_FILE).display(),
                known.damaged,
                known.count
            )
        })
    }

    /// The same store for sessions that are written side by side: what they have in common is stored once.
    pub fn side_by_side(&self) -> Self {
        Self {
            common: Some(Arc::default()),
            ..self.clone()
        }
    }

    /// What a session shares with others that are written now. A sealed one shares nothing: its key is its own.
    pub(super) fn common_of(&self, session: SessionId) -> Result<Option<Arc<Common>>, StoreError> {
        match &self.common {
            Some(common) if self.session_key(session)?.is_none() => Ok(Some(Arc::clone(common))),
            _ => Ok(None),
        }
    }

    /// The same store with open files of its own.
    pub(super) fn apart(&self) -> Self {
        Self {
            cache: Arc::default(),
            ..self.clone()
        }
    }

    /// Removes a session whose lock the caller holds. At once gone for readers, whatever happens then.
    pub(super) fn remove_session(&self, id: SessionId) -> Result<(), StoreError> {
        let dir = self.session_path(id);
        let doomed = self
            .dir
            .join(format!("{TEMP_PREFIX}{}", names::session_dir(id)));
        self.files
            .rename(&dir, &doomed)
            .map_err(StoreError::io("remove", &dir))?;
        self.files
            .sync_dir(&self.dir)
            .map_err(StoreError::io("sync folder", &self.dir))?;
        self.clear(&doomed);
        Ok(())
    }

    /// Removes a folder and the files in it, as far as that goes.
    fn clear(&self, folder: &Path) {
        for name in self.files.names(folder).unwrap_or_default() {
            let _ = self.files.remove_file(&folder.join(name));
        }
        let _ = self.files.remove_dir(folder);
    }

    /// Opens a snapshot to read from.
    pub fn snapshot(&self, id: SnapshotId) -> Result<Snapshot, StoreError> {
        for session in self.session_ids()? {
            let files = match self.session_files_if_there(session) {
                Ok(Some(files)) => files,
                Ok(None) => continue,
                // It alone cannot be read.
                Err(error) if error.is_sealed() || matches!(error, StoreError::Corrupt { .. }) => {
                    match self.session_with(id)? == Some(session) {
                        true => return Err(error),
                        false => continue,
                    }
                }
                Err(error) => return Err(error),
            };
            let listing = files.listing();
            let found = listing.by_seq.iter().find(|(_, other)| **other == id);
            if let Some((&seq, _)) = found {
                return Snapshot::open(files, seq);
            }
        }
        Err(self.no_snapshot(id))
    }

    pub(super) fn no_snapshot(&self, id: SnapshotId) -> StoreError {
        StoreError::NotFound {
            what: format!("snapshot {id} in {}", self.dir.display()),
        }
    }

    pub(super) fn session_path(&self, id: SessionId) -> PathBuf {
        self.dir.join(names::session_dir(id))
    }

    /// All sessions by the names of their folders, also sealed ones; unpublished and foreign folders are passed over.
    pub fn session_ids(&self) -> Result<Vec<SessionId>, StoreError> {
        let mut ids: Vec<SessionId> = self
            .files
            .names(&self.dir)
            .map_err(StoreError::io("list", &self.dir))?
            .iter()
            .filter_map(|name| SessionId::from_hex(name))
            .collect();
        ids.sort_unstable();
        Ok(ids)
    }

    /// Whether a session was removed since the store was listed.
    pub fn is_session_gone(&self, id: SessionId) -> bool {
        let found = self.files.stat(&self.session_path(id));
        found.is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
    }

    /// The files of a session that was listed; `None` if it has been removed since.
    pub(super) fn session_files_if_there(
        &self,
        id: SessionId,
    ) -> Result<Option<SessionFiles>, StoreError> {
        match self.session_files(id) {
            Err(_) if self.is_session_gone(id) => Ok(None),
            found => found.map(Some),
        }
    }

    pub(super) fn session_files(&self, id: SessionId) -> Result<SessionFiles, StoreError> {
        // First of all: without it, a pack would look damaged.
        self.session_key(id)?;
        SessionFiles::list(&self.files, &self.cache, id, &self.session_path(id))
    }
}
