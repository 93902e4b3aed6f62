//! From copied pages to a published snapshot, off the target's time.
//!
//! The tracer's thread copies into buffers of a bounded pool. They wait there until the stop is over:
//! a page that is copied again meanwhile is encoded once, and the encoders do not compete with the
//! target during the stop. Then encoder threads turn them into batches and give them back, and one
//! writer thread, which owns the session in the store, writes.
//!
//! When all buffers are full, the oldest go to the encoders early, and the copier waits for one to
//! come back: memory stays within the bound, and the snapshot takes longer instead. What is encoded and waits
//! for the disk is bounded by as much again.

use super::mirror::Mirror;
use super::staging::{BUFFER, Buffer, CHUNK, Staging};
use super::writer::{Encoded, Settled, ToWriter, write_snapshots};
use crate::codec::Scratch;
use crate::image::EncodedBatch;
use crate::model::{Costs, Page, PageSet, PageTable, ProcessState, SnapshotId, SnapshotKind};
use crate::store::{Session, StoreError};
use crate::sys::{SysError, read_pages_into, renice};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Instant;
use xxhash_rust::xxh3::xxh3_128;

/// Pages that are copied at a time.
const PIECE: usize = 8192;
/// A thread of its own is worth it for so many pages.
const SHARE: usize = 512;
/// Threads that copy, at most.
const MOST_COPIERS: usize = 4;

/// Buffers that are ready for the stop, where the bound allows.
const READY: usize = 8;

/// Buffers that are kept from one snapshot to the next.
const KEPT: usize = 512;

/// However little memory is allowed.
const LEAST_BUFFERS: u64 = 8;

/// Niceness of the threads that work off the target's time.
const ENCODER_NICE: i32 = 4;

/// Content hashes of the pages of a snapshot: what a page was, without its bytes.
pub type Hashes = PageTable<u128>;

struct Job {
    copied: Buffer,
    before: Arc<Hashes>,
    hurry: Option<Instant>,
}

/// The stages behind the copier. Ends its threads on drop, once they are done.
pub struct Pipeline {
    jobs: Option<Sender<Job>>,
    writer: Option<SyncSender<ToWriter>>,
    free: Receiver<Buffer>,
    /// Empty ones that have come back.
    idle: Vec<Buffer>,
    /// Buffers that may still be made.
    unmade: u64,
    /// Buffers in all.
    most: u64,
    /// Copied and not yet given to the encoders.
    staging: Staging,
    /// Threads to copy on.
    copiers: usize,
    hurry: Option<Instant>,
    /// Hashes of the parent snapshot.
    before: Arc<Hashes>,
    mirror: Arc<Mirror>,
    submitted: u64,
    threads: Vec<JoinHandle<()>>,
}

impl Pipeline {
    /// Starts the stages for one session. `memory` bounds the copy buffers, `mirror` what is kept of the last
    /// snapshot's pages; in bytes.
    pub fn start(session: Session, memory: u64, mirror: u64) -> Self {
        let mirror = Arc::new(Mirror::new(mirror));
        let (jobs, job_queue) = channel::<Job>();
        let most = (memory / BUFFER).max(LEAST_BUFFERS);
        // Encoded pages that wait for the disk are bounded too, by as much again.
        let (writer, to_writer) = sync_channel(most as usize);
        let (give_back, free) = channel();
        let job_queue = Arc::new(Mutex::new(job_queue));
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let mut threads = Vec::new();
        for _ in 0..processors.div_ceil(2).min(4) {
            let (queue, out, back) = (job_queue.clone(), writer.clone(), give_back.clone());
            let mirror = mirror.clone();
            threads.push(spawn("ksnap-encode", move || {
                encode_jobs(&queue, &mirror, &out, &back)
            }));
        }
        let written = mirror.clone();
        threads.push(spawn("ksnap-write", move || {
            write_snapshots(session, &written, &to_writer)
        }));
        Self {
            jobs: Some(jobs),
            writer: Some(writer),
            free,
            idle: Vec::new(),
            unmade: most,
            most,
            staging: Staging::default(),
            copiers: processors.min(MOST_COPIERS),
            hurry: None,
            before: Arc::new(Hashes::new()),
            mirror,
            submitted: 0,
            threads,
        }
    }

    fn tell(&self, message: ToWriter) {
        // The writer lives as long as this value does; if it died of a panic, the reply that is
        // missing tells.
        let _ = self.writer.as_ref().expect("until drop").send(message);
    }

    /// Begins a snapshot. Pages with the hash that `before` has for them are left out of it. From
    /// `hurry` on, pages are stored as they are: encoding them takes longer than the next snapshot
    /// should wait.
    pub fn begin(
        &mut self,
        kind: SnapshotKind,
        parent: Option<SnapshotId>,
        before: &Arc<Hashes>,
        hurry: Option<Instant>,
    ) {
        self.submitted = 0;
        self.staging.restart();
        self.trim();
        self.hurry = hurry;
        self.before = before.clone();
        self.mirror.begin(kind, parent);
        self.tell(ToWriter::Begin { kind, parent });
    }

    /// Gives memory back that only a large snapshot, such as the first, has needed.
    fn trim(&mut self) {
        self.idle.extend(self.free.try_iter());
        let more = self.idle.len().saturating_sub(KEPT);
        self.idle.truncate(KEPT);
        self.unmade += more as u64;
    }

    /// Makes room for these pages; waits for the encoders if the bound is reached.
    fn make_room(&mut self, pages: &[u64]) {
        while self.staging.lacks(pages) > 0 {
            let empty = self.empty();
            self.staging.push(empty);
        }
    }

    fn empty(&mut self) -> Buffer {
        if let Some(idle) = self.idle.pop().or_else(|| self.free.try_recv().ok()) {
            return idle;
        }
        if self.unmade > 0 {
            self.unmade -= 1;
            return Buffer::new();
        }
        if let Some(oldest) = self.staging.pop() {
            self.submit(oldest);
        }
        self.free.recv().unwrap_or_else(|_| Buffer::new())
    }

    /// Has buffers ready for what the stop is likely to copy.
    pub fn prepare(&mut self) {
        self.idle.extend(self.free.try_iter());
        while self.idle.len() < READY && self.unmade > 0 {
            self.unmade -= 1;
            self.idle.push(Buffer::new());
        }
    }

    /// From now on copied pages have a higher place in the order of copying: this one, or above.
    pub fn next_pass(&mut self) -> u32 {
        self.staging.next_pass()
    }

    /// Takes a copied page, in place of an earlier copy of it that still waits.
    pub fn put(&mut self, addr: u64, page: &Page, hash: u128) {
        self.make_room(&[addr]);
        self.staging.put(addr, page, hash);
    }

    /// Copies pages out of a process as they are, each in place of an earlier copy of it that still
    /// waits. Those that are not there are returned. `between` is called every few milliseconds.
    pub fn copy(
        &mut self,
        pid: i32,
        pages: &PageSet,
        mut between: impl FnMut(),
    ) -> Result<PageSet, SysError> {
        let mut gone = Vec::new();
        let mut rest = pages.iter();
        loop {
            let piece: Vec<u64> = rest.by_ref().take(self.piece()).collect();
            if piece.is_empty() {
                return Ok(PageSet::from_pages(gone));
            }
            self.make_room(&piece);
            let copiers = self.copiers;
            let missing = self
                .staging
                .fill(&piece, |places| read_shared(pid, &piece, places, copiers))?;
            gone.extend(missing);
            between();
        }
    }

    /// Most pages that can wait at once.
    pub fn capacity(&self) -> u64 {
        self.most * CHUNK - self.piece() as u64
    }

    /// Pages to copy at a time: what is left must be enough for the encoders.
    fn piece(&self) -> usize {
        ((self.most / 4 * CHUNK) as usize).min(PIECE)
    }

    /// Buffers that wait.
    pub fn staged(&self) -> usize {
        self.staging.len()
    }

    /// Gives everything that waits to the encoders.
    fn flush(&mut self) {
        for buffer in self.staging.take() {
            self.submit(buffer);
        }
    }

    fn submit(&mut self, copied: Buffer) {
        self.submitted += 1;
        let job = Job {
            copied,
            before: self.before.clone(),
            hurry: self.hurry,
        };
        let _ = self.jobs.as_ref().expect("until drop").send(job);
    }

    /// These pages were gone when copy pass `before` began.
    pub fn remove(&self, pages: PageSet, before: u32) {
        self.tell(ToWriter::Remove { pages, before });
    }

    /// Completes the snapshot. The answer comes when it is durable, or has failed.
    pub fn publish(
        &mut self,
        state: ProcessState,
        costs: Costs,
    ) -> Receiver<Result<Settled, StoreError>> {
        self.flush();
        let (reply, answer) = channel();
        self.tell(ToWriter::Publish {
            batches: self.submitted,
            state: Box::new(state),
            costs: Box::new(costs),
            reply,
        });
        answer
    }

    /// Gives the snapshot up; nothing of it stays. Waits for what is on its way: it must not be taken
    /// for a part of the next snapshot.
    pub fn abandon(&mut self) {
        self.flush();
        let (done, wait) = channel();
        self.tell(ToWriter::Abandon {
            batches: self.submitted,
            done,
        });
        let _ = wait.recv();
    }
}

impl Drop for Pipeline {
    fn drop(&mut self) {
        self.jobs = None;
        self.writer = None;
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// Reads pages on several threads: copying waits for memory most of the time. Returns those that are
/// not there.
fn read_shared(
    pid: i32,
    pages: &[u64],
    places: &mut [&mut Page],
    copiers: usize,
) -> Result<Vec<u64>, SysError> {
    let copiers = copiers.min(pages.len() / SHARE).max(1);
    let share = pages.len().div_ceil(copiers).max(1);
    let read = |pages: &[u64], places: &mut [&mut Page]| {
        let faults = read_pages_into(pid, pages, places)?;
        Ok(faults.into_iter().map(|f| f.addr).collect::<Vec<_>>())
    };
    let mut shares = pages.chunks(share).zip(places.chunks_mut(share));
    let mine = shares.next();
    std::thread::scope(|scope| {
        let others: Vec<_> = shares
            .map(|(pages, places)| scope.spawn(move || read(pages, places)))
            .collect();
        let mut gone = match mine {
            Some((pages, places)) => read(pages, places)?,
            None => Vec::new(),
        };
        for other in others {
            gone.extend(other.join().expect("reading does not panic")?);
        }
        Ok(gone)
    })
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> JoinHandle<()> {
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(work)
        .expect("a thread can be started")
}

fn encode_jobs(
    queue: &Mutex<Receiver<Job>>,
    mirror: &Mirror,
    out: &SyncSender<ToWriter>,
    back: &Sender<Buffer>,
) {
    // Behind the target wherever both want a processor.
    renice(ENCODER_NICE);
    let mut scratch = Scratch::default();
    loop {
        let job = queue
            .lock()
            .expect("no encoder panics while it waits")
            .recv();
        let Ok(Job {
            copied,
            before,
            hurry,
        }) = job
        else {
            return;
        };
        let start = Instant::now();
        let mut batch = EncodedBatch::new(copied.pass);
        let mut hashes = Vec::with_capacity(copied.len());
        let mut same = Vec::new();
        for (addr, page, hash) in copied.pages() {
            let hash = hash.unwrap_or_else(|| xxh3_128(page));
            hashes.push((addr, hash));
            if before.get(addr) == Some(hash) {
                same.push(addr);
            } else if hurry.is_some_and(|when| Instant::now() >= when) {
                mirror.encode_fast(addr, (page, hash), &mut batch);
            } else {
                mirror.encode(addr, (page, hash), &mut scratch, &mut batch);
            }
        }
        let encode_ns = start.elapsed().as_nanos() as u64;
        let _ = back.send(copied);
        let _ = out.send(ToWriter::Batch(Encoded {
            batch,
            hashes,
            same,
            encode_ns,
        }));
    }
}
