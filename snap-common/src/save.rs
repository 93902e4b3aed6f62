//! Pages as they were when a process went on, saved in the kernel before their first write.
//!
//! After a stop the pages of its snapshot are copied while the process runs. Until user space says that it
//! is past them, the first write to each makes the fault program copy the page first.

use crate::PAGE_SIZE;
use core::mem::{offset_of, size_of};

/// Value of the map of tracked processes. All zero: nothing is saved.
pub type Tracked = [u64; 3];

/// Index into [`Tracked`]: number of the window, by which records of an earlier one are known; 0 outside.
pub const WINDOW: usize = 0;

/// Index into [`Tracked`]: pages below this address have been copied.
pub const COPIED_TO: usize = 1;

/// Index into [`Tracked`]: end of the heap when the window was opened, or the end of the address space where it
/// is not known.
pub const BREAK: usize = 2;

/// Address space that one entry of the map of awaited pages stands for.
pub const CHUNK_BYTES: u64 = 1 << 27;

/// Awaited pages of one chunk, a bit each.
pub type Chunk = [u64; (CHUNK_BYTES / PAGE_SIZE / 64) as usize];

/// Chunks of all processes together: 4 TiB.
pub const MAX_CHUNKS: u32 = 1 << 15;

/// Key of the chunk that holds `addr` of process `tgid`.
pub const fn chunk_key(tgid: u32, addr: u64) -> u64 {
    ((tgid as u64) << 32) | (addr / CHUNK_BYTES)
}

/// Word and bit of a page in its chunk.
pub const fn chunk_bit(addr: u64) -> (usize, u64) {
    let page = addr % CHUNK_BYTES / PAGE_SIZE;
    ((page / 64) as usize, 1 << (page % 64))
}

/// Index into the counters: pages that were to be saved.
pub const BEGUN: u32 = 0;
/// Index into the counters: those of them that were not, and changes that could not be followed; see [`Loss`].
pub const LOST: u32 = 1;
/// Index into the counters: [`SavedPage::order`] of the next one.
pub const ORDER: u32 = 2;
/// Index into the counters: of what was lost by the first [`Loss`]; the others follow.
pub const LOSSES: u32 = 3;
/// Number of counters.
pub const COUNTERS: u32 = LOSSES + Loss::ALL.len() as u32;

/// Why a page that was to be saved is lost, or may be.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// The ring has no room.
    Full = 0,
    /// The page cannot be read.
    Unreadable = 1,
    /// Another process writes to it.
    Other = 2,
    /// A call changes too many pages, or ones that are not known.
    Call = 3,
    /// The process itself took the lock that get_user_pages takes.
    OwnLock = 4,
    /// Another process took it.
    OtherLock = 5,
    /// A 32-bit system call.
    Compat = 6,
}

impl Loss {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 7] = [
        Self::Full,
        Self::Unreadable,
        Self::Other,
        Self::Call,
        Self::OwnLock,
        Self::OtherLock,
        Self::Compat,
    ];
}

const _: () = {
    let mut at = 0;
    while at < Loss::ALL.len() {
        assert!(Loss::ALL[at] as usize == at);
        at += 1;
    }
};

/// A page as it was before its first write.
#[repr(C)]
pub struct SavedPage {
    /// The window that it belongs to.
    pub window: u64,
    /// Of several records of one page the one with the lowest order is right: it was read before any of
    /// those threads went on to write.
    pub order: u64,
    /// Address.
    pub page: u64,
    /// The process.
    pub tgid: u32,
    /// Zero.
    pub reserved: u32,
    /// Content.
    pub bytes: [u8; PAGE_SIZE as usize],
}

const _: () = {
    assert!(size_of::<SavedPage>() == 32 + PAGE_SIZE as usize);
    assert!(offset_of!(SavedPage, order) == 8);
    assert!(offset_of!(SavedPage, page) == 16);
    assert!(offset_of!(SavedPage, tgid) == 24);
    assert!(offset_of!(SavedPage, bytes) == 32);
};
