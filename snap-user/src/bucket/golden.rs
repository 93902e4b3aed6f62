//! A chunk, an index and a tree that were written once and must be read, and written, the same for ever.
//! `KSNAP_WRITE_GOLDEN=1` writes them anew.

use super::*;
use crate::codec::{Encoding, Scratch, encode};
use crate::image::SessionId;
use crate::model::{PAGE_SIZE, Page, SnapshotId};
use std::path::PathBuf;

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

fn objects() -> (ChunkName, Vec<u8>, SnapshotName, Vec<u8>) {
    let mut chunk = ChunkBuilder::default();
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
    let place = index.add_chunk(ChunkRef {
        name,
        len: bytes.len() as u32,
        pages: chunk.pages(),
    });
    assert_eq!(place.unwrap(), 0);
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
    let (name, chunk, _, index) = objects();
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
    let chunks = [ChunkRef {
        name,
        len: chunk.len() as u32,
        pages: 3,
    }];
    let members = vec![member(0x11, front), member(0x33, &other)];
    encode_tree(&about(), record.to_vec(), &chunks, members).unwrap()
}

fn file(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data")
        .join(name)
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
    if std::env::var_os("KSNAP_WRITE_GOLDEN").is_some() {
        for (name, bytes) in files {
            std::fs::write(file(name), bytes).unwrap();
        }
    }
    for (name, bytes) in files {
        assert!(std::fs::read(file(name)).unwrap() == *bytes, "{name}");
    }
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
