//! Files that pages are borrowed from: reading them, and what they take.

use super::cache::PageFile;
use super::chain::Listing;
use super::directory::Store;
use super::error::StoreError;
use super::files::{Files, ReadFile};
use super::meta::SnapshotMeta;
use super::names;
use crate::image::{MOST_LOANS, SessionId};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// A file that pages are borrowed from, open for reading.
#[derive(Debug)]
pub(super) struct LoanFile {
    path: PathBuf,
    len: u64,
    file: Box<dyn ReadFile>,
}

impl LoanFile {
    pub(super) fn open(files: &dyn Files, path: PathBuf) -> Result<Self, StoreError> {
        let file = files.open(&path).map_err(StoreError::io("open", &path))?;
        let len = file.len().map_err(StoreError::io("stat", &path))?;
        Ok(Self { path, len, file })
    }
}

/// Those of a snapshot or a pack, each opened when something of it is read first: a listing reads nothing.
#[derive(Debug, Default)]
pub(super) struct OpenLoans([OnceLock<LoanFile>; MOST_LOANS]);

impl OpenLoans {
    /// The file that has what entries of the borrower name by this number: the borrower itself for 0, else the one that
    /// `name` names.
    ///
    /// # Errors
    /// It is missing together with the borrower, which goes first: that was removed since it was opened. Without it, that
    /// is damaged.
    pub(super) fn page_file<'a>(
        &'a self,
        borrower: &'a dyn PageFile,
        files: &dyn Files,
        number: u8,
        name: impl FnOnce() -> String,
    ) -> Result<&'a dyn PageFile, StoreError> {
        let Some(at) = usize::from(number).checked_sub(1) else {
            return Ok(borrower);
        };
        let is_missing = || {
            let what = format!("pages are borrowed from file {number}, which is missing");
            StoreError::corrupt(borrower.path(), "index", what)
        };
        let slot = self.0.get(at).ok_or_else(is_missing)?;
        if let Some(open) = slot.get() {
            return Ok(open);
        }
        match LoanFile::open(files, borrower.path().with_file_name(name())) {
            Err(error) if error.is_missing() && files.stat(borrower.path()).is_ok() => {
                Err(is_missing())
            }
            opened => opened.map(|opened| slot.get_or_init(|| opened) as &dyn PageFile),
        }
    }
}

impl PageFile for LoanFile {
    fn path(&self) -> &Path {
        &self.path
    }

    fn file_len(&self) -> u64 {
        self.len
    }

    fn file(&self) -> &dyn ReadFile {
        &*self.file
    }
}

/// What each of those who have a file takes of the room that it takes; 0 for one that is gone.
pub(super) fn share(files: &dyn Files, path: &Path) -> u64 {
    let len = files.stat(path).map_or(0, |stamp| stamp.len);
    len / files.names_of(path).unwrap_or(1).max(1)
}

impl Store {
    /// Removes what snapshots borrow from that were not published, or are gone. The caller holds the session's lock, and
    /// writes nothing yet.
    pub(super) fn remove_orphans(&self, dir: &Path, listing: &Listing) -> Result<(), StoreError> {
        let without = |seq: &u32| !listing.by_seq.contains_key(seq);
        let of_snapshots = listing.loans.iter().filter(|(seq, _)| without(seq));
        let of_snapshots = of_snapshots.flat_map(|(seq, numbers)| {
            let names = numbers.iter().map(|number| names::loan_file(*seq, *number));
            names.collect::<Vec<_>>()
        });
        for name in of_snapshots.chain(listing.unfinished.iter().cloned()) {
            let path = dir.join(name);
            let removed = self.files.remove_file(&path);
            removed.map_err(StoreError::io("remove", &path))?;
        }
        Ok(())
    }

    /// A snapshot's share of its own file, which others may borrow from.
    pub(super) fn own_bytes(&self, meta: &SnapshotMeta) -> u64 {
        let names = self.files.names_of(&meta.path).unwrap_or(1);
        meta.file_bytes / names.max(1)
    }

    /// A snapshot's share of the files that it borrows from: what each takes, divided by all who have it.
    pub(super) fn loan_bytes(&self, session: SessionId, seq: u32, listing: &Listing) -> u64 {
        let dir = self.session_path(session);
        let path = |number: &u8| dir.join(names::loan_file(seq, *number));
        let numbers = listing.loans.get(&seq);
        numbers.map_or(0, |numbers| {
            numbers
                .iter()
                .map(path)
                .map(|path| share(&*self.files, &path))
                .sum()
        })
    }

    /// A session's share of its pack, with that of the files that it borrows from; 0 without one.
    pub(super) fn pack_bytes(&self, session: SessionId, listing: &Listing) -> u64 {
        let Some(pack) = &listing.pack else { return 0 };
        let dir = self.session_path(session);
        let generation = pack.header.generation;
        let path = |number: &u8| dir.join(names::pack_loan_file(generation, *number));
        let paths = listing.pack_loans.iter().map(path);
        let own = dir.join(names::pack_file(generation));
        let own = pack.header.file_len() / self.files.names_of(&own).unwrap_or(1).max(1);
        own + paths.map(|path| share(&*self.files, &path)).sum::<u64>()
    }
}
