//! A connection made again.

use super::super::make::{bind, connect, listen, set, set_int, set_option, shut_down, socket};
use super::silence::{hear, silence};
use super::{
    OFF, RECEIVE_QUEUE, Result, SEND_QUEUE, SO_BUF_LOCK, SysError, TCP_QUEUE_SEQ, TCP_REPAIR,
    TCP_REPAIR_OPTIONS, TCP_REPAIR_QUEUE, TCP_REPAIR_WINDOW, TCP_TIMESTAMP, check, enter,
};
use crate::model::{Connection, SocketOption};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// Kinds of TCP options (RFC 9293, 7323, 2018), as [`TCP_REPAIR_OPTIONS`] takes them.
const MSS: u32 = 2;
const WINDOW_SCALE: u32 = 3;
const SACK_PERMITTED: u32 = 4;
const TIMESTAMP: u32 = 8;

/// What the clock of time stamps is put ahead, in milliseconds: the other side throws away what seems to come from the
/// past (RFC 7323, PAWS), and clocks of two machines differ.
const AHEAD: u64 = 1000;

/// A socket that is going to have a connection, with the address that this has here: in repair mode and silent. It
/// closes without a word. Also gives the options that could not be set.
///
/// # Errors
/// `EPERM` without `CAP_NET_ADMIN`; `EADDRNOTAVAIL` where the address is not one of this network's.
pub fn prepare(
    domain: i32,
    local: &[u8],
    options: &[SocketOption],
) -> Result<(OwnedFd, Vec<(SocketOption, SysError)>)> {
    let made = socket(domain, libc::SOCK_STREAM, libc::IPPROTO_TCP)?;
    enter(&made)?;
    silence(&made)?;
    let early = options.iter().filter(|option| is_early(option));
    let set = |option: &SocketOption| Some((option.clone(), set_option(&made, option).err()?));
    let failed = early.filter_map(set).collect();
    bind(&made, local)?;
    Ok((made, failed))
}

/// Whether such a socket may have a connection with `peer`: it has one then, of which nobody else has heard.
///
/// # Errors
/// `EADDRNOTAVAIL` where another socket has this connection.
pub fn connect_silently(fd: impl AsFd, peer: &[u8]) -> Result<()> {
    connect(fd, peer)
}

/// Gives it the connection with `peer`. It is established when this returns, and still silent.
///
/// # Errors
/// `EADDRNOTAVAIL` where another socket has this connection.
pub fn establish(fd: impl AsFd, peer: &[u8], wanted: &Connection, now_ns: u64) -> Result<()> {
    let fd = fd.as_fd();
    sequence(fd, SEND_QUEUE, wanted.send_seq)?;
    sequence(fd, RECEIVE_QUEUE, wanted.receive_seq)?;
    make_room(fd, wanted);
    connect(fd, peer)?;
    options(fd, wanted)?;
    if let Some(timestamp) = wanted.timestamp {
        let value = later(timestamp, now_ns.saturating_sub(wanted.time_ns)) as i32;
        set_int(fd, libc::IPPROTO_TCP, TCP_TIMESTAMP, value)?;
    }
    put(fd, RECEIVE_QUEUE, &wanted.receive)?;
    // All of it counts as sent, whatever had been at the snapshot: the old socket may have sent more since, and the
    // kernel takes no acknowledgement for what it does not know to be on its way. What never was is sent again.
    put(fd, SEND_QUEUE, &wanted.send)?;
    window(fd, wanted)
}

/// Lets it hear and speak. `options` are those that the socket had. The connection is in use when this returns, whatever
/// of it could not be done, which it tells. If the other side is gone, that is heard here.
pub fn wake(fd: impl AsFd, wanted: &Connection, options: &[SocketOption]) -> Vec<SysError> {
    let fd = fd.as_fd();
    let mut failed = Vec::new();
    failed.extend(hear(fd).err());
    // Probes the other side's window, which may have changed.
    failed.extend(set_int(fd, libc::IPPROTO_TCP, TCP_REPAIR, OFF).err());
    let cork = |o: &&SocketOption| (o.level, o.name) == (libc::IPPROTO_TCP, libc::TCP_CORK);
    let reuse = |o: &&SocketOption| (o.level, o.name) == (libc::SOL_SOCKET, libc::SO_REUSEADDR);
    for option in options.iter().filter(|o| cork(o) || reuse(o)) {
        failed.extend(set_option(fd, option).err());
    }
    set_sizes(fd, wanted, options);
    if wanted.is_ending {
        match shut_down(fd, 2) {
            // The other side is gone: both streams have ended.
            Err(e) if e.errno() == Some(libc::ENOTCONN) => {}
            done => failed.extend(done.err()),
        }
    }
    failed
}

/// What can be set before there is a connection, and stays. The window's bound is the kernel's own choice for one;
/// sizes and corks would be in the way of what is put into the queues.
fn is_early(option: &SocketOption) -> bool {
    match option.level {
        libc::IPPROTO_TCP => !matches!(option.name, libc::TCP_WINDOW_CLAMP | libc::TCP_CORK),
        libc::SOL_SOCKET => !matches!(
            option.name,
            libc::SO_SNDBUF | libc::SO_RCVBUF | libc::SO_REUSEADDR | SO_BUF_LOCK
        ),
        _ => true,
    }
}

/// A listening socket that takes the place of a connection for a moment: what arrives for it is dropped rather than
/// answered by a reset.
pub fn shield(domain: i32, local: &[u8]) -> Result<OwnedFd> {
    let (made, _) = prepare(domain, local, &[])?;
    listen(&made, 1)?;
    Ok(made)
}

/// Selects a queue, and says which sequence number is next there.
fn sequence(fd: BorrowedFd<'_>, queue: i32, number: u32) -> Result<()> {
    set_int(fd, libc::IPPROTO_TCP, TCP_REPAIR_QUEUE, queue)?;
    set_int(fd, libc::IPPROTO_TCP, TCP_QUEUE_SEQ, number as i32)
}

/// Room for both queues, whatever the limits of the program are.
fn make_room(fd: BorrowedFd<'_>, wanted: &Connection) {
    let raw = fd.as_raw_fd();
    let sizes = [
        (libc::SO_SNDBUFFORCE, wanted.send.len(), wanted.room.0),
        (libc::SO_RCVBUFFORCE, wanted.receive.len(), wanted.room.1),
    ];
    for (name, queue, usual) in sizes {
        // Small segments take several times their length. The kernel doubles what it is told.
        let size = (queue as u64 * 4 + (1 << 20)).max(u64::from(usual) / 2);
        let size = size.min(i32::MAX as u64 / 2) as i32;
        set(raw, libc::SOL_SOCKET, name, &size.to_ne_bytes());
    }
}

/// The sizes that it had, which the kernel goes on choosing where the program has not.
fn set_sizes(fd: BorrowedFd<'_>, wanted: &Connection, options: &[SocketOption]) {
    let raw = fd.as_raw_fd();
    let sizes = [
        (libc::SO_SNDBUFFORCE, wanted.room.0),
        (libc::SO_RCVBUFFORCE, wanted.room.1),
    ];
    for (name, doubled) in sizes {
        let size = (doubled / 2).min(i32::MAX as u32) as i32;
        set(raw, libc::SOL_SOCKET, name, &size.to_ne_bytes());
    }
    let locked = options
        .iter()
        .find(|o| (o.level, o.name) == (libc::SOL_SOCKET, SO_BUF_LOCK));
    let locked = locked.map_or(vec![0; 4], |option| option.value.clone());
    set(raw, libc::SOL_SOCKET, SO_BUF_LOCK, &locked);
}

fn options(fd: BorrowedFd<'_>, wanted: &Connection) -> Result<()> {
    let mut all = vec![(MSS, wanted.mss)];
    if let Some((theirs, ours)) = wanted.scales {
        all.push((WINDOW_SCALE, u32::from(theirs) | u32::from(ours) << 16));
    }
    all.extend(wanted.sack.then_some((SACK_PERMITTED, 0)));
    all.extend(wanted.timestamp.map(|_| (TIMESTAMP, 0)));
    let words = all.iter().flat_map(|(kind, value)| [*kind, *value]);
    let bytes: Vec<u8> = words.flat_map(u32::to_ne_bytes).collect();
    let r = set(
        fd.as_raw_fd(),
        libc::IPPROTO_TCP,
        TCP_REPAIR_OPTIONS,
        &bytes,
    );
    check("setsockopt(TCP_REPAIR_OPTIONS)", fd, r).map(drop)
}

/// A time stamp so many nanoseconds later, and a little more.
pub(super) fn later(timestamp: u32, elapsed_ns: u64) -> u32 {
    let elapsed = elapsed_ns / 1_000_000 + AHEAD;
    match timestamp & 1 {
        // The lowest bit is no part of the number.
        1 => timestamp.wrapping_add((elapsed * 1000) as u32) | 1,
        _ => timestamp.wrapping_add(elapsed as u32) & !1,
    }
}

fn window(fd: BorrowedFd<'_>, wanted: &Connection) -> Result<()> {
    let bytes: Vec<u8> = wanted
        .window
        .iter()
        .copied()
        .flat_map(u32::to_ne_bytes)
        .collect();
    let r = set(fd.as_raw_fd(), libc::IPPROTO_TCP, TCP_REPAIR_WINDOW, &bytes);
    check("setsockopt(TCP_REPAIR_WINDOW)", fd, r).map(drop)
}

/// Puts bytes into a queue: of what was received, or of what was sent, which the kernel takes for being on its way.
fn put(fd: BorrowedFd<'_>, queue: i32, bytes: &[u8]) -> Result<()> {
    set_int(fd, libc::IPPROTO_TCP, TCP_REPAIR_QUEUE, queue)?;
    send(fd, bytes)
}

fn send(fd: BorrowedFd<'_>, mut bytes: &[u8]) -> Result<()> {
    /// As much at once as the kernel finds memory for.
    const PIECE: usize = 32 << 10;
    while !bytes.is_empty() {
        let piece = &bytes[..bytes.len().min(PIECE)];
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        // SAFETY: the bytes are live and as many as said.
        let sent = unsafe { libc::send(fd.as_raw_fd(), piece.as_ptr().cast(), piece.len(), flags) };
        match check("send", fd, sent as i64)? as usize {
            0 => {
                let full = io::Error::from_raw_os_error(libc::ENOBUFS);
                return Err(SysError::new("send", super::super::super::name(fd), full));
            }
            sent => bytes = &bytes[sent..],
        }
    }
    Ok(())
}
