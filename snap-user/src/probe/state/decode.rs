//! From what the kernel's structures hold to the attributes that its interfaces tell.

use super::record::{
    MAX_GROUPS, NODE_WORDS, OBJECT_BASE, OBJECT_POLICY, ProcessRecord, ThreadRecord, TimerRecord,
};
use crate::model::{
    AltStack, Credentials, Deadlines, IntervalTimer, Limit, MemoryPolicy, Observed, ObservedThread,
    PosixTimer, ProcessAttributes, RobustList, Rseq, Seccomp, SignalAction, Source,
    SyscallDispatch, ThreadAttributes,
};
use crate::sys::proc;
use snap_common::{RecordHeader, RecordKind};
use zerocopy::FromBytes;

/// Bits of `task_struct.atomic_flags` (include/linux/sched.h).
const PFA_NO_NEW_PRIVS: u64 = 1;
const PFA_STORE_BYPASS: u32 = 3;
const PFA_INDIRECT_BRANCH: u32 = 5;
const PFA_STORE_BYPASS_NOEXEC: u64 = 1 << 7;
/// `VM_LOCKED` and `VM_LOCKONFAULT` (include/linux/mm.h).
const VM_LOCKED: u64 = 0x2000;
const VM_LOCKONFAULT: u64 = 0x0008_0000;
/// The first bits of `mm_struct.flags` (include/linux/mm_types.h): what may be dumped, and of what.
const DUMPABLE: u64 = 3;
const DUMP_FILTER_SHIFT: u32 = 2;
const DUMP_FILTER: u64 = 0x1ff;
/// Bits of `mm_struct.membarrier_state` (include/linux/sched/mm.h) that say that an intent is
/// registered, each with its command of membarrier(2).
const MEMBARRIER: [(u32, u32); 4] = [
    (1 << 0, 1 << 4),
    (1 << 2, 1 << 2),
    (1 << 4, 1 << 6),
    (1 << 6, 1 << 8),
];
/// `MMF_HAS_MDWE` and `MMF_HAS_MDWE_NO_INHERIT`.
const DENIAL_SHIFT: u32 = 28;
const DENIALS: u64 = 3;
/// Size of `struct robust_list_head`, the only one that set_robust_list(2) accepts.
const ROBUST_LIST: u64 = 24;
/// `HRTIMER_STATE_ENQUEUED`
const ENQUEUED: u8 = 1;

/// The clocks at the moment of reading, in nanoseconds.
#[derive(Clone, Copy, Debug)]
pub struct Clocks {
    /// `CLOCK_REALTIME`
    pub real: i64,
    /// `CLOCK_MONOTONIC`
    pub monotonic: i64,
    /// `CLOCK_BOOTTIME`
    pub boot: i64,
    /// `CLOCK_TAI`
    pub tai: i64,
}

impl Clocks {
    fn now(&self, clock: i32) -> i64 {
        match clock {
            libc::CLOCK_REALTIME => self.real,
            libc::CLOCK_BOOTTIME => self.boot,
            libc::CLOCK_TAI => self.tai,
            _ => self.monotonic,
        }
    }
}

/// What the layout of the running kernel's structures says beyond the places of fields.
#[derive(Clone, Copy, Debug, Default)]
pub struct Bits {
    /// The bit of `signal_struct.is_child_subreaper` in its byte.
    pub subreaper: u32,
    /// The bits of `thread_info.flags` that say that reading the time stamp counter, and the CPUID
    /// instruction, raise a signal; `None` where that is not known.
    pub traps: [Option<u32>; 2],
    /// Registrations of restartable sequences lie where they are looked for.
    pub rseq: bool,
    /// `mm_struct.flags` has the bits of `PR_SET_MDWE` (Linux 6.7).
    pub denials: bool,
}

/// Takes a stream of records apart.
///
/// # Errors
/// The stream is not what this kernel's program writes.
pub fn decode(mut bytes: &[u8], clocks: &Clocks, bits: Bits) -> Result<Observed, &'static str> {
    let mut observed = Observed::default();
    let mut process = None;
    let mut timers = Vec::new();
    let mut run_times = Vec::new();
    let mut complete = true;
    while !bytes.is_empty() {
        let (header, rest) = header(bytes).ok_or("a record's header")?;
        let (body, rest) = rest
            .split_at_checked(header.len as usize)
            .ok_or("a record's length")?;
        bytes = rest;
        match header.kind {
            kind if kind == RecordKind::Thread as u32 => {
                let record = ThreadRecord::read_from_bytes(body).map_err(|_| "a thread")?;
                run_times.push((header.tid as i32, record.run_time));
                thread(header, &record, bits, &mut observed);
            }
            kind if kind == RecordKind::Process as u32 => {
                process = Some(ProcessRecord::read_from_bytes(body).map_err(|_| "a process")?);
            }
            kind if kind == RecordKind::Timer as u32 => {
                let record = TimerRecord::read_from_bytes(body).map_err(|_| "a timer")?;
                timers.push((header, record));
            }
            kind if kind == RecordKind::MoreTimers as u32 => complete = false,
            _ => return Err("the kind of a record"),
        }
    }
    let Some(record) = process else {
        return Err("the process's own record");
    };
    observed.process = attributes(&record, clocks, bits);
    if complete {
        let mut all: Vec<PosixTimer> = timers
            .iter()
            .filter_map(|(header, timer)| {
                timer_of(
                    header,
                    timer,
                    clocks,
                    &record,
                    &run_times,
                    &mut observed.unsupported,
                )
            })
            .collect();
        all.sort_unstable_by_key(|timer| timer.id);
        observed.process.timers = Some(all);
    }
    if record.fs_users > observed.threads.len() as i32 {
        observed.unsupported.push(
            "its directories and umask are shared with another process (CLONE_FS)".to_owned(),
        );
    }
    Ok(observed)
}

/// The flags of one thread.
pub fn flags(mut bytes: &[u8], tid: i32) -> Option<u64> {
    while let Some((header, rest)) = header(bytes) {
        let (body, rest) = rest.split_at_checked(header.len as usize)?;
        bytes = rest;
        if header.kind == RecordKind::Thread as u32 && header.tid as i32 == tid {
            return Some(ThreadRecord::read_from_bytes(body).ok()?.thread_flags);
        }
    }
    None
}

fn header(bytes: &[u8]) -> Option<(RecordHeader, &[u8])> {
    let (words, rest) = bytes.split_first_chunk::<{ size_of::<RecordHeader>() }>()?;
    let word = |n: usize| u32::from_ne_bytes(*words[n * 4..].first_chunk().expect("four bytes"));
    let header = RecordHeader {
        kind: word(0),
        len: word(1),
        tid: word(2),
        objects: word(3),
    };
    Some((header, rest))
}

/// Threads get a list when they are made; what counts is whether anything is in it. The head of an empty list
/// points to itself, which is within the structure.
fn has_undo(record: &ThreadRecord) -> bool {
    const STRUCTURE: u64 = 64;
    let [first, _] = record.undo;
    first != 0 && !(record.undo_list..record.undo_list + STRUCTURE).contains(&first)
}

fn thread(header: RecordHeader, record: &ThreadRecord, bits: Bits, observed: &mut Observed) {
    let tid = header.tid as i32;
    let mut lost = |what: &str| observed.unsupported.push(format!("thread {tid}: {what}"));
    if has_undo(record) {
        lost("what is undone to semaphores when it ends (SEM_UNDO) is not captured");
    }
    if record.thread_keyring != 0 || record.process_keyring != 0 {
        lost("its keyrings (keyrings(7)) are not captured");
    }
    if record.io_bitmap != 0 || record.iopl != 0 {
        lost("its access to I/O ports (ioperm, iopl) is not captured");
    }
    let kept = (record.group_count.max(0) as usize).min(MAX_GROUPS);
    let end = record.comm.iter().position(|b| *b == 0);
    let comm = &record.comm[..end.unwrap_or(record.comm.len())];
    observed.threads.push(ObservedThread {
        tid,
        comm: String::from_utf8_lossy(comm).into_owned(),
        filters: record.seccomp_filters as u32,
        more_groups: record.group_count > MAX_GROUPS as i32,
        deadlines: Deadlines {
            sleep: (record.sleep_clock, record.sleep_end),
            futex: record.futex_end,
            // Seconds and nanoseconds, under one of two names.
            poll: [record.poll_end, record.poll_end_time]
                .map(|[s, ns]| s.saturating_mul(1_000_000_000).saturating_add(ns))
                .into_iter()
                .max()
                .unwrap_or(0),
        },
        pending: record.pending != 0,
        rseq: bits.rseq.then(|| {
            (record.rseq != 0).then_some(Rseq {
                addr: record.rseq,
                size: record.rseq_len,
                signature: record.rseq_sig,
                flags: 0,
            })
        }),
        robust_list: (record.robust_list != 0).then_some(RobustList {
            head: record.robust_list,
            len: ROBUST_LIST,
        }),
        attributes: ThreadAttributes {
            alt_stack: Some(AltStack {
                sp: record.alt_sp,
                size: record.alt_size,
                flags: record.alt_flags,
            }),
            clear_child_tid: Some(record.clear_child_tid),
            credentials: Some(Credentials {
                uids: [record.uid, record.euid, record.suid, record.fsuid],
                gids: [record.gid, record.egid, record.sgid, record.fsgid],
                groups: record.groups[..kept].to_vec(),
                capabilities: [
                    record.cap_inheritable,
                    record.cap_permitted,
                    record.cap_effective,
                    record.cap_bounding,
                    record.cap_ambient,
                ],
                securebits: Some(record.securebits),
                no_new_privs: record.atomic_flags & PFA_NO_NEW_PRIVS != 0,
            }),
            personality: Some(record.personality),
            tsc_faults: bits.traps[0].map(|bit| record.thread_flags >> bit & 1 != 0),
            cpuid_faults: bits.traps[1].map(|bit| record.thread_flags >> bit & 1 != 0),
            timer_slack_ns: Some(record.timer_slack),
            parent_death_signal: Some(record.parent_death_signal),
            seccomp: Seccomp {
                mode: record.seccomp_mode as u32,
                filters: (record.seccomp_filters == 0).then(Vec::new),
            },
            syscall_dispatch: [
                record.dispatch_selector,
                record.dispatch_offset,
                record.dispatch_len,
            ]
            .iter()
            .all(|word| *word == 0)
            .then(SyscallDispatch::default),
            speculation: [
                Some(speculation(record.atomic_flags, PFA_STORE_BYPASS)),
                Some(speculation(record.atomic_flags, PFA_INDIRECT_BRANCH)),
            ],
            io_flusher: proc::is_io_flusher(record.flags.into()),
            machine_check_kill: proc::machine_check_kill(record.flags.into()),
            memory_policy: Some(match header.objects >> OBJECT_POLICY & 1 {
                0 => MemoryPolicy::default(),
                _ => policy(record),
            }),
            ..ThreadAttributes::default()
        },
    });
}

/// Two bits for each kind: disabled, and disabled for good. In the terms of prctl(2).
fn speculation(flags: u64, first: u32) -> u32 {
    let forced = flags >> (first + 1) & 1 != 0;
    let disabled = flags >> first & 1 != 0;
    match (forced, disabled) {
        (true, _) => libc::PR_SPEC_FORCE_DISABLE,
        _ if first == PFA_STORE_BYPASS && flags & PFA_STORE_BYPASS_NOEXEC != 0 => {
            libc::PR_SPEC_DISABLE_NOEXEC
        }
        (_, true) => libc::PR_SPEC_DISABLE,
        _ => libc::PR_SPEC_ENABLE,
    }
}

fn policy(record: &ThreadRecord) -> MemoryPolicy {
    let words = NODE_WORDS
        - record
            .policy_nodes
            .iter()
            .rev()
            .take_while(|w| **w == 0)
            .count();
    MemoryPolicy {
        mode: u32::from(record.policy_mode) | u32::from(record.policy_flags),
        nodes: record.policy_nodes[..words].to_vec(),
    }
}

fn attributes(record: &ProcessRecord, clocks: &Clocks, bits: Bits) -> ProcessAttributes {
    let real = IntervalTimer {
        left_ns: match record.real_state & ENQUEUED {
            0 => 0,
            _ => (record.real_expires as i64 - clocks.monotonic).max(1) as u64,
        },
        interval_ns: record.real_interval,
    };
    let [user, system, _] = record.cpu_times;
    let on_cpu = |[expires, interval]: [u64; 2], now: u64| IntervalTimer {
        left_ns: match expires {
            0 => 0,
            expires => expires.saturating_sub(now).max(1),
        },
        interval_ns: interval,
    };
    // In the kernel's array profiling comes first; in the numbers of setitimer(2) it comes last.
    let [profiling, virtual_time] = record.cpu_timers;
    let lock = |bit: u64, flag: u32| match record.mm_default & bit {
        0 => 0,
        _ => flag,
    };
    ProcessAttributes {
        signals: Some(
            record
                .actions
                .iter()
                .map(|[handler, flags, restorer, mask]| SignalAction {
                    handler: *handler,
                    flags: *flags,
                    restorer: *restorer,
                    mask: *mask,
                })
                .collect(),
        ),
        interval_timers: Some([
            rearmed(real),
            on_cpu(virtual_time, user),
            on_cpu(profiling, user + system),
        ]),
        umask: Some(record.umask),
        limits: record
            .limits
            .iter()
            .map(|[soft, hard]| Limit {
                soft: *soft,
                hard: *hard,
            })
            .collect(),
        oom_score_adj: Some(record.oom_score_adj.into()),
        coredump_filter: Some((record.mm_flags >> DUMP_FILTER_SHIFT & DUMP_FILTER) as u32),
        dumpable: Some((record.mm_flags & DUMPABLE) as u32),
        write_execute_denied: bits
            .denials
            .then_some((record.mm_flags >> DENIAL_SHIFT & DENIALS) as u32),
        subreaper: Some(record.subreaper >> bits.subreaper & 1 != 0),
        membarrier: Some(
            MEMBARRIER
                .iter()
                .filter(|(ready, _)| record.membarrier & ready != 0)
                .fold(0, |bits, (_, command)| bits | command),
        ),
        lock_future: Some(
            lock(VM_LOCKED, libc::MCL_FUTURE as u32)
                | lock(VM_LOCKONFAULT, libc::MCL_ONFAULT as u32),
        ),
        source: Source::Probes,
        ..ProcessAttributes::default()
    }
}

/// A periodic timer is set again when its signal is delivered; until then it is off.
fn rearmed(timer: IntervalTimer) -> IntervalTimer {
    match timer.left_ns {
        0 => IntervalTimer {
            left_ns: timer.interval_ns,
            ..timer
        },
        _ => timer,
    }
}

fn timer_of(
    header: &RecordHeader,
    record: &TimerRecord,
    clocks: &Clocks,
    process: &ProcessRecord,
    run_times: &[(i32, u64)],
    unsupported: &mut Vec<String>,
) -> Option<PosixTimer> {
    let interval = record.interval.max(0);
    let mut deadline_ns = None;
    let left = match record.clock {
        libc::CLOCK_REALTIME_ALARM | libc::CLOCK_BOOTTIME_ALARM => {
            let id = record.id;
            unsupported.push(format!(
                "timer {id}: an alarm that wakes the machine is not captured"
            ));
            return None;
        }
        clock if cpu_clock(clock).is_some() => {
            let now = cpu_time(record, process, run_times);
            match record.cpu_expires {
                0 => 0,
                expires => expires.saturating_sub(now).max(1),
            }
        }
        _ => {
            let base = match header.objects >> OBJECT_BASE & 1 {
                0 => record.clock,
                _ => record.base_clock,
            };
            // One that sends nothing is never queued; it only counts.
            let counts = record.notify & !libc::SIGEV_THREAD_ID == libc::SIGEV_NONE;
            let queued = record.state & ENQUEUED != 0;
            let now = clocks.now(base);
            let left = wait(queued, counts, record.expires, interval, now);
            if base == libc::CLOCK_REALTIME && left != 0 && (queued || counts) {
                deadline_ns = Some(record.expires as u64);
            }
            left
        }
    };
    Some(PosixTimer {
        id: record.id,
        clock: record.clock,
        notify: record.notify,
        signo: record.signo,
        value: record.value,
        thread: (record.notify & libc::SIGEV_THREAD_ID != 0).then_some(record.target),
        counted: cpu_clock(record.clock)
            .filter(|(of_thread, _)| *of_thread)
            .map(|_| record.cpu_target),
        left_ns: left,
        interval_ns: interval as u64,
        deadline_ns,
        overrun: record.overrun_last.max(0) as u64,
    })
}

/// For a clock of CPU time: whether it is a thread's, and what it counts (0 user and system time, 1
/// user time, 2 run time). Negative numbers are such clocks of processes and threads by their ids
/// (include/linux/posix-timers.h).
fn cpu_clock(clock: i32) -> Option<(bool, i32)> {
    match clock {
        libc::CLOCK_PROCESS_CPUTIME_ID => Some((false, 2)),
        libc::CLOCK_THREAD_CPUTIME_ID => Some((true, 2)),
        ..0 => Some((clock & 4 != 0, clock & 3)),
        _ => None,
    }
}

/// What the clock of a timer on CPU time shows.
fn cpu_time(record: &TimerRecord, process: &ProcessRecord, run_times: &[(i32, u64)]) -> u64 {
    let (of_thread, counts) = cpu_clock(record.clock).unwrap_or((false, 2));
    let [user, system, run] = process.cpu_times;
    match (of_thread, counts) {
        (true, _) => run_times
            .iter()
            .find(|(tid, _)| *tid == record.cpu_target)
            .map_or(0, |(_, time)| *time),
        (false, 0) => user + system,
        (false, 1) => user,
        (false, _) => run,
    }
}

/// Nanoseconds until a timer expires; 0 when it is off. One that has expired and is periodic is set
/// again when its signal is delivered, to the next of its times that is still to come.
fn wait(queued: bool, counts: bool, expires: i64, interval: i64, now: i64) -> u64 {
    if queued {
        return (expires - now).max(1) as u64;
    }
    if counts && expires > now {
        return (expires - now) as u64;
    }
    match interval {
        0 => 0,
        _ => (interval - (now - expires).max(0) % interval) as u64,
    }
}

#[cfg(test)]
mod tests;
