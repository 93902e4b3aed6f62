//! Types that cross the boundary between the eBPF programs and user space.
//!
//! Everything here is `#[repr(C)]` with fixed-width integers and explicit padding: the prebuilt
//! object and the loader come from different compilers.
#![no_std]

mod event;
mod files;
mod save;
mod state;
mod syscall;

pub use event::{EventHeader, EventKind, FaultEvent, SystemEvent, flag};
pub use files::{FILE_WORDS, FileRecord};
pub use save::{
    BEGUN, BREAK, CHUNK_BYTES, COPIED_TO, COUNTERS, Chunk, LOSSES, LOST, Loss, MAX_CHUNKS, ORDER,
    SavedPage, Tracked, WINDOW, chunk_bit, chunk_key,
};
pub use state::{
    FieldRef, MAX_FIELDS, MAX_OBJECTS, MAX_RECORD, MAX_TIMERS, ObjectRef, RecordHeader, RecordKind,
    StateRequest,
};
pub use syscall::{Effect, SYSCALL_TABLE, SyscallClass};

/// Layout version of everything in this crate. The loader refuses an object built with another one.
pub const ABI_VERSION: u32 = 4;

/// Section of the object that holds [`ABI_VERSION`] as four bytes, in the byte order of the object.
pub const ABI_SECTION: &str = "ksnap_abi";

/// Most processes that can be tracked at once: the size of the map of tracked processes.
pub const MAX_TRACKED: u32 = 4096;

/// Most threads whose stop can be timed at once.
pub const MAX_STOPPED: u32 = 16384;

/// Bytes in a page, as the programs round addresses. User space refuses to run on another page size.
pub const PAGE_SIZE: u64 = 4096;
