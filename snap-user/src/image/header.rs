//! The first 256 bytes of a snapshot file.

use super::error::{ImageError, check_crc};
use super::index::ENTRY_LEN;
use super::manifest::MAX_MANIFEST;
use super::span::{MAX_PAGES, RUN_LEN};
use crate::model::{SnapshotId, SnapshotKind};
use std::fmt;
use zerocopy::little_endian::{I32, U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Length of the header, and where page data begins.
pub const HEADER_LEN: usize = 256;
/// Newest format version that this program reads, and the one it writes.
pub const FORMAT_VERSION: u16 = 1;
/// Where the late field lies: write and sync time, known only once everything else is on disk.
pub const LATE_OFFSET: u64 = 232;
/// Length of the late field.
pub const LATE_LEN: usize = 24;

const MAGIC: [u8; 8] = *b"\x89KSNAP\r\n";
const PART: &str = "header";
/// The header's checksum covers the bytes before it.
const CRC_OFFSET: usize = 228;
const ID: std::ops::Range<usize> = 16..32;
/// Flag: how much was found to have been written is recorded.
const HAS_FOUND: u32 = 1;

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawSection {
    offset: U64,
    len: U64,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawHeader {
    magic: [u8; 8],
    version: U16,
    arch: U16,
    kind: u8,
    span_kind: u8,
    header_len: U16,
    id: [u8; 16],
    parent: [u8; 16],
    session: [u8; 16],
    seq: U32,
    parent_seq: U32,
    depth: U32,
    since_seq: U32,
    time_ns: U64,
    pid: I32,
    flags: U32,
    data: RawSection,
    index: RawSection,
    dropped: RawSection,
    span: RawSection,
    manifest: RawSection,
    index_crc: U32,
    dropped_crc: U32,
    span_crc: U32,
    manifest_crc: U32,
    pages: U64,
    stop_ns: U64,
    dirty: U64,
    changed: U64,
    reserved: [u8; 4],
    crc: U32,
    write_ns: U64,
    sync_ns: U64,
    late_check: U64,
}

const _: () = assert!(size_of::<RawHeader>() == HEADER_LEN);
const _: () = assert!(std::mem::offset_of!(RawHeader, crc) == CRC_OFFSET);
const _: () = assert!(std::mem::offset_of!(RawHeader, write_ns) as u64 == LATE_OFFSET);

/// Name of a session: one continuous watch of one process.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub [u8; 16]);

impl SessionId {
    /// Parses 32 hex digits.
    pub fn from_hex(text: &str) -> Option<Self> {
        SnapshotId::from_hex(text).map(|id| Self(id.0))
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&SnapshotId(self.0), f)
    }
}

impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&SnapshotId(self.0), f)
    }
}

/// Machine that the process ran on; the numbers are ELF's `e_machine`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
#[allow(missing_docs, reason = "self-describing")]
pub enum Arch {
    X86_64 = 62,
    Aarch64 = 183,
}

impl Arch {
    /// The architecture of this program, if the format has a number for it.
    pub fn native() -> Option<Self> {
        match std::env::consts::ARCH {
            "x86_64" => Some(Self::X86_64),
            "aarch64" => Some(Self::Aarch64),
            _ => None,
        }
    }

    fn from_number(number: u16) -> Option<Self> {
        match number {
            62 => Some(Self::X86_64),
            183 => Some(Self::Aarch64),
            _ => None,
        }
    }
}

/// What a snapshot's span section covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpanKind {
    /// There is none: the page table is the parent's, changed by this file's own index.
    None,
    /// Every change since the ancestor with this sequence number.
    Since(u32),
    /// Every page of the snapshot.
    Full,
}

/// A part of the file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Section {
    /// First byte, from the start of the file.
    pub offset: u64,
    /// Length in bytes.
    pub len: u64,
    /// CRC-32C of the bytes. Page data has none: each page carries its own in the index.
    pub crc: u32,
}

impl Section {
    /// One past the last byte.
    pub const fn end(&self) -> u64 {
        self.offset + self.len
    }
}

/// A decoded header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Machine that the process ran on.
    pub arch: Arch,
    /// Base or delta.
    pub kind: SnapshotKind,
    /// The snapshot's name, which its own content gives.
    pub id: SnapshotId,
    /// The snapshot it follows. A delta has one; a base may.
    pub parent: Option<SnapshotId>,
    /// Session it belongs to.
    pub session: SessionId,
    /// Sequence number within the session, from 1.
    pub seq: u32,
    /// The parent's sequence number, 0 without a parent.
    pub parent_seq: u32,
    /// Deltas since the last ancestor that lists all its pages.
    pub depth: u32,
    /// What the span section covers.
    pub span_kind: SpanKind,
    /// Wall-clock time of the snapshot, nanoseconds since 1970.
    pub time_ns: u64,
    /// Process id, as seen by the ksnap that took it.
    pub pid: i32,
    /// Encoded pages, back to back.
    pub data: Section,
    /// Page index.
    pub index: Section,
    /// Dropped ranges.
    pub dropped: Section,
    /// Span.
    pub span: Section,
    /// Manifest.
    pub manifest: Section,
    /// Pages of the snapshot, those of its ancestors included.
    pub pages: u64,
    /// How long the process was stopped, in nanoseconds.
    pub stop_ns: u64,
    /// How many pages were found to have been written; `None` when it was not recorded.
    pub found: Option<Found>,
    /// What writing the file cost; `None` when it was not recorded.
    pub late: Option<Late>,
}

/// Pages that a snapshot was taken of, as far as they could have changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// Reported as written by the tracker.
    pub dirty: u64,
    /// Different from what the parent has, or all for a base.
    pub changed: u64,
}

/// What is known of a snapshot only after it is on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Late {
    /// How long the writes took, in nanoseconds.
    pub write_ns: u64,
    /// How long the file's sync took, in nanoseconds.
    pub sync_ns: u64,
}

impl Header {
    /// Length of the whole file.
    pub const fn file_len(&self) -> u64 {
        self.manifest.end()
    }

    /// Pages stored in this file, references included.
    pub const fn entries(&self) -> u64 {
        self.index.len / ENTRY_LEN as u64
    }

    /// Encodes the header; [`Header::id`] is replaced by the name that the rest of the header gives.
    pub fn encode(&mut self) -> [u8; HEADER_LEN] {
        self.id = SnapshotId([0; 16]);
        let mut raw = self.to_raw();
        let hash = blake3::hash(&raw.as_bytes()[..CRC_OFFSET]);
        self.id = SnapshotId(*hash.as_bytes().first_chunk().expect("a hash has 32 bytes"));
        raw.id = self.id.0;
        raw.crc = crc32c::crc32c(&raw.as_bytes()[..CRC_OFFSET]).into();
        let mut bytes = [0; HEADER_LEN];
        bytes.copy_from_slice(raw.as_bytes());
        bytes
    }

    fn to_raw(&self) -> RawHeader {
        let section = |s: &Section| RawSection {
            offset: s.offset.into(),
            len: s.len.into(),
        };
        let (span_kind, since_seq) = match self.span_kind {
            SpanKind::None => (0, 0),
            SpanKind::Since(seq) => (1, seq),
            SpanKind::Full => (2, 0),
        };
        RawHeader {
            magic: MAGIC,
            version: FORMAT_VERSION.into(),
            arch: (self.arch as u16).into(),
            kind: match self.kind {
                SnapshotKind::Base => 0,
                SnapshotKind::Delta => 1,
            },
            span_kind,
            header_len: (HEADER_LEN as u16).into(),
            id: self.id.0,
            parent: self.parent.map_or([0; 16], |id| id.0),
            session: self.session.0,
            seq: self.seq.into(),
            parent_seq: self.parent_seq.into(),
            depth: self.depth.into(),
            since_seq: since_seq.into(),
            time_ns: self.time_ns.into(),
            pid: self.pid.into(),
            flags: self.found.map_or(0, |_| HAS_FOUND).into(),
            data: section(&self.data),
            index: section(&self.index),
            dropped: section(&self.dropped),
            span: section(&self.span),
            manifest: section(&self.manifest),
            index_crc: self.index.crc.into(),
            dropped_crc: self.dropped.crc.into(),
            span_crc: self.span.crc.into(),
            manifest_crc: self.manifest.crc.into(),
            pages: self.pages.into(),
            stop_ns: self.stop_ns.into(),
            dirty: self.found.map_or(0, |found| found.dirty).into(),
            changed: self.found.map_or(0, |found| found.changed).into(),
            reserved: [0; 4],
            crc: 0.into(),
            write_ns: 0.into(),
            sync_ns: 0.into(),
            late_check: 0.into(),
        }
    }

    /// Decodes and checks a header: magic, version, checksum, then that its sections lie where the
    /// format wants them and are no longer than it allows. `file_len` is the length of the file.
    pub fn decode(bytes: &[u8], file_len: u64) -> Result<Self, ImageError> {
        let corrupt = |why: String| Err(ImageError::corrupt(PART, why));
        let Ok((raw, _)) = RawHeader::ref_from_prefix(bytes) else {
            return corrupt(format!("{} bytes, {HEADER_LEN} expected", bytes.len()));
        };
        if raw.magic != MAGIC {
            return corrupt("not a ksnap snapshot: wrong magic".into());
        }
        // The version comes before the checksum: a later version may keep its checksum elsewhere.
        if raw.version.get() > FORMAT_VERSION {
            return Err(ImageError::NewerVersion {
                part: PART,
                found: raw.version.get().into(),
                supported: FORMAT_VERSION.into(),
            });
        }
        check_crc(PART, &bytes[..CRC_OFFSET], raw.crc.get())?;
        let header = Self::from_raw(raw)?;
        let mut nameless = [0; CRC_OFFSET];
        nameless.copy_from_slice(&bytes[..CRC_OFFSET]);
        nameless[ID].fill(0);
        if blake3::hash(&nameless).as_bytes()[..16] != header.id.0 {
            return corrupt("its id is not the hash of its content".into());
        }
        header.check(file_len)?;
        Ok(header)
    }

    fn from_raw(raw: &RawHeader) -> Result<Self, ImageError> {
        let corrupt = |why: String| ImageError::corrupt(PART, why);
        let section = |raw: &RawSection, crc: u32| Section {
            offset: raw.offset.get(),
            len: raw.len.get(),
            crc,
        };
        let late = Late {
            write_ns: raw.write_ns.get(),
            sync_ns: raw.sync_ns.get(),
        };
        Ok(Self {
            arch: Arch::from_number(raw.arch.get())
                .ok_or_else(|| corrupt(format!("unknown architecture {}", raw.arch)))?,
            kind: match raw.kind {
                0 => SnapshotKind::Base,
                1 => SnapshotKind::Delta,
                other => return Err(corrupt(format!("unknown kind {other}"))),
            },
            id: SnapshotId(raw.id),
            parent: (raw.parent_seq.get() != 0).then_some(SnapshotId(raw.parent)),
            session: SessionId(raw.session),
            seq: raw.seq.get(),
            parent_seq: raw.parent_seq.get(),
            depth: raw.depth.get(),
            span_kind: match (raw.span_kind, raw.since_seq.get()) {
                (0, 0) => SpanKind::None,
                (1, seq) => SpanKind::Since(seq),
                (2, 0) => SpanKind::Full,
                other => return Err(corrupt(format!("unknown span {other:?}"))),
            },
            time_ns: raw.time_ns.get(),
            pid: raw.pid.get(),
            data: section(&raw.data, 0),
            index: section(&raw.index, raw.index_crc.get()),
            dropped: section(&raw.dropped, raw.dropped_crc.get()),
            span: section(&raw.span, raw.span_crc.get()),
            manifest: section(&raw.manifest, raw.manifest_crc.get()),
            pages: raw.pages.get(),
            stop_ns: raw.stop_ns.get(),
            found: (raw.flags.get() & HAS_FOUND != 0).then_some(Found {
                dirty: raw.dirty.get(),
                changed: raw.changed.get(),
            }),
            late: (late.check() == raw.late_check.get()).then_some(late),
        })
    }

    fn check(&self, file_len: u64) -> Result<(), ImageError> {
        let corrupt = |why: String| Err(ImageError::corrupt(PART, why));
        let mut at = HEADER_LEN as u64;
        for (name, section, unit, limit) in [
            ("data", &self.data, 1, u64::MAX),
            ("index", &self.index, ENTRY_LEN as u64, MAX_PAGES),
            ("dropped", &self.dropped, 16, MAX_PAGES),
            ("span", &self.span, RUN_LEN as u64, MAX_PAGES),
            ("manifest", &self.manifest, 1, MAX_MANIFEST),
        ] {
            if section.offset != at
                || !section.len.is_multiple_of(unit)
                || section.len / unit > limit
            {
                return corrupt(format!(
                    "section {name} of {} bytes at {} is out of place or too long",
                    section.len, section.offset
                ));
            }
            at = match at.checked_add(section.len) {
                Some(end) if end <= file_len => end,
                _ => {
                    return corrupt(format!(
                        "section {name} ends beyond the file's {file_len} bytes: cut short"
                    ));
                }
            };
        }
        if at != file_len {
            return corrupt(format!("file of {file_len} bytes, {at} expected"));
        }
        if self.seq == 0 || self.parent_seq >= self.seq || self.pages > MAX_PAGES {
            return corrupt(format!(
                "impossible numbers: sequence {}, parent {}, {} pages",
                self.seq, self.parent_seq, self.pages
            ));
        }
        let whole = self.kind == SnapshotKind::Base || self.span_kind == SpanKind::Full;
        let sound = match self.kind {
            SnapshotKind::Base => self.span_kind == SpanKind::None && self.dropped.len == 0,
            SnapshotKind::Delta => self.parent.is_some(),
        } && match self.span_kind {
            SpanKind::None => self.span.len == 0,
            SpanKind::Since(seq) => 0 < seq && seq < self.seq,
            SpanKind::Full => true,
        } && whole == (self.depth == 0);
        if !sound {
            return corrupt("kind, parent and span contradict each other".into());
        }
        Ok(())
    }
}

impl Late {
    /// Tells the field from one that was never written or only half.
    const fn check(&self) -> u64 {
        !(self.write_ns ^ self.sync_ns)
    }

    /// The bytes of the late field.
    pub fn encode(&self) -> [u8; LATE_LEN] {
        let mut bytes = [0; LATE_LEN];
        bytes[..8].copy_from_slice(&self.write_ns.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.sync_ns.to_le_bytes());
        bytes[16..].copy_from_slice(&self.check().to_le_bytes());
        bytes
    }
}
