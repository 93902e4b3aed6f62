//! A page into markers, codes and data, in one pass.
//!
//! What a word is cannot be foreseen by the processor, so the codes are found without branching: what the
//! word takes on each base comes from tables, and the least of it is taken.

use super::codes::{BASES, Base, costs, half, word};
use super::context::Context;
use crate::codec::change::{LANES, Masks, VECTOR, VECTORS, WORD};
use crate::model::Page;

const WORDS: usize = VECTORS * LANES;
/// Markers at most: one byte for all, one for each group of 8 vectors, two for each vector.
const MARKERS: usize = 1 + VECTORS / 8 + 2 * VECTORS;
/// Codes at most: three for each word.
pub(super) const CODES: usize = 3 * WORDS;
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
    codes: Out<u8, { CODES + 1 }>,
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

impl<const N: usize> Out<u8, N> {
    /// Adds the lowest `len` bytes of a word.
    #[inline(always)]
    fn push_bytes(&mut self, word: u64, len: u8) {
        self.items[self.len..self.len + WORD].copy_from_slice(&word.to_le_bytes());
        self.len += usize::from(len);
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

static WORD_COSTS: [[u8; 65]; 4] = [
    costs(&word::CODES, Base::Nothing as u8),
    costs(&word::CODES, Base::Expected as u8),
    costs(&word::CODES, Base::Previous as u8),
    costs(&word::CODES, Base::Last as u8),
];
static HALF_COSTS: [[u8; 65]; 4] = [
    costs(&half::CODES, Base::Nothing as u8),
    costs(&half::CODES, Base::Expected as u8),
    costs(&half::CODES, Base::Previous as u8),
    costs(&half::CODES, Base::Last as u8),
];
const JUMP_COST: u8 = 1 << 4 | word::JUMP;
/// Changed words of a vector from which on it is looked for among those before.
const WORTH_REPEATING: u32 = 4;
/// Farthest jump.
const FARTHEST: usize = u8::MAX as usize;
/// 2^64 divided by the golden ratio: spreads the bits of what it is multiplied with to the top.
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;
const PLACES: usize = 256;
const HIGH_COST: u8 = 2 << 4 | half::HIGH;
/// From here on halves may take less.
const LONG: u8 = 3 << 4;

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
        self.is_literal = is_literal(&self.changed[..count], both);
        if self.is_literal {
            return;
        }
        for n in 0..count {
            let [word, previous] = both(self.changed[n]);
            self.word(word, previous);
        }
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

    #[inline(always)]
    fn word(&mut self, word: u64, previous: u64) {
        let (expected, last) = (self.context.expected(), self.context.last());
        let data: [u64; BASES] = [
            word,
            word.wrapping_sub(expected),
            word.wrapping_sub(previous),
            word.wrapping_sub(last),
        ];
        let slot = (word.wrapping_mul(SPREAD) >> (64 - PLACES.ilog2())) as usize;
        let place = usize::from(self.places[slot]);
        let distance = self.context.next() - place;
        self.places[slot] = self.context.next() as u16;
        let jump = match self.context.at(place) == word && distance <= FARTHEST && word > 0xffff {
            true => u32::from(JUMP_COST),
            false => u32::MAX,
        };
        let cost = u32::from(WORD_COSTS[0][64 - word.leading_zeros() as usize])
            .min(WORD_COSTS[1][bits(data[1])].into())
            .min(WORD_COSTS[2][bits(data[2])].into())
            .min(WORD_COSTS[3][bits(data[3])].into())
            .min(jump) as u8;
        if cost < LONG {
            let code = cost & 0xf;
            self.codes.push(code);
            let mut data = data[word::CODES[usize::from(code)].base as usize % BASES];
            if code == word::JUMP {
                data = distance as u64;
                self.context.jump(distance);
            }
            self.data.push_bytes(data, cost >> 4);
        } else {
            self.long_word(cost, &data, [word, expected, previous, last]);
        }
        self.context.push(word);
    }

    /// A word that takes three bytes or more as a whole.
    #[inline(always)]
    fn long_word(&mut self, cost: u8, data: &[u64; BASES], words: [u64; 4]) {
        let (low, low_data) = half(words.map(|word| word as u32));
        let (high, high_data) = half(words.map(|word| (word >> 32) as u32));
        let [low_len, high_len] = [low, high].map(|cost| cost >> 4);
        // Two codes more.
        if low_len + high_len + 1 < cost >> 4 {
            let codes = [word::HALVES, low & 0xf, high & 0xf];
            self.codes.items[self.codes.len..self.codes.len + 3].copy_from_slice(&codes);
            self.codes.len += 3;
            self.data.push_bytes(low_data.into(), low_len);
            self.data.push_bytes(high_data.into(), high_len);
        } else {
            let code = cost & 0xf;
            self.codes.push(code);
            let base = word::CODES[usize::from(code)].base as usize;
            self.data.push_bytes(data[base % BASES], cost >> 4);
        }
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

/// Cost and data of half a word, from it and what is expected, was there, and was last.
#[inline(always)]
fn half([half, expected, previous, last]: [u32; 4]) -> (u8, u32) {
    let data = [
        half,
        half.wrapping_sub(expected),
        half.wrapping_sub(previous),
        half.wrapping_sub(last),
    ];
    let cost = u32::from(HALF_COSTS[0][32 - half.leading_zeros() as usize])
        .min(HALF_COSTS[1][half_bits(data[1])].into())
        .min(HALF_COSTS[2][half_bits(data[2])].into())
        .min(HALF_COSTS[3][half_bits(data[3])].into()) as u8;
    if half & 0xffff == 0 && cost > HIGH_COST {
        return (HIGH_COST, half >> 16);
    }
    let base = half::CODES[usize::from(cost & 0xf)].base as usize;
    (cost, data[base % 4])
}
