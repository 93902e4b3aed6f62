//! A file that others borrow pages from, also while it is being written.

use super::files::Files;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Of a file that is written beside whoever borrows from it, this share is borrowed at least.
const LEAST_SHARE: u64 = 64;

#[derive(Debug)]
struct State {
    /// What it is called; for messages once it is gone.
    path: PathBuf,
    /// It is not called so any more, and another file may be.
    gone: bool,
    /// Bytes of it that are in the file.
    written: u64,
    /// Somebody has borrowed from it.
    lent: bool,
    /// All that is in the file is on the disk.
    durable: bool,
    /// A sync of it has failed, which the kernel says once (fsync(2)): nobody knows what of it is on the disk.
    doubtful: bool,
    /// Nothing more is written.
    over: bool,
}

/// A snapshot's file, as those see it that borrow pages from it.
#[derive(Debug)]
pub(super) struct Lender {
    id: u64,
    /// It was there before: who borrows from it may be the only one that it is kept for.
    was_there: bool,
    state: Mutex<State>,
    changed: Condvar,
}

impl fmt::Display for Lender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.state().path.display().fmt(f)
    }
}

impl Lender {
    /// A file that is about to be written. Whoever borrows from it is likely to be kept as long as it is.
    pub(super) fn new(id: u64, path: PathBuf) -> Self {
        Self::with(id, path, 0, false)
    }

    /// A file of so many bytes to which nothing is added any more.
    pub(super) fn of_file(id: u64, path: PathBuf, len: u64) -> Self {
        Self::with(id, path, len, true)
    }

    fn with(id: u64, path: PathBuf, written: u64, over: bool) -> Self {
        Self {
            id,
            was_there: over,
            state: Mutex::new(State {
                path,
                gone: false,
                written,
                lent: false,
                durable: false,
                doubtful: false,
                over,
            }),
            changed: Condvar::new(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Plain data, changed in single steps: whole also after a panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What tells it from others of the same process.
    pub(super) fn id(&self) -> u64 {
        self.id
    }

    /// Whether it is worth to be kept whole for so many bytes of it, by one of so many who have it.
    pub(super) fn is_worth(&self, bytes: u64, names: u64) -> bool {
        let share = if self.was_there { names } else { LEAST_SHARE };
        bytes * share >= self.written()
    }

    /// From here on nobody borrows from it any more: it is about to be removed. Whether somebody has: then all that it
    /// was to hold must get into the file all the same.
    pub(super) fn close(&self) -> bool {
        let mut state = self.state();
        state.gone = true;
        state.lent
    }

    /// The file holds so many bytes by now.
    pub(super) fn wrote(&self, bytes: u64) {
        let mut state = self.state();
        (state.written, state.durable) = (bytes, false);
        drop(state);
        self.changed.notify_all();
    }

    /// Bytes that the file holds by now.
    pub(super) fn written(&self) -> u64 {
        self.state().written
    }

    /// All that was in the file when it held so many bytes is on the disk, or nobody knows.
    pub(super) fn synced(&self, written: u64, done: bool) {
        let mut state = self.state();
        state.doubtful |= !done;
        state.durable |= done && state.written == written;
    }

    /// Whether all that is in the file is known to be on the disk.
    pub(super) fn is_durable(&self) -> bool {
        self.state().durable
    }

    /// Nothing more is written.
    pub(super) fn end(&self) {
        self.state().over = true;
        self.changed.notify_all();
    }

    /// Renames the file, while nobody links to it.
    pub(super) fn rename(&self, files: &dyn Files, to: &Path) -> io::Result<()> {
        let mut state = self.state();
        files.rename(&state.path, to)?;
        state.path = to.to_owned();
        Ok(())
    }

    /// Gives the file another name.
    pub(super) fn link(&self, files: &dyn Files, name: &Path) -> io::Result<()> {
        let mut state = self.state();
        if state.gone {
            return Err(io::ErrorKind::NotFound.into());
        }
        files.link(&state.path, name)?;
        state.lent = true;
        Ok(())
    }

    /// Waits until the file holds its first `bytes`. False: it never will, or nobody knows.
    pub(super) fn wait_for(&self, bytes: u64) -> bool {
        let mut state = self.state();
        while state.written < bytes && !state.over {
            let woken = self.changed.wait(state);
            state = woken.unwrap_or_else(PoisonError::into_inner);
        }
        state.written >= bytes && !state.doubtful
    }
}
