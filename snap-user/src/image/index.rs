//! The page index: where each page of this snapshot lies in this file. And the ranges it dropped.

use super::error::{ImageError, check_crc};
use super::header::{Header, Section};
use super::location::Location;
use crate::codec::{Encoding, decode};
use crate::model::{PAGE_SIZE, Page, PageRange, PageSet};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Length of one index entry.
pub const ENTRY_LEN: usize = 24;
/// Most versions of a page that hold the changes to one another: one that stands alone, and changes on it. To read
/// a page takes no more look-ups than that.
pub const MOST_VERSIONS: usize = 8;
/// Most files that the pages of a snapshot or a pack may be borrowed from.
pub const MOST_LOANS: usize = 16;
const PART: &str = "index";

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawEntry {
    addr: U64,
    at: U64,
    crc: U32,
    len: U16,
    encoding: u8,
    loan: u8,
}

const _: () = assert!(size_of::<RawEntry>() == ENTRY_LEN);

/// One page in the index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IndexEntry {
    /// Page address.
    pub addr: u64,
    /// First byte of the encoded page, from the start of the file that has it; for a reference, its target's
    /// sequence number in the upper half and slot in the lower.
    pub at: u64,
    /// Which file has it: 0 for the snapshot's own, else the number of the file that it borrows pages from.
    pub loan: u8,
    /// Length of the encoded page in bytes.
    pub len: u16,
    /// How it is encoded.
    pub encoding: Encoding,
    /// CRC-32C of the decoded page and, unless they are the page, of its bytes behind it; 0 for a reference, whose
    /// target has it.
    pub crc: u32,
}

impl IndexEntry {
    /// A page whose content is stored elsewhere in the session.
    pub fn reference(addr: u64, target: Location) -> Self {
        Self {
            addr,
            at: u64::from(target.seq.get()) << 32 | u64::from(target.slot),
            loan: 0,
            len: 0,
            encoding: Encoding::Reference,
            crc: 0,
        }
    }

    /// Where the content is, for a reference.
    pub fn target(&self) -> Option<Location> {
        if self.encoding != Encoding::Reference {
            return None;
        }
        Location::new((self.at >> 32) as u32, self.at as u32)
    }

    /// First byte of the encoded page in the file that has it; 0 for a reference, which has none.
    pub fn at_if_stored(&self) -> u64 {
        match self.encoding {
            Encoding::Reference => 0,
            _ => self.at,
        }
    }

    /// Appends the entry's bytes.
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(
            RawEntry {
                addr: self.addr.into(),
                at: self.at.into(),
                crc: self.crc.into(),
                len: self.len.into(),
                encoding: self.encoding.tag(),
                loan: self.loan,
            }
            .as_bytes(),
        );
    }

    /// Decodes one entry and checks it against the header of its file.
    pub fn decode(bytes: &[u8], header: &Header) -> Result<Self, ImageError> {
        let raw = RawEntry::ref_from_bytes(bytes).map_err(|_| {
            ImageError::corrupt(PART, format!("entry of {} bytes, 24 expected", bytes.len()))
        })?;
        let addr = raw.addr.get();
        let corrupt = |why: &str| Err(ImageError::corrupt(PART, format!("page {addr:#x}: {why}")));
        let Some(encoding) = Encoding::from_tag(raw.encoding) else {
            return corrupt(&format!("unknown encoding {}", raw.encoding));
        };
        let entry = Self {
            addr,
            at: raw.at.get(),
            loan: raw.loan,
            len: raw.len.get(),
            encoding,
            crc: raw.crc.get(),
        };
        if !addr.is_multiple_of(PAGE_SIZE) {
            return corrupt("not a page address");
        }
        if encoding == Encoding::Reference {
            return match entry.target() {
                Some(target) if target.seq.get() < header.seq && entry.len == 0 => match raw.loan {
                    0 => Ok(entry),
                    _ => corrupt("a reference is not borrowed"),
                },
                _ => corrupt("refers to no earlier snapshot"),
            };
        }
        let end = entry.at.checked_add(entry.len.into());
        if entry.loan != 0 {
            // Held against the length of the file that it is borrowed from when it is read.
            return match end {
                Some(_) if encoding.needs_previous() => corrupt("changes are not borrowed"),
                Some(_) if usize::from(entry.loan) > MOST_LOANS => corrupt("of too many files"),
                Some(_) => Ok(entry),
                None => corrupt("lies outside any file"),
            };
        }
        if entry.at < header.data.offset || end.is_none_or(|end| end > header.data.end()) {
            return corrupt("lies outside the page data");
        }
        Ok(entry)
    }

    /// Where the version is that its bytes hold the changes to, if they hold changes. `seq` is the sequence number
    /// of the snapshot that stores it; the version must be an earlier one's.
    pub fn previous(&self, bytes: &[u8], seq: u32) -> Result<Option<Location>, ImageError> {
        if !self.encoding.needs_previous() {
            return Ok(None);
        }
        match Location::take_from_behind(bytes) {
            Some((_, previous)) if previous.seq.get() < seq => Ok(Some(previous)),
            _ => Err(ImageError::corrupt(
                "page",
                format!("{:#x}: holds changes to no earlier version", self.addr),
            )),
        }
    }

    /// Decodes the page from its bytes and the version that they hold the changes to; compares the checksum of both
    /// the page and the bytes.
    pub fn decode_page(
        &self,
        bytes: &[u8],
        previous: Option<&Page>,
        page: &mut Page,
    ) -> Result<(), ImageError> {
        let encoded = match self.encoding.needs_previous() {
            true => Location::take_from_behind(bytes).map_or(bytes, |(encoded, _)| encoded),
            false => bytes,
        };
        decode(self.encoding, encoded, previous, page)
            .map_err(|error| ImageError::page(self.addr, &error))?;
        let found = checksum(self.encoding, page, bytes);
        if found != self.crc {
            return Err(ImageError::corrupt(
                "page",
                format!(
                    "{:#x}: checksum {found:08x}, {:08x} expected",
                    self.addr, self.crc
                ),
            ));
        }
        Ok(())
    }
}

/// The checksum of a page and of the bytes that it is stored as.
///
/// Not of the page alone, because other bytes might give the same page: damage would go unnoticed until a tool reads
/// them that takes more notice.
pub fn checksum(encoding: Encoding, page: &Page, bytes: &[u8]) -> u32 {
    let crc = crc32c::crc32c(page);
    match encoding {
        Encoding::Raw => crc,
        _ => crc32c::crc32c_append(crc, bytes),
    }
}

/// Decodes a whole index section: checksum, each entry, ascending addresses.
pub fn decode_index(bytes: &[u8], header: &Header) -> Result<Vec<IndexEntry>, ImageError> {
    check_section(PART, bytes, &header.index)?;
    let entries: Vec<IndexEntry> = bytes
        .chunks(ENTRY_LEN)
        .map(|raw| IndexEntry::decode(raw, header))
        .collect::<Result<_, _>>()?;
    if let Some(pair) = entries.windows(2).find(|pair| pair[0].addr >= pair[1].addr) {
        return Err(ImageError::corrupt(
            PART,
            format!("page {:#x} is out of order", pair[1].addr),
        ));
    }
    Ok(entries)
}

/// Decodes the dropped ranges: checksum, page addresses, ascending and apart.
pub fn decode_dropped(bytes: &[u8], header: &Header) -> Result<PageSet, ImageError> {
    const PART: &str = "dropped ranges";
    check_section(PART, bytes, &header.dropped)?;
    let mut ranges: Vec<PageRange> = Vec::with_capacity(bytes.len() / 16);
    let (pairs, _) = bytes.as_chunks::<16>();
    for pair in pairs {
        let [start, end] = [&pair[..8], &pair[8..]]
            .map(|half| u64::from_le_bytes(half.try_into().expect("8 bytes")));
        let after = ranges.last().is_none_or(|last| last.end < start);
        if start >= end || !after || !(start | end).is_multiple_of(PAGE_SIZE) {
            return Err(ImageError::corrupt(PART, format!("{start:#x}-{end:#x}")));
        }
        ranges.push(PageRange { start, end });
    }
    Ok(PageSet::from_ranges(ranges))
}

/// Encodes dropped ranges.
pub(super) fn encode_dropped(dropped: &PageSet, out: &mut Vec<u8>) {
    for range in dropped.ranges() {
        out.extend_from_slice(&range.start.to_le_bytes());
        out.extend_from_slice(&range.end.to_le_bytes());
    }
}

/// A section's bytes must be as long as the header says, and have its checksum.
pub(super) fn check_section(
    part: &'static str,
    bytes: &[u8],
    section: &Section,
) -> Result<(), ImageError> {
    if bytes.len() as u64 != section.len {
        return Err(ImageError::corrupt(
            part,
            format!("{} bytes, {} expected", bytes.len(), section.len),
        ));
    }
    check_crc(part, bytes, section.crc)
}
