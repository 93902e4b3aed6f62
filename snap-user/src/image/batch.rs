//! Encoded pages on their way into a file.

use super::index::checksum;
use super::location::Location;
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
    /// Checksum, as the index has it; 0 for a reference.
    pub crc: u32,
    /// The version that it holds the changes to, where it does.
    pub previous: Option<Location>,
}

impl EncodedPage {
    /// Its encoded bytes, of those of its batch.
    pub fn bytes_in<'a>(&self, batch: &'a [u8]) -> &'a [u8] {
        match self.encoding {
            Encoding::Reference => &[],
            _ => &batch[self.at as usize..][..usize::from(self.len)],
        }
    }
}

/// What a page was in the parent snapshot.
#[derive(Clone, Copy, Debug)]
pub struct Previous<'a> {
    /// Its content.
    pub page: &'a Page,
    /// Where the parent has it.
    pub at: Location,
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
        self.push_against(addr, page, None, scratch);
    }

    /// Encodes a page and adds it, as the changes to what it was if that takes less.
    pub fn push_against(
        &mut self,
        addr: u64,
        page: &Page,
        previous: Option<Previous<'_>>,
        scratch: &mut Scratch,
    ) -> Encoding {
        let at = self.bytes.len();
        let content = previous.as_ref().map(|previous| previous.page);
        let encoding = encode(page, content, scratch, &mut self.bytes);
        self.enter(addr, page, at, encoding, previous);
        encoding
    }

    /// As [`EncodedBatch::push_against`], without looking for the shortest encoding: several times as fast.
    pub fn push_fast(
        &mut self,
        addr: u64,
        page: &Page,
        previous: Option<Previous<'_>>,
    ) -> Encoding {
        let at = self.bytes.len();
        let content = previous.as_ref().map(|previous| previous.page);
        let encoding = encode_fast(page, content, &mut self.bytes);
        self.enter(addr, page, at, encoding, previous);
        encoding
    }

    /// Adds a page that is encoded already, by itself; `page` is what its bytes decode to.
    pub fn push_encoded(&mut self, addr: u64, page: &Page, encoding: Encoding, bytes: &[u8]) {
        debug_assert!(!encoding.needs_previous());
        let at = self.bytes.len();
        self.bytes.extend_from_slice(bytes);
        self.enter(addr, page, at, encoding, None);
    }

    fn enter(
        &mut self,
        addr: u64,
        page: &Page,
        at: usize,
        encoding: Encoding,
        previous: Option<Previous<'_>>,
    ) {
        debug_assert!(addr.is_multiple_of(PAGE_SIZE));
        let previous = previous.filter(|_| encoding.needs_previous());
        let previous = previous.map(|previous| previous.at);
        if let Some(at) = previous {
            at.put_behind(&mut self.bytes);
        }
        self.pages.push(EncodedPage {
            addr: page_down(addr),
            at: at as u64,
            len: (self.bytes.len() - at) as u16,
            encoding,
            crc: checksum(encoding, page, &self.bytes[at..]),
            previous,
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
            previous: None,
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
