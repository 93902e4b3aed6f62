//! LZ4 for what the markers leave.

use super::CodecError;
use super::vectors::LONGEST;
use lz4_flex::block::{
    CompressTable, compress_into_with_table, decompress_into, get_maximum_output_size,
};

const BUFFER: usize = get_maximum_output_size(LONGEST);

/// Working memory, kept from page to page.
pub(super) struct Lz4 {
    table: CompressTable,
    buffer: Box<[u8; BUFFER]>,
}

impl Default for Lz4 {
    fn default() -> Self {
        Self {
            table: CompressTable::small(),
            buffer: Box::new([0; BUFFER]),
        }
    }
}

impl Lz4 {
    /// One LZ4 block with all of `bytes`, at most a page's markers, codes and data.
    pub(super) fn compress(&mut self, bytes: &[u8]) -> Option<&[u8]> {
        let len = compress_into_with_table(bytes, &mut self.buffer[..], &mut self.table).ok()?;
        Some(&self.buffer[..len])
    }
}

/// Fills the front of `out` from one LZ4 block; gives the length.
pub(super) fn decompress(block: &[u8], out: &mut [u8]) -> Result<usize, CodecError> {
    decompress_into(block, out).map_err(|error| CodecError::Lz4(error.to_string()))
}
