//! A chunk, an index and a tree that were written once and must be read, and written, the same for ever.
//! `KSNAP_WRITE_GOLDEN=1` writes them anew.

use super::*;
use crate::codec::{Encoding, Scratch, encode};
use crate::image::SessionId;
use crate::model::{PAGE_SIZE, Page, SnapshotId};
use std::path::Path;
use std::sync::Arc;

/// The key that golden objects are sealed with.
pub(super) fn bucket_key() -> BucketKey {
    let recipients = ["age1a".to_owned(), "age1b".into()];
    BucketKey::with_bytes([0x44; 32], &recipients, |of| {
        vec![("age1b".into(), *blake3::hash(of).as_bytes())]
    })
}

/// The same, in a place.
pub(super) fn placed_key() -> PlacedKey {
    PlacedKey {
        name: KeyName([0x66; 32]),
        key: Arc::new(bucket_key()),
    }
}

/// What the golden index is about.
pub(super) fn about() -> About<'static> {
    About {
        arch: 62,
        id: SnapshotId([0x11; 16]),
        session: SessionId([0x22; 16]),
        time_ns: 1_700_000_000_123_456_789,
        pid: 4321,
        comm: "victim",
        stop_ns: 777_000,
    }
}

fn pages() -> [Page; 3] {
    let mut text = [0; PAGE_SIZE as usize];
    for (at, byte) in text.iter_mut().enumerate() {
        *byte = b"words that come again, though not in the same order"[(at * at / 700 + at) % 51];
    }
    [[0; PAGE_SIZE as usize], [7; PAGE_SIZE as usize], text]
}

/// Where these pages are.
fn place(name: ChunkName, chunk: &[u8]) -> ChunkRef {
    ChunkRef {
        name,
        len: chunk.len() as u32,
        pages: pages().len() as u32,
    }
}

fn objects() -> (ChunkName, Vec<u8>, SnapshotName, Vec<u8>) {
    objects_with(None)
}

/// The same, in a chunk that is sealed with this key.
fn objects_with(key: Option<Arc<BucketKey>>) -> (ChunkName, Vec<u8>, SnapshotName, Vec<u8>) {
    let mut chunk = ChunkBuilder::new(key);
    let mut index = IndexBuilder::default();
    for (page, addr) in pages().iter().zip([0x1000, 0x5000, 1u64 << 63]) {
        let mut bytes = Vec::new();
        let encoding: Encoding = encode(page, None, &mut Scratch::default(), &mut bytes);
        let hash = *blake3::hash(page).as_bytes();
        let slot = chunk.push(&hash, encoding, &bytes);
        let entry = Entry {
            addr,
            hash,
            chunk: 0,
            slot,
        };
        index.push(&entry).unwrap();
    }
    let (name, bytes) = chunk.finish(5);
    assert_eq!(index.add_chunk(place(name, &bytes)).unwrap(), 0);
    let (of, parts) = index.finish(&about(), b"not read by the index".to_vec());
    (name, bytes, of, parts.concat())
}

/// The record of the golden tree, which the bucket does not read.
pub(super) const RECORD: &[u8] = b"not read by the bucket";

/// A tree of two processes that have the same pages.
pub(super) fn tree() -> (SnapshotName, Vec<u8>) {
    let (name, parts) = tree_with(RECORD);
    (name, parts.concat())
}

/// The same with another record, in parts.
pub(super) fn tree_with(record: &[u8]) -> (SnapshotName, Vec<Vec<u8>>) {
    tree_of(record, objects())
}

/// The sealed index, or the sealed tree.
pub(super) fn sealed(tree: bool) -> (SnapshotName, Vec<u8>) {
    let key = placed_key();
    let objects = objects_with(Some(Arc::clone(&key.key)));
    let chunks = [place(objects.0, &objects.1)];
    let parts = match tree {
        false => vec![objects.3],
        true => tree_of(RECORD, objects).1,
    };
    let salt = if tree { [0x88; 32] } else { [0x77; 32] };
    let (name, parts) = Envelope::seal_with(parts, &chunks, &key, salt).unwrap();
    (name, parts.concat())
}

fn tree_of(
    record: &[u8],
    (name, chunk, _, index): (ChunkName, Vec<u8>, SnapshotName, Vec<u8>),
) -> (SnapshotName, Vec<Vec<u8>>) {
    let (front, back) = index.split_at(INDEX_HEADER_LEN);
    let mut other = front.to_vec();
    other[16..32].fill(0x33);
    let sum = crc32c::crc32c(&other[..INDEX_HEADER_LEN - 4]);
    other[INDEX_HEADER_LEN - 4..].copy_from_slice(&sum.to_le_bytes());
    let member = |id: u8, front: &[u8]| MemberIndex {
        id: SnapshotId([id; 16]),
        pages: 3,
        parts: [front.to_vec(), back.to_vec(), Vec::new()],
    };
    let chunks = [place(name, &chunk)];
    let members = vec![member(0x11, front), member(0x33, &other)];
    encode_tree(&about(), record.to_vec(), &chunks, members).unwrap()
}

/// What was made is the committed file of this name.
fn assert_is_golden(name: &str, made: &[u8]) {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
    let golden = std::fs::read(data.join(name)).unwrap_or_default();
    let advice = "Objects that are in buckets have to stay readable (docs/bucket.md): what changes needs a version of its own";
    crate::golden::assert_is_golden(name, &golden, made, advice);
}

#[test]
fn objects_are_written_and_read_as_they_always_were() {
    let (chunk_name, chunk, index_name, index) = objects();
    let (tree_name, tree) = tree();
    let files = [
        ("chunk-v1.ksnap", &chunk),
        ("index-v1.ksnap", &index),
        ("tree-v2.ksnap", &tree),
    ];
    files
        .iter()
        .for_each(|(name, bytes)| assert_is_golden(name, bytes));
    let head = TreeHead::decode(&tree_name.key(), &tree, tree.len() as u64).unwrap();
    assert!(head.header.common.name() == tree_name && tree_name == index_name);
    for member in &head.members {
        let range = member.range();
        let bytes = tree[range.start as usize..range.end as usize].to_vec();
        let of_member = Index::decode(&tree_name.key(), bytes).unwrap();
        assert!(
            of_member.header.common.id == member.id
                && of_member.header.common.pages == member.pages
        );
    }
    let decoded = Index::decode(&index_name.key(), index).unwrap();
    assert_eq!(decoded.header.common.name(), index_name);
    assert_eq!(decoded.chunks[0].name, chunk_name);
    let chunk = Chunk::decode(chunk_name, &chunk).unwrap();
    for (entry, page) in decoded.entries().zip(pages()) {
        let (encoding, bytes) = chunk.page(entry.slot).unwrap();
        let mut back = [1; PAGE_SIZE as usize];
        crate::codec::decode(encoding, bytes, None, &mut back).unwrap();
        assert!(back == page && entry.hash == *blake3::hash(&page).as_bytes());
    }
}

#[test]
fn the_names_of_the_golden_objects_stay() {
    let (chunk, _, index, _) = objects();
    assert_eq!(
        index.key(),
        "snapshots/01700000000123456789-d65a0625-22222222222222222222222222222222-11111111111111111111111111111111"
    );
    assert!(chunk.key().starts_with("chunks/"));
}

#[test]
fn sealed_objects_are_written_and_read_as_they_always_were() {
    let key = placed_key();
    let (name, mut chunk, ..) = objects_with(Some(Arc::clone(&key.key)));
    assert_is_golden("sealed-chunk-v2.ksnap", &chunk);
    assert_is_golden("sealed-index-v3.ksnap", &sealed(false).1);
    assert_is_golden("sealed-tree-v3.ksnap", &sealed(true).1);
    assert_is_golden("bucket-key-v1.txt", key.key.encode().as_bytes());
    let plain = objects().1;
    let opened = Chunk::decode_sealed(name, &mut chunk, &key.key).unwrap();
    let plain = Chunk::decode(ChunkName(*blake3::hash(&plain).as_bytes()), &plain).unwrap();
    for slot in 0..3 {
        assert_eq!(opened.page(slot), plain.page(slot));
    }
    // What is made of the key.
    assert_eq!(
        sealed(true).0.key(),
        "snapshots/01700000000123456789-843de646-22222222222222222222222222222222-11111111111111111111111111111111"
    );
}
