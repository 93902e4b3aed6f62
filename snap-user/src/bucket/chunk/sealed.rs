//! Sealed chunks. The same pages give the same object under the same key, so that what is there is not sent again, and
//! under another key one that has nothing in common with it.

use super::{MAGIC, SEALED};
use crate::bucket::bytes::Fields;
use crate::bucket::key::TAG;
use crate::bucket::{BucketError, BucketKey, Result};

const HEAD: usize = 48;
/// What a sealed chunk is longer by.
pub(super) const OVER: usize = HEAD + TAG;

/// Seals a chunk.
pub(super) fn seal(key: &BucketKey, plain: &[u8]) -> Vec<u8> {
    let tag = key.chunk_tag(plain);
    let mut out = Vec::with_capacity(plain.len() + OVER);
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&SEALED.to_le_bytes());
    out.extend_from_slice(&[0; 6]);
    out.extend_from_slice(&tag);
    let head: [u8; HEAD] = *out.first_chunk().expect("it was just put together");
    out.extend_from_slice(plain);
    // Its key is of its content, so that it never seals another one.
    key.for_chunk(&tag).seal(0, &head, &mut out, HEAD);
    out
}

/// Opens a sealed chunk in place, whose magic and version have been looked at.
pub(super) fn open<'a>(object: &str, key: &BucketKey, bytes: &'a mut [u8]) -> Result<&'a [u8]> {
    let corrupt = |why: &str| BucketError::corrupt(object, why);
    let Some((head, sealed)) = bytes.split_first_chunk_mut::<HEAD>() else {
        return Err(corrupt("it ends inside its head"));
    };
    let mut fields = Fields::new(&head[10..]);
    let (zero, tag) = (fields.array::<6>(), fields.array::<32>());
    let plain = key.for_chunk(&tag).open(0, &*head, sealed);
    let plain = plain.ok_or_else(|| corrupt("it was altered, or sealed with another key"))?;
    // Who has the key may have sealed anything under any tag: two contents would give each other away.
    match zero == [0; 6] && key.chunk_tag(plain) == tag {
        true => Ok(plain),
        false => Err(corrupt("it is not sealed as ksnap seals")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Chunk, ChunkBuilder, ENTRY, HEADER, MAX_CHUNK_PAGES};
    use super::*;
    use crate::bucket::golden::bucket_key;
    use crate::bucket::{ChunkName, MAX_CHUNK};
    use crate::codec::{Encoding, LONGEST};
    use std::sync::Arc;

    fn filled(key: Option<Arc<BucketKey>>) -> ChunkBuilder {
        let mut builder = ChunkBuilder::new(key);
        builder.push(&[1; 32], Encoding::Lz4, b"some page");
        builder.push(&[2; 32], Encoding::Lz4, b"another page");
        builder
    }

    fn name_of(bytes: &[u8]) -> ChunkName {
        ChunkName(*blake3::hash(bytes).as_bytes())
    }

    fn other_key() -> Arc<BucketKey> {
        Arc::new(BucketKey::generate(&["age1a".into()], |_| Vec::new()).unwrap())
    }

    #[test]
    fn the_same_pages_give_the_same_object_under_one_key_and_another_under_another() {
        let key = Arc::new(bucket_key());
        let (name, bytes) = filled(Some(Arc::clone(&key))).finish(0);
        assert_eq!(
            (name, bytes.clone()),
            filled(Some(Arc::clone(&key))).finish(0)
        );
        assert_eq!(name, name_of(&bytes));
        let (plain_name, plain) = filled(None).finish(0);
        assert_eq!(bytes.len(), plain.len() + OVER);
        let others = [
            filled(Some(Arc::clone(&key))).finish(1),
            filled(Some(other_key())).finish(0),
        ];
        for (other, _) in others {
            assert!(other != name && other != plain_name);
        }
        let mut sealed = bytes.clone();
        let chunk = Chunk::decode_sealed(name, &mut sealed, &key).unwrap();
        assert_eq!(chunk.pages(), 2);
        assert_eq!(chunk.page(1), Some((Encoding::Lz4, &b"another page"[..])));
        let has = |word: &[u8]| bytes.windows(word.len()).any(|part| part == word);
        assert!(!has(b"page") && !has(&plain_name.0));
    }

    #[test]
    fn damage_anywhere_is_seen_also_under_the_name_that_fits_it() {
        let key = Arc::new(bucket_key());
        let (name, bytes) = filled(Some(Arc::clone(&key))).finish(0);
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            let fitting = name_of(&damaged);
            assert!(Chunk::decode_sealed(name, &mut damaged.clone(), &key).is_err());
            assert!(
                Chunk::decode_sealed(fitting, &mut damaged, &key).is_err(),
                "byte {at}"
            );
            let mut cut = bytes[..at].to_vec();
            let fitting = name_of(&cut);
            assert!(
                Chunk::decode_sealed(fitting, &mut cut, &key).is_err(),
                "cut at {at}"
            );
        }
        let error = Chunk::decode_sealed(name, &mut bytes.clone(), &other_key()).unwrap_err();
        assert!(error.to_string().contains("another key"), "{error}");
    }

    #[test]
    fn a_plain_chunk_is_not_taken_for_a_sealed_one_nor_the_other_way_round() {
        let key = Arc::new(bucket_key());
        let (name, mut plain) = filled(None).finish(0);
        let error = Chunk::decode_sealed(name, &mut plain, &key).unwrap_err();
        assert!(error.to_string().contains("not sealed"), "{error}");
        let (name, sealed) = filled(Some(key)).finish(0);
        let error = Chunk::decode(name, &sealed).unwrap_err();
        assert!(error.to_string().contains("is sealed"), "{error}");
    }

    #[test]
    fn a_tag_of_another_content_is_refused() {
        let key = bucket_key();
        let (_, plain) = filled(None).finish(0);
        let mut bytes = seal(&key, &plain)[..HEAD].to_vec();
        let (tag, head) = (key.chunk_tag(&plain), bytes.clone());
        let (_, other) = filled(None).finish(1);
        bytes.extend_from_slice(&other);
        key.for_chunk(&tag).seal(0, &head, &mut bytes, HEAD);
        let error = Chunk::decode_sealed(name_of(&bytes), &mut bytes, &key).unwrap_err();
        assert!(error.to_string().contains("as ksnap seals"), "{error}");
    }

    #[test]
    fn where_chunks_end_depends_on_the_key() {
        let hashes: Vec<[u8; 32]> = (0u32..20_000)
            .map(|n| *blake3::hash(&n.to_le_bytes()).as_bytes())
            .collect();
        let ends = |key: Option<Arc<BucketKey>>| {
            let mut ends = Vec::new();
            let mut builder = ChunkBuilder::new(key.clone());
            for (at, hash) in hashes.iter().enumerate() {
                builder.push(hash, Encoding::Zero, &[]);
                if builder.is_full() {
                    ends.push(at);
                    builder = ChunkBuilder::new(key.clone());
                }
            }
            ends
        };
        let own = ends(Some(Arc::new(bucket_key())));
        assert!(own.len() > 3 && own == ends(Some(Arc::new(bucket_key()))));
        assert_ne!(own, ends(None));
        assert_ne!(own, ends(Some(other_key())));
    }

    #[test]
    fn the_longest_chunk_fits_sealed() {
        // Longer than a builder makes one: what a reader takes, to the byte.
        let plain = vec![7; HEADER + MAX_CHUNK_PAGES * (ENTRY + LONGEST)];
        assert_eq!(seal(&bucket_key(), &plain).len() as u64, MAX_CHUNK);
    }
}
