//! An index in the making.

use super::{
    ChunkRef, Common, ENTRY, Entry, INDEX_HEADER_LEN, IndexHeader, MAX_CHUNKS, MAX_PAGES, REF,
};
use crate::bucket::name::SnapshotName;
use crate::bucket::{BucketError, Result};
use crate::image::SessionId;
use crate::model::SnapshotId;

/// An index in the making.
#[derive(Debug, Default)]
pub struct IndexBuilder {
    chunks: Vec<ChunkRef>,
    entries: Vec<u8>,
}

impl IndexBuilder {
    /// Gives a place to a chunk, which may not be known yet.
    pub fn add_chunk(&mut self, chunk: ChunkRef) -> Result<u32> {
        let place = self.chunks.len() as u32;
        if place == MAX_CHUNKS {
            return Err(BucketError::TooLarge(format!(
                "the snapshot needs more than {MAX_CHUNKS} chunks"
            )));
        }
        self.chunks.push(chunk);
        Ok(place)
    }

    /// Says what is at the place of a chunk.
    pub fn set_chunk(&mut self, place: u32, chunk: ChunkRef) {
        self.chunks[place as usize] = chunk;
    }

    /// Pages that were added.
    pub fn pages(&self) -> u64 {
        (self.entries.len() / ENTRY) as u64
    }

    /// The chunks.
    pub fn chunks(&self) -> &[ChunkRef] {
        &self.chunks
    }

    /// Adds a page; they come ascending by address.
    pub fn push(&mut self, entry: &Entry) -> Result<()> {
        if self.pages() == MAX_PAGES {
            return Err(BucketError::TooLarge(format!(
                "the snapshot has more than {MAX_PAGES} pages"
            )));
        }
        self.entries.extend_from_slice(&entry.addr.to_le_bytes());
        self.entries.extend_from_slice(&entry.hash);
        self.entries.extend_from_slice(&entry.chunk.to_le_bytes());
        self.entries.extend_from_slice(&entry.slot.to_le_bytes());
        Ok(())
    }

    /// The parts of the object, one behind the other, and its name. Of `about`, what the parts say is filled in.
    pub fn finish(self, about: &About<'_>, manifest: Vec<u8>) -> (SnapshotName, [Vec<u8>; 3]) {
        let mut table = Vec::with_capacity(self.chunks.len() * REF);
        for chunk in &self.chunks {
            table.extend_from_slice(&chunk.name.0);
            table.extend_from_slice(&chunk.len.to_le_bytes());
            table.extend_from_slice(&chunk.pages.to_le_bytes());
        }
        let header = IndexHeader {
            common: Common::new(about, self.pages(), &self.chunks),
            manifest_len: manifest.len() as u32,
            chunks_crc: crc32c::crc32c(&table),
            manifest_crc: crc32c::crc32c(&manifest),
            pages_crc: crc32c::crc32c(&self.entries),
        };
        let mut head = Vec::with_capacity(INDEX_HEADER_LEN + table.len() + manifest.len());
        head.extend_from_slice(&header.encode());
        head.append(&mut table);
        (header.common.name(), [head, manifest, self.entries])
    }
}

/// What is known of a snapshot besides its pages.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs, reason = "as in IndexHeader")]
pub struct About<'a> {
    pub arch: u16,
    pub id: SnapshotId,
    pub session: SessionId,
    pub time_ns: u64,
    pub pid: i32,
    pub comm: &'a str,
    pub stop_ns: u64,
}
