//! Pages that repeat one 8-byte word, zeroes above all.

use super::{CodecError, Encoding};
use crate::model::Page;

const WORD: usize = 8;

/// The word that the whole page repeats, if it does.
fn repeated_word(page: &Page) -> Option<u64> {
    // A page equal to itself shifted by one word repeats that word. One memcmp, which ends at the first
    // difference: nothing to pay on pages that hold data.
    if page[WORD..] != page[..page.len() - WORD] {
        return None;
    }
    page.first_chunk().map(|word| u64::from_le_bytes(*word))
}

/// Appends a page of one word, if it is one.
pub(super) fn encode(page: &Page, out: &mut Vec<u8>) -> Option<Encoding> {
    match repeated_word(page)? {
        0 => Some(Encoding::Zero),
        word => {
            out.extend_from_slice(&word.to_le_bytes());
            Some(Encoding::Fill)
        }
    }
}

/// Zeroes, from no bytes.
pub(super) fn decode_zero(bytes: &[u8], page: &mut Page) -> Result<(), CodecError> {
    if !bytes.is_empty() {
        return Err(CodecError::Length {
            encoding: Encoding::Zero,
            len: bytes.len(),
            want: "none",
        });
    }
    page.fill(0);
    Ok(())
}

/// One word over and over.
pub(super) fn decode(bytes: &[u8], page: &mut Page) -> Result<(), CodecError> {
    let word: &[u8; WORD] = bytes.try_into().map_err(|_| CodecError::Length {
        encoding: Encoding::Fill,
        len: bytes.len(),
        want: "8",
    })?;
    page.as_chunks_mut().0.fill(*word);
    Ok(())
}
