//! Reads a snapshot: manifest and pages.

use super::cache::ImageFile;
use super::chain::SessionFiles;
use super::error::StoreError;
use super::versions::read_decoded;
use crate::codec::Encoding;
use crate::image::{Header, Location, Manifest, PageSource};
use crate::model::{PAGE_SIZE, Page, PageTable, SnapshotId, SnapshotKind};
use serde::Serialize;
use std::collections::HashSet;
use std::sync::{Arc, OnceLock};

/// Where the content of a snapshot's own pages is stored: each page is in one of `known`, `repeated` and `unique`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct StoredContent {
    /// Pages whose content an earlier snapshot of the session has.
    pub known: u64,
    /// Pages that share their bytes with another page of the snapshot.
    pub repeated: u64,
    /// Pages with content of their own: those borrowed and those written.
    pub unique: u64,
    /// Pages whose bytes are in a file of another session, or of another snapshot, that this one has a name of.
    pub borrowed: u64,
    /// Bytes of these.
    pub borrowed_bytes: u64,
    /// Pages whose bytes were written into the snapshot's own file.
    pub written: u64,
    /// Bytes of these.
    pub written_bytes: u64,
}

/// A snapshot open for reading. May be shared between threads.
///
/// Whatever the length of the chain behind it, one page takes two reads: its index entry and its bytes, in the
/// file that the page table names. A page stored as changes takes as many for each version below it, at most
/// [`MOST_VERSIONS`](crate::image::MOST_VERSIONS) in all.
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

    /// How much of what is new in it is stored where.
    pub fn stored_content(&self) -> Result<StoredContent, StoreError> {
        let mut content = StoredContent::default();
        let mut seen = HashSet::new();
        for entry in self.file.index()?.iter() {
            if entry.encoding == Encoding::Reference {
                content.known += 1;
            } else if !seen.insert((entry.loan, entry.at, entry.len)) {
                content.repeated += 1;
            } else if entry.loan != 0 {
                content.borrowed += 1;
                content.borrowed_bytes += u64::from(entry.len);
            } else {
                content.written += 1;
                content.written_bytes += u64::from(entry.len);
            }
        }
        content.unique = content.borrowed + content.written;
        Ok(content)
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

    fn read(
        &self,
        wanted: &[(Location, u64)],
        each: &mut dyn FnMut(u64, &Page),
    ) -> Result<(), StoreError> {
        read_decoded(&self.files, wanted, each).map_err(|error| self.explain(error))
    }
}

impl PageSource for Snapshot {
    type Error = StoreError;

    fn read_page(&self, addr: u64, page: &mut Page) -> Result<bool, StoreError> {
        let Some(location) = self.page_table()?.get(addr) else {
            return Ok(false);
        };
        let place = [(location, addr)];
        self.read(&place, &mut |_, found| *page = *found)?;
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
        self.read(&wanted, each)
    }
}
