//! Markers, codes and data back into a page.
//!
//! As when encoding, the processor cannot foresee the codes: what a code means comes from tables.

use super::codes::{BASES, Code, half, word};
use super::context::Context;
use super::encode::CODES;
use crate::codec::CodecError;
use crate::codec::change::{LANES, VECTOR, VECTORS, WORD};
use crate::model::Page;

/// Room for the codes, and for looking ahead; a power of two.
const ROOM: usize = (CODES + 4).next_power_of_two();

/// Codes and data, read from front to back.
struct Parts<'a> {
    codes: &'a [u8; ROOM],
    /// Codes taken.
    taken: usize,
    data: &'a [u8],
}

/// How to get a code's number out of a word of data: the bits that count, and among them the sign.
#[derive(Clone, Copy)]
struct Number {
    mask: u64,
    sign: u64,
}

const fn numbers(codes: &[Code; 16]) -> [Number; 16] {
    let mut numbers = [Number { mask: 0, sign: 0 }; 16];
    let mut at = 0;
    while at < 16 {
        let Code { len, signed, .. } = codes[at];
        if len > 0 {
            numbers[at].mask = u64::MAX >> (64 - 8 * len as u32);
            if signed {
                numbers[at].sign = 1 << (8 * len as u32 - 1);
            }
        }
        at += 1;
    }
    numbers
}

static WORD_NUMBERS: [Number; 16] = numbers(&word::CODES);
static HALF_NUMBERS: [Number; 16] = numbers(&half::CODES);

impl Number {
    #[inline(always)]
    fn of(self, data: u64) -> u64 {
        ((data & self.mask) ^ self.sign).wrapping_sub(self.sign)
    }
}

impl Parts<'_> {
    #[inline(always)]
    fn code(&mut self) -> usize {
        let code = self.codes[self.taken % ROOM];
        self.taken += 1;
        usize::from(code) % 16
    }

    /// The next 8 bytes of data, of which `len` are taken; zeroes where it ends.
    #[inline(always)]
    fn data(&mut self, len: u8) -> Result<u64, CodecError> {
        let word = match self.data.first_chunk::<WORD>() {
            Some(word) => u64::from_le_bytes(*word),
            None => {
                let mut word = [0; WORD];
                word[..self.data.len()].copy_from_slice(self.data);
                u64::from_le_bytes(word)
            }
        };
        self.data = self.data.get(usize::from(len)..).ok_or(CodecError::Cut)?;
        Ok(word)
    }

    #[inline(always)]
    fn half(&mut self, bases: [u64; 4]) -> Result<u64, CodecError> {
        let code = self.code();
        if code >= usize::from(half::COUNT) {
            return Err(CodecError::Code(code as u8));
        }
        let number = HALF_NUMBERS[code].of(self.data(half::CODES[code].len)?);
        let base = bases[half::CODES[code].base as usize % 4] as u32;
        let shift = if code == usize::from(half::HIGH) {
            16
        } else {
            0
        };
        Ok(base.wrapping_add((number as u32) << shift).into())
    }

    #[inline(always)]
    fn word(&mut self, context: &mut Context, previous: u64) -> Result<u64, CodecError> {
        let (expected, last) = (context.expected(), context.last());
        let code = self.code();
        if code == usize::from(word::HALVES) {
            let bases = [0, expected, previous, last];
            let low = self.half(bases)?;
            let high = self.half(bases.map(|base| base >> 32))?;
            return Ok(high << 32 | low);
        }
        let data = self.data(word::CODES[code].len)?;
        if code == usize::from(word::JUMP) {
            return match context.jump(usize::from(data as u8)) {
                true => Ok(context.expected()),
                false => Err(CodecError::Outside),
            };
        }
        let bases: [u64; BASES] = [0, expected, previous, last];
        let base = bases[word::CODES[code].base as usize % BASES];
        Ok(base.wrapping_add(WORD_NUMBERS[code].of(data)))
    }
}

/// Where the markers end.
fn end_of_markers(bytes: &[u8]) -> Result<usize, CodecError> {
    let mut at = 0;
    for _ in 0..marker(bytes, &mut at)?.count_ones() {
        for _ in 0..marker(bytes, &mut at)?.count_ones() {
            if marker(bytes, &mut at)? == 0 {
                at += 1;
            }
        }
    }
    Ok(at)
}

/// The byte at `at`.
fn marker(bytes: &[u8], at: &mut usize) -> Result<u8, CodecError> {
    let marker = bytes.get(*at).ok_or(CodecError::Cut)?;
    *at += 1;
    Ok(*marker)
}

/// Applies an encoded change to `page`, which holds the previous version.
pub(in crate::codec) fn decode(bytes: &[u8], page: &mut Page) -> Result<(), CodecError> {
    let end = end_of_markers(bytes)?;
    let (markers, rest) = bytes.split_at_checked(end).ok_or(CodecError::Cut)?;
    let (len, rest) = rest.split_first_chunk().ok_or(CodecError::Cut)?;
    let len = usize::from(u16::from_le_bytes(*len));
    let (pairs, data) = rest.split_at_checked(len).ok_or(CodecError::Cut)?;
    let mut codes = [0; ROOM];
    let places = codes.as_chunks_mut::<2>().0;
    if len > places.len() {
        return Err(CodecError::Rest);
    }
    for (place, pair) in places.iter_mut().zip(pairs) {
        *place = [pair & 0xf, pair >> 4];
    }
    let mut parts = Parts {
        codes: &codes,
        taken: 0,
        data,
    };
    let mut context = Context::default();
    let mut at = 0;
    let groups = marker(markers, &mut at)?;
    for group in 0..VECTORS / 8 {
        if groups >> group & 1 == 0 {
            continue;
        }
        let changed = marker(markers, &mut at)?;
        for nth in 0..8 {
            if changed >> nth & 1 == 0 {
                continue;
            }
            let number = group * 8 + nth;
            let mut mask = marker(markers, &mut at)?;
            if mask == 0 {
                let earlier = usize::from(marker(markers, &mut at)?);
                if earlier >= number {
                    return Err(CodecError::Outside);
                }
                page.copy_within(earlier * VECTOR..(earlier + 1) * VECTOR, number * VECTOR);
                continue;
            }
            let vector = &mut page.as_chunks_mut::<VECTOR>().0[number];
            let words = vector.as_chunks_mut::<WORD>().0;
            while mask != 0 {
                let place = &mut words[mask.trailing_zeros() as usize % LANES];
                mask &= mask - 1;
                let word = parts.word(&mut context, u64::from_le_bytes(*place))?;
                context.push(word);
                *place = word.to_le_bytes();
            }
        }
    }
    match (parts.data.is_empty(), parts.taken.div_ceil(2) == len) {
        (true, true) => Ok(()),
        _ => Err(CodecError::Rest),
    }
}
