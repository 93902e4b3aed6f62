//! Connecting and accepting: both sides show their keys, and talk only if both are trusted.

use super::{Link, Stream, address_of};
use crate::wire::key::{KeyPair, PublicKey};
use crate::wire::timed::Timed;
use crate::wire::{Result, WireError, tls};
use rustls::{ClientConnection, ServerConnection, StreamOwned};
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// How long connecting and shaking hands may take.
const HANDSHAKE: Duration = Duration::from_secs(10);

impl Link {
    /// Connects to a target at one of `addresses`, which must have one of these keys. `name` is what people call it,
    /// `stall` how long it may take for what it should do at once.
    pub fn connect(
        name: &str,
        addresses: &[SocketAddr],
        own: &KeyPair,
        trusted: Vec<PublicKey>,
        stall: Duration,
    ) -> Result<Self> {
        let config = tls::client(own, trusted).map_err(|e| untrusted(name, &e))?;
        let limit = stall.min(HANDSHAKE);
        let io = |what: String| move |source| WireError::Io { what, source };
        let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
        let mut connected = None;
        for address in addresses {
            match TcpStream::connect_timeout(address, limit) {
                Ok(stream) => {
                    connected = Some(stream);
                    break;
                }
                Err(e) => last = e,
            }
        }
        let stream = connected.ok_or(last).map_err(io(format!(
            "connect to {name} (is `ksnap serve` running there?)"
        )))?;
        let mut socket = Timed::new(stream, limit).map_err(io(format!("connect to {name}")))?;
        let mut tls =
            ClientConnection::new(config, tls::nameless()).map_err(|e| untrusted(name, &e))?;
        while tls.is_handshaking() {
            tls.complete_io(&mut socket)
                .map_err(|e| no_handshake(name, e, limit))?;
        }
        let key = peer_key(name, tls.peer_certificates())?;
        Ok(Self {
            stream: Stream::Source(Box::new(StreamOwned::new(tls, socket))),
            peer: name.to_owned(),
            key,
            stall,
            limit: None,
        })
    }

    /// Takes a connection in. Whoever is not trusted gets nothing but the handshake's refusal.
    pub fn accept(
        stream: TcpStream,
        own: &KeyPair,
        trusted: Vec<PublicKey>,
        stall: Duration,
    ) -> Result<Self> {
        let io = |source| WireError::Io {
            what: "accept a connection".into(),
            source,
        };
        let name = address_of(&stream).map_err(io)?;
        let config = tls::server(own, trusted).map_err(|e| untrusted(&name, &e))?;
        let limit = stall.min(HANDSHAKE);
        let mut socket = Timed::new(stream, limit).map_err(io)?;
        let mut tls = ServerConnection::new(config).map_err(|e| untrusted(&name, &e))?;
        while tls.is_handshaking() {
            tls.complete_io(&mut socket)
                .map_err(|e| no_handshake(&name, e, limit))?;
        }
        let key = peer_key(&name, tls.peer_certificates())?;
        Ok(Self {
            stream: Stream::Target(Box::new(StreamOwned::new(tls, socket))),
            peer: name,
            key,
            stall,
            limit: None,
        })
    }
}

pub(super) fn untrusted(peer: &str, error: &rustls::Error) -> WireError {
    let why = match error {
        rustls::Error::InvalidCertificate(_) => {
            "its key is not trusted here: ask for the output of `ksnap key show` there, and `ksnap key trust` it".into()
        }
        rustls::Error::AlertReceived(_) => format!(
            "it does not accept this side ({error}): it may have to trust the key that `ksnap key show` prints here"
        ),
        other => other.to_string(),
    };
    WireError::Untrusted {
        peer: peer.to_owned(),
        why,
    }
}

pub(super) fn tls_error(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}

fn no_handshake(peer: &str, error: io::Error, limit: Duration) -> WireError {
    if let Some(tls) = tls_error(&error) {
        return untrusted(peer, tls);
    }
    match error.kind() {
        io::ErrorKind::TimedOut => WireError::Stalled {
            peer: peer.to_owned(),
            what: "completed the handshake",
            within: limit,
        },
        _ => WireError::Io {
            what: format!("the connection to {peer} ended before the handshake"),
            source: error,
        },
    }
}

fn peer_key(
    peer: &str,
    presented: Option<&[rustls::pki_types::CertificateDer<'static>]>,
) -> Result<PublicKey> {
    presented
        .and_then(|all| PublicKey::from_spki(all.first()?))
        .ok_or_else(|| WireError::Untrusted {
            peer: peer.to_owned(),
            why: "it has shown no key".into(),
        })
}

#[cfg(test)]
mod tests {
    use super::super::STALL;
    use super::*;
    use crate::wire::message::Message;
    use std::net::TcpListener;
    use std::thread;

    /// What both sides get, where they trust these keys.
    fn meet(
        source_trusts: &dyn Fn(&KeyPair) -> Vec<PublicKey>,
        target_trusts: &dyn Fn(&KeyPair) -> Vec<PublicKey>,
    ) -> (Result<Message>, Result<Message>) {
        let (source, target) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        let (trusted, of_target) = (target_trusts(&source), source_trusts(&target));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let mut link = Link::accept(stream, &target, trusted, STALL)?;
            let got = link.receive(STALL)?;
            link.send(&Message::Settled)?;
            Ok(got)
        });
        let client = (|| {
            let mut link = Link::connect("target", &[address], &source, of_target, STALL)?;
            link.send(&Message::Alive)?;
            link.send(&Message::Done)?;
            link.receive(STALL)
        })();
        (client, server.join().unwrap())
    }

    #[test]
    fn two_who_trust_each_other_talk() {
        let (client, server) = meet(&|target| vec![target.public], &|source| vec![source.public]);
        assert_eq!(client.unwrap(), Message::Settled);
        assert_eq!(server.unwrap(), Message::Done);
    }

    #[test]
    fn a_source_that_is_not_trusted_gets_nothing() {
        let other = KeyPair::generate().unwrap().public;
        let (client, server) = meet(&|target| vec![target.public], &|_| vec![other]);
        assert!(
            matches!(server, Err(WireError::Untrusted { .. })),
            "{server:?}"
        );
        // Told by an alert, or by the end of the connection: never by a message.
        let error = client.unwrap_err();
        assert!(
            matches!(error, WireError::Io { .. } | WireError::Untrusted { .. }),
            "{error:?}"
        );
    }

    #[test]
    fn a_target_that_is_not_trusted_gets_nothing() {
        let (client, server) = meet(&|_| vec![], &|source| vec![source.public]);
        assert!(
            matches!(client, Err(WireError::Untrusted { .. })),
            "{client:?}"
        );
        assert!(server.is_err());
    }
}
