//! Whatever the bytes, decoding gives a value or an error: also when the checksums have been made to match.

use super::golden::GOLDEN;
use super::*;
use proptest::prelude::*;

const CRC_OFFSET: usize = LATE_OFFSET as usize - 4;

/// Bytes to change: places and values.
fn changes() -> impl Strategy<Value = Vec<(prop::sample::Index, u8)>> {
    proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8)
}

fn change(bytes: &mut [u8], changes: &[(prop::sample::Index, u8)]) {
    for (at, value) in changes {
        if !bytes.is_empty() {
            bytes[at.index(bytes.len())] = *value;
        }
    }
}

/// Makes id and checksum of a header match its content again.
fn seal(header: &mut [u8]) {
    header[16..32].fill(0);
    let hash = blake3::hash(&header[..CRC_OFFSET]);
    header[16..32].copy_from_slice(&hash.as_bytes()[..16]);
    let crc = crc32c::crc32c(&header[..CRC_OFFSET]);
    header[CRC_OFFSET..CRC_OFFSET + 4].copy_from_slice(&crc.to_le_bytes());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn a_header_of_any_content_decodes_or_not(changes in changes(), len in 0u64..20_000) {
        let mut bytes = GOLDEN[..HEADER_LEN].to_vec();
        change(&mut bytes[12..CRC_OFFSET], &changes);
        seal(&mut bytes);
        for len in [len, GOLDEN.len() as u64, u64::MAX] {
            if let Ok(header) = Header::decode(&bytes, len) {
                // What a reader relies on.
                for section in [&header.data, &header.index, &header.dropped, &header.span, &header.manifest] {
                    prop_assert!(section.end() <= len);
                }
                prop_assert_eq!(header.file_len(), len);
                prop_assert!(header.parent_seq < header.seq);
            }
        }
    }

    #[test]
    fn sections_of_any_content_decode_or_not(
        changes in changes(), cut in any::<prop::sample::Index>(), shorten in any::<bool>(),
    ) {
        let mut header = Header::decode(GOLDEN, GOLDEN.len() as u64).expect("the golden header");
        let mut part = |section: fn(&mut Header) -> &mut Section| {
            let section = section(&mut header);
            let mut bytes = GOLDEN[section.offset as usize..section.end() as usize].to_vec();
            change(&mut bytes, &changes);
            if shorten {
                bytes.truncate(cut.index(bytes.len()));
            }
            section.len = bytes.len() as u64;
            section.crc = crc32c::crc32c(&bytes);
            bytes
        };
        let index = part(|h| &mut h.index);
        let dropped = part(|h| &mut h.dropped);
        let span = part(|h| &mut h.span);
        let manifest = part(|h| &mut h.manifest);
        if let Ok(entries) = decode_index(&index, &header) {
            for entry in entries {
                prop_assert!(entry.target().is_some() || entry.loan != 0 || entry.at + u64::from(entry.len) <= header.data.end());
            }
        }
        let _ = decode_dropped(&dropped, &header);
        if let Ok(runs) = decode_span(&span, &header) {
            let stored: u64 = runs.iter().filter(|r| r.first.is_some()).map(|r| u64::from(r.pages)).sum();
            prop_assert!(stored <= header.pages);
        }
        let _ = Manifest::decode(&manifest, &header);
    }
}
