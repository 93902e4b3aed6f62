//! Ring buffer records as typed events.

use super::hazard::{self, HazardKind};
use super::mapping::{self, MappingChange};
use super::syscalls::DESCRIBING;
use crate::model::PageRange;
use snap_common::{EventHeader, EventKind, FaultEvent, SystemEvent, flag};
use std::mem::{offset_of, size_of};

/// Something that happened to a tracked process. Times are `CLOCK_MONOTONIC` in ns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// A page is about to be written: the write fault began, and was not resolved yet.
    Fault {
        /// Process whose memory is written.
        tgid: u32,
        /// Thread that writes; of another process when `remote`.
        tid: u32,
        /// Address of the page.
        page: u64,
        /// Instruction that writes: in the kernel when not `user`; 0 where there is none.
        ip: u64,
        /// When.
        time_ns: u64,
        /// Taken in user mode.
        user: bool,
        /// The writer belongs to another process.
        remote: bool,
    },
    /// A thread was made; it has not run yet.
    ThreadStart {
        /// Its process.
        tgid: u32,
        /// The new thread.
        tid: u32,
        /// The thread that made it.
        parent_tid: u32,
        /// When.
        time_ns: u64,
    },
    /// A process was made; it has not run yet, and is tracked from here on.
    Fork {
        /// Process that forked.
        parent: u32,
        /// Thread that forked.
        parent_tid: u32,
        /// The new process.
        child: u32,
        /// Both share one address space for now (vfork): the child's writes are the parent's.
        shares_memory: bool,
        /// When.
        time_ns: u64,
    },
    /// Another program was executed: a new address space, one thread.
    Exec {
        /// The process.
        tgid: u32,
        /// The thread that called; its id is `tgid` from now on.
        old_tid: u32,
        /// When.
        time_ns: u64,
    },
    /// A thread ended.
    Exit {
        /// Its process.
        tgid: u32,
        /// The thread.
        tid: u32,
        /// It was the last one; the process is no longer tracked.
        last: bool,
        /// When.
        time_ns: u64,
    },
    /// Mappings changed. Comes after the change.
    Mapping {
        /// The process.
        tgid: u32,
        /// The thread that called.
        tid: u32,
        /// When the call returned.
        time_ns: u64,
        /// What changed.
        change: MappingChange,
    },
    /// Mappings are where they were, but locked, sealed, or under another policy.
    Described {
        /// The process.
        tgid: u32,
        /// The thread that called.
        tid: u32,
        /// When the call returned.
        time_ns: u64,
    },
    /// Memory may have been written without a fault event.
    Hazard {
        /// The process concerned; `None`: any tracked one.
        tgid: Option<u32>,
        /// The thread that did it.
        tid: u32,
        /// When.
        time_ns: u64,
        /// How.
        kind: HazardKind,
        /// Which pages, where that is known.
        range: Option<PageRange>,
    },
    /// A thread ran again after a ptrace stop: the stop as the thread saw it.
    Stopped {
        /// Its process.
        tgid: u32,
        /// The thread.
        tid: u32,
        /// When it left the CPU.
        start_ns: u64,
        /// When it was put on a CPU again.
        end_ns: u64,
    },
}

impl Event {
    /// The process that it is about; of a fork, the parent. `None`: any tracked one.
    pub fn tgid(&self) -> Option<u32> {
        match *self {
            Self::Fault { tgid, .. }
            | Self::ThreadStart { tgid, .. }
            | Self::Exec { tgid, .. }
            | Self::Exit { tgid, .. }
            | Self::Mapping { tgid, .. }
            | Self::Described { tgid, .. }
            | Self::Stopped { tgid, .. } => Some(tgid),
            Self::Fork { parent, .. } => Some(parent),
            Self::Hazard { tgid, .. } => tgid,
        }
    }
}

/// A record that is no event of this ABI version.
#[derive(Debug, PartialEq, Eq)]
pub struct Malformed;

fn int<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N], Malformed> {
    bytes
        .get(at..)
        .and_then(|rest| rest.first_chunk())
        .copied()
        .ok_or(Malformed)
}

fn u16_at(bytes: &[u8], at: usize) -> Result<u16, Malformed> {
    int(bytes, at).map(u16::from_ne_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Result<u32, Malformed> {
    int(bytes, at).map(u32::from_ne_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> Result<u64, Malformed> {
    int(bytes, at).map(u64::from_ne_bytes)
}

fn header(bytes: &[u8]) -> Result<EventHeader, Malformed> {
    Ok(EventHeader {
        kind: u16_at(bytes, offset_of!(EventHeader, kind))?,
        flags: u16_at(bytes, offset_of!(EventHeader, flags))?,
        tgid: u32_at(bytes, offset_of!(EventHeader, tgid))?,
        tid: u32_at(bytes, offset_of!(EventHeader, tid))?,
        nr: u32_at(bytes, offset_of!(EventHeader, nr))?,
        time_ns: u64_at(bytes, offset_of!(EventHeader, time_ns))?,
    })
}

/// Decodes a record. `Ok(None)`: a call that failed and changed nothing.
pub fn decode(bytes: &[u8]) -> Result<Option<Event>, Malformed> {
    let header = header(bytes)?;
    let kind = EventKind::from_raw(header.kind).ok_or(Malformed)?;
    let has = |bit| header.flags & bit != 0;
    let EventHeader {
        tgid,
        tid,
        time_ns,
        nr,
        ..
    } = header;
    if kind == EventKind::Fault {
        if bytes.len() != size_of::<FaultEvent>() {
            return Err(Malformed);
        }
        return Ok(Some(Event::Fault {
            tgid,
            tid,
            page: u64_at(bytes, offset_of!(FaultEvent, page))?,
            ip: u64_at(bytes, offset_of!(FaultEvent, ip))?,
            time_ns,
            user: has(flag::USER),
            remote: has(flag::REMOTE),
        }));
    }
    if bytes.len() != size_of::<SystemEvent>() {
        return Err(Malformed);
    }
    let mut args = [0; 5];
    for (index, arg) in args.iter_mut().enumerate() {
        *arg = u64_at(bytes, offset_of!(SystemEvent, args) + 8 * index)?;
    }
    let event = SystemEvent { header, args };
    let hazard = |(kind, range)| Event::Hazard {
        tgid: (!has(flag::ANY_TARGET)).then_some(tgid),
        tid,
        time_ns,
        kind,
        range,
    };
    Ok(match kind {
        EventKind::Fault => return Err(Malformed),
        EventKind::ThreadStart => Some(Event::ThreadStart {
            tgid,
            tid,
            parent_tid: args[0] as u32,
            time_ns,
        }),
        EventKind::Fork => Some(Event::Fork {
            parent: tgid,
            parent_tid: tid,
            child: args[0] as u32,
            shares_memory: has(flag::SHARES_MM),
            time_ns,
        }),
        EventKind::Exec => Some(Event::Exec {
            tgid,
            old_tid: args[0] as u32,
            time_ns,
        }),
        EventKind::Exit => Some(Event::Exit {
            tgid,
            tid,
            last: has(flag::LAST),
            time_ns,
        }),
        EventKind::Mapping => mapping::decode(&event).map(|change| Event::Mapping {
            tgid,
            tid,
            time_ns,
            change,
        }),
        EventKind::Hazard if DESCRIBING.contains(&nr.into()) => {
            Some(Event::Described { tgid, tid, time_ns })
        }
        EventKind::Hazard => hazard::decode(&event).map(hazard),
        EventKind::MmLock => Some(hazard((
            HazardKind::PageLock {
                syscall: hazard::lock_syscall(nr),
            },
            None,
        ))),
        EventKind::Stopped => Some(Event::Stopped {
            tgid,
            tid,
            start_ns: args[0],
            end_ns: time_ns,
        }),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A record as the programs lay it out, written field by field.
    fn record(kind: u16, flags: u16, words: &[u64]) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(&flags.to_ne_bytes());
        for id in [10_u32, 11, 0] {
            bytes.extend_from_slice(&id.to_ne_bytes());
        }
        bytes.extend_from_slice(&99_u64.to_ne_bytes());
        for word in words {
            bytes.extend_from_slice(&word.to_ne_bytes());
        }
        bytes
    }

    #[test]
    fn a_fault_carries_its_page_and_instruction() {
        let event = decode(&record(1, flag::USER, &[0x7000, 0x40_1234]))
            .unwrap()
            .unwrap();
        assert_eq!(
            event,
            Event::Fault {
                tgid: 10,
                tid: 11,
                page: 0x7000,
                ip: 0x40_1234,
                time_ns: 99,
                user: true,
                remote: false
            }
        );
    }

    #[test]
    fn fork_exit_and_stop_carry_their_flags_and_arguments() {
        let args = [77, 0, 0, 0, 0];
        assert!(matches!(
            decode(&record(3, flag::SHARES_MM, &args)),
            Ok(Some(Event::Fork {
                parent: 10,
                parent_tid: 11,
                child: 77,
                shares_memory: true,
                ..
            }))
        ));
        assert!(matches!(
            decode(&record(5, flag::LAST, &args)),
            Ok(Some(Event::Exit {
                tgid: 10,
                tid: 11,
                last: true,
                ..
            }))
        ));
        assert!(matches!(
            decode(&record(9, 0, &args)),
            Ok(Some(Event::Stopped {
                tid: 11,
                start_ns: 77,
                end_ns: 99,
                ..
            }))
        ));
    }

    #[test]
    fn short_long_and_unknown_records_are_malformed() {
        let fault = record(1, 0, &[1, 2]);
        for length in 0..fault.len() {
            assert_eq!(decode(&fault[..length]), Err(Malformed), "cut to {length}");
        }
        assert_eq!(decode(&record(1, 0, &[1, 2, 3])), Err(Malformed));
        assert_eq!(decode(&record(5, 0, &[1, 2])), Err(Malformed));
        assert_eq!(decode(&record(0, 0, &[0; 5])), Err(Malformed));
        assert_eq!(decode(&record(10, 0, &[0; 5])), Err(Malformed));
    }
}
