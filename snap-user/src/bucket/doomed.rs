//! Chunks that are going to be deleted, and that nobody may refer to any more.

use super::name::{ChunkName, DoomedName};
use super::{BucketError, Result};

const MAGIC: [u8; 8] = *b"\x89KSDOOM\n";
const VERSION: u32 = 1;
const HEADER: usize = 12;
const HASH: usize = 32;
/// Most chunks of one list.
pub const MAX_DOOMED: usize = 1 << 18;
/// Longest list, in bytes.
pub(super) const MAX_LIST: u64 = (HEADER + MAX_DOOMED * HASH) as u64;

/// The object for chunks, which are ascending, and its name.
pub fn encode_doomed(chunks: &[ChunkName]) -> (DoomedName, Vec<u8>) {
    debug_assert!(chunks.len() <= MAX_DOOMED && chunks.is_sorted());
    let mut out = Vec::with_capacity(HEADER + chunks.len() * HASH);
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&VERSION.to_le_bytes());
    chunks
        .iter()
        .for_each(|chunk| out.extend_from_slice(&chunk.0));
    (DoomedName(*blake3::hash(&out).as_bytes()), out)
}

/// Reads a list back.
pub fn decode_doomed(name: DoomedName, bytes: &[u8]) -> Result<Vec<ChunkName>> {
    let object = name.key();
    if blake3::hash(bytes) != name.0 {
        return Err(BucketError::corrupt(
            &object,
            "its content is not what its name says",
        ));
    }
    let Some((header, hashes)) = bytes.split_first_chunk::<HEADER>() else {
        return Err(BucketError::corrupt(
            &object,
            "it is shorter than its header",
        ));
    };
    if header[..8] != MAGIC {
        return Err(BucketError::corrupt(
            &object,
            "it does not begin as a list of chunks does",
        ));
    }
    let found = u32::from_le_bytes([header[8], header[9], header[10], header[11]]);
    if found > VERSION {
        return Err(BucketError::NewerVersion {
            object,
            found,
            supported: VERSION,
        });
    }
    let (hashes, rest) = hashes.as_chunks::<HASH>();
    if found != VERSION || !rest.is_empty() {
        return Err(BucketError::corrupt(&object, "it is cut, or of no version"));
    }
    Ok(hashes.iter().map(|hash| ChunkName(*hash)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_comes_back_as_it_was_and_damage_is_seen() {
        let chunks = [ChunkName([1; 32]), ChunkName([2; 32])];
        let (name, bytes) = encode_doomed(&chunks);
        assert_eq!(decode_doomed(name, &bytes).unwrap(), chunks);
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            assert!(decode_doomed(name, &damaged).is_err(), "byte {at}");
            assert!(decode_doomed(name, &bytes[..at]).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn a_newer_list_is_told_from_damage() {
        let (_, mut bytes) = encode_doomed(&[]);
        bytes[8] = 9;
        let name = DoomedName(*blake3::hash(&bytes).as_bytes());
        let error = decode_doomed(name, &bytes).unwrap_err();
        assert!(matches!(error, BucketError::NewerVersion { found: 9, .. }));
    }
}
