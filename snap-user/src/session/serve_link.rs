//! A conversation with one source, on a thread of its own.

use super::remote::{greet, is_lost};
use super::serve::Served;
use super::serve_incoming::Incoming;
use super::serve_lazily::restore_listed;
use super::serve_restore::{Last, restore};
use super::serve_room::Room;
use super::{Result, SessionError};
use crate::model::SnapshotId;
use crate::store::Store;
use crate::wire::{Keys, Link, Message, Running, Stored, WAIT, address_of};
use std::any::Any;
use std::convert::Infallible;
use std::net::TcpStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

/// How often a source that waits is told that work goes on.
pub(super) fn alive(link: &Link) -> Duration {
    // The source's patience may be another one than this side's.
    (link.stall() / 4).min(Duration::from_millis(500))
}

/// Waits for what a thread has to say, while the source is told that work goes on. `None` when that thread has ended.
pub(super) fn await_alive<T>(link: &mut Link, said: &Receiver<T>) -> Result<Option<T>> {
    loop {
        match said.recv_timeout(alive(link)) {
            Ok(said) => return Ok(Some(said)),
            Err(RecvTimeoutError::Timeout) => link.send(&Message::Alive)?,
            Err(RecvTimeoutError::Disconnected) => return Ok(None),
        }
    }
}

/// Does something that may take long, while the source is told that it goes on.
pub(super) fn while_alive<T: Send>(link: &mut Link, work: impl FnOnce() -> T + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let (working, done) = channel::<Infallible>();
        let worker = scope.spawn(move || {
            let _working = working;
            work()
        });
        let waited = await_alive(link, &done);
        // Joined here: a panic in it ends this connection, and not the thread that serves it.
        let outcome = worker.join().map_err(|panic| lost(&*panic))?;
        waited?;
        Ok(outcome)
    })
}

/// A thread that ended by a panic.
pub(super) fn lost(panic: &(dyn Any + Send)) -> SessionError {
    let said = panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    SessionError::Remote(format!(
        "the server has an error of its own, and this connection ends ({}): report it",
        said.unwrap_or("a thread panicked")
    ))
}

/// Where what comes is put.
pub(super) struct Place {
    /// The store's folder.
    pub(super) dir: PathBuf,
    pub(super) room: Arc<Room>,
}

/// Serves one connection to its end. Whoever is not trusted gets nothing.
pub(super) fn serve_one(
    stream: TcpStream,
    place: &Place,
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
    let done = greet(&mut link).and_then(|()| converse(&mut link, place, &peer, report));
    if let Err(e) = done {
        if !is_lost(&e) {
            link.refuse(&e.to_string());
        }
        fail(e.to_string());
    }
}

/// That a snapshot has come: from whom, of which process, and of its pages all and those that were sent.
fn received(peer: &str, from: (i32, String), stored: Stored, pages: (u64, u64)) -> Served {
    Served::Received {
        peer: peer.to_owned(),
        id: stored.id,
        seq: stored.seq,
        pid: from.0,
        comm: from.1,
        pages: pages.0,
        sent_pages: pages.1,
    }
}

/// That a process runs, from a snapshot that is stored already or is not.
fn is_running(peer: &str, id: Option<SnapshotId>, running: &Running) -> Served {
    Served::Running {
        peer: peer.to_owned(),
        id,
        pid: running.pid,
        own_pid: running.own_pid,
        took_ns: running.took_ns,
        notes: running.notes.clone(),
    }
}

fn converse(
    link: &mut Link,
    place: &Place,
    peer: &str,
    report: &(dyn Fn(Served) + Sync),
) -> Result<()> {
    let store = Store::open_or_create(&place.dir)?;
    let mut incoming: Option<Incoming> = None;
    loop {
        match link.receive(WAIT)? {
            Message::Begin(begin) => {
                let into = match incoming.as_mut() {
                    Some(into) => into,
                    None => {
                        let room = &place.room;
                        for what in while_alive(link, || room.make(&store))?? {
                            report(Served::Note { what });
                        }
                        incoming.insert(Incoming::new(&store, room, link, &begin)?)
                    }
                };
                let (pid, comm, restore) = (begin.pid, begin.comm.clone(), begin.restore);
                let taken = into.take(link, begin)?;
                let Some(stored) = taken.stored else {
                    link.send(&Message::Listed)?;
                    continue;
                };
                link.send(&Message::Stored(stored))?;
                report(received(
                    peer,
                    (pid, comm),
                    stored,
                    (taken.offered, taken.sent),
                ));
                if restore {
                    into.prepare(link)?;
                }
            }
            Message::Restore(order) => {
                let into = incoming.as_mut();
                let listed = into.and_then(|into| Some((into.take_listed()?, into)));
                if let Some((listed, into)) = listed {
                    let from = (listed.begin.pid, listed.begin.comm.clone());
                    let mut runs = |running: &Running| report(is_running(peer, None, running));
                    let whole = restore_listed(link, &store, into, listed, &order, &mut runs)?;
                    link.send(&Message::Stored(whole.stored))?;
                    let pages = (whole.pages, whole.fetched);
                    report(received(peer, from, whole.stored, pages));
                    continue;
                }
                let into = incoming.as_mut();
                let Some((into, id)) = into.and_then(|i| i.last().map(|id| (i, id))) else {
                    return Err(link
                        .breach("nothing was sent that can be brought back")
                        .into());
                };
                let last = Last {
                    id,
                    flat: into.close(),
                };
                let mut runs = |running: &Running| report(is_running(peer, Some(id), running));
                restore(link, &store, last, &order, &mut runs)?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    #[test]
    fn work_that_panics_is_an_error_of_its_connection() {
        let (_source, mut target) = Link::pair(Duration::from_secs(20));
        let done: Result<()> = while_alive(&mut target, || panic!("two and two"));
        let error = done.expect_err("a panic");
        assert!(error.to_string().contains("two and two"), "{error}");
    }

    #[test]
    fn a_source_is_told_that_work_goes_on_until_it_is_done() {
        // A sign each half second, which a busy machine may delay: many fit into what the source waits for.
        let (mut source, mut target) = Link::pair(Duration::from_secs(20));
        let patience = Duration::from_secs(4);
        let work = std::thread::spawn(move || {
            let work = || std::thread::sleep(2 * patience + Duration::from_secs(1));
            while_alive(&mut target, work).unwrap();
            target.send(&Message::Done).unwrap();
            target
        });
        let (begun, mut signs) = (Instant::now(), 0);
        let said = source.receive_with(patience, &mut || signs += 1);
        assert!(matches!(said, Ok(Message::Done)), "{said:?}");
        assert!(signs > 2 && begun.elapsed() > 2 * patience, "{signs}");
        drop(work.join().unwrap());
    }
}
