use super::*;
use crate::model::PAGE_SIZE;
use proptest::prelude::*;

const LEN: usize = PAGE_SIZE as usize;

fn page_of(bytes: &[u8]) -> Page {
    let mut page = [0; LEN];
    page[..bytes.len().min(LEN)].copy_from_slice(&bytes[..bytes.len().min(LEN)]);
    page
}

/// Pages from constant through repetitive to random.
fn pages() -> impl Strategy<Value = Box<Page>> {
    prop_oneof![
        any::<u64>().prop_map(|word| {
            let bytes: Vec<u8> = word.to_le_bytes().repeat(LEN / 8);
            Box::new(page_of(&bytes))
        }),
        proptest::collection::vec(any::<u8>(), 1..200)
            .prop_map(|seed| Box::new(page_of(&seed.repeat(LEN / seed.len() + 1)))),
        proptest::collection::vec(any::<u8>(), LEN).prop_map(|bytes| Box::new(page_of(&bytes))),
        proptest::collection::vec((0usize..LEN, any::<u8>()), 0..40).prop_map(|pokes| {
            let mut page = Box::new([0; LEN]);
            for (at, value) in pokes {
                page[at] = value;
            }
            page
        }),
    ]
}

fn round_trip(page: &Page, scratch: &mut Scratch) -> (Encoding, usize) {
    let mut out = vec![0xee; 3];
    let encoding = encode(page, scratch, &mut out);
    assert_eq!(out[..3], [0xee; 3], "what was in the buffer stays");
    let mut back = [0xaa; LEN];
    decode(encoding, &out[3..], &mut back).expect("what encode made decodes");
    assert!(back == *page);
    (encoding, out.len() - 3)
}

proptest! {
    #[test]
    fn any_page_comes_back_and_never_grows(pages in proptest::collection::vec(pages(), 1..6)) {
        // One scratch for all: what an earlier page left in it must not show.
        let mut scratch = Scratch::default();
        for page in pages {
            let (encoding, len) = round_trip(&page, &mut scratch);
            prop_assert!(len <= LEN);
            prop_assert!(encoding != Encoding::Lz4 || len <= LEN * 7 / 8);
        }
    }

    #[test]
    fn any_bytes_decode_to_a_page_or_an_error(
        tag in 0u8..6,
        bytes in proptest::collection::vec(any::<u8>(), 0..5000),
    ) {
        if let Some(encoding) = Encoding::from_tag(tag) {
            prop_assert_eq!(encoding.tag(), tag);
            let mut page = [0; LEN];
            let _ = decode(encoding, &bytes, &mut page);
        }
    }

    #[test]
    fn a_damaged_block_decodes_to_a_page_or_an_error(
        page in pages(), at in any::<prop::sample::Index>(), bit in 0u8..8, cut in any::<prop::sample::Index>(),
    ) {
        let mut out = Vec::new();
        let encoding = encode(&page, &mut Scratch::default(), &mut out);
        if !out.is_empty() {
            let mut back = [0; LEN];
            let short = &out[..cut.index(out.len())];
            prop_assert!(decode(encoding, short, &mut back).is_err() || encoding == Encoding::Lz4);
            let at = at.index(out.len());
            out[at] ^= 1 << bit;
            let _ = decode(encoding, &out, &mut back);
        }
    }
}

#[test]
fn the_cheapest_encoding_is_chosen() {
    let mut scratch = Scratch::default();
    assert_eq!(round_trip(&[0; LEN], &mut scratch), (Encoding::Zero, 0));
    assert_eq!(round_trip(&[7; LEN], &mut scratch), (Encoding::Fill, 8));
    let mut almost = [0; LEN];
    almost[LEN - 1] = 1;
    assert_eq!(round_trip(&almost, &mut scratch).0, Encoding::Lz4);
    let mut state = 1u64;
    let noise: Vec<u8> = (0..LEN)
        .map(|_| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1);
            (state >> 56) as u8
        })
        .collect();
    assert_eq!(
        round_trip(&page_of(&noise), &mut scratch),
        (Encoding::Raw, LEN)
    );
}

#[test]
fn a_reference_is_not_decoded_here() {
    let mut page = [0; LEN];
    assert_eq!(
        decode(Encoding::Reference, &[], &mut page),
        Err(CodecError::Reference)
    );
}
