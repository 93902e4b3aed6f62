//! Anonymous mappings that unmap themselves.

use anyhow::{Result, bail};

/// A mapping of this process, unmapped on drop.
pub struct Mapping {
    at: *mut u8,
    len: usize,
}

// SAFETY: a mapping is plain memory; who writes what is the business of the type that holds it.
unsafe impl Send for Mapping {}
// SAFETY: as above; a shared reference gives out nothing but the address.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `len` bytes of private anonymous memory, readable and writable.
    pub fn private(len: usize) -> Result<Self> {
        Self::with(
            len,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
        )
    }

    /// Maps `len` bytes with the given protection, flags and file (-1 for none), from offset 0.
    pub fn with(len: usize, prot: i32, flags: i32, fd: i32) -> Result<Self> {
        Self::of_file(len, prot, flags, fd, 0)
    }

    /// As [`Mapping::with`], from an offset in bytes.
    pub fn of_file(len: usize, prot: i32, flags: i32, fd: i32, offset: i64) -> Result<Self> {
        // SAFETY: without MAP_FIXED the kernel picks unused addresses.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), len, prot, flags, fd, offset) };
        match at == libc::MAP_FAILED {
            true => bail!("mmap of {len} bytes: {}", std::io::Error::last_os_error()),
            false => Ok(Self { at: at.cast(), len }),
        }
    }

    /// Maps private memory whose start is a multiple of `align` (a power of two of at least a page).
    pub fn aligned(len: usize, align: usize) -> Result<Self> {
        let whole = Self::private(len + align)?;
        let start = whole.at as usize;
        let aligned = start.next_multiple_of(align);
        let tail = aligned + len;
        // SAFETY: both cuts lie inside `whole`, outside the part that is kept, and nothing points there.
        unsafe {
            if aligned > start {
                libc::munmap(whole.at.cast(), aligned - start);
            }
            libc::munmap(whole.at.with_addr(tail).cast(), start + whole.len - tail);
        }
        let kept = Self {
            at: whole.at.with_addr(aligned),
            len,
        };
        std::mem::forget(whole);
        Ok(kept)
    }

    /// The first byte.
    pub const fn at(&self) -> *mut u8 {
        self.at
    }

    /// The length in bytes.
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether the mapping has no bytes; never true for a live one.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is this object's own, and its users are gone with it.
        unsafe { libc::munmap(self.at.cast(), self.len) };
    }
}
