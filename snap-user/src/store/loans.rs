//! The files that a snapshot borrows pages from: links to them, in the folder of its own session.

use super::cache::PageFile;
use super::chain::Listing;
use super::directory::Store;
use super::error::StoreError;
use super::files::{Files, ReadFile};
use super::lender::Lender;
use super::names::{self, TEMP_PREFIX};
use crate::image::{IndexEntry, SessionId};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A file is borrowed from for this share of its bytes at least: for as long as the snapshot is there it is kept whole.
const LEAST_SHARE: u64 = 8;

/// One of them, while the snapshot is being written.
#[derive(Debug)]
struct Loan {
    number: u8,
    lender: Arc<Lender>,
    /// Where the link is.
    path: PathBuf,
}

impl Loan {
    /// Waits until the file holds its first `bytes`.
    fn wait_for(&self, bytes: u64) -> Result<(), StoreError> {
        match self.lender.wait_for(bytes) {
            true => Ok(()),
            false => Err(StoreError::Misuse {
                why: format!(
                    "{}, which has pages of it, could not be written: take it again",
                    self.lender
                ),
            }),
        }
    }
}

/// Those of a snapshot that is being written. Dropped before [`Loans::keep`] they leave nothing behind.
#[derive(Debug)]
pub(super) struct Loans {
    files: Arc<dyn Files>,
    dir: PathBuf,
    seq: u32,
    loans: Vec<Loan>,
}

impl Loans {
    pub(super) fn new(files: &Arc<dyn Files>, dir: &Path, seq: u32) -> Self {
        Self {
            files: Arc::clone(files),
            dir: dir.to_owned(),
            seq,
            loans: Vec::new(),
        }
    }

    /// The number of a lender, which is linked to now if that is worth it.
    pub(super) fn number(
        &mut self,
        lender: &Arc<Lender>,
        is_worth_it: bool,
    ) -> io::Result<Option<u8>> {
        if let Some(loan) = self
            .loans
            .iter()
            .find(|loan| loan.lender.id() == lender.id())
        {
            return Ok(Some(loan.number));
        }
        let next = u8::try_from(self.loans.len() + 1);
        let Some(number) = next.ok().filter(|_| is_worth_it) else {
            return Ok(None);
        };
        let name = names::loan_file(self.seq, number);
        let path = self.dir.join(format!("{TEMP_PREFIX}{name}"));
        lender.link(&*self.files, &path)?;
        self.loans.push(Loan {
            number,
            lender: Arc::clone(lender),
            path,
        });
        Ok(Some(number))
    }

    /// Those of which so little is borrowed that it had better be the snapshot's own.
    fn small(&self, entries: &[IndexEntry]) -> Vec<usize> {
        let mut used = [0u64; 256];
        for entry in entries.iter().filter(|entry| entry.loan != 0) {
            used[usize::from(entry.loan)] += u64::from(entry.len);
        }
        let is_small = |loan: &Loan| {
            let used = used[usize::from(loan.number)];
            used > 0 && used * LEAST_SHARE < loan.lender.written()
        };
        let numbered = self.loans.iter().enumerate();
        numbered
            .filter(|(_, loan)| is_small(loan))
            .map(|(n, _)| n)
            .collect()
    }

    /// Whether [`Loans::take_over`] has something to do.
    pub(super) fn has_small(&self, entries: &[IndexEntry]) -> bool {
        !self.small(entries).is_empty()
    }

    /// Has `put` store what is borrowed of a file of which that is little; it says where.
    pub(super) fn take_over(
        &self,
        entries: &mut [IndexEntry],
        put: &mut dyn FnMut(&[u8]) -> Result<u64, StoreError>,
    ) -> Result<(), StoreError> {
        for n in self.small(entries) {
            let loan = &self.loans[n];
            let file = self.files.open(&loan.path);
            let file = file.map_err(StoreError::io("open", &loan.path))?;
            let mut moved: BTreeMap<u64, u64> = BTreeMap::new();
            let mut bytes = Vec::new();
            for entry in entries.iter_mut().filter(|entry| entry.loan == loan.number) {
                let at = match moved.get(&entry.at) {
                    Some(at) => *at,
                    None => {
                        loan.wait_for(entry.at + u64::from(entry.len))?;
                        bytes.resize(usize::from(entry.len), 0);
                        let read = file.read_exact_at(&mut bytes, entry.at);
                        read.map_err(StoreError::io("read", &loan.path))?;
                        let at = put(&bytes)?;
                        moved.insert(entry.at, at);
                        at
                    }
                };
                (entry.at, entry.loan) = (at, 0);
            }
        }
        Ok(())
    }

    /// Waits until the files hold all that these entries borrow, and makes that durable if it is to be; those that
    /// nothing is borrowed from after all are let go.
    pub(super) fn settle(
        &mut self,
        entries: &[IndexEntry],
        is_durable: bool,
    ) -> Result<(), StoreError> {
        let mut ends = [0u64; 256];
        for entry in entries.iter().filter(|entry| entry.loan != 0) {
            let end = &mut ends[usize::from(entry.loan)];
            *end = (*end).max(entry.at + u64::from(entry.len));
        }
        let (used, unused): (Vec<_>, Vec<_>) = std::mem::take(&mut self.loans)
            .into_iter()
            .partition(|loan| ends[usize::from(loan.number)] > 0);
        self.loans = used;
        for loan in &unused {
            remove(&*self.files, &loan.path);
        }
        for loan in &self.loans {
            loan.wait_for(ends[usize::from(loan.number)])?;
            if is_durable {
                let synced = self.files.sync_file(&loan.path);
                synced.map_err(StoreError::io("sync", &loan.path))?;
            }
        }
        Ok(())
    }

    /// Gives the links their names.
    pub(super) fn publish(&mut self) -> Result<(), StoreError> {
        for loan in &mut self.loans {
            let path = self.dir.join(names::loan_file(self.seq, loan.number));
            let renamed = self.files.rename(&loan.path, &path);
            renamed.map_err(StoreError::io("publish", &path))?;
            loan.path = path;
        }
        Ok(())
    }

    /// The snapshot is there, and they stay with it.
    pub(super) fn keep(&mut self) {
        self.loans.clear();
    }
}

impl Drop for Loans {
    fn drop(&mut self) {
        for loan in &self.loans {
            remove(&*self.files, &loan.path);
        }
    }
}

fn remove(files: &dyn Files, path: &Path) {
    if let Err(error) = files.remove_file(path) {
        // The next writer of the session removes it.
        tracing::debug!("{} stays: {error}", path.display());
    }
}

impl Store {
    /// Removes what snapshots borrow from that were not published, or are gone. The caller holds the session's lock, and
    /// writes nothing yet.
    pub(super) fn remove_orphans(&self, dir: &Path, listing: &Listing) -> Result<(), StoreError> {
        let without = |seq: &u32| !listing.by_seq.contains_key(seq);
        for (seq, numbers) in listing.loans.iter().filter(|(seq, _)| without(seq)) {
            for number in numbers {
                let path = dir.join(names::loan_file(*seq, *number));
                let removed = self.files.remove_file(&path);
                removed.map_err(StoreError::io("remove", &path))?;
            }
        }
        Ok(())
    }

    /// A snapshot's share of the files that it borrows from: what each takes, divided by all who have it.
    pub(super) fn loan_bytes(&self, session: SessionId, seq: u32, listing: &Listing) -> u64 {
        let dir = self.session_path(session);
        let share = |number: &u8| {
            let path = dir.join(names::loan_file(seq, *number));
            let len = self.files.stat(&path).ok()?.len;
            Some(len / self.files.names_of(&path).ok()?.max(1))
        };
        let numbers = listing.loans.get(&seq);
        numbers.map_or(0, |numbers| numbers.iter().filter_map(share).sum())
    }
}

/// A file that pages are borrowed from, open for reading.
#[derive(Debug)]
pub(super) struct LoanFile {
    pub(super) number: u8,
    path: PathBuf,
    len: u64,
    file: Box<dyn ReadFile>,
}

impl LoanFile {
    pub(super) fn open(
        files: &dyn Files,
        dir: &Path,
        seq: u32,
        number: u8,
    ) -> Result<Self, StoreError> {
        let path = dir.join(names::loan_file(seq, number));
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
