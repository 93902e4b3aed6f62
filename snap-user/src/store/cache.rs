//! Open snapshot files, a bounded number of them.

use super::error::StoreError;
use super::files::{Files, ReadFile};
use super::loan_file::OpenLoans;
use super::names;
use crate::image::{ENTRY_LEN, HEADER_LEN, Header, IndexEntry, Section, SessionId, decode_index};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// Files kept open by one store, each with the few that pages of it were read from. Below the usual limit of 1024 descriptors.
const OPEN_FILES: usize = 64;

/// An open snapshot file whose header is checked.
#[derive(Debug)]
pub(super) struct ImageFile {
    pub(super) path: PathBuf,
    pub(super) header: Header,
    file: Box<dyn ReadFile>,
    loans: OpenLoans,
}

impl ImageFile {
    /// Opens a file and checks its header and length.
    pub(super) fn open(files: &dyn Files, path: &Path) -> Result<Self, StoreError> {
        let file = files.open(path).map_err(StoreError::io("open", path))?;
        let len = file.len().map_err(StoreError::io("stat", path))?;
        let mut bytes = [0; HEADER_LEN];
        if len < HEADER_LEN as u64 {
            return Err(StoreError::corrupt(
                path,
                "header",
                format!("file of {len} bytes is too short for one"),
            ));
        }
        file.read_exact_at(&mut bytes, 0)
            .map_err(StoreError::io("read the header of", path))?;
        let header = Header::decode(&bytes, len).map_err(StoreError::image(path))?;
        Ok(Self {
            path: path.to_owned(),
            header,
            file,
            loans: OpenLoans::default(),
        })
    }

    /// The file that has the pages whose entries name it by this number.
    pub(super) fn page_file(
        &self,
        files: &dyn Files,
        number: u8,
    ) -> Result<&dyn PageFile, StoreError> {
        let name = || names::loan_file(self.header.seq, number);
        self.loans.page_file(self, files, number, name)
    }

    /// Reads `len` bytes, whose place the header has vouched for.
    pub(super) fn read(&self, offset: u64, len: usize) -> Result<Vec<u8>, StoreError> {
        let mut bytes = vec![0; len];
        self.read_into(offset, &mut bytes)?;
        Ok(bytes)
    }

    /// Reads a section whole. Its length was held against the file's when the header was decoded.
    pub(super) fn section(&self, section: &Section) -> Result<Vec<u8>, StoreError> {
        self.read(section.offset, section.len as usize)
    }

    /// Reads and checks the whole index.
    pub(super) fn index(&self) -> Result<Vec<IndexEntry>, StoreError> {
        let bytes = self.section(&self.header.index)?;
        decode_index(&bytes, &self.header).map_err(StoreError::image(&self.path))
    }

    /// Reads the entries of slots `first..first + count`, without the rest of the index.
    pub(super) fn entries(&self, first: u32, count: u32) -> Result<Vec<IndexEntry>, StoreError> {
        let end = u64::from(first) + u64::from(count);
        if end > self.header.entries() {
            return Err(StoreError::corrupt(
                &self.path,
                "index",
                format!("no slot {}: it has {}", end - 1, self.header.entries()),
            ));
        }
        let at = self.header.index.offset + u64::from(first) * ENTRY_LEN as u64;
        let bytes = self.read(at, count as usize * ENTRY_LEN)?;
        bytes
            .chunks(ENTRY_LEN)
            .map(|raw| IndexEntry::decode(raw, &self.header).map_err(StoreError::image(&self.path)))
            .collect()
    }
}

/// A file that has encoded pages.
pub(super) trait PageFile {
    /// Where it is.
    fn path(&self) -> &Path;
    /// Its length in bytes.
    fn file_len(&self) -> u64;
    /// The file itself.
    fn file(&self) -> &dyn ReadFile;

    /// Fills `bytes` from `offset`.
    fn read_into(&self, offset: u64, bytes: &mut [u8]) -> Result<(), StoreError> {
        self.file()
            .read_exact_at(bytes, offset)
            .map_err(StoreError::io("read", self.path()))
    }
}

impl PageFile for ImageFile {
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

/// Least recently used files are closed first.
#[derive(Debug, Default)]
pub(super) struct FileCache {
    recent: Mutex<Vec<(SessionId, u32, Arc<ImageFile>)>>,
}

impl FileCache {
    /// The open file of a snapshot, opened by `open` if need be.
    pub(super) fn get(
        &self,
        session: SessionId,
        seq: u32,
        open: impl FnOnce() -> Result<ImageFile, StoreError>,
    ) -> Result<Arc<ImageFile>, StoreError> {
        // A panic elsewhere cannot leave the list half-changed in a way that matters: it is only a cache.
        let lock = || self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        {
            let mut recent = lock();
            if let Some(at) = recent
                .iter()
                .rposition(|(s, q, _)| (*s, *q) == (session, seq))
            {
                let hit = recent.remove(at);
                let file = Arc::clone(&hit.2);
                recent.push(hit);
                return Ok(file);
            }
        }
        let file = Arc::new(open()?);
        let mut recent = lock();
        if recent.len() >= OPEN_FILES {
            recent.remove(0);
        }
        recent.push((session, seq, Arc::clone(&file)));
        Ok(file)
    }

    /// Closes files that are gone.
    pub(super) fn forget(&self, session: SessionId, gone: impl Fn(u32) -> bool) {
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        recent.retain(|(owner, seq, _)| *owner != session || !gone(*seq));
    }
}
