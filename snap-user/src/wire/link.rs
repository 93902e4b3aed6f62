//! A connection: messages in and out.

mod handshake;

use handshake::{tls_error, untrusted};

use super::frame::{self, Unread};
use super::key::PublicKey;
use super::message::Message;
use super::timed::Timed;
use super::{Result, WireError};
use rustls::{ClientConnection, ServerConnection, StreamOwned};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// How long a side may take, unless the user says otherwise, for what it should do at once: answer, or say that it is
/// alive.
pub const STALL: Duration = Duration::from_secs(30);
/// How long a source may be silent between two snapshots.
pub const WAIT: Duration = Duration::from_secs(600);
/// How long a peer that is refused may go on sending before it hears of it.
const LINGER: Duration = Duration::from_secs(2);
/// A message may take longer, at so many bytes a second.
const SLOWEST: u64 = 16 << 10;

enum Stream {
    Source(Box<StreamOwned<ClientConnection, Timed>>),
    Target(Box<StreamOwned<ServerConnection, Timed>>),
}

impl Stream {
    fn socket(&mut self) -> &mut Timed {
        match self {
            Self::Source(stream) => &mut stream.sock,
            Self::Target(stream) => &mut stream.sock,
        }
    }
}

impl Read for Stream {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Source(stream) => stream.read(bytes),
            Self::Target(stream) => stream.read(bytes),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Source(stream) => stream.write(bytes),
            Self::Target(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Source(stream) => stream.flush(),
            Self::Target(stream) => stream.flush(),
        }
    }
}

/// Until when something has to be over, however many signs of life there are.
#[derive(Clone, Copy, Debug)]
pub struct Limit {
    /// Until then.
    pub at: Instant,
    /// How long it had in all.
    pub within: Duration,
    /// What the peer should have done by then, for the error.
    pub what: &'static str,
}

impl Limit {
    fn is_over(&self) -> bool {
        Instant::now() >= self.at
    }
}

/// What is left of a time.
fn left(time: Duration, limit: Option<Limit>) -> Duration {
    limit.map_or(time, |limit| {
        time.min(limit.at.saturating_duration_since(Instant::now()))
    })
}

/// A connection to a peer whose key is trusted, and who trusts this side's.
pub struct Link {
    stream: Stream,
    peer: String,
    key: PublicKey,
    stall: Duration,
    limit: Option<Limit>,
}

impl Link {
    /// What people call the peer.
    pub fn peer(&self) -> &str {
        &self.peer
    }

    /// Who it is.
    pub fn key(&self) -> PublicKey {
        self.key
    }

    /// How long the peer may take for what it should do at once.
    pub fn stall(&self) -> Duration {
        self.stall
    }

    /// Bytes that went out, and bytes that came in, handshake and encryption included.
    pub fn bytes(&mut self) -> (u64, u64) {
        let socket = self.stream.socket();
        (socket.sent, socket.received)
    }

    /// From now on everything has to be over by then; or takes as long as it takes, while the peer lives.
    pub fn set_limit(&mut self, limit: Option<Limit>) {
        self.limit = limit;
    }

    /// Whether a limit that was set is over.
    pub fn is_over(&self) -> bool {
        self.limit.is_some_and(|limit| limit.is_over())
    }

    /// Sends a message.
    pub fn send(&mut self, message: &Message) -> Result<()> {
        self.check_limit()?;
        let bytes = frame::encode_frame(message);
        let time = allowed(self.stall, bytes.len());
        let limit = self.limit;
        self.stream.socket().allow(left(time, limit));
        let sent = self
            .stream
            .write_all(&bytes)
            .and_then(|()| self.stream.flush());
        sent.map_err(|e| self.failed(e, "taken a message", time))
    }

    /// Receives the next message other than [`Message::Alive`], which begins within `wait`.
    ///
    /// # Errors
    /// [`WireError::Refused`] when the peer says so.
    pub fn receive(&mut self, wait: Duration) -> Result<Message> {
        self.receive_with(wait, &mut || {})
    }

    /// The same; `alive` is called whenever the peer says that it is being worked on.
    pub fn receive_with(&mut self, wait: Duration, alive: &mut dyn FnMut()) -> Result<Message> {
        let (stall, limit) = (self.stall, self.limit);
        loop {
            self.check_limit()?;
            self.stream.socket().allow(left(wait, limit));
            let read = frame::read(&mut self.stream, |stream, len| {
                stream.socket().allow(left(allowed(stall, len), limit));
            });
            match read.map_err(|e| self.unread(e, wait))? {
                Message::Alive => alive(),
                Message::Refused(why) => {
                    return Err(WireError::Refused {
                        peer: self.peer.clone(),
                        why,
                    });
                }
                message => return Ok(message),
            }
        }
    }

    /// Says why it ends here, as far as that goes.
    pub fn refuse(&mut self, why: &str) {
        let _ = self.send(&Message::Refused(why.to_owned()));
        match &mut self.stream {
            Stream::Source(stream) => stream.conn.send_close_notify(),
            Stream::Target(stream) => stream.conn.send_close_notify(),
        }
        let _ = self.stream.flush();
        let socket = self.stream.socket();
        socket.allow(LINGER);
        socket.end();
    }

    /// An error for a message that should not come here.
    pub fn unexpected(&self, message: &Message, wanted: &str) -> WireError {
        WireError::Broken {
            peer: self.peer.clone(),
            why: format!("{} came where {wanted} should", message.name()),
        }
    }

    /// An error for a message that cannot be.
    pub fn breach(&self, why: impl Into<String>) -> WireError {
        WireError::Broken {
            peer: self.peer.clone(),
            why: why.into(),
        }
    }

    fn check_limit(&self) -> Result<()> {
        match self.limit.filter(Limit::is_over) {
            None => Ok(()),
            Some(limit) => Err(self.stalled(limit.what, limit.within)),
        }
    }

    fn unread(&self, error: Unread, wait: Duration) -> WireError {
        match error {
            Unread::Head(e) => self.failed(e, "sent anything", wait),
            Unread::Body(len, e) => {
                self.failed(e, "sent the rest of a message", allowed(self.stall, len))
            }
            Unread::Malformed(e) => self.breach(e.to_string()),
        }
    }

    fn stalled(&self, what: &'static str, within: Duration) -> WireError {
        WireError::Stalled {
            peer: self.peer.clone(),
            what,
            within,
        }
    }

    fn failed(&self, error: io::Error, what: &'static str, time: Duration) -> WireError {
        // A target's refusal of the key arrives when the source takes the handshake for done.
        if let Some(tls) = tls_error(&error) {
            return untrusted(&self.peer, tls);
        }
        match error.kind() {
            io::ErrorKind::TimedOut => match self.check_limit() {
                Err(over) => over,
                Ok(()) => self.stalled(what, time),
            },
            _ => WireError::Io {
                what: format!("the connection to {} is lost", self.peer),
                source: error,
            },
        }
    }
}

/// Time for so many bytes.
fn allowed(stall: Duration, bytes: usize) -> Duration {
    stall + Duration::from_secs(bytes as u64 / SLOWEST)
}

/// Who is at the other end; an IPv4 address as one, also where the socket is one of IPv6.
pub fn address_of(stream: &TcpStream) -> io::Result<String> {
    let address = stream.peer_addr()?;
    Ok(SocketAddr::new(address.ip().to_canonical(), address.port()).to_string())
}

#[cfg(test)]
impl Link {
    /// Both ends of a connection: the source's and the target's.
    pub(crate) fn pair(stall: Duration) -> (Self, Self) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let [source, target] = [(); 2].map(|()| super::key::KeyPair::generate().unwrap());
        let (trusted, of_target) = (vec![source.public], vec![target.public]);
        let accepting = std::thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            Self::accept(stream, &target, trusted, STALL).unwrap()
        });
        let mut link = Self::connect("target", &[address], &source, of_target, STALL).unwrap();
        let mut other = accepting.join().unwrap();
        // Until here it may take longer.
        (link.stall, other.stall) = (stall, stall);
        (link, other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;
    use std::thread;

    const WITHIN: Duration = Duration::from_secs(2);

    /// What becomes of this when it has so long: it is over long before a side would be given up.
    fn limited<T>(link: &mut Link, work: impl FnOnce(&mut Link) -> Result<T>) -> Result<T> {
        let begun = Instant::now();
        let within = WITHIN;
        link.set_limit(Some(Limit {
            at: begun + within,
            within,
            what: "been quick enough",
        }));
        let done = work(link);
        assert!(begun.elapsed() < STALL, "{:?}", begun.elapsed());
        done
    }

    fn assert_over<T: std::fmt::Debug>(done: &Result<T>) {
        let Err(WireError::Stalled { what, within, .. }) = done else {
            panic!("not over but {done:?}")
        };
        assert_eq!((*what, *within), ("been quick enough", WITHIN));
    }

    #[test]
    fn signs_of_life_do_not_go_beyond_a_limit() {
        let (mut source, mut target) = Link::pair(STALL);
        let (sent, is_sent) = channel();
        let lives = thread::spawn(move || {
            while target.send(&Message::Alive).is_ok() {
                let _ = sent.send(());
                thread::sleep(Duration::from_millis(20));
            }
        });
        // Two are there already, whenever the next comes.
        (0..2).for_each(|_| is_sent.recv().unwrap());
        let mut signs = 0;
        let done = limited(&mut source, |link| {
            link.receive_with(STALL, &mut || signs += 1)
        });
        assert_over(&done);
        assert!(signs > 1 && source.is_over());
        drop(source);
        lives.join().unwrap();
    }

    #[test]
    fn what_nobody_takes_or_sends_is_given_up_at_the_limit() {
        let (mut source, target) = Link::pair(STALL);
        let state = Message::State(vec![7; super::super::MAX_STATE]);
        let all = |link: &mut Link| (0..10_000).try_for_each(|_| link.send(&state));
        assert_over(&limited(&mut source, all));
        drop(target);
        let (mut source, target) = Link::pair(STALL);
        assert_over(&limited(&mut source, |link| link.receive(STALL)));
        // And not at all afterwards, until there is none any more.
        assert_over(&source.send(&Message::Done));
        source.set_limit(None);
        source.send(&Message::Done).unwrap();
        drop(target);
    }
}
