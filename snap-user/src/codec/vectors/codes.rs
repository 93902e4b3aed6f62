//! What a word, or half of one, can be. The numbers are part of the image format.

/// What a code's number is added to.
#[derive(Clone, Copy)]
pub(super) enum Base {
    /// 0.
    Nothing,
    /// What the context expects.
    Expected,
    /// The same place in the previous version.
    Previous,
    /// The word before, in this page.
    Last,
}

/// Bases that there are.
pub(super) const BASES: usize = 4;

/// How a code is to be read.
#[derive(Clone, Copy)]
pub(super) struct Code {
    /// What the number is added to.
    pub base: Base,
    /// Bytes of the number.
    pub len: u8,
    /// The number may be negative.
    pub signed: bool,
}

const fn code(base: Base, len: u8) -> Code {
    Code {
        base,
        len,
        // What stands by itself is unsigned.
        signed: !matches!(base, Base::Nothing),
    }
}

/// Words: 16 codes, by their number.
pub(super) mod word {
    use super::{Base, Code, code};

    /// The word at the distance that a byte of data names. It is the distance of what is expected from then on.
    pub const JUMP: u8 = 3;
    /// The next two codes say what its lower and its upper half are.
    pub const HALVES: u8 = 14;
    /// 8 bytes.
    pub const LITERAL: u8 = 15;

    /// From what is shortest to what always fits.
    pub const CODES: [Code; 16] = [
        code(Base::Nothing, 0),
        code(Base::Expected, 0),
        code(Base::Last, 0),
        // JUMP
        code(Base::Nothing, 1),
        code(Base::Nothing, 1),
        code(Base::Expected, 1),
        code(Base::Previous, 1),
        code(Base::Last, 1),
        code(Base::Nothing, 2),
        code(Base::Expected, 2),
        code(Base::Previous, 2),
        code(Base::Expected, 3),
        code(Base::Last, 3),
        code(Base::Previous, 4),
        // HALVES: it has two codes of its own.
        code(Base::Nothing, 0),
        code(Base::Nothing, 8),
    ];
}

/// Halves of words: 14 codes, by their number. "Expected", "previous" and "last" are the same half of those.
pub(super) mod half {
    use super::{Base, Code, code};

    /// Two bytes, with 16 zero bits below them.
    pub const HIGH: u8 = 12;
    /// Codes that there are.
    pub const COUNT: u8 = 14;

    /// From what is shortest to what always fits.
    pub const CODES: [Code; 16] = [
        code(Base::Nothing, 0),
        code(Base::Expected, 0),
        code(Base::Previous, 0),
        code(Base::Last, 0),
        code(Base::Nothing, 1),
        code(Base::Expected, 1),
        code(Base::Previous, 1),
        code(Base::Nothing, 2),
        code(Base::Expected, 2),
        code(Base::Previous, 2),
        code(Base::Nothing, 3),
        code(Base::Expected, 3),
        // HIGH
        code(Base::Nothing, 2),
        code(Base::Nothing, 4),
        // None.
        code(Base::Nothing, 0),
        code(Base::Nothing, 0),
    ];
}

/// Codes whose data is no number to add.
const fn is_special(codes: &[Code; 16], code: usize) -> bool {
    if codes[word::LITERAL as usize].len == 8 {
        code == word::JUMP as usize || code == word::HALVES as usize
    } else {
        code == half::HIGH as usize
    }
}

/// What a code costs: bytes of data, then its number, then its base. Of two the smaller is the better one.
pub(super) const fn cost(len: u8, code: u8, base: u8) -> u32 {
    (len as u32) << 16 | (code as u32) << 8 | base as u32
}

/// For each length in bits of a number, what it costs on one base.
pub(super) const fn costs(codes: &[Code; 16], base: Base) -> [u32; 65] {
    let mut costs = [u32::MAX; 65];
    let mut bits = 0;
    while bits <= 64 {
        let mut code = 0;
        while code < 16 {
            let Code { base: own, len, .. } = codes[code];
            let cost = cost(len, code as u8, own as u8);
            let is_plain = own as u8 == base as u8 && !is_special(codes, code);
            if is_plain && bits <= 8 * len as usize && cost < costs[bits] {
                costs[bits] = cost;
            }
            code += 1;
        }
        bits += 1;
    }
    costs
}
