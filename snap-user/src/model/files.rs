//! Descriptors, and the open files behind them.

use super::socket::Socket;
use serde::{Deserialize, Serialize};

/// An entry of the descriptor table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Descriptor {
    /// Its number.
    pub fd: i32,
    /// Index of its open file in [`super::ProcessState::files`]. Several descriptors may share one (`dup(2)`).
    pub file: u32,
    /// Closed by an exec (`FD_CLOEXEC`).
    pub cloexec: bool,
}

/// What a descriptor refers to, as the kernel knows it: where its structures lie. The same as before means the same
/// open file, or one that cannot be told from it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Referent {
    /// The open file.
    pub file: u64,
    /// Its inode.
    pub inode: u64,
    /// The inode's number.
    pub number: u64,
    /// The functions that serve it.
    pub operations: u64,
}

/// An open file description (`open(2)`): what descriptors refer to, and share.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenFile {
    /// What it is.
    pub kind: FileKind,
    /// Where `/proc/PID/fd/FD` points, without the mark of a file that has lost its name.
    pub link: String,
    /// The file has no name any more, or another file has it.
    pub deleted: bool,
    /// File position in bytes.
    pub position: u64,
    /// Access mode and status flags, as `/proc/PID/fdinfo/FD` has them, `O_CLOEXEC` left out.
    pub flags: u32,
    /// Device and inode.
    pub identity: (u64, u64),
    /// Who is told of input and output (`F_SETOWN_EX`), where somebody is.
    pub owner: Option<Owner>,
    /// Locks and leases held through it.
    pub locks: Vec<FileLock>,
    /// What its kind has besides.
    pub detail: Detail,
}

/// Who gets the signals of an open file, and which (`F_GETOWN_EX`, `F_GETSIG` in `fcntl(2)`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// `F_OWNER_TID`, `F_OWNER_PID` or `F_OWNER_PGRP`.
    pub who: i32,
    /// Its id; 0 for nobody.
    pub id: i32,
    /// Signal number; 0 for the usual one.
    pub signal: i32,
}

/// Kinds of open files.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize,
)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs, reason = "self-describing")]
pub enum FileKind {
    Regular,
    Directory,
    CharDevice,
    BlockDevice,
    Symlink,
    Pipe,
    Fifo,
    Socket,
    Epoll,
    Eventfd,
    Timerfd,
    Signalfd,
    Inotify,
    Fanotify,
    Pidfd,
    Memfd,
    Userfaultfd,
    IoUring,
    PerfEvent,
    Bpf,
    #[default]
    Other,
}

/// What an open file has besides what all of them have.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Detail {
    /// Nothing, or nothing that could be read.
    #[default]
    None,
    /// A regular file.
    Regular(Regular),
    /// A device that is no terminal: major and minor number.
    Device(u32, u32),
    /// A terminal or one side of a pseudo-terminal.
    Terminal(Terminal),
    /// A pipe or FIFO.
    Pipe(Pipe),
    /// An eventfd (`eventfd(2)`).
    Eventfd(Eventfd),
    /// An epoll instance: what it watches.
    Epoll(Vec<EpollWatch>),
    /// A timer (`timerfd_create(2)`).
    Timerfd(Timerfd),
    /// A signalfd: its signals, bit n-1 for signal n.
    Signalfd(u64),
    /// What an inotify instance watches.
    Inotify(Vec<InotifyWatch>),
    /// A fanotify group, with its marks as the kernel prints them.
    Fanotify(Fanotify),
    /// The process of a pidfd: its id, and start time in clock ticks since boot, 0 where it is gone.
    Pidfd(i32, u64),
    /// Memory that looks like a file (`memfd_create(2)`).
    Memfd(Memfd),
    /// A socket.
    Socket(Box<Socket>),
}

/// What tells whether a regular file is still as it was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Regular {
    /// Bytes.
    pub size: u64,
    /// Last change of its content, nanoseconds since 1970.
    pub mtime_ns: i64,
    /// Permissions and type (`st_mode`).
    pub mode: u32,
}

/// Above the address space of all processes: where the contents of files have their pages.
pub const FILE_SPACE: u64 = 1 << 63;
/// Address space of one file.
pub const FILE_ROOM: u64 = 1 << 40;

/// A file whose content is part of the snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedFile {
    /// Device and inode.
    pub identity: (u64, u64),
    /// Its path; the last one that it had, if it has lost its name.
    pub path: String,
    /// Address of its first page, at or above [`FILE_SPACE`].
    pub start: u64,
    /// Size and time of change.
    pub content: Regular,
}

/// A terminal.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terminal {
    /// Its device number, major and minor.
    pub device: (u32, u32),
    /// The kernel's `struct termios2`; empty where it could not be read.
    pub termios: Vec<u8>,
    /// Rows, columns, and the two in pixels.
    pub size: [u16; 4],
    /// For the master side of a pseudo-terminal: number of its other side in `/dev/pts`.
    pub master_of: Option<u32>,
}

impl Terminal {
    /// Number in `/dev/pts` of a pseudo-terminal's side that is not the master.
    pub fn number(&self) -> Option<u32> {
        // Major number of the sides of pseudo-terminals (Documentation/admin-guide/devices.txt).
        (self.master_of.is_none() && self.device.0 == 136).then_some(self.device.1)
    }
}

/// A pipe or FIFO.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pipe {
    /// Bytes that fit (`F_GETPIPE_SZ`).
    pub capacity: u32,
    /// What is in it, oldest first. Recorded once, with the first open file of the pipe.
    pub content: Vec<u8>,
    /// It could not be looked into: bytes that were left out.
    pub unread: u32,
}

/// An eventfd.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Eventfd {
    /// Its counter.
    pub count: u64,
    /// `EFD_SEMAPHORE`
    pub semaphore: bool,
    /// The kernel's number for it, 0 where it has none: tells one from another while the machine runs.
    pub id: i64,
}

/// A descriptor that an epoll instance watches.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize,
)]
pub struct EpollWatch {
    /// Descriptor number when it was added.
    pub fd: i32,
    /// `EPOLL*` bits.
    pub events: u32,
    /// What the program gets back.
    pub data: u64,
    /// Inode of the watched file.
    pub inode: u64,
    /// Its device, as the kernel encodes it (`st_dev` differs).
    pub device: u64,
}

/// A timer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timerfd {
    /// `CLOCK_*`
    pub clock: i32,
    /// Expirations not yet read.
    pub ticks: u64,
    /// `TFD_TIMER_*` of the last setting.
    pub settime_flags: u32,
    /// Until it expires next, in nanoseconds; 0 for never.
    pub value_ns: u64,
    /// From one expiration to the next, in nanoseconds; 0 for none.
    pub interval_ns: u64,
    /// When it expires next by its own clock, in nanoseconds, if it was set so (`TFD_TIMER_ABSTIME`).
    pub expires_ns: Option<u64>,
}

/// A file or folder that an inotify instance watches.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InotifyWatch {
    /// Watch descriptor.
    pub wd: i32,
    /// `IN_*` bits.
    pub mask: u32,
    /// Inode.
    pub inode: u64,
    /// Its device, as the kernel encodes it.
    pub device: u64,
    /// Its path, where its handle could be resolved.
    pub path: Option<String>,
}

/// A fanotify group.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fanotify {
    /// `FAN_*` flags of its making.
    pub flags: u32,
    /// Flags of the descriptors that it hands out.
    pub event_flags: u32,
    /// Lines of `/proc/PID/fdinfo/FD`, one for each mark.
    pub marks: Vec<String>,
}

/// Memory that looks like a file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memfd {
    /// The name given to `memfd_create(2)`.
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// `F_SEAL_*` bits.
    pub seals: u32,
    /// Content up to the end of its last page with data.
    pub content: Vec<u8>,
    /// Shared mappings of the process cover all of it: its content is among the pages.
    pub mapped: bool,
    /// Its content was too large to be recorded.
    pub left_out: bool,
}

/// A lock or lease.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize,
)]
pub struct FileLock {
    /// What kind.
    pub kind: LockKind,
    /// Exclusive rather than shared.
    pub write: bool,
    /// First byte.
    pub start: u64,
    /// One past the last byte; `None` for the end of the file, wherever that will be.
    pub end: Option<u64>,
}

/// Kinds of locks.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum LockKind {
    /// `fcntl(2)` `F_SETLK`: the process's.
    #[default]
    Posix,
    /// `fcntl(2)` `F_OFD_SETLK`: the open file's.
    Ofd,
    /// `flock(2)`: the open file's.
    Flock,
    /// `fcntl(2)` `F_SETLEASE`.
    Lease,
}

impl OpenFile {
    /// Has a position that is the process's own business.
    pub fn is_positioned(&self) -> bool {
        matches!(
            self.kind,
            FileKind::Regular | FileKind::Directory | FileKind::Memfd | FileKind::BlockDevice
        ) && self.flags & O_PATH == 0
    }

    /// Is a socket whose connection was taken.
    pub fn has_connection(&self) -> bool {
        matches!(&self.detail, Detail::Socket(socket) if socket.connection.is_some())
    }

    /// Can be read from.
    pub fn is_readable(&self) -> bool {
        self.flags & O_ACCMODE != O_WRONLY
    }

    /// Can be written to.
    pub fn is_writable(&self) -> bool {
        self.flags & O_ACCMODE != 0
    }
}

const O_ACCMODE: u32 = 3;
const O_WRONLY: u32 = 1;
/// The same on every architecture but alpha, parisc and sparc.
const O_PATH: u32 = 0o10_000_000;
