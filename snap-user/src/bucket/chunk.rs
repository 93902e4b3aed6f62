//! Many pages in one object, named by the hash of its bytes.

mod sealed;

use super::bytes::Fields;
use super::name::ChunkName;
use super::{BucketError, BucketKey, Result};
use crate::codec::{Encoding, LONGEST};
use std::sync::Arc;

const MAGIC: [u8; 8] = *b"\x89KSCHK\r\n";
const VERSION: u16 = 1;
/// Version of a sealed chunk, which holds one of the version above.
const SEALED: u16 = 2;
const HEADER: usize = 24;
/// Of each page: length, encoding.
const ENTRY: usize = 4;
/// Most pages of a chunk.
pub const MAX_CHUNK_PAGES: usize = 4096;
/// Longest chunk, in bytes, sealed or not.
pub const MAX_CHUNK: u64 = (HEADER + MAX_CHUNK_PAGES * (ENTRY + LONGEST) + sealed::OVER) as u64;

/// Fewest pages before a chunk may end.
const FEW: usize = 256;
/// A chunk ends behind a page whose hash begins with so many zero bits: about every 2048th. So it ends at the same
/// pages wherever it begins, and pages that were pushed once give the same objects again.
const CUT_MASK: u16 = 0x07ff;
/// Bytes of pages with which a chunk ends in any case.
const MANY_BYTES: usize = 8 << 20;

/// A chunk being filled.
#[derive(Debug, Default)]
pub struct ChunkBuilder {
    /// What it is sealed with; nothing: it is plain.
    key: Option<Arc<BucketKey>>,
    table: Vec<u8>,
    data: Vec<u8>,
    pages: usize,
    full: bool,
}

impl ChunkBuilder {
    /// Of a chunk that is sealed with this key, or plain.
    pub fn new(key: Option<Arc<BucketKey>>) -> Self {
        Self {
            key,
            ..Self::default()
        }
    }

    /// Adds a page with this hash, which must be encoded by itself. Gives its slot.
    pub fn push(&mut self, hash: &[u8; 32], encoding: Encoding, bytes: &[u8]) -> u32 {
        debug_assert!(!encoding.needs_previous() && bytes.len() <= LONGEST && !self.full);
        self.table
            .extend_from_slice(&(bytes.len() as u16).to_le_bytes());
        self.table.extend_from_slice(&[encoding.tag(), 0]);
        self.data.extend_from_slice(bytes);
        self.pages += 1;
        let end = self.key.as_ref().map_or(*hash, |key| key.end_of(hash));
        let cut = u16::from_le_bytes([end[0], end[1]]) & CUT_MASK == 0;
        self.full = (cut && self.pages >= FEW)
            || self.pages == MAX_CHUNK_PAGES
            || self.data.len() >= MANY_BYTES;
        self.pages as u32 - 1
    }

    /// Nothing more may be added.
    pub fn is_full(&self) -> bool {
        self.full
    }

    /// Nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.pages == 0
    }

    /// Its pages.
    pub fn pages(&self) -> u32 {
        self.pages as u32
    }

    /// The object. `salt` makes another one, of another name, of the same pages.
    pub fn finish(&self, salt: u32) -> (ChunkName, Vec<u8>) {
        let mut out = Vec::with_capacity(HEADER + self.table.len() + self.data.len());
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&[0; 2]);
        out.extend_from_slice(&salt.to_le_bytes());
        out.extend_from_slice(&(self.pages as u32).to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&self.table);
        out.extend_from_slice(&self.data);
        if let Some(key) = &self.key {
            out = sealed::seal(key, &out);
        }
        (ChunkName(*blake3::hash(&out).as_bytes()), out)
    }
}

/// The version of a chunk that should have this name.
fn version(name: ChunkName, object: &str, bytes: &[u8]) -> Result<u16> {
    let corrupt = |why: &str| Err(BucketError::corrupt(object, why));
    if blake3::hash(bytes) != name.0 {
        return corrupt("its content is not what its name says");
    }
    let mut fields = Fields::new(bytes);
    if fields.array() != MAGIC {
        return corrupt("it does not begin as a chunk does");
    }
    match fields.u16() {
        0 => corrupt("its header has values that no version has"),
        found if found > SEALED => Err(BucketError::NewerVersion {
            object: object.to_owned(),
            found: found.into(),
            supported: SEALED.into(),
        }),
        version => Ok(version),
    }
}

/// A chunk that has been read and is what its name says.
#[derive(Debug)]
pub struct Chunk<'a> {
    table: &'a [u8],
    data: &'a [u8],
    /// Where each page begins in `data`, and where the last one ends.
    starts: Vec<u32>,
}

impl<'a> Chunk<'a> {
    /// Looks at a chunk that should have this name: hash first, then version, then lengths.
    pub fn decode(name: ChunkName, bytes: &'a [u8]) -> Result<Self> {
        let object = name.key();
        match version(name, &object, bytes)? {
            VERSION => Self::read(&object, bytes),
            _ => Err(BucketError::corrupt(
                &object,
                "it is sealed, and what refers to it is not",
            )),
        }
    }

    /// The same of a sealed one, which is opened in place.
    pub fn decode_sealed(name: ChunkName, bytes: &'a mut [u8], key: &BucketKey) -> Result<Self> {
        let object = name.key();
        match version(name, &object, bytes)? {
            SEALED => Self::read(&object, sealed::open(&object, key, bytes)?),
            _ => Err(BucketError::corrupt(
                &object,
                "it is not sealed, and what refers to it is",
            )),
        }
    }

    fn read(object: &str, bytes: &'a [u8]) -> Result<Self> {
        let corrupt = |why: String| Err(BucketError::corrupt(object, why));
        let Some((header, rest)) = bytes.split_at_checked(HEADER) else {
            return corrupt(format!("{} bytes are no chunk", bytes.len()));
        };
        let mut fields = Fields::new(header);
        let (magic, version) = (fields.array(), fields.u16());
        let (zero, _salt, pages) = (fields.u16(), fields.u32(), fields.u32() as usize);
        if magic != MAGIC || version != VERSION || zero != 0 || fields.u32() != 0 {
            return corrupt("its header has values that no version has".into());
        }
        if pages == 0 || pages > MAX_CHUNK_PAGES {
            return corrupt(format!("{pages} pages, {MAX_CHUNK_PAGES} at most"));
        }
        let Some((table, data)) = rest.split_at_checked(pages * ENTRY) else {
            return corrupt("it ends inside its table".into());
        };
        let mut starts = Vec::with_capacity(pages + 1);
        let mut at = 0u32;
        starts.push(0);
        for entry in table.as_chunks::<ENTRY>().0 {
            at += u32::from(u16::from_le_bytes([entry[0], entry[1]]));
            starts.push(at);
        }
        if at as usize != data.len() {
            return corrupt(format!("{} bytes of pages, {at} in its table", data.len()));
        }
        Ok(Self {
            table,
            data,
            starts,
        })
    }

    /// Pages in it.
    pub fn pages(&self) -> u32 {
        self.starts.len() as u32 - 1
    }

    /// A page as it is encoded; `None` where there is none, or it cannot be read by itself.
    pub fn page(&self, slot: u32) -> Option<(Encoding, &'a [u8])> {
        let at = slot as usize;
        let entry = self.table.as_chunks::<ENTRY>().0.get(at)?;
        let encoding = Encoding::from_tag(entry[2]).filter(|_| entry[3] == 0)?;
        let bytes = self
            .data
            .get(self.starts[at] as usize..*self.starts.get(at + 1)? as usize)?;
        let alone = !encoding.needs_previous() && encoding != Encoding::Reference;
        (alone && bytes.len() <= LONGEST).then_some((encoding, bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn filled(pages: &[Vec<u8>]) -> ChunkBuilder {
        let mut builder = ChunkBuilder::default();
        for (slot, page) in (0..).zip(pages) {
            assert_eq!(builder.push(&[1; 32], Encoding::Lz4, page), slot);
        }
        builder
    }

    proptest! {
        #[test]
        fn a_chunk_comes_back_as_it_was(
            pages in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..100), 1..50), salt: u32
        ) {
            let (name, bytes) = filled(&pages).finish(salt);
            let chunk = Chunk::decode(name, &bytes).unwrap();
            prop_assert_eq!(chunk.pages() as usize, pages.len());
            for (slot, page) in (0..).zip(&pages) {
                prop_assert_eq!(chunk.page(slot), Some((Encoding::Lz4, &page[..])));
            }
            prop_assert_eq!(chunk.page(pages.len() as u32), None);
        }

        #[test]
        fn bytes_that_have_the_right_name_and_are_no_chunk_are_refused(
            mut header in prop::collection::vec(any::<u8>(), 0..80), begins: bool
        ) {
            if begins {
                let plain = filled(&[vec![1]]).finish(0).1;
                let len = header.len().min(16);
                header[..len].copy_from_slice(&plain[..len]);
            }
            let name = ChunkName(*blake3::hash(&header).as_bytes());
            // Whatever comes of it, it comes without a panic, and pages lie inside.
            if let Ok(chunk) = Chunk::decode(name, &header) {
                for slot in 0..=chunk.pages() {
                    let _ = chunk.page(slot);
                }
            }
        }
    }

    #[test]
    fn another_salt_gives_another_name_and_damage_is_seen() {
        let builder = filled(&[vec![1, 2, 3], vec![4]]);
        let (name, mut bytes) = builder.finish(0);
        assert_ne!(name, builder.finish(1).0);
        bytes[30] ^= 1;
        let error = Chunk::decode(name, &bytes).unwrap_err().to_string();
        assert!(error.contains("not what its name says"), "{error}");
    }

    #[test]
    fn a_newer_version_is_told_from_damage() {
        let (_, mut bytes) = filled(&[vec![1]]).finish(0);
        bytes[8] = 3;
        let name = ChunkName(*blake3::hash(&bytes).as_bytes());
        let error = Chunk::decode(name, &bytes).unwrap_err();
        assert!(matches!(error, BucketError::NewerVersion { found: 3, .. }));
    }

    #[test]
    fn chunks_end_at_the_same_pages_wherever_they_begin() {
        let hashes: Vec<[u8; 32]> = (0u32..30_000)
            .map(|n| *blake3::hash(&n.to_le_bytes()).as_bytes())
            .collect();
        let ends = |from: usize| {
            let mut ends = Vec::new();
            let mut builder = ChunkBuilder::default();
            for (at, hash) in hashes.iter().enumerate().skip(from) {
                builder.push(hash, Encoding::Zero, &[]);
                if builder.is_full() {
                    ends.push(at);
                    builder = ChunkBuilder::default();
                }
            }
            ends
        };
        let (all, late) = (ends(0), ends(777));
        assert!(all.len() > 5, "{all:?}");
        let common = late.iter().filter(|end| all.contains(end)).count();
        assert!(common * 2 > late.len(), "{all:?} {late:?}");
    }
}
