//! What the iterator over tasks copies out of the kernel.
//!
//! The program knows no kernel struct: user space, which has the running kernel's types, gives it
//! lists of what lies where. A pointer that is null gives a record whose bytes stay zero.

use core::mem::{offset_of, size_of};

/// Most objects that a record is gathered from.
pub const MAX_OBJECTS: usize = 16;
/// Most fields of a record.
pub const MAX_FIELDS: usize = 64;
/// Most bytes of a record's fields.
pub const MAX_RECORD: usize = 4096;
/// Most timers of a process that are gathered. The verifier walks through each of them.
pub const MAX_TIMERS: u32 = 64;

/// An object that another one points to. Object 0 is what the record is about: a task or a timer.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ObjectRef {
    /// Index of the object that holds the pointer; lower than its own.
    pub parent: u32,
    /// Where in it; `u32::MAX` when the kernel has no such pointer.
    pub offset: u32,
}

/// A field to copy.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FieldRef {
    /// Index of the object that it lies in.
    pub object: u16,
    /// Bytes; 0 ends the list.
    pub len: u16,
    /// Where in the object.
    pub offset: u32,
    /// Where in the record's bytes.
    pub dest: u32,
}

/// Which process to report.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StateRequest {
    /// Its id.
    pub tgid: u32,
    /// The thread with which the records of the process itself come.
    pub tid: u32,
}

/// What a record is about.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordKind {
    /// A thread.
    Thread = 1,
    /// The process, as one of its threads leads to it.
    Process = 2,
    /// A timer of the process.
    Timer = 3,
    /// There are more timers than are reported.
    MoreTimers = 4,
}

/// What every record starts with; `len` bytes of fields follow.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordHeader {
    /// A [`RecordKind`].
    pub kind: u32,
    /// Bytes that follow.
    pub len: u32,
    /// The thread.
    pub tid: u32,
    /// Bit n for object n that was there.
    pub objects: u32,
}

const _: () = {
    assert!(size_of::<ObjectRef>() == 8);
    assert!(size_of::<FieldRef>() == 12);
    assert!(offset_of!(FieldRef, len) == 2);
    assert!(offset_of!(FieldRef, offset) == 4);
    assert!(offset_of!(FieldRef, dest) == 8);
    assert!(size_of::<StateRequest>() == 8);
    assert!(size_of::<RecordHeader>() == 16);
    assert!(offset_of!(RecordHeader, tid) == 8);
};
