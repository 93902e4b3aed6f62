//! A way to wake a sleeper with numbered messages, one for each kind of blocking call.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::super::fault::os_error;
use super::super::rng::mix;
use super::calls::{block, futex_wait, queue, ready, signal_wait};
use super::sleep::{clock_nanosleep, failed, gave, nanosleep, not_cut_short, now, timespec};

/// Longer than anybody waits: a call with this time-out must be woken.
const LONG: Duration = Duration::from_secs(3600);

/// The kernel's own unit of time at its longest: the limit of a socket may end so much early.
const JIFFY: Duration = Duration::from_millis(10);

/// What the kind of call waits on.
enum Source {
    /// Time only.
    Clock,
    /// A word of memory.
    Word(AtomicU32),
    /// A pipe or a pair of sockets: what to read from, what to write to, and an epoll instance on the former.
    Stream {
        read: OwnedFd,
        write: OwnedFd,
        epoll: OwnedFd,
    },
    /// A listening socket.
    Listener(UnixListener, SocketAddr),
    /// A queued signal that every thread blocks.
    Signal(i32),
    /// A child process that ends.
    Child,
}

/// A kind of blocking call, with what it waits on.
pub struct Channel {
    kind: &'static str,
    source: Source,
    rollbacks: bool,
}

impl Channel {
    /// Opens what this kind of call waits on. To be called before there are threads.
    pub fn open(kind: &'static str, rollbacks: bool) -> Result<Self> {
        let source = match kind {
            "nanosleep" | "clock_nanosleep" => Source::Clock,
            "futex" | "futex-timeout" => Source::Word(AtomicU32::new(0)),
            "sigtimedwait" => Source::Signal(block(libc::SIGRTMIN() + 6)?),
            "wait4" => Source::Child,
            "accept" => {
                let name = format!("ksnap-victim-{}", std::process::id());
                let address = SocketAddr::from_abstract_name(name).context("name of a socket")?;
                Source::Listener(
                    UnixListener::bind_addr(&address).context("listen")?,
                    address,
                )
            }
            _ => stream(is_socket(kind))?,
        };
        Ok(Self {
            kind,
            source,
            rollbacks,
        })
    }

    /// Whether another thread wakes the sleeper; else time or a child does.
    pub fn has_waker(&self) -> bool {
        !matches!(self.source, Source::Clock | Source::Child)
    }

    /// Blocks for so many milliseconds in a call that nothing wakes, where this kind has one.
    pub fn time_out(&self, milliseconds: u64) -> Result<(), String> {
        let asked = Duration::from_millis(milliseconds);
        let (start, mut spec, call) = (now(), timespec(asked), self.kind);
        match (&self.source, call) {
            // With a rollback there may be a message of another future to wake the call.
            _ if self.rollbacks => return Ok(()),
            (_, "nanosleep" | "clock_nanosleep") => return Ok(()),
            (Source::Word(word), "futex-timeout") => {
                let seen = word.load(Ordering::SeqCst);
                failed(call, futex_wait(word, seen, Some(&spec)), libc::ETIMEDOUT)?;
            }
            (Source::Signal(signal), _) => {
                failed(call, signal_wait(*signal, &spec).0, libc::EAGAIN)?
            }
            (Source::Stream { read, epoll, .. }, "poll" | "ppoll" | "select" | "epoll_wait") => {
                gave(
                    call,
                    ready(call, read.as_raw_fd(), epoll.as_raw_fd(), Some(&mut spec)),
                    0,
                )?;
            }
            (Source::Stream { read, .. }, "recv-timeout" | "read-timeout") => {
                let long = asked + 3 * JIFFY;
                receive_limit(read.as_raw_fd(), long)?;
                let mut bytes = [0u8; 16];
                let got = receive_call(call, read.as_raw_fd(), &mut bytes);
                failed(call, got, libc::EAGAIN)?;
                return not_cut_short(call, start, long - JIFFY);
            }
            _ => return Ok(()),
        }
        // poll and epoll_wait take whole milliseconds, the others nanoseconds: never less than asked.
        not_cut_short(call, start, asked)
    }

    /// Blocks until the message with this number is here.
    pub fn receive(&self, number: u64) -> Result<(), String> {
        let call = self.kind;
        match &self.source {
            Source::Clock if call == "nanosleep" => {
                nanosleep(Duration::from_millis(1 + number % 30))
            }
            Source::Clock => clock_nanosleep(Duration::from_millis(1 + number % 30)),
            Source::Child => self.child(number),
            Source::Word(word) => self.word(word, number),
            Source::Signal(signal) => self.matching(number, || {
                let (got, value) = signal_wait(*signal, &timespec(LONG));
                gave(call, got, (*signal).into())?;
                Ok(value)
            }),
            Source::Listener(listener, _) => self.matching(number, || {
                // SAFETY: no address is asked for.
                let fd = unsafe {
                    libc::accept4(
                        listener.as_raw_fd(),
                        std::ptr::null_mut(),
                        std::ptr::null_mut(),
                        libc::SOCK_CLOEXEC,
                    )
                };
                if fd < 0 {
                    return Err(os_error("accept4"));
                }
                let got = match self.rollbacks && !readable(fd) {
                    // Another connection has the number by now, or none: its message is lost.
                    true => Ok(LOST),
                    false => read_message("read of an accepted connection", fd),
                };
                close(fd);
                match got {
                    Err(_) if self.rollbacks => Ok(LOST),
                    got => got,
                }
            }),
            Source::Stream { read, epoll, .. } => self.matching(number, || {
                if call.ends_with("-timeout") {
                    receive_limit(read.as_raw_fd(), LONG)?;
                } else if !matches!(call, "pipe" | "recv") {
                    // ppoll and select with a time-out, so that the kernel has one to restart with.
                    let mut long = timespec(LONG);
                    let limit = matches!(call, "ppoll" | "select").then_some(&mut long);
                    gave(
                        call,
                        ready(call, read.as_raw_fd(), epoll.as_raw_fd(), limit),
                        1,
                    )?;
                }
                read_message(call, read.as_raw_fd())
            }),
        }
    }

    /// Sends the message with this number to the sleeper.
    pub fn send(&self, number: u64) -> Result<(), String> {
        match &self.source {
            Source::Clock | Source::Child => Ok(()),
            Source::Word(word) => {
                word.store(number as u32, Ordering::SeqCst);
                // SAFETY: the word is valid, and futex wakes only.
                let woken = unsafe {
                    libc::syscall(
                        libc::SYS_futex,
                        word.as_ptr(),
                        libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG,
                        1,
                    )
                };
                if woken < 0 {
                    Err(os_error("futex wake"))
                } else {
                    Ok(())
                }
            }
            Source::Signal(signal) => queue(*signal, number),
            Source::Listener(_, address) => {
                let fd = match connect(address) {
                    Err(_) if self.rollbacks => return Ok(()),
                    fd => fd?,
                };
                let bytes = message(number);
                // SAFETY: the buffer is valid for its length.
                let wrote = unsafe { libc::write(fd, bytes.as_ptr().cast(), bytes.len()) };
                close(fd);
                match gave("write to the sleeper", wrote as i64, bytes.len() as i64) {
                    Err(_) if self.rollbacks => Ok(()),
                    done => done,
                }
            }
            Source::Stream { write, .. } => {
                let bytes = message(number);
                // SAFETY: the buffer is valid for its length.
                let wrote =
                    unsafe { libc::write(write.as_raw_fd(), bytes.as_ptr().cast(), bytes.len()) };
                gave("write to the sleeper", wrote as i64, bytes.len() as i64)
            }
        }
    }

    /// Takes messages until the right one comes. Others are an error, unless rollbacks explain them.
    fn matching(
        &self,
        number: u64,
        mut next: impl FnMut() -> Result<u64, String>,
    ) -> Result<(), String> {
        loop {
            match next()? {
                got if got == number => return Ok(()),
                _ if self.rollbacks => {}
                got => {
                    return Err(format!(
                        "{}: message {got} came when {number} was due",
                        self.kind
                    ));
                }
            }
        }
    }

    fn word(&self, word: &AtomicU32, number: u64) -> Result<(), String> {
        loop {
            let seen = word.load(Ordering::SeqCst);
            if seen == number as u32 {
                return Ok(());
            }
            let long = timespec(LONG);
            let limit = (self.kind == "futex-timeout").then_some(&long);
            match futex_wait(word, seen, limit) {
                0 => {}
                // The word has changed before the kernel looked.
                got => failed(self.kind, got, libc::EAGAIN)?,
            }
        }
    }

    fn child(&self, number: u64) -> Result<(), String> {
        let code = (number % 100) as i32;
        // SAFETY: the child sleeps and leaves with _exit; it touches nothing of the parent's.
        let child = match unsafe { libc::fork() } {
            -1 => return Err(os_error("fork")),
            0 => {
                let short = timespec(Duration::from_millis(1 + number % 20));
                // SAFETY: the timespec is valid; _exit ends the child.
                unsafe {
                    libc::nanosleep(&raw const short, std::ptr::null_mut());
                    libc::_exit(code)
                }
            }
            child => child,
        };
        let mut status = 0;
        // SAFETY: status is valid for writing, and no resource usage is asked for.
        let got = unsafe { libc::wait4(child, &raw mut status, 0, std::ptr::null_mut()) };
        let error = std::io::Error::last_os_error();
        if got == -1 && self.rollbacks && error.raw_os_error() == Some(libc::ECHILD) {
            // Reaped in another future.
            return Ok(());
        }
        if got == -1 {
            return Err(format!("wait4: {error}"));
        }
        match got == child && libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == code {
            true => Ok(()),
            false => Err(format!(
                "wait4 gave process {got} with status {status:#x}; child {child} ends with {code}"
            )),
        }
    }
}

fn message(number: u64) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    bytes[8..].copy_from_slice(&mix(number).to_le_bytes());
    bytes
}

/// No message has this number.
const LOST: u64 = 0;

/// Closes a connection. After a rollback it may have been closed before, which the standard library's owned
/// descriptors end a program for.
fn close(fd: RawFd) {
    // SAFETY: takes a number; nobody else uses what it names.
    unsafe { libc::close(fd) };
}

/// A connection to an abstract name; not by the standard library, see [`close`].
fn connect(address: &SocketAddr) -> Result<RawFd, String> {
    let name = address.as_abstract_name().unwrap_or_default();
    // SAFETY: zeroed, it is a valid address; the name fits behind the first byte, which is what makes it abstract.
    let (fd, connected) = unsafe {
        let mut to: libc::sockaddr_un = std::mem::zeroed();
        to.sun_family = libc::AF_UNIX as libc::sa_family_t;
        for (at, byte) in to.sun_path[1..].iter_mut().zip(name) {
            *at = *byte as libc::c_char;
        }
        let length = std::mem::offset_of!(libc::sockaddr_un, sun_path) + 1 + name.len();
        let fd = libc::socket(libc::AF_UNIX, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0);
        let done = libc::connect(fd, (&raw const to).cast(), length as libc::socklen_t);
        (fd, done)
    };
    if connected == 0 {
        return Ok(fd);
    }
    let error = os_error("connect to the sleeper");
    close(fd);
    Err(error)
}

/// Whether there is something to read, or the end, within a while.
fn readable(fd: RawFd) -> bool {
    let mut one = libc::pollfd {
        fd,
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: the structure is live.
    unsafe { libc::poll(&raw mut one, 1, 1000) == 1 && one.revents & libc::POLLIN != 0 }
}

/// Kinds that wait on a socket rather than a pipe.
fn is_socket(kind: &str) -> bool {
    matches!(kind, "recv" | "recv-timeout" | "read-timeout")
}

/// The bytes received, by recv(2) or read(2) as the kind of call says; -1 on an error.
fn receive_call(call: &str, fd: RawFd, bytes: &mut [u8; 16]) -> i64 {
    // SAFETY: the buffer is valid for its length.
    let got = unsafe {
        match call {
            "recv" | "recv-timeout" => libc::recv(fd, bytes.as_mut_ptr().cast(), bytes.len(), 0),
            _ => libc::read(fd, bytes.as_mut_ptr().cast(), bytes.len()),
        }
    };
    got as i64
}

/// Sets how long a call on the socket waits: a thread that is stopped in one with such a limit gets an EINTR of its
/// own from the kernel (signal(7)).
fn receive_limit(fd: RawFd, limit: Duration) -> Result<(), String> {
    let time = libc::timeval {
        tv_sec: limit.as_secs() as libc::time_t,
        tv_usec: limit.subsec_micros().into(),
    };
    // SAFETY: the time is valid for its length.
    let done = unsafe {
        libc::setsockopt(
            fd,
            libc::SOL_SOCKET,
            libc::SO_RCVTIMEO,
            (&raw const time).cast(),
            size_of::<libc::timeval>() as libc::socklen_t,
        )
    };
    gave("setsockopt", done.into(), 0)
}

fn read_message(call: &str, fd: RawFd) -> Result<u64, String> {
    let mut bytes = [0u8; 16];
    let got = receive_call(call, fd, &mut bytes);
    gave(call, got, 16)?;
    let (number, seal) = bytes.split_at(8);
    let word = |half: &[u8]| {
        half.iter()
            .rev()
            .fold(0u64, |word, byte| word << 8 | u64::from(*byte))
    };
    match word(seal) == mix(word(number)) {
        true => Ok(word(number)),
        false => Err(format!("{call}: a damaged message: {bytes:02x?}")),
    }
}

fn stream(sockets: bool) -> Result<Source> {
    let mut ends = [0; 2];
    // SAFETY: two descriptors are written to `ends`; epoll_create1 gives one.
    let (made, epoll) = unsafe {
        let made = match sockets {
            true => libc::socketpair(
                libc::AF_UNIX,
                libc::SOCK_DGRAM | libc::SOCK_CLOEXEC,
                0,
                ends.as_mut_ptr(),
            ),
            false => libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC),
        };
        (made, libc::epoll_create1(libc::EPOLL_CLOEXEC))
    };
    if made != 0 || epoll < 0 {
        bail!(os_error("make a pipe and an epoll instance"));
    }
    // SAFETY: all three are just made, and owned by nobody else.
    let (read, write, epoll) = unsafe {
        (
            OwnedFd::from_raw_fd(ends[0]),
            OwnedFd::from_raw_fd(ends[1]),
            OwnedFd::from_raw_fd(epoll),
        )
    };
    let mut event = libc::epoll_event {
        events: libc::EPOLLIN as u32,
        u64: 1,
    };
    // SAFETY: the event is valid.
    if unsafe {
        libc::epoll_ctl(
            epoll.as_raw_fd(),
            libc::EPOLL_CTL_ADD,
            read.as_raw_fd(),
            &raw mut event,
        )
    } != 0
    {
        bail!(os_error("epoll_ctl"));
    }
    Ok(Source::Stream { read, write, epoll })
}
