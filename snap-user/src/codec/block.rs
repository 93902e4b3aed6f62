//! LZ4 for what is not a page.

use super::CodecError;

/// Compresses bytes into one LZ4 block. The length of the input is not part of it.
pub fn compress_block(bytes: &[u8]) -> Vec<u8> {
    lz4_flex::block::compress(bytes)
}

/// Restores exactly `len` bytes from one LZ4 block. The caller bounds `len` before it asks.
pub fn decompress_block(block: &[u8], len: usize) -> Result<Vec<u8>, CodecError> {
    let mut bytes = vec![0; len];
    match lz4_flex::block::decompress_into(block, &mut bytes) {
        Ok(found) if found == len => Ok(bytes),
        Ok(found) => Err(CodecError::Lz4(format!(
            "{found} decoded bytes, {len} expected"
        ))),
        Err(error) => Err(CodecError::Lz4(error.to_string())),
    }
}
