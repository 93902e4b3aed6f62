//! Page bytes ↔ encoded bytes: bit markers for what is known of a page already, LZ4 for the rest.
//!
//! | file | what |
//! |---|---|
//! | `fill` | pages that repeat one word, zeroes above all |
//! | `change` | which words of a page differ from its previous version |
//! | `runs` | a few changed bytes |
//! | `vectors` | markers for vectors of 64 bytes, codes for their words |
//! | `lz4` | what is left of these, and pages of text |
//! | `block` | LZ4 for what is not a page |
//!
//! [`encode`] takes what is smallest within its time; the index keeps the [`Encoding`]'s number. All of it is
//! described in `docs/codec.md`.

mod block;
mod change;
mod fill;
mod lz4;
mod runs;
mod vectors;

pub use block::{compress_block, decompress_block};

use crate::model::{PAGE_SIZE, Page};
use lz4::Lz4;

/// Longest encoded page, in bytes.
pub const LONGEST: usize = PAGE_SIZE as usize;

/// Changed words up to which a page is certainly not better off by itself.
const SOME_WORDS: u32 = 128;
/// Changed words up to which it is worth looking for runs of bytes.
const FEW_WORDS: usize = 64;
/// Runs that take about so many bytes a changed word are taken without a look at what markers would make of it.
const FEW_BYTES: usize = 3;
/// Shortest result that LZ4 is tried on: below it saves little, and takes its time all the same.
const WORTH_LZ4: usize = 512;

static ZEROES: Page = [0; PAGE_SIZE as usize];

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
    /// Runs of bytes that differ from the previous version.
    Runs = 5,
    /// Markers against the previous version.
    Changes = 6,
    /// As `Changes`, in one LZ4 block.
    ChangesLz4 = 7,
    /// Markers against zeroes.
    Vectors = 8,
    /// As `Vectors`, in one LZ4 block.
    VectorsLz4 = 9,
}

impl Encoding {
    /// All there are.
    pub const ALL: [Self; 10] = [
        Self::Zero,
        Self::Raw,
        Self::Lz4,
        Self::Fill,
        Self::Reference,
        Self::Runs,
        Self::Changes,
        Self::ChangesLz4,
        Self::Vectors,
        Self::VectorsLz4,
    ];

    /// The encoding with this number, if this version knows it.
    pub fn from_tag(tag: u8) -> Option<Self> {
        Self::ALL.get(usize::from(tag)).copied()
    }

    /// Its number in the image format.
    pub const fn tag(self) -> u8 {
        self as u8
    }

    /// Whether the page's previous version is needed to decode it.
    pub const fn needs_previous(self) -> bool {
        matches!(self, Self::Runs | Self::Changes | Self::ChangesLz4)
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
    /// The page was encoded against its previous version, and that was not given.
    #[error("a {0:?} page needs its previous version")]
    NoPrevious(Encoding),
    /// The bytes end inside the page.
    #[error("the encoded page is cut short")]
    Cut,
    /// There are more bytes than the page takes.
    #[error("bytes are left behind the encoded page")]
    Rest,
    /// Something would lie outside the page, or not yet be there.
    #[error("the encoded page points outside the page")]
    Outside,
    /// No word or half of a word has this code.
    #[error("unknown code {0} in the encoded page")]
    Code(u8),
}

/// Working memory of an encoder thread, kept from page to page.
#[derive(Default)]
pub struct Scratch {
    lz4: Lz4,
    vectors: vectors::Encoder,
    bytes: Vec<u8>,
}

/// Appends `page` to `out` in the smallest encoding that can be found in little time, never more than
/// [`LONGEST`] bytes.
///
/// With its `previous` version it may be stored as the changes to that one: the encoding then
/// [needs it](Encoding::needs_previous) for decoding.
pub fn encode(
    page: &Page,
    previous: Option<&Page>,
    scratch: &mut Scratch,
    out: &mut Vec<u8>,
) -> Encoding {
    if let Some(encoding) = fill::encode(page, out) {
        return encoding;
    }
    let Some(previous) = previous else {
        return by_itself(page, &change::masks(page, &ZEROES), scratch, out);
    };
    let masks = change::masks(page, previous);
    let changed = change::count(&masks);
    if changed <= SOME_WORDS {
        return some_changes(page, previous, &masks, scratch, out);
    }
    let own = change::masks(page, &ZEROES);
    // Where little is left of the previous version, the page takes hardly more by itself, and stands alone.
    if changed * 8 > change::count(&own) * 7 && !change::is_akin(page, previous) {
        return by_itself(page, &own, scratch, out);
    }
    scratch.vectors.encode(page, previous, &masks);
    finish(Encoding::Changes, Encoding::ChangesLz4, page, scratch, out)
}

fn some_changes(
    page: &Page,
    previous: &Page,
    masks: &change::Masks,
    scratch: &mut Scratch,
    out: &mut Vec<u8>,
) -> Encoding {
    let changed = change::count(masks) as usize;
    let least = match changed <= FEW_WORDS {
        true => runs::least(page, previous, masks),
        false => LONGEST,
    };
    if least <= changed * FEW_BYTES {
        runs::encode(page, previous, masks, out);
        return Encoding::Runs;
    }
    scratch.vectors.encode(page, previous, masks);
    let (begun, most) = (out.len(), scratch.vectors.len());
    if least <= most.min(WORTH_LZ4) {
        runs::encode(page, previous, masks, out);
        if out.len() - begun <= most {
            return Encoding::Runs;
        }
        out.truncate(begun);
    }
    finish(Encoding::Changes, Encoding::ChangesLz4, page, scratch, out)
}

fn by_itself(
    page: &Page,
    masks: &change::Masks,
    scratch: &mut Scratch,
    out: &mut Vec<u8>,
) -> Encoding {
    scratch.vectors.encode(page, &ZEROES, masks);
    finish(Encoding::Vectors, Encoding::VectorsLz4, page, scratch, out)
}

/// Appends what the vector encoder has found, or whatever is smaller.
fn finish(
    plain: Encoding,
    packed: Encoding,
    page: &Page,
    scratch: &mut Scratch,
    out: &mut Vec<u8>,
) -> Encoding {
    if scratch.vectors.is_literal() {
        return by_bytes(page, scratch, out);
    }
    scratch.bytes.clear();
    scratch.vectors.write_to(&mut scratch.bytes);
    let (mut encoding, mut bytes) = (plain, &scratch.bytes[..]);
    if bytes.len() >= WORTH_LZ4
        && let Some(block) = scratch.lz4.compress(bytes)
        && block.len() < worth(bytes.len())
    {
        (encoding, bytes) = (packed, block);
    }
    if bytes.len() >= page.len() {
        (encoding, bytes) = (Encoding::Raw, page);
    }
    out.extend_from_slice(bytes);
    encoding
}

/// What a block may take of so many bytes to be worth its decoding.
fn worth(len: usize) -> usize {
    len / 16 * 15
}

/// Appends a page that is no collection of words.
fn by_bytes(page: &Page, scratch: &mut Scratch, out: &mut Vec<u8>) -> Encoding {
    match scratch.lz4.compress(page) {
        Some(block) if block.len() < worth(page.len()) => {
            out.extend_from_slice(block);
            Encoding::Lz4
        }
        _ => {
            out.extend_from_slice(page);
            Encoding::Raw
        }
    }
}

/// As [`encode`], in next to no time: finds pages of one word, and few changes to the `previous` version.
pub fn encode_fast(page: &Page, previous: Option<&Page>, out: &mut Vec<u8>) -> Encoding {
    if let Some(encoding) = fill::encode(page, out) {
        return encoding;
    }
    if let Some(previous) = previous {
        let masks = change::masks(page, previous);
        if change::count(&masks) as usize <= FEW_WORDS {
            runs::encode(page, previous, &masks, out);
            return Encoding::Runs;
        }
    }
    out.extend_from_slice(page);
    Encoding::Raw
}

/// Fills `page` from its encoded `bytes`, and its `previous` version where the encoding needs it. Total: any
/// input gives a page or an error.
pub fn decode(
    encoding: Encoding,
    bytes: &[u8],
    previous: Option<&Page>,
    page: &mut Page,
) -> Result<(), CodecError> {
    if encoding.needs_previous() {
        *page = *previous.ok_or(CodecError::NoPrevious(encoding))?;
    }
    match encoding {
        Encoding::Zero => fill::decode_zero(bytes, page),
        Encoding::Fill => fill::decode(bytes, page),
        Encoding::Raw => {
            *page = *bytes
                .first_chunk()
                .filter(|_| bytes.len() == page.len())
                .ok_or(CodecError::Length {
                    encoding,
                    len: bytes.len(),
                    want: "4096",
                })?;
            Ok(())
        }
        Encoding::Lz4 => match lz4::decompress(bytes, page)? {
            len if len == page.len() => Ok(()),
            len => Err(CodecError::NotAPage(len)),
        },
        Encoding::Reference => Err(CodecError::Reference),
        Encoding::Runs => runs::decode(bytes, page),
        Encoding::Changes => vectors::decode(bytes, page),
        Encoding::ChangesLz4 => unpack(bytes, page),
        Encoding::Vectors => {
            page.fill(0);
            vectors::decode(bytes, page)
        }
        Encoding::VectorsLz4 => {
            page.fill(0);
            unpack(bytes, page)
        }
    }
}

fn unpack(block: &[u8], page: &mut Page) -> Result<(), CodecError> {
    let mut bytes = [0; vectors::LONGEST];
    let len = lz4::decompress(block, &mut bytes)?;
    vectors::decode(&bytes[..len], page)
}

#[cfg(test)]
mod golden;
#[cfg(test)]
mod tests;
