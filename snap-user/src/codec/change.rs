//! Where two pages differ, word by word.
//!
//! Plain code over whole words: the compiler turns it into the vector instructions of the target it builds
//! for, and it gives the same on every target.

use crate::model::Page;

/// Bytes in a word.
pub(super) const WORD: usize = 8;
/// Words in a vector.
pub(super) const LANES: usize = 8;
/// Bytes in a vector: the unit that gets a marker.
pub(super) const VECTOR: usize = WORD * LANES;
/// Vectors in a page.
pub(super) const VECTORS: usize = size_of::<Page>() / VECTOR;

/// For each vector of a page, a bit for each of its words that differs.
pub(super) type Masks = [u8; VECTORS];

/// The eight words of a vector.
fn lanes(vector: &[u8; VECTOR]) -> [u64; LANES] {
    let mut words = [0; LANES];
    for (word, bytes) in words.iter_mut().zip(vector.as_chunks::<WORD>().0) {
        *word = u64::from_le_bytes(*bytes);
    }
    words
}

/// Compares two pages.
pub(super) fn masks(page: &Page, previous: &Page) -> Masks {
    let mut masks = [0; VECTORS];
    let vectors = page
        .as_chunks::<VECTOR>()
        .0
        .iter()
        .zip(previous.as_chunks().0);
    for (mask, (new, old)) in masks.iter_mut().zip(vectors) {
        // Most are equal, which the compiler's comparison of whole vectors finds soonest.
        if new != old {
            let (new, old) = (lanes(new), lanes(old));
            *mask = (0..LANES).fold(0, |m, lane| m | u8::from(new[lane] != old[lane]) << lane);
        }
    }
    masks
}

/// Number of words that differ.
pub(super) fn count(masks: &Masks) -> u32 {
    masks.iter().map(|mask| mask.count_ones()).sum()
}

/// Whether a page is its previous version with other numbers in it: of the words that differ, at least one in
/// four differs in its lower 16 bits alone.
pub(super) fn is_akin(page: &Page, previous: &Page) -> bool {
    let words = page
        .as_chunks::<WORD>()
        .0
        .iter()
        .zip(previous.as_chunks::<WORD>().0);
    let (mut differ, mut akin) = (0u32, 0u32);
    for (new, old) in words {
        let (new, old) = (u64::from_le_bytes(*new), u64::from_le_bytes(*old));
        differ += u32::from(new != old);
        akin += u32::from(new != old && (new ^ old) >> 16 == 0 && new >> 16 != 0);
    }
    akin * 4 >= differ
}
