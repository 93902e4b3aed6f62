//! ksnap's encoding and those beside it. Each stores a page as it is where it would grow.

use crate::{Page, xbzrle};
use anyhow::{Context, Result};
use snap_user::codec::{self, Encoding, Scratch};

/// One way to store pages.
pub trait Codec {
    /// Its name in the report.
    fn name(&self) -> &'static str;
    /// Appends the encoded page.
    fn encode(&mut self, page: &Page, before: Option<&Page>, out: &mut Vec<u8>) -> Result<()>;
    /// Decodes the page that was encoded as number `n` since the last [`Codec::begin`].
    fn decode(
        &mut self,
        n: usize,
        bytes: &[u8],
        before: Option<&Page>,
        page: &mut Page,
    ) -> Result<()>;
    /// Forgets what it noted of pages before.
    fn begin(&mut self) {}
}

/// All of them.
pub fn all() -> Result<Vec<Box<dyn Codec>>> {
    Ok(vec![
        Box::new(Ksnap::default()),
        Box::new(Lz4::default()),
        Box::new(Zstd::new()?),
        Box::new(Xbzrle),
    ])
}

#[derive(Default)]
struct Ksnap {
    scratch: Scratch,
    /// The index keeps them.
    encodings: Vec<Encoding>,
}

impl Codec for Ksnap {
    fn name(&self) -> &'static str {
        "ksnap"
    }

    fn begin(&mut self) {
        self.encodings.clear();
    }

    fn encode(&mut self, page: &Page, before: Option<&Page>, out: &mut Vec<u8>) -> Result<()> {
        let encoding = codec::encode(page, before, &mut self.scratch, out);
        self.encodings.push(encoding);
        Ok(())
    }

    fn decode(
        &mut self,
        n: usize,
        bytes: &[u8],
        before: Option<&Page>,
        page: &mut Page,
    ) -> Result<()> {
        Ok(codec::decode(self.encodings[n], bytes, before, page)?)
    }
}

/// Takes back what did not become smaller; `true` if it was so.
fn or_raw(page: &Page, begun: usize, out: &mut Vec<u8>) {
    if out.len() - begun >= page.len() {
        out.truncate(begun);
        out.extend_from_slice(page);
    }
}

fn raw(bytes: &[u8], page: &mut Page) -> bool {
    let whole = bytes.len() == page.len();
    if whole {
        page.copy_from_slice(bytes);
    }
    whole
}

struct Lz4 {
    table: lz4_flex::block::CompressTable,
    buffer: Vec<u8>,
}

impl Default for Lz4 {
    fn default() -> Self {
        Self {
            table: lz4_flex::block::CompressTable::small(),
            buffer: vec![0; lz4_flex::block::get_maximum_output_size(4096)],
        }
    }
}

impl Codec for Lz4 {
    fn name(&self) -> &'static str {
        "lz4"
    }

    fn encode(&mut self, page: &Page, _: Option<&Page>, out: &mut Vec<u8>) -> Result<()> {
        let begun = out.len();
        let len =
            lz4_flex::block::compress_into_with_table(page, &mut self.buffer, &mut self.table)?;
        out.extend_from_slice(&self.buffer[..len]);
        or_raw(page, begun, out);
        Ok(())
    }

    fn decode(&mut self, _: usize, bytes: &[u8], _: Option<&Page>, page: &mut Page) -> Result<()> {
        if !raw(bytes, page) {
            lz4_flex::block::decompress_into(bytes, page)?;
        }
        Ok(())
    }
}

struct Zstd {
    compressor: zstd::bulk::Compressor<'static>,
    decompressor: zstd::bulk::Decompressor<'static>,
    buffer: Vec<u8>,
}

impl Zstd {
    fn new() -> Result<Self> {
        Ok(Self {
            compressor: zstd::bulk::Compressor::new(1)?,
            decompressor: zstd::bulk::Decompressor::new()?,
            buffer: vec![0; zstd::zstd_safe::compress_bound(4096)],
        })
    }
}

impl Codec for Zstd {
    fn name(&self) -> &'static str {
        "zstd-1"
    }

    fn encode(&mut self, page: &Page, _: Option<&Page>, out: &mut Vec<u8>) -> Result<()> {
        let begun = out.len();
        let len = self.compressor.compress_to_buffer(page, &mut self.buffer)?;
        out.extend_from_slice(&self.buffer[..len]);
        or_raw(page, begun, out);
        Ok(())
    }

    fn decode(&mut self, _: usize, bytes: &[u8], _: Option<&Page>, page: &mut Page) -> Result<()> {
        if !raw(bytes, page) {
            self.decompressor
                .decompress_to_buffer(bytes, &mut page[..])?;
        }
        Ok(())
    }
}

struct Xbzrle;

impl Codec for Xbzrle {
    fn name(&self) -> &'static str {
        "xbzrle"
    }

    fn encode(&mut self, page: &Page, before: Option<&Page>, out: &mut Vec<u8>) -> Result<()> {
        let begun = out.len();
        xbzrle::encode(page, before.unwrap_or(&[0; 4096]), out);
        or_raw(page, begun, out);
        Ok(())
    }

    fn decode(
        &mut self,
        _: usize,
        bytes: &[u8],
        before: Option<&Page>,
        page: &mut Page,
    ) -> Result<()> {
        if !raw(bytes, page) {
            *page = before.copied().unwrap_or([0; 4096]);
            xbzrle::decode(bytes, page).context("not what was encoded")?;
        }
        Ok(())
    }
}
