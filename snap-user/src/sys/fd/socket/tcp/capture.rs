//! All of a connection that is silent.

use super::super::super::{check, name, queued};
use super::super::make::set_int;
use super::super::{int, option};
use super::{
    ESTABLISHED, FIN_WAIT1, FIN_WAIT2, RECEIVE_QUEUE, Repair, Result, SACK, SCALED, SEND_QUEUE,
    SysError, TCP_REPAIR_WINDOW, TCP_TIMESTAMP, TCP_ULP, TIMESTAMPS, ends, info, outgoing,
};
use crate::model::{Connection, address_words};
use crate::sys::kernel_version;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

/// More than one segment holds: what the other side has acknowledged a part of is in the queue as a whole.
const SLACK: usize = 256 << 10;

/// Since this version the lowest bit of [`TCP_TIMESTAMP`] says in which unit it counts; before, it belongs to the number.
const UNITS_OF_TIMESTAMPS: (u32, u32) = (6, 7);

/// Why the connection of a TCP socket cannot be taken, if it cannot; a socket that has none is no reason, but has
/// nothing to take: `Ok(false)`.
///
/// # Errors
/// The reason, as a part of a sentence.
pub fn refuses_capture(fd: impl AsFd) -> std::result::Result<bool, String> {
    let fd = fd.as_fd();
    if !stands(fd)? {
        return Ok(false);
    }
    if let Ok(protocol) = option(fd, libc::IPPROTO_TCP, TCP_ULP, 16)
        && protocol.first().is_some_and(|first| *first != 0)
    {
        let protocol = String::from_utf8_lossy(&protocol);
        return Err(format!(
            "the kernel itself works on its stream ({})",
            protocol.trim_end_matches('\0')
        ));
    }
    match filter_length(fd) {
        Some(0) => Ok(true),
        _ => Err("it has a packet filter of its own".to_owned()),
    }
}

/// Why a connection that is silent by now cannot be taken any more, if it cannot: the end of the other side's stream may
/// have arrived behind the look at it and before the silence.
pub fn has_ended(fd: impl AsFd) -> Option<String> {
    match stands(fd.as_fd()) {
        Ok(true) => None,
        Ok(false) => Some("it has just ended".to_owned()),
        Err(why) => Some(why),
    }
}

/// Whether a socket has a connection, and the other side's stream has not ended.
fn stands(fd: BorrowedFd<'_>) -> std::result::Result<bool, String> {
    let state = match info(fd) {
        Ok(info) => info.state,
        Err(e) => return Err(format!("the kernel does not tell its state ({e})")),
    };
    let why = match state {
        ESTABLISHED | FIN_WAIT1 | FIN_WAIT2 => return Ok(true),
        // TCP_CLOSE and TCP_LISTEN.
        7 | 10 => return Ok(false),
        2 | 3 => "it is not established yet",
        8 => "the other side has ended its stream (CLOSE_WAIT)",
        9 | 11 => "both sides have ended their streams",
        _ => "it is about to be gone",
    };
    Err(why.to_owned())
}

/// How many instructions its packet filter has (`SO_GET_FILTER`, which is `SO_ATTACH_FILTER` when asked).
fn filter_length(fd: BorrowedFd<'_>) -> Option<u32> {
    let mut len: libc::socklen_t = 0;
    // SAFETY: with a length of 0 the kernel only writes the length, which is live.
    let r = unsafe {
        libc::getsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            std::ptr::null_mut(),
            &mut len,
        )
    };
    (r == 0).then_some(len)
}

/// Reads a connection, whose socket nobody uses meanwhile and is silent ([`super::silence`], and
/// [`super::receivers_done`] since). In repair mode for the time of a few system calls, and as it was before when this
/// returns, also with an error. Minimum kernel version: 4.8.
///
/// # Errors
/// `EPERM` without `CAP_NET_ADMIN`, named; a connection that has ended ([`has_ended`]); queues that changed meanwhile, or
/// hold urgent data.
pub fn capture(fd: impl AsFd, time_ns: u64) -> Result<Connection> {
    let fd = fd.as_fd();
    let info = info(fd)?;
    if let Some(why) = has_ended(fd) {
        let ended = std::io::Error::other(why);
        return Err(SysError::new("take the connection of", name(fd), ended));
    }
    let is_ending = info.state != ESTABLISHED;
    let fin = u32::from(info.state == FIN_WAIT1);
    let size = |name| int(fd, libc::SOL_SOCKET, name).map(|size| size.max(0) as u32);
    let room = (size(libc::SO_SNDBUF)?, size(libc::SO_RCVBUF)?);
    let receive = received(fd)?;

    let outstanding = outgoing(fd)?.saturating_sub(fin);
    let mut send = vec![0; outstanding as usize + SLACK];
    // Nothing in here may take long: a program that ran would find its socket out of use.
    let repair = Repair::begin(fd)?;
    let received_to = repair.sequence(RECEIVE_QUEUE)?;
    let sent_to = repair.sequence(SEND_QUEUE)?;
    let got = match outstanding {
        0 => 0,
        _ => peek(fd, &mut send)?,
    };
    let window = option(fd, libc::IPPROTO_TCP, TCP_REPAIR_WINDOW, 20)?;
    let mut timestamp = int(fd, libc::IPPROTO_TCP, TCP_TIMESTAMP)? as u32;
    if kernel_version() < UNITS_OF_TIMESTAMPS {
        timestamp &= !1;
    }
    let mss = int(fd, libc::IPPROTO_TCP, libc::TCP_MAXSEG)? as u32;
    drop(repair);

    let changed = |what: &str| {
        let why = format!("{what}, though it is silent");
        SysError::new("read the queues of", name(fd), std::io::Error::other(why))
    };
    // The head of the queue may have been acknowledged in part.
    let Some(acknowledged) = got.checked_sub(outstanding as usize) else {
        return Err(changed(
            "the queue of what was sent is shorter than it says",
        ));
    };
    send.truncate(got);
    send.drain(..acknowledged);
    let end_of_data = sent_to.wrapping_sub(u32::from(is_ending));
    let mut window = window
        .chunks_exact(4)
        .map(|word| u32::from_ne_bytes(word.try_into().expect("four bytes")));
    let window = std::array::from_fn(|_| window.next().unwrap_or(0));
    Ok(Connection {
        send_seq: end_of_data.wrapping_sub(outstanding),
        send,
        receive_seq: received_to.wrapping_sub(receive.len() as u32),
        receive,
        is_ending,
        mss,
        scales: (info.options & SCALED != 0).then_some(info.scales),
        sack: info.options & SACK != 0,
        timestamp: (info.options & TIMESTAMPS != 0).then_some(timestamp),
        window,
        room,
        time_ns,
    })
}

/// What has been received and not read; it stays there.
fn received(fd: BorrowedFd<'_>) -> Result<Vec<u8>> {
    let waiting = all_waiting(fd)?;
    if waiting == 0 {
        return Ok(Vec::new());
    }
    let mut data = vec![0; waiting];
    // A program's own offset for looking would be moved (SO_PEEK_OFF, for TCP since Linux 6.9).
    let offset = int(fd, libc::SOL_SOCKET, libc::SO_PEEK_OFF).unwrap_or(-1);
    if offset >= 0 {
        set_int(fd, libc::SOL_SOCKET, libc::SO_PEEK_OFF, -1)?;
    }
    let got = peek(fd, &mut data);
    if offset >= 0 {
        set_int(fd, libc::SOL_SOCKET, libc::SO_PEEK_OFF, offset)?;
    }
    match got? {
        got if got == waiting => Ok(data),
        got => {
            let (local, peer) = ends(fd).unwrap_or_default();
            let (local, peer) = (address_words(&local), address_words(&peer));
            let why = format!(
                "{got} bytes of {waiting} that have been received: the others are behind urgent data (MSG_OOB), which cannot be taken before the program has read it; try again"
            );
            Err(SysError::new(
                "recv(MSG_PEEK)",
                format_args!("{} (from {local} to {peer})", name(fd)),
                std::io::Error::other(why),
            ))
        }
    }
}

/// Bytes that have been received and not read. `SIOCINQ` alone counts to urgent data and not beyond, unless that is a
/// part of the stream (`SO_OOBINLINE`).
fn all_waiting(fd: BorrowedFd<'_>) -> Result<usize> {
    let (level, name) = (libc::SOL_SOCKET, libc::SO_OOBINLINE);
    if int(fd, level, name)? != 0 {
        return Ok(queued(fd)? as usize);
    }
    set_int(fd, level, name, 1)?;
    let waiting = queued(fd);
    set_int(fd, level, name, 0)?;
    Ok(waiting? as usize)
}

fn peek(fd: BorrowedFd<'_>, into: &mut [u8]) -> Result<usize> {
    let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
    // SAFETY: the buffer is live and as long as said.
    let got = unsafe { libc::recv(fd.as_raw_fd(), into.as_mut_ptr().cast(), into.len(), flags) };
    Ok(check("recv(MSG_PEEK)", fd, got as i64)? as usize)
}
