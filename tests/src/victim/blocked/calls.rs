//! The calls that wait for something, raw: the standard library's would hide an EINTR.

use std::os::fd::RawFd;
use std::sync::atomic::AtomicU32;

use anyhow::{Result, bail};

use super::sleep::gave;

/// Blocks until the descriptor can be read, in the named call; gives how many descriptors are ready.
pub fn ready(call: &str, fd: RawFd, epoll: RawFd, limit: Option<&mut libc::timespec>) -> i64 {
    let milliseconds = limit.as_ref().map_or(-1, |limit| {
        (limit.tv_sec * 1000 + limit.tv_nsec / 1_000_000) as i32
    });
    let limit: *mut libc::timespec = limit.map_or(std::ptr::null_mut(), |limit| limit);
    let mut one = libc::pollfd {
        fd,
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: all pointers are to live locals, or null where that means no limit.
    let got = unsafe {
        match call {
            "ppoll" => libc::ppoll(&raw mut one, 1, limit, std::ptr::null()),
            "epoll_wait" => {
                let mut event = libc::epoll_event { events: 0, u64: 0 };
                libc::epoll_wait(epoll, &raw mut event, 1, milliseconds)
            }
            "select" => {
                let mut set: libc::fd_set = std::mem::zeroed();
                libc::FD_SET(fd, &raw mut set);
                let mut time = libc::timeval {
                    tv_sec: (*limit).tv_sec,
                    tv_usec: (*limit).tv_nsec / 1000,
                };
                libc::select(
                    fd + 1,
                    &raw mut set,
                    std::ptr::null_mut(),
                    std::ptr::null_mut(),
                    &raw mut time,
                )
            }
            _ => libc::poll(&raw mut one, 1, milliseconds),
        }
    };
    got.into()
}

/// Blocks until the word is woken, if it still is `seen`.
pub fn futex_wait(word: &AtomicU32, seen: u32, limit: Option<&libc::timespec>) -> i64 {
    let limit = limit.map_or(std::ptr::null(), |limit| &raw const *limit);
    // SAFETY: the word and the time are valid, or the latter null for none.
    unsafe {
        libc::syscall(
            libc::SYS_futex,
            word.as_ptr(),
            libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG,
            seen,
            limit,
        )
    }
}

/// Blocks a signal in this thread and those that it starts.
pub fn block(signal: i32) -> Result<i32> {
    // SAFETY: the set is initialised by sigemptyset before use.
    let error = unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, signal);
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut())
    };
    match error {
        0 => Ok(signal),
        _ => bail!(
            "pthread_sigmask: {}",
            std::io::Error::from_raw_os_error(error)
        ),
    }
}

/// The signal number and the value that it carries, or -1.
pub fn signal_wait(signal: i32, limit: &libc::timespec) -> (i64, u64) {
    // SAFETY: the set is initialised by sigemptyset before use, the info is written by the kernel. The raw call,
    // because the C library's hides an EINTR: the kernel's signal set is the first 8 bytes.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        let mut info: libc::siginfo_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, signal);
        let got = libc::syscall(
            libc::SYS_rt_sigtimedwait,
            &raw const set,
            &raw mut info,
            &raw const *limit,
            8,
        );
        (
            got,
            if got > 0 {
                info.si_value().sival_ptr.addr() as u64
            } else {
                0
            },
        )
    }
}

/// Queues the signal with a number to this process.
pub fn queue(signal: i32, number: u64) -> Result<(), String> {
    let value = libc::sigval {
        sival_ptr: std::ptr::without_provenance_mut(number as usize),
    };
    // SAFETY: takes numbers only; the pointer is one too.
    gave(
        "sigqueue",
        unsafe { libc::sigqueue(libc::getpid(), signal, value) }.into(),
        0,
    )
}
