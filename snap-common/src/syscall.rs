//! How the system call program treats each call. The table is filled by user space at load, so the
//! object knows no system call numbers.

/// Entries in the table: a power of two above the highest number in use.
pub const SYSCALL_TABLE: usize = 512;

/// What to do when a call returns.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyscallClass {
    /// Nothing; leave as early as can be.
    Ignore = 0,
    /// Report as a mapping change, when the caller is tracked.
    Mapping = 1,
    /// Report as a hazard, when the caller is tracked.
    Hazard = 2,
    /// Report as a hazard, when the caller is tracked and the descriptor in the first argument is open with O_DIRECT.
    DirectRead = 3,
    /// The same for calls that take a vector of buffers: one event for each buffer.
    DirectVector = 6,
    /// Report as a hazard whoever the caller is: process_vm_writev.
    RemoteWrite = 4,
    /// Report as a hazard whoever the caller is, when the request is a poke: ptrace.
    Ptrace = 5,
    /// Do not report, and take its locks of the address space for harmless: it writes no user
    /// memory through get_user_pages that has no event of its own.
    NoPin = 7,
}

/// What a call is about to do to pages that wait to be copied. The table is filled by user space at load.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nothing.
    None = 0,
    /// Changes the content, or who may write it unseen, of the range in its first two arguments.
    Range = 1,
    /// The same if the fourth argument has `MAP_FIXED`.
    Mmap = 2,
    /// The same unless the third argument is an advice that leaves the content alone.
    Madvise = 3,
    /// The same, and of another range if the fourth argument has `MREMAP_FIXED`.
    Mremap = 4,
    /// The same from its first argument up to the end of the heap.
    Brk = 5,
    /// Something in all of the address space.
    All = 6,
    /// A new address space for the calling process.
    Exec = 7,
}
