//! Attributes of processes and threads: what is neither memory, nor registers, nor a descriptor.
//!
//! `None` stands for what could not be read; [`ProcessState::unsupported`](super::ProcessState) says why.

use super::page::PageRange;
use super::process::{RobustList, Rseq};
use serde::{Deserialize, Serialize};

/// Attributes that all threads of a process share.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessAttributes {
    /// How each signal is dealt with, signal n at n-1: 64 of them.
    pub signals: Option<Vec<SignalAction>>,
    /// The timers of `setitimer(2)`: real, virtual, profiling.
    pub interval_timers: Option<[IntervalTimer; 3]>,
    /// The timers of `timer_create(2)`, ascending by id.
    pub timers: Option<Vec<PosixTimer>>,
    /// Mode bits that new files do not get (`umask(2)`).
    pub umask: Option<u32>,
    /// Root directory, as the process's mount namespace names it.
    pub root: String,
    /// Resource limits by number (`RLIMIT_*`): 16 of them.
    pub limits: Vec<Limit>,
    /// `/proc/PID/oom_score_adj`.
    pub oom_score_adj: Option<i32>,
    /// What goes into a core dump (`core(5)`).
    pub coredump_filter: Option<u32>,
    /// `PR_SET_DUMPABLE`: 0 no, 1 yes, 2 for root only.
    pub dumpable: Option<u32>,
    /// `PR_SET_THP_DISABLE`: 0 no, 1 yes, 3 where not advised.
    pub huge_pages_disabled: Option<u32>,
    /// `PR_SET_MDWE`: bits of what may no longer become executable.
    pub write_execute_denied: Option<u32>,
    /// `PR_SET_MEMORY_MERGE`: same-page merging of all memory.
    pub memory_merge: Option<bool>,
    /// `PR_SET_CHILD_SUBREAPER`.
    pub subreaper: Option<bool>,
    /// Registered intents of `membarrier(2)`, as bits of `MEMBARRIER_CMD_GET_REGISTRATIONS`.
    pub membarrier: Option<u32>,
    /// What future mappings get (`mlockall(2)`): bits `MCL_FUTURE` and `MCL_ONFAULT`.
    pub lock_future: Option<u32>,
    /// Process group.
    pub group: i32,
    /// Session.
    pub session: i32,
    /// Device number of the controlling terminal; 0 for none.
    pub terminal: u32,
    /// Niceness of its session's autogroup (`sched(7)`), where there is one.
    pub autogroup_nice: Option<i32>,
    /// `/proc/PID/loginuid`.
    pub login_uid: Option<u32>,
    /// Namespaces by name, with what `/proc/PID/ns/NAME` refers to; as `NAME:id` what the kernel numbers some of
    /// them with, each once while the machine runs.
    pub namespaces: Vec<(String, u64)>,
    /// Offsets of the time namespace: monotonic and boot time, in nanoseconds.
    pub time_offsets: Option<[i64; 2]>,
    /// `/proc/PID/cgroup`.
    pub cgroup: String,
    /// Security label (`/proc/PID/attr/current`), where a module keeps one.
    pub security_label: Option<Vec<u8>>,
    /// Attributes of its memory that no list of mappings has.
    pub memory: MemoryAttributes,
    /// How what only the process itself and the kernel know was read.
    pub source: Source,
}

impl ProcessAttributes {
    /// The inode number of its namespace of a kind.
    pub fn namespace(&self, kind: &str) -> Option<u64> {
        let mut all = self.namespaces.iter();
        all.find(|(name, _)| name == kind).map(|(_, inode)| *inode)
    }

    /// What the kernel numbers that with, if it was recorded.
    pub fn namespace_id(&self, kind: &str) -> Option<u64> {
        self.namespace(&format!("{kind}:id"))
    }

    /// The inode number of its mount namespace, or of ksnap's, if that was another one with the same mounts: process 1 of
    /// a PID namespace needs one of its own for its `/proc`.
    pub fn mounts(&self) -> Option<u64> {
        let like = self.namespace("mnt:like");
        like.or_else(|| self.namespace("mnt"))
    }

    /// Records that.
    pub fn mounts_like(&mut self, inode: Option<u64>) {
        let like = inode.map(|inode| ("mnt:like".to_owned(), inode));
        self.namespaces.extend(like);
    }

    /// Records what the kernel numbers a namespace of a kind with.
    pub fn set_namespace_id(&mut self, kind: &str, id: u64) {
        self.namespaces.push((format!("{kind}:id"), id));
    }
}

/// Attributes of memory by address, ascending. What is not listed has none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryAttributes {
    /// Pages that fault on access (`MADV_GUARD_INSTALL`).
    pub guards: Vec<PageRange>,
    /// Mappings with a protection key other than 0 (`pkeys(7)`).
    pub keys: Vec<(PageRange, u32)>,
    /// Mappings with a policy of their own (`mbind(2)`).
    pub policies: Vec<(PageRange, MemoryPolicy)>,
}

/// How attributes were read that no file of /proc shows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// They could not be read.
    #[default]
    Unread,
    /// By the probes, inside the stop.
    Probes,
    /// By system calls that the process ran for us, this long before the stop.
    Calls {
        /// Nanoseconds; 0 inside the stop.
        age_ns: u64,
    },
}

/// How a signal is dealt with (`sigaction(2)`), as the kernel has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignalAction {
    /// Address of the handler; 0 default, 1 ignored.
    pub handler: u64,
    /// `SA_*`.
    pub flags: u64,
    /// Where the handler returns to.
    pub restorer: u64,
    /// Signals blocked while it runs, bit n-1 for signal n.
    pub mask: u64,
}

/// A timer of `setitimer(2)`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IntervalTimer {
    /// Nanoseconds until it expires; 0 when it is off.
    pub left_ns: u64,
    /// Nanoseconds from then to each further expiry; 0 for none.
    pub interval_ns: u64,
}

/// A timer of `timer_create(2)`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PosixTimer {
    /// The kernel's id.
    pub id: i32,
    /// Clock, as it was asked for (`CLOCK_*`).
    pub clock: i32,
    /// `SIGEV_*`.
    pub notify: i32,
    /// Signal to send.
    pub signo: i32,
    /// Value that the signal carries.
    pub value: u64,
    /// Thread that gets the signal, with `SIGEV_THREAD_ID`, as its own PID namespace numbers it.
    pub thread: Option<i32>,
    /// Thread whose CPU time it counts, where it does that of a thread.
    pub counted: Option<i32>,
    /// Nanoseconds until it expires; 0 when it is off.
    pub left_ns: u64,
    /// Nanoseconds from then to each further expiry; 0 for none.
    pub interval_ns: u64,
    /// When it expires on the clock that can be set, for one that was set to a time of that clock.
    pub deadline_ns: Option<u64>,
    /// Expiries since the last signal that had no signal of their own (`timer_getoverrun(2)`).
    pub overrun: u64,
}

/// A resource limit (`getrlimit(2)`); `u64::MAX` for none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "self-describing")]
pub struct Limit {
    pub soft: u64,
    pub hard: u64,
}

/// Attributes of one thread.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ThreadAttributes {
    /// Alternate signal stack.
    pub alt_stack: Option<AltStack>,
    /// Address of the word that the kernel clears when the thread ends; 0 for none.
    pub clear_child_tid: Option<u64>,
    /// Who it is and what it may do.
    pub credentials: Option<Credentials>,
    /// Execution domain (`personality(2)`).
    pub personality: Option<u32>,
    /// How it is scheduled.
    pub scheduling: Option<Scheduling>,
    /// Processors that it may run on, bit n of word n/64 for processor n.
    pub affinity: Option<Vec<u64>>,
    /// `ioprio_get(2)`.
    pub io_priority: Option<u32>,
    /// `PR_SET_TIMERSLACK`.
    pub timer_slack_ns: Option<u64>,
    /// Signal that it gets when its parent ends; 0 for none.
    pub parent_death_signal: Option<i32>,
    /// System call filters.
    pub seccomp: Seccomp,
    /// Dispatch of system calls to a handler.
    pub syscall_dispatch: Option<SyscallDispatch>,
    /// `PR_SET_TSC`: reading the time stamp counter raises a signal.
    pub tsc_faults: Option<bool>,
    /// `ARCH_SET_CPUID`: the CPUID instruction raises a signal.
    pub cpuid_faults: Option<bool>,
    /// Speculation by kind (`PR_SPEC_STORE_BYPASS`, `PR_SPEC_INDIRECT_BRANCH`), as `PR_GET_SPECULATION_CTRL` gives it.
    pub speculation: [Option<u32>; 2],
    /// `PR_SET_IO_FLUSHER`.
    pub io_flusher: bool,
    /// `PR_MCE_KILL_GET`: 0 late, 1 early, 2 the system's default.
    pub machine_check_kill: u32,
    /// Where its memory comes from (`set_mempolicy(2)`).
    pub memory_policy: Option<MemoryPolicy>,
    /// Its shadow stack is on.
    pub shadow_stack: bool,
}

/// An alternate signal stack (`sigaltstack(2)`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AltStack {
    /// Lowest address.
    pub sp: u64,
    /// Bytes; 0 for none.
    pub size: u64,
    /// `SS_*`.
    pub flags: u32,
}

/// Ids and capabilities of a thread (`credentials(7)`, `capabilities(7)`), as ksnap's user namespace numbers them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credentials {
    /// Real, effective, saved, filesystem user id.
    pub uids: [u32; 4],
    /// Real, effective, saved, filesystem group id.
    pub gids: [u32; 4],
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Inheritable, permitted, effective, bounding, ambient capabilities.
    pub capabilities: [u64; 5],
    /// `PR_SET_SECUREBITS`.
    pub securebits: Option<u32>,
    /// `PR_SET_NO_NEW_PRIVS`.
    pub no_new_privs: bool,
}

/// When an interrupted system call is over, as the kernel keeps it for its restart (`restart_syscall(2)`). Which of
/// these holds is told by the call alone; the others are whatever is there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Deadlines {
    /// Of a sleep: its clock, and nanoseconds of that.
    pub sleep: (i32, u64),
    /// Of a wait for a futex, in nanoseconds of `CLOCK_MONOTONIC`.
    pub futex: u64,
    /// Of a poll(2), in nanoseconds of `CLOCK_MONOTONIC`.
    pub poll: u64,
}

/// Scheduling of a thread (`sched_setattr(2)`, `sched(7)`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the fields of `struct sched_attr`")]
pub struct Scheduling {
    pub policy: u32,
    pub flags: u64,
    pub nice: i32,
    pub priority: u32,
    pub runtime: u64,
    pub deadline: u64,
    pub period: u64,
    pub util_min: u32,
    pub util_max: u32,
}

/// System call filters of a thread (`seccomp(2)`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seccomp {
    /// 0 none, 1 strict, 2 filters.
    pub mode: u32,
    /// Filters, the first installed first; `None` when they could not be read.
    pub filters: Option<Vec<SeccompFilter>>,
}

/// One filter.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeccompFilter {
    /// `SECCOMP_FILTER_FLAG_*` that it was installed with, as far as the kernel tells.
    pub flags: u64,
    /// `struct sock_filter` after `struct sock_filter`, 8 bytes each.
    pub program: Vec<u8>,
}

/// `PR_SET_SYSCALL_USER_DISPATCH`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyscallDispatch {
    /// 0 off, 1 on outside the range, 2 on inside it.
    pub mode: u64,
    /// Start of the range.
    pub offset: u64,
    /// Its length.
    pub len: u64,
    /// Address of the byte that turns it on and off; 0 for none.
    pub selector: u64,
}

/// A policy of where memory comes from (`set_mempolicy(2)`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct MemoryPolicy {
    /// `MPOL_*` with its mode flags.
    pub mode: u32,
    /// Nodes, bit n of word n/64 for node n.
    pub nodes: Vec<u64>,
}

/// What the kernel's own structures tell of a process. Attributes that they do not tell are unset.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// Attributes that all threads share.
    pub process: ProcessAttributes,
    /// Each thread.
    pub threads: Vec<ObservedThread>,
    /// What was seen and has no place here, a sentence each.
    pub unsupported: Vec<String>,
}

/// What the kernel's own structures tell of a thread.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ObservedThread {
    /// Its id.
    pub tid: i32,
    /// Its name.
    pub comm: String,
    /// Its attributes.
    pub attributes: ThreadAttributes,
    /// Filters that it has, to tell whether they are still those read before.
    pub filters: u32,
    /// Signals are queued for it alone.
    pub pending: bool,
    /// Its restartable sequence; `None` where the kernel keeps it elsewhere.
    pub rseq: Option<Option<Rseq>>,
    /// Its robust futex list.
    pub robust_list: Option<RobustList>,
    /// Groups beyond those that there was room for.
    pub more_groups: bool,
    /// When a call that the stop interrupted is over.
    pub deadlines: Deadlines,
}
