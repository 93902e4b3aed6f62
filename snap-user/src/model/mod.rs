//! Plain data shared by every room: no system calls, no I/O.

mod address;
mod attributes;
mod connection;
mod files;
mod page;
mod page_set;
mod page_table;
mod process;
mod snapshot;
mod socket;
mod tree;

pub use address::address_words;
pub use attributes::{
    AltStack, Credentials, Deadlines, IntervalTimer, Limit, MemoryAttributes, MemoryPolicy,
    Observed, ObservedThread, PosixTimer, ProcessAttributes, Scheduling, Seccomp, SeccompFilter,
    SignalAction, Source, SyscallDispatch, ThreadAttributes,
};
pub use connection::Connection;
pub use files::{
    Descriptor, Detail, EpollWatch, Eventfd, FILE_ROOM, FILE_SPACE, Fanotify, FileKind, FileLock,
    InotifyWatch, LockKind, Memfd, OpenFile, Owner, Pipe, Referent, Regular, SavedFile, Terminal,
    Timerfd,
};
pub use page::{PAGE_SIZE, Page, PageRange, page_down, page_up};
pub use page_set::PageSet;
pub use page_table::{LEAF_PAGES, PageTable};
pub use process::{
    Auxv, Backing, Clocks, MappedFile, MmFields, PendingSignal, ProcessState, Protection,
    RobustList, Rseq, ThreadState, Vma,
};
pub use snapshot::{Costs, PageCounts, Phases, SnapshotId, SnapshotKind};
pub use socket::{Message, Socket, SocketOption, SocketState};
pub use tree::{ProcessTree, SharedFile, TreeMember, Zombie};
