//! A sealed file being read.

use super::blocks::{BLOCK, Blocks, HEAD, place, sizes};
use super::error::damaged;
use super::keys::SessionKey;
use crate::store::buffer::ReadBuffer;
use crate::store::files::ReadFile;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

/// Open blocks that are kept: indexes are read in small pieces, and pages beside each other.
const KEPT: usize = 4;
/// Most blocks read in one go.
const MOST: u64 = 16;

/// Gives plain bytes, opening the blocks that have them.
#[derive(Debug)]
pub(super) struct SealedReader {
    inner: Box<dyn ReadFile>,
    blocks: Blocks,
    count: u64,
    sealed_len: u64,
    len: u64,
    /// The most recently used last.
    kept: Mutex<Vec<(u64, Arc<Vec<u8>>)>>,
}

impl SealedReader {
    pub(super) fn open(
        inner: Box<dyn ReadFile>,
        key: &SessionKey,
        purpose: &str,
    ) -> io::Result<Self> {
        let sealed_len = inner.len()?;
        let (count, len) = sizes(sealed_len)?;
        let mut head = [0; HEAD];
        inner.read_exact_at(&mut head, 0)?;
        let file = Self {
            blocks: Blocks::open(key, purpose, &head)?,
            inner,
            count,
            sealed_len,
            len,
            kept: Mutex::default(),
        };
        if len == 0 {
            // No read would look at it.
            file.read_blocks(&mut ReadBuffer::default(), 0, 1, &mut |_, _| {})?;
        }
        Ok(file)
    }

    fn kept(&self, number: u64) -> Option<Arc<Vec<u8>>> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let at = kept.iter().position(|(n, _)| *n == number)?;
        let found = kept.remove(at);
        let block = Arc::clone(&found.1);
        kept.push(found);
        Some(block)
    }

    fn keep(&self, number: u64, block: Vec<u8>) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= KEPT {
            kept.remove(0);
        }
        kept.push((number, Arc::new(block)));
    }

    /// Reads and opens blocks; `take` gets each with its number.
    fn read_blocks(
        &self,
        buffer: &mut ReadBuffer,
        first: u64,
        count: u64,
        take: &mut dyn FnMut(u64, &[u8]),
    ) -> io::Result<()> {
        let start = first * BLOCK as u64;
        let end = ((first + count) * BLOCK as u64).min(self.sealed_len);
        let bytes = buffer.bytes((end - start) as usize);
        self.inner.read_exact_at(bytes, start)?;
        for (number, sealed) in (first..).zip(bytes.chunks_mut(BLOCK)) {
            let sealed = match number {
                0 => sealed
                    .get_mut(HEAD..)
                    .ok_or_else(|| damaged("the first block is too short"))?,
                _ => sealed,
            };
            let last = number + 1 == self.count;
            take(number, self.blocks.unseal(number, last, sealed)?);
        }
        Ok(())
    }
}

impl ReadFile for SealedReader {
    fn len(&self) -> io::Result<u64> {
        Ok(self.len)
    }

    fn read_exact_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        let end = offset.checked_add(bytes.len() as u64);
        if end.is_none_or(|end| end > self.len) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if bytes.is_empty() {
            return Ok(());
        }
        let (mut number, mut within) = place(offset);
        let last = place(offset + bytes.len() as u64 - 1).0;
        let mut rest = bytes;
        let mut buffer = ReadBuffer::default();
        while !rest.is_empty() {
            if let Some(block) = self.kept(number) {
                let taken = rest.len().min(block.len() - within);
                rest[..taken].copy_from_slice(&block[within..within + taken]);
                rest = &mut rest[taken..];
                (number, within) = (number + 1, 0);
                continue;
            }
            let count = (last - number + 1).min(MOST);
            let mut open = std::mem::take(&mut rest);
            let mut keep = None;
            self.read_blocks(&mut buffer, number, count, &mut |at, block| {
                let from = match at == number {
                    true => within,
                    false => 0,
                };
                let taken = open.len().min(block.len() - from);
                let (now, after) = std::mem::take(&mut open).split_at_mut(taken);
                now.copy_from_slice(&block[from..from + taken]);
                open = after;
                // What is read whole is not read again soon.
                if at == last && from + taken < block.len() {
                    keep = Some(block.to_vec());
                }
            })?;
            if let Some(block) = keep {
                self.keep(last, block);
            }
            rest = open;
            (number, within) = (number + count, 0);
        }
        Ok(())
    }
}
