//! A page that is its previous version but for a few bytes: the runs of bytes that differ.

use super::CodecError;
use super::change::{LANES, Masks, WORD};
use crate::model::Page;

/// Two runs with fewer equal bytes between them are one: a run of its own costs two bytes.
const GAP: usize = 2;
/// Longest run whose length is in its first two bytes.
const SHORT: usize = 15;
/// Longest run.
const LONGEST: usize = SHORT + 1 + 0xff;

/// For each byte of a word, lowest first, a bit that says whether it differs.
fn bytes_that_differ(new: &[u8; WORD], old: &[u8; WORD]) -> u8 {
    const LOW: u64 = 0x7f7f_7f7f_7f7f_7f7f;
    let differs = u64::from_le_bytes(*new) ^ u64::from_le_bytes(*old);
    // The top bit of each byte that is not zero, then these next to each other.
    let tops = (((differs & LOW) + LOW) | differs) & !LOW;
    ((tops >> 7).wrapping_mul(0x0102_0408_1020_4080) >> 56) as u8
}

/// What the runs take, about, and seldom less: the bytes that differ, and two for each run of words that do.
pub(super) fn least(page: &Page, previous: &Page, masks: &Masks) -> usize {
    let (new, old) = (page.as_chunks().0, previous.as_chunks().0);
    let mut least = 0;
    for (vector, mask) in masks.iter().enumerate() {
        let mut left = *mask;
        least += 2 * (left & !(left << 1)).count_ones() as usize;
        while left != 0 {
            let index = vector * LANES + left.trailing_zeros() as usize;
            left &= left - 1;
            least += bytes_that_differ(&new[index], &old[index]).count_ones() as usize;
        }
    }
    least
}

/// Appends the runs.
///
/// Each run: its place in the lower 12 bits of two bytes, its length in the upper 4; for a length of 0 the
/// next byte holds it, less 16. Then the bytes.
pub(super) fn encode(page: &Page, previous: &Page, masks: &Masks, out: &mut Vec<u8>) {
    let (new, old) = (page.as_chunks().0, previous.as_chunks().0);
    // Start and end of the run that may go on.
    let mut open = (0, 0);
    for (vector, mask) in masks.iter().enumerate() {
        let mut left = *mask;
        while left != 0 {
            let index = vector * LANES + left.trailing_zeros() as usize;
            left &= left - 1;
            let mut bytes = bytes_that_differ(&new[index], &old[index]);
            while bytes != 0 {
                let first = bytes.trailing_zeros() as usize;
                let len = (bytes >> first).trailing_ones() as usize;
                bytes &= (!0u8).checked_shl((first + len) as u32).unwrap_or(0);
                let (start, end) = (index * WORD + first, index * WORD + first + len);
                if start <= open.1 + GAP && end - open.0 <= LONGEST && open.1 > 0 {
                    open.1 = end;
                } else {
                    put(page, open, out);
                    open = (start, end);
                }
            }
        }
    }
    put(page, open, out);
}

/// Appends a run, unless it is empty.
fn put(page: &Page, (start, end): (usize, usize), out: &mut Vec<u8>) {
    let len = end - start;
    if len == 0 {
        return;
    }
    let short = if len <= SHORT { len } else { 0 };
    out.extend_from_slice(&((short << 12 | start) as u16).to_le_bytes());
    if short == 0 {
        out.push((len - SHORT - 1) as u8);
    }
    out.extend_from_slice(&page[start..end]);
}

/// Writes the runs into `page`, which holds the previous version.
pub(super) fn decode(mut bytes: &[u8], page: &mut Page) -> Result<(), CodecError> {
    while let Some((head, rest)) = bytes.split_first_chunk() {
        let head = usize::from(u16::from_le_bytes(*head));
        let (start, mut len) = (head & 0xfff, head >> 12);
        bytes = rest;
        if len == 0 {
            let (more, rest) = bytes.split_first().ok_or(CodecError::Cut)?;
            len = SHORT + 1 + usize::from(*more);
            bytes = rest;
        }
        let (run, rest) = bytes.split_at_checked(len).ok_or(CodecError::Cut)?;
        page.get_mut(start..start + len)
            .ok_or(CodecError::Outside)?
            .copy_from_slice(run);
        bytes = rest;
    }
    match bytes {
        [] => Ok(()),
        _ => Err(CodecError::Cut),
    }
}
