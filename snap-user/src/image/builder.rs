//! Puts a snapshot file together around its streamed page data.

use super::batch::EncodedBatch;
use super::error::ImageError;
use super::header::{Arch, Found, HEADER_LEN, Header, Section, SessionId, SpanKind};
use super::index::{IndexEntry, encode_dropped};
use super::location::Location;
use super::manifest::Manifest;
use super::span::{MAX_PAGES, Run, encode_runs};
use crate::codec::Encoding;
use crate::model::{Costs, PageSet, PageTable, ProcessState, SnapshotId, SnapshotKind};

/// Who a snapshot is, besides its content.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Machine.
    pub arch: Arch,
    /// Base or delta.
    pub kind: SnapshotKind,
    /// Parent, with its sequence number.
    pub parent: Option<(SnapshotId, u32)>,
    /// Session.
    pub session: SessionId,
    /// Sequence number in the session.
    pub seq: u32,
    /// Wall-clock time, nanoseconds since 1970.
    pub time_ns: u64,
    /// How many pages were found to have been written, if the header is to say it.
    pub found: Option<Found>,
}

/// The span section that a snapshot is to carry.
#[derive(Clone, Debug)]
pub struct SpanPlan {
    /// Its kind.
    pub kind: SpanKind,
    /// Its runs.
    pub runs: Vec<Run>,
    /// The snapshot's depth.
    pub depth: u32,
}

/// Everything of a file besides its page data.
#[derive(Clone, Debug)]
pub struct Finished {
    /// The header, as it was encoded.
    pub header: Header,
    /// The bytes before the page data.
    pub head: [u8; HEADER_LEN],
    /// The bytes after the page data.
    pub tail: Vec<u8>,
}

/// Where a page is already, so that its bytes are not stored again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Elsewhere {
    /// Its encoded bytes are in a file.
    Bytes {
        /// Number of the file: 0 for the snapshot's own.
        loan: u8,
        /// First byte in it.
        at: u64,
    },
    /// It is the page of this name, which an earlier snapshot of the session has stored.
    Named(Location),
}

struct Appended {
    entry: IndexEntry,
    pass: u32,
}

/// Collects the index of a snapshot while its pages are streamed to the file.
#[derive(Default)]
pub struct Builder {
    data_len: u64,
    appended: Vec<Appended>,
    dropped: PageSet,
    removed: Vec<(PageSet, u32)>,
}

impl Builder {
    /// A snapshot without pages.
    pub fn new() -> Self {
        Self::default()
    }

    /// Bytes of page data so far.
    pub fn data_len(&self) -> u64 {
        self.data_len
    }

    /// Notes a batch whose bytes go to the end of the page data, but for those of pages that are `elsewhere`: there is
    /// a place for each page of the batch that is, or the slice is empty. References are looked up in `parent`, and what
    /// a page holds the changes to must be what `parent` has for it; the address of one that is not there is the error.
    pub fn append(
        &mut self,
        batch: &EncodedBatch,
        elsewhere: &[Option<Elsewhere>],
        parent: &PageTable<Location>,
    ) -> Result<(), u64> {
        let base = HEADER_LEN as u64 + self.data_len;
        let mut left_out = 0;
        self.appended.reserve(batch.pages().len());
        for (n, page) in batch.pages().iter().enumerate() {
            if page.previous.is_some() && page.previous != parent.get(page.addr) {
                return Err(page.addr);
            }
            let entry = if page.encoding == Encoding::Reference {
                IndexEntry::reference(page.addr, parent.get(page.at).ok_or(page.at)?)
            } else {
                let found = elsewhere.get(n).copied().flatten();
                let place = found.unwrap_or(Elsewhere::Bytes {
                    loan: 0,
                    at: base + page.at - left_out,
                });
                left_out += found.map_or(0, |_| u64::from(page.len));
                match place {
                    Elsewhere::Named(location) => IndexEntry::reference(page.addr, location),
                    Elsewhere::Bytes { loan, at } => IndexEntry {
                        addr: page.addr,
                        at,
                        loan,
                        len: page.len,
                        encoding: page.encoding,
                        crc: page.crc,
                    },
                }
            };
            self.appended.push(Appended {
                entry,
                pass: batch.pass(),
            });
        }
        self.data_len += batch.bytes().len() as u64 - left_out;
        Ok(())
    }

    /// Notes page data that went to the end; gives its place.
    pub fn add_data(&mut self, len: usize) -> u64 {
        let at = HEADER_LEN as u64 + self.data_len;
        self.data_len += len as u64;
        at
    }

    /// Drops pages of the parent.
    pub fn drop_ranges(&mut self, pages: &PageSet) {
        self.dropped = self.dropped.union(pages);
    }

    /// Drops pages of the parent and of copy passes earlier than `before`.
    pub fn remove_pages(&mut self, pages: &PageSet, before: u32) {
        self.drop_ranges(pages);
        self.removed.push((pages.clone(), before));
    }

    /// The entries that count, ascending, each address once.
    pub fn entries(&mut self) -> Vec<IndexEntry> {
        // Stable: within one pass the entry appended last stays last.
        self.appended.sort_by_key(|a| (a.entry.addr, a.pass));
        let mut kept: Vec<IndexEntry> = Vec::with_capacity(self.appended.len());
        for appended in &self.appended {
            let addr = appended.entry.addr;
            let gone = self
                .removed
                .iter()
                .any(|(pages, before)| appended.pass < *before && pages.contains(addr));
            if gone {
                continue;
            }
            match kept.last_mut() {
                Some(last) if last.addr == addr => *last = appended.entry,
                _ => kept.push(appended.entry),
            }
        }
        kept
    }

    /// The dropped ranges. A base has none: it has nothing to drop from.
    pub fn dropped(&self) -> &PageSet {
        &self.dropped
    }

    /// Lays out the sections and encodes the header.
    ///
    /// `entries` is what [`Builder::entries`] gave; `pages` counts the snapshot's pages, its ancestors' included.
    pub fn finish(
        &self,
        identity: &Identity,
        entries: &[IndexEntry],
        span: &SpanPlan,
        pages: u64,
        state: &ProcessState,
        costs: &Costs,
    ) -> Result<Finished, ImageError> {
        if pages > MAX_PAGES || entries.len() as u64 > MAX_PAGES {
            return Err(ImageError::TooLarge {
                part: "index",
                why: format!("{pages} pages"),
            });
        }
        let mut tail = Vec::new();
        let data = Section {
            offset: HEADER_LEN as u64,
            len: self.data_len,
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
        let manifest = Manifest::encode(state, costs)?;
        let mut header = Header {
            arch: identity.arch,
            kind: identity.kind,
            id: SnapshotId([0; 16]),
            parent: identity.parent.map(|parent| parent.0),
            session: identity.session,
            seq: identity.seq,
            parent_seq: identity.parent.map_or(0, |parent| parent.1),
            depth: span.depth,
            span_kind: span.kind,
            time_ns: identity.time_ns,
            pid: state.pid,
            data,
            index: section(&mut |out| entries.iter().for_each(|entry| entry.encode(out))),
            dropped: section(&mut |out| {
                if identity.kind == SnapshotKind::Delta {
                    encode_dropped(&self.dropped, out);
                }
            }),
            span: section(&mut |out| encode_runs(&span.runs, out)),
            manifest: section(&mut |out| out.extend_from_slice(&manifest)),
            pages,
            stop_ns: costs.phases.stop_ns,
            found: identity.found,
            late: None,
        };
        let head = header.encode();
        Ok(Finished { header, head, tail })
    }
}
