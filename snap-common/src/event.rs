//! Records of the ring buffer.

use core::mem::{offset_of, size_of};

/// What a record reports: the first two bytes of every record.
#[repr(u16)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// A write fault: a [`FaultEvent`].
    Fault = 1,
    /// A thread was made. `args[0]`: thread id of the maker.
    ThreadStart = 2,
    /// A process was made by a tracked one. `tgid`: the parent; `args[0]`: process id of the child.
    Fork = 3,
    /// A program was executed. `args[0]`: thread id before it (the leader's takes its place).
    Exec = 4,
    /// A thread ended.
    Exit = 5,
    /// A system call that changes mappings returned: `args[..4]` its first arguments, `args[4]` its result.
    Mapping = 6,
    /// A system call that may write user memory behind the page tables returned. Arguments as for `Mapping`.
    Hazard = 7,
    /// Something took the lock of a tracked address space, as get_user_pages does. `tid`: who.
    /// `nr`: the system call it is in, or `u32::MAX`.
    MmLock = 8,
    /// A thread ran again after a ptrace stop that began at `args[0]` ns.
    Stopped = 9,
}

impl EventKind {
    /// The kind with this number, if there is one.
    pub const fn from_raw(raw: u16) -> Option<Self> {
        Some(match raw {
            1 => Self::Fault,
            2 => Self::ThreadStart,
            3 => Self::Fork,
            4 => Self::Exec,
            5 => Self::Exit,
            6 => Self::Mapping,
            7 => Self::Hazard,
            8 => Self::MmLock,
            9 => Self::Stopped,
            _ => return None,
        })
    }
}

/// Bits of [`EventHeader::flags`].
pub mod flag {
    /// Fault: taken in user mode.
    pub const USER: u16 = 1;
    /// Fault: the writer is not a thread of the process written to.
    pub const REMOTE: u16 = 1 << 1;
    /// Fault: an instruction fetch or a protection fault on a present page; kept for diagnosis.
    pub const PRESENT: u16 = 1 << 2;
    /// Exit: the last thread of its process.
    pub const LAST: u16 = 1 << 3;
    /// Fork: parent and child share one address space (`CLONE_VM`, vfork).
    pub const SHARES_MM: u16 = 1 << 4;
    /// Hazard: the target process is not known; `tgid` is the caller.
    pub const ANY_TARGET: u16 = 1 << 5;
    /// Mapping, Hazard: a system call of the 32-bit ABI; its number and arguments are not decoded.
    pub const COMPAT: u16 = 1 << 6;
}

/// What every record starts with.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventHeader {
    /// An [`EventKind`].
    pub kind: u16,
    /// Bits of [`flag`].
    pub flags: u16,
    /// The process concerned.
    pub tgid: u32,
    /// The thread that caused it.
    pub tid: u32,
    /// Number of the system call, where one is reported; else 0.
    pub nr: u32,
    /// `CLOCK_MONOTONIC`, ns.
    pub time_ns: u64,
}

/// A write fault, recorded at its entry, before the kernel resolves it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FaultEvent {
    /// Kind `Fault`.
    pub header: EventHeader,
    /// Address of the page, rounded down.
    pub page: u64,
    /// Instruction pointer; 0 where there is none (get_user_pages).
    pub ip: u64,
}

/// Every other record.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SystemEvent {
    /// Any kind but `Fault`.
    pub header: EventHeader,
    /// Meaning by kind.
    pub args: [u64; 5],
}

const _: () = {
    assert!(size_of::<EventHeader>() == 24);
    assert!(offset_of!(EventHeader, flags) == 2);
    assert!(offset_of!(EventHeader, tgid) == 4);
    assert!(offset_of!(EventHeader, tid) == 8);
    assert!(offset_of!(EventHeader, nr) == 12);
    assert!(offset_of!(EventHeader, time_ns) == 16);
    assert!(size_of::<FaultEvent>() == 40);
    assert!(offset_of!(FaultEvent, page) == 24);
    assert!(offset_of!(FaultEvent, ip) == 32);
    assert!(size_of::<SystemEvent>() == 64);
    assert!(offset_of!(SystemEvent, args) == 24);
};
