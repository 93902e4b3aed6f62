//! Sockets (`socket(7)`): what one is and holds, and making one again.

mod make;
mod options;
mod queue;
pub mod tcp;

pub use make::{
    accept, bind, connect, dead_stream, listen, pair, send, set_option, shut_down, socket,
};
pub use options::differing_options;
pub use queue::{drain, peek_messages};

use super::{Result, SysError, check, name, unix_socket};
use crate::model::{Socket, SocketState};
use std::os::fd::{AsFd, AsRawFd};

/// Longest `struct sockaddr`.
const ADDRESS_MAX: usize = 128;
const TCP_ESTABLISHED: u8 = 1;
const TCP_LISTEN: u8 = 10;
const TCP_CLOSE: u8 = 7;

/// What a socket is, by what it tells itself, in whichever network it is: its family, type, protocol, and whether it has
/// another side.
pub fn glance(fd: impl AsFd) -> Result<Socket> {
    let fd = fd.as_fd();
    let peer = address(fd, libc::getpeername).unwrap_or_default();
    Ok(Socket {
        domain: int(fd, libc::SOL_SOCKET, libc::SO_DOMAIN)?,
        ty: int(fd, libc::SOL_SOCKET, libc::SO_TYPE)?,
        protocol: int(fd, libc::SOL_SOCKET, libc::SO_PROTOCOL)?,
        state: match peer.is_empty() {
            true => SocketState::Idle,
            false => SocketState::Connected,
        },
        peer,
        ..Socket::default()
    })
}

/// What a socket is, its queue aside. `inode` is its number in `/proc/PID/fd`.
pub fn describe(fd: impl AsFd, inode: u64) -> Result<Socket> {
    let fd = fd.as_fd();
    let mut socket = Socket {
        domain: int(fd, libc::SOL_SOCKET, libc::SO_DOMAIN)?,
        ty: int(fd, libc::SOL_SOCKET, libc::SO_TYPE)?,
        protocol: int(fd, libc::SOL_SOCKET, libc::SO_PROTOCOL)?,
        local: address(fd, libc::getsockname).unwrap_or_default(),
        peer: address(fd, libc::getpeername).unwrap_or_default(),
        ..Socket::default()
    };
    let listens = int(fd, libc::SOL_SOCKET, libc::SO_ACCEPTCONN).unwrap_or(0) != 0;
    match socket.domain {
        libc::AF_UNIX => {
            let found = unix_socket(inode)?;
            socket.peer_inode = found.peer;
            socket.shutdown = found.shutdown & 3;
            socket.state = match (listens, found.peer.is_some()) {
                (true, _) => SocketState::Listening(found.backlog),
                (_, true) => SocketState::Connected,
                // Of a stream whose other side has gone, or one that never had another side.
                _ if !socket.peer.is_empty() || socket.shutdown == 3 => SocketState::Other,
                _ => SocketState::Idle,
            };
        }
        libc::AF_INET | libc::AF_INET6 if socket.protocol == libc::IPPROTO_TCP => {
            // `struct tcp_info`: its state first; of a listening socket, the backlog at byte 28.
            let info = option(fd, libc::IPPROTO_TCP, libc::TCP_INFO, 32).unwrap_or_default();
            socket.state = match info.first().copied() {
                Some(TCP_LISTEN) => {
                    let at = info.get(28..32).and_then(|b| b.try_into().ok());
                    SocketState::Listening(at.map_or(0, u32::from_ne_bytes))
                }
                Some(TCP_ESTABLISHED) => SocketState::Connected,
                Some(TCP_CLOSE) => SocketState::Idle,
                _ => SocketState::Other,
            };
        }
        _ if listens => socket.state = SocketState::Listening(libc::SOMAXCONN as u32),
        _ if !socket.peer.is_empty() && socket.domain != libc::AF_NETLINK => {
            socket.state = SocketState::Connected;
        }
        _ => {}
    }
    socket.options = differing_options(fd, &socket);
    Ok(socket)
}

type Getter =
    unsafe extern "C" fn(libc::c_int, *mut libc::sockaddr, *mut libc::socklen_t) -> libc::c_int;

fn address(fd: impl AsFd, get: Getter) -> Result<Vec<u8>> {
    let mut address = vec![0u8; ADDRESS_MAX];
    let mut len = ADDRESS_MAX as libc::socklen_t;
    // SAFETY: the buffer is as long as `len` says, and both are live; the call is one of the two that fill them.
    let r = unsafe {
        get(
            fd.as_fd().as_raw_fd(),
            address.as_mut_ptr().cast(),
            &mut len,
        )
    };
    check("getsockname", &fd, r)?;
    address.truncate((len as usize).min(ADDRESS_MAX));
    // Only a family: no address.
    if address.len() <= 2 {
        address.clear();
    }
    Ok(address)
}

/// An option of at most `most` bytes.
fn option(fd: impl AsFd, level: i32, option: i32, most: usize) -> Result<Vec<u8>> {
    let mut value = vec![0u8; most];
    let mut len = most as libc::socklen_t;
    let raw = fd.as_fd().as_raw_fd();
    // SAFETY: the buffer is as long as `len` says, and both are live.
    let r = unsafe { libc::getsockopt(raw, level, option, value.as_mut_ptr().cast(), &mut len) };
    if r != 0 {
        return Err(SysError::last("getsockopt", name(fd)));
    }
    value.truncate((len as usize).min(most));
    Ok(value)
}

fn int(fd: impl AsFd, level: i32, name: i32) -> Result<i32> {
    let value = option(fd, level, name, 4)?;
    Ok(value.try_into().map_or(0, i32::from_ne_bytes))
}
