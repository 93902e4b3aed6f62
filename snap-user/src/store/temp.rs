//! A file being written from front to back, under a name that nobody looks for until it is whole.

use super::buffer::WriteBuffer;
use super::error::StoreError;
use super::files::{Files, WriteFile};
use super::lender::Lender;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

/// Length of the beginning that is written again when the header is known.
const FIRST: usize = 4096;

/// A file being written. Dropped before [`TempFile::rename`] it leaves nothing behind.
#[derive(Debug)]
pub(super) struct TempFile {
    files: Arc<dyn Files>,
    /// `None` once it has another name.
    path: Option<PathBuf>,
    /// For messages.
    shown: PathBuf,
    file: Option<Box<dyn WriteFile>>,
    buffer: WriteBuffer,
    /// The beginning of the file, once it is written.
    first: Vec<u8>,
    /// Bytes of the file that are written, the rest is in the buffer.
    flushed: u64,
    write_ns: u64,
    failed: bool,
    /// Others may borrow from it.
    lender: Option<Arc<Lender>>,
}

impl TempFile {
    /// Makes a file that begins with so many zeroes: room for a header, which is known last. At most one buffer's.
    pub(super) fn create(
        files: &Arc<dyn Files>,
        path: PathBuf,
        mut buffer: WriteBuffer,
        header: usize,
    ) -> Result<Self, StoreError> {
        let file = files
            .create(&path)
            .map_err(StoreError::io("create", &path))?;
        buffer.clear();
        buffer.extend(&vec![0; header]);
        Ok(Self {
            files: Arc::clone(files),
            shown: path.clone(),
            path: Some(path),
            file: Some(file),
            buffer,
            first: Vec::new(),
            flushed: 0,
            write_ns: 0,
            failed: false,
            lender: None,
        })
    }

    /// From here on others may borrow from it.
    pub(super) fn lend(&mut self, lender: Arc<Lender>) {
        self.lender = Some(lender);
    }

    /// Where it is, or was before it was renamed.
    pub(super) fn path(&self) -> &Path {
        &self.shown
    }

    /// Bytes written so far, without what waits in the buffer.
    pub(super) fn flushed(&self) -> u64 {
        self.flushed
    }

    /// Time spent in writes, or in waiting for them, nanoseconds.
    pub(super) fn write_ns(&self) -> u64 {
        self.write_ns
    }

    /// The beginning of the file as it is by now; empty before anything is written.
    pub(super) fn first(&self) -> &[u8] {
        &self.first
    }

    /// Has something written, unless an earlier write failed. `None`: the file has been taken.
    fn writing<T>(
        &mut self,
        write: impl FnOnce(&mut dyn WriteFile) -> std::io::Result<T>,
    ) -> Result<Option<T>, StoreError> {
        if self.failed {
            return Err(StoreError::Misuse {
                why: "an earlier write of it failed: drop it and begin anew".into(),
            });
        }
        let start = Instant::now();
        let Some(file) = self.file.as_mut() else {
            return Ok(None);
        };
        let done = write(&mut **file);
        self.write_ns += start.elapsed().as_nanos() as u64;
        self.failed = done.is_err();
        done.map(Some).map_err(StoreError::io("write", &self.shown))
    }

    /// Writes what the buffer holds: where others borrow from the file, it is there then.
    pub(super) fn flush(&mut self) -> Result<(), StoreError> {
        let mut buffer = std::mem::take(&mut self.buffer);
        if self.flushed == 0 {
            let first = &buffer.bytes()[..buffer.bytes().len().min(FIRST)];
            self.first.extend_from_slice(first);
        }
        let (at, len) = (self.flushed, buffer.bytes().len() as u64);
        let is_lent = self.lender.is_some();
        let done = self.writing(|file| {
            if is_lent {
                file.write_all_at(buffer.bytes(), at)?;
                buffer.clear();
                return Ok(buffer);
            }
            file.write_behind(buffer, at)
        });
        self.flushed += len;
        self.buffer = done?.unwrap_or_default();
        if let Some(lender) = &self.lender {
            lender.wrote(self.flushed);
        }
        Ok(())
    }

    /// Adds to the end of the file. All writes but the last are whole buffers at multiples of its size, as
    /// direct I/O wants them.
    pub(super) fn extend(&mut self, mut bytes: &[u8]) -> Result<(), StoreError> {
        while !bytes.is_empty() {
            let taken = self.buffer.extend(bytes);
            bytes = &bytes[taken..];
            if self.buffer.is_full() {
                self.flush()?;
            }
        }
        Ok(())
    }

    /// Writes the beginning of the file again, with other bytes at `offset`. A whole page of it, because a part
    /// would have to be read back first.
    pub(super) fn rewrite(&mut self, bytes: &[u8], offset: usize) -> Result<(), StoreError> {
        let mut first = self.first.clone();
        first[offset..offset + bytes.len()].copy_from_slice(bytes);
        self.writing(|file| file.write_all_at(&first, 0))?;
        self.first = first;
        Ok(())
    }

    /// Makes content and length durable.
    pub(super) fn sync(&mut self) -> Result<(), StoreError> {
        let Some(file) = &mut self.file else {
            return Ok(());
        };
        let done = file.sync();
        if let Some(lender) = &self.lender {
            lender.synced(self.flushed, done.is_ok());
        }
        done.map_err(StoreError::io("sync", &self.shown))
    }

    /// Nothing more is written.
    pub(super) fn finish(&mut self) -> Result<(), StoreError> {
        match &mut self.file {
            Some(file) => file.finish().map_err(StoreError::io("write", &self.shown)),
            None => Ok(()),
        }
    }

    /// The file, to be synced later; nothing more is written.
    pub(super) fn take_file(&mut self) -> Result<Option<Box<dyn WriteFile>>, StoreError> {
        self.finish()?;
        Ok(self.file.take())
    }

    /// Gives it its name. From here on it stays.
    pub(super) fn rename(&mut self, to: &Path) -> Result<(), StoreError> {
        self.finish()?;
        match &self.lender {
            Some(lender) => lender.rename(&*self.files, to),
            None => self.files.rename(&self.shown, to),
        }
        .map_err(StoreError::io("publish", to))?;
        self.path = None;
        Ok(())
    }

    /// Nothing more is written. What others have borrowed is in the file first: they go on without it.
    pub(super) fn end_lending(&mut self) {
        let Some(lender) = self.lender.clone() else {
            return;
        };
        if self.path.is_some()
            && lender.close()
            && let Err(error) = self.flush()
        {
            tracing::debug!("what was lent of {}: {error}", self.shown.display());
        }
        lender.end();
        self.lender = None;
    }

    /// The buffer, for the next file.
    pub(super) fn take_buffer(&mut self) -> WriteBuffer {
        std::mem::take(&mut self.buffer)
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        self.end_lending();
        let Some(path) = self.path.take() else {
            return;
        };
        self.file = None;
        if let Err(error) = self.files.remove_file(&path)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            // The next writer of the session removes it.
            tracing::debug!("{} stays: {error}", path.display());
        }
    }
}
