//! Handing open files over a Unix socket (`SCM_RIGHTS` in `unix(7)`).

use super::{Result, SysError};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

/// Most descriptors in one message (`SCM_MAX_FD` of the kernel).
pub const MOST_DESCRIPTORS: usize = 253;
/// Bytes of the control message for `n` descriptors.
pub const fn control_len(n: usize) -> usize {
    // `CMSG_SPACE`: a header of 16 bytes, then 4 bytes each, to a multiple of 8.
    16 + (4 * n).next_multiple_of(8)
}

/// Sends one byte with descriptors.
pub fn send_descriptors(socket: impl AsFd, fds: &[BorrowedFd]) -> Result<()> {
    assert!(fds.len() <= MOST_DESCRIPTORS, "one message at a time");
    let mut control = vec![0u64; control_len(fds.len()).div_ceil(8)];
    let mut byte = 0u8;
    let mut piece = libc::iovec {
        iov_base: (&raw mut byte).cast(),
        iov_len: 1,
    };
    // SAFETY: zeroed is a valid msghdr; every pointer put into it is live until the call is over, and the control
    // buffer is aligned for its header and has room for all of the descriptors.
    let sent = unsafe {
        let mut message: libc::msghdr = std::mem::zeroed();
        message.msg_iov = &mut piece;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = control_len(fds.len());
        let header = libc::CMSG_FIRSTHDR(&message);
        (*header).cmsg_level = libc::SOL_SOCKET;
        (*header).cmsg_type = libc::SCM_RIGHTS;
        (*header).cmsg_len = libc::CMSG_LEN(4 * fds.len() as u32) as usize;
        let numbers = libc::CMSG_DATA(header).cast::<i32>();
        for (at, fd) in fds.iter().enumerate() {
            numbers.add(at).write_unaligned(fd.as_raw_fd());
        }
        libc::sendmsg(socket.as_fd().as_raw_fd(), &message, libc::MSG_NOSIGNAL)
    };
    match sent {
        1 => Ok(()),
        0 => Err(SysError::new(
            "sendmsg",
            "a socket",
            io::Error::from(io::ErrorKind::WriteZero),
        )),
        _ => Err(SysError::last(
            "sendmsg(SCM_RIGHTS)",
            format_args!("{} descriptors", fds.len()),
        )),
    }
}
