//! Pages as one LZ4 block each.

use super::{CodecError, PageCodec};
use crate::model::{PAGE_SIZE, Page};
use lz4_flex::block::{
    CompressTable, compress_into_with_table, decompress_into, get_maximum_output_size,
};

/// An LZ4 block longer than this is not worth its decoding: at least an eighth must be saved.
const LONGEST: usize = PAGE_SIZE as usize * 7 / 8;
const BUFFER: usize = get_maximum_output_size(PAGE_SIZE as usize);

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

impl PageCodec for Lz4 {
    fn encode(&mut self, page: &Page, out: &mut Vec<u8>) -> bool {
        match compress_into_with_table(page, &mut self.buffer[..], &mut self.table) {
            Ok(len) if len <= LONGEST => {
                out.extend_from_slice(&self.buffer[..len]);
                true
            }
            _ => false,
        }
    }

    fn decode(bytes: &[u8], page: &mut Page) -> Result<(), CodecError> {
        match decompress_into(bytes, page) {
            Ok(len) if len == page.len() => Ok(()),
            Ok(len) => Err(CodecError::NotAPage(len)),
            Err(error) => Err(CodecError::Lz4(error.to_string())),
        }
    }
}
