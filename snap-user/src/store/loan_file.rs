//! Files that pages are borrowed from: reading them, and what they take.

use super::cache::PageFile;
use super::chain::Listing;
use super::directory::Store;
use super::error::StoreError;
use super::files::{Files, ReadFile};
use super::names;
use crate::image::SessionId;
use std::path::{Path, PathBuf};

/// A file that pages are borrowed from, open for reading.
#[derive(Debug)]
pub(super) struct LoanFile {
    pub(super) number: u8,
    path: PathBuf,
    len: u64,
    file: Box<dyn ReadFile>,
}

impl LoanFile {
    pub(super) fn open(files: &dyn Files, path: PathBuf, number: u8) -> Result<Self, StoreError> {
        let file = files.open(&path).map_err(StoreError::io("open", &path))?;
        let len = file.len().map_err(StoreError::io("stat", &path))?;
        Ok(Self {
            number,
            path,
            len,
            file,
        })
    }
}

/// The file that has what entries with this number name; `own` where that is none of the loans.
pub(super) fn page_file<'a>(
    own: &'a dyn PageFile,
    loans: &'a [LoanFile],
    number: u8,
) -> Result<&'a dyn PageFile, StoreError> {
    if number == 0 {
        return Ok(own);
    }
    let found = loans.iter().find(|loan| loan.number == number);
    found.map(|loan| loan as &dyn PageFile).ok_or_else(|| {
        StoreError::corrupt(
            own.path(),
            "page data",
            format!("borrowed from file {number}, which is missing"),
        )
    })
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

    /// Bytes of a session's pack, with its share of the files that it borrows from; 0 without one.
    pub(super) fn pack_bytes(&self, listing: &Listing) -> u64 {
        let Some(pack) = &listing.pack else { return 0 };
        let shares = pack
            .loans
            .iter()
            .map(|loan| share(&*self.files, loan.path()));
        pack.header.file_len() + shares.sum::<u64>()
    }
}
