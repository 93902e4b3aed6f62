//! The pack file: what snapshots that are no longer kept leave to those that are.
//!
//! Pages keep their names, sequence number and slot, so that no other file has to change when the files that
//! held them go. A page that holds changes comes with the versions below it, except
//! those that are in a file that stays. `docs/format.md` describes each byte.

use super::error::{ImageError, check_crc};
use super::header::{Section, SessionId};
use super::index::{IndexEntry, MOST_LOANS, check_section};
use super::location::Location;
use super::span::{MAX_PAGES, RUN_LEN, Run, decode_runs, encode_runs};
use crate::codec::Encoding;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Length of a pack's header, and where its page data begins.
pub const PACK_HEADER_LEN: usize = 192;
/// Length of one entry.
pub const PACK_ENTRY_LEN: usize = 32;
const VERSION: u16 = 1;
const MAGIC: [u8; 8] = *b"\x89KSPACK\n";
const PART: &str = "pack header";
const GHOST_LEN: usize = 32;
const RANGE_LEN: usize = 8;

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawHeader {
    magic: [u8; 8],
    version: U16,
    header_len: U16,
    generation: U32,
    session: [u8; 16],
    data: [U64; 2],
    entries: [U64; 2],
    absorbed: [U64; 2],
    ghosts: [U64; 2],
    runs: [U64; 2],
    entries_crc: U32,
    absorbed_crc: U32,
    ghosts_crc: U32,
    runs_crc: U32,
    reserved: [u8; 60],
    crc: U32,
}

const _: () = assert!(size_of::<RawHeader>() == PACK_HEADER_LEN);
const CRC_OFFSET: usize = PACK_HEADER_LEN - 4;

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawEntry {
    addr: U64,
    at: U64,
    seq: U32,
    slot: U32,
    crc: U32,
    len: U16,
    encoding: u8,
    loan: u8,
}

const _: () = assert!(size_of::<RawEntry>() == PACK_ENTRY_LEN);

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawGhost {
    seq: U32,
    reserved: U32,
    pages: U64,
    first: U64,
    runs: U64,
}

const _: () = assert!(size_of::<RawGhost>() == GHOST_LEN);

/// A decoded pack header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackHeader {
    /// Session it belongs to.
    pub session: SessionId,
    /// Of several packs of a session only the one with the highest generation counts.
    pub generation: u32,
    /// Encoded pages.
    pub data: Section,
    /// Names and places of the pages.
    pub entries: Section,
    /// Sequence numbers of the snapshots that are gone.
    pub absorbed: Section,
    /// Those of them whose page table is needed.
    pub ghosts: Section,
    /// Their page tables.
    pub runs: Section,
}

/// A page in a pack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackEntry {
    /// Where its content was stored, which is its name.
    pub name: Location,
    /// Page address at the time.
    pub addr: u64,
    /// First byte of the encoded page in the file that has it.
    pub at: u64,
    /// Which file has it: 0 for the pack, else the number of a file that it borrows pages from.
    pub loan: u8,
    /// Encoded length in bytes.
    pub len: u16,
    /// How it is encoded; never a reference.
    pub encoding: Encoding,
    /// Checksum, as the index of its snapshot had it.
    pub crc: u32,
}

impl PackEntry {
    /// The same as an index would have it.
    pub fn in_index(&self) -> IndexEntry {
        IndexEntry {
            addr: self.addr,
            at: self.at,
            loan: self.loan,
            len: self.len,
            encoding: self.encoding,
            crc: self.crc,
        }
    }
}

/// A snapshot that is gone, but whose page table a kept one builds on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ghost {
    /// Its sequence number.
    pub seq: u32,
    /// Its page table.
    pub runs: Vec<Run>,
}

impl PackHeader {
    /// Number of its pages.
    pub const fn pages(&self) -> u64 {
        self.entries.len / PACK_ENTRY_LEN as u64
    }

    /// Length of the whole file.
    pub const fn file_len(&self) -> u64 {
        self.runs.end()
    }

    /// Decodes and checks a header; `file_len` is the length of the file.
    pub fn decode(bytes: &[u8], file_len: u64) -> Result<Self, ImageError> {
        let corrupt = |why: String| Err(ImageError::corrupt(PART, why));
        let Ok((raw, _)) = RawHeader::ref_from_prefix(bytes) else {
            return corrupt(format!("{} bytes", bytes.len()));
        };
        if raw.magic != MAGIC {
            return corrupt("not a pack: wrong magic".into());
        }
        if raw.version.get() > VERSION {
            return Err(ImageError::NewerVersion {
                part: PART,
                found: raw.version.get().into(),
                supported: VERSION.into(),
            });
        }
        check_crc(PART, &bytes[..CRC_OFFSET], raw.crc.get())?;
        let section = |raw: &[U64; 2], crc: u32| Section {
            offset: raw[0].get(),
            len: raw[1].get(),
            crc,
        };
        let header = Self {
            session: SessionId(raw.session),
            generation: raw.generation.get(),
            data: section(&raw.data, 0),
            entries: section(&raw.entries, raw.entries_crc.get()),
            absorbed: section(&raw.absorbed, raw.absorbed_crc.get()),
            ghosts: section(&raw.ghosts, raw.ghosts_crc.get()),
            runs: section(&raw.runs, raw.runs_crc.get()),
        };
        let mut at = PACK_HEADER_LEN as u64;
        for (name, section, unit) in [
            ("data", &header.data, 1),
            ("entries", &header.entries, PACK_ENTRY_LEN as u64),
            ("absorbed", &header.absorbed, RANGE_LEN as u64),
            ("ghosts", &header.ghosts, GHOST_LEN as u64),
            ("runs", &header.runs, RUN_LEN as u64),
        ] {
            let end = at.checked_add(section.len);
            let fits = end.is_some_and(|end| end <= file_len)
                && section.offset == at
                && section.len.is_multiple_of(unit)
                && (unit == 1 || section.len / unit <= MAX_PAGES);
            if !fits {
                return corrupt(format!("section {name} is out of place or too long"));
            }
            at += section.len;
        }
        if at != file_len {
            return corrupt(format!("file of {file_len} bytes, {at} expected"));
        }
        Ok(header)
    }

    /// Decodes the entries: checksum, ascending names, places inside the data.
    pub fn decode_entries(&self, bytes: &[u8]) -> Result<Vec<PackEntry>, ImageError> {
        const PART: &str = "pack entries";
        check_section(PART, bytes, &self.entries)?;
        let mut entries: Vec<PackEntry> = Vec::with_capacity(bytes.len() / PACK_ENTRY_LEN);
        for chunk in bytes.chunks(PACK_ENTRY_LEN) {
            let raw = RawEntry::ref_from_bytes(chunk)
                .map_err(|_| ImageError::corrupt(PART, "cut inside an entry"))?;
            let encoding = Encoding::from_tag(raw.encoding).filter(|e| *e != Encoding::Reference);
            let name = Location::new(raw.seq.get(), raw.slot.get());
            let (at, len) = (raw.at.get(), raw.len.get());
            let end = at.checked_add(len.into());
            let inside = match raw.loan {
                0 => at >= self.data.offset && end.is_some_and(|end| end <= self.data.end()),
                // Held against the length of the file that it is borrowed from when it is read.
                loan => {
                    let stands_alone = encoding.is_some_and(|encoding| !encoding.needs_previous());
                    end.is_some() && stands_alone && usize::from(loan) <= MOST_LOANS
                }
            };
            let (Some(encoding), Some(name), true) = (encoding, name, inside) else {
                return Err(ImageError::corrupt(
                    PART,
                    format!("page @{}:{} makes no sense", raw.seq, raw.slot),
                ));
            };
            if entries.last().is_some_and(|last| last.name >= name) {
                return Err(ImageError::corrupt(PART, "out of order"));
            }
            entries.push(PackEntry {
                name,
                addr: raw.addr.get(),
                at,
                loan: raw.loan,
                len,
                encoding,
                crc: raw.crc.get(),
            });
        }
        Ok(entries)
    }

    /// Decodes the ranges of absorbed sequence numbers, first and last, ascending and apart.
    pub fn decode_absorbed(&self, bytes: &[u8]) -> Result<Vec<(u32, u32)>, ImageError> {
        const PART: &str = "absorbed snapshots";
        check_section(PART, bytes, &self.absorbed)?;
        let mut ranges: Vec<(u32, u32)> = Vec::new();
        for pair in bytes.as_chunks::<RANGE_LEN>().0 {
            let [first, last] = [&pair[..4], &pair[4..]]
                .map(|half| u32::from_le_bytes(half.try_into().expect("4 bytes")));
            if first == 0 || first > last || ranges.last().is_some_and(|range| range.1 >= first) {
                return Err(ImageError::corrupt(PART, format!("{first}-{last}")));
            }
            ranges.push((first, last));
        }
        Ok(ranges)
    }

    /// Decodes the page tables of ghosts.
    pub fn decode_ghosts(&self, ghosts: &[u8], runs: &[u8]) -> Result<Vec<Ghost>, ImageError> {
        const PART: &str = "ghosts";
        check_section(PART, ghosts, &self.ghosts)?;
        check_section(PART, runs, &self.runs)?;
        let mut found: Vec<Ghost> = Vec::new();
        let mut at = 0usize;
        for chunk in ghosts.chunks(GHOST_LEN) {
            let raw = RawGhost::ref_from_bytes(chunk)
                .map_err(|_| ImageError::corrupt(PART, "cut inside a record"))?;
            let corrupt = || ImageError::corrupt(PART, format!("ghost @{}", raw.seq));
            let count = usize::try_from(raw.runs.get()).map_err(|_| corrupt())?;
            let len = count.checked_mul(RUN_LEN).ok_or_else(corrupt)?;
            let end = at.checked_add(len).ok_or_else(corrupt)?;
            let after = found.last().is_none_or(|last| last.seq < raw.seq.get());
            let fits = raw.pages.get() <= MAX_PAGES && end <= runs.len();
            if raw.first.get() != (at / RUN_LEN) as u64 || !fits || !after {
                return Err(corrupt());
            }
            found.push(Ghost {
                seq: raw.seq.get(),
                runs: decode_runs(&runs[at..end], raw.seq.get(), raw.pages.get())?,
            });
            at = end;
        }
        if at != runs.len() {
            return Err(ImageError::corrupt(PART, "runs of no ghost"));
        }
        Ok(found)
    }
}

/// The bytes before and after the page data of a pack. `entries` ascending by name.
pub fn finish_pack(
    session: SessionId,
    generation: u32,
    data_len: u64,
    entries: &[PackEntry],
    absorbed: &[(u32, u32)],
    ghosts: &[Ghost],
) -> ([u8; PACK_HEADER_LEN], Vec<u8>) {
    let mut tail = Vec::new();
    let data = Section {
        offset: PACK_HEADER_LEN as u64,
        len: data_len,
        crc: 0,
    };
    let mut section = |write: &mut dyn FnMut(&mut Vec<u8>)| {
        let from = tail.len();
        write(&mut tail);
        Section {
            offset: data.end() + from as u64,
            len: (tail.len() - from) as u64,
            crc: crc32c::crc32c(&tail[from..]),
        }
    };
    let entries = section(&mut |out| {
        for entry in entries {
            let raw = RawEntry {
                addr: entry.addr.into(),
                at: entry.at.into(),
                seq: entry.name.seq.get().into(),
                slot: entry.name.slot.into(),
                crc: entry.crc.into(),
                len: entry.len.into(),
                encoding: entry.encoding.tag(),
                loan: entry.loan,
            };
            out.extend_from_slice(raw.as_bytes());
        }
    });
    let absorbed = section(&mut |out| {
        for (first, last) in absorbed {
            out.extend_from_slice(&first.to_le_bytes());
            out.extend_from_slice(&last.to_le_bytes());
        }
    });
    let mut first = 0;
    let ghost_section = section(&mut |out| {
        for ghost in ghosts {
            let stored = ghost.runs.iter().filter(|run| run.first.is_some());
            let raw = RawGhost {
                seq: ghost.seq.into(),
                reserved: 0.into(),
                pages: stored.map(|run| u64::from(run.pages)).sum::<u64>().into(),
                first: first.into(),
                runs: (ghost.runs.len() as u64).into(),
            };
            first += ghost.runs.len() as u64;
            out.extend_from_slice(raw.as_bytes());
        }
    });
    let runs = section(&mut |out| {
        ghosts
            .iter()
            .for_each(|ghost| encode_runs(&ghost.runs, out))
    });
    let place = |section: &Section| [section.offset.into(), section.len.into()];
    let mut raw = RawHeader {
        magic: MAGIC,
        version: VERSION.into(),
        header_len: (PACK_HEADER_LEN as u16).into(),
        generation: generation.into(),
        session: session.0,
        data: place(&data),
        entries: place(&entries),
        absorbed: place(&absorbed),
        ghosts: place(&ghost_section),
        runs: place(&runs),
        entries_crc: entries.crc.into(),
        absorbed_crc: absorbed.crc.into(),
        ghosts_crc: ghost_section.crc.into(),
        runs_crc: runs.crc.into(),
        reserved: [0; 60],
        crc: 0.into(),
    };
    raw.crc = crc32c::crc32c(&raw.as_bytes()[..CRC_OFFSET]).into();
    let mut head = [0; PACK_HEADER_LEN];
    head.copy_from_slice(raw.as_bytes());
    (head, tail)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample() -> Vec<u8> {
        let name = |seq, slot| Location::new(seq, slot).expect("not 0");
        let entry = |seq, slot, at| PackEntry {
            name: name(seq, slot),
            addr: 0x1000,
            at: PACK_HEADER_LEN as u64 + at,
            loan: 0,
            len: 8,
            encoding: Encoding::Fill,
            crc: 7,
        };
        let entries = [entry(1, 0, 0), entry(1, 4, 8), entry(3, 0, 0)];
        let run = |start, first| Run {
            start,
            pages: 2,
            first,
        };
        let ghosts = [
            Ghost {
                seq: 3,
                runs: vec![run(0x1000, Some(name(1, 0))), run(0x4000, Some(name(3, 0)))],
            },
            Ghost {
                seq: 5,
                runs: vec![run(0x2000, Some(name(5, 1)))],
            },
        ];
        let absorbed = [(1, 3), (5, 5)];
        let (head, tail) = finish_pack(SessionId([4; 16]), 9, 16, &entries, &absorbed, &ghosts);
        let bytes = [&head[..], &[1; 16], &tail].concat();
        let header = PackHeader::decode(&bytes, bytes.len() as u64).expect("a header");
        let part = |s: &Section| bytes[s.offset as usize..s.end() as usize].to_vec();
        assert_eq!((header.generation, header.session), (9, SessionId([4; 16])));
        assert_eq!(
            header.decode_entries(&part(&header.entries)),
            Ok(entries.to_vec())
        );
        assert_eq!(
            header.decode_absorbed(&part(&header.absorbed)),
            Ok(absorbed.to_vec())
        );
        assert_eq!(
            header.decode_ghosts(&part(&header.ghosts), &part(&header.runs)),
            Ok(ghosts.to_vec())
        );
        bytes
    }

    #[test]
    fn a_pack_reads_back() {
        sample();
    }

    #[test]
    fn a_ghost_of_more_runs_than_memory_is_refused() {
        let bytes = sample();
        let mut header = PackHeader::decode(&bytes, bytes.len() as u64).expect("a header");
        let part = |s: &Section| bytes[s.offset as usize..s.end() as usize].to_vec();
        let (mut ghosts, runs) = (part(&header.ghosts), part(&header.runs));
        // The second one: together with those of the first it is more than a number holds.
        let count = (usize::MAX / RUN_LEN) as u64;
        ghosts[2 * GHOST_LEN - 8..].copy_from_slice(&count.to_le_bytes());
        header.ghosts.crc = crc32c::crc32c(&ghosts);
        let decoded = header.decode_ghosts(&ghosts, &runs);
        assert!(
            matches!(decoded, Err(ImageError::Corrupt { .. })),
            "{decoded:?}"
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

        /// Also where the checksums have been made to match.
        #[test]
        fn any_content_decodes_or_not(
            changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
            sealed in any::<bool>(),
        ) {
            let mut bytes = sample();
            for (at, value) in &changes {
                let at = at.index(bytes.len());
                bytes[at] = *value;
            }
            if sealed {
                let crc = crc32c::crc32c(&bytes[..CRC_OFFSET]);
                bytes[CRC_OFFSET..PACK_HEADER_LEN].copy_from_slice(&crc.to_le_bytes());
            }
            if let Ok(mut header) = PackHeader::decode(&bytes, bytes.len() as u64) {
                let part = |s: &Section| bytes[s.offset as usize..s.end() as usize].to_vec();
                let (entries, absorbed) = (part(&header.entries), part(&header.absorbed));
                let (ghosts, runs) = (part(&header.ghosts), part(&header.runs));
                if sealed {
                    header.entries.crc = crc32c::crc32c(&entries);
                    header.absorbed.crc = crc32c::crc32c(&absorbed);
                    header.ghosts.crc = crc32c::crc32c(&ghosts);
                    header.runs.crc = crc32c::crc32c(&runs);
                }
                for entry in header.decode_entries(&entries).unwrap_or_default() {
                    let end = entry.at.checked_add(entry.len.into());
                    prop_assert!(end.is_some_and(|end| entry.loan != 0 || end <= header.data.end()));
                }
                let _ = header.decode_absorbed(&absorbed);
                for ghost in header.decode_ghosts(&ghosts, &runs).unwrap_or_default() {
                    prop_assert!(ghost.runs.iter().all(|run| run.range().start < run.range().end));
                }
            }
        }
    }
}
