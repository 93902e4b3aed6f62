//! A file that memory is filled from, mapped.

use super::arrivals::Arrivals;
use super::pager::Piece;
use super::{Result, SysError};
use crate::model::PAGE_SIZE;
use std::fs::File;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

/// A read-only shared mapping of a file.
#[derive(Debug)]
pub struct FileMap {
    at: *const u8,
    len: usize,
}

// SAFETY: memory that is only ever read, by any thread.
unsafe impl Send for FileMap {}
// SAFETY: the same.
unsafe impl Sync for FileMap {}

impl FileMap {
    /// Maps a whole file. It must not be cut shorter while it is mapped.
    pub fn new(file: &File) -> Result<Self> {
        let fail = |e| SysError::new("mmap", "a flat image", e);
        let len = file.metadata().map_err(fail)?.len().max(1) as usize;
        // SAFETY: a new mapping at an address of the kernel's choice, owned by the value.
        let at = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        match at == libc::MAP_FAILED {
            true => Err(SysError::last("mmap", "a flat image")),
            false => Ok(Self { at: at.cast(), len }),
        }
    }

    /// Its bytes.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the mapping made above; the file is immutable by convention, and pages of it that cannot
        // be read end the process rather than give other bytes.
        unsafe { std::slice::from_raw_parts(self.at, self.len) }
    }
}

impl Drop for FileMap {
    fn drop(&mut self) {
        // SAFETY: unmaps what `new` mapped; nothing refers to it any more.
        unsafe { libc::munmap(self.at as *mut _, self.len) };
    }
}

/// What memory is filled from, and which pages of it have come where they are still on their way.
#[derive(Debug)]
pub struct Image {
    map: FileMap,
    arrivals: Option<Arc<Arrivals>>,
    /// CRC-32C of each page, by its place; none where it is in memory.
    sums: Arc<[u32]>,
    /// To say in it that it is damaged, where there are checksums.
    file: Option<File>,
}

impl Image {
    /// Of a file, all of which is there unless something else is known, and whose pages have these checksums.
    pub fn new(file: &File, sums: &Arc<[u32]>, arrivals: Option<Arc<Arrivals>>) -> Result<Self> {
        let fail = |e| SysError::new("dup", "a flat image", e);
        let own = (!sums.is_empty()).then(|| file.try_clone()).transpose();
        Ok(Self {
            map: FileMap::new(file)?,
            arrivals,
            sums: Arc::clone(sums),
            file: own.map_err(fail)?,
        })
    }

    /// Whether the pages of a piece are what they were when the image was made. Where they are not, that is said in the
    /// file, so that nobody uses it again.
    pub fn is_whole(&self, piece: &Piece) -> bool {
        if self.sums.is_empty() {
            return true;
        }
        let first = (piece.offset / PAGE_SIZE) as usize;
        let from = piece.offset as usize;
        let bytes = self.bytes().get(from..from + piece.range.len() as usize);
        let sums = self.sums.get(first..).unwrap_or_default();
        let whole = bytes.is_some_and(|bytes| {
            let mut pages = bytes.chunks_exact(PAGE_SIZE as usize);
            sums.len() >= pages.len()
                && pages
                    .by_ref()
                    .zip(sums)
                    .all(|(page, sum)| crc32c::crc32c(page) == *sum)
        });
        if !whole && let Some(file) = &self.file {
            // Where it cannot be written, each who uses it finds the damage.
            let _ = file.write_all_at(&[0; 8], 0);
        }
        whole
    }

    /// The descriptor by which it says so.
    pub(super) fn descriptor(&self) -> Option<RawFd> {
        self.file.as_ref().map(AsRawFd::as_raw_fd)
    }

    /// Its bytes. Those of pages that have not come are zeroes.
    pub fn bytes(&self) -> &[u8] {
        self.map.bytes()
    }

    /// Waits until all of these have come. `false` when they will not.
    pub fn wait_for<'a>(&self, pieces: impl IntoIterator<Item = &'a Piece>) -> bool {
        let Some(arrivals) = &self.arrivals else {
            return true;
        };
        let pages = |piece: &Piece| {
            let first = piece.offset / PAGE_SIZE;
            first..first + piece.range.pages()
        };
        arrivals.wait_for(pieces.into_iter().flat_map(pages))
    }

    /// Whether the page at an offset has come.
    pub(super) fn has(&self, offset: u64) -> bool {
        let arrivals = self.arrivals.as_ref();
        arrivals.is_none_or(|arrivals| arrivals.has(offset / PAGE_SIZE))
    }

    /// Asks for the page at an offset.
    pub(super) fn ask(&self, offset: u64) {
        if let Some(arrivals) = &self.arrivals {
            arrivals.ask(offset / PAGE_SIZE);
        }
    }
}
