//! When what is written is made durable, and what becomes of it when the power fails before that.
//!
//! A snapshot that is published without a sync may be torn after a power failure, under its name. So before the
//! first of them a marker is made durable: under which boot of the kernel they are written, and up to which one all
//! are known to be durable. As long as that boot lasts, the page cache has them and all is well. Under another
//! one, those after the last durable one are looked through before anyone sees them: torn ones are removed, and with
//! them those that build on them.

use super::chain::SessionFiles;
use super::directory::Store;
use super::error::StoreError;
use super::files::{Files, WriteFile};
use super::names;
use super::session::lock;
use super::text::{publish_text, read_text};
use super::verify::check_file;
use crate::image::{IndexEntry, Location, SessionId};
use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::path::Path;
use std::time::{Duration, Instant};

/// Its name in the session's folder.
pub(super) const MARKER: &str = "volatile";
/// Under [`Durability::Interval`], what a power failure can take at most: the snapshots of so long.
pub const SYNC_INTERVAL: Duration = Duration::from_secs(1);

/// When a snapshot is made durable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// Never by ksnap: the kernel writes back when it likes. A power failure takes what it had not written.
    None,
    /// All of the last second together. A power failure takes a second's snapshots, and never an older one.
    Interval,
    /// Each one before it counts as taken. A power failure takes the one being written.
    #[default]
    Each,
}

/// Snapshots that are published and not yet known to be durable.
#[derive(Debug)]
pub(super) struct Unsynced {
    pub(super) mode: Durability,
    /// How long one may wait.
    pub(super) interval: Duration,
    files: Vec<Box<dyn WriteFile>>,
    last: u32,
    marked: bool,
    /// Some that were published will never be known to be durable: an earlier run left them, or their sync failed,
    /// which the kernel says once (fsync(2)) while the next sync succeeds. The marker stays where it is, so that
    /// they are looked through under the next boot.
    doubtful: bool,
    synced: Option<Instant>,
}

/// What the marker says.
struct Marked {
    boot: String,
    durable: u32,
}

fn read_marker(files: &dyn Files, dir: &Path) -> Result<Option<Marked>, StoreError> {
    let path = dir.join(MARKER);
    let text = match read_text(files, &path) {
        Ok(text) => text,
        Err(error) if error.is_missing() => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut lines = text.lines();
    let boot = lines.next().unwrap_or_default().to_owned();
    let durable = lines.next().and_then(|line| line.parse().ok());
    // One that cannot be read vouches for nothing.
    Ok(Some(match durable {
        Some(durable) => Marked { boot, durable },
        None => Marked {
            boot: String::new(),
            durable: 0,
        },
    }))
}

/// Where the kernel does not say, all boots look the same: pages have checksums of their own.
fn boot(files: &dyn Files) -> String {
    files.boot().unwrap_or_else(|| "unknown".into())
}

fn write_marker(files: &dyn Files, dir: &Path, durable: u32) -> Result<(), StoreError> {
    let text = format!("{}\n{durable}\n", boot(files));
    publish_text(files, dir, MARKER, &text)
}

/// Snapshots after this one may be torn: they were written under another boot of the kernel, and nobody has looked
/// since.
pub(super) fn suspect_after(files: &dyn Files, dir: &Path) -> Result<Option<u32>, StoreError> {
    let marked = read_marker(files, dir)?;
    Ok(marked
        .filter(|marked| marked.boot != boot(files))
        .map(|marked| marked.durable))
}

impl Default for Unsynced {
    fn default() -> Self {
        Self {
            mode: Durability::Each,
            interval: SYNC_INTERVAL,
            files: Vec::new(),
            last: 0,
            marked: false,
            doubtful: false,
            synced: None,
        }
    }
}

impl Unsynced {
    /// Before a snapshot is published without a sync. `durable` is the last one that surely is.
    pub(super) fn mark(
        &mut self,
        files: &dyn Files,
        dir: &Path,
        durable: u32,
    ) -> Result<(), StoreError> {
        if self.marked {
            return Ok(());
        }
        // One that is there is of this boot: others are gone since the session was opened.
        let left = read_marker(files, dir)?;
        let durable = left.as_ref().map_or(durable, |m| m.durable.min(durable));
        write_marker(files, dir, durable)?;
        self.doubtful |= left.is_some();
        self.marked = true;
        Ok(())
    }

    /// A snapshot was published without a sync.
    pub(super) fn add(&mut self, file: Box<dyn WriteFile>, seq: u32) {
        if self.mode == Durability::Interval {
            self.files.push(file);
        }
        self.last = seq;
    }

    /// Whether the oldest of them has waited long enough.
    pub(super) fn is_due(&self) -> bool {
        self.mode == Durability::Interval
            && !self.files.is_empty()
            && self
                .synced
                .is_none_or(|last| last.elapsed() >= self.interval)
    }

    /// Makes all of them durable. One whose sync fails stays in doubt: trying again would prove nothing.
    pub(super) fn sync(&mut self, files: &dyn Files, dir: &Path) -> Result<(), StoreError> {
        self.synced = Some(Instant::now());
        if self.files.is_empty() {
            return Ok(());
        }
        let mut synced = Ok(());
        for mut file in self.files.drain(..) {
            let done = file.sync();
            synced = synced.and(done.map_err(StoreError::io("sync a snapshot in", dir)));
        }
        let folder = files.sync_dir(dir);
        synced = synced.and(folder.map_err(StoreError::io("sync folder", dir)));
        self.doubtful |= synced.is_err();
        synced?;
        match self.doubtful {
            true => Ok(()),
            false => write_marker(files, dir, self.last),
        }
    }

    /// At the end of a session: all that was written is made durable, unless that was not wanted.
    pub(super) fn finish(&mut self, files: &dyn Files, dir: &Path) -> Result<(), StoreError> {
        if !self.marked || self.mode == Durability::None {
            return Ok(());
        }
        self.sync(files, dir)?;
        if self.doubtful {
            return Ok(());
        }
        let path = dir.join(MARKER);
        files
            .remove_file(&path)
            .map_err(StoreError::io("remove", &path))?;
        self.marked = false;
        Ok(())
    }
}

/// The last snapshot that is known to be durable, where not all are.
pub(super) fn durable_up_to(files: &dyn Files, dir: &Path) -> Result<Option<u32>, StoreError> {
    Ok(read_marker(files, dir)?.map(|marked| marked.durable))
}

/// Looks through what a power failure may have torn, and removes it. The caller holds the session's lock. Gives the
/// number of snapshots removed.
///
/// # Errors
/// Whatever keeps a snapshot from being judged. Nothing is removed then, and what is in doubt stays out of listings.
pub(super) fn recover(store: &Store, id: SessionId) -> Result<u64, StoreError> {
    let dir = store.session_path(id);
    let files = &*store.files;
    let Some(durable) = suspect_after(files, &dir)? else {
        return Ok(0);
    };
    // What cannot be read is not judged.
    store.session_key(id)?;
    let all = SessionFiles::list_with_suspects(&store.files, &store.cache, id, &dir)?;
    let listing = all.listing();
    if let Some((path, what)) = &listing.pack_damage {
        // Without it nobody knows what was removed on purpose.
        return Err(StoreError::corrupt(path, "pack", what.clone()));
    }
    let mut torn: BTreeSet<u32> = BTreeSet::new();
    for (&seq, _) in listing.by_seq.range(durable.saturating_add(1)..) {
        if is_torn(&all, seq)? {
            torn.insert(seq);
            all.leave_out(seq);
        }
    }
    for seq in &torn {
        let path = dir.join(names::snapshot_file(*seq, listing.by_seq[seq]));
        files
            .remove_file(&path)
            .map_err(StoreError::io("remove", &path))?;
    }
    store.remove_orphans(&dir, &all.listing())?;
    store.cache.forget(id, |seq| torn.contains(&seq));
    files
        .sync_dir(&dir)
        .map_err(StoreError::io("sync folder", &dir))?;
    let path = dir.join(MARKER);
    files
        .remove_file(&path)
        .map_err(StoreError::io("remove", &path))?;
    Ok(torn.len() as u64)
}

/// Whether a snapshot is torn, or builds on one that is and was left out.
fn is_torn(all: &SessionFiles, seq: u32) -> Result<bool, StoreError> {
    let path = all.path(seq)?;
    match check_suspect(all, seq) {
        Ok(whole) => Ok(!whole),
        Err(error) if error.is_missing() => Ok(true),
        Err(StoreError::Corrupt { path: at, .. }) if is_of(&at, &path, seq) => Ok(true),
        Err(StoreError::Io {
            path: at, source, ..
        }) if is_of(&at, &path, seq) && source.kind() == ErrorKind::UnexpectedEof => Ok(true),
        // An older file is damaged, or the machine has no descriptor left: that says nothing about this one.
        Err(error) => Err(error),
    }
}

/// Whether a file is this snapshot's: its own, or one that it borrows from.
fn is_of(file: &Path, own: &Path, seq: u32) -> bool {
    let name = file.file_name().and_then(|name| name.to_str());
    let borrowed = name.and_then(names::parse_loan_file);
    file == own || borrowed.is_some_and(|(of, _)| of == seq)
}

fn check_suspect(all: &SessionFiles, seq: u32) -> Result<bool, StoreError> {
    let file = all.open(seq)?;
    let listing = all.listing();
    let parent = file.header.parent_seq;
    let gone = listing.is_gone(parent);
    if parent != 0 && !gone && !listing.by_seq.contains_key(&parent) {
        return Ok(false);
    }
    let entries = check_file(all, &file)?;
    if let Some(pack) = &listing.pack {
        pack.entries()?;
    }
    let is_there = |place: Location| match listing.pack.as_ref() {
        Some(pack) if pack.absorbs(place.seq.get()) => pack.entry(place).is_ok(),
        _ => listing.by_seq.contains_key(&place.seq.get()),
    };
    // It may name pages of older ones that the parent does not need any more.
    if !entries.iter().filter_map(IndexEntry::target).all(is_there) {
        return Ok(false);
    }
    if !gone {
        return Ok(true);
    }
    // What stands between it and the ancestors that stayed was removed, and says nothing about them any more.
    let table = all.head(seq)?.table;
    Ok(table.iter().all(|(_, place)| is_there(place)))
}

impl Store {
    /// Looks through what a power failure may have torn, wherever nobody else does. Best effort: what is not looked
    /// through stays out of listings.
    pub(super) fn recover(&self) {
        for id in self.session_ids().unwrap_or_default() {
            let dir = self.session_path(id);
            if !matches!(suspect_after(&*self.files, &dir), Ok(Some(_))) {
                continue;
            }
            match lock(self, &dir).and_then(|_guard| recover(self, id)) {
                Ok(0) => {}
                Ok(torn) => tracing::warn!(
                    "session {id}: {torn} snapshots that were not durable when the power failed are lost"
                ),
                // Its writer looks for itself.
                Err(error @ StoreError::Locked { .. }) => tracing::debug!("session {id}: {error}"),
                Err(error) if error.is_sealed() => tracing::debug!("session {id}: {error}"),
                Err(error) => tracing::warn!(
                    "session {id}: snapshots that may not have been durable when the power failed stay hidden: {error}"
                ),
            }
        }
    }
}
