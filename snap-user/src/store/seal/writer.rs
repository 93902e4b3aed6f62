//! A sealed file being written.

use super::blocks::{BLOCK, Blocks, FIRST_ROOM, HEAD, ROOM, TAG};
use crate::store::buffer::WriteBuffer;
use crate::store::files::WriteFile;
use std::io;

/// Takes plain bytes from front to back and writes sealed blocks.
///
/// The first block is held back until nothing more comes, because what is in it is known last (a header), and no
/// block is sealed twice.
#[derive(Debug)]
pub(super) struct SealedWriter {
    inner: Box<dyn WriteFile>,
    blocks: Blocks,
    /// What the first block holds.
    first: Vec<u8>,
    /// What the block behind those that are sealed holds so far.
    tail: Vec<u8>,
    /// Number of that block, from 1.
    number: u64,
    /// Sealed blocks on their way, and where in the file they go.
    out: WriteBuffer,
    out_at: u64,
    state: State,
    scratch: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Taking,
    Whole,
    /// Which blocks are written is not known.
    Failed,
}

impl SealedWriter {
    pub(super) fn new(inner: Box<dyn WriteFile>, blocks: Blocks) -> Self {
        Self {
            inner,
            blocks,
            first: Vec::new(),
            tail: Vec::new(),
            number: 1,
            out: WriteBuffer::default(),
            out_at: BLOCK as u64,
            state: State::Taking,
            scratch: Vec::new(),
        }
    }

    /// Plain bytes so far.
    fn len(&self) -> u64 {
        self.first.len() as u64 + (self.number - 1) * ROOM as u64 + self.tail.len() as u64
    }

    fn extend(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        let taken = bytes.len().min(FIRST_ROOM - self.first.len());
        self.first.extend_from_slice(&bytes[..taken]);
        bytes = &bytes[taken..];
        while !bytes.is_empty() {
            // More follows, so that it is not the last.
            if self.tail.len() == ROOM {
                self.seal_tail(false)?;
            }
            let taken = bytes.len().min(ROOM - self.tail.len());
            self.tail.extend_from_slice(&bytes[..taken]);
            bytes = &bytes[taken..];
        }
        Ok(())
    }

    fn seal_tail(&mut self, last: bool) -> io::Result<()> {
        self.scratch.clear();
        self.blocks
            .seal(self.number, last, &self.tail, &mut self.scratch);
        // The buffer has room for a whole number of blocks.
        self.out.extend(&self.scratch);
        self.tail.clear();
        self.number += 1;
        match self.out.is_full() {
            true => self.flush(),
            false => Ok(()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        let out = std::mem::take(&mut self.out);
        let len = out.bytes().len() as u64;
        self.out = self.inner.write_behind(out, self.out_at)?;
        self.out_at += len;
        Ok(())
    }

    fn seal_rest(&mut self) -> io::Result<()> {
        let alone = self.tail.is_empty();
        if !alone {
            self.seal_tail(true)?;
        }
        if !self.out.bytes().is_empty() {
            self.flush()?;
        }
        let mut block = Vec::with_capacity(HEAD + self.first.len() + TAG);
        block.extend_from_slice(self.blocks.head());
        self.blocks.seal(0, alone, &self.first, &mut block);
        // Once more through aligned memory, for direct I/O where it is a whole block.
        self.out.extend(&block);
        self.inner.write_all_at(self.out.bytes(), 0)?;
        self.out.clear();
        self.inner.finish()
    }
}

impl WriteFile for SealedWriter {
    fn write_all_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
        if self.state != State::Taking {
            return Err(io::Error::other(
                "a sealed file does not change any more once it is whole",
            ));
        }
        if offset == self.len() {
            return self
                .extend(bytes)
                .inspect_err(|_| self.state = State::Failed);
        }
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let within = start
            .checked_add(bytes.len())
            .and_then(|end| self.first.get_mut(start..end));
        match within {
            Some(place) => {
                place.copy_from_slice(bytes);
                Ok(())
            }
            None => Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "a sealed file is written from front to back, but for its first block",
            )),
        }
    }

    fn finish(&mut self) -> io::Result<()> {
        match self.state {
            State::Whole => Ok(()),
            State::Failed => Err(io::Error::other("an earlier write of it failed")),
            State::Taking => {
                // A block of which a part may be written is not sealed again.
                self.state = State::Failed;
                self.seal_rest()?;
                self.state = State::Whole;
                // It may wait for a while until it is synced.
                (self.first, self.tail, self.scratch) = Default::default();
                self.out = WriteBuffer::default();
                Ok(())
            }
        }
    }

    fn sync(&mut self) -> io::Result<()> {
        self.finish()?;
        self.inner.sync()
    }
}
