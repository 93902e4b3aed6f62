//! Making sockets.

use super::super::{Result, SysError, check};
use crate::model::SocketOption;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

/// A new socket.
pub fn socket(domain: i32, ty: i32, protocol: i32) -> Result<OwnedFd> {
    // SAFETY: a call without pointers, whose new descriptor is owned by nobody else.
    match unsafe { libc::socket(domain, ty | libc::SOCK_CLOEXEC, protocol) } {
        -1 => Err(SysError::last(
            "socket",
            format_args!("family {domain}, type {ty}, protocol {protocol}"),
        )),
        // SAFETY: as above.
        fd => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
    }
}

/// Two Unix sockets connected with each other.
pub fn pair(ty: i32) -> Result<(OwnedFd, OwnedFd)> {
    let mut fds = [0; 2];
    // SAFETY: the array has room for the two descriptors.
    let r =
        unsafe { libc::socketpair(libc::AF_UNIX, ty | libc::SOCK_CLOEXEC, 0, fds.as_mut_ptr()) };
    if r != 0 {
        return Err(SysError::last("socketpair", format_args!("type {ty}")));
    }
    // SAFETY: both are new and owned by nobody else.
    Ok(unsafe { (OwnedFd::from_raw_fd(fds[0]), OwnedFd::from_raw_fd(fds[1])) })
}

/// Sets an option as it was read.
pub fn set_option(fd: impl AsFd, option: &SocketOption) -> Result<()> {
    let raw = fd.as_fd().as_raw_fd();
    let (mut name, mut value) = (option.name, option.value.clone());
    // What is read is twice what was set (socket(7)), and may lie above the limit for others than root.
    if option.level == libc::SOL_SOCKET && matches!(name, libc::SO_RCVBUF | libc::SO_SNDBUF) {
        let doubled = value.try_into().map_or(0, i32::from_ne_bytes);
        value = (doubled / 2).to_ne_bytes().to_vec();
        let force = match name {
            libc::SO_RCVBUF => libc::SO_RCVBUFFORCE,
            _ => libc::SO_SNDBUFFORCE,
        };
        if set(raw, option.level, force, &value) == 0 {
            return Ok(());
        }
    }
    // A bit for each group that it is a member of, joined one by one.
    if (option.level, name) == (libc::SOL_NETLINK, libc::NETLINK_LIST_MEMBERSHIPS) {
        name = libc::NETLINK_ADD_MEMBERSHIP;
        for (at, byte) in value.iter().enumerate() {
            for bit in (0..8).filter(|bit| byte & (1 << bit) != 0) {
                let group = (at as i32 * 8 + bit + 1).to_ne_bytes();
                check("setsockopt", &fd, set(raw, option.level, name, &group))?;
            }
        }
        return Ok(());
    }
    check("setsockopt", &fd, set(raw, option.level, name, &value)).map(drop)
}

pub(super) fn set(fd: i32, level: i32, name: i32, value: &[u8]) -> libc::c_int {
    // SAFETY: the value is live and as long as said.
    unsafe {
        libc::setsockopt(
            fd,
            level,
            name,
            value.as_ptr().cast(),
            value.len() as libc::socklen_t,
        )
    }
}

pub(super) fn set_int(fd: impl AsFd, level: i32, name: i32, value: i32) -> Result<()> {
    let raw = fd.as_fd().as_raw_fd();
    check(
        "setsockopt",
        &fd,
        set(raw, level, name, &value.to_ne_bytes()),
    )
    .map(drop)
}

/// Gives a socket its own address, a kernel's `struct sockaddr`.
pub fn bind(fd: impl AsFd, address: &[u8]) -> Result<()> {
    let raw = fd.as_fd().as_raw_fd();
    // SAFETY: the address is live and as long as said.
    let r = unsafe {
        libc::bind(
            raw,
            address.as_ptr().cast(),
            address.len() as libc::socklen_t,
        )
    };
    check("bind", &fd, r).map(drop)
}

/// Connects a socket with another one.
pub fn connect(fd: impl AsFd, address: &[u8]) -> Result<()> {
    let raw = fd.as_fd().as_raw_fd();
    // SAFETY: the address is live and as long as said.
    let r = unsafe {
        libc::connect(
            raw,
            address.as_ptr().cast(),
            address.len() as libc::socklen_t,
        )
    };
    check("connect", &fd, r).map(drop)
}

/// Lets a socket take connections.
pub fn listen(fd: impl AsFd, backlog: u32) -> Result<()> {
    // SAFETY: a call without pointers.
    let r = unsafe { libc::listen(fd.as_fd().as_raw_fd(), backlog.min(i32::MAX as u32) as i32) };
    check("listen", &fd, r).map(drop)
}

/// Takes a connection.
pub fn accept(fd: impl AsFd) -> Result<OwnedFd> {
    let raw = fd.as_fd().as_raw_fd();
    let (none, no_len) = (std::ptr::null_mut(), std::ptr::null_mut());
    // SAFETY: null for an address that is not wanted.
    let r = unsafe { libc::accept4(raw, none, no_len, libc::SOCK_CLOEXEC) };
    let new = check("accept4", &fd, r)?;
    // SAFETY: just made and owned by nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(new as i32) })
}

/// Sends a message, without waiting.
pub fn send(fd: impl AsFd, data: &[u8]) -> Result<()> {
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    let raw = fd.as_fd().as_raw_fd();
    // SAFETY: the data is live and as long as said.
    let sent = unsafe { libc::send(raw, data.as_ptr().cast(), data.len(), flags) };
    match check("send", &fd, sent as i64)? as usize == data.len() {
        true => Ok(()),
        false => Err(SysError::new(
            "send",
            super::name(&fd),
            io::Error::from_raw_os_error(libc::EMSGSIZE),
        )),
    }
}

/// Shuts directions down: 1 for receiving, 2 for sending, 3 for both.
pub fn shut_down(fd: impl AsFd, directions: u8) -> Result<()> {
    let how = match directions & 3 {
        0 => return Ok(()),
        1 => libc::SHUT_RD,
        2 => libc::SHUT_WR,
        _ => libc::SHUT_RDWR,
    };
    // SAFETY: a call without pointers.
    let r = unsafe { libc::shutdown(fd.as_fd().as_raw_fd(), how) };
    check("shutdown", &fd, r).map(drop)
}

/// A TCP socket whose other side has closed the connection: reads give the end of the stream.
///
/// # Errors
/// Where the loopback interface is down.
pub fn dead_stream(domain: i32) -> Result<OwnedFd> {
    use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
    let here: SocketAddr = match domain {
        libc::AF_INET6 => (Ipv6Addr::LOCALHOST, 0).into(),
        _ => (Ipv4Addr::LOCALHOST, 0).into(),
    };
    let failed = |call| move |e| SysError::new(call, "the loopback interface", e);
    let listener = TcpListener::bind(here).map_err(failed("bind"))?;
    let address = listener.local_addr().map_err(failed("getsockname"))?;
    let stream = std::net::TcpStream::connect(address).map_err(failed("connect"))?;
    let (other, _) = listener.accept().map_err(failed("accept"))?;
    drop(other);
    Ok(stream.into())
}
