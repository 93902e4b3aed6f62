//! The thread that owns a session in the store and writes its snapshots.

use super::mirror::Mirror;
use crate::image::{EncodedBatch, PageSink};
use crate::model::{Costs, PAGE_SIZE, PageSet, ProcessState, SnapshotId, SnapshotKind};
use crate::restore::fault;
use crate::store::{PendingSnapshot, Published, SYNC_INTERVAL, Session, StoreError};
use rustc_hash::FxHashMap;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::Duration;

/// A batch of encoded pages with what the encoder found.
pub struct Encoded {
    pub batch: EncodedBatch,
    /// Hash of each page of the batch, changed or not.
    pub hashes: Vec<(u64, u128)>,
    /// Pages whose content is the parent's.
    pub same: Vec<u64>,
    pub encode_ns: u64,
}

/// A snapshot that is durable.
#[derive(Debug)]
pub struct Settled {
    pub published: Published,
    /// Its costs, complete.
    pub costs: Costs,
    /// Content hash of each page that was copied and stayed.
    pub hashes: Vec<(u64, u128)>,
    /// Pages that are gone.
    pub removed: PageSet,
}

/// What the writer is asked.
pub enum ToWriter {
    Begin {
        kind: SnapshotKind,
        parent: Option<SnapshotId>,
    },
    Batch(Encoded),
    Remove {
        pages: PageSet,
        before: u32,
    },
    Publish {
        batches: u64,
        state: Box<ProcessState>,
        costs: Box<Costs>,
        reply: Sender<Result<Settled, StoreError>>,
    },
    Abandon {
        batches: u64,
        done: Sender<()>,
    },
}

/// Serves until the other side hangs up.
pub fn write_snapshots(mut session: Session, mirror: &Mirror, queue: &Receiver<ToWriter>) {
    loop {
        match queue.recv_timeout(SYNC_INTERVAL) {
            Ok(ToWriter::Begin { kind, parent }) => {
                one(&mut session, mirror, kind, parent, queue);
            }
            Ok(_) => {}
            // No snapshot comes whose publication would do it.
            Err(RecvTimeoutError::Timeout) => {
                if let Err(error) = session.sync_if_due() {
                    tracing::warn!("the last snapshots are not durable yet: {error}");
                }
            }
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

/// The latest that is known of a page of the snapshot.
struct Latest {
    pass: u32,
    /// As bytes: as a number it would be aligned to as many, and there is one of these for each page.
    hash: [u8; 16],
    same: bool,
    /// Some pass put content into the file.
    appended: bool,
}

struct Writing<'a> {
    /// `Err` once something failed: the rest is taken and thrown away until the end is reached.
    pending: Result<PendingSnapshot<'a>, StoreError>,
    pages: FxHashMap<u64, Latest>,
    removed: Vec<(PageSet, u32)>,
    batches: u64,
    encode_ns: u64,
}

fn one(
    session: &mut Session,
    mirror: &Mirror,
    kind: SnapshotKind,
    parent: Option<SnapshotId>,
    queue: &Receiver<ToWriter>,
) {
    let mut writing = Writing {
        pending: session.begin(kind, parent),
        pages: FxHashMap::default(),
        removed: Vec::new(),
        batches: 0,
        encode_ns: 0,
    };
    loop {
        let Ok(message) = queue.recv() else { return };
        match message {
            ToWriter::Begin { .. } => return,
            ToWriter::Batch(encoded) => writing.take(&encoded),
            ToWriter::Remove { pages, before } => writing.remove(pages, before),
            ToWriter::Publish {
                batches,
                state,
                costs,
                reply,
            } => {
                writing.wait_for(batches, queue);
                let outcome = writing.publish(&state, *costs);
                // What the next snapshot is encoded against is known before the next can begin.
                let outcome = match (outcome, session.head_table()) {
                    (Ok(written), Some(table)) => {
                        let id = written.published.id;
                        let passes = written.pages.iter().map(|(addr, page)| (*addr, page.pass));
                        mirror.publish(id, passes, &written.removed, table);
                        Ok(written.settled())
                    }
                    (outcome, _) => {
                        mirror.abandon();
                        outcome.map(Written::settled)
                    }
                };
                let _ = reply.send(outcome);
                return;
            }
            ToWriter::Abandon { batches, done } => {
                writing.wait_for(batches, queue);
                // Its files are gone first.
                drop(writing);
                mirror.abandon();
                let _ = done.send(());
                return;
            }
        }
    }
}

impl Writing<'_> {
    /// Batches come from several threads: the last may still be on its way.
    fn wait_for(&mut self, batches: u64, queue: &Receiver<ToWriter>) {
        while self.batches < batches {
            match queue.recv() {
                Ok(ToWriter::Batch(encoded)) => self.take(&encoded),
                Ok(_) => {}
                Err(_) => return,
            }
        }
    }

    fn take(&mut self, encoded: &Encoded) {
        // A test's slow disk.
        if let Some(ms) = fault::number("KSNAP_WRITE_DELAY_MS") {
            std::thread::sleep(Duration::from_millis(ms.into()));
        }
        self.batches += 1;
        self.encode_ns += encoded.encode_ns;
        let pass = encoded.batch.pass();
        let mut same = encoded.same.iter().peekable();
        for &(addr, hash) in &encoded.hashes {
            let hash = hash.to_ne_bytes();
            let is_same = same.next_if(|a| **a == addr).is_some();
            let page = self.pages.entry(addr).or_insert(Latest {
                pass,
                hash,
                same: is_same,
                appended: false,
            });
            page.appended |= !is_same;
            if pass >= page.pass {
                (page.pass, page.hash, page.same) = (pass, hash, is_same);
            }
        }
        if let Ok(pending) = &mut self.pending
            && let Err(e) = pending.append(&encoded.batch)
        {
            self.pending = Err(e);
        }
    }

    fn remove(&mut self, pages: PageSet, before: u32) {
        if let Ok(pending) = &mut self.pending {
            pending.remove_pages(&pages, before);
        }
        self.removed.push((pages, before));
    }

    fn publish(mut self, state: &ProcessState, mut costs: Costs) -> Result<Written, StoreError> {
        let mut pending = self.pending?;
        for (removed, before) in &self.removed {
            self.pages
                .retain(|addr, page| page.pass >= *before || !removed.contains(*addr));
        }
        // Copied more than once, changed in between, and changed back.
        let last = self.pages.values().map(|p| p.pass).max().unwrap_or(0);
        let mut back = EncodedBatch::new(last);
        for (addr, _) in self.pages.iter().filter(|(_, p)| p.same && p.appended) {
            back.push_same(*addr, *addr);
        }
        if !back.is_empty() {
            pending.append(&back)?;
        }
        costs.pages.changed = self.pages.values().filter(|p| !p.same).count() as u64;
        costs.bytes_in = costs.pages.changed * PAGE_SIZE;
        costs.phases.encode_ns = self.encode_ns;
        let published = pending.publish(state, &costs)?;
        costs.bytes_out = published.data_bytes;
        costs.phases.write_ns = published.write_ns;
        costs.phases.sync_ns = published.sync_ns;
        let removed = self.removed.into_iter();
        Ok(Written {
            published,
            costs,
            pages: self.pages,
            removed: removed.flat_map(|(set, _)| set.ranges().to_vec()).collect(),
        })
    }
}

/// A snapshot that is published, with what is known of the pages that were copied for it.
struct Written {
    published: Published,
    costs: Costs,
    pages: FxHashMap<u64, Latest>,
    removed: PageSet,
}

impl Written {
    fn settled(self) -> Settled {
        let hash = |(addr, page): (u64, Latest)| (addr, u128::from_ne_bytes(page.hash));
        Settled {
            published: self.published,
            costs: self.costs,
            hashes: self.pages.into_iter().map(hash).collect(),
            removed: self.removed,
        }
    }
}
