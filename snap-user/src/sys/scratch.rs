//! A piece of this process's own memory, to try kernel features on.

use super::{Result, SysError};
use crate::model::{PAGE_SIZE, PageRange};

/// An anonymous private mapping without huge pages. Unmapped on drop.
pub struct ScratchMap {
    range: PageRange,
}

impl ScratchMap {
    /// Maps `pages` pages, none of them touched.
    pub fn new(pages: u64) -> Result<Self> {
        let len = (pages * PAGE_SIZE) as usize;
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a new mapping at an address of the kernel's choice, owned by the value.
        let addr = unsafe { libc::mmap(std::ptr::null_mut(), len, prot, flags, -1, 0) };
        if addr == libc::MAP_FAILED {
            return Err(SysError::last("mmap", "this process"));
        }
        // SAFETY: the range is the mapping made above.
        unsafe { libc::madvise(addr, len, libc::MADV_NOHUGEPAGE) };
        Ok(Self {
            range: PageRange::new(addr as u64, addr as u64 + len as u64),
        })
    }

    /// Its addresses.
    pub fn range(&self) -> PageRange {
        self.range
    }

    /// All of it, as words that are 0 until they are written.
    pub fn words(&mut self) -> &mut [u64] {
        let len = (self.range.len() / 8) as usize;
        // SAFETY: the value's own writable mapping, aligned to pages, and nobody else has a reference into it.
        unsafe { std::slice::from_raw_parts_mut(self.range.start as *mut u64, len) }
    }

    fn page(&self, n: u64) -> u64 {
        assert!(n < self.range.pages(), "page {n} lies outside the mapping");
        self.range.start + n * PAGE_SIZE
    }

    /// Writes the first byte of page `n`.
    pub fn write(&mut self, n: u64, byte: u8) {
        // SAFETY: the page lies in this value's own writable mapping; volatile so that the store
        // happens even though nothing reads it.
        unsafe { std::ptr::write_volatile(self.page(n) as *mut u8, byte) }
    }

    /// Throws page `n` away (`MADV_DONTNEED`).
    pub fn discard(&mut self, n: u64) -> Result<()> {
        // SAFETY: the page lies in this value's own mapping, which nothing holds references into.
        let r = unsafe {
            libc::madvise(
                self.page(n) as *mut _,
                PAGE_SIZE as usize,
                libc::MADV_DONTNEED,
            )
        };
        if r == 0 {
            Ok(())
        } else {
            Err(SysError::last("madvise", "this process"))
        }
    }
}

impl Drop for ScratchMap {
    fn drop(&mut self) {
        // SAFETY: unmaps what `new` mapped; nothing else refers to it.
        unsafe { libc::munmap(self.range.start as *mut _, self.range.len() as usize) };
    }
}
