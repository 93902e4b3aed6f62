//! The files that a snapshot borrows pages from: links to them, in the folder of its own session.

use super::error::StoreError;
use super::files::{Files, ReadFile};
use super::lender::Lender;
use super::loan_file::share;
use super::names::{self, TEMP_PREFIX};
use crate::image::IndexEntry;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A file is borrowed from for so many bytes at least: less is stored sooner than a link.
pub(super) const LEAST_BYTES: u64 = 16 << 10;
/// Files that a snapshot borrows from, at most: whoever reads it has them open.
const MOST: usize = 7;
/// Files that it may borrow from while it is being written: which of them have most of it is known in the end.
const TRIED: usize = 64;

/// One of them, while the snapshot is being written.
#[derive(Debug)]
struct Loan {
    number: u8,
    lender: Arc<Lender>,
    /// Where the link is.
    path: PathBuf,
    /// It, once something of it has been read.
    file: Option<Box<dyn ReadFile>>,
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
        let is_free = |number: &u8| self.loans.iter().all(|loan| loan.number != *number);
        let free = (1..=TRIED as u8).find(is_free);
        let Some(number) = free.filter(|_| is_worth_it) else {
            return Ok(None);
        };
        let name = names::loan_file(self.seq, number);
        let path = self.dir.join(format!("{TEMP_PREFIX}{name}"));
        lender.link(&*self.files, &path)?;
        self.loans.push(Loan {
            number,
            lender: Arc::clone(lender),
            path,
            file: None,
        });
        Ok(Some(number))
    }

    /// The numbers of all of them.
    pub(super) fn numbers(&self) -> BTreeSet<u8> {
        self.loans.iter().map(|loan| loan.number).collect()
    }

    /// Reads bytes of a file that is linked to.
    pub(super) fn read(&mut self, number: u8, at: u64, bytes: &mut [u8]) -> io::Result<()> {
        let loan = self.loans.iter_mut().find(|loan| loan.number == number);
        let loan = loan.ok_or(io::ErrorKind::NotFound)?;
        let file = match &mut loan.file {
            Some(file) => file,
            empty => empty.insert(self.files.open(&loan.path)?),
        };
        file.read_exact_at(bytes, at)
    }

    /// Lets go of one of which nothing is borrowed.
    pub(super) fn let_go(&mut self, number: u8) {
        if let Some(at) = self.loans.iter().position(|loan| loan.number == number) {
            remove(&*self.files, &self.loans.remove(at).path);
        }
    }

    /// Numbers of those of which so little is borrowed that it had better be the snapshot's own, and of those that are too
    /// many.
    pub(super) fn unwanted(&self, entries: &[IndexEntry]) -> Vec<u8> {
        let mut used = [0u64; TRIED + 1];
        for entry in entries.iter().filter(|entry| entry.loan != 0) {
            used[usize::from(entry.loan)] += u64::from(entry.len);
        }
        let used = |loan: &Loan| used[usize::from(loan.number)];
        let is_small = |loan: &&Loan| {
            let names = || self.files.names_of(&loan.path).unwrap_or(1);
            used(loan) < LEAST_BYTES || !loan.lender.is_worth(used(loan), names())
        };
        let borrowed = self.loans.iter().filter(|loan| used(loan) > 0);
        let (small, mut large): (Vec<&Loan>, Vec<&Loan>) = borrowed.partition(is_small);
        large.sort_unstable_by_key(|loan| std::cmp::Reverse(used(loan)));
        let too_many = large.into_iter().skip(MOST);
        small
            .into_iter()
            .chain(too_many)
            .map(|loan| loan.number)
            .collect()
    }

    /// Has `put` store what is borrowed of these; it says where.
    pub(super) fn take_over(
        &self,
        numbers: &[u8],
        entries: &mut [IndexEntry],
        put: &mut dyn FnMut(&[u8]) -> Result<u64, StoreError>,
    ) -> Result<(), StoreError> {
        let is_meant = |loan: &&Loan| numbers.contains(&loan.number);
        for loan in self.loans.iter().filter(is_meant) {
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

    /// Lets go of those that nothing is borrowed from after all, and numbers the others from 1 on.
    pub(super) fn number_anew(&mut self, entries: &mut [IndexEntry]) {
        let mut numbers = [0u8; TRIED + 1];
        for entry in &*entries {
            numbers[usize::from(entry.loan)] = 1;
        }
        let (mut used, unused): (Vec<_>, Vec<_>) = std::mem::take(&mut self.loans)
            .into_iter()
            .partition(|loan| numbers[usize::from(loan.number)] != 0);
        for (loan, number) in used.iter_mut().zip(1..) {
            numbers[usize::from(loan.number)] = number;
            loan.number = number;
        }
        for entry in entries.iter_mut().filter(|entry| entry.loan != 0) {
            entry.loan = numbers[usize::from(entry.loan)];
        }
        self.loans = used;
        for loan in &unused {
            remove(&*self.files, &loan.path);
        }
    }

    /// Waits until the files hold all that these entries borrow, and makes that durable if it is to be.
    pub(super) fn settle(
        &mut self,
        entries: &[IndexEntry],
        is_durable: bool,
    ) -> Result<(), StoreError> {
        let mut ends = [0u64; TRIED + 1];
        for entry in entries.iter().filter(|entry| entry.loan != 0) {
            let end = &mut ends[usize::from(entry.loan)];
            *end = (*end).max(entry.at + u64::from(entry.len));
        }
        for loan in &self.loans {
            loan.wait_for(ends[usize::from(loan.number)])?;
            if is_durable && !loan.lender.is_durable() {
                let written = loan.lender.written();
                let done = self.files.sync_file(&loan.path);
                loan.lender.synced(written, done.is_ok());
                if done.is_err() {
                    // Nobody else is to fail by it.
                    loan.lender.close();
                }
                done.map_err(StoreError::io("sync", &loan.path))?;
            }
        }
        Ok(())
    }

    /// Gives the links their names. What the snapshot's share of them takes.
    pub(super) fn publish(&mut self) -> Result<u64, StoreError> {
        let mut bytes = 0;
        for loan in &mut self.loans {
            let path = self.dir.join(names::loan_file(self.seq, loan.number));
            let renamed = self.files.rename(&loan.path, &path);
            renamed.map_err(StoreError::io("publish", &path))?;
            loan.path = path;
            bytes += share(&*self.files, &loan.path);
        }
        Ok(bytes)
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

pub(super) fn remove(files: &dyn Files, path: &Path) {
    if let Err(error) = files.remove_file(path) {
        // The next writer of the session removes it.
        tracing::debug!("{} stays: {error}", path.display());
    }
}
