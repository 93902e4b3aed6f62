//! From copied pages to a published snapshot, off the target's time.
//!
//! The tracer's thread copies into buffers of a bounded pool. They wait there until the stop is over:
//! a page that is copied again meanwhile is encoded once, and the encoders do not compete with the
//! target during the stop. Then encoder threads turn them into batches and give them back, and one
//! writer thread, which owns the session in the store, writes.
//!
//! When all buffers are full, the oldest go to the encoders early, and the copier waits for one to
//! come back: memory stays within the bound, and the snapshot takes longer instead.

use super::writer::{Encoded, Settled, ToWriter, write_snapshots};
use crate::capture::Copied;
use crate::codec::Scratch;
use crate::image::EncodedBatch;
use crate::model::{Costs, PageSet, PageTable, ProcessState, SnapshotId, SnapshotKind};
use crate::store::{Session, StoreError};
use crate::sys::lower_priority;
use std::collections::{HashSet, VecDeque};
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
const ENCODER_NICE: i32 = 10;

/// Content hashes of the pages of a snapshot: what a page was, without its bytes.
pub type Hashes = PageTable<u128>;

struct Job {
    copied: Copied,
    before: Arc<Hashes>,
}

/// The stages behind the copier. Ends its threads on drop, once they are done.
pub struct Pipeline {
    jobs: Option<Sender<Job>>,
    writer: Option<Sender<ToWriter>>,
    free: Receiver<Copied>,
    /// Buffers that may still be made.
    unmade: u64,
    /// Copied and not yet given to the encoders, oldest first.
    staged: VecDeque<Copied>,
    /// Hashes of the parent snapshot.
    before: Arc<Hashes>,
    submitted: u64,
    threads: Vec<JoinHandle<()>>,
}

impl Pipeline {
    /// Starts the stages for one session. `memory` bounds the copy buffers, in bytes.
    pub fn start(session: Session, memory: u64) -> Self {
        let (jobs, job_queue) = channel::<Job>();
        let (writer, to_writer) = channel();
        let (give_back, free) = channel();
        let job_queue = Arc::new(Mutex::new(job_queue));
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let mut threads = Vec::new();
        for _ in 0..processors.div_ceil(2).min(4) {
            let (queue, out, back) = (job_queue.clone(), writer.clone(), give_back.clone());
            threads.push(spawn("ksnap-encode", move || {
                encode_jobs(&queue, &out, &back)
            }));
        }
        threads.push(spawn("ksnap-write", move || {
            write_snapshots(session, &to_writer)
        }));
        Self {
            jobs: Some(jobs),
            writer: Some(writer),
            free,
            unmade: (memory / BUFFER).max(4),
            staged: VecDeque::new(),
            before: Arc::new(Hashes::new()),
            submitted: 0,
            threads,
        }
    }

    fn tell(&self, message: ToWriter) {
        // The writer lives as long as this value does; if it died of a panic, the reply that is
        // missing tells.
        let _ = self.writer.as_ref().expect("until drop").send(message);
    }

    /// Begins a snapshot. Pages with the hash that `before` has for them are left out of it.
    pub fn begin(&mut self, kind: SnapshotKind, parent: Option<SnapshotId>, before: &Arc<Hashes>) {
        self.submitted = 0;
        self.before = before.clone();
        self.tell(ToWriter::Begin { kind, parent });
    }

    /// A buffer to copy into; waits for one if the bound is reached.
    pub fn buffer(&mut self) -> Copied {
        if let Ok(free) = self.free.try_recv() {
            return free;
        }
        if self.unmade > 0 {
            self.unmade -= 1;
            return Copied::default();
        }
        if let Some(oldest) = self.staged.pop_front() {
            self.submit(oldest);
        }
        self.free.recv().unwrap_or_default()
    }

    /// Takes copied pages.
    pub fn stage(&mut self, copied: Copied) {
        self.staged.push_back(copied);
    }

    /// Gives everything that is staged to the encoders, each page once, as copied last.
    pub fn flush(&mut self) {
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

    /// Gives the snapshot up; nothing of it stays.
    pub fn abandon(&mut self) {
        self.flush();
        self.tell(ToWriter::Abandon {
            batches: self.submitted,
        });
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

fn encode_jobs(queue: &Mutex<Receiver<Job>>, out: &Sender<ToWriter>, back: &Sender<Copied>) {
    // Behind the target wherever both want a processor.
    lower_priority(ENCODER_NICE);
    let mut scratch = Scratch::default();
    loop {
        let job = queue
            .lock()
            .expect("no encoder panics while it waits")
            .recv();
        let Ok(Job { copied, before }) = job else {
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
            } else {
                batch.push(addr, page, &mut scratch);
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
