//! Writes pages to their places in a file, and leaves holes for those that are zero.

use crate::model::{PAGE_SIZE, Page};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Pages that follow each other are written in pieces of up to this many bytes.
const PIECE: usize = 256 << 10;

/// A file in the making. Nothing of it is kept in memory but the piece being put together.
pub(super) struct Sparse<'a> {
    file: &'a File,
    piece: Vec<u8>,
    at: u64,
    /// Bytes that were written rather than left out.
    pub(super) written: u64,
}

impl<'a> Sparse<'a> {
    /// Of an empty file.
    pub(super) fn new(file: &'a File) -> Self {
        Self {
            file,
            piece: Vec::with_capacity(PIECE),
            at: 0,
            written: 0,
        }
    }

    /// Writes bytes of any kind.
    pub(super) fn bytes(&mut self, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, at)?;
        self.written += bytes.len() as u64;
        Ok(())
    }

    /// Writes a page, unless it is zero.
    pub(super) fn page(&mut self, at: u64, page: &Page) -> io::Result<()> {
        if page.iter().all(|byte| *byte == 0) {
            return Ok(());
        }
        if at != self.at + self.piece.len() as u64 || self.piece.len() >= PIECE {
            self.flush()?;
            self.at = at;
        }
        self.piece.extend_from_slice(page);
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        let (at, piece) = (self.at, std::mem::take(&mut self.piece));
        if !piece.is_empty() {
            self.bytes(at, &piece)?;
        }
        self.piece = piece;
        self.piece.clear();
        Ok(())
    }

    /// Writes what is left, and gives the file its length.
    pub(super) fn finish(mut self, len: u64) -> io::Result<u64> {
        self.flush()?;
        self.file.set_len(len)?;
        Ok(self.written)
    }
}

const _: () = assert!((PIECE as u64).is_multiple_of(PAGE_SIZE));

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn zero_pages_take_no_room_and_all_pages_read_back() {
        let file = tempfile::tempfile().expect("a temporary file");
        let mut sparse = Sparse::new(&file);
        let page = |byte: u8| [byte; PAGE_SIZE as usize];
        // Out of order, over the size of a piece, with zero pages between.
        let pages: Vec<u8> = (0..400u32)
            .map(|n| if n % 3 == 0 { 0 } else { n as u8 | 1 })
            .collect();
        for n in (200..400).chain(0..200) {
            sparse
                .page(n as u64 * PAGE_SIZE, &page(pages[n]))
                .expect("written");
        }
        let len = 1000 * PAGE_SIZE;
        let written = sparse.finish(len).expect("finished");
        let filled = pages.iter().filter(|byte| **byte != 0).count() as u64;
        assert_eq!(written, filled * PAGE_SIZE);
        let metadata = file.metadata().expect("metadata");
        assert_eq!(metadata.len(), len);
        assert!(metadata.blocks() * 512 < len / 2, "{metadata:?}");
        let mut read = page(0);
        for n in 0..1000 {
            file.read_exact_at(&mut read, n as u64 * PAGE_SIZE)
                .expect("read");
            assert_eq!(read, page(pages.get(n).copied().unwrap_or(0)), "{n}");
        }
    }
}
