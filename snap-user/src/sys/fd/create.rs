//! Making open files that have no path, and setting what they hold.

use super::{Result, SysError, add_seals, check, name};
use crate::model::{Memfd, Timerfd};
use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;

/// `_IOW('T', 0, __u64)` (linux/timerfd.h; `CONFIG_CHECKPOINT_RESTORE`).
const TFD_IOC_SET_TICKS: libc::c_ulong = 0x4008_5400;
/// `_IOW('I', 0, __s32)` (linux/inotify.h; `CONFIG_CHECKPOINT_RESTORE`).
const INOTIFY_IOC_SETNEXTWD: libc::c_ulong = 0x4004_4900;

/// Takes a new descriptor from a call's result.
fn new(call: &'static str, result: impl Into<i64>) -> Result<OwnedFd> {
    match result.into() {
        // SAFETY: just made by the call, and owned by nobody else.
        fd @ 0.. => Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) }),
        _ => Err(SysError::last(call, "a new open file")),
    }
}

/// The two ends of a new pipe: to read from, to write to.
pub fn pipe() -> Result<(OwnedFd, OwnedFd)> {
    rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
        .map_err(|e| SysError::new("pipe2", "a new pipe", e))
}

/// A new eventfd at 0.
pub fn eventfd(semaphore: bool) -> Result<OwnedFd> {
    let flags = libc::EFD_CLOEXEC | if semaphore { libc::EFD_SEMAPHORE } else { 0 };
    // SAFETY: a call without pointers.
    new("eventfd2", unsafe { libc::eventfd(0, flags) })
}

/// Sets the counter of an eventfd. Nobody may use it meanwhile.
pub fn set_eventfd(fd: impl AsFd, count: u64) -> Result<()> {
    let raw = fd.as_fd().as_raw_fd();
    // SAFETY: a call without pointers.
    let before = check("fcntl(F_GETFL)", &fd, unsafe {
        libc::fcntl(raw, libc::F_GETFL)
    })?;
    super::set_status_flags(&fd, before as u32 | libc::O_NONBLOCK as u32)?;
    let mut value = [0u8; 8];
    // A semaphore gives one at a time.
    let emptied = loop {
        match rustix::io::read(&fd, &mut value) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::AGAIN) => break Ok(()),
            Err(e) => break Err(SysError::new("read", name(&fd), e)),
        }
    };
    let filled = emptied.and_then(|()| match count {
        0 => Ok(()),
        _ => rustix::io::write(&fd, &count.to_ne_bytes())
            .map(drop)
            .map_err(|e| SysError::new("write", name(&fd), e)),
    });
    super::set_status_flags(&fd, before as u32)?;
    filled
}

/// A new epoll instance that watches nothing.
pub fn epoll() -> Result<OwnedFd> {
    // SAFETY: a call without pointers.
    new("epoll_create1", unsafe {
        libc::epoll_create1(libc::EPOLL_CLOEXEC)
    })
}

/// A new timer, not set.
pub fn timerfd(clock: i32) -> Result<OwnedFd> {
    // SAFETY: a call without pointers.
    new("timerfd_create", unsafe {
        libc::timerfd_create(clock, libc::TFD_CLOEXEC)
    })
}

/// Sets a timer: one that was set for a moment, for that; one that was set for a while, for what was left of it.
pub fn set_timerfd(fd: impl AsFd, wanted: &Timerfd) -> Result<()> {
    const SECOND: u64 = 1_000_000_000;
    let raw = fd.as_fd().as_raw_fd();
    let time = |ns: u64| libc::timespec {
        tv_sec: (ns / SECOND) as libc::time_t,
        tv_nsec: (ns % SECOND) as libc::c_long,
    };
    let mut flags = 0;
    if wanted.expires_ns.is_some() {
        flags =
            wanted.settime_flags as i32 & (libc::TFD_TIMER_ABSTIME | libc::TFD_TIMER_CANCEL_ON_SET);
    }
    let spec = libc::itimerspec {
        it_value: time(wanted.expires_ns.unwrap_or(wanted.value_ns)),
        it_interval: time(wanted.interval_ns),
    };
    // SAFETY: `spec` is live; null for the old value that is not wanted.
    let r = unsafe { libc::timerfd_settime(raw, flags, &spec, std::ptr::null_mut()) };
    check("timerfd_settime", &fd, r)?;
    if wanted.ticks > 0 {
        // SAFETY: the request reads one 64-bit number, which is live.
        let r = unsafe { libc::ioctl(raw, TFD_IOC_SET_TICKS, &wanted.ticks) };
        check("ioctl(TFD_IOC_SET_TICKS)", &fd, r)?;
    }
    Ok(())
}

/// Asks a timer for the time that is left, which lets the kernel count what has expired of a periodic one.
pub fn ask_timerfd(fd: impl AsFd) -> Result<()> {
    let none = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    let mut spec = libc::itimerspec {
        it_value: none,
        it_interval: none,
    };
    // SAFETY: `spec` is live, and the call fills it.
    let r = unsafe { libc::timerfd_gettime(fd.as_fd().as_raw_fd(), &mut spec) };
    check("timerfd_gettime", &fd, r).map(drop)
}

/// A new signalfd for these signals (bit n-1 for signal n), or another set of signals for one that there is.
pub fn signalfd(fd: Option<BorrowedFd>, signals: u64) -> Result<Option<OwnedFd>> {
    const SET: usize = 8;
    let raw = fd.map_or(-1, |fd| fd.as_raw_fd());
    let flags = libc::SFD_CLOEXEC;
    // SAFETY: the kernel reads eight bytes of the set, which is live.
    let r = unsafe { libc::syscall(libc::SYS_signalfd4, raw, &raw const signals, SET, flags) };
    match fd {
        None => new("signalfd4", r).map(Some),
        Some(fd) => check("signalfd4", fd, r).map(|_| None),
    }
}

/// A new memfd that takes seals.
pub fn memfd(name: &str) -> Result<OwnedFd> {
    let name = CString::new(name).unwrap_or_default();
    // SAFETY: the name is live and ends with a zero.
    new("memfd_create", unsafe {
        libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING)
    })
}

/// Sets size, content and seals of a memfd. What is mapped as a whole has its content from there.
pub fn set_memfd(fd: impl AsFd, wanted: &Memfd) -> Result<()> {
    let failed = |call, e| SysError::new(call, name(&fd), e);
    let file = std::fs::File::from(
        fd.as_fd()
            .try_clone_to_owned()
            .map_err(|e| failed("dup", e))?,
    );
    let size = file.metadata().map_err(|e| failed("fstat", e))?.len();
    if size != wanted.size {
        file.set_len(wanted.size)
            .map_err(|e| failed("ftruncate", e))?;
    }
    if !wanted.mapped && !wanted.left_out {
        file.write_all_at(&wanted.content, 0)
            .map_err(|e| failed("pwrite", e))?;
        let from = wanted.content.len() as u64;
        if size.min(wanted.size) > from {
            let how =
                rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
            rustix::fs::fallocate(&file, how, from, wanted.size - from)
                .map_err(|e| failed("fallocate", e.into()))?;
        }
    }
    let sealed = super::seals(&fd)?;
    match wanted.seals & !sealed {
        0 => Ok(()),
        missing => add_seals(&fd, missing),
    }
}

/// A new inotify instance that watches nothing.
pub fn inotify() -> Result<OwnedFd> {
    // SAFETY: a call without pointers.
    new("inotify_init1", unsafe {
        libc::inotify_init1(libc::IN_CLOEXEC)
    })
}

/// Watches a path below the root of process `pid` under the watch descriptor `wd`.
pub fn inotify_watch(fd: impl AsFd, pid: i32, path: &str, wd: i32, mask: u32) -> Result<()> {
    let raw = fd.as_fd().as_raw_fd();
    // SAFETY: the request takes a number in place of a pointer.
    let r = unsafe { libc::ioctl(raw, INOTIFY_IOC_SETNEXTWD, libc::c_long::from(wd)) };
    check("ioctl(INOTIFY_IOC_SETNEXTWD)", &fd, r)?;
    let watched = super::super::open_in_root(pid, path, libc::O_PATH as u32)?;
    let through = format!("/proc/self/fd/{}\0", watched.as_raw_fd());
    // SAFETY: the path is live and ends with a zero.
    let r = unsafe { libc::inotify_add_watch(raw, through.as_ptr().cast(), mask) };
    check("inotify_add_watch", &fd, r).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::proc::FdTable;

    fn info(fd: &OwnedFd) -> crate::sys::proc::FdInfo {
        let table = FdTable::open(std::process::id() as i32).unwrap();
        table.info(fd.as_raw_fd()).unwrap()
    }

    #[test]
    fn counters_go_up_and_down() {
        for semaphore in [false, true] {
            let event = eventfd(semaphore).unwrap();
            for count in [7, 0, 3, 90] {
                set_eventfd(&event, count).unwrap();
                assert_eq!(info(&event).eventfd.unwrap().count, count);
            }
        }
    }

    #[test]
    fn a_timer_keeps_what_was_left_and_what_was_not_read() {
        let timer = timerfd(libc::CLOCK_MONOTONIC).unwrap();
        let wanted = Timerfd {
            clock: libc::CLOCK_MONOTONIC,
            ticks: 5,
            value_ns: 100_000_000_000,
            interval_ns: 7_000_000_000,
            ..Timerfd::default()
        };
        set_timerfd(&timer, &wanted).unwrap();
        let found = info(&timer).timerfd.unwrap();
        assert_eq!((found.ticks, found.interval_ns), (5, 7_000_000_000));
        assert!(found.value_ns <= wanted.value_ns && found.value_ns > 90_000_000_000);
        // One that has fired and was not read.
        let fired = Timerfd {
            ticks: 1,
            clock: wanted.clock,
            ..Timerfd::default()
        };
        set_timerfd(&timer, &fired).unwrap();
        let found = info(&timer).timerfd.unwrap();
        assert_eq!((found.ticks, found.value_ns), (1, 0));
    }

    #[test]
    fn a_memfd_has_its_content_and_seals() {
        let memory = memfd("test").unwrap();
        let wanted = Memfd {
            size: 9000,
            content: b"hello".to_vec(),
            seals: (libc::F_SEAL_SHRINK | libc::F_SEAL_GROW) as u32,
            ..Memfd::default()
        };
        let file = std::fs::File::from(memory.try_clone().unwrap());
        file.set_len(20_000).unwrap();
        file.write_all_at(&[9; 10_000], 0).unwrap();
        set_memfd(&memory, &wanted).unwrap();
        let mut content = [1; 9000];
        file.read_exact_at(&mut content, 0).unwrap();
        assert_eq!(&content[..5], b"hello");
        assert!(content[5..].iter().all(|byte| *byte == 0));
        assert_eq!(super::super::seals(&memory).unwrap(), wanted.seals);
    }

    #[test]
    fn watches_keep_their_numbers() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().to_str().unwrap();
        let instance = inotify().unwrap();
        let pid = std::process::id() as i32;
        inotify_watch(&instance, pid, path, 42, libc::IN_CREATE).unwrap();
        let watches = info(&instance).inotify;
        assert_eq!(
            (watches[0].0.wd, watches[0].0.mask & libc::IN_CREATE),
            (42, libc::IN_CREATE)
        );
    }
}
