//! Pages that repeat one 8-byte word, zeroes above all.

use super::{CodecError, Encoding, PageCodec};
use crate::model::Page;

const WORD: usize = 8;

/// The word that the whole page repeats, if it does.
pub(super) fn repeated_word(page: &Page) -> Option<u64> {
    // A page equal to itself shifted by one word repeats that word. One memcmp, which ends at the first
    // difference: nothing to pay on pages that hold data.
    if page[WORD..] != page[..page.len() - WORD] {
        return None;
    }
    page.first_chunk().map(|word| u64::from_le_bytes(*word))
}

/// All zeroes.
pub(super) struct Zero;

impl PageCodec for Zero {
    fn encode(&mut self, page: &Page, _out: &mut Vec<u8>) -> bool {
        repeated_word(page) == Some(0)
    }

    fn decode(bytes: &[u8], page: &mut Page) -> Result<(), CodecError> {
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
}

/// One word over and over.
pub(super) struct Fill;

impl PageCodec for Fill {
    fn encode(&mut self, page: &Page, out: &mut Vec<u8>) -> bool {
        let Some(word) = repeated_word(page) else {
            return false;
        };
        out.extend_from_slice(&word.to_le_bytes());
        true
    }

    fn decode(bytes: &[u8], page: &mut Page) -> Result<(), CodecError> {
        let word: &[u8; WORD] = bytes.try_into().map_err(|_| CodecError::Length {
            encoding: Encoding::Fill,
            len: bytes.len(),
            want: "8",
        })?;
        for chunk in page.chunks_exact_mut(WORD) {
            chunk.copy_from_slice(word);
        }
        Ok(())
    }
}
