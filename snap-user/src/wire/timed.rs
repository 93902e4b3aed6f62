//! A socket on which nothing takes for ever: every read and write ends at a deadline that the caller sets.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

/// A socket with a deadline.
pub(super) struct Timed {
    stream: TcpStream,
    deadline: Instant,
    /// Bytes that went out.
    pub(super) sent: u64,
    /// Bytes that came in.
    pub(super) received: u64,
}

impl Timed {
    pub(super) fn new(stream: TcpStream, allowed: Duration) -> io::Result<Self> {
        // Answers of a few bytes are waited for.
        stream.set_nodelay(true)?;
        Ok(Self {
            stream,
            deadline: Instant::now() + allowed,
            sent: 0,
            received: 0,
        })
    }

    /// From now on, this long.
    pub(super) fn allow(&mut self, time: Duration) {
        self.deadline = Instant::now() + time;
    }

    /// Nothing more is sent. What still comes is thrown away, since the peer would lose what it has not read yet if this
    /// end closed with something unread (RFC 1122, 4.2.2.13).
    pub(super) fn end(&mut self) {
        let _ = self.stream.shutdown(Shutdown::Write);
        let mut bytes = [0; 16 << 10];
        while matches!(self.read(&mut bytes), Ok(1..)) {}
    }

    fn left(&self) -> io::Result<Option<Duration>> {
        match self.deadline.checked_duration_since(Instant::now()) {
            // The kernel counts in microseconds, and takes none for no limit.
            Some(left) if !left.is_zero() => Ok(Some(left.max(Duration::from_millis(1)))),
            _ => Err(io::ErrorKind::TimedOut.into()),
        }
    }
}

/// A socket that is not ready when its time is over says that it would block.
fn over(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::WouldBlock => io::ErrorKind::TimedOut.into(),
        _ => error,
    }
}

impl Read for Timed {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(self.left()?)?;
        let got = self.stream.read(bytes).map_err(over)?;
        self.received += got as u64;
        Ok(got)
    }
}

impl Write for Timed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(self.left()?)?;
        let put = self.stream.write(bytes).map_err(over)?;
        self.sent += put as u64;
        Ok(put)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}
