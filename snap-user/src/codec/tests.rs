use super::*;
use proptest::prelude::*;

const LEN: usize = PAGE_SIZE as usize;

fn page_of(bytes: &[u8]) -> Page {
    let mut page = [0; LEN];
    page[..bytes.len().min(LEN)].copy_from_slice(&bytes[..bytes.len().min(LEN)]);
    page
}

fn words(words: impl IntoIterator<Item = u64>) -> Page {
    let bytes: Vec<u8> = words.into_iter().flat_map(u64::to_le_bytes).collect();
    page_of(&bytes)
}

/// A word as memory has them: 0, small, a pointer, text, a double, anything.
fn word() -> impl Strategy<Value = u64> {
    prop_oneof![
        4 => Just(0),
        2 => 0u64..300,
        1 => (-300i64..0).prop_map(|n| n as u64),
        4 => (0u64..0x4000).prop_map(|n| 0x7f31_2200_0000 + n * 16),
        1 => 0u64..1 << 40,
        1 => (0u32..5000).prop_map(|n| (f64::from(n) / 2.0).to_bits()),
        1 => any::<u32>().prop_map(|n| u64::from(n) << 32),
        1 => any::<[u8; 8]>().prop_map(|b| u64::from_le_bytes(b.map(|b| b % 26 + b'a'))),
        1 => any::<u64>(),
    ]
}

/// Pages from constant through repetitive and like a heap to random.
fn pages() -> impl Strategy<Value = Box<Page>> {
    prop_oneof![
        any::<u64>().prop_map(|word| Box::new(words([word; LEN / 8]))),
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
        proptest::collection::vec(word(), LEN / 8).prop_map(|all| Box::new(words(all))),
        // Records of one layout.
        (
            proptest::collection::vec(word(), 1..40),
            proptest::collection::vec(word(), LEN / 8)
        )
            .prop_map(|(fields, values)| {
                let field = fields.iter().cycle();
                let all = values.iter().zip(field).enumerate();
                Box::new(words(all.map(|(n, (value, field))| match n % 3 {
                    0 => *value,
                    _ => *field,
                })))
            }),
    ]
}

/// A page and what it was before: related or not.
fn pairs() -> impl Strategy<Value = (Option<Box<Page>>, Box<Page>)> {
    let edit = (0usize..LEN, proptest::collection::vec(any::<u8>(), 1..400));
    let step = (0usize..LEN / 8, -70_000i64..70_000);
    prop_oneof![
        pages().prop_map(|page| (None, page)),
        (pages(), pages()).prop_map(|(before, page)| (Some(before), page)),
        (pages(), proptest::collection::vec(edit, 0..12)).prop_map(|(before, edits)| {
            let mut page = before.clone();
            for (at, bytes) in edits {
                let len = bytes.len().min(LEN - at);
                page[at..at + len].copy_from_slice(&bytes[..len]);
            }
            (Some(before), page)
        }),
        (pages(), proptest::collection::vec(step, 0..300)).prop_map(|(before, steps)| {
            let mut page = before.clone();
            for (at, step) in steps {
                let word = &mut page.as_chunks_mut().0[at];
                *word = u64::from_le_bytes(*word)
                    .wrapping_add_signed(step)
                    .to_le_bytes();
            }
            (Some(before), page)
        }),
    ]
}

fn round_trip(page: &Page, previous: Option<&Page>, scratch: &mut Scratch) -> (Encoding, usize) {
    let mut out = vec![0xee; 3];
    let encoding = encode(page, previous, scratch, &mut out);
    assert_eq!(out[..3], [0xee; 3], "what was in the buffer stays");
    let mut back = [0xaa; LEN];
    decode(encoding, &out[3..], previous, &mut back).expect("what encode made decodes");
    assert!(back == *page, "{encoding:?}");
    assert!(previous.is_some() || !encoding.needs_previous());
    (encoding, out.len() - 3)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, ..ProptestConfig::default() })]

    #[test]
    fn any_page_comes_back_and_never_grows(pairs in proptest::collection::vec(pairs(), 1..6)) {
        // One scratch for all: what an earlier page left in it must not show.
        let mut scratch = Scratch::default();
        let mut fresh = Vec::new();
        for (previous, page) in pairs {
            let (encoding, len) = round_trip(&page, previous.as_deref(), &mut scratch);
            prop_assert!(len <= LONGEST);
            fresh.clear();
            let fast = encode_fast(&page, previous.as_deref(), &mut fresh);
            let mut back = [0xaa; LEN];
            decode(fast, &fresh, previous.as_deref(), &mut back).expect("it decodes as well");
            prop_assert!(back == *page && fresh.len() <= LONGEST);
            fresh.clear();
            let anew = encode(&page, previous.as_deref(), &mut Scratch::default(), &mut fresh);
            prop_assert_eq!((anew, fresh.len()), (encoding, len));
        }
    }

    #[test]
    fn any_bytes_decode_to_a_page_or_an_error(
        tag in 0u8..11, previous in proptest::option::of(pages()),
        bytes in proptest::collection::vec(any::<u8>(), 0..5000),
    ) {
        if let Some(encoding) = Encoding::from_tag(tag) {
            prop_assert_eq!(encoding.tag(), tag);
            let mut page = [0; LEN];
            let _ = decode(encoding, &bytes, previous.as_deref(), &mut page);
        }
    }

    #[test]
    fn a_damaged_page_decodes_to_a_page_or_an_error(
        (previous, page) in pairs(), at in any::<prop::sample::Index>(), bit in 0u8..8,
        cut in any::<prop::sample::Index>(),
    ) {
        let mut out = Vec::new();
        let previous = previous.as_deref();
        let encoding = encode(&page, previous, &mut Scratch::default(), &mut out);
        if !out.is_empty() {
            let mut back = [0; LEN];
            let short = &out[..cut.index(out.len())];
            // Runs that end early are fewer runs, an LZ4 block may end where the next part would begin:
            // the checksum tells.
            let ends_anywhere = matches!(encoding, Encoding::Runs | Encoding::Lz4);
            prop_assert!(decode(encoding, short, previous, &mut back).is_err() || ends_anywhere || encoding == Encoding::VectorsLz4 || encoding == Encoding::ChangesLz4);
            let at = at.index(out.len());
            out[at] ^= 1 << bit;
            let _ = decode(encoding, &out, previous, &mut back);
        }
    }
}

fn noise() -> Page {
    let mut state = 1u64;
    words((0..LEN / 8).map(|_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    }))
}

#[test]
fn the_cheapest_encoding_is_chosen() {
    let mut scratch = Scratch::default();
    let mut own = |page: &Page| round_trip(page, None, &mut scratch);
    assert_eq!(own(&[0; LEN]), (Encoding::Zero, 0));
    assert_eq!(own(&[7; LEN]), (Encoding::Fill, 8));
    assert_eq!(own(&noise()), (Encoding::Raw, LEN));
    let mut almost = [0; LEN];
    almost[LEN - 1] = 1;
    // One group, one vector, one word of one half: markers, codes, a byte of data.
    assert_eq!(own(&almost).0, Encoding::Vectors);
    assert!(own(&almost).1 < 12);
    let mut text = [0; LEN];
    let story = b"the quick brown fox jumps over the lazy dog, and the dog does not mind; ";
    for (at, byte) in text.iter_mut().enumerate() {
        *byte = story[(at * at / 700 + at) % story.len()];
    }
    assert_eq!(own(&text).0, Encoding::Lz4);
}

#[test]
fn a_small_change_takes_few_bytes() {
    let mut scratch = Scratch::default();
    let before = noise();
    let mut change = |change: &dyn Fn(&mut Page)| {
        let mut page = before;
        change(&mut page);
        round_trip(&page, Some(&before), &mut scratch)
    };
    assert_eq!(change(&|_| {}), (Encoding::Runs, 0));
    // A place and a byte; a place and a word.
    assert_eq!(change(&|page| page[1000] ^= 1), (Encoding::Runs, 3));
    assert_eq!(
        change(&|page| page[1000..1008].iter_mut().for_each(|b| *b = !*b)),
        (Encoding::Runs, 10)
    );
    // Every word a counter that goes up by the same.
    let (encoding, len) = change(&|page| {
        for word in page.as_chunks_mut().0 {
            *word = (u64::from_le_bytes(*word).wrapping_add(3)).to_le_bytes();
        }
    });
    assert_eq!(encoding, Encoding::ChangesLz4);
    assert!(len < 200, "{len}");
    // Nothing is left of it.
    assert_eq!(change(&|page| *page = [0; LEN]), (Encoding::Zero, 0));
}

#[test]
fn in_a_hurry_small_changes_are_small_as_well() {
    let before = noise();
    let mut page = before;
    page[1000] ^= 1;
    let mut out = Vec::new();
    let encoding = encode_fast(&page, Some(&before), &mut out);
    assert_eq!((encoding, out.len()), (Encoding::Runs, 3));
    out.clear();
    assert_eq!(encode_fast(&page, None, &mut out), Encoding::Raw);
}

#[test]
fn a_page_written_anew_does_not_need_its_previous_version() {
    let before = noise();
    let page = words((0..512).map(|n| 0x5500_0000_0000 + n * n));
    let (encoding, len) = round_trip(&page, Some(&before), &mut Scratch::default());
    assert!(
        !encoding.needs_previous() && len < 1600,
        "{encoding:?} {len}"
    );
}

#[test]
fn what_needs_its_previous_version_says_so() {
    let mut page = [0; LEN];
    for encoding in [Encoding::Runs, Encoding::Changes, Encoding::ChangesLz4] {
        assert_eq!(
            decode(encoding, &[], None, &mut page),
            Err(CodecError::NoPrevious(encoding))
        );
    }
}

#[test]
fn a_reference_is_not_decoded_here() {
    let mut page = [0; LEN];
    assert_eq!(
        decode(Encoding::Reference, &[], None, &mut page),
        Err(CodecError::Reference)
    );
}
