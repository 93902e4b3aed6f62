//! Takes snapshots from a source into the store: asks only for pages that are not there, and publishes what is whole.

use super::arrival::Arrival;
use super::remote::Transferred;
use super::serve_known::Known;
use super::serve_link::while_alive;
use super::serve_listed::Listed;
use super::serve_room::{Occupied, Room};
use super::{Result, SessionError};
use crate::image::{MAX_MANIFEST, Manifest, PageSink};
use crate::model::{Page, PageRange, SnapshotId, SnapshotKind};
use crate::restore::fault;
use crate::store::{Flat, FlatAhead, Published, Received, Session, SessionInfo, Store};
use crate::wire::{Begin, Digest, Encoded, Link, Message, Offered, Stored};
use rustc_hash::FxHashSet;
use std::collections::VecDeque;
use std::sync::Arc;

/// Most pages of a snapshot: 1 TiB of memory.
const MOST_PAGES: u64 = 1 << 28;
/// Ranges that are gone, at most.
const MOST_DROPPED: usize = 1 << 22;

/// The snapshots of one connection: one session of the store.
pub(super) struct Incoming {
    store: Store,
    known: Known,
    received: Received,
    room: Arc<Room>,
    /// That the session stays until all is done.
    taken: Option<Occupied>,
    /// That those stay whose pages are used.
    _used: Vec<Occupied>,
    session: Option<Session>,
    last: Option<SnapshotId>,
    /// The last one, where its pages have not come.
    listed: Option<Listed>,
    /// What the last one is brought back from, if it is to be.
    flat: Option<FlatAhead>,
}

/// What is known of the snapshot that is being sent.
struct Arriving {
    begin: Begin,
    pages: Vec<Offered>,
    /// Content that was asked for and has not come yet, in order; and all of it.
    asked: VecDeque<[u8; 32]>,
    asked_ever: FxHashSet<[u8; 32]>,
    sent: u64,
    dropped: Vec<PageRange>,
    state: Vec<u8>,
    digest: Digest,
}

impl Incoming {
    /// Ready for the first snapshot of a connection.
    pub(super) fn new(
        store: &Store,
        room: &Arc<Room>,
        link: &mut Link,
        begin: &Begin,
    ) -> Result<Self> {
        // The same process of the same peer goes on where it stopped.
        let mut transfer = link.key().0.to_vec();
        transfer.extend_from_slice(&begin.pid.to_le_bytes());
        transfer.extend_from_slice(&begin.start_time.to_le_bytes());
        transfer.extend_from_slice(begin.comm.as_bytes());
        // Both look through whole files.
        let (known, received) = while_alive(link, || -> Result<_> {
            let received = store.receive_pages(&transfer)?;
            Ok((Known::look(store, &begin.comm)?, received))
        })??;
        let used = known.sessions().map(|id| room.take(id)).collect();
        Ok(Self {
            known,
            received,
            _used: used,
            store: store.clone(),
            room: Arc::clone(room),
            taken: None,
            session: None,
            last: None,
            listed: None,
            flat: None,
        })
    }

    /// Takes one snapshot, up to its publication.
    pub(super) fn take(&mut self, link: &mut Link, begin: Begin) -> Result<Transferred> {
        if begin.pages > MOST_PAGES {
            return Err(link
                .breach(format!("{} pages, {MOST_PAGES} at most", begin.pages))
                .into());
        }
        let (before, other) = match begin.lazy {
            true => (self.listed.is_some(), self.last.is_some()),
            false => (self.last.is_some(), self.listed.is_some()),
        };
        if other {
            return Err(link.breach("snapshots with pages, and some without").into());
        }
        if begin.kind == SnapshotKind::Delta && !before {
            return Err(link.breach("a delta without a snapshot before it").into());
        }
        let mut arriving = Arriving::new(begin);
        let digest = loop {
            match link.receive(link.stall())? {
                Message::Offer(pages) => {
                    let wanted = self.offered(link, &mut arriving, pages)?;
                    if let Some(wanted) = wanted {
                        link.send(&Message::Want(wanted))?;
                    }
                }
                Message::Pages(pages) => self.pages(link, &mut arriving, &pages)?,
                Message::Dropped(ranges) => arriving.drop_ranges(link, ranges)?,
                Message::State(bytes) => {
                    if (arriving.state.len() + bytes.len()) as u64 > MAX_MANIFEST {
                        return Err(link.breach("too much process state").into());
                    }
                    arriving.digest.state(&bytes);
                    arriving.state.extend_from_slice(&bytes);
                }
                Message::Publish(digest) => break digest,
                other => return Err(link.unexpected(&other, "a part of a snapshot").into()),
            }
        };
        let announced = arriving.begin.pages == arriving.pages.len() as u64;
        if !announced || !arriving.asked.is_empty() {
            return Err(link.breach("the snapshot ends before its pages").into());
        }
        if arriving.digest.finish() != digest {
            return Err(link.breach("what has arrived is not what was sent").into());
        }
        let mut transferred = Transferred {
            stored: None,
            offered: arriving.pages.len() as u64,
            sent: arriving.sent,
        };
        if arriving.begin.lazy {
            self.list(link, arriving)?;
            return Ok(transferred);
        }
        fault::point("serve-publishing");
        transferred.stored = Some(while_alive(link, || self.publish(&arriving))??);
        Ok(transferred)
    }

    /// Keeps in mind what a snapshot has.
    fn list(&mut self, link: &Link, arriving: Arriving) -> Result<()> {
        let before = match arriving.begin.kind {
            SnapshotKind::Base => None,
            SnapshotKind::Delta => self.listed.take(),
        };
        let Arriving {
            begin,
            pages,
            dropped,
            state,
            ..
        } = arriving;
        let listed = Listed::new(before, begin, pages, &dropped, state);
        let count = listed.pages.len() as u64;
        if count > MOST_PAGES {
            return Err(link
                .breach(format!("{count} pages, {MOST_PAGES} at most"))
                .into());
        }
        self.listed = Some(listed);
        Ok(())
    }

    /// The snapshot listed last: its pages are going to be fetched.
    pub(super) fn take_listed(&mut self) -> Option<Listed> {
        self.listed.take()
    }

    /// All pages of a listed snapshot have come: it becomes one of the store.
    pub(super) fn publish_listed(&mut self, link: &mut Link, listed: Listed) -> Result<Stored> {
        let Listed {
            begin,
            pages,
            state,
            ..
        } = listed;
        let arriving = Arriving {
            pages,
            state,
            ..Arriving::new(Begin {
                kind: SnapshotKind::Base,
                ..begin
            })
        };
        while_alive(link, || self.publish(&arriving))?
    }

    /// Reads a page that has come, or was there. `false` when it is not.
    pub(super) fn read(&mut self, hash: &[u8; 32], page: &mut Page) -> Result<bool> {
        Ok(self.received.read(hash, page)?.is_some() || self.known.read(hash, page))
    }

    /// Adds a page, and decodes it. `false` when it is not what its hash says.
    pub(super) fn add(
        &mut self,
        hash: &[u8; 32],
        encoded: &Encoded,
        page: &mut Page,
    ) -> Result<bool> {
        let Encoded { encoding, bytes } = encoded;
        Ok(self.received.add_page(hash, *encoding, bytes, page)?)
    }

    /// The places in an offer of what is not there. `None`: that is asked for later.
    fn offered(
        &self,
        link: &Link,
        arriving: &mut Arriving,
        pages: Vec<Offered>,
    ) -> Result<Option<Vec<u16>>> {
        let after = arriving.pages.last().map(|last| last.addr);
        if let (Some(last), Some(first)) = (after, pages.first())
            && last >= first.addr
        {
            return Err(link
                .breach(format!("page {:#x} is not in order", first.addr))
                .into());
        }
        if (arriving.pages.len() + pages.len()) as u64 > arriving.begin.pages {
            return Err(link.breach("more pages than were announced").into());
        }
        arriving.digest.pages(&pages);
        if arriving.begin.lazy {
            arriving.pages.extend(pages);
            return Ok(None);
        }
        let mut wanted = Vec::new();
        for (place, page) in pages.iter().enumerate() {
            let there = self.received.has(&page.hash) || self.known.has(&page.hash);
            if !there && arriving.asked_ever.insert(page.hash) {
                arriving.asked.push_back(page.hash);
                wanted.push(place as u16);
            }
        }
        arriving.pages.extend(pages);
        Ok(Some(wanted))
    }

    fn pages(&mut self, link: &Link, arriving: &mut Arriving, pages: &[Encoded]) -> Result<()> {
        for page in pages {
            let Some(hash) = arriving.asked.pop_front() else {
                return Err(link.breach("a page that was not asked for").into());
            };
            if !self.received.add(&hash, page.encoding, &page.bytes)? {
                return Err(link
                    .breach("a page whose content is not what its hash says")
                    .into());
            }
            arriving.sent += 1;
        }
        Ok(())
    }

    /// Makes a snapshot of what has arrived, in one step that leaves all of it or nothing.
    fn publish(&mut self, arriving: &Arriving) -> Result<Stored> {
        let begin = &arriving.begin;
        let manifest = Manifest::from_bytes(&arriving.state).map_err(|e| {
            SessionError::Usage(format!(
                "the process state that was sent cannot be read: {e}"
            ))
        })?;
        let mut session = match self.session.take() {
            Some(session) => session,
            None => self.new_session(begin, &manifest)?,
        };
        self.taken
            .get_or_insert_with(|| self.room.take(session.id()));
        let published = match self.write(&mut session, arriving, &manifest) {
            Ok(published) => published,
            Err(error) => {
                // Without a snapshot it is of no use.
                session.abandon();
                return Err(error);
            }
        };
        self.session = Some(session);
        self.last = Some(published.id);
        Ok(Stored {
            id: published.id,
            seq: published.seq,
            file_bytes: published.bytes,
        })
    }

    fn new_session(&self, begin: &Begin, manifest: &Manifest) -> Result<Session> {
        let mut session = self.store.create_session(&SessionInfo {
            pid: begin.pid,
            // Never a process of this machine, whatever its id.
            start_time: 0,
            comm: begin.comm.clone(),
            exe: begin.exe.clone(),
            cmdline: manifest
                .state
                .cmdline
                .iter()
                .map(|a| String::from_utf8_lossy(a).into_owned())
                .collect(),
            ..SessionInfo::default()
        })?;
        session.look_for_earlier();
        Ok(session)
    }

    fn write(
        &mut self,
        session: &mut Session,
        arriving: &Arriving,
        manifest: &Manifest,
    ) -> Result<Published> {
        let begin = &arriving.begin;
        let parent = match begin.kind {
            SnapshotKind::Base => None,
            SnapshotKind::Delta => self.last,
        };
        let mut pending = session.begin(begin.kind, parent)?;
        pending.set_time_ns(begin.time_ns);
        pending.drop_ranges(&arriving.dropped.iter().copied().collect());
        let mut pages = Arrival::new(&mut self.received, &self.known, "Clone again");
        // A process may be waiting for a delta.
        pages.quick = begin.kind == SnapshotKind::Delta;
        let offered = arriving.pages.iter();
        pages.put_all(offered.map(|page| (page.addr, page.hash)), &mut pending)?;
        Ok(pending.publish(&manifest.state, &manifest.costs)?)
    }

    /// The snapshot stored last.
    pub(super) fn last(&self) -> Option<SnapshotId> {
        self.last
    }

    /// Prepares for bringing the last one back, as long as its source still runs: then the stop is short, whatever its
    /// size. Without it, it takes longer.
    pub(super) fn prepare(&mut self, link: &mut Link) -> Result<()> {
        let (flat, store, last) = (self.flat.take(), &self.store, self.last);
        let prepared = while_alive(link, || follow(store, last, flat))?;
        self.flat = prepared
            .inspect_err(|e| tracing::debug!("nothing is prepared: {e}"))
            .ok();
        Ok(())
    }

    /// No more snapshots come: the last one is going to be brought back, and others may write the session. Gives what
    /// has been prepared for that.
    pub(super) fn close(&mut self) -> Option<Flat> {
        self.session = None;
        let published = self.flat.take()?.publish();
        published
            .inspect_err(|e| tracing::debug!("nothing is prepared: {e}"))
            .ok()
    }

    /// All is done: what was kept to go on with is not needed.
    pub(super) fn finish(self) {
        self.received.finish();
    }
}

impl Arriving {
    fn new(begin: Begin) -> Self {
        Self {
            begin,
            pages: Vec::new(),
            asked: VecDeque::new(),
            asked_ever: FxHashSet::default(),
            sent: 0,
            dropped: Vec::new(),
            state: Vec::new(),
            digest: Digest::new(),
        }
    }

    fn drop_ranges(&mut self, link: &Link, ranges: Vec<PageRange>) -> Result<()> {
        let ordered = match (self.dropped.last(), ranges.first()) {
            (Some(last), Some(first)) => last.end <= first.start,
            _ => true,
        };
        let bounded = self.dropped.len() + ranges.len() <= MOST_DROPPED;
        if !ordered || !bounded || self.begin.kind == SnapshotKind::Base {
            return Err(link.breach("ranges that cannot be gone").into());
        }
        self.digest.dropped(&ranges);
        self.dropped.extend(ranges);
        Ok(())
    }
}

/// A flat image of the last snapshot, from that of the one before.
fn follow(store: &Store, last: Option<SnapshotId>, flat: Option<FlatAhead>) -> Result<FlatAhead> {
    let last = last.ok_or_else(|| SessionError::Remote("no snapshot".into()))?;
    let snapshot = store.snapshot(last)?;
    Ok(match flat {
        None => store.flat_ahead(&snapshot)?,
        Some(mut flat) => {
            flat.follow(&snapshot)?;
            flat
        }
    })
}
