//! `serve`: receives snapshots from other machines, and brings them back when asked.

use super::key::keys;
use super::ram::Ram;
use super::remote::{DEFAULT_PORT, resolve};
use super::serve_link::{Place, serve_one};
use super::serve_room::Room;
use super::types::{hex, hex_option};
use super::{Result, SessionError};
use crate::model::SnapshotId;
use crate::store::Store;
use serde::Serialize;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc::unbounded_channel;

/// Connections at a time; more are closed at once.
const MOST_CONNECTIONS: usize = 64;

/// What a server tells as it happens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Served {
    /// It is ready.
    Listening {
        /// Address and port.
        address: String,
        /// This machine's key, for others to trust.
        key: String,
        /// Keys that may connect.
        trusted: usize,
    },
    /// A snapshot is stored.
    Received {
        /// Who sent it.
        peer: String,
        /// Its name here.
        #[serde(serialize_with = "hex")]
        id: SnapshotId,
        /// Its sequence number in its session.
        seq: u32,
        /// The process where it comes from.
        pid: i32,
        /// Its name.
        comm: String,
        /// Pages that were offered.
        pages: u64,
        /// Pages that were not here, and were sent.
        sent_pages: u64,
    },
    /// A process was brought back.
    Running {
        /// Who sent it.
        peer: String,
        /// The snapshot, unless its pages are still on their way.
        #[serde(serialize_with = "hex_option")]
        id: Option<SnapshotId>,
        /// Its id.
        pid: i32,
        /// Its id as it sees itself.
        own_pid: i32,
        /// From the order to its first instruction, in nanoseconds.
        took_ns: u64,
        /// What differs from what it was, a sentence each.
        notes: Vec<String>,
    },
    /// Something that the user should know.
    Note {
        /// A sentence.
        what: String,
    },
    /// A connection came to nothing, or ended early.
    Failed {
        /// Who.
        peer: String,
        /// Why.
        why: String,
    },
}

/// Listens until it is interrupted; without an address, on all of them. A source may be without a sign of life for
/// `stall`, unless it has nothing to send. Where the store is in memory, `ram`, room is made for each that sends something.
pub fn serve(
    dir: &Path,
    ram: Option<Ram>,
    listen: Option<&str>,
    stall: Duration,
    report: &mut dyn FnMut(&Served),
) -> Result<()> {
    let keys = keys()?;
    let own = keys.pair()?.public;
    // Said now rather than to the first who connects.
    Store::open_or_create(dir)?;
    let room = Arc::new(Room::new(ram));
    let (listener, address) = bind(listen)?;
    report(&Served::Listening {
        address: address.to_string(),
        key: own.to_string(),
        trusted: keys.trusted()?.len(),
    });
    let io = |what: &str| SessionError::io(format!("{what} {address}"));
    listener.set_nonblocking(true).map_err(io("listen on"))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(io("listen on"))?;
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::from_std(listener).map_err(io("listen on"))?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(io("listen on"))?;
        let mut terminate = signal(SignalKind::terminate()).map_err(io("listen on"))?;
        let (tell, mut told) = unbounded_channel();
        let connections = Arc::new(AtomicUsize::new(0));
        loop {
            tokio::select! {
                _ = interrupt.recv() => return Ok(()),
                _ = terminate.recv() => return Ok(()),
                Some(served) = told.recv() => report(&served),
                accepted = listener.accept() => {
                    let stream = match accepted.and_then(|(stream, _)| stream.into_std()) {
                        Ok(stream) => stream,
                        Err(e) => {
                            // Out of descriptors, most likely: others end meanwhile.
                            tracing::warn!("a connection was not accepted: {e}");
                            tokio::time::sleep(Duration::from_millis(100)).await;
                            continue;
                        }
                    };
                    if connections.load(Ordering::Acquire) >= MOST_CONNECTIONS {
                        tracing::warn!("a connection was closed: {MOST_CONNECTIONS} are open");
                        continue;
                    }
                    connections.fetch_add(1, Ordering::AcqRel);
                    let (keys, tell) = (keys.clone(), tell.clone());
                    let place = Place {
                        dir: dir.to_owned(),
                        room: Arc::clone(&room),
                    };
                    let open = Open(Arc::clone(&connections));
                    let started = std::thread::Builder::new().name("ksnap-serve".into()).spawn(move || {
                        let _open = open;
                        if stream.set_nonblocking(false).is_ok() {
                            serve_one(stream, &place, &keys, stall, &|served| drop(tell.send(served)));
                        }
                    });
                    if let Err(e) = started {
                        tracing::warn!("a connection was closed: no thread for it: {e}");
                    }
                }
            }
        }
    })
}

/// Counted as open until it is dropped.
struct Open(Arc<AtomicUsize>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

fn bind(listen: Option<&str>) -> Result<(TcpListener, SocketAddr)> {
    let addresses = match listen {
        // Where there is no IPv6, on all addresses of IPv4.
        None => vec![
            SocketAddr::from((IpAddr::V6(Ipv6Addr::UNSPECIFIED), DEFAULT_PORT)),
            SocketAddr::from((IpAddr::V4(Ipv4Addr::UNSPECIFIED), DEFAULT_PORT)),
        ],
        Some(text) => resolve(text)?.1,
    };
    let text = listen.map_or_else(|| addresses[0].to_string(), str::to_owned);
    let bound = TcpListener::bind(&addresses[..]).and_then(|listener| {
        let address = listener.local_addr()?;
        Ok((listener, address))
    });
    bound.map_err(SessionError::io(format!("listen on {text}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_listens_on_what_is_named_with_or_without_a_port() {
        for text in ["127.0.0.1:0", "localhost:0"] {
            let (_listener, address) = bind(Some(text)).unwrap();
            assert!(address.ip().is_loopback() && address.port() != 0, "{text}");
        }
        // Without one it is the usual one, which somebody may have.
        match bind(Some("localhost")) {
            Ok((_listener, address)) => assert_eq!(address.port(), DEFAULT_PORT),
            Err(e) => assert!(e.to_string().contains("in use"), "{e}"),
        }
        let error = bind(Some("localhost:many")).expect_err("no port");
        assert!(matches!(error, SessionError::Usage(_)), "{error}");
    }
}
