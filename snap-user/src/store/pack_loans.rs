//! The files that a pack borrows pages from: what its snapshots had borrowed, and others still have.

use super::error::StoreError;
use super::files::Files;
use super::loan_file::share;
use super::names;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The files that a pack borrows pages from, while it is being written. Dropped before [`PackLoans::keep`] they leave
/// nothing behind.
pub(super) struct PackLoans<'a> {
    files: &'a dyn Files,
    dir: &'a Path,
    generation: u32,
    /// Where it was found, and its number.
    numbers: BTreeMap<PathBuf, u8>,
    /// The pack's share of all of them.
    share: u64,
    kept: bool,
}

impl<'a> PackLoans<'a> {
    pub(super) fn new(files: &'a dyn Files, dir: &'a Path, generation: u32) -> Self {
        Self {
            files,
            dir,
            generation,
            numbers: BTreeMap::new(),
            share: 0,
            kept: false,
        }
    }

    /// Links to files; what of them there can be no link to is copied, as where an attempt at the same pack has left one.
    pub(super) fn add<'p>(&mut self, paths: impl IntoIterator<Item = &'p PathBuf>) {
        for path in paths {
            let Ok(number) = u8::try_from(self.numbers.len() + 1) else {
                break;
            };
            // Before there is one more: the name that it has here now goes.
            let share = share(self.files, path);
            match self.files.link(path, &self.path(number)) {
                Ok(()) => {
                    self.share += share;
                    self.numbers.insert(path.clone(), number);
                }
                Err(error) => tracing::debug!("no link to {}: {error}", path.display()),
            }
        }
    }

    fn path(&self, number: u8) -> PathBuf {
        let name = names::pack_loan_file(self.generation, number);
        self.dir.join(name)
    }

    /// The number of a file that is borrowed from.
    pub(super) fn number(&self, path: &Path) -> Option<u8> {
        self.numbers.get(path).copied()
    }

    /// Makes what is borrowed durable.
    pub(super) fn sync(&self) -> Result<(), StoreError> {
        for number in self.numbers.values() {
            let path = self.path(*number);
            let synced = self.files.sync_file(&path);
            synced.map_err(StoreError::io("sync", &path))?;
        }
        Ok(())
    }

    /// The pack is there, and they stay with it. Gives its share of them.
    pub(super) fn keep(&mut self) -> u64 {
        self.kept = true;
        self.share
    }
}

impl Drop for PackLoans<'_> {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        for number in self.numbers.values() {
            super::loans::remove(self.files, &self.path(*number));
        }
    }
}
