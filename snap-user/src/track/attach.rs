//! Beginning to track a process.

use super::hash::Hash;
use super::soft_dirty::SoftDirty;
use super::wp::WriteProtect;
use super::{Result, Support, TrackError, Tracker, TrackerChoice, TrackerKind, support};
use crate::sys::{
    Call, Freeze, Frozen, Gadgets, Guarded, Pagemap, Remote, SoftDirtyBits, SysError,
    USERFAULTFD_FLAGS, Userfaultfd, pidfd_getfd, pidfd_open, proc,
};
use std::os::fd::OwnedFd;

/// A process that is tracked from now on.
pub struct Attached {
    /// The mechanism.
    pub tracker: Box<dyn Tracker>,
    /// Its program break, where it could be asked.
    pub brk: Option<u64>,
    /// Why not a better mechanism that works on this kernel, where one does.
    pub instead: Option<String>,
}

/// Starts tracking a process with the best mechanism that `choice` allows. Stops it for well under
/// a millisecond. If ksnap ends, tracking ends with it, and the process runs on.
pub fn attach(pid: i32, choice: TrackerChoice) -> Result<Attached> {
    let wanted: Vec<TrackerKind> = match choice {
        TrackerChoice::Auto => TrackerKind::ALL.to_vec(),
        TrackerChoice::Only(kind) => vec![kind],
    };
    let mut reason = None;
    let mut instead = None;
    for kind in wanted {
        if let Support::No(why) | Support::Unknown(why) = support(kind) {
            reason.get_or_insert(TrackError::Unavailable { kind, why });
            continue;
        }
        let pagemap = Pagemap::open(pid)?;
        match kind {
            TrackerKind::WriteProtect => match make_userfaultfd(pid) {
                Ok((uffd, brk)) => {
                    let tracker = Box::new(WriteProtect::new(uffd, pagemap));
                    return Ok(Attached {
                        tracker,
                        brk,
                        instead,
                    });
                }
                Err(e) if e.is_vanished() => return Err(e.into()),
                Err(e) => {
                    instead = Some(format!("this process cannot be tracked by {kind}: {e}"));
                    reason.get_or_insert(TrackError::Unavailable {
                        kind,
                        why: e.to_string(),
                    });
                }
            },
            TrackerKind::SoftDirty => match SoftDirtyBits::take(pid)? {
                Some(bits) => {
                    return Ok(Attached {
                        tracker: Box::new(SoftDirty::new(bits, pagemap)),
                        brk: None,
                        instead,
                    });
                }
                None => {
                    let why = "another ksnap tracks this process by it";
                    instead.get_or_insert_with(|| format!("not by {kind}: {why}"));
                    reason.get_or_insert(TrackError::Unavailable {
                        kind,
                        why: why.into(),
                    });
                }
            },
            TrackerKind::Hash => {
                return Ok(Attached {
                    tracker: Box::new(Hash::new(pagemap)),
                    brk: None,
                    instead,
                });
            }
        }
    }
    Err(reason.expect("the content tracker always works, so something else was asked for"))
}

const BRK: Call = Call {
    nr: libc::SYS_brk,
    args: [0; 6],
};
const CREATE: Call = Call {
    nr: libc::SYS_userfaultfd,
    args: [USERFAULTFD_FLAGS, 0, 0, 0, 0, 0],
};

fn close(fd: i32) -> Call {
    Call {
        nr: libc::SYS_close,
        args: [fd as u64, 0, 0, 0, 0, 0],
    }
}

/// Makes a userfaultfd in the target, takes it over, and closes it there.
fn make_userfaultfd(pid: i32) -> crate::sys::Result<(Userfaultfd, Option<u64>)> {
    let vmas = proc::maps(pid)?;
    let gadgets = Gadgets::find(pid, &vmas)?.ok_or_else(|| {
        SysError::new(
            "inject system call",
            format_args!("process {pid}"),
            std::io::Error::new(
                std::io::ErrorKind::Unsupported,
                "no system call in its code",
            ),
        )
    })?;
    let process = pidfd_open(pid)?;
    let frozen = Frozen::freeze(pid, Freeze::default())?;
    match Guarded::new(&frozen, &gadgets, &vmas) {
        Ok(mut thread) => {
            let brk = thread.call(BRK, None)?;
            // The lowest free number is the one that the new descriptor gets.
            let open = proc::FdTable::open(pid)?.numbers()?;
            let expected = (0..)
                .find(|fd| !open.contains(fd))
                .expect("some number is free");
            let fd = thread.call(CREATE, Some(close(expected)))?;
            let taken = take(&process, fd);
            if fd >= 0 {
                thread.call(close(fd as i32), None)?;
            }
            Ok((Userfaultfd::adopt(taken?)?, Some(brk as u64)))
        }
        Err(e) if e.source.kind() == std::io::ErrorKind::Unsupported => {
            tracing::debug!("process {pid}: {e}; injecting without a guard");
            unguarded(&frozen, &gadgets, &process)
        }
        Err(e) => Err(e),
    }
}

fn unguarded(
    frozen: &Frozen,
    gadgets: &Gadgets,
    process: &OwnedFd,
) -> crate::sys::Result<(Userfaultfd, Option<u64>)> {
    let mut thread = Remote::new(frozen.threads()[0], gadgets.syscall)?;
    let brk = thread.call("brk", BRK.nr, BRK.args)?;
    let fd = thread.call("userfaultfd", CREATE.nr, CREATE.args)?;
    let taken = take(process, fd as i64);
    let call = close(fd as i32);
    thread.call("close", call.nr, call.args)?;
    Ok((Userfaultfd::adopt(taken?)?, Some(brk)))
}

fn take(process: &OwnedFd, fd: i64) -> crate::sys::Result<OwnedFd> {
    if fd < 0 {
        return Err(SysError::new(
            "userfaultfd",
            "the target, by injection",
            std::io::Error::from_raw_os_error(-fd as i32),
        ));
    }
    pidfd_getfd(process, fd as i32)
}
