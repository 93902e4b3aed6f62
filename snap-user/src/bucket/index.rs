//! One object for each snapshot: what it is of, its process state, and in which chunk each of its pages is.

mod builder;

pub use builder::{About, IndexBuilder};

use super::bytes::Fields;
use super::header::{Common, INDEX_HEADER_LEN, MAGIC, no_version};
use super::name::ChunkName;
use super::sealed::SEALED_VERSION;
use super::{BucketError, MAX_CHUNK, MAX_CHUNK_PAGES, Result};
use crate::image::MAX_MANIFEST;
use crate::model::PAGE_SIZE;

const VERSION: u16 = 1;
const REF: usize = 40;
const ENTRY: usize = 48;
/// Most pages of a snapshot: 256 GiB of memory. Its index then has 3 GiB.
pub const MAX_PAGES: u64 = 1 << 26;
/// Most chunks of a snapshot.
pub const MAX_CHUNKS: u32 = 1 << 20;
/// Longest index, in bytes.
pub(super) const MAX_INDEX: u64 = INDEX_HEADER_LEN as u64
    + MAX_CHUNKS as u64 * REF as u64
    + MAX_MANIFEST
    + MAX_PAGES * ENTRY as u64;

/// What the first bytes of an index say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IndexHeader {
    /// What it is of.
    pub common: Common,
    /// Bytes of the process state.
    pub manifest_len: u32,
    chunks_crc: u32,
    manifest_crc: u32,
    pages_crc: u32,
}

/// A chunk that a snapshot needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkRef {
    /// Which one.
    pub name: ChunkName,
    /// Its length in bytes.
    pub len: u32,
    /// Its pages.
    pub pages: u32,
}

/// Where a page is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Page address.
    pub addr: u64,
    /// BLAKE3 of the page.
    pub hash: [u8; 32],
    /// Place of its chunk among those of the snapshot.
    pub chunk: u32,
    /// Its slot in the chunk.
    pub slot: u32,
}

impl Entry {
    fn read(bytes: &[u8; ENTRY]) -> Self {
        let mut fields = Fields::new(bytes);
        Self {
            addr: fields.u64(),
            hash: fields.array(),
            chunk: fields.u32(),
            slot: fields.u32(),
        }
    }
}

impl IndexHeader {
    /// Bytes of the table of chunks, which follows the header.
    pub fn table_len(&self) -> u64 {
        u64::from(self.common.chunks) * REF as u64
    }

    /// Bytes of the whole index.
    pub fn index_len(&self) -> u64 {
        INDEX_HEADER_LEN as u64
            + self.table_len()
            + u64::from(self.manifest_len)
            + self.common.pages * ENTRY as u64
    }

    fn encode(&self) -> [u8; INDEX_HEADER_LEN] {
        let own = [
            self.manifest_len,
            self.chunks_crc,
            self.manifest_crc,
            self.pages_crc,
        ];
        self.common.encode(VERSION, own)
    }

    /// Reads a header, which is that of an object of `len` bytes.
    pub fn decode(object: &str, bytes: &[u8], len: u64) -> Result<Self> {
        let corrupt = |why: String| BucketError::corrupt(object, why);
        let Some(header) = bytes.first_chunk::<INDEX_HEADER_LEN>() else {
            return Err(corrupt(format!("{} bytes are no index", bytes.len())));
        };
        let mut fields = Fields::new(header);
        if fields.array() != MAGIC {
            return Err(corrupt("it does not begin as an index does".into()));
        }
        let version = fields.u16();
        if version > SEALED_VERSION {
            return Err(BucketError::NewerVersion {
                object: object.to_owned(),
                found: version.into(),
                supported: SEALED_VERSION.into(),
            });
        }
        let (common, own) = Common::decode(object, header)?;
        let [manifest_len, chunks_crc, manifest_crc, pages_crc] = own;
        let bounded = version == VERSION
            && common.pages <= MAX_PAGES
            && common.chunks <= MAX_CHUNKS
            && u64::from(manifest_len) <= MAX_MANIFEST;
        if !bounded {
            return Err(no_version(object));
        }
        let header = Self {
            common,
            manifest_len,
            chunks_crc,
            manifest_crc,
            pages_crc,
        };
        if header.index_len() != len {
            return Err(corrupt(format!(
                "{len} bytes, {} according to its header",
                header.index_len()
            )));
        }
        Ok(header)
    }
}

/// Reads the table of chunks, which follows the header.
pub fn decode_chunks(object: &str, header: &IndexHeader, bytes: &[u8]) -> Result<Vec<ChunkRef>> {
    if bytes.len() as u64 != header.table_len() || crc32c::crc32c(bytes) != header.chunks_crc {
        return Err(BucketError::corrupt(
            object,
            "the checksum of its table of chunks does not match",
        ));
    }
    let chunks = bytes.as_chunks::<REF>().0.iter().map(|bytes| {
        let mut fields = Fields::new(bytes);
        ChunkRef {
            name: ChunkName(fields.array()),
            len: fields.u32(),
            pages: fields.u32(),
        }
    });
    let chunks: Vec<ChunkRef> = chunks.collect();
    let bounded = chunks
        .iter()
        .all(|chunk| u64::from(chunk.len) <= MAX_CHUNK && chunk.pages as usize <= MAX_CHUNK_PAGES);
    match bounded {
        true => Ok(chunks),
        false => Err(BucketError::corrupt(
            object,
            "it names a chunk that is too long",
        )),
    }
}

/// An index that has been read and is whole.
#[derive(Debug)]
pub struct Index {
    /// Its header.
    pub header: IndexHeader,
    /// The chunks that its pages are in.
    pub chunks: Vec<ChunkRef>,
    bytes: Vec<u8>,
    manifest: usize,
    entries: usize,
}

impl Index {
    /// Looks at an index: version, checksums and lengths, then every entry.
    pub fn decode(object: &str, bytes: Vec<u8>) -> Result<Self> {
        let corrupt = |why: String| Err(BucketError::corrupt(object, why));
        let header = IndexHeader::decode(object, &bytes, bytes.len() as u64)?;
        // Its header says that all of this is there.
        let manifest = INDEX_HEADER_LEN + header.table_len() as usize;
        let entries = manifest + header.manifest_len as usize;
        let chunks = decode_chunks(object, &header, &bytes[INDEX_HEADER_LEN..manifest])?;
        if crc32c::crc32c(&bytes[manifest..entries]) != header.manifest_crc {
            return corrupt("the checksum of its process state does not match".into());
        }
        if crc32c::crc32c(&bytes[entries..]) != header.pages_crc {
            return corrupt("the checksum of its pages does not match".into());
        }
        let index = Self {
            header,
            chunks,
            bytes,
            manifest,
            entries,
        };
        let mut next = 0;
        for entry in index.entries() {
            let chunk = index.chunks.get(entry.chunk as usize);
            let inside = chunk.is_some_and(|chunk| entry.slot < chunk.pages);
            let ordered = entry.addr >= next && entry.addr.is_multiple_of(PAGE_SIZE);
            if !inside || !ordered {
                return corrupt(format!(
                    "page {:#x} is out of order, or in no chunk",
                    entry.addr
                ));
            }
            next = entry.addr.saturating_add(PAGE_SIZE);
        }
        Ok(index)
    }

    /// Its pages, ascending by address.
    pub fn entries(&self) -> impl ExactSizeIterator<Item = Entry> {
        self.raw().iter().map(Entry::read)
    }

    /// A page by its place, which must be one.
    pub fn entry(&self, at: usize) -> Entry {
        Entry::read(&self.raw()[at])
    }

    fn raw(&self) -> &[[u8; ENTRY]] {
        self.bytes[self.entries..].as_chunks().0
    }

    /// Process state and costs, as a snapshot file has them.
    pub fn manifest(&self) -> &[u8] {
        &self.bytes[self.manifest..self.entries]
    }
}

#[cfg(test)]
mod tests {
    use super::super::golden;
    use super::*;
    use proptest::prelude::*;

    fn hash(n: u64) -> [u8; 32] {
        *blake3::hash(&n.to_le_bytes()).as_bytes()
    }

    fn build(addrs: &[u64], chunks: u32, manifest: &[u8]) -> Vec<u8> {
        let mut builder = IndexBuilder::default();
        for n in 0..chunks {
            let chunk = ChunkRef {
                name: ChunkName(hash(n.into())),
                len: 100 + n,
                pages: 10,
            };
            builder.add_chunk(chunk).unwrap();
        }
        for (n, addr) in (0..).zip(addrs) {
            let entry = Entry {
                addr: *addr,
                hash: hash(*addr),
                chunk: n % chunks,
                slot: n % 10,
            };
            builder.push(&entry).unwrap();
        }
        builder
            .finish(&golden::about(), manifest.to_vec())
            .1
            .concat()
    }

    proptest! {
        #[test]
        fn an_index_comes_back_as_it_was(
            pages in prop::collection::btree_set(0u64..1 << 40, 0..60), chunks in 1u32..8,
            manifest in prop::collection::vec(any::<u8>(), 0..200)
        ) {
            let addrs: Vec<u64> = pages.iter().map(|page| page * PAGE_SIZE).collect();
            let index = Index::decode("i", build(&addrs, chunks, &manifest)).unwrap();
            prop_assert_eq!(index.manifest(), &manifest[..]);
            prop_assert_eq!(index.chunks.len() as u32, chunks);
            let found: Vec<u64> = index.entries().map(|entry| entry.addr).collect();
            prop_assert_eq!(&found, &addrs);
            prop_assert!(index.entries().all(|entry| entry.hash == hash(entry.addr)));
        }

        #[test]
        fn damage_anywhere_is_seen(at in 0usize..2000, bit in 0u8..8) {
            let bytes = build(&[0x1000, 0x3000, 0x4000], 2, b"state");
            let mut damaged = bytes.clone();
            let at = at % damaged.len();
            damaged[at] ^= 1 << bit;
            prop_assert!(Index::decode("i", damaged).is_err());
            prop_assert!(Index::decode("i", bytes[..at].to_vec()).is_err());
        }
    }

    #[test]
    fn pages_out_of_order_or_in_no_chunk_are_refused() {
        for addrs in [&[0x2000, 0x1000][..], &[0x1000, 0x1000], &[0x1001]] {
            assert!(
                Index::decode("i", build(addrs, 1, b"")).is_err(),
                "{addrs:x?}"
            );
        }
        let mut builder = IndexBuilder::default();
        let entry = Entry {
            addr: 0,
            hash: [0; 32],
            chunk: 0,
            slot: 0,
        };
        builder.push(&entry).unwrap();
        let bytes = builder.finish(&golden::about(), Vec::new()).1.concat();
        let error = Index::decode("i", bytes).unwrap_err().to_string();
        assert!(error.contains("in no chunk"), "{error}");
    }

    #[test]
    fn sizes_that_no_snapshot_has_are_refused_before_anything_is_asked_for() {
        let mut bytes = build(&[], 1, b"");
        // Pages, of which 2^60 would take more memory than there is.
        bytes[64..72].copy_from_slice(&(1u64 << 60).to_le_bytes());
        let sum = crc32c::crc32c(&bytes[..252]);
        bytes[252..256].copy_from_slice(&sum.to_le_bytes());
        let error = Index::decode("i", bytes).unwrap_err().to_string();
        assert!(error.contains("no version has"), "{error}");
    }

    #[test]
    fn a_newer_version_is_told_from_damage() {
        let mut bytes = build(&[], 1, b"");
        bytes[8] = 4;
        let error = Index::decode("i", bytes).unwrap_err();
        assert!(matches!(error, BucketError::NewerVersion { found: 4, .. }));
    }
}
