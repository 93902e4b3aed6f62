//! Sockets that hear nothing, and say nothing when they close.

use super::super::make::{set, set_int};
use super::{ON, Result, TCP_REPAIR, TCP_REPAIR_WINDOW, check, explained};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::time::Duration;

/// Lets the kernel drop whatever arrives for a socket, until [`hear`].
///
/// # Errors
/// `EPERM` where the kernel wants `CAP_NET_ADMIN` for that, named: some do.
pub fn silence(fd: impl AsFd) -> Result<()> {
    let raw = fd.as_fd().as_raw_fd();
    // Return 0: keep no byte of the packet.
    let mut nothing = libc::sock_filter {
        code: (libc::BPF_RET | libc::BPF_K) as u16,
        jt: 0,
        jf: 0,
        k: 0,
    };
    let program = libc::sock_fprog {
        len: 1,
        filter: &mut nothing,
    };
    // SAFETY: the program and its one instruction are live, and the length is that of the structure.
    let r = unsafe {
        libc::setsockopt(
            raw,
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const program).cast(),
            size_of::<libc::sock_fprog>() as libc::socklen_t,
        )
    };
    check("setsockopt(SO_ATTACH_FILTER)", &fd, r)
        .map(drop)
        .map_err(explained)
}

/// Lets a socket hear again. Nothing where it did already.
pub fn hear(fd: impl AsFd) -> Result<()> {
    match set_int(&fd, libc::SOL_SOCKET, libc::SO_DETACH_FILTER, 0) {
        Err(e) if e.errno() == Some(libc::ENOENT) => Ok(()),
        done => done,
    }
}

/// The same without allocating anything, whatever becomes of it.
pub(in crate::sys) fn hear_quietly(fd: RawFd) {
    set(fd, libc::SOL_SOCKET, libc::SO_DETACH_FILTER, &[0; 4]);
}

/// Waits until no processor is at work any more on a packet that came before a socket was silent: they run in
/// read-side critical sections of RCU, whose end `membarrier(2)` waits for.
pub fn receivers_done() {
    const MEMBARRIER_CMD_GLOBAL: libc::c_int = 1;
    // SAFETY: a system call without pointers.
    let done = unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) };
    if done != 0 {
        // Not with processors that run without ticks (nohz_full); packets take microseconds.
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Prepares a silent socket to be held for long and then closed without a word: it gives nothing up by itself, and asks
/// the other side for nothing. Allocates nothing.
pub(in crate::sys) fn close_silently(fd: RawFd) {
    let number = |value: i32| value.to_ne_bytes();
    set(fd, libc::IPPROTO_TCP, TCP_REPAIR, &number(ON));
    // Probes that nobody answers would end in a reset.
    set(fd, libc::SOL_SOCKET, libc::SO_KEEPALIVE, &number(0));
    let forever = number(i32::MAX);
    set(fd, libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT, &forever);
    open_window(fd);
}

/// Has what waits in a silent socket in repair mode sent again and again for as long as `TCP_USER_TIMEOUT` says. Probes of
/// a closed window end by their number, whatever that says. Allocates nothing.
fn open_window(fd: RawFd) {
    /// `snd_wnd` and `max_window` of `struct tcp_repair_window`, of five words.
    const SEND: [usize; 2] = [1, 2];
    const WIDE: u32 = 64 << 10;
    let mut words = [0u32; 5];
    let mut len = size_of_val(&words) as libc::socklen_t;
    // SAFETY: the words and the length, which is theirs, are live.
    let r = unsafe {
        libc::getsockopt(
            fd,
            libc::IPPROTO_TCP,
            TCP_REPAIR_WINDOW,
            words.as_mut_ptr().cast(),
            &mut len,
        )
    };
    if r != 0 {
        return;
    }
    for at in SEND {
        words[at] = words[at].max(WIDE);
    }
    let mut bytes = [0; 20];
    for (to, word) in bytes.chunks_exact_mut(4).zip(words) {
        to.copy_from_slice(&word.to_ne_bytes());
    }
    set(fd, libc::IPPROTO_TCP, TCP_REPAIR_WINDOW, &bytes);
}
