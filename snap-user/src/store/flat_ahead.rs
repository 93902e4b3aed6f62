//! A flat image that is made while snapshots still come: each costs only what it changed, so that the last one can be
//! brought back at once, whatever its size.

use super::directory::Store;
use super::error::StoreError;
use super::flat::{
    FOLDER, Flat, FlatPiece, HEAD, MOST_BYTES, PIECE, Run, encode_sums, evict, head, make_file,
    memory_file, memory_runs, runs, zero_sum,
};
use super::snapshot::Snapshot;
use crate::image::{Location, PageSource};
use crate::model::{FILE_SPACE, PAGE_SIZE, PageTable, SnapshotId};
use rustix::fs::{FlockOperation, flock};
use std::fs::File;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Begins the names of those that are not published.
const PREFIX: &str = ".tmp-ahead-";
/// Pieces for which there is room, for each that the first snapshot has: every mapping or change of one may cut some.
const ROOM: usize = 8;
/// And at least.
const LEAST_ROOM: usize = 4096;

/// A flat image in the making. Leaves nothing behind unless it is published.
#[derive(Debug)]
pub struct FlatAhead {
    store: Store,
    file: File,
    /// Its file, until it is published. In memory it has none, and this is where one would be.
    temp: PathBuf,
    has_name: bool,
    /// Where each page is in the file.
    offsets: PageTable<u64>,
    /// Pages of the snapshot that it is at.
    table: PageTable<Location>,
    id: SnapshotId,
    /// CRC-32C of each page of the file, by its place in it.
    sums: Vec<u32>,
    /// Pieces that fit in front of the pages.
    room: usize,
    end: u64,
}

fn io(path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    StoreError::io("write the flat image", path)
}

impl Store {
    /// Begins a flat image that is to follow the snapshots after this one. Images used longest ago go where all of them
    /// take up too much: now, since nothing waits for this one yet.
    pub fn flat_ahead(&self, snapshot: &Snapshot) -> Result<FlatAhead, StoreError> {
        self.flat_ahead_within(snapshot, MOST_BYTES)
    }

    pub(super) fn flat_ahead_within(
        &self,
        snapshot: &Snapshot,
        most: u64,
    ) -> Result<FlatAhead, StoreError> {
        // What is sealed does not come onto a disk in plain.
        let mut ahead = self.begin_ahead(!self.is_sealed(snapshot.header().session)?)?;
        let room = (memory_runs(snapshot)?.len() * ROOM).max(LEAST_ROOM);
        ahead.leave_room(room);
        ahead.follow(snapshot)?;
        ahead.make_room(most);
        Ok(ahead)
    }

    /// Begins a flat image of pages that are going to come: those of memory, and behind them those of files. `addrs` are
    /// ascending.
    pub fn flat_awaiting(
        &self,
        addrs: impl Iterator<Item = u64> + Clone,
    ) -> Result<FlatAhead, StoreError> {
        let mut ahead = self.begin_ahead(!self.seals())?;
        ahead.leave_room(runs(addrs.clone().map(|addr| (addr, addr))).len());
        for addr in addrs {
            ahead.offsets.insert(addr, ahead.end);
            ahead.end += PAGE_SIZE;
        }
        ahead.file.set_len(ahead.end).map_err(io(&ahead.temp))?;
        ahead.fit_sums();
        ahead.make_room(MOST_BYTES);
        Ok(ahead)
    }

    /// An empty one, with a name unless the store is in memory, which has its room for snapshots.
    fn begin_ahead(&self, may_have_name: bool) -> Result<FlatAhead, StoreError> {
        let folder = self.dir().join(FOLDER);
        let number = RandomState::new().hash_one(std::process::id());
        let temp = folder.join(format!("{PREFIX}{number:016x}"));
        let has_name = may_have_name && !self.files.is_in_memory(self.dir());
        let file = match has_name {
            true => {
                sweep(&folder);
                let file = make_file(&folder, &temp).map_err(io(&temp))?;
                // Whose maker lives: see below.
                let _ = flock(&file, FlockOperation::NonBlockingLockExclusive);
                file
            }
            false => memory_file(&temp)?,
        };
        Ok(FlatAhead {
            store: self.clone(),
            file,
            temp,
            has_name,
            offsets: PageTable::new(),
            table: PageTable::new(),
            sums: Vec::new(),
            id: SnapshotId([0; 16]),
            room: 0,
            end: 0,
        })
    }
}

/// Removes what those left that were killed while they made one.
fn sweep(folder: &Path) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let ahead = entry.file_name().to_string_lossy().starts_with(PREFIX);
        if let Some(file) = ahead.then(|| File::open(entry.path()).ok()).flatten()
            && flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok()
        {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

impl FlatAhead {
    /// Leaves room for so many pieces in front of the pages.
    fn leave_room(&mut self, pieces: usize) {
        self.room = pieces;
        self.end = ((HEAD + pieces * PIECE) as u64).next_multiple_of(PAGE_SIZE);
    }

    /// Pages that have been added are zeroes.
    fn fit_sums(&mut self) {
        let pages = self.pages() as usize;
        self.sums.resize(pages, zero_sum());
    }

    /// Removes others where all of them take up more than `most`.
    fn make_room(&self, most: u64) {
        if self.has_name {
            evict(&self.store.dir().join(FOLDER), &self.temp, most);
        }
    }

    /// Its length in pages.
    pub fn pages(&self) -> u64 {
        self.end / PAGE_SIZE
    }

    /// The place of a page in it, in pages.
    pub fn place(&self, addr: u64) -> Option<u64> {
        Some(self.offsets.get(addr)? / PAGE_SIZE)
    }

    /// Pages that were awaited have come: these bytes, from a place on.
    pub fn put(&mut self, place: u64, bytes: &[u8]) -> Result<(), StoreError> {
        let written = self.file.write_all_at(bytes, place * PAGE_SIZE);
        written.map_err(io(&self.temp))?;
        let pages = bytes.chunks_exact(PAGE_SIZE as usize);
        for (page, place) in pages.zip(place..) {
            if let Some(sum) = self.sums.get_mut(place as usize) {
                *sum = crc32c::crc32c(page);
            }
        }
        Ok(())
    }

    /// The image as it is, of memory and files.
    pub fn image(&self) -> Result<Flat, StoreError> {
        Ok(Flat {
            file: self.file.try_clone().map_err(io(&self.temp))?,
            pieces: runs(self.offsets.iter()),
            // They have not all come.
            sums: Arc::default(),
        })
    }

    /// All that was awaited has come, and is this snapshot's.
    pub fn publish_as(mut self, id: SnapshotId) -> Result<Flat, StoreError> {
        self.id = id;
        self.publish()
    }

    /// Makes it an image of another snapshot: what differs is written.
    ///
    /// # Errors
    /// Then it is an image of nothing.
    pub fn follow(&mut self, snapshot: &Snapshot) -> Result<(), StoreError> {
        let table = snapshot.page_table()?;
        let mut written = Vec::new();
        for addr in self.table.diff(table) {
            if addr >= FILE_SPACE {
                continue;
            }
            match (table.get(addr), self.offsets.get(addr)) {
                (Some(_), Some(_)) => written.push(addr),
                (Some(_), None) => {
                    self.offsets.insert(addr, self.end);
                    self.end += PAGE_SIZE;
                    written.push(addr);
                }
                (None, _) => self.offsets.forget(addr),
            }
        }
        self.file.set_len(self.end).map_err(io(&self.temp))?;
        self.fit_sums();
        written.sort_unstable();
        let mut run = Run::new(&self.file);
        let fresh = self.table.pages() == 0;
        snapshot.read_pages(&written, &mut |addr, page| {
            // Zeroes are there already where nothing was: the file is sparse.
            if let Some(offset) = self.offsets.get(addr)
                && (!fresh || page.iter().any(|byte| *byte != 0))
            {
                self.sums[(offset / PAGE_SIZE) as usize] = crc32c::crc32c(page);
                run.add(offset, page);
            }
        })?;
        run.finish().map_err(io(&self.temp))?;
        self.table = table.clone();
        self.id = snapshot.id();
        Ok(())
    }

    /// Ends the making: the image, which [`Store::flat`] finds from now on as well, unless it lies in memory, has become
    /// too ragged, or the kernel's boot has no name.
    pub fn publish(mut self) -> Result<Flat, StoreError> {
        let memory = self
            .offsets
            .iter()
            .take_while(|(addr, _)| *addr < FILE_SPACE);
        let pieces = runs(memory);
        if let Err(e) = self.put_in_place(&pieces) {
            tracing::debug!("{e}");
        }
        let file = self.file.try_clone().map_err(io(&self.temp))?;
        let sums = std::mem::take(&mut self.sums).into();
        Ok(Flat { file, pieces, sums })
    }

    fn put_in_place(&mut self, pieces: &[FlatPiece]) -> Result<(), StoreError> {
        // Of a boot without a name none can be trusted.
        let boot = self.store.files.boot();
        let Some(boot) = boot.filter(|_| self.has_name && pieces.len() <= self.room) else {
            return Ok(());
        };
        let (bytes, crc) = encode_sums(&self.sums);
        let head = head(self.id, &boot, pieces, (self.end, crc));
        self.file
            .write_all_at(&bytes, self.end)
            .and_then(|()| self.file.write_all_at(&head, 0))
            .map_err(io(&self.temp))?;
        let path = self.store.dir().join(FOLDER).join(self.id.to_string());
        std::fs::rename(&self.temp, &path).map_err(io(&path))?;
        self.has_name = false;
        Ok(())
    }
}

impl Drop for FlatAhead {
    fn drop(&mut self) {
        if self.has_name {
            let _ = std::fs::remove_file(&self.temp);
        }
    }
}
