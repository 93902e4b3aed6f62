//! One sealed file: what was written comes back, in whatever pieces, and nothing else ever does.

use super::support::*;
use crate::image::SessionId;
use crate::store::seal::{SealError, SessionKey};
use proptest::prelude::*;
use std::io;

/// Plain bytes in the first block, and in each other one.
const FIRST: usize = (64 << 10) - 16 - 64;
const ROOM: usize = (64 << 10) - 16;

fn key() -> SessionKey {
    SessionKey::new(SessionId([5; 16]), [7; 32])
}

/// Bytes that do not repeat.
fn content(len: usize) -> Vec<u8> {
    let mut all = Vec::with_capacity(len + 4096);
    let mut seed = 2;
    while all.len() < len {
        all.extend_from_slice(&page(seed));
        seed += 5;
    }
    all.truncate(len);
    all
}

fn seal(plain: &[u8]) -> Vec<u8> {
    key().seal("a purpose", plain).expect("sealed")
}

/// What a reader of the whole file gets: nothing, or what was written.
fn open(sealed: &[u8]) -> io::Result<Vec<u8>> {
    key().unseal("a purpose", sealed.to_vec())
}

fn assert_damaged(sealed: &[u8], how: &str) {
    let error = open(sealed).map(|_| ()).expect_err(how);
    let cause = SealError::behind(&error);
    assert!(
        matches!(
            cause,
            Some(SealError::Damaged { .. } | SealError::Newer { .. })
        ),
        "{how}: {error}"
    );
}

/// Lengths around which blocks begin and end.
fn lengths() -> impl Strategy<Value = usize> {
    let edges = [0, FIRST, FIRST + ROOM, FIRST + 18 * ROOM];
    (0..edges.len(), 0usize..40).prop_map(move |(at, near)| (edges[at] + near).saturating_sub(20))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn what_is_sealed_comes_back_whole_and_in_pieces(
        len in lengths(),
        pieces in prop::collection::vec((any::<u32>(), any::<u32>()), 1..12),
    ) {
        let plain = content(len);
        let sealed = seal(&plain);
        prop_assert_eq!(&open(&sealed).expect("whole"), &plain);
        let reader = key().reader("a purpose", sealed).expect("opens");
        prop_assert_eq!(reader.len().expect("a length"), len as u64);
        for (start, count) in pieces {
            let start = start as usize % (len + 1);
            let count = count as usize % (len - start + 1);
            let mut bytes = vec![0xcc; count];
            reader.read_exact_at(&mut bytes, start as u64).expect("inside");
            prop_assert!(bytes == plain[start..start + count]);
        }
        let mut beyond = [0; 2];
        let at = (len as u64).saturating_sub(1);
        prop_assert!(reader.read_exact_at(&mut beyond, at).is_err());
    }

    #[test]
    fn a_flipped_bit_or_a_cut_anywhere_is_an_error(
        len in lengths(),
        at in any::<u32>(),
        bit in 0u8..8,
    ) {
        let sealed = seal(&content(len));
        let at = at as usize % sealed.len();
        let mut flipped = sealed.clone();
        flipped[at] ^= 1 << bit;
        assert_damaged(&flipped, "flipped");
        assert_damaged(&sealed[..at], "cut");
        let mut longer = sealed.clone();
        longer.extend_from_slice(&sealed[..at.max(1)]);
        assert_damaged(&longer, "longer");
    }
}

#[test]
fn blocks_stay_in_their_place_and_file() {
    let plain = content(FIRST + 3 * ROOM);
    let sealed = seal(&plain);
    let block = 64 << 10;
    assert_eq!(sealed.len(), 4 * block);

    let mut swapped = sealed.clone();
    swapped[block..3 * block].rotate_left(block);
    assert_damaged(&swapped, "two blocks in each other's place");

    // A cut between blocks leaves a file that looks like one.
    assert_damaged(&sealed[..3 * block], "the last block gone");
    let mut without = sealed[..block].to_vec();
    without.extend_from_slice(&sealed[2 * block..]);
    assert_damaged(&without, "a block in the middle gone");

    // The same content in another file has other blocks.
    let other = seal(&plain);
    assert_ne!(sealed[16..48], other[16..48], "each file has its own salt");
    let mut mixed = sealed.clone();
    mixed[block..2 * block].copy_from_slice(&other[block..2 * block]);
    assert_damaged(&mixed, "a block of another file");
    let mut salted = sealed.clone();
    salted[..64].copy_from_slice(&other[..64]);
    assert_damaged(&salted, "the beginning of another file");

    let damaged = |opened: io::Result<Vec<u8>>| opened.map(|_| ()).expect_err("not its own");
    damaged(key().unseal("another purpose", sealed.clone()));
    damaged(SessionKey::new(SessionId([6; 16]), [7; 32]).unseal("a purpose", sealed.clone()));
    damaged(SessionKey::new(SessionId([5; 16]), [8; 32]).unseal("a purpose", sealed));
}

#[test]
fn what_a_damaged_block_does_not_touch_can_be_read() {
    let plain = content(FIRST + 3 * ROOM);
    let mut sealed = seal(&plain);
    sealed[2 * (64 << 10) + 5] ^= 1;
    let reader = key().reader("a purpose", sealed).expect("opens");
    let mut bytes = vec![0; ROOM];
    let third = FIRST + 2 * ROOM;
    reader
        .read_exact_at(&mut bytes, third as u64)
        .expect("the last block is whole");
    assert!(bytes == plain[third..]);
    let one = reader.read_exact_at(&mut bytes[..1], FIRST as u64 + ROOM as u64);
    assert!(one.is_err());
}

/// `docs/format.md` describes these bytes.
const GOLDEN: &[u8] = include_bytes!("../../../tests/data/sealed-v1.bin");

#[test]
fn sealed_bytes_stay_the_same() {
    let plain = content(200);
    let sealed = key()
        .seal_with("session.json", &plain, [9; 32])
        .expect("sealed");
    assert!(sealed == GOLDEN, "another form needs another version");
    let back = key().unseal("session.json", GOLDEN.to_vec());
    assert_eq!(back.expect("opens"), plain);
    // Of several blocks, by their hash.
    let many = key()
        .seal_with("pack 00000003", &content(FIRST + ROOM + 10), [4; 32])
        .expect("sealed");
    assert_eq!(
        blake3::hash(&many).to_hex().as_str(),
        "e196aa48f7a8673d77a1de0704e69c725ec8a2162ef4790713a78f64ab78881d"
    );
}

#[test]
fn a_later_version_is_told_as_that() {
    let mut sealed = GOLDEN.to_vec();
    sealed[8] = 2;
    let error = key().unseal("session.json", sealed).expect_err("newer");
    let cause = SealError::behind(&error).cloned();
    assert_eq!(cause, Some(SealError::Newer { found: 2 }));
}
