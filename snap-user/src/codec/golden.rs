//! A committed page of each encoding that the golden image has none of: today's decoder reads it, today's encoder still makes
//! it.

use super::*;
use crate::golden::assert_is_golden;

const GOLDEN: &[u8] = include_bytes!("../../tests/data/pages-v1.bin");

fn words(word: impl Fn(u64) -> u64) -> Page {
    let mut page = [0; PAGE_SIZE as usize];
    for (place, n) in page.as_chunks_mut().0.iter_mut().zip(0..) {
        *place = word(n).to_le_bytes();
    }
    page
}

fn noise(n: u64) -> u64 {
    (n + 1)
        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
        .rotate_left(31)
        .wrapping_mul(n | 3)
}

/// Pages, whether each was the one before, and how it is encoded.
fn pages() -> [(Encoding, Option<Page>, Page); 4] {
    let story =
        b"some text that has words, and words that come again, though not in the same order";
    let mut text = [0; PAGE_SIZE as usize];
    for (at, byte) in text.iter_mut().enumerate() {
        *byte = story[(at * at / 700 + at) % story.len()];
    }
    // What the pages that are stored as changes were.
    let was = words(|n| 0x7f00_0000_0000 + n * n);
    let changed = |each: usize, step: fn(u64) -> u64| {
        let mut page = was;
        for (word, n) in page.as_chunks_mut().0.iter_mut().zip(0..).step_by(each) {
            *word = (u64::from_le_bytes(*word) + step(n)).to_le_bytes();
        }
        page
    };
    let records = words(|n| [0x7f00_1234_0000 + n * 64, n, noise(n / 7) >> 40, 0][n as usize % 4]);
    [
        (Encoding::Lz4, None, text),
        (Encoding::Changes, Some(was), changed(5, |_| 77)),
        (
            Encoding::ChangesLz4,
            Some(was),
            changed(1, |n| noise(n) % 50),
        ),
        (Encoding::VectorsLz4, None, records),
    ]
}

/// For each page the number of its encoding, the length of its bytes, and these.
fn make() -> Vec<u8> {
    let mut file = Vec::new();
    for (expected, previous, page) in pages() {
        let mut bytes = Vec::new();
        let encoding = encode(
            &page,
            previous.as_ref(),
            &mut Scratch::default(),
            &mut bytes,
        );
        assert_eq!(encoding, expected);
        file.push(encoding.tag());
        file.extend_from_slice(&(bytes.len() as u16).to_le_bytes());
        file.extend_from_slice(&bytes);
    }
    file
}

#[test]
fn the_encoder_still_makes_the_golden_pages() {
    let advice = "Where only a better way was found and the old pages are still read, put the new ones beside them";
    assert_is_golden("pages-v1.bin", GOLDEN, &make(), advice);
}

#[test]
fn the_golden_pages_are_what_they_were() {
    let mut rest = GOLDEN;
    for (expected, previous, want) in pages() {
        let (head, after) = rest.split_first_chunk::<3>().expect("another page");
        let len = usize::from(u16::from_le_bytes([head[1], head[2]]));
        let (bytes, after) = after.split_at(len);
        rest = after;
        let encoding = Encoding::from_tag(head[0]).expect("known");
        assert_eq!(encoding, expected);
        let mut page = [0xff; PAGE_SIZE as usize];
        decode(encoding, bytes, previous.as_ref(), &mut page).expect("a page");
        assert!(page == want, "{encoding:?}");
        let alone = decode(encoding, bytes, None, &mut page).is_ok();
        assert_eq!(alone, !encoding.needs_previous(), "{encoding:?}");
    }
    assert!(rest.is_empty());
}
