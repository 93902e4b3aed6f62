//! What a Unix socket has received, looked at without taking it out (`MSG_PEEK`, `SO_PEEK_OFF`).

use super::super::{Result, check, queued};
use super::{ADDRESS_MAX, int, make::set_int};
use crate::model::Message;
use std::os::fd::{AsFd, AsRawFd};

/// Largest message that is looked at, in bytes.
const LARGEST: usize = 1 << 20;

/// A copy of the queue of a Unix socket, oldest first: a stream as one message. The process must be frozen: the
/// socket's own offset for looking is borrowed. The kernel passes over an empty message that was looked at before. Where
/// nothing more can come, the end reads like an empty message, again and again: the copy ends with the first of these.
pub fn peek_messages(fd: impl AsFd, stream: bool) -> Result<Vec<Message>> {
    let waiting = queued(&fd)? as usize;
    if waiting == 0 && stream {
        return Ok(Vec::new());
    }
    if stream {
        return Ok(peek(&fd, waiting)?.into_iter().collect());
    }
    let before = int(&fd, libc::SOL_SOCKET, libc::SO_PEEK_OFF)?;
    set_int(&fd, libc::SOL_SOCKET, libc::SO_PEEK_OFF, 0)?;
    let mut messages = Vec::new();
    let mut size = waiting;
    let result = loop {
        match peek(&fd, size.max(1)) {
            Ok(Some(message)) if message.data.is_empty() && is_at_end(&fd) => break Ok(()),
            Ok(Some(message)) => messages.push(message),
            Ok(None) => break Ok(()),
            Err(e) => break Err(e),
        }
        // The size of the first message says nothing of the others.
        size = LARGEST;
    };
    set_int(&fd, libc::SOL_SOCKET, libc::SO_PEEK_OFF, before)?;
    result.map(|()| messages)
}

/// Whether the other side sends nothing any more, or this one takes nothing any more.
fn is_at_end(fd: impl AsFd) -> bool {
    let mut look = libc::pollfd {
        fd: fd.as_fd().as_raw_fd(),
        events: libc::POLLRDHUP,
        revents: 0,
    };
    // SAFETY: one live structure, and no wait.
    let ready = unsafe { libc::poll(&mut look, 1, 0) };
    ready > 0 && look.revents & (libc::POLLRDHUP | libc::POLLHUP) != 0
}

fn peek(fd: impl AsFd, size: usize) -> Result<Option<Message>> {
    let mut data = vec![0u8; size];
    let mut from = vec![0u8; ADDRESS_MAX];
    let mut len = ADDRESS_MAX as libc::socklen_t;
    let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
    // SAFETY: both buffers are live and as long as said.
    let got = unsafe {
        libc::recvfrom(
            fd.as_fd().as_raw_fd(),
            data.as_mut_ptr().cast(),
            data.len(),
            flags,
            from.as_mut_ptr().cast(),
            &mut len,
        )
    };
    if got < 0 {
        return match std::io::Error::last_os_error().raw_os_error() {
            Some(libc::EAGAIN | libc::ENOTCONN | libc::ECONNRESET) => Ok(None),
            _ => check("recvfrom(MSG_PEEK)", &fd, got as i64).map(|_| None),
        };
    }
    data.truncate(got as usize);
    from.truncate((len as usize).min(ADDRESS_MAX));
    if from.len() <= 2 {
        from.clear();
    }
    Ok(Some(Message { data, from }))
}

/// Throws away what is in the queue of a socket, without waiting.
pub fn drain(fd: impl AsFd) -> Result<()> {
    // The end of a stream reads like an empty message, again and again.
    const MOST_EMPTY: u32 = 4096;
    let mut buffer = vec![0u8; 64 << 10];
    let mut empty = 0;
    while empty < MOST_EMPTY {
        let raw = fd.as_fd().as_raw_fd();
        // SAFETY: the buffer is live and as long as said.
        let got = unsafe {
            libc::recv(
                raw,
                buffer.as_mut_ptr().cast(),
                buffer.len(),
                libc::MSG_DONTWAIT,
            )
        };
        match got {
            0 => empty += 1,
            1.. => {}
            _ => match std::io::Error::last_os_error().raw_os_error() {
                Some(libc::EAGAIN | libc::ENOTCONN | libc::ECONNRESET) => break,
                Some(libc::EINTR) => {}
                _ => return check("recv", &fd, got as i64).map(drop),
            },
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::{UnixDatagram, UnixStream};

    #[test]
    fn a_stream_is_seen_whole_and_stays() {
        let (mut a, mut b) = UnixStream::pair().unwrap();
        a.write_all(b"one ").unwrap();
        a.write_all(b"two").unwrap();
        for _ in 0..2 {
            assert_eq!(peek_messages(&b, true).unwrap()[0].data, b"one two");
        }
        let mut got = [0; 16];
        assert_eq!(b.read(&mut got).unwrap(), 7);
        assert!(peek_messages(&b, true).unwrap().is_empty());
    }

    #[test]
    fn messages_keep_their_bounds_and_stay() {
        let (a, b) = UnixDatagram::pair().unwrap();
        for text in ["first", "2", "the third one is longer"] {
            a.send(text.as_bytes()).unwrap();
        }
        for _ in 0..2 {
            let seen = peek_messages(&b, false).unwrap();
            let seen: Vec<&[u8]> = seen.iter().map(|m| &m.data[..]).collect();
            assert_eq!(seen, [&b"first"[..], b"2", b"the third one is longer"]);
        }
        let mut got = [0; 64];
        assert_eq!(b.recv(&mut got).unwrap(), 5);
        assert_eq!(b.recv(&mut got).unwrap(), 1);
        assert_eq!(b.recv(&mut got).unwrap(), 23);
        assert!(peek_messages(&b, false).unwrap().is_empty());
    }

    #[test]
    fn the_end_of_a_connection_with_messages_is_no_message() {
        let (a, b) = super::super::pair(libc::SOCK_SEQPACKET).unwrap();
        let a = UnixDatagram::from(a);
        a.send(b"last").unwrap();
        drop(a);
        for _ in 0..2 {
            let seen = peek_messages(&b, false).unwrap();
            assert_eq!(seen.len(), 1);
            assert_eq!(seen[0].data, b"last");
        }
        drain(&b).unwrap();
        assert!(peek_messages(&b, false).unwrap().is_empty());
    }
}
