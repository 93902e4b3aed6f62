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

/// Appends the runs unless they take more than `most` bytes; then `out` stays as it was.
///
/// Each run: its place in the lower 12 bits of two bytes, its length in the upper 4; for a length of 0 the
/// next byte holds it, less 16. Then the bytes.
pub(super) fn encode(
    page: &Page,
    previous: &Page,
    masks: &Masks,
    most: usize,
    out: &mut Vec<u8>,
) -> bool {
    let begun = out.len();
    let mut open: Option<(usize, usize)> = None;
    for (vector, mask) in masks.iter().enumerate() {
        let mut mask = *mask;
        while mask != 0 {
            let first = (vector * LANES + mask.trailing_zeros() as usize) * WORD;
            mask &= mask - 1;
            for at in first..first + WORD {
                if page[at] == previous[at] {
                    continue;
                }
                open = match open {
                    Some((start, end)) if at <= end + GAP && at - start < LONGEST => {
                        Some((start, at + 1))
                    }
                    Some((start, end)) => {
                        put(page, start, end, out);
                        Some((at, at + 1))
                    }
                    None => Some((at, at + 1)),
                };
            }
            if out.len() - begun > most {
                out.truncate(begun);
                return false;
            }
        }
    }
    if let Some((start, end)) = open {
        put(page, start, end, out);
    }
    if out.len() - begun > most {
        out.truncate(begun);
        return false;
    }
    true
}

fn put(page: &Page, start: usize, end: usize, out: &mut Vec<u8>) {
    let len = end - start;
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
