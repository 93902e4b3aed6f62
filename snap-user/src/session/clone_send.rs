//! Sends a snapshot to a target: what it has, by content hash, and of that only the pages that the target lacks.

use super::Result;
use super::remote::Transferred;
use crate::codec::{Encoding, Scratch, encode, encode_fast};
use crate::image::{Manifest, PageSource};
use crate::model::{PAGE_SIZE, Page, PageRange, PageSet, SnapshotKind};
use crate::store::Snapshot;
use crate::wire::{
    Begin, Digest, Encoded, Link, MAX_OFFER, MAX_RANGES, MAX_STATE, Message, Offered,
};
use std::collections::VecDeque;

/// Offers that are out before the first answer is waited for: so long as the way there and back takes, the next
/// pages are read and hashed.
const AHEAD: usize = 2;
/// Bytes of pages in one message, about.
const PIECE: usize = 256 << 10;

/// How a snapshot is sent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sending {
    /// It is going to be brought back.
    pub(super) restore: bool,
    /// Its pages are listed, and fetched when it is.
    pub(super) lazy: bool,
    /// The process waits for it: quick rather than small.
    pub(super) hurry: bool,
}

/// Sends snapshots over one connection.
pub(super) struct Sender<'a> {
    link: &'a mut Link,
    scratch: Scratch,
    how: Sending,
    /// Called now and then while it goes on.
    idle: &'a mut dyn FnMut(),
}

impl<'a> Sender<'a> {
    pub(super) fn new(link: &'a mut Link, how: Sending, idle: &'a mut dyn FnMut()) -> Self {
        Self {
            link,
            scratch: Scratch::default(),
            how,
            idle,
        }
    }

    /// Sends a snapshot: all of it, or what differs from `since`, which was sent before it.
    pub(super) fn send(
        &mut self,
        snapshot: &Snapshot,
        since: Option<&Snapshot>,
    ) -> Result<Transferred> {
        let table = snapshot.page_table()?;
        let (pages, dropped): (Vec<u64>, Vec<u64>) = match since {
            None => (table.iter().map(|(addr, _)| addr).collect(), Vec::new()),
            Some(before) => {
                let mut differing = before.page_table()?.diff(table);
                differing.sort_unstable();
                differing
                    .into_iter()
                    .partition(|addr| table.get(*addr).is_some())
            }
        };
        let dropped = PageSet::from_pages(dropped);
        let Manifest { state, costs } = snapshot.manifest()?;
        let header = snapshot.header();
        self.link.send(&Message::Begin(Begin {
            kind: match since {
                None => SnapshotKind::Base,
                Some(_) => SnapshotKind::Delta,
            },
            id: header.id,
            time_ns: header.time_ns,
            pid: state.pid,
            start_time: state.start_time,
            pages: pages.len() as u64,
            restore: self.how.restore,
            lazy: self.how.lazy,
            comm: state.comm.clone(),
            exe: state.exe.clone(),
        }))?;
        let mut digest = Digest::new();
        let sent = self.send_pages(snapshot, &pages, &mut digest)?;
        self.send_dropped(dropped.ranges(), &mut digest)?;
        let bytes = Manifest::encode(&state, &costs)
            .map_err(|e| self.link.breach(format!("the process state: {e}")))?;
        for piece in bytes.chunks(MAX_STATE) {
            self.link.send(&Message::State(piece.to_vec()))?;
        }
        digest.state(&bytes);
        self.link.send(&Message::Publish(digest.finish()))?;
        let stored = match (self.receive()?, self.how.lazy) {
            (Message::Stored(stored), false) => Some(stored),
            (Message::Listed, true) => None,
            (other, false) => return Err(self.link.unexpected(&other, "Stored").into()),
            (other, true) => return Err(self.link.unexpected(&other, "Listed").into()),
        };
        Ok(Transferred {
            offered: pages.len() as u64,
            sent,
            stored,
        })
    }

    /// What the target answers, which may have to work for it.
    fn receive(&mut self) -> Result<Message> {
        Ok(self.link.receive_with(self.link.stall(), self.idle)?)
    }

    fn send_pages(
        &mut self,
        snapshot: &Snapshot,
        pages: &[u64],
        digest: &mut Digest,
    ) -> Result<u64> {
        let mut sent = 0;
        // Pages of offers whose answers have not come yet.
        let mut out: VecDeque<Vec<Page>> = VecDeque::new();
        for addrs in pages.chunks(MAX_OFFER) {
            let (offered, pages) = read(snapshot, addrs)?;
            digest.pages(&offered);
            self.link.send(&Message::Offer(offered))?;
            if !self.how.lazy {
                out.push_back(pages);
            }
            if out.len() == AHEAD
                && let Some(oldest) = out.pop_front()
            {
                sent += self.answer(&oldest)?;
            }
            (self.idle)();
        }
        for pages in out {
            sent += self.answer(&pages)?;
            (self.idle)();
        }
        Ok(sent)
    }

    /// Sends what the target wants of the pages that were offered.
    fn answer(&mut self, pages: &[Page]) -> Result<u64> {
        let wanted = match self.receive()? {
            Message::Want(wanted) => wanted,
            other => return Err(self.link.unexpected(&other, "Want").into()),
        };
        let pages: Vec<&Page> = wanted
            .iter()
            .map(|place| {
                pages.get(usize::from(*place)).ok_or_else(|| {
                    self.link
                        .breach(format!("wants page {place} of {}", pages.len()))
                })
            })
            .collect::<std::result::Result<_, _>>()?;
        let (hurry, scratch) = (self.how.hurry, &mut self.scratch);
        send_pages(self.link, pages, PIECE, &mut |page, out| match hurry {
            true => encode_fast(page, None, out),
            false => encode(page, None, scratch, out),
        })?;
        Ok(wanted.len() as u64)
    }

    fn send_dropped(&mut self, ranges: &[PageRange], digest: &mut Digest) -> Result<()> {
        digest.dropped(ranges);
        for piece in ranges.chunks(MAX_RANGES) {
            self.link.send(&Message::Dropped(piece.to_vec()))?;
        }
        Ok(())
    }
}

/// Sends pages in messages of `most` bytes of them, about.
pub(super) fn send_pages<'p>(
    link: &mut Link,
    pages: impl IntoIterator<Item = &'p Page>,
    most: usize,
    encode: &mut dyn FnMut(&Page, &mut Vec<u8>) -> Encoding,
) -> Result<()> {
    let mut piece = Vec::new();
    let mut bytes = 0;
    for page in pages {
        let mut encoded = Vec::new();
        let encoding = encode(page, &mut encoded);
        bytes += encoded.len();
        piece.push(Encoded {
            encoding,
            bytes: encoded,
        });
        if bytes >= most {
            link.send(&Message::Pages(std::mem::take(&mut piece)))?;
            bytes = 0;
        }
    }
    if !piece.is_empty() {
        link.send(&Message::Pages(piece))?;
    }
    Ok(())
}

/// Reads and hashes pages, which are ascending.
fn read(snapshot: &Snapshot, addrs: &[u64]) -> Result<(Vec<Offered>, Vec<Page>)> {
    let mut pages = vec![[0; PAGE_SIZE as usize]; addrs.len()];
    let mut offered: Vec<Offered> = addrs
        .iter()
        .map(|addr| Offered {
            addr: *addr,
            hash: [0; 32],
        })
        .collect();
    snapshot.read_pages(addrs, &mut |addr, page| {
        if let Ok(at) = addrs.binary_search(&addr) {
            pages[at] = *page;
            offered[at].hash = *blake3::hash(page).as_bytes();
        }
    })?;
    Ok((offered, pages))
}
