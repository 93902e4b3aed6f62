//! Established TCP connections: making one silent, reading all of it, making it again.
//!
//! `TCP_REPAIR` (Linux 3.5, `CAP_NET_ADMIN` in the user namespace that owns the network namespace) is described by the
//! kernel's net/ipv4/tcp.c alone. In that mode a socket takes and tells its sequence numbers, lets its queues be read and
//! written, connects without a word, and closes without one. A program that uses such a socket gets EPERM and EINVAL.
//!
//! Silence is a classic BPF filter that lets nothing pass (`SO_ATTACH_FILTER`, socket(7)): the kernel drops what arrives
//! before it is looked at (tcp_filter in net/ipv4/tcp_ipv4.c), so it is neither acknowledged nor answered by a reset.
//! To the other side this is a network that loses packets.

mod capture;
mod resume;
mod silence;

pub use capture::{capture, has_ended, refuses_capture};
pub use resume::{connect_silently, establish, prepare, shield, wake};
pub(in crate::sys) use silence::{close_silently, hear_quietly};
pub use silence::{hear, receivers_done, silence};

use super::super::{Result, SysError, check};
use super::make::{set, set_int};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

/// Options of net/ipv4/tcp.c that libc does not name on every target (include/uapi/linux/tcp.h).
pub(super) const TCP_REPAIR: i32 = 19;
pub(super) const TCP_REPAIR_QUEUE: i32 = 20;
pub(super) const TCP_QUEUE_SEQ: i32 = 21;
pub(super) const TCP_REPAIR_OPTIONS: i32 = 22;
pub(super) const TCP_TIMESTAMP: i32 = 24;
pub(super) const TCP_REPAIR_WINDOW: i32 = 29;
pub(super) const TCP_ULP: i32 = 31;
/// Since Linux 5.14: which buffer sizes the program has set; without them the kernel chooses.
pub(super) const SO_BUF_LOCK: i32 = 72;

/// What [`TCP_REPAIR_QUEUE`] selects.
pub(super) const RECEIVE_QUEUE: i32 = 1;
pub(super) const SEND_QUEUE: i32 = 2;

/// Turned off without a probe of the other side's window.
pub(super) const OFF_QUIETLY: i32 = -1;
pub(super) const OFF: i32 = 0;
pub(super) const ON: i32 = 1;

/// Bits of `tcpi_options`.
pub(super) const TIMESTAMPS: u8 = 1;
pub(super) const SACK: u8 = 2;
pub(super) const SCALED: u8 = 4;

/// States of a connection (include/net/tcp_states.h).
pub(super) const ESTABLISHED: u8 = 1;
pub(super) const FIN_WAIT1: u8 = 4;
pub(super) const FIN_WAIT2: u8 = 5;

/// `struct tcp_info`, as far as it is looked at here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Info {
    pub(super) state: u8,
    pub(super) options: u8,
    /// Of the other side, and of this one.
    pub(super) scales: (u8, u8),
}

pub(super) fn info(fd: impl AsFd) -> Result<Info> {
    let raw = super::option(fd, libc::IPPROTO_TCP, libc::TCP_INFO, 8)?;
    let byte = |at: usize| raw.get(at).copied().unwrap_or(0);
    // Bit fields are laid out from the lowest bit on little-endian machines, which all of ksnap's are.
    let scales = byte(6);
    Ok(Info {
        state: byte(0),
        options: byte(5),
        scales: (scales & 15, scales >> 4),
    })
}

/// A socket in repair mode, until this is dropped: then it is as it was.
pub(super) struct Repair<'a> {
    fd: BorrowedFd<'a>,
    /// `SO_REUSEADDR`, which the mode overwrites.
    reuse: i32,
}

impl<'a> Repair<'a> {
    pub(super) fn begin(fd: BorrowedFd<'a>) -> Result<Self> {
        let reuse = super::int(fd, libc::SOL_SOCKET, libc::SO_REUSEADDR)?;
        enter(fd)?;
        Ok(Self { fd, reuse })
    }

    /// The sequence number behind a queue. Selects the queue.
    pub(super) fn sequence(&self, queue: i32) -> Result<u32> {
        set_int(self.fd, libc::IPPROTO_TCP, TCP_REPAIR_QUEUE, queue)?;
        Ok(super::int(self.fd, libc::IPPROTO_TCP, TCP_QUEUE_SEQ)? as u32)
    }
}

impl Drop for Repair<'_> {
    fn drop(&mut self) {
        leave_quietly(self.fd.as_raw_fd(), self.reuse);
    }
}

/// Turns repair mode on.
pub(in crate::sys) fn enter(fd: impl AsFd) -> Result<()> {
    set_int(&fd, libc::IPPROTO_TCP, TCP_REPAIR, ON).map_err(explained)
}

/// Turns repair mode off, and `SO_REUSEADDR` back to what it was. Allocates nothing.
pub(in crate::sys) fn leave_quietly(fd: i32, reuse: i32) {
    let off = OFF_QUIETLY.to_ne_bytes();
    set(fd, libc::IPPROTO_TCP, TCP_REPAIR, &off);
    let reuse = i32::from(reuse != 0).to_ne_bytes();
    set(fd, libc::SOL_SOCKET, libc::SO_REUSEADDR, &reuse);
}

/// Its addresses here and there, if it has a connection.
pub fn ends(fd: impl AsFd) -> Option<(Vec<u8>, Vec<u8>)> {
    let local = super::address(&fd, libc::getsockname).ok()?;
    let peer = super::address(&fd, libc::getpeername).ok()?;
    Some((local, peer))
}

/// Bytes that the other side has not acknowledged, one more for the end of the stream (`SIOCOUTQ` in tcp(7)).
pub(super) fn outgoing(fd: impl AsFd) -> Result<u32> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the request writes one int, which is live.
    let r = unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), libc::TIOCOUTQ, &mut bytes) };
    check("ioctl(SIOCOUTQ)", &fd, r)?;
    Ok(bytes.max(0) as u32)
}

/// Whether this process may put the socket into repair mode, of which nothing changes.
///
/// # Errors
/// `EPERM` where it may not, with what to do.
pub fn may_repair(fd: impl AsFd) -> Result<()> {
    /// Looked at behind the check of capabilities, and no mode (tcp_setsockopt in net/ipv4/tcp.c).
    const NO_MODE: i32 = 77;
    match set_int(&fd, libc::IPPROTO_TCP, TCP_REPAIR, NO_MODE) {
        Err(e) if e.errno() == Some(libc::EINVAL) => Ok(()),
        Err(e) => Err(explained(e)),
        Ok(()) => Ok(()),
    }
}

fn explained(e: SysError) -> SysError {
    match e.is_denied() {
        true => SysError::new(
            e.call,
            format_args!(
                "{}: taking a TCP connection and bringing it back need CAP_NET_ADMIN in the user namespace that owns its network; run ksnap as root there",
                e.target
            ),
            e.source,
        ),
        false => e,
    }
}

#[cfg(test)]
mod tests;
