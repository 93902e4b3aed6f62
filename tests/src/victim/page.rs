//! Pages that say what they are: salt, index, generation, a pseudo-random body and a checksum.
//!
//! A page that went back to an older generation, moved, became zero or was torn is told apart in the error.

use super::rng::{GOLDEN, mix};

/// Bytes in a page.
pub const PAGE: usize = 4096;
const WORDS: usize = PAGE / 8;
const MAGIC: u64 = 0x6b73_6e61_7020_7067;

/// The `at`-th word of the page `index` of structure `salt` at `generation`. Word 511 is the checksum.
fn expected(salt: u64, index: u64, generation: u64) -> impl Iterator<Item = u64> {
    let seed = mix(salt ^ mix(index ^ mix(generation)));
    let mut sum = seed;
    (0..WORDS as u64).map(move |at| {
        let word = match at {
            0 => MAGIC ^ salt,
            1 => index,
            2 => generation,
            511 => return sum,
            _ => mix(seed.wrapping_add(at.wrapping_mul(GOLDEN))),
        };
        sum = (sum ^ word).rotate_left(7);
        word
    })
}

/// Writes the page.
///
/// # Safety
/// `at` is page-aligned and valid for writing one page that nobody else accesses meanwhile.
pub unsafe fn fill(at: *mut u64, salt: u64, index: u64, generation: u64) {
    for (offset, word) in expected(salt, index, generation).enumerate() {
        // SAFETY: offset < WORDS, and the caller vouches for the page.
        unsafe { at.add(offset).write_volatile(word) };
    }
}

/// Compares the page with what it must hold; the error says what it holds instead.
///
/// # Safety
/// `at` is page-aligned and valid for reading one page.
pub unsafe fn verify(at: *const u64, salt: u64, index: u64, generation: u64) -> Result<(), String> {
    for (offset, word) in expected(salt, index, generation).enumerate() {
        // SAFETY: offset < WORDS, and the caller vouches for the page.
        let found = unsafe { at.add(offset).read_volatile() };
        if found != word {
            // SAFETY: passed on from the caller.
            let instead = unsafe { describe(at, salt) };
            return Err(format!(
                "page {index} at {at:p} should hold generation {generation}, but byte {} is {found:#018x} \
                 instead of {word:#018x}: {instead}",
                offset * 8
            ));
        }
    }
    Ok(())
}

/// Demands that the page is all zero.
///
/// # Safety
/// `at` is page-aligned and valid for reading one page.
pub unsafe fn verify_zero(at: *const u64) -> Result<(), String> {
    for offset in 0..WORDS {
        // SAFETY: offset < WORDS, and the caller vouches for the page.
        let found = unsafe { at.add(offset).read_volatile() };
        if found != 0 {
            return Err(format!(
                "the page at {at:p} should be zero, but byte {} is {found:#018x}",
                offset * 8
            ));
        }
    }
    Ok(())
}

/// What a page holds, in words.
///
/// # Safety
/// `at` is page-aligned and valid for reading one page.
unsafe fn describe(at: *const u64, salt: u64) -> String {
    // SAFETY: passed on from the caller.
    if unsafe { verify_zero(at) }.is_ok() {
        return "the page is all zero".to_owned();
    }
    // SAFETY: words 0..3 of a page that the caller vouches for.
    let header = unsafe {
        [
            at.read_volatile(),
            at.add(1).read_volatile(),
            at.add(2).read_volatile(),
        ]
    };
    if header[0] != MAGIC ^ salt {
        return "the page is not one of this structure's".to_owned();
    }
    let whole = expected(salt, header[1], header[2])
        .enumerate()
        // SAFETY: offset < WORDS, and the caller vouches for the page.
        .all(|(offset, word)| unsafe { at.add(offset).read_volatile() } == word);
    let state = if whole { "whole" } else { "torn or damaged" };
    format!("a {state} page {} of generation {}", header[1], header[2])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[repr(align(4096))]
    struct Aligned([u64; WORDS]);

    #[test]
    fn a_page_of_another_generation_is_told_apart_from_a_damaged_one() {
        let mut page = Box::new(Aligned([0; WORDS]));
        let at = page.0.as_mut_ptr();
        // SAFETY: `at` is one aligned page of this test's own.
        unsafe {
            fill(at, 7, 3, 1);
            assert_eq!(verify(at, 7, 3, 1), Ok(()));
            assert!(
                verify(at, 7, 3, 2)
                    .unwrap_err()
                    .contains("a whole page 3 of generation 1")
            );
            at.add(200).write_volatile(1);
            assert!(verify(at, 7, 3, 1).unwrap_err().contains("torn or damaged"));
            at.write_bytes(0, WORDS);
            assert!(verify(at, 7, 3, 1).unwrap_err().contains("all zero"));
            assert_eq!(verify_zero(at), Ok(()));
        }
    }
}
