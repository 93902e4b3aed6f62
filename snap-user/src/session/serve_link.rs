//! A conversation with one source, on a thread of its own.

use super::remote::{greet, is_lost};
use super::serve::Served;
use super::serve_incoming::Incoming;
use super::serve_restore::restore;
use super::{Result, SessionError};
use crate::store::Store;
use crate::wire::{Keys, Link, Message, WAIT, address_of};
use std::net::TcpStream;
use std::path::Path;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

/// How often a source that waits is told that work goes on.
pub(super) fn alive(link: &Link) -> Duration {
    // The source's patience may be another one than this side's.
    (link.stall() / 4).min(Duration::from_millis(500))
}

/// Does something that may take long, while the source is told that it goes on.
pub(super) fn while_alive<T: Send>(link: &mut Link, work: impl FnOnce() -> T + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let (done, wait) = channel();
        scope.spawn(move || done.send(work()));
        loop {
            match wait.recv_timeout(alive(link)) {
                Ok(outcome) => return Ok(outcome),
                Err(RecvTimeoutError::Timeout) => link.send(&Message::Alive)?,
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(SessionError::Remote(
                        "a thread of this server is lost".into(),
                    ));
                }
            }
        }
    })
}

/// Serves one connection to its end. Whoever is not trusted gets nothing.
pub(super) fn serve_one(
    stream: TcpStream,
    dir: &Path,
    keys: &Keys,
    stall: Duration,
    report: &(dyn Fn(Served) + Sync),
) {
    let peer = address_of(&stream).unwrap_or_else(|_| "somebody".into());
    let fail = |why: String| {
        report(Served::Failed {
            peer: peer.clone(),
            why,
        });
    };
    let link = (|| -> Result<Link> {
        let trusted = keys.trusted()?.into_iter().map(|t| t.key).collect();
        Ok(Link::accept(stream, &keys.pair()?, trusted, stall)?)
    })();
    let mut link = match link {
        Ok(link) => link,
        Err(e) => return fail(e.to_string()),
    };
    let done = greet(&mut link).and_then(|()| converse(&mut link, dir, &peer, report));
    if let Err(e) = done {
        if !is_lost(&e) {
            link.refuse(&e.to_string());
        }
        fail(e.to_string());
    }
}

fn converse(
    link: &mut Link,
    dir: &Path,
    peer: &str,
    report: &(dyn Fn(Served) + Sync),
) -> Result<()> {
    let store = Store::open_or_create(dir)?;
    let mut incoming: Option<Incoming> = None;
    loop {
        match link.receive(WAIT)? {
            Message::Begin(begin) => {
                let into = match incoming.as_mut() {
                    Some(into) => into,
                    None => incoming.insert(Incoming::new(&store, link, &begin)?),
                };
                let (pid, comm, restore) = (begin.pid, begin.comm.clone(), begin.restore);
                let taken = into.take(link, begin)?;
                link.send(&Message::Stored(taken.stored))?;
                report(Served::Received {
                    peer: peer.to_owned(),
                    id: taken.stored.id,
                    seq: taken.stored.seq,
                    pid,
                    comm,
                    pages: taken.offered,
                    sent_pages: taken.sent,
                });
                if restore {
                    into.prepare(link)?;
                }
            }
            Message::Restore(order) => {
                let into = incoming.as_mut();
                let Some((into, id)) = into.and_then(|i| i.last().map(|id| (i, id))) else {
                    return Err(link
                        .breach("nothing was sent that can be brought back")
                        .into());
                };
                into.close();
                let running = restore(link, &store, id, &order)?;
                report(Served::Running {
                    peer: peer.to_owned(),
                    id,
                    pid: running.pid,
                    own_pid: running.own_pid,
                    took_ns: running.took_ns,
                    notes: running.notes,
                });
            }
            Message::Done => {
                if let Some(incoming) = incoming {
                    incoming.finish();
                }
                return Ok(());
            }
            other => return Err(link.unexpected(&other, "a snapshot or an order").into()),
        }
    }
}
