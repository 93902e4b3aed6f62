//! Looks after flat images: compares them with their snapshots, counts what they take, and removes those that nobody
//! uses. They are a cache: whatever is removed is made anew by the restore that needs it.

use super::directory::Store;
use super::error::StoreError;
use super::flat::{FOLDER, Flat, open};
use super::snapshot::Snapshot;
use super::verify::{Problem, Report};
use crate::image::PageSource;
use crate::model::{FILE_SPACE, PAGE_SIZE, SnapshotId};
use rustix::fs::{FlockOperation, flock};
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;

/// Bytes read at once where all of an image is read.
const AT_ONCE: usize = 1 << 20;

impl Store {
    /// The flat image of a snapshot, all of whose pages are what they were when it was made: another one is made where
    /// they are not.
    pub fn checked_flat(&self, snapshot: &Snapshot) -> Result<Flat, StoreError> {
        let flat = self.flat(snapshot)?;
        if is_whole(&flat).unwrap_or(false) {
            return Ok(flat);
        }
        let path = self.flat_path(snapshot.id());
        tracing::warn!("{}: damaged, and made anew", path.display());
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!("{}: cannot be removed: {error}", path.display());
                self.flat_in_memory(snapshot)
            }
            _ => self.flat(snapshot),
        }
    }

    fn flat_path(&self, id: SnapshotId) -> PathBuf {
        self.dir().join(FOLDER).join(id.to_string())
    }

    /// Files of the cache, with what they take on the disk, and the snapshots that they are of; `None` for those in the
    /// making.
    fn flat_files(&self) -> Vec<(PathBuf, u64, Option<SnapshotId>)> {
        let entries = std::fs::read_dir(self.dir().join(FOLDER));
        let entries = entries.into_iter().flatten().flatten();
        entries
            .filter_map(|entry| {
                let bytes = entry.metadata().ok()?.blocks() * 512;
                let name = entry.file_name().into_string().ok()?;
                Some((entry.path(), bytes, SnapshotId::from_hex(&name)))
            })
            .collect()
    }

    /// Bytes that flat images take on the disk.
    pub fn flat_bytes(&self) -> u64 {
        self.flat_files().iter().map(|(_, bytes, _)| bytes).sum()
    }

    /// Removes the flat images that nobody has open; with `dry_run` only says how much that would free. Best effort.
    pub fn clear_flat(&self, dry_run: bool) -> u64 {
        let mut freed = 0;
        for (path, bytes, id) in self.flat_files() {
            // One in the making is its maker's.
            let file = id.and_then(|_| File::open(&path).ok());
            let is_free = file
                .is_some_and(|file| flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok());
            if is_free && (dry_run || std::fs::remove_file(&path).is_ok()) {
                freed += bytes;
            }
        }
        freed
    }

    /// Compares flat images with the snapshots that they are of, page by page, and removes those that are something
    /// else.
    pub(super) fn verify_flat(&self, only: Option<SnapshotId>, report: &mut Report) {
        let Some(boot) = self.files.boot() else {
            return;
        };
        for (path, _, id) in self.flat_files() {
            let Some(id) = id.filter(|id| only.is_none_or(|only| only == *id)) else {
                continue;
            };
            let flat = open(&path, id, &boot);
            // No restore takes one that is not opened.
            let is_used = flat.is_some();
            let found = match flat {
                None => Some("it is of an earlier start of the machine, or damaged".to_owned()),
                Some(flat) => self.difference(&flat, id),
            };
            let Some(what) = found else { continue };
            match std::fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound && !is_used => {
                    tracing::debug!("{}: {error}", path.display());
                }
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    report.problems.push(Problem {
                        id: None,
                        what: format!(
                            "the flat image of snapshot {id} cannot be used, and cannot be removed ({error}): {what}; remove it"
                        ),
                        path,
                    });
                }
                _ => report.notes.push(format!(
                    "the flat image of snapshot {} was removed, and is made anew when it is needed: {what}",
                    id.short()
                )),
            }
        }
    }

    /// How an image differs from its snapshot; `None` where it does not, or where that cannot be told, as the snapshot
    /// is damaged itself.
    fn difference(&self, flat: &Flat, id: SnapshotId) -> Option<String> {
        let snapshot = match self.snapshot(id) {
            Err(error) if error.is_missing() => return Some("its snapshot is gone".into()),
            found => found.ok()?,
        };
        let table = snapshot.page_table().ok()?;
        let pages = table.iter().map(|(addr, _)| addr);
        let pages: Vec<u64> = pages.take_while(|addr| *addr < FILE_SPACE).collect();
        let has = flat.pieces.iter().flat_map(|piece| piece.range.iter());
        if !has.eq(pages.iter().copied()) {
            return Some("it has other pages than the snapshot".into());
        }
        let mut found: Option<String> = None;
        let mut there = [0; PAGE_SIZE as usize];
        let mut compare = |addr, page: &[u8; PAGE_SIZE as usize]| {
            if found.is_some() {
                return;
            }
            let at = flat.pieces.partition_point(|piece| piece.range.end <= addr);
            let piece = &flat.pieces[at];
            let offset = piece.offset + (addr - piece.range.start);
            found = match flat.file.read_exact_at(&mut there, offset) {
                Err(error) => Some(format!("page {addr:#x} cannot be read: {error}")),
                Ok(()) if there != *page => Some(format!("page {addr:#x} is not the snapshot's")),
                Ok(()) => None,
            };
        };
        snapshot.read_pages(&pages, &mut compare).ok()?;
        // The checksums are of the same pages.
        found.or_else(|| (!is_whole(flat).ok()?).then(|| "its checksums do not match".into()))
    }
}

/// Whether all pages of an image match their checksums.
fn is_whole(flat: &Flat) -> io::Result<bool> {
    if flat.sums.is_empty() {
        return Ok(true);
    }
    let mut bytes = vec![0; AT_ONCE];
    for piece in &flat.pieces {
        let mut at = piece.offset;
        let end = piece.offset + piece.range.len();
        while at < end {
            let part = &mut bytes[..(end - at).min(AT_ONCE as u64) as usize];
            flat.file.read_exact_at(part, at)?;
            let sums = &flat.sums[(at / PAGE_SIZE) as usize..];
            let mut pages = part.chunks_exact(PAGE_SIZE as usize).zip(sums);
            if !pages.all(|(page, sum)| crc32c::crc32c(page) == *sum) {
                return Ok(false);
            }
            at += part.len() as u64;
        }
    }
    Ok(true)
}
