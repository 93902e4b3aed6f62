//! What the kernel tells of a Unix socket by its inode (`sock_diag(7)`).

use super::super::{Result, SysError};
use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

/// A Unix socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UnixSocket {
    /// Inode of the other side, where it is connected.
    pub peer: Option<u64>,
    /// Bytes of the first message waiting; of a listening one, connections waiting.
    pub waiting: u32,
    /// Of a listening socket: its backlog.
    pub backlog: u32,
    /// Directions shut down: 1 for receiving, 2 for sending.
    pub shutdown: u8,
}

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SHOW_PEER: u32 = 4;
const SHOW_RQLEN: u32 = 0x10;
const DIAG_PEER: u16 = 2;
const DIAG_RQLEN: u16 = 4;
const DIAG_SHUTDOWN: u16 = 6;
const HEADER: usize = 16;
/// Behind the header: `struct unix_diag_msg`.
const MESSAGE: usize = 16;

/// Asks for the Unix socket with this inode, in the network namespace of the caller.
///
/// # Errors
/// ENOENT when there is none, or it is of another namespace.
pub fn unix_socket(inode: u64) -> Result<UnixSocket> {
    let failed = |call, e| SysError::new(call, format_args!("socket:[{inode}]"), e);
    let socket = open().map_err(|e| failed("socket(NETLINK_SOCK_DIAG)", e))?;
    // nlmsghdr, then unix_diag_req (linux/unix_diag.h).
    let mut request = Vec::with_capacity(40);
    request.extend_from_slice(&40u32.to_ne_bytes());
    request.extend_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    request.extend_from_slice(&(libc::NLM_F_REQUEST as u16).to_ne_bytes());
    request.extend_from_slice(&[0; 8]);
    request.extend_from_slice(&[libc::AF_UNIX as u8, 0, 0, 0]);
    request.extend_from_slice(&u32::MAX.to_ne_bytes());
    request.extend_from_slice(&(inode as u32).to_ne_bytes());
    request.extend_from_slice(&(SHOW_PEER | SHOW_RQLEN).to_ne_bytes());
    request.extend_from_slice(&[0xff; 8]);
    rustix::net::send(&socket, &request, rustix::net::SendFlags::empty())
        .map_err(|e| failed("send", e.into()))?;
    let mut answer = vec![0; 8 << 10];
    let (got, _) = rustix::net::recv(&socket, &mut answer[..], rustix::net::RecvFlags::empty())
        .map_err(|e| failed("recv", e.into()))?;
    answer.truncate(got);
    parse(&answer).map_err(|e| failed("sock_diag", e))
}

fn open() -> io::Result<OwnedFd> {
    let ty = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
    // SAFETY: a system call without pointers, whose new descriptor is owned by nobody else.
    match unsafe { libc::socket(libc::AF_NETLINK, ty, libc::NETLINK_SOCK_DIAG) } {
        -1 => Err(io::Error::last_os_error()),
        // SAFETY: as above.
        fd => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn parse(answer: &[u8]) -> io::Result<UnixSocket> {
    let short = || io::Error::new(io::ErrorKind::InvalidData, "a short answer");
    let len = word(answer, 0).ok_or_else(short)? as usize;
    let answer = answer.get(..len).ok_or_else(short)?;
    if half(answer, 4) == Some(libc::NLMSG_ERROR as u16) {
        let error = word(answer, HEADER).ok_or_else(short)? as i32;
        return Err(io::Error::from_raw_os_error(-error));
    }
    let mut found = UnixSocket::default();
    let mut at = HEADER + MESSAGE;
    while let (Some(len), Some(ty)) = (half(answer, at), half(answer, at + 2)) {
        match ty {
            DIAG_PEER => found.peer = word(answer, at + 4).map(u64::from).filter(|p| *p != 0),
            DIAG_RQLEN => {
                found.waiting = word(answer, at + 4).unwrap_or(0);
                found.backlog = word(answer, at + 8).unwrap_or(0);
            }
            DIAG_SHUTDOWN => found.shutdown = answer.get(at + 4).copied().unwrap_or(0),
            _ => {}
        }
        at += (len.max(4) as usize).next_multiple_of(4);
    }
    Ok(found)
}

/// The descriptor of a socket that answers for it.
#[cfg(test)]
fn inode(socket: &impl std::os::fd::AsRawFd) -> u64 {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(format!("/proc/self/fd/{}", socket.as_raw_fd()))
        .unwrap()
        .ino()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::net::{UnixListener, UnixStream};

    #[test]
    fn the_two_of_a_pair_name_each_other() {
        let (mut a, b) = UnixStream::pair().unwrap();
        a.write_all(b"12345").unwrap();
        assert_eq!(unix_socket(inode(&a)).unwrap().peer, Some(inode(&b)));
        let other = unix_socket(inode(&b)).unwrap();
        assert_eq!((other.peer, other.waiting), (Some(inode(&a)), 5));
        a.shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(unix_socket(inode(&a)).unwrap().shutdown, 2);
    }

    #[test]
    fn a_listener_tells_its_backlog() {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join("s")).unwrap();
        let found = unix_socket(inode(&listener)).unwrap();
        assert!(found.backlog > 0 && found.peer.is_none(), "{found:?}");
        let gone = inode(&listener);
        drop(listener);
        assert_eq!(unix_socket(gone).unwrap_err().errno(), Some(libc::ENOENT));
    }
}
