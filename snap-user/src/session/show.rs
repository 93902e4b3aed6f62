//! Everything that is known of a snapshot.

use super::SessionError;
use super::descriptor::OpenDescriptor;
use super::log::{LogEntry, entry};
use crate::model::{
    Backing, Costs, PageSet, ProcessAttributes, ProcessState, ThreadAttributes, ThreadState, Vma,
};
use crate::store::{Snapshot, Store, StoredContent};
use crate::sys::arch::{self, Registers};
use serde::Serialize;
use std::path::Path;

/// Everything that is known of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Description {
    /// What its header says.
    pub snapshot: LogEntry,
    /// The process.
    pub process: Process,
    /// Its threads, the leader first.
    pub threads: Vec<Thread>,
    /// Its mappings, ascending.
    pub mappings: Vec<Mapping>,
    /// Its descriptors, ascending.
    pub descriptors: Vec<OpenDescriptor>,
    /// Where the content of its own pages is stored.
    pub content: StoredContent,
    /// What taking it cost.
    pub costs: Costs,
    /// What could not be saved, a sentence each.
    pub unsupported: Vec<String>,
}

/// The process of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Process {
    /// Process id.
    pub pid: i32,
    /// Parent process id.
    pub ppid: i32,
    /// Command name.
    pub comm: String,
    /// Path of the executable.
    pub exe: String,
    /// Arguments; bytes that are not UTF-8 are replaced.
    pub cmdline: Vec<String>,
    /// Working directory.
    pub cwd: String,
    /// Start time in clock ticks since boot.
    pub start_time: u64,
    /// Start of the heap.
    pub start_brk: u64,
    /// Program break.
    pub brk: u64,
    /// Signal dispositions, timers, limits, and whatever else its threads share.
    pub attributes: ProcessAttributes,
}

/// A thread of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Thread {
    /// Thread id.
    pub tid: i32,
    /// Its name.
    pub comm: String,
    /// Where it goes on; null when the registers are of another kind of processor.
    pub ip: Option<u64>,
    /// Its stack pointer.
    pub sp: Option<u64>,
    /// Number of the system call that the stop interrupted and that goes on after it.
    pub blocked_syscall: Option<u64>,
    /// Name of that system call.
    pub blocked_syscall_name: Option<&'static str>,
    /// What was left of its time-out, where it goes on for no longer, in nanoseconds.
    pub time_left_ns: Option<u64>,
    /// Blocked signals, bit n-1 for signal n.
    pub sigmask: u64,
    /// Numbers of the signals queued for it.
    pub pending_signals: Vec<i32>,
    /// Credentials, scheduling, and whatever else is its own.
    pub attributes: ThreadAttributes,
}

/// A mapping of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Mapping {
    /// First byte.
    pub start: u64,
    /// One past the last byte.
    pub end: u64,
    /// As in `/proc/PID/maps`: `rw-p`.
    pub perms: String,
    /// File, or name in brackets; empty for unnamed memory.
    pub name: String,
    /// Offset of the first byte in the file, for a file.
    pub offset: Option<u64>,
    /// The file has lost its name.
    pub deleted: bool,
    /// Build id of an ELF file, in hex.
    pub build_id: Option<String>,
    /// Pages that the snapshot can give back; all others read as zeroes or as the file's.
    pub pages: u64,
    /// Those of them that are stored in its own file.
    pub stored_pages: u64,
}

impl Mapping {
    /// A mapping without its pages.
    pub(super) fn new(vma: &Vma) -> Self {
        let hex = |bytes: &Vec<u8>| bytes.iter().map(|b| format!("{b:02x}")).collect();
        let (offset, deleted) = match &vma.backing {
            Backing::File {
                offset, deleted, ..
            } => (Some(*offset), *deleted),
            _ => (None, false),
        };
        Self {
            start: vma.range.start,
            end: vma.range.end,
            perms: perms(vma),
            name: name(vma),
            offset,
            deleted,
            build_id: vma.build_id.as_ref().map(hex),
            pages: 0,
            stored_pages: 0,
        }
    }
}

/// Describes the snapshot that a reference means.
pub fn show(store: &Path, reference: &str) -> Result<Description, SessionError> {
    let store = Store::open(store)?;
    let entry = entry(&store, reference, None)?;
    let snapshot = store.snapshot(entry.id)?;
    let manifest = snapshot.manifest()?;
    let native = is_native(&snapshot);
    Ok(Description {
        process: process(&manifest.state),
        threads: manifest
            .state
            .threads
            .iter()
            .map(|thread| describe_thread(thread, native))
            .collect(),
        mappings: mappings(&snapshot, &manifest.state.vmas)?,
        descriptors: OpenDescriptor::all(&manifest.state),
        content: snapshot.stored_content()?,
        costs: manifest.costs,
        unsupported: manifest.state.unsupported,
        snapshot: entry,
    })
}

/// The registers are of the kind of processor that this program runs on.
pub(super) fn is_native(snapshot: &Snapshot) -> bool {
    snapshot.header().arch as u16 == arch::MACHINE
}

/// Protection and sharing as `/proc/PID/maps` prints them.
pub(super) fn perms(vma: &Vma) -> String {
    let flag = |set, letter| if set { letter } else { '-' };
    [
        flag(vma.prot.read, 'r'),
        flag(vma.prot.write, 'w'),
        flag(vma.prot.exec, 'x'),
        if vma.shared { 's' } else { 'p' },
    ]
    .into_iter()
    .collect()
}

/// Name of a mapping; empty for unnamed memory.
pub(super) fn name(vma: &Vma) -> String {
    match &vma.backing {
        Backing::Anonymous { name: None } => String::new(),
        Backing::Anonymous { name: Some(name) } => format!("[anon:{name}]"),
        Backing::Heap => "[heap]".into(),
        Backing::Stack => "[stack]".into(),
        Backing::Special(name) => format!("[{name}]"),
        Backing::File { path, .. } => path.clone(),
    }
}

fn process(state: &ProcessState) -> Process {
    Process {
        pid: state.pid,
        ppid: state.ppid,
        comm: state.comm.clone(),
        exe: state.exe.clone(),
        cmdline: state
            .cmdline
            .iter()
            .map(|arg| String::from_utf8_lossy(arg).into_owned())
            .collect(),
        cwd: state.cwd.clone(),
        start_time: state.start_time,
        start_brk: state.mm.start_brk,
        brk: state.mm.brk,
        attributes: state.attributes.clone(),
    }
}

fn describe_thread(thread: &ThreadState, native: bool) -> Thread {
    let registers = native
        .then(|| Registers::from_prstatus(&thread.gp))
        .flatten();
    let blocked_syscall = registers.and_then(|r| r.interrupted_syscall());
    Thread {
        tid: thread.tid,
        comm: thread.comm.clone(),
        ip: registers.map(|r| r.ip()),
        sp: registers.map(|r| r.sp()),
        blocked_syscall,
        blocked_syscall_name: blocked_syscall.and_then(arch::syscall_name),
        time_left_ns: thread.time_left_ns,
        sigmask: thread.sigmask,
        pending_signals: thread.pending.iter().map(|signal| signal.signo).collect(),
        attributes: thread.attributes.clone(),
    }
}

fn mappings(snapshot: &Snapshot, vmas: &[Vma]) -> Result<Vec<Mapping>, SessionError> {
    let table = snapshot.page_table()?;
    let own = PageSet::from_pages(snapshot.stored_pages()?);
    let describe = |vma: &Vma| Mapping {
        pages: table.range(vma.range).count() as u64,
        stored_pages: own
            .intersect(&PageSet::from_ranges(vec![vma.range]))
            .pages(),
        ..Mapping::new(vma)
    };
    Ok(vmas.iter().map(describe).collect())
}
