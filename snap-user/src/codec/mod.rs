//! Page bytes ↔ encoded bytes.
//!
//! Each encoding is a [`PageCodec`] in a file of its own. [`encode`] tries them from the cheapest result to
//! the dearest and [`decode`] goes by the tag that the index keeps. Another encoding is one more file, one
//! more [`Encoding`] tag and one more line in each of the two functions.

mod block;
mod fill;
mod lz4;
mod raw;

pub use block::{compress_block, decompress_block};

use crate::model::Page;
use fill::{Fill, Zero};
use lz4::Lz4;
use raw::Raw;

/// How the bytes of a page are stored. The numbers are part of the image format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Encoding {
    /// All zeroes; no bytes.
    Zero = 0,
    /// The 4096 bytes as they are.
    Raw = 1,
    /// One LZ4 block.
    Lz4 = 2,
    /// One 8-byte word, 512 times.
    Fill = 3,
    /// The same content as a page stored earlier; no bytes. Resolved by the store, never by [`decode`].
    Reference = 4,
}

impl Encoding {
    /// The encoding with this number, if this version knows it.
    pub const fn from_tag(tag: u8) -> Option<Self> {
        Some(match tag {
            0 => Self::Zero,
            1 => Self::Raw,
            2 => Self::Lz4,
            3 => Self::Fill,
            4 => Self::Reference,
            _ => return None,
        })
    }

    /// Its number in the image format.
    pub const fn tag(self) -> u8 {
        self as u8
    }
}

/// Encoded bytes that do not give a page.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// The encoded form of this encoding has another length.
    #[error("{encoding:?} page of {len} bytes, {want} expected")]
    Length {
        /// The encoding.
        encoding: Encoding,
        /// Bytes found.
        len: usize,
        /// What would have been right.
        want: &'static str,
    },
    /// The LZ4 block is damaged.
    #[error("damaged LZ4 block: {0}")]
    Lz4(String),
    /// The LZ4 block holds something other than one page.
    #[error("LZ4 block of {0} decoded bytes, 4096 expected")]
    NotAPage(usize),
    /// A reference has no bytes of its own to decode.
    #[error("a reference has no bytes of its own")]
    Reference,
}

/// One way to store a page.
trait PageCodec {
    /// Appends the encoded page to `out` and returns true, or returns false and leaves `out` alone
    /// when this encoding does not suit the page.
    fn encode(&mut self, page: &Page, out: &mut Vec<u8>) -> bool;

    /// Fills `page` from encoded bytes. Total: any input gives a page or an error.
    fn decode(bytes: &[u8], page: &mut Page) -> Result<(), CodecError>;
}

/// Working memory of an encoder thread: hash table and output buffer, kept from page to page.
#[derive(Default)]
pub struct Scratch {
    lz4: Lz4,
}

/// Appends `page` in its cheapest encoding to `out`.
pub fn encode(page: &Page, scratch: &mut Scratch, out: &mut Vec<u8>) -> Encoding {
    match fill::repeated_word(page) {
        Some(0) => return Encoding::Zero,
        Some(_) if Fill.encode(page, out) => return Encoding::Fill,
        _ => {}
    }
    if scratch.lz4.encode(page, out) {
        return Encoding::Lz4;
    }
    Raw.encode(page, out);
    Encoding::Raw
}

/// Appends `page` in the cheapest encoding that takes next to no time to find.
pub fn encode_fast(page: &Page, out: &mut Vec<u8>) -> Encoding {
    match fill::repeated_word(page) {
        Some(0) => return Encoding::Zero,
        Some(_) if Fill.encode(page, out) => return Encoding::Fill,
        _ => {}
    }
    Raw.encode(page, out);
    Encoding::Raw
}

/// Fills `page` from its encoded `bytes`. Total: any input gives a page or an error.
pub fn decode(encoding: Encoding, bytes: &[u8], page: &mut Page) -> Result<(), CodecError> {
    match encoding {
        Encoding::Zero => Zero::decode(bytes, page),
        Encoding::Raw => Raw::decode(bytes, page),
        Encoding::Lz4 => Lz4::decode(bytes, page),
        Encoding::Fill => Fill::decode(bytes, page),
        Encoding::Reference => Err(CodecError::Reference),
    }
}

#[cfg(test)]
mod tests;
