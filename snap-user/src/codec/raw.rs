//! Pages as they are.

use super::{CodecError, Encoding, PageCodec};
use crate::model::Page;

pub(super) struct Raw;

impl PageCodec for Raw {
    fn encode(&mut self, page: &Page, out: &mut Vec<u8>) -> bool {
        out.extend_from_slice(page);
        true
    }

    fn decode(bytes: &[u8], page: &mut Page) -> Result<(), CodecError> {
        let bytes: &Page = bytes.try_into().map_err(|_| CodecError::Length {
            encoding: Encoding::Raw,
            len: bytes.len(),
            want: "4096",
        })?;
        page.copy_from_slice(bytes);
        Ok(())
    }
}
