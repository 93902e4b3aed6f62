//! What a snapshot knows of a process besides its pages.

use super::attributes::{ProcessAttributes, ThreadAttributes};
use super::files::{Descriptor, OpenFile, SavedFile};
use super::page::PageRange;
use serde::{Deserialize, Serialize};

/// Everything captured of one process, its page contents aside.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessState {
    /// Process id as seen from ksnap's PID namespace.
    pub pid: i32,
    /// Parent process id.
    pub ppid: i32,
    /// Start time in clock ticks since boot (`proc_pid_stat(5)`, field 22): tells a process from a later one with its pid.
    pub start_time: u64,
    /// Command name (`/proc/PID/comm`).
    pub comm: String,
    /// Path of the executable.
    pub exe: String,
    /// Arguments, as in `/proc/PID/cmdline`.
    pub cmdline: Vec<Vec<u8>>,
    /// Working directory.
    pub cwd: String,
    /// Threads, the leader first.
    pub threads: Vec<ThreadState>,
    /// Mappings, ascending.
    pub vmas: Vec<Vma>,
    /// Fields of the memory descriptor.
    pub mm: MmFields,
    /// Auxiliary vector.
    pub auxv: Auxv,
    /// Open descriptors, ascending.
    pub descriptors: Vec<Descriptor>,
    /// The open files behind them, each once.
    pub files: Vec<OpenFile>,
    /// Files whose contents are part of the snapshot.
    pub saved: Vec<SavedFile>,
    /// Files that it has mapped privately, as they were: what it has not written itself is in them alone.
    pub mapped: Vec<MappedFile>,
    /// What was seen and could not be recorded, a sentence each.
    pub unsupported: Vec<String>,
    /// Signal dispositions, timers, limits, and whatever else its threads share.
    pub attributes: ProcessAttributes,
    /// Clocks that count from the machine's start. Stored behind the rest, where it is known.
    #[serde(skip)]
    pub clocks: Option<Clocks>,
}

/// Clocks that count from the machine's start, as a process saw them when it was captured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Clocks {
    /// Which start: `/proc/sys/kernel/random/boot_id`.
    pub boot: [u8; 16],
    /// `CLOCK_MONOTONIC` in nanoseconds.
    pub monotonic_ns: i64,
    /// `CLOCK_BOOTTIME` in nanoseconds.
    pub boottime_ns: i64,
}

impl ProcessState {
    /// Has timers name the threads that they signal as the process does, where they name them as the PID namespace of whoever
    /// captured it does.
    pub fn name_timer_threads(&mut self) {
        let threads = &self.threads;
        for timer in self.attributes.timers.iter_mut().flatten() {
            let is_own = threads.iter().any(|t| Some(t.own_id()) == timer.thread);
            let thread = threads.iter().find(|t| Some(t.tid) == timer.thread);
            if let Some(thread) = thread.filter(|_| !is_own) {
                timer.thread = Some(thread.own_id());
            }
        }
    }

    /// Each descriptor with its open file, ascending.
    pub fn open_files(&self) -> impl Iterator<Item = (Descriptor, &OpenFile)> {
        self.descriptors
            .iter()
            .filter_map(|d| Some((*d, self.files.get(d.file as usize)?)))
    }
}

/// The auxiliary vector: pairs of type and value (`getauxval(3)`).
pub type Auxv = Vec<(u64, u64)>;

/// Fields of the memory descriptor (`proc_pid_stat(5)`, `PR_SET_MM_MAP` in `prctl(2)`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the kernel's own names")]
pub struct MmFields {
    pub start_code: u64,
    pub end_code: u64,
    pub start_data: u64,
    pub end_data: u64,
    pub start_brk: u64,
    /// Current program break.
    pub brk: u64,
    pub start_stack: u64,
    pub arg_start: u64,
    pub arg_end: u64,
    pub env_start: u64,
    pub env_end: u64,
}

/// One thread.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ThreadState {
    /// Thread id as seen from ksnap's PID namespace.
    pub tid: i32,
    /// Thread id as the thread sees it.
    pub own_tid: i32,
    /// Thread name.
    pub comm: String,
    /// General registers, in the layout of the `NT_PRSTATUS` register set of the image's architecture.
    pub gp: Vec<u8>,
    /// Extended state, in the layout of `NT_X86_XSTATE` (x86-64) or `NT_PRFPREG` (aarch64).
    pub fp: Vec<u8>,
    /// Blocked signals, bit n-1 for signal n.
    pub sigmask: u64,
    /// Signals queued for this thread alone.
    pub pending: Vec<PendingSignal>,
    /// Restartable-sequence registration, if any.
    pub rseq: Option<Rseq>,
    /// Robust futex list, if one is set.
    pub robust_list: Option<RobustList>,
    /// The system call that the stop interrupted and that the kernel would restart by its restart block.
    pub restart_syscall: Option<u64>,
    /// How much of that call's time-out was left, in nanoseconds, where it has one and the kernel told.
    pub time_left_ns: Option<u64>,
    /// Credentials, scheduling, and whatever else is a thread's own.
    pub attributes: ThreadAttributes,
}

impl ThreadState {
    /// Thread id as the thread sees it.
    pub fn own_id(&self) -> i32 {
        match self.own_tid {
            0 => self.tid,
            own => own,
        }
    }
}

/// A mapped file, to tell later whether it is still what it was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MappedFile {
    /// Major and minor number of its device, as mappings have them.
    pub dev: (u32, u32),
    /// Its inode.
    pub inode: u64,
    /// Its length in bytes.
    pub size: u64,
    /// When its content changed last, in nanoseconds since 1970.
    pub mtime_ns: i64,
}

/// A queued signal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PendingSignal {
    /// Signal number.
    pub signo: i32,
    /// Queued for the whole process rather than one thread.
    pub shared: bool,
    /// The kernel's `siginfo_t`, 128 bytes.
    pub siginfo: Vec<u8>,
}

/// A restartable-sequence registration (`PTRACE_GET_RSEQ_CONFIGURATION` in `ptrace(2)`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rseq {
    /// Address of the thread's `struct rseq`.
    pub addr: u64,
    /// Its size as registered.
    pub size: u32,
    /// Signature before each abort handler.
    pub signature: u32,
    /// Flags.
    pub flags: u32,
}

/// A robust futex list registration (`get_robust_list(2)`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RobustList {
    /// Address of the list's head.
    pub head: u64,
    /// Size of the head.
    pub len: u64,
}

/// Protection of a mapping.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[allow(missing_docs, reason = "self-describing")]
pub struct Protection {
    pub read: bool,
    pub write: bool,
    pub exec: bool,
}

/// What stands behind a mapping.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Backing {
    /// Anonymous memory, with the name set by `PR_SET_VMA_ANON_NAME`, if any.
    Anonymous {
        /// Name without the `[anon:` frame.
        name: Option<String>,
    },
    /// The `brk` heap.
    Heap,
    /// The initial thread's stack, growing downwards.
    Stack,
    /// A page group that the kernel provides (`[vdso]`, `[vvar]`, `[vsyscall]`, …), named without brackets.
    Special(String),
    /// A file, or memory that looks like one (memfd, SysV or POSIX shared memory, `/dev/zero`).
    File {
        /// Path as the kernel prints it, without its ` (deleted)` mark.
        path: String,
        /// The file no longer has a name.
        deleted: bool,
        /// Device, major and minor number.
        dev: (u32, u32),
        /// Inode number.
        inode: u64,
        /// Offset of the mapping's first byte in the file, in bytes.
        offset: u64,
    },
}

/// One mapping (`/proc/PID/maps`).
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Vma {
    /// Addresses.
    pub range: PageRange,
    /// Protection.
    pub prot: Protection,
    /// `MAP_SHARED` rather than `MAP_PRIVATE`.
    pub shared: bool,
    /// What stands behind it.
    pub backing: Backing,
    /// Two-letter flags of `VmFlags` in `/proc/PID/smaps`, where they were read.
    pub flags: Vec<String>,
    /// Build id of an ELF file behind the mapping, where it was read.
    pub build_id: Option<Vec<u8>>,
}

impl Vma {
    /// Provided by the kernel: not tracked, and of its content only code is stored.
    pub fn is_special(&self) -> bool {
        matches!(self.backing, Backing::Special(_))
    }

    /// The kernel's code for programs, `vdso(7)`.
    pub fn is_vdso(&self) -> bool {
        matches!(&self.backing, Backing::Special(name) if name == "vdso")
    }

    /// The name of a mapping with the kernel's code for programs or the data that this reads.
    pub fn kernel_part(&self) -> Option<&str> {
        match &self.backing {
            Backing::Special(name) if name == "vdso" || name.starts_with("vvar") => Some(name),
            _ => None,
        }
    }

    /// Anonymous and private: a page that is not there reads as zeroes.
    pub fn is_private_anonymous(&self) -> bool {
        !self.shared
            && matches!(
                self.backing,
                Backing::Anonymous { .. } | Backing::Heap | Backing::Stack
            )
    }

    /// Memory that several processes may share, and that is in no file of a disk: a page that is not there reads
    /// as zeroes.
    pub fn is_shared_memory(&self) -> bool {
        self.shared
            && match &self.backing {
                Backing::File { path, .. } => ["/memfd:", "/dev/zero", "/SYSV", "/dev/shm/"]
                    .iter()
                    .any(|prefix| path.starts_with(prefix)),
                Backing::Special(_) => false,
                _ => true,
            }
    }

    /// A private mapping of a file: a page that is not there has the file's content.
    pub fn is_private_file(&self) -> bool {
        !self.shared && matches!(self.backing, Backing::File { .. })
    }
}
