//! Pages on their way into chunks: each gets a place, of which there is one for each content.

use super::Result;
use super::bucket_known::There;
use crate::bucket::{
    Bucket, BucketKey, ChunkBuilder, ChunkName, ChunkRef, Entry, IndexBuilder, PlacedKey, Uploads,
};
use crate::codec::{Scratch, encode};
use crate::model::Page;
use rustc_hash::FxHashMap;
use std::collections::HashSet;
use std::sync::Arc;

/// Finds a place for each page: one that it has, or one in a new chunk.
pub(super) struct Packer<'a> {
    there: There,
    forbidden: HashSet<ChunkName>,
    /// What chunks are sealed with.
    key: Option<Arc<BucketKey>>,
    uploads: Uploads<'a>,
    index: IndexBuilder,
    /// Places in the index of chunks that are there.
    adopted: Vec<Option<u32>>,
    /// Pages that the index has, by content.
    placed: FxHashMap<[u8; 32], (u32, u32)>,
    /// The chunk being filled, and its place in the index.
    chunk: ChunkBuilder,
    place: Option<u32>,
    new_pages: u64,
    scratch: Scratch,
}

impl<'a> Packer<'a> {
    /// Pages that are `there` are referred to, chunks that are `forbidden` are not. New ones are sealed with this key.
    pub(super) fn new(
        bucket: &'a Bucket,
        there: There,
        forbidden: HashSet<ChunkName>,
        key: Option<&PlacedKey>,
    ) -> Self {
        let key = key.map(|key| Arc::clone(&key.key));
        Self {
            adopted: vec![None; there.chunks.len()],
            there,
            forbidden,
            uploads: bucket.uploads(),
            index: IndexBuilder::default(),
            placed: FxHashMap::default(),
            chunk: ChunkBuilder::new(key.clone()),
            key,
            place: None,
            new_pages: 0,
            scratch: Scratch::default(),
        }
    }

    /// Ends the index of a process; `others` are to follow, which have many pages in common with it.
    pub(super) fn end_index(&mut self, others: bool) -> Result<IndexBuilder> {
        self.close()?;
        let index = std::mem::take(&mut self.index);
        let placed = std::mem::take(&mut self.placed);
        if others {
            self.there.learn(&self.adopted, index.chunks(), placed);
        }
        self.adopted = vec![None; self.there.chunks.len()];
        Ok(index)
    }

    /// Chunks sent until now, and their bytes.
    pub(super) fn sent(&self) -> (u64, u64) {
        self.uploads.sent()
    }

    /// Waits until all that was sent is there. Gives how many pages were new, and what was sent.
    pub(super) fn finish(self) -> Result<(u64, (u64, u64))> {
        Ok((self.new_pages, self.uploads.finish()?))
    }

    /// Adds a page to the index; they come ascending by address.
    pub(super) fn add(&mut self, addr: u64, page: &Page) -> Result<()> {
        let hash = *blake3::hash(page).as_bytes();
        let (chunk, slot) = match self.placed.get(&hash) {
            Some(place) => *place,
            None => {
                let place = match self.there.place(&hash) {
                    Some((number, slot)) => (self.adopt(number)?, slot),
                    None => self.pack(&hash, page)?,
                };
                self.placed.insert(hash, place);
                place
            }
        };
        self.index.push(&Entry {
            addr,
            hash,
            chunk,
            slot,
        })?;
        if self.chunk.is_full() {
            self.close()?;
        }
        Ok(())
    }

    /// Refers to a chunk that is there.
    fn adopt(&mut self, number: u32) -> Result<u32> {
        let adopted = &mut self.adopted[number as usize];
        match adopted {
            Some(place) => Ok(*place),
            None => {
                let place = self.index.add_chunk(self.there.chunks[number as usize])?;
                Ok(*adopted.insert(place))
            }
        }
    }

    /// Puts a page into the new chunk.
    fn pack(&mut self, hash: &[u8; 32], page: &Page) -> Result<(u32, u32)> {
        let place = match self.place {
            Some(place) => place,
            None => {
                let unknown = ChunkRef {
                    name: ChunkName([0; 32]),
                    len: 0,
                    pages: 0,
                };
                *self.place.insert(self.index.add_chunk(unknown)?)
            }
        };
        let mut bytes = Vec::new();
        let encoding = encode(page, None, &mut self.scratch, &mut bytes);
        self.new_pages += 1;
        Ok((place, self.chunk.push(hash, encoding, &bytes)))
    }

    /// Sends the new chunk, under a name that may be referred to.
    fn close(&mut self) -> Result<()> {
        let Some(place) = self.place.take() else {
            return Ok(());
        };
        let next = ChunkBuilder::new(self.key.clone());
        let chunk = std::mem::replace(&mut self.chunk, next);
        let mut salt = 0;
        let (name, bytes) = loop {
            let (name, bytes) = chunk.finish(salt);
            if !self.forbidden.contains(&name) {
                break (name, bytes);
            }
            salt += 1;
        };
        let known = ChunkRef {
            name,
            len: bytes.len() as u32,
            pages: chunk.pages(),
        };
        self.index.set_chunk(place, known);
        Ok(self.uploads.send(name, bytes)?)
    }
}
