//! A snapshot's pages in one sparse file, ascending by address and ready to be mapped.
//!
//! Made once for each snapshot that is brought back, so that all of its copies share the page cache, and
//! kept in the store's folder `flat` as long as there is room. A cache: a file of it is whole or not there
//! (it is renamed into place), it may be removed at any time, and one from before the last boot of the
//! machine is not trusted, so that nothing has to be synced. What becomes wrong in it later is found by a checksum of each
//! page, which whoever copies a page out of it compares.

use super::directory::Store;
use super::error::StoreError;
use super::meta::SnapshotMeta;
use super::snapshot::Snapshot;
use crate::image::PageSource;
use crate::model::{FILE_SPACE, PAGE_SIZE, PageRange, SnapshotId};
use rustix::fs::{FlockOperation, flock};
use std::fs::File;
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

pub(super) const FOLDER: &str = "flat";
const MAGIC: &[u8; 8] = b"ksnpflat";
/// 1 had no checksums of pages.
const VERSION: u32 = 2;
/// Magic, version, CRC-32C of the rest, number of pieces, boot id, snapshot id, offset and CRC-32C of the checksums.
pub(super) const HEAD: usize = 8 + 4 + 4 + 8 + 40 + 16 + 8 + 8;
/// First address, pages, offset.
pub(super) const PIECE: usize = 24;
/// Most bytes that flat images take up on the disk; the one in use stays whatever its size.
pub(super) const MOST_BYTES: u64 = 8 << 30;
/// Pages gathered before they are written.
const GATHERED: usize = 1 << 20;

/// Pages that follow each other, in memory and in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlatPiece {
    /// Where they belong.
    pub range: PageRange,
    /// Where the first one is in the file, in bytes.
    pub offset: u64,
}

/// A flat image, open.
#[derive(Debug)]
pub struct Flat {
    /// The file.
    pub file: File,
    /// Its pieces, ascending.
    pub pieces: Vec<FlatPiece>,
    /// CRC-32C of each page of the file, by its place in it; that of a place without a page is anything. None where the
    /// file is in memory and is nobody else's.
    pub sums: Arc<[u32]>,
}

impl Store {
    /// Removes the images of snapshots that are gone. Best effort: what stays takes up room, until there are others.
    pub(super) fn remove_flat(&self, gone: &[SnapshotMeta]) {
        for meta in gone {
            let path = self.dir().join(FOLDER).join(meta.id.to_string());
            match std::fs::remove_file(&path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => {
                    tracing::debug!("{}: {e}", path.display());
                }
                _ => {}
            }
        }
    }

    /// The flat image of a snapshot, made if it is not there.
    ///
    /// # Errors
    /// Damage anywhere in the snapshot's pages. That there is no room for a file is no error: it is made in
    /// memory then, without a name, as it is for a store that lies there.
    pub fn flat(&self, snapshot: &Snapshot) -> Result<Flat, StoreError> {
        let folder = self.dir().join(FOLDER);
        let known = self.files.boot();
        let path = folder.join(snapshot.id().to_string());
        // Of a boot without a name there is none that could be trusted.
        let there = known
            .as_deref()
            .and_then(|boot| open(&path, snapshot.id(), boot));
        let boot = known.unwrap_or_default();
        if let Some(flat) = there {
            // The most recently used are kept longest.
            let now = std::time::SystemTime::now();
            let _ = flat.file.set_modified(now);
            return Ok(flat);
        }
        let pieces = pieces(snapshot)?;
        // A store in memory has its room for snapshots; and what is sealed does not come onto a disk in plain.
        if !self.files.is_in_memory(self.dir())
            && !self.is_sealed(snapshot.header().session)?
            && let Some(flat) = to_file(&folder, &path, &pieces, snapshot, &boot)?
        {
            return Ok(flat);
        }
        self.in_memory(&path, &pieces, snapshot, &boot)
    }

    /// As [`Store::flat`], in memory, whatever there is.
    pub(super) fn flat_in_memory(&self, snapshot: &Snapshot) -> Result<Flat, StoreError> {
        let path = self.dir().join(FOLDER).join(snapshot.id().to_string());
        let boot = self.files.boot().unwrap_or_default();
        self.in_memory(&path, &pieces(snapshot)?, snapshot, &boot)
    }

    fn in_memory(
        &self,
        path: &Path,
        pieces: &[FlatPiece],
        snapshot: &Snapshot,
        boot: &str,
    ) -> Result<Flat, StoreError> {
        let file = memory_file(path)?;
        let filled = fill(file, pieces, snapshot, boot);
        let flat = filled.map_err(|e| match e {
            FillError::Store(e) => e,
            FillError::File(e) => in_memory(path)(e),
        })?;
        // Nobody else has it: what is in memory is as good as what is read from there.
        Ok(Flat {
            sums: Arc::default(),
            ..flat
        })
    }
}

fn in_memory(path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    StoreError::io("make in memory the flat image", path)
}

/// A file in memory without a name, for the image that would be `path`.
pub(super) fn memory_file(path: &Path) -> Result<File, StoreError> {
    let flags = rustix::fs::MemfdFlags::CLOEXEC;
    let file = rustix::fs::memfd_create("ksnap-flat", flags);
    Ok(file.map_err(|e| in_memory(path)(e.into()))?.into())
}

/// Makes an image in the folder. `None`: there is no room for one.
fn to_file(
    folder: &Path,
    path: &Path,
    pieces: &[FlatPiece],
    snapshot: &Snapshot,
    boot: &str,
) -> Result<Option<Flat>, StoreError> {
    let temp = folder.join(format!(".tmp-{}-{}", snapshot.id(), std::process::id()));
    let made = make_file(folder, &temp)
        .map_err(FillError::File)
        .and_then(|file| fill(file, pieces, snapshot, boot));
    if made.is_err() {
        let _ = std::fs::remove_file(&temp);
    }
    match made {
        Ok(flat) => {
            if let Err(e) = std::fs::rename(&temp, path) {
                tracing::debug!("{}: {e}", path.display());
                let _ = std::fs::remove_file(&temp);
            }
            evict(folder, path, MOST_BYTES);
            Ok(Some(flat))
        }
        Err(FillError::Store(e)) => Err(e),
        Err(FillError::File(e)) => {
            tracing::debug!("flat image in memory: {}: {e}", temp.display());
            Ok(None)
        }
    }
}

pub(super) fn make_file(folder: &Path, temp: &Path) -> io::Result<File> {
    match std::fs::DirBuilder::new().mode(0o700).create(folder) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
        _ => {}
    }
    File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(temp)
}

/// Pages that follow each other, in memory and in the file: address and offset of each.
pub(super) fn runs(pages: impl Iterator<Item = (u64, u64)>) -> Vec<FlatPiece> {
    let mut pieces: Vec<FlatPiece> = Vec::new();
    for (addr, offset) in pages {
        match pieces.last_mut() {
            Some(last) if last.range.end == addr && last.offset + last.range.len() == offset => {
                last.range.end += PAGE_SIZE;
            }
            _ => pieces.push(FlatPiece {
                range: PageRange::new(addr, addr + PAGE_SIZE),
                offset,
            }),
        }
    }
    pieces
}

/// Runs of pages of memory, wherever each of these is going to be.
pub(super) fn memory_runs(snapshot: &Snapshot) -> Result<Vec<FlatPiece>, StoreError> {
    let all = snapshot.page_table()?.iter().map(|(addr, _)| addr);
    let memory = all.take_while(|addr| *addr < FILE_SPACE);
    Ok(runs(memory.map(|addr| (addr, addr))))
}

/// Where each page of memory goes.
fn pieces(snapshot: &Snapshot) -> Result<Vec<FlatPiece>, StoreError> {
    let mut pieces = memory_runs(snapshot)?;
    let table = (HEAD + pieces.len() * PIECE) as u64;
    let mut at = table.next_multiple_of(PAGE_SIZE);
    for piece in &mut pieces {
        piece.offset = at;
        at += piece.range.len();
    }
    Ok(pieces)
}

fn end(pieces: &[FlatPiece]) -> u64 {
    pieces
        .last()
        .map_or(PAGE_SIZE, |last| last.offset + last.range.len())
}

/// The beginning of a file, whose checksums are at an offset.
pub(super) fn head(id: SnapshotId, boot: &str, pieces: &[FlatPiece], sums: (u64, u32)) -> Vec<u8> {
    let mut rest = (pieces.len() as u64).to_le_bytes().to_vec();
    let mut name = [0u8; 40];
    let len = boot.len().min(name.len());
    name[..len].copy_from_slice(&boot.as_bytes()[..len]);
    rest.extend_from_slice(&name);
    rest.extend_from_slice(&id.0);
    rest.extend_from_slice(&sums.0.to_le_bytes());
    rest.extend_from_slice(&u64::from(sums.1).to_le_bytes());
    for piece in pieces {
        for word in [piece.range.start, piece.range.pages(), piece.offset] {
            rest.extend_from_slice(&word.to_le_bytes());
        }
    }
    let mut head = MAGIC.to_vec();
    head.extend_from_slice(&VERSION.to_le_bytes());
    head.extend_from_slice(&crc32c::crc32c(&rest).to_le_bytes());
    head.extend_from_slice(&rest);
    head
}

/// Checksums as they lie behind the pages, and the checksum of these.
pub(super) fn encode_sums(sums: &[u32]) -> (Vec<u8>, u32) {
    let bytes: Vec<u8> = sums.iter().flat_map(|sum| sum.to_le_bytes()).collect();
    let crc = crc32c::crc32c(&bytes);
    (bytes, crc)
}

/// That of a page of zeroes.
pub(super) fn zero_sum() -> u32 {
    crc32c::crc32c(&[0; PAGE_SIZE as usize])
}

/// Reads bytes at an offset of a file.
pub(super) type ReadAt<'a> = &'a dyn Fn(&mut [u8], u64) -> io::Result<()>;

/// Checksums of all pages in front of an offset; `None` if they are not what they were.
fn read_sums(read: ReadAt<'_>, at: u64, len: u64, crc: u64) -> Option<Arc<[u32]>> {
    let count = at / PAGE_SIZE;
    if !at.is_multiple_of(PAGE_SIZE) || at.checked_add(count * 4)? > len {
        return None;
    }
    let mut bytes = vec![0; count as usize * 4];
    read(&mut bytes, at).ok()?;
    let sums = bytes.as_chunks().0.iter();
    (u64::from(crc32c::crc32c(&bytes)) == crc)
        .then(|| sums.map(|sum| u32::from_le_bytes(*sum)).collect())
}

/// Opens a flat image of this boot; `None` if there is none that can be used.
pub(super) fn open(path: &Path, id: SnapshotId, boot: &str) -> Option<Flat> {
    // Whoever finds it damaged says so in it, where that can be.
    let file = File::options().read(true).write(true).open(path);
    let file = file.or_else(|_| File::open(path)).ok()?;
    let _ = flock(&file, FlockOperation::NonBlockingLockShared);
    let len = file.metadata().ok()?.len();
    let (pieces, sums) = parse(&|bytes, at| file.read_exact_at(bytes, at), len, id, boot)?;
    Some(Flat { file, pieces, sums })
}

/// Pieces and checksums of an image of so many bytes; `None` if they are not what would be written now.
pub(super) fn parse(
    read: ReadAt<'_>,
    len: u64,
    id: SnapshotId,
    boot: &str,
) -> Option<(Vec<FlatPiece>, Arc<[u32]>)> {
    let mut start = [0u8; HEAD];
    read(&mut start, 0).ok()?;
    let word = |at: usize| u64::from_le_bytes(start[at..at + 8].try_into().expect("eight bytes"));
    let count = word(16);
    if count > len / PAGE_SIZE {
        return None;
    }
    let mut whole = vec![0u8; HEAD + count as usize * PIECE];
    read(&mut whole, 0).ok()?;
    let words: Vec<u64> = whole[HEAD..]
        .as_chunks()
        .0
        .iter()
        .map(|bytes| u64::from_le_bytes(*bytes))
        .collect();
    let pieces: Vec<FlatPiece> = words
        .as_chunks()
        .0
        .iter()
        .map(|[start, pages, offset]| FlatPiece {
            range: PageRange {
                start: *start,
                end: start.saturating_add(pages.saturating_mul(PAGE_SIZE)),
            },
            offset: *offset,
        })
        .collect();
    let sums = read_sums(read, word(80), len, word(88))?;
    let crc = word(88) as u32;
    // The same bytes as would be written now: magic, version, checksum, boot and name in one comparison.
    let inside = |piece: &FlatPiece| {
        let end = piece.offset.checked_add(piece.range.len());
        let places = [piece.offset, piece.range.start];
        end.is_some_and(|end| piece.offset < end && end <= word(80))
            && places.iter().all(|at| at.is_multiple_of(PAGE_SIZE))
    };
    let follow = |two: &[FlatPiece]| two[0].range.end <= two[1].range.start;
    let same = head(id, boot, &pieces, (word(80), crc)) == whole;
    (same && pieces.iter().all(inside) && pieces.windows(2).all(follow)).then_some((pieces, sums))
}

enum FillError {
    Store(StoreError),
    File(io::Error),
}

/// Writes everything, by two threads.
fn fill(
    file: File,
    pieces: &[FlatPiece],
    snapshot: &Snapshot,
    boot: &str,
) -> Result<Flat, FillError> {
    let end = end(pieces);
    file.set_len(end).map_err(FillError::File)?;
    let sums: Vec<AtomicU32> = (0..end / PAGE_SIZE)
        .map(|_| AtomicU32::new(zero_sum()))
        .collect();
    let addrs: Vec<u64> = pieces.iter().flat_map(|p| p.range.iter()).collect();
    let (low, high) = addrs.split_at(addrs.len() / 2);
    let (first, second) = std::thread::scope(|scope| {
        let other = scope.spawn(|| copy(&file, pieces, snapshot, high, &sums));
        let first = copy(&file, pieces, snapshot, low, &sums);
        (first, other.join().expect("no panic"))
    });
    first?;
    second?;
    let sums: Arc<[u32]> = sums.into_iter().map(AtomicU32::into_inner).collect();
    let (bytes, crc) = encode_sums(&sums);
    let head = head(snapshot.id(), boot, pieces, (end, crc));
    file.write_all_at(&bytes, end)
        .and_then(|()| file.write_all_at(&head, 0))
        .map_err(FillError::File)?;
    let _ = flock(&file, FlockOperation::NonBlockingLockShared);
    Ok(Flat {
        file,
        pieces: pieces.to_vec(),
        sums,
    })
}

fn copy(
    file: &File,
    pieces: &[FlatPiece],
    snapshot: &Snapshot,
    addrs: &[u64],
    sums: &[AtomicU32],
) -> Result<(), FillError> {
    let mut run = Run::new(file);
    let mut last = 0;
    snapshot
        .read_pages(addrs, &mut |addr, page| {
            if !pieces[last].range.contains(addr) {
                last = pieces.partition_point(|p| p.range.end <= addr);
            }
            let piece = pieces[last];
            // Zeroes are there already: the file is sparse.
            if page.iter().any(|byte| *byte != 0) {
                let offset = piece.offset + (addr - piece.range.start);
                let sum = &sums[(offset / PAGE_SIZE) as usize];
                sum.store(crc32c::crc32c(page), Ordering::Relaxed);
                run.add(offset, page);
            }
        })
        .map_err(FillError::Store)?;
    run.finish().map_err(FillError::File)
}

/// Bytes on their way into the file.
pub(super) struct Run<'a> {
    file: &'a File,
    bytes: Vec<u8>,
    offset: u64,
    failed: Option<io::Error>,
}

impl<'a> Run<'a> {
    pub(super) fn new(file: &'a File) -> Self {
        Self {
            file,
            bytes: Vec::with_capacity(GATHERED),
            offset: 0,
            failed: None,
        }
    }

    /// Writes what is left.
    pub(super) fn finish(mut self) -> io::Result<()> {
        self.flush();
        self.failed.map_or(Ok(()), Err)
    }

    pub(super) fn add(&mut self, offset: u64, page: &[u8]) {
        if self.offset + self.bytes.len() as u64 != offset || self.bytes.len() >= GATHERED {
            self.flush();
            self.offset = offset;
        }
        self.bytes.extend_from_slice(page);
    }

    fn flush(&mut self) {
        if self.failed.is_none()
            && let Err(e) = self.file.write_all_at(&self.bytes, self.offset)
        {
            self.failed = Some(e);
        }
        self.bytes.clear();
    }
}

/// Removes the images used longest ago when all of them take up more than `most`. Whoever has one open keeps it.
pub(super) fn evict(folder: &Path, keep: &Path, most: u64) {
    let mut images: Vec<(std::time::SystemTime, u64, PathBuf)> = std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let meta = entry.metadata().ok()?;
            Some((meta.modified().ok()?, meta.blocks() * 512, entry.path()))
        })
        .collect();
    images.sort();
    let mut total: u64 = images.iter().map(|(_, bytes, _)| bytes).sum();
    for (_, bytes, path) in images {
        if total <= most {
            return;
        }
        if path != keep && std::fs::remove_file(&path).is_ok() {
            total -= bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_used_only_if_its_pieces_are_inside_and_the_boot_is_the_same() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("image");
        let id = SnapshotId([7; 16]);
        let piece = |offset| FlatPiece {
            range: PageRange::new(0x1000, 0x3000),
            offset,
        };
        let usable = |offset, boot| {
            let end = 3 * PAGE_SIZE;
            let (sums, crc) = encode_sums(&[zero_sum(); 3]);
            let mut bytes = head(id, "this one", &[piece(offset)], (end, crc));
            bytes.resize(end as usize, 0);
            bytes.extend(sums);
            std::fs::write(&path, bytes).expect("written");
            open(&path, id, boot).is_some()
        };
        assert!(usable(PAGE_SIZE, "this one"));
        assert!(!usable(PAGE_SIZE, "another"));
        for outside in [PAGE_SIZE + 1, u64::MAX - PAGE_SIZE + 1, u64::MAX] {
            assert!(!usable(outside, "this one"), "{outside:#x}");
        }
    }
}
