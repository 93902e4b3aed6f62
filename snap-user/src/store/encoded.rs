//! Reads pages as they are stored, many at a time, from wherever they are.

use super::buffer::{ALIGN, ReadBuffer};
use super::cache::{ImageFile, PageFile};
use super::chain::{Holder, SessionFiles};
use super::error::StoreError;
use super::pack::PackFile;
use crate::codec::Encoding;
use crate::image::{IndexEntry, Location};
use crate::model::Page;
use std::sync::Arc;

/// Slots this close together are read in one go rather than one by one.
const SLOT_GAP: u32 = 64;
/// Most index entries read in one go.
const MOST_SLOTS: u32 = 1 << 16;
/// Encoded pages this close together are read in one go: reading on over a gap is cheaper than a seek, on
/// devices of 0.1 ms and 1 GB/s up to about this length.
const BYTE_GAP: u64 = 128 << 10;
/// Most page data read in one go, and the size of the buffer for it.
const MOST_BYTES: u64 = 4 << 20;

/// A page as it is stored.
#[derive(Clone, Copy)]
pub(super) struct Encoded<'a> {
    /// The file that has it.
    pub(super) file: &'a dyn PageFile,
    /// Its name.
    pub(super) place: Location,
    /// What the file says of it.
    pub(super) entry: IndexEntry,
    /// Its bytes.
    pub(super) bytes: &'a [u8],
}

impl Encoded<'_> {
    /// The place of the version that it holds the changes to, if it holds changes.
    pub(super) fn previous(&self) -> Result<Option<Location>, StoreError> {
        if self.entry.encoding == Encoding::Reference {
            return Err(StoreError::corrupt(
                self.file.path(),
                "index",
                format!("page {:#x} refers on to another reference", self.entry.addr),
            ));
        }
        self.entry
            .previous(self.bytes, self.place.seq.get())
            .map_err(StoreError::image(self.file.path()))
    }

    /// Decodes it, from what it was before where it holds changes.
    pub(super) fn decode(
        &self,
        previous: Option<&Page>,
        page: &mut Page,
    ) -> Result<(), StoreError> {
        self.entry
            .decode_page(self.bytes, previous, page)
            .map_err(StoreError::image(self.file.path()))
    }
}

/// Takes a page and the number that it was asked for under.
pub(super) type TakeEncoded<'a> = &'a mut dyn FnMut(&Encoded<'_>, u64) -> Result<(), StoreError>;

/// What a file says of a page, the page's name, and the number it is asked for under.
type Wanted = (IndexEntry, Location, u64);

/// Reads pages as they are stored, `wanted` ascending.
pub(super) fn read_wanted(
    files: &SessionFiles,
    wanted: &[(Location, u64)],
    take: TakeEncoded<'_>,
) -> Result<(), StoreError> {
    let mut buffer = ReadBuffer::default();
    let mut packed: Vec<Wanted> = Vec::new();
    let mut packs: Option<Arc<PackFile>> = None;
    for in_file in wanted.chunk_by(|a, b| a.0.seq == b.0.seq) {
        match files.holder(in_file[0].0.seq.get())? {
            Holder::Snapshot(file) => read_from_file(&file, in_file, &mut buffer, take)?,
            Holder::Pack(pack) => {
                if let Some(other) = packs.replace(Arc::clone(&pack))
                    && !Arc::ptr_eq(&other, &pack)
                {
                    // Replaced meanwhile: places are of the one that they were asked of.
                    read_packed(&other, &mut packed, &mut buffer, take)?;
                }
                for (location, number) in in_file {
                    packed.push((pack.entry(*location)?, *location, *number));
                }
            }
        }
    }
    if let Some(pack) = packs {
        read_packed(&pack, &mut packed, &mut buffer, take)?;
    }
    Ok(())
}

/// What the files say of pages, and which file has the bytes; without these. `places` ascending.
pub(super) fn entries_of(
    files: &SessionFiles,
    places: &[Location],
    each: &mut dyn FnMut(Location, &IndexEntry, &dyn PageFile),
) -> Result<(), StoreError> {
    for in_file in places.chunk_by(|a, b| a.seq == b.seq) {
        match files.holder(in_file[0].seq.get())? {
            Holder::Snapshot(file) => {
                let entries = file.index()?;
                for place in in_file {
                    let entry = entries.get(place.slot as usize).ok_or_else(|| {
                        StoreError::corrupt(&file.path, "index", format!("no slot {}", place.slot))
                    })?;
                    each(*place, entry, file.page_file(entry.loan)?);
                }
            }
            Holder::Pack(pack) => {
                for place in in_file {
                    let entry = pack.entry(*place)?;
                    each(*place, &entry, pack.page_file(entry.loan)?);
                }
            }
        }
    }
    Ok(())
}

/// Reads pages of a pack, in any order, and forgets them.
fn read_packed(
    pack: &PackFile,
    packed: &mut Vec<Wanted>,
    buffer: &mut ReadBuffer,
    take: TakeEncoded<'_>,
) -> Result<(), StoreError> {
    packed.sort_unstable_by_key(|(entry, ..)| (entry.loan, entry.at));
    for pages in packed.chunk_by(|a, b| a.0.loan == b.0.loan) {
        read_data(pack.page_file(pages[0].0.loan)?, pages, buffer, take)?;
    }
    packed.clear();
    Ok(())
}

/// Reads pages of one file, `wanted` ascending by slot.
fn read_from_file(
    file: &ImageFile,
    wanted: &[(Location, u64)],
    buffer: &mut ReadBuffer,
    take: TakeEncoded<'_>,
) -> Result<(), StoreError> {
    let mut rest = wanted;
    while let Some((first, _)) = rest.first() {
        let first = first.slot;
        let near = rest
            .windows(2)
            .take_while(|w| {
                w[1].0.slot - w[0].0.slot <= SLOT_GAP && w[1].0.slot - first < MOST_SLOTS
            })
            .count();
        let (group, after) = rest.split_at(near + 1);
        rest = after;
        let entries = file.entries(first, group[near].0.slot - first + 1)?;
        let mut pages: Vec<Wanted> = group
            .iter()
            .map(|(place, number)| (entries[(place.slot - first) as usize], *place, *number))
            .collect();
        pages.sort_unstable_by_key(|(entry, ..)| (entry.loan, entry.at_if_stored()));
        for pages in pages.chunk_by(|a, b| a.0.loan == b.0.loan) {
            read_data(file.page_file(pages[0].0.loan)?, pages, buffer, take)?;
        }
    }
    Ok(())
}

/// Reads the bytes of pages of one file, ascending by place.
fn read_data(
    file: &dyn PageFile,
    pages: &[Wanted],
    buffer: &mut ReadBuffer,
    take: TakeEncoded<'_>,
) -> Result<(), StoreError> {
    let mut rest = pages;
    while let Some((entry, ..)) = rest.first() {
        let start = entry.at_if_stored();
        let mut end = start + u64::from(entry.len);
        let mut count = 1;
        for (next, ..) in &rest[1..] {
            let (from, to) = (
                next.at_if_stored(),
                next.at_if_stored() + u64::from(next.len),
            );
            if from > end + BYTE_GAP || to.saturating_sub(start) > MOST_BYTES {
                break;
            }
            end = end.max(to);
            count += 1;
        }
        let (group, after) = rest.split_at(count);
        rest = after;
        if end > file.file_len() {
            return Err(StoreError::corrupt(
                file.path(),
                "page data",
                format!(
                    "it ends at {}, and pages are borrowed up to {end}",
                    file.file_len()
                ),
            ));
        }
        // Widened to whole blocks, for direct I/O.
        let start = start / ALIGN as u64 * ALIGN as u64;
        let end = end.next_multiple_of(ALIGN as u64);
        let end = end.min(file.file_len());
        let bytes = buffer.bytes((end - start) as usize);
        file.read_into(start, bytes)?;
        for (entry, place, number) in group {
            let from = (entry.at_if_stored() - start) as usize;
            let found = Encoded {
                file,
                place: *place,
                entry: *entry,
                bytes: &bytes[from..from + usize::from(entry.len)],
            };
            take(&found, *number)?;
        }
    }
    Ok(())
}
