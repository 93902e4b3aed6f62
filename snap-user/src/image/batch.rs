//! Encoded pages on their way into a file.

use crate::codec::{Encoding, Scratch, encode, encode_fast};
use crate::model::{PAGE_SIZE, Page, page_down};

/// One page in a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EncodedPage {
    /// Page address.
    pub addr: u64,
    /// First byte in the batch; for a reference, the page of the parent that has the content.
    pub at: u64,
    /// Encoded length in bytes.
    pub len: u16,
    /// How it is encoded.
    pub encoding: Encoding,
    /// CRC-32C of the decoded page; 0 for a reference.
    pub crc: u32,
}

/// Pages encoded by one thread, to be appended to a snapshot in one piece.
///
/// Batches may arrive in any order. When several hold the same page, the one of the latest `pass` counts, and
/// within one pass the one appended last: number the rounds of pre-copy upwards, the stop last.
#[derive(Clone, Debug, Default)]
pub struct EncodedBatch {
    bytes: Vec<u8>,
    pages: Vec<EncodedPage>,
    pass: u32,
}

impl EncodedBatch {
    /// An empty batch of a copy pass.
    pub fn new(pass: u32) -> Self {
        Self {
            pass,
            ..Self::default()
        }
    }

    /// Empties the batch for a copy pass, keeping its memory.
    pub fn reset(&mut self, pass: u32) {
        self.bytes.clear();
        self.pages.clear();
        self.pass = pass;
    }

    /// Encodes a page and adds it.
    pub fn push(&mut self, addr: u64, page: &Page, scratch: &mut Scratch) {
        let at = self.bytes.len();
        let encoding = encode(page, scratch, &mut self.bytes);
        self.enter(addr, page, at, encoding);
    }

    /// Adds a page without looking for its shortest encoding: several times as fast.
    pub fn push_fast(&mut self, addr: u64, page: &Page) {
        let at = self.bytes.len();
        let encoding = encode_fast(page, &mut self.bytes);
        self.enter(addr, page, at, encoding);
    }

    fn enter(&mut self, addr: u64, page: &Page, at: usize, encoding: Encoding) {
        debug_assert!(addr.is_multiple_of(PAGE_SIZE));
        self.pages.push(EncodedPage {
            addr: page_down(addr),
            at: at as u64,
            len: (self.bytes.len() - at) as u16,
            encoding,
            crc: crc32c::crc32c(page),
        });
    }

    /// Adds a page with the same content as the parent snapshot's page at `source`, which must exist there:
    /// the same address for a page written but not changed, another one for a page that moved.
    pub fn push_same(&mut self, addr: u64, source: u64) {
        self.pages.push(EncodedPage {
            addr: page_down(addr),
            at: page_down(source),
            len: 0,
            encoding: Encoding::Reference,
            crc: 0,
        });
    }

    /// The encoded bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The pages.
    pub fn pages(&self) -> &[EncodedPage] {
        &self.pages
    }

    /// The copy pass.
    pub fn pass(&self) -> u32 {
        self.pass
    }

    /// True when no page is in it.
    pub fn is_empty(&self) -> bool {
        self.pages.is_empty()
    }
}
