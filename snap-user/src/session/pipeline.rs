//! From copied pages to a published snapshot, off the target's time.
//!
//! The tracer's thread copies into buffers of a bounded pool. They wait there until the stop is over:
//! a page that is copied again meanwhile is encoded once, and the encoders do not compete with the
//! target during the stop. Then encoder threads turn them into batches and give them back, and one
//! writer thread, which owns the session in the store, writes.
//!
//! When all buffers are full, the oldest go to the encoders early, and the copier waits for one to
//! come back: memory stays within the bound, and the snapshot takes longer instead.

use super::mirror::Mirror;
use super::writer::{Encoded, Settled, ToWriter, write_snapshots};
use crate::capture::Copied;
use crate::codec::Scratch;
use crate::image::EncodedBatch;
use crate::model::{Costs, Page, PageSet, PageTable, ProcessState, SnapshotId, SnapshotKind};
use crate::store::{Session, StoreError};
use crate::sys::renice;
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Instant;
use xxhash_rust::xxh3::xxh3_128;

/// Pages in one buffer.
pub const CHUNK: u64 = 256;
/// Bytes in one buffer.
const BUFFER: u64 = CHUNK * crate::model::PAGE_SIZE;

/// Niceness of the threads that work off the target's time.
const ENCODER_NICE: i32 = 4;

/// Content hashes of the pages of a snapshot: what a page was, without its bytes.
pub type Hashes = PageTable<u128>;

struct Job {
    copied: Copied,
    before: Arc<Hashes>,
    hurry: Option<Instant>,
}

/// The stages behind the copier. Ends its threads on drop, once they are done.
pub struct Pipeline {
    jobs: Option<Sender<Job>>,
    writer: Option<Sender<ToWriter>>,
    free: Receiver<Copied>,
    /// Buffers that may still be made.
    unmade: u64,
    /// Buffers in all.
    most: u64,
    /// Copied and not yet given to the encoders, oldest first.
    staged: VecDeque<Copied>,
    /// Where a waiting page is: place of its buffer, index in it.
    staged_at: HashMap<u64, (u32, usize)>,
    /// Place in the order of copying of the next buffer.
    pass: u32,
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
        let (writer, to_writer) = channel();
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
            unmade: (memory / BUFFER).max(4),
            most: (memory / BUFFER).max(4),
            staged: VecDeque::new(),
            staged_at: HashMap::new(),
            pass: 0,
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
        self.pass = 0;
        self.hurry = hurry;
        self.before = before.clone();
        self.mirror.begin(kind, parent);
        self.tell(ToWriter::Begin { kind, parent });
    }

    /// An empty buffer, last in the order of copying; waits for one if the bound is reached.
    pub fn buffer(&mut self) -> Copied {
        let mut buffer = self.any_buffer();
        buffer.reset(self.pass);
        self.pass += 1;
        buffer
    }

    fn any_buffer(&mut self) -> Copied {
        if let Ok(free) = self.free.try_recv() {
            return free;
        }
        if self.unmade > 0 {
            self.unmade -= 1;
            return Copied::default();
        }
        if let Some(oldest) = self.staged.pop_front() {
            oldest.addrs.iter().for_each(|addr| {
                self.staged_at.remove(addr);
            });
            self.submit(oldest);
        }
        self.free.recv().unwrap_or_default()
    }

    /// The place in the order of copying that the next buffer will have.
    pub fn next_pass(&self) -> u32 {
        self.pass
    }

    /// Takes a copied page, in place of an earlier copy of it that still waits.
    pub fn put(&mut self, addr: u64, page: &Page, hash: u128) {
        if let Some(&(pass, index)) = self.staged_at.get(&addr) {
            let first = self.staged.front().map_or(0, |b| b.pass);
            if let Some(buffer) = self.staged.get_mut((pass - first) as usize)
                && buffer.pass == pass
            {
                return buffer.replace(index, page, hash);
            }
        }
        if self.staged.back().is_none_or(|b| !b.takes(CHUNK)) {
            let fresh = self.buffer();
            self.staged.push_back(fresh);
        }
        let buffer = self.staged.back_mut().expect("put there above");
        self.staged_at
            .insert(addr, (buffer.pass, buffer.addrs.len()));
        buffer.push(addr, page, hash);
    }

    /// Takes a buffer of copied pages.
    pub fn stage(&mut self, copied: Copied) {
        self.staged.push_back(copied);
    }

    /// Pages that can be copied before a buffer has to be waited for, at least.
    pub fn room(&self) -> u64 {
        let busy = self.staged.len() as u64 + self.submitted;
        self.most.saturating_sub(busy) * CHUNK
    }

    /// Buffers that wait.
    pub fn staged(&self) -> usize {
        self.staged.len()
    }

    /// Gives everything that waits to the encoders, each page once, as copied last.
    fn flush(&mut self) {
        self.staged_at.clear();
        let mut later = HashSet::new();
        let mut staged = std::mem::take(&mut self.staged);
        for copied in staged.iter_mut().rev() {
            copied.forget(|addr| !later.insert(addr));
        }
        staged.into_iter().for_each(|copied| self.submit(copied));
    }

    fn submit(&mut self, copied: Copied) {
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

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> JoinHandle<()> {
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(work)
        .expect("a thread can be started")
}

fn encode_jobs(
    queue: &Mutex<Receiver<Job>>,
    mirror: &Mirror,
    out: &Sender<ToWriter>,
    back: &Sender<Copied>,
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
        let mut hashes = Vec::with_capacity(copied.addrs.len());
        let mut same = Vec::new();
        for (addr, page, hash) in copied.pages() {
            let hash = hash.unwrap_or_else(|| xxh3_128(page));
            hashes.push((addr, hash));
            if before.get(addr) == Some(hash) {
                same.push(addr);
            } else if hurry.is_some_and(|when| Instant::now() >= when) {
                mirror.encode_fast(addr, page, copied.pass, &mut batch);
            } else {
                mirror.encode(addr, page, copied.pass, &mut scratch, &mut batch);
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
