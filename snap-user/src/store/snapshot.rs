//! Reads a snapshot: manifest and pages.

use super::buffer::{ALIGN, ReadBuffer};
use super::cache::{ImageFile, PageFile};
use super::chain::{Holder, SessionFiles};
use super::error::StoreError;
use super::pack::PackFile;
use crate::codec::Encoding;
use crate::image::{Header, IndexEntry, Location, Manifest, PageSource};
use crate::model::{PAGE_SIZE, Page, PageTable, SnapshotId, SnapshotKind};
use std::sync::{Arc, OnceLock};

/// Slots this close together are read in one go rather than one by one.
const SLOT_GAP: u32 = 64;
/// Most index entries read in one go.
const MOST_SLOTS: u32 = 1 << 16;
/// Encoded pages this close together are read in one go: reading on over a gap is cheaper than a seek, on
/// devices of 0.1 ms and 1 GB/s up to about this length.
const BYTE_GAP: u64 = 128 << 10;
/// Most page data read in one go, and the size of the buffer for it.
const MOST_BYTES: u64 = 4 << 20;

/// A snapshot open for reading. May be shared between threads.
///
/// Whatever the length of the chain behind it, one page takes two reads: its index entry and its bytes, in the
/// file that the page table names.
#[derive(Debug)]
pub struct Snapshot {
    files: SessionFiles,
    file: Arc<ImageFile>,
    table: OnceLock<PageTable<Location>>,
}

impl Snapshot {
    pub(super) fn open(files: SessionFiles, seq: u32) -> Result<Self, StoreError> {
        let file = files.open(seq)?;
        Ok(Self {
            files,
            file,
            table: OnceLock::new(),
        })
    }

    /// Its name.
    pub fn id(&self) -> SnapshotId {
        self.file.header.id
    }

    /// Everything its header says.
    pub fn header(&self) -> &Header {
        &self.file.header
    }

    /// Reads process state and costs. Write and sync time are 0 if they were not recorded.
    pub fn manifest(&self) -> Result<Manifest, StoreError> {
        let header = &self.file.header;
        let bytes = self.file.section(&header.manifest)?;
        let mut manifest =
            Manifest::decode(&bytes, header).map_err(StoreError::image(&self.file.path))?;
        if let Some(late) = header.late {
            manifest.costs.phases.write_ns = late.write_ns;
            manifest.costs.phases.sync_ns = late.sync_ns;
        }
        Ok(manifest)
    }

    /// Where each of its pages is. Read on first use, then kept.
    pub fn page_table(&self) -> Result<&PageTable<Location>, StoreError> {
        if let Some(table) = self.table.get() {
            return Ok(table);
        }
        let head = self.files.head(self.file.header.seq);
        let table = head.map_err(|error| self.explain(error))?.table;
        Ok(self.table.get_or_init(|| table))
    }

    /// The pages stored in its own file, ascending: what changed since its parent, or everything for a base.
    pub fn stored_pages(&self) -> Result<Vec<u64>, StoreError> {
        Ok(self.file.index()?.iter().map(|entry| entry.addr).collect())
    }

    fn read_at(&self, location: Location, page: &mut Page) -> Result<(), StoreError> {
        let holder = self.files.holder(location.seq.get())?;
        let (file, entry): (&dyn PageFile, _) = match &holder {
            Holder::Snapshot(file) => (&**file, file.entries(location.slot, 1)?[0]),
            Holder::Pack(pack) => (&**pack, pack.entry(location)?),
        };
        let mut bytes = vec![0; entry.len.into()];
        file.read_into(entry.at_if_stored(), &mut bytes)?;
        decode(file, &entry, &bytes, page)
    }

    /// Whoever reads slowly may find that the snapshot was pruned meanwhile, and with it what it alone needed.
    fn explain(&self, error: StoreError) -> StoreError {
        match self.files.is_pruned(self.file.header.seq) {
            true => StoreError::NotFound {
                what: format!("snapshot {}: it was pruned while it was read", self.id()),
            },
            false => error,
        }
    }

    /// Base or delta.
    pub fn kind(&self) -> SnapshotKind {
        self.file.header.kind
    }
}

/// Decodes one page from the bytes of its entry.
fn decode(
    file: &dyn PageFile,
    entry: &IndexEntry,
    bytes: &[u8],
    page: &mut Page,
) -> Result<(), StoreError> {
    if entry.encoding == Encoding::Reference {
        return Err(StoreError::corrupt(
            file.path(),
            "index",
            format!("page {:#x} refers on to another reference", entry.addr),
        ));
    }
    entry
        .decode_page(bytes, page)
        .map_err(StoreError::image(file.path()))
}

impl PageSource for Snapshot {
    type Error = StoreError;

    fn read_page(&self, addr: u64, page: &mut Page) -> Result<bool, StoreError> {
        let Some(location) = self.page_table()?.get(addr) else {
            return Ok(false);
        };
        self.read_at(location, page)
            .map_err(|error| self.explain(error))?;
        Ok(true)
    }

    fn read_pages(
        &self,
        addrs: &[u64],
        each: &mut dyn FnMut(u64, &Page),
    ) -> Result<(), StoreError> {
        let table = self.page_table()?;
        let mut wanted: Vec<(Location, u64)> = addrs
            .iter()
            .filter_map(|addr| Some((table.get(*addr)?, addr & !(PAGE_SIZE - 1))))
            .collect();
        wanted.sort_unstable();
        read_wanted(&self.files, &wanted, &mut |file, entry, bytes, addr| {
            let mut page = [0; PAGE_SIZE as usize];
            decode(file, entry, bytes, &mut page)?;
            each(addr, &page);
            Ok(())
        })
        .map_err(|error| self.explain(error))
    }
}

/// Takes a page as it is stored: its file, its entry, its bytes, and the address it was asked for under.
pub(super) type TakeEncoded<'a> =
    &'a mut dyn FnMut(&dyn PageFile, &IndexEntry, &[u8], u64) -> Result<(), StoreError>;

/// Reads pages as they are stored, `wanted` ascending.
pub(super) fn read_wanted(
    files: &SessionFiles,
    wanted: &[(Location, u64)],
    take: TakeEncoded<'_>,
) -> Result<(), StoreError> {
    let mut buffer = ReadBuffer::default();
    let mut packed: Vec<(IndexEntry, u64)> = Vec::new();
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
                for (location, addr) in in_file {
                    packed.push((pack.entry(*location)?, *addr));
                }
            }
        }
    }
    if let Some(pack) = packs {
        read_packed(&pack, &mut packed, &mut buffer, take)?;
    }
    Ok(())
}

/// Reads pages of a pack, in any order, and forgets them.
fn read_packed(
    pack: &PackFile,
    packed: &mut Vec<(IndexEntry, u64)>,
    buffer: &mut ReadBuffer,
    take: TakeEncoded<'_>,
) -> Result<(), StoreError> {
    packed.sort_unstable_by_key(|(entry, _)| entry.at);
    read_data(pack, packed, buffer, take)?;
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
        let mut pages: Vec<(IndexEntry, u64)> = group
            .iter()
            .map(|(location, addr)| (entries[(location.slot - first) as usize], *addr))
            .collect();
        pages.sort_unstable_by_key(|(entry, _)| entry.at_if_stored());
        read_data(file, &pages, buffer, take)?;
    }
    Ok(())
}

/// Reads the bytes of pages of one file, ascending by place.
fn read_data(
    file: &dyn PageFile,
    pages: &[(IndexEntry, u64)],
    buffer: &mut ReadBuffer,
    take: TakeEncoded<'_>,
) -> Result<(), StoreError> {
    let mut rest = pages;
    while let Some((entry, _)) = rest.first() {
        let start = entry.at_if_stored();
        let mut end = start + u64::from(entry.len);
        let mut count = 1;
        for (next, _) in &rest[1..] {
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
        // Widened to whole blocks, for direct I/O.
        let start = start / ALIGN as u64 * ALIGN as u64;
        let end = end.next_multiple_of(ALIGN as u64);
        let end = end.min(file.file_len());
        let bytes = buffer.bytes((end - start) as usize);
        file.read_into(start, bytes)?;
        for (entry, addr) in group {
            let from = (entry.at_if_stored() - start) as usize;
            let bytes = &bytes[from..from + usize::from(entry.len)];
            take(file, entry, bytes, *addr)?;
        }
    }
    Ok(())
}
