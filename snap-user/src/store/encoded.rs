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
        match find(files, in_file)? {
            Found::File(file, pages) => {
                for pages in pages.chunk_by(|a, b| a.0.loan == b.0.loan) {
                    let file = file.page_file(&*files.files, pages[0].0.loan)?;
                    read_data(file, pages, &mut buffer, take)?;
                }
            }
            Found::Pack(pack) => {
                if let Some(other) = packs.replace(Arc::clone(&pack))
                    && !Arc::ptr_eq(&other, &pack)
                {
                    // Replaced meanwhile: places are of the one that they were asked of.
                    read_packed(files, other, &mut packed, &mut buffer, take)?;
                }
                for (location, number) in in_file {
                    packed.push((pack.entry(*location)?, *location, *number));
                }
            }
        }
    }
    if let Some(pack) = packs {
        read_packed(files, pack, &mut packed, &mut buffer, take)?;
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
                    each(*place, entry, file.page_file(&*files.files, entry.loan)?);
                }
            }
            Holder::Pack(pack) => {
                for place in in_file {
                    let entry = pack.entry(*place)?;
                    each(*place, &entry, pack.page_file(&*files.files, entry.loan)?);
                }
            }
        }
    }
    Ok(())
}

/// Where pages of one snapshot are.
enum Found {
    /// In its file, and those that it borrows from, all of which are open; by file and place.
    File(Arc<ImageFile>, Vec<Wanted>),
    Pack(Arc<PackFile>),
}

/// Finds pages of one snapshot, `wanted` ascending by slot. What it borrows from goes with it: when that is missing, the
/// folder has changed, and is listed again.
fn find(files: &SessionFiles, wanted: &[(Location, u64)]) -> Result<Found, StoreError> {
    let try_find = || -> Result<Found, StoreError> {
        match files.holder(wanted[0].0.seq.get())? {
            Holder::Pack(pack) => Ok(Found::Pack(pack)),
            Holder::Snapshot(file) => {
                let pages = pages_of(&file, wanted)?;
                open_all(&pages, &|number| file.page_file(&*files.files, number))?;
                Ok(Found::File(file, pages))
            }
        }
    };
    match try_find() {
        Err(error) if error.is_missing() => {
            files.refresh()?;
            try_find()
        }
        found => found,
    }
}

/// Opens all files that have pages, those of one file next to each other.
fn open_all<'a>(
    pages: &[Wanted],
    open: &dyn Fn(u8) -> Result<&'a dyn PageFile, StoreError>,
) -> Result<(), StoreError> {
    let mut of_files = pages.chunk_by(|a, b| a.0.loan == b.0.loan);
    of_files.try_for_each(|pages| open(pages[0].0.loan).map(drop))
}

/// Reads pages of a pack, in any order, and forgets them.
fn read_packed(
    files: &SessionFiles,
    mut pack: Arc<PackFile>,
    packed: &mut Vec<Wanted>,
    buffer: &mut ReadBuffer,
    take: TakeEncoded<'_>,
) -> Result<(), StoreError> {
    let by_place = |(entry, ..): &Wanted| (entry.loan, entry.at);
    packed.sort_unstable_by_key(by_place);
    let opened = open_all(packed, &|number| pack.page_file(&*files.files, number));
    if let Err(error) = opened {
        if !error.is_missing() {
            return Err(error);
        }
        files.refresh()?;
        let now = files.listing().pack.clone();
        let other = now.filter(|now| now.header.generation != pack.header.generation);
        // Replaced by one that has the same pages under the same names.
        pack = other.ok_or(error)?;
        for (entry, place, _) in packed.iter_mut() {
            *entry = pack.entry(*place)?;
        }
        packed.sort_unstable_by_key(by_place);
    }
    for pages in packed.chunk_by(|a, b| a.0.loan == b.0.loan) {
        let file = pack.page_file(&*files.files, pages[0].0.loan)?;
        read_data(file, pages, buffer, take)?;
    }
    packed.clear();
    Ok(())
}

/// What a file says of its pages, `wanted` ascending by slot; by file and place.
fn pages_of(file: &ImageFile, wanted: &[(Location, u64)]) -> Result<Vec<Wanted>, StoreError> {
    let mut pages: Vec<Wanted> = Vec::with_capacity(wanted.len());
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
        let of_group = group.iter().map(|(place, number)| {
            let entry = entries[(place.slot - first) as usize];
            (entry, *place, *number)
        });
        pages.extend(of_group);
    }
    pages.sort_unstable_by_key(|(entry, ..)| (entry.loan, entry.at_if_stored()));
    Ok(pages)
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
            if from > end.saturating_add(BYTE_GAP) || to.saturating_sub(start) > MOST_BYTES {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::files::ReadFile;
    use std::path::Path;

    /// A file of 10,000 zeroes.
    #[derive(Debug)]
    struct Zeroes;

    impl ReadFile for Zeroes {
        fn len(&self) -> std::io::Result<u64> {
            Ok(10_000)
        }

        fn read_exact_at(&self, bytes: &mut [u8], offset: u64) -> std::io::Result<()> {
            assert!(offset + bytes.len() as u64 <= 10_000);
            bytes.fill(0);
            Ok(())
        }
    }

    impl PageFile for Zeroes {
        fn path(&self) -> &Path {
            Path::new("zeroes")
        }

        fn file_len(&self) -> u64 {
            10_000
        }

        fn file(&self) -> &dyn ReadFile {
            self
        }
    }

    #[test]
    fn what_is_borrowed_from_behind_the_end_of_a_file_is_damage() {
        let read = |places: &[u64]| {
            let wanted = places.iter().zip(0..).map(|(at, slot)| {
                let entry = IndexEntry {
                    addr: 0,
                    at: *at,
                    loan: 1,
                    len: 100,
                    encoding: Encoding::Lz4,
                    crc: 0,
                };
                let place = Location::new(1, slot).expect("a number");
                (entry, place, 0)
            });
            let wanted: Vec<Wanted> = wanted.collect();
            let mut taken = 0;
            let done = read_data(
                &Zeroes,
                &wanted,
                &mut ReadBuffer::default(),
                &mut |found, _| {
                    taken += found.bytes.len();
                    Ok(())
                },
            );
            done.map(|()| taken)
        };
        assert_eq!(read(&[0, 5_000, 9_900]).expect("inside"), 300);
        let last = u64::MAX - 100;
        for places in [
            &[9_901][..],
            &[0, 9_950],
            &[last],
            &[last - 50, last],
            &[9_000, last],
        ] {
            let error = read(places).expect_err("outside");
            assert!(matches!(error, StoreError::Corrupt { .. }), "{error}");
        }
    }
}
