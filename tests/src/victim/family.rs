//! Processes of one victim: how they are made, and what they and it have in memory.

use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use anyhow::{Result, bail};

use super::fault::os_error;
use super::mem::Mapping;
use super::page::PAGE;
use super::table::Table;

/// Private pages with known content.
const PAGES: usize = 16;

/// What lives as long as the victim.
pub struct Memory<B: 'static> {
    /// Shared with all processes that are made from now on.
    pub board: &'static B,
    /// Private.
    pub table: Table,
    _mappings: [Mapping; 2],
}

impl<B> Memory<B> {
    /// A board of zeroes, and a table with content of its own.
    ///
    /// # Safety
    /// For a `B`, zeroes are valid, and nobody uses the board once this is dropped.
    pub unsafe fn new(seed: u64) -> Result<Self> {
        const { assert!(size_of::<B>() <= PAGE && align_of::<B>() <= PAGE) };
        let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
        let shared = Mapping::with(PAGE, libc::PROT_READ | libc::PROT_WRITE, flags, -1)?;
        let private = Mapping::private(PAGES * PAGE)?;
        // SAFETY: a page of zeroes, large and aligned enough; the caller vouches for the rest.
        let board: &'static B = unsafe { &*shared.at().cast::<B>() };
        // SAFETY: the mapping has that many pages, and lives as long as the table.
        let table = unsafe { Table::new(private.at(), PAGES, seed) };
        Ok(Self {
            board,
            table,
            _mappings: [shared, private],
        })
    }
}

// SAFETY: a shared table is only read, and its memory lives as long as it does.
unsafe impl<B: Sync> Sync for Memory<B> {}

/// Takes over a descriptor that was just made.
pub fn owned(fd: RawFd) -> OwnedFd {
    // SAFETY: just made, and owned by nobody else.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// The program has one thread so far, so that the child may go on as it likes. It ends with its parent.
pub fn fork() -> Result<i32> {
    // SAFETY: calls without pointers; see above.
    unsafe {
        match libc::fork() {
            -1 => bail!(os_error("fork")),
            0 => {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                Ok(0)
            }
            child => Ok(child),
        }
    }
}
