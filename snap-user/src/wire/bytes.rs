//! Numbers, texts and lists ↔ bytes, little-endian, with a bound for each.

use super::{Result, WireError};

/// Takes a body apart. Never reads beyond it.
pub(super) struct Reader<'a> {
    rest: &'a [u8],
}

fn malformed(why: impl Into<String>) -> WireError {
    WireError::Malformed(why.into())
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    pub(super) fn bytes(&mut self, len: usize, what: &str) -> Result<&'a [u8]> {
        let (taken, rest) = self
            .rest
            .split_at_checked(len)
            .ok_or_else(|| malformed(format!("it ends inside {what}")))?;
        self.rest = rest;
        Ok(taken)
    }

    pub(super) fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(self.bytes(N, what)?);
        Ok(array)
    }

    pub(super) fn u8(&mut self, what: &str) -> Result<u8> {
        Ok(self.array::<1>(what)?[0])
    }

    pub(super) fn u16(&mut self, what: &str) -> Result<u16> {
        self.array(what).map(u16::from_le_bytes)
    }

    pub(super) fn u32(&mut self, what: &str) -> Result<u32> {
        self.array(what).map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self, what: &str) -> Result<u64> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// A number that is 0 or 1.
    pub(super) fn flag(&mut self, what: &str) -> Result<bool> {
        match self.u8(what)? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(malformed(format!("{what} is {other}"))),
        }
    }

    /// How many entries follow, at most so many.
    pub(super) fn count(&mut self, most: usize, what: &str) -> Result<usize> {
        let count = self.u32(what)? as usize;
        match count > most {
            true => Err(malformed(format!("{count} {what}, {most} at most"))),
            false => Ok(count),
        }
    }

    /// Text with its length in front.
    pub(super) fn text(&mut self, most: usize, what: &str) -> Result<String> {
        let len = usize::from(self.u16(what)?);
        if len > most {
            return Err(malformed(format!("{what} of {len} bytes, {most} at most")));
        }
        let bytes = self.bytes(len, what)?;
        match std::str::from_utf8(bytes) {
            Ok(text) => Ok(text.to_owned()),
            Err(_) => Err(malformed(format!("{what} is not UTF-8"))),
        }
    }

    /// Everything that is left.
    pub(super) fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.rest)
    }

    /// That nothing is left.
    pub(super) fn end(&self) -> Result<()> {
        match self.rest.len() {
            0 => Ok(()),
            left => Err(malformed(format!("{left} bytes too many"))),
        }
    }
}

/// Appends a text, cut at a character boundary where it is longer than `most` bytes.
pub(super) fn put_text(out: &mut Vec<u8>, text: &str, most: usize) {
    let mut len = text.len().min(most);
    while !text.is_char_boundary(len) {
        len -= 1;
    }
    out.extend_from_slice(&(len as u16).to_le_bytes());
    out.extend_from_slice(&text.as_bytes()[..len]);
}
