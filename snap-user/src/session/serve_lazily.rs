//! Brings a listed snapshot back at once. Its pages come behind the first instruction: those that it touches before all
//! others.
//!
//! The process lives in a PID namespace whose process 1 fills its memory. Whatever ends this program, the connection or
//! the source before all pages have come, ends that process 1, and with it all that has begun there.

use super::revive::{Material, Pids, ReviveOptions, Revived, revive_from};
use super::revive_contents::ReadPages;
use super::serve_incoming::Incoming;
use super::serve_link::{alive, await_alive, lost, while_alive};
use super::serve_listed::Listed;
use super::serve_supply::Supply;
use super::serve_window::Window;
use super::{Result, SessionError};
use crate::image::Manifest;
use crate::model::{PAGE_SIZE, Page, PageSet, ProcessState, SnapshotId};
use crate::restore::fault;
use crate::restore::revive::Network;
use crate::store::{Flat, Store};
use crate::sys::{Arrivals, PidFd, monotonic_ns, pidfd_kill, pidfd_open};
use crate::wire::{Link, Message, Order, Running, Stored};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::thread::JoinHandle;
use std::time::Instant;

/// Pages that are looked at before somebody who waits for one is heard again.
const AT_ONCE: usize = 512;
/// Pages of one request that nobody waits for yet.
const PIECE: usize = 64;
/// How long what was ended may take to be gone.
const ENDING: Timespec = Timespec {
    tv_sec: 10,
    tv_nsec: 0,
};

/// Requests that may be out before others are made: the source takes them in while it sends, if they are not too many.
const MOST_REQUESTS: usize = 80;
/// And so many more for pages that somebody waits for.
const MORE_REQUESTS: usize = 16;

/// What becomes of the process.
enum Said {
    Runs(Running, PidFd),
    /// All is done for it, or nothing.
    Over(Result<()>),
    Ended(ExitStatus),
}

/// What was brought back.
pub(super) struct Whole {
    /// The snapshot, now that all of it is there.
    pub(super) stored: Stored,
    /// Pages that it has.
    pub(super) pages: u64,
    /// Pages that were fetched.
    pub(super) fetched: u64,
}

/// Brings a listed snapshot back, tells the source when it runs, and when it needs nobody any more, and then stores the
/// snapshot. `runs` is told the first.
///
/// # Errors
/// Nothing is left of the process, unless the source has been told that it needs nobody.
pub(super) fn restore_listed(
    link: &mut Link,
    store: &Store,
    incoming: &mut Incoming,
    listed: Listed,
    order: &Order,
    runs: &mut dyn FnMut(&Running),
) -> Result<Whole> {
    let Listed {
        begin,
        pages,
        rewritten,
        state,
    } = listed;
    let manifest = Manifest::from_bytes(&state).map_err(|e| {
        SessionError::Usage(format!(
            "the process state that was sent cannot be read: {e}"
        ))
    })?;
    let supply = while_alive(link, || Supply::new(store, pages, &rewritten, incoming))??;
    let (say, said) = channel();
    let awaited = Awaited {
        id: begin.id,
        state: manifest.state,
        image: supply.image()?,
        arrivals: supply.arrivals(),
    };
    let options = ReviveOptions {
        pids: Some(Pids::Namespace),
        eager: order.eager,
        allow_changed_files: order.allow_changed_files,
        network: match order.network {
            true => Network::Private,
            false => Network::Shared,
        },
        stays: true,
        ..ReviveOptions::default()
    };
    // A thread of its own for as long as the process lives: it is its parent.
    let thread = std::thread::Builder::new()
        .name("ksnap-restore".into())
        .spawn(move || awaited.bring_back(&options, &say))
        .map_err(SessionError::io("start a thread for a process"))?;
    let mut bringing = Bringing {
        link,
        incoming,
        supply,
        said,
        thread: Some(thread),
        over: false,
        process: None,
        window: Window::new(),
        spoken: Instant::now(),
        runs,
    };
    if let Err(e) = bringing.bring() {
        bringing.give_up();
        return Err(e);
    }
    let Bringing {
        link,
        incoming,
        supply,
        process,
        ..
    } = bringing;
    let fetched = supply.fetched;
    let (image, pages) = supply.end();
    if let Err(e) = link.send(&Message::Settled) {
        // At the source it goes on.
        end(process);
        return Err(e.into());
    }
    let all = Listed {
        begin,
        pages,
        rewritten: PageSet::new(),
        state,
    };
    let count = all.pages.len() as u64;
    let stored = incoming.publish_listed(link, all)?;
    if let Err(e) = image.publish_as(stored.id) {
        tracing::debug!("nothing is kept to bring it back from: {e}");
    }
    Ok(Whole {
        stored,
        pages: count,
        fetched,
    })
}

/// A process that is brought back while its pages come.
struct Bringing<'a> {
    link: &'a mut Link,
    incoming: &'a mut Incoming,
    supply: Supply,
    said: Receiver<Said>,
    thread: Option<JoinHandle<()>>,
    /// It has said what came of it.
    over: bool,
    /// Process 1 of its namespace.
    process: Option<PidFd>,
    window: Window,
    /// When the source heard something last.
    spoken: Instant,
    runs: &'a mut dyn FnMut(&Running),
}

impl Bringing<'_> {
    /// Goes on until the process runs and has all of its pages.
    fn bring(&mut self) -> Result<()> {
        loop {
            self.hear()?;
            if self.window.requests() < MOST_REQUESTS + MORE_REQUESTS {
                let waited_for = self.supply.waited_for(self.incoming)?;
                self.fetch(&waited_for)?;
            }
            if self.window.requests() < MOST_REQUESTS {
                let mut others = Vec::new();
                for _ in 0..AT_ONCE / PIECE {
                    if self.supply.outstanding() >= self.window.pages() {
                        break;
                    }
                    others.append(&mut self.supply.others(PIECE, self.incoming)?);
                }
                self.fetch(&others)?;
            }
            if self.supply.outstanding() > 0 {
                self.receive()?;
            } else if self.supply.is_whole() {
                if self.over {
                    return Ok(());
                }
                match await_alive(self.link, &self.said)? {
                    Some(said) => self.take_in(said)?,
                    None => return Err(self.lost_thread()),
                }
            }
            if self.spoken.elapsed() > alive(self.link) {
                self.send(&Message::Alive)?;
            }
        }
    }

    fn send(&mut self, message: &Message) -> Result<()> {
        self.spoken = Instant::now();
        Ok(self.link.send(message)?)
    }

    /// Asks for pages, which are the last of those that are outstanding.
    fn fetch(&mut self, addrs: &[u64]) -> Result<()> {
        let due = self.supply.fetched + self.supply.outstanding() as u64;
        let mut behind = addrs.len();
        for addrs in addrs.chunks(PIECE) {
            self.send(&Message::Fetch(addrs.to_vec()))?;
            behind -= addrs.len();
            self.window.asked(due - behind as u64);
        }
        Ok(())
    }

    fn receive(&mut self) -> Result<()> {
        match self.link.receive(self.link.stall())? {
            Message::Pages(pages) => {
                if !self.supply.take(&pages, self.incoming)? {
                    return Err(self
                        .link
                        .breach("a page that is not the one that was asked for")
                        .into());
                }
                self.window.came(self.supply.fetched);
                Ok(())
            }
            other => Err(self.link.unexpected(&other, "Pages").into()),
        }
    }

    /// Takes in what the thread has said meanwhile.
    fn hear(&mut self) -> Result<()> {
        loop {
            match self.said.try_recv() {
                Ok(said) => self.take_in(said)?,
                Err(TryRecvError::Empty) => return Ok(()),
                Err(TryRecvError::Disconnected) if self.over => return Ok(()),
                Err(TryRecvError::Disconnected) => return Err(self.lost_thread()),
            }
        }
    }

    fn take_in(&mut self, said: Said) -> Result<()> {
        match said {
            Said::Runs(running, process) => {
                self.process = Some(process);
                (self.runs)(&running);
                self.send(&Message::Running(running))?;
                fault::point("serve-lazily-running");
                Ok(())
            }
            Said::Over(done) => {
                self.over = true;
                done
            }
            Said::Ended(status) => self.came_to_its_end(status),
        }
    }

    /// One that has come to its end by itself has done so wherever it was; one that was killed here goes on at the source.
    fn came_to_its_end(&self, status: ExitStatus) -> Result<()> {
        match status.signal().is_some() || self.supply.arrivals().is_broken_off() {
            false => Ok(()),
            true => Err(SessionError::Remote(format!(
                "the process was killed there before all of its memory had come (its process 1 ended with {status})"
            ))),
        }
    }

    /// It has ended without a word.
    fn lost_thread(&mut self) -> SessionError {
        match self.thread.take().map(JoinHandle::join) {
            Some(Err(panic)) => lost(&*panic),
            _ => SessionError::Remote("nothing was brought back".into()),
        }
    }

    /// Not all of its memory will come: nothing is left of the process when this returns.
    fn give_up(mut self) {
        self.supply.arrivals().lose();
        while !self.over {
            match self.said.recv() {
                Ok(Said::Runs(_, process)) => self.process = Some(process),
                Ok(Said::Over(_)) | Err(_) => self.over = true,
                Ok(Said::Ended(_)) => {}
            }
        }
        // Also where it has had all that it needs: at the source it goes on.
        end(self.process);
    }
}

/// Ends what was started, and waits until it is gone.
fn end(process: Option<PidFd>) {
    let Some(process) = process else { return };
    if let Err(e) = pidfd_kill(&process) {
        tracing::debug!("{e}");
    }
    let _ = poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&ENDING));
}

/// What a process is brought back from, while it comes.
struct Awaited {
    /// Its name at the source.
    id: SnapshotId,
    state: ProcessState,
    image: Flat,
    arrivals: Arc<Arrivals>,
}

impl Awaited {
    /// Brings the process back, and waits for its end.
    fn bring_back(self, options: &ReviveOptions, say: &Sender<Said>) {
        let Self {
            id,
            state,
            image,
            arrivals,
        } = self;
        let begun_at = monotonic_ns();
        let mut started = Ok(());
        let mut each = |one: &Revived| {
            let running = Running {
                pid: one.pid,
                own_pid: one.own_pid,
                took_ns: one.took_ns,
                notes: one.notes.clone(),
            };
            // It has not been waited for: the id is its own.
            let child = one.init.unwrap_or(one.pid);
            match pidfd_open(child) {
                Ok(process) => drop(say.send(Said::Runs(running, process))),
                Err(e) => {
                    if let Some(child) = rustix::process::Pid::from_raw(child) {
                        let kill = rustix::process::Signal::KILL;
                        let _ = rustix::process::kill_process(child, kill);
                    }
                    started = Err(e);
                }
            }
        };
        let saved = SavedPages {
            image: &image,
            arrivals: &arrivals,
        };
        let material = Material {
            id,
            seq: 0,
            state,
            saved: &saved,
            flat: &mut || {
                let file = image.file.try_clone();
                Ok(Flat {
                    file: file.map_err(SessionError::io("open the flat image"))?,
                    pieces: image.pieces.clone(),
                    sums: Arc::clone(&image.sums),
                })
            },
            // Whoever sends decides on that.
            first: &Vec::new,
            arrivals: Some(Arc::clone(&arrivals)),
            is_wanted: &|| match arrivals.is_lost() {
                false => Ok(()),
                true => Err(SessionError::Remote("nothing was brought back".into())),
            },
        };
        let revived = revive_from(material, begun_at, 1, options, &mut each);
        let (all, done) = match (revived, started) {
            (Ok(all), Ok(())) => (all, Ok(())),
            (Ok(all), Err(e)) => (all, Err(e.into())),
            (Err(e), _) => (Vec::new(), Err(e)),
        };
        // Not for as long as it lives.
        drop((image, arrivals));
        let _ = say.send(Said::Over(done));
        for one in &all {
            match one.wait() {
                Ok(status) => drop(say.send(Said::Ended(status))),
                Err(e) => tracing::debug!("process {}: {e}", one.pid),
            }
        }
    }
}

/// Contents of files, which lie in the image behind those of memory.
struct SavedPages<'a> {
    image: &'a Flat,
    arrivals: &'a Arrivals,
}

impl ReadPages for SavedPages<'_> {
    fn read_ranges(&self, ranges: &PageSet, each: &mut dyn FnMut(u64, &Page)) -> Result<()> {
        let inside = |range| {
            let parts = self.image.pieces.iter();
            parts.filter_map(move |piece| {
                let part = piece.range.intersect(range)?;
                Some((part, piece.offset + (part.start - piece.range.start)))
            })
        };
        let parts: Vec<_> = ranges.ranges().iter().flat_map(inside).collect();
        let pages = parts.iter().flat_map(|(part, offset)| {
            let first = offset / PAGE_SIZE;
            first..first + part.pages()
        });
        if !self.arrivals.wait_for(pages) {
            return Err(SessionError::Remote(
                "contents of files that were on their way do not come any more".into(),
            ));
        }
        let mut page = [0; PAGE_SIZE as usize];
        for (part, offset) in parts {
            for (addr, at) in part.iter().zip((offset..).step_by(PAGE_SIZE as usize)) {
                let read = self.image.file.read_exact_at(&mut page, at);
                read.map_err(SessionError::io("read the flat image"))?;
                each(addr, &page);
            }
        }
        Ok(())
    }
}
