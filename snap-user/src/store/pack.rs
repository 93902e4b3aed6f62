//! Packs: reading one, and writing the next.

use super::buffer::WriteBuffer;
use super::cache::PageFile;
use super::chain::SessionFiles;
use super::encoded::{Encoded, entries_of, read_wanted};
use super::error::StoreError;
use super::files::{Files, ReadFile};
use super::loan_file::OpenLoans;
use super::names::{self, TEMP_PREFIX};
use super::pack_loans::PackLoans;
use super::repeats::Repeats;
use super::temp::TempFile;
use super::versions::read_decoded;
use crate::codec::{Encoding, Scratch};
use crate::image::{
    EncodedBatch, Ghost, IndexEntry, Location, PACK_HEADER_LEN, PackEntry, PackHeader, Section,
    SessionId, apply_runs, finish_pack,
};
use crate::model::PageTable;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

/// Pages whose names are looked up together: 16 MiB of them.
const STEP: usize = 4096;

/// An open pack.
#[derive(Debug)]
pub(super) struct PackFile {
    path: PathBuf,
    pub(super) header: PackHeader,
    file: Box<dyn ReadFile>,
    loans: OpenLoans,
    absorbed: Vec<(u32, u32)>,
    /// Read on first use.
    entries: OnceLock<Vec<PackEntry>>,
    ghosts: OnceLock<Vec<Ghost>>,
}

impl PackFile {
    /// Opens a pack and reads which snapshots it stands for.
    pub(super) fn open(
        files: &dyn Files,
        path: &Path,
        session: SessionId,
    ) -> Result<Self, StoreError> {
        let file = files.open(path).map_err(StoreError::io("open", path))?;
        let len = file.len().map_err(StoreError::io("stat", path))?;
        let mut bytes = vec![0; (PACK_HEADER_LEN as u64).min(len) as usize];
        file.read_exact_at(&mut bytes, 0)
            .map_err(StoreError::io("read the header of", path))?;
        let header = PackHeader::decode(&bytes, len).map_err(StoreError::image(path))?;
        let named = path
            .file_name()
            .and_then(|name| names::parse_pack_file(name.to_str()?));
        if header.session != session || named != Some(header.generation) {
            return Err(StoreError::corrupt(
                path,
                "pack header",
                "belongs under another name: the file was renamed or copied",
            ));
        }
        let mut pack = Self {
            path: path.to_owned(),
            file,
            loans: OpenLoans::default(),
            absorbed: Vec::new(),
            entries: OnceLock::new(),
            ghosts: OnceLock::new(),
            header,
        };
        let bytes = pack.section(&pack.header.absorbed)?;
        pack.absorbed = pack
            .header
            .decode_absorbed(&bytes)
            .map_err(StoreError::image(path))?;
        Ok(pack)
    }

    /// The file that has the pages whose entries name it by this number.
    pub(super) fn page_file(
        &self,
        files: &dyn Files,
        number: u8,
    ) -> Result<&dyn PageFile, StoreError> {
        let name = || names::pack_loan_file(self.header.generation, number);
        self.loans.page_file(self, files, number, name)
    }

    fn section(&self, section: &Section) -> Result<Vec<u8>, StoreError> {
        let mut bytes = vec![0; section.len as usize];
        self.read_into(section.offset, &mut bytes)?;
        Ok(bytes)
    }

    /// The snapshot with this number is gone, and this pack has what others need of it.
    pub(super) fn absorbs(&self, seq: u32) -> bool {
        let after = self.absorbed.partition_point(|range| range.1 < seq);
        self.absorbed.get(after).is_some_and(|range| range.0 <= seq)
    }

    /// Sequence numbers that it stands for.
    pub(super) fn absorbed(&self) -> &[(u32, u32)] {
        &self.absorbed
    }

    /// Its pages, ascending by name.
    pub(super) fn entries(&self) -> Result<&[PackEntry], StoreError> {
        if let Some(entries) = self.entries.get() {
            return Ok(entries);
        }
        let bytes = self.section(&self.header.entries)?;
        let entries = self
            .header
            .decode_entries(&bytes)
            .map_err(StoreError::image(&self.path))?;
        Ok(self.entries.get_or_init(|| entries))
    }

    /// A page by its name.
    pub(super) fn entry(&self, name: Location) -> Result<IndexEntry, StoreError> {
        let entries = self.entries()?;
        let found = entries.binary_search_by_key(&name, |entry| entry.name);
        let entry = found.map(|at| entries[at]).map_err(|_| {
            StoreError::corrupt(
                &self.path,
                "pack entries",
                format!("no page @{}:{}", name.seq, name.slot),
            )
        })?;
        Ok(entry.in_index())
    }

    /// The snapshots whose page tables it has.
    pub(super) fn ghosts(&self) -> Result<&[Ghost], StoreError> {
        if let Some(ghosts) = self.ghosts.get() {
            return Ok(ghosts);
        }
        let (ghosts, runs) = (
            self.section(&self.header.ghosts)?,
            self.section(&self.header.runs)?,
        );
        let ghosts = self
            .header
            .decode_ghosts(&ghosts, &runs)
            .map_err(StoreError::image(&self.path))?;
        Ok(self.ghosts.get_or_init(|| ghosts))
    }

    /// The page table of a snapshot that is gone, if it has it.
    pub(super) fn ghost(&self, seq: u32) -> Result<Option<PageTable<Location>>, StoreError> {
        let ghosts = self.ghosts()?;
        Ok(ghosts.iter().find(|ghost| ghost.seq == seq).map(|ghost| {
            let mut table = PageTable::new();
            apply_runs(&mut table, &ghost.runs);
            table
        }))
    }
}

impl PageFile for PackFile {
    fn path(&self) -> &Path {
        &self.path
    }

    fn file_len(&self) -> u64 {
        self.header.file_len()
    }

    fn file(&self) -> &dyn ReadFile {
        &*self.file
    }
}

/// A pack being written. Dropped without [`PackWriter::publish`] it leaves nothing behind.
pub(super) struct PackWriter<'a> {
    files: &'a dyn Files,
    dir: &'a Path,
    session: SessionId,
    generation: u32,
    out: TempFile,
    data_len: u64,
    entries: Vec<PackEntry>,
    /// Pages that it has already.
    repeats: Repeats,
    loans: PackLoans<'a>,
}

impl<'a> PackWriter<'a> {
    /// Begins a pack in the folder of a session.
    pub(super) fn begin(
        files: &'a Arc<dyn Files>,
        dir: &'a Path,
        session: SessionId,
        generation: u32,
    ) -> Result<Self, StoreError> {
        let temp = dir.join(format!("{TEMP_PREFIX}pack-{generation:08}"));
        // Left by one that failed: whoever writes packs holds the lock.
        let _ = files.remove_file(&temp);
        Ok(Self {
            files: &**files,
            dir,
            session,
            generation,
            out: TempFile::create(files, temp, WriteBuffer::default(), PACK_HEADER_LEN)?,
            data_len: 0,
            entries: Vec::new(),
            repeats: Repeats::default(),
            loans: PackLoans::new(&**files, dir, generation),
        })
    }

    /// From here on pages of these files are borrowed, rather than copied.
    pub(super) fn borrow_from<'p>(&mut self, paths: impl IntoIterator<Item = &'p PathBuf>) {
        self.loans.add(paths);
    }

    /// Adds a page under its old name, as it is stored.
    pub(super) fn add(&mut self, page: &Encoded<'_>) -> Result<(), StoreError> {
        let IndexEntry {
            addr,
            encoding,
            crc,
            ..
        } = page.entry;
        if !encoding.needs_previous()
            && let Some(loan) = self.loans.number(page.file.path())
        {
            self.entries.push(PackEntry {
                name: page.place,
                addr,
                at: page.entry.at,
                loan,
                len: page.entry.len,
                encoding,
                crc,
            });
            return Ok(());
        }
        self.put(page.place, addr, encoding, crc, page.bytes)
    }

    fn put(
        &mut self,
        name: Location,
        addr: u64,
        encoding: Encoding,
        crc: u32,
        bytes: &[u8],
    ) -> Result<(), StoreError> {
        let next = PACK_HEADER_LEN as u64 + self.data_len;
        let known = self.repeats.place(encoding, bytes, next);
        self.entries.push(PackEntry {
            name,
            addr,
            at: known.unwrap_or(next),
            loan: 0,
            len: bytes.len() as u16,
            encoding,
            crc,
        });
        if known.is_some() {
            return Ok(());
        }
        self.data_len += bytes.len() as u64;
        self.out.extend(bytes)
    }

    /// As [`PackWriter::add_all`], but none of them as the changes to a version that is elsewhere.
    pub(super) fn add_whole(
        &mut self,
        files: &SessionFiles,
        places: &[Location],
    ) -> Result<(), StoreError> {
        let mut scratch = Scratch::default();
        let mut batch = EncodedBatch::default();
        for piece in places.chunks(STEP) {
            let mut addrs = Vec::with_capacity(piece.len());
            entries_of(files, piece, &mut |_, entry, _| addrs.push(entry.addr))?;
            let wanted: Vec<(Location, u64)> = piece.iter().copied().zip(0..).collect();
            let mut added = Ok(());
            read_decoded(files, &wanted, &mut |number, page| {
                let at = number as usize;
                batch.reset(0);
                batch.push(addrs[at], page, &mut scratch);
                let one = batch.pages()[0];
                if added.is_ok() {
                    added = self.put(piece[at], addrs[at], one.encoding, one.crc, batch.bytes());
                }
            })?;
            added?;
        }
        Ok(())
    }

    /// Adds pages, ascending by name, as the files of a session store them.
    pub(super) fn add_all(
        &mut self,
        files: &SessionFiles,
        places: &[Location],
    ) -> Result<(), StoreError> {
        for piece in places.chunks(STEP) {
            let wanted: Vec<(Location, u64)> = piece.iter().map(|place| (*place, 0)).collect();
            read_wanted(files, &wanted, &mut |page, _| match page.entry.encoding {
                // Nothing refers to one, so this one is an error, and `previous` says which.
                Encoding::Reference => page.previous().map(drop),
                _ => self.add(page),
            })?;
        }
        Ok(())
    }

    /// Completes the pack and makes it durable and visible; a crash leaves it whole or not at all. Gives its length, with
    /// its share of what it borrows.
    pub(super) fn publish(
        mut self,
        absorbed: &[(u32, u32)],
        ghosts: &[Ghost],
    ) -> Result<u64, StoreError> {
        let mut entries = std::mem::take(&mut self.entries);
        entries.sort_unstable_by_key(|entry| entry.name);
        let (head, tail) = finish_pack(
            self.session,
            self.generation,
            self.data_len,
            &entries,
            absorbed,
            ghosts,
        );
        self.out.extend(&tail)?;
        self.out.flush()?;
        self.out.rewrite(&head, 0)?;
        self.out.sync()?;
        self.loans.sync()?;
        let path = self.dir.join(names::pack_file(self.generation));
        self.out.rename(&path)?;
        if let Err(error) = self.files.sync_dir(self.dir) {
            // Not surely durable: what it stands for must not be removed, so it must not stand for anything.
            if self.files.remove_file(&path).is_err() {
                self.loans.keep();
            }
            return Err(StoreError::io("sync folder", self.dir)(error));
        }
        Ok(self.out.flushed() + self.loans.keep())
    }
}
