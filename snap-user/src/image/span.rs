//! The span section: where every page is that changed since an ancestor, or every page there is.
//!
//! Following the parent links of a long chain one by one would make late snapshots dear to read. Each 16th,
//! 256th, … delta carries the summed changes of the last 16, 256, … deltas, so that a reader jumps.

use super::error::ImageError;
use super::header::Header;
use super::index::check_section;
use super::location::Location;
use crate::model::{PAGE_SIZE, PageRange, PageTable};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Length of one run.
pub const RUN_LEN: usize = 24;
/// Most pages that a snapshot may have: 4 TiB of memory.
pub const MAX_PAGES: u64 = 1 << 30;
const PART: &str = "span";

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawRun {
    start: U64,
    pages: U32,
    seq: U32,
    slot: U32,
    reserved: U32,
}

const _: () = assert!(size_of::<RawRun>() == RUN_LEN);

/// Neighbouring pages whose content is in neighbouring slots of one file, or which are gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Address of the first page.
    pub start: u64,
    /// Number of pages.
    pub pages: u32,
    /// Where the first page is; `None` when the pages are gone.
    pub first: Option<Location>,
}

impl Run {
    /// The pages as a range.
    pub fn range(&self) -> PageRange {
        PageRange {
            start: self.start,
            end: self.start + u64::from(self.pages) * PAGE_SIZE,
        }
    }

    /// Extends the run by one page if that page continues it.
    fn extend(&mut self, addr: u64, location: Option<Location>) -> bool {
        let next = match (self.first, location) {
            (None, None) => true,
            (Some(first), Some(location)) => {
                first.seq == location.seq
                    && u64::from(first.slot) + u64::from(self.pages) == u64::from(location.slot)
            }
            _ => false,
        };
        if !next || self.pages == u32::MAX || self.range().end != addr {
            return false;
        }
        self.pages += 1;
        true
    }
}

fn collect(pages: impl Iterator<Item = (u64, Option<Location>)>) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for (addr, location) in pages {
        if !runs
            .last_mut()
            .is_some_and(|run| run.extend(addr, location))
        {
            runs.push(Run {
                start: addr,
                pages: 1,
                first: location,
            });
        }
    }
    runs
}

/// Every page of a table.
pub fn runs_of(table: &PageTable<Location>) -> Vec<Run> {
    collect(table.iter().map(|(addr, location)| (addr, Some(location))))
}

/// What turns `old` into `new`.
pub fn runs_between(old: &PageTable<Location>, new: &PageTable<Location>) -> Vec<Run> {
    collect(new.diff(old).into_iter().map(|addr| (addr, new.get(addr))))
}

/// Applies runs to a table.
pub fn apply_runs(table: &mut PageTable<Location>, runs: &[Run]) {
    for run in runs {
        match run.first {
            None => table.remove_range(run.range()),
            Some(first) => {
                for (addr, slot) in run.range().iter().zip(first.slot..) {
                    table.insert(addr, Location { slot, ..first });
                }
            }
        }
    }
}

pub(super) fn encode_runs(runs: &[Run], out: &mut Vec<u8>) {
    out.reserve(runs.len() * RUN_LEN);
    for run in runs {
        let raw = RawRun {
            start: run.start.into(),
            pages: run.pages.into(),
            seq: run.first.map_or(0, |first| first.seq.get()).into(),
            slot: run.first.map_or(0, |first| first.slot).into(),
            reserved: 0.into(),
        };
        out.extend_from_slice(raw.as_bytes());
    }
}

/// Decodes a span section: checksum, ascending runs, no location later than this snapshot, no more pages
/// than the header says there are.
pub fn decode_span(bytes: &[u8], header: &Header) -> Result<Vec<Run>, ImageError> {
    check_section(PART, bytes, &header.span)?;
    decode_runs(bytes, header.seq, header.pages)
}

/// Decodes runs of a snapshot with sequence number `seq` and this many pages.
pub(super) fn decode_runs(bytes: &[u8], seq: u32, most: u64) -> Result<Vec<Run>, ImageError> {
    let mut runs: Vec<Run> = Vec::with_capacity(bytes.len() / RUN_LEN);
    let mut stored = 0u64;
    for chunk in bytes.chunks(RUN_LEN) {
        let raw = RawRun::ref_from_bytes(chunk)
            .map_err(|_| ImageError::corrupt(PART, "cut inside a run"))?;
        let (start, pages) = (raw.start.get(), raw.pages.get());
        let corrupt = |why: &str| {
            Err(ImageError::corrupt(
                PART,
                format!("run at {start:#x}: {why}"),
            ))
        };
        let end = start.checked_add(u64::from(pages) * PAGE_SIZE);
        let after = runs
            .last()
            .is_none_or(|last: &Run| last.range().end <= start);
        if pages == 0 || end.is_none() || !after || !start.is_multiple_of(PAGE_SIZE) {
            return corrupt("out of order or no pages");
        }
        let first = Location::new(raw.seq.get(), raw.slot.get());
        if raw.seq.get() > seq || raw.slot.get().checked_add(pages).is_none() {
            return corrupt("points past this snapshot");
        }
        stored += if first.is_some() { u64::from(pages) } else { 0 };
        if stored > most {
            return corrupt("more pages than the snapshot has");
        }
        runs.push(Run {
            start,
            pages,
            first,
        });
    }
    Ok(runs)
}
