//! A page into markers, codes and data, in one pass.
//!
//! What a word is cannot be foreseen by the processor, so the codes are found without branching: what the
//! word takes on each base comes from tables, and the least of it is taken.

use super::codes::{BASES, Base, cost, costs, half, word};
use super::context::Context;
use crate::codec::change::{LANES, Masks, VECTOR, VECTORS, WORD};
use crate::model::Page;

const WORDS: usize = VECTORS * LANES;
/// Markers at most: one byte for all, one for each group of 8 vectors, two for each vector.
const MARKERS: usize = 1 + VECTORS / 8 + 2 * VECTORS;
/// Codes at most: three for each word.
pub(super) const CODES: usize = 3 * WORDS;
/// The same, and one to make an even number.
const CODES_ROOM: usize = CODES + 1;
/// Data at most, and room to write whole words.
const DATA: usize = size_of::<Page>() + 2 * WORD;
/// Longest result.
pub(in crate::codec) const LONGEST: usize = MARKERS + 2 + CODES.div_ceil(2) + size_of::<Page>();

/// Working memory, kept from page to page.
pub(in crate::codec) struct Encoder {
    context: Context,
    /// Numbers of the words to encode, and room to write eight at a time.
    changed: [u16; WORDS + LANES],
    markers: Out<u8, MARKERS>,
    codes: Out<u8, CODES_ROOM>,
    data: Out<u8, DATA>,
    is_literal: bool,
    /// For each hash of a word, its last place.
    places: [u16; PLACES],
    /// For each hash of a vector, one past its number in the page.
    known: [u8; VECTORS],
}

/// Something that grows.
struct Out<T, const N: usize> {
    items: [T; N],
    len: usize,
}

impl<T: Copy + Default, const N: usize> Default for Out<T, N> {
    fn default() -> Self {
        Self {
            items: [T::default(); N],
            len: 0,
        }
    }
}

impl<T: Copy, const N: usize> Out<T, N> {
    fn push(&mut self, item: T) {
        self.items[self.len] = item;
        self.len += 1;
    }

    fn filled(&self) -> &[T] {
        &self.items[..self.len]
    }
}

impl Default for Encoder {
    fn default() -> Self {
        Self {
            context: Context::default(),
            changed: [0; WORDS + LANES],
            markers: Out::default(),
            codes: Out::default(),
            data: Out::default(),
            is_literal: false,
            places: [0; PLACES],
            known: [0; VECTORS],
        }
    }
}

/// For each mask, the numbers of its bits, ascending.
static BITS: [[u16; LANES]; 256] = {
    let mut table = [[0; LANES]; 256];
    let mut mask = 0;
    while mask < 256 {
        let (mut bit, mut len) = (0, 0);
        while bit < LANES {
            if mask >> bit & 1 == 1 {
                table[mask][len] = bit as u16;
                len += 1;
            }
            bit += 1;
        }
        mask += 1;
    }
    table
};

static WORD_COSTS: [[u32; 65]; BASES] = [
    costs(&word::CODES, Base::Nothing),
    costs(&word::CODES, Base::Expected),
    costs(&word::CODES, Base::Previous),
    costs(&word::CODES, Base::Last),
];
static HALF_COSTS: [[u32; 65]; BASES] = [
    costs(&half::CODES, Base::Nothing),
    costs(&half::CODES, Base::Expected),
    costs(&half::CODES, Base::Previous),
    costs(&half::CODES, Base::Last),
];
/// Where a word's data is that is no number on a base.
const OTHER: usize = BASES;
const JUMP_COST: u32 = cost(1, word::JUMP, OTHER as u8);
const HIGH_COST: u32 = cost(2, half::HIGH, OTHER as u8);
/// From here on halves may take less.
const LONG: u32 = cost(3, 0, 0);

/// Bytes of data that something costs.
#[inline(always)]
fn len(cost: u32) -> u8 {
    (cost >> 16) as u8
}

#[inline(always)]
fn code(cost: u32) -> u8 {
    (cost >> 8) as u8
}

/// Which of the data something costs is to be written.
#[inline(always)]
fn base(cost: u32) -> usize {
    (cost & 7) as usize
}
/// Changed words of a vector from which on it is looked for among those before.
const WORTH_REPEATING: u32 = 4;
/// Farthest jump.
const FARTHEST: usize = u8::MAX as usize;
/// 2^64 divided by the golden ratio: spreads the bits of what it is multiplied with to the top.
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;
const PLACES: usize = 256;

/// Length in bits of a signed number.
#[inline(always)]
fn bits(number: u64) -> usize {
    let number = number as i64;
    64 - ((number << 1) ^ (number >> 63)).leading_zeros() as usize
}

#[inline(always)]
fn half_bits(number: u32) -> usize {
    let number = number as i32;
    32 - ((number << 1) ^ (number >> 31)).leading_zeros() as usize
}

/// Changed words from which on a look at a few of them is worth it.
const MANY: usize = WORDS / 2;
/// Words to look at, and how many of them must be of no known kind.
const SAMPLE: usize = 32;
const LITERALS: usize = 29;

/// Whether nearly all words are neither numbers nor pointers, nor like what they were.
fn is_literal(changed: &[u16], both: impl Fn(u16) -> [u64; 2]) -> bool {
    if changed.len() < MANY {
        return false;
    }
    let step = changed.len() / SAMPLE;
    let literals = changed.iter().step_by(step).take(SAMPLE).filter(|n| {
        let [word, previous] = both(**n);
        let top = word >> 48;
        top != 0 && top != 0xffff && word as u32 != 0 && (word ^ previous) >> 32 != 0
    });
    literals.count() >= LITERALS
}

fn hash(vector: &[u8; VECTOR]) -> usize {
    let sum = vector.as_chunks().0.iter().fold(0u64, |sum, word| {
        sum.rotate_left(7) ^ u64::from_le_bytes(*word)
    });
    (sum.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - VECTORS.ilog2())) as usize
}

impl Encoder {
    /// Encodes the words of `page` that `masks` names, against `previous`. Ask [`Encoder::write_to`] for the result.
    pub(in crate::codec) fn encode(&mut self, page: &Page, previous: &Page, masks: &Masks) {
        let count = self.mark(page, masks);
        self.context.reset();
        self.places.fill(0);
        (self.codes.len, self.data.len) = (0, 0);
        let (words, before) = (page.as_chunks().0, previous.as_chunks().0);
        let both = |n: u16| {
            let index = usize::from(n) % WORDS;
            [words[index], before[index]].map(u64::from_le_bytes)
        };
        let changed = &self.changed[..count];
        self.is_literal = is_literal(changed, both);
        if self.is_literal {
            return;
        }
        let mut words = Words {
            context: &mut self.context,
            places: &mut self.places,
            codes: &mut self.codes.items,
            codes_len: 0,
            data: &mut self.data.items,
            data_len: 0,
        };
        for n in changed {
            let [word, previous] = both(*n);
            words.word(word, previous);
        }
        (self.codes.len, self.data.len) = (words.codes_len, words.data_len);
    }

    /// Writes the markers; gives the number of words that are left to encode.
    fn mark(&mut self, page: &Page, masks: &Masks) -> usize {
        self.known.fill(0);
        self.markers.len = 0;
        self.markers.push(0);
        let vectors: &[[u8; VECTOR]] = page.as_chunks().0;
        let mut count = 0;
        for (group, masks) in masks.as_chunks::<8>().0.iter().enumerate() {
            if *masks == [0; 8] {
                continue;
            }
            self.markers.items[0] |= 1 << group;
            let changed = self.markers.len;
            self.markers.push(0);
            for (nth, mask) in masks.iter().enumerate() {
                if *mask == 0 {
                    continue;
                }
                self.markers.items[changed] |= 1 << nth;
                let number = group * 8 + nth;
                if mask.count_ones() >= WORTH_REPEATING {
                    let known = &mut self.known[hash(&vectors[number])];
                    let earlier = usize::from(*known);
                    if earlier != 0 && vectors[earlier - 1] == vectors[number] {
                        self.markers.push(0);
                        self.markers.push((earlier - 1) as u8);
                        continue;
                    }
                    *known = number as u8 + 1;
                }
                self.markers.push(*mask);
                let base = (number * LANES) as u16;
                self.changed[count..count + LANES]
                    .copy_from_slice(&BITS[usize::from(*mask)].map(|bit| base + bit));
                count += mask.count_ones() as usize;
            }
        }
        count
    }

    /// The page is text or the like: there is no result, and nothing to gain from markers.
    pub(in crate::codec) fn is_literal(&self) -> bool {
        self.is_literal
    }

    /// Bytes that the result takes.
    pub(in crate::codec) fn len(&self) -> usize {
        self.markers.len + 2 + self.codes.len.div_ceil(2) + self.data.len
    }

    /// Appends the result: markers, length of the codes in two bytes, codes in pairs, data.
    pub(in crate::codec) fn write_to(&mut self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.markers.filled());
        // The last pair may want a second code.
        self.codes.items[self.codes.len] = 0;
        let codes = &self.codes.items[..self.codes.len.next_multiple_of(2)];
        out.extend_from_slice(&((codes.len() / 2) as u16).to_le_bytes());
        let pairs = codes.as_chunks::<2>().0;
        out.extend(pairs.iter().map(|[low, high]| low | high << 4));
        out.extend_from_slice(self.data.filled());
    }
}

/// The words of a page on their way into codes and data. By itself, so that its lengths stay in registers.
struct Words<'a> {
    context: &'a mut Context,
    places: &'a mut [u16; PLACES],
    codes: &'a mut [u8; CODES_ROOM],
    codes_len: usize,
    data: &'a mut [u8; DATA],
    data_len: usize,
}

impl Words<'_> {
    #[inline(always)]
    fn code(&mut self, code: u8) {
        self.codes[self.codes_len] = code;
        self.codes_len += 1;
    }

    /// Adds the lowest `len` bytes of a word.
    #[inline(always)]
    fn data(&mut self, word: u64, len: u8) {
        self.data[self.data_len..self.data_len + WORD].copy_from_slice(&word.to_le_bytes());
        self.data_len += usize::from(len);
    }

    #[inline(always)]
    fn word(&mut self, word: u64, previous: u64) {
        let (expected, last) = (self.context.expected(), self.context.last());
        let slot = (word.wrapping_mul(SPREAD) >> (64 - PLACES.ilog2())) as usize;
        let place = usize::from(self.places[slot]);
        let distance = self.context.next() - place;
        self.places[slot] = self.context.next() as u16;
        let data: [u64; 8] = [
            word,
            word.wrapping_sub(expected),
            word.wrapping_sub(previous),
            word.wrapping_sub(last),
            distance as u64,
            0,
            0,
            0,
        ];
        let jump = match self.context.at(place) == word && distance <= FARTHEST && word > 0xffff {
            true => JUMP_COST,
            false => u32::MAX,
        };
        let cost = WORD_COSTS[0][64 - word.leading_zeros() as usize]
            .min(WORD_COSTS[1][bits(data[1])])
            .min(WORD_COSTS[2][bits(data[2])])
            .min(WORD_COSTS[3][bits(data[3])])
            .min(jump);
        if cost < LONG {
            self.code(code(cost));
            self.data(data[base(cost)], len(cost));
            if cost == JUMP_COST {
                self.context.jump(distance);
            }
        } else {
            self.long_word(cost, data[base(cost)], [word, expected, previous, last]);
        }
        self.context.push(word);
    }

    /// A word that takes three bytes or more as a whole.
    #[inline(always)]
    fn long_word(&mut self, cost: u32, data: u64, words: [u64; BASES]) {
        let (low, low_data) = half(words.map(|word| word as u32));
        let (high, high_data) = half(words.map(|word| (word >> 32) as u32));
        // Two codes more.
        if len(low) + len(high) + 1 < len(cost) {
            let codes = [word::HALVES, code(low), code(high)];
            self.codes[self.codes_len..self.codes_len + 3].copy_from_slice(&codes);
            self.codes_len += 3;
            self.data(low_data.into(), len(low));
            self.data(high_data.into(), len(high));
        } else {
            self.code(code(cost));
            self.data(data, len(cost));
        }
    }
}

/// Cost and data of half a word, from it and what is expected, was there, and was last.
#[inline(always)]
fn half([half, expected, previous, last]: [u32; BASES]) -> (u32, u32) {
    let data: [u32; 8] = [
        half,
        half.wrapping_sub(expected),
        half.wrapping_sub(previous),
        half.wrapping_sub(last),
        half >> 16,
        0,
        0,
        0,
    ];
    let high = match half & 0xffff {
        0 => HIGH_COST,
        _ => u32::MAX,
    };
    let cost = HALF_COSTS[0][32 - half.leading_zeros() as usize]
        .min(HALF_COSTS[1][half_bits(data[1])])
        .min(HALF_COSTS[2][half_bits(data[2])])
        .min(HALF_COSTS[3][half_bits(data[3])])
        .min(high);
    (cost, data[base(cost)])
}
