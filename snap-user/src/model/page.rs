//! Pages and ranges of pages.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Bytes in a page: the unit of tracking, of capture and of the image format.
pub const PAGE_SIZE: u64 = 4096;

/// The content of one page.
pub type Page = [u8; PAGE_SIZE as usize];

/// Rounds an address down to a page boundary.
pub const fn page_down(addr: u64) -> u64 {
    addr & !(PAGE_SIZE - 1)
}

/// Rounds an address up to a page boundary. Saturates at the last page boundary.
pub const fn page_up(addr: u64) -> u64 {
    page_down(addr.saturating_add(PAGE_SIZE - 1))
}

/// A half-open range `[start, end)` of page-aligned addresses.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PageRange {
    /// First byte.
    pub start: u64,
    /// One past the last byte.
    pub end: u64,
}

impl PageRange {
    /// The range `[start, end)`; both must be page-aligned and `start <= end`.
    pub const fn new(start: u64, end: u64) -> Self {
        debug_assert!(
            start <= end && start.is_multiple_of(PAGE_SIZE) && end.is_multiple_of(PAGE_SIZE)
        );
        Self { start, end }
    }

    /// The pages that the bytes `[addr, addr + len)` touch. Saturates at the top of the address space.
    pub const fn covering(addr: u64, len: u64) -> Self {
        let start = page_down(addr);
        let end = page_up(addr.saturating_add(len));
        Self {
            start,
            end: if end < start { start } else { end },
        }
    }

    /// Length in bytes.
    pub const fn len(&self) -> u64 {
        self.end - self.start
    }

    /// True when the range holds no page.
    pub const fn is_empty(&self) -> bool {
        self.start >= self.end
    }

    /// Length in pages.
    pub const fn pages(&self) -> u64 {
        self.len() / PAGE_SIZE
    }

    /// True when `addr` lies inside.
    pub const fn contains(&self, addr: u64) -> bool {
        self.start <= addr && addr < self.end
    }

    /// The common part of two ranges, if any.
    pub fn intersect(&self, other: &Self) -> Option<Self> {
        let start = self.start.max(other.start);
        let end = self.end.min(other.end);
        (start < end).then_some(Self { start, end })
    }

    /// The address of each page, ascending.
    pub fn iter(&self) -> impl Iterator<Item = u64> + use<> {
        (self.start..self.end).step_by(PAGE_SIZE as usize)
    }
}

impl fmt::Debug for PageRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}-{:x}", self.start, self.end)
    }
}

impl fmt::Display for PageRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}
