//! Pages of a snapshot that comes from elsewhere, on their way into the store, from wherever their content is.

use super::serve_known::Known;
use super::{Result, SessionError};
use crate::codec::Scratch;
use crate::image::{EncodedBatch, PageSink};
use crate::model::{PAGE_SIZE, Page};
use crate::store::{PendingSnapshot, Received};

/// Pages written in one go.
const PIECE: usize = 1024;

/// Gives a snapshot its pages: those that have come, and those that the store had.
pub(super) struct Arrival<'a> {
    received: &'a mut Received,
    known: &'a Known,
    /// Rather quick than small, for those that the store had.
    pub(super) quick: bool,
    /// What to do when a page is not there any more.
    again: &'static str,
    batch: EncodedBatch,
    scratch: Scratch,
}

impl<'a> Arrival<'a> {
    pub(super) fn new(received: &'a mut Received, known: &'a Known, again: &'static str) -> Self {
        Self {
            received,
            known,
            quick: false,
            again,
            batch: EncodedBatch::new(0),
            scratch: Scratch::default(),
        }
    }

    /// Puts pages, addresses and hashes, into a snapshot.
    pub(super) fn put_all(
        &mut self,
        pages: impl Iterator<Item = (u64, [u8; 32])>,
        pending: &mut PendingSnapshot<'_>,
    ) -> Result<()> {
        self.batch.reset(0);
        for (addr, hash) in pages {
            self.put(addr, &hash)?;
            if self.batch.pages().len() == PIECE {
                pending.append(&self.batch)?;
                self.batch.reset(0);
            }
        }
        Ok(pending.append(&self.batch)?)
    }

    fn put(&mut self, addr: u64, hash: &[u8; 32]) -> Result<()> {
        let mut page: Page = [0; PAGE_SIZE as usize];
        if let Some((encoding, bytes)) = self.received.read(hash, &mut page)? {
            // As short as its source has made it.
            self.batch.push_encoded(addr, &page, encoding, bytes);
            return Ok(());
        }
        if !self.known.read(hash, &mut page) {
            return Err(SessionError::Remote(format!(
                "a page that the store had is gone: a snapshot may have been pruned meanwhile. {}: what has come is kept",
                self.again
            )));
        }
        match self.quick {
            false => self.batch.push(addr, &page, &mut self.scratch),
            true => {
                self.batch.push_fast(addr, &page, None);
            }
        }
        Ok(())
    }
}
