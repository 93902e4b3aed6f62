//! Threads with a heart beat: a thread that is lost, stuck or running under another id is found.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::fault::broken;
use super::pace::nap;

/// How long a check waits for each worker, or another process, to move on, in naps of a millisecond. Naps are counted, not the
/// clock: a victim that is frozen for a minute has not lost its threads.
pub const PATIENCE: u32 = 20_000;

/// One worker's state, written by the worker.
pub struct Beat {
    name: String,
    tid: AtomicI32,
    beats: AtomicU64,
    ended: AtomicBool,
}

impl Beat {
    /// Counts one unit of work, and demands that the thread still has its id.
    pub fn beat(&self) {
        let (is, was) = (gettid(), self.tid.load(Ordering::Relaxed));
        if is != was {
            broken(format_args!(
                "worker {} started as thread {was} and is now thread {is}",
                self.name
            ));
        }
        self.beats.fetch_add(1, Ordering::Relaxed);
    }

    /// Units of work so far.
    pub fn beats(&self) -> u64 {
        self.beats.load(Ordering::Relaxed)
    }
}

/// The workers of a victim. They run until the process ends.
#[derive(Default)]
pub struct Workers(Vec<Arc<Beat>>);

impl Workers {
    /// No workers yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Starts a thread that runs `body`, which must never return.
    pub fn spawn(&mut self, name: &str, body: impl FnOnce(&Beat) + Send + 'static) -> Result<()> {
        self.spawn_with_stack(name, 256 << 10, body)
    }

    /// As [`Workers::spawn`], with a stack of so many bytes.
    pub fn spawn_with_stack(
        &mut self,
        name: &str,
        stack: usize,
        body: impl FnOnce(&Beat) + Send + 'static,
    ) -> Result<()> {
        let beat = self.register(name);
        let builder = std::thread::Builder::new()
            .name(name.to_owned())
            .stack_size(stack);
        let inner = Arc::clone(&beat);
        builder
            .spawn(move || {
                inner.tid.store(gettid(), Ordering::Release);
                body(&inner);
                inner.ended.store(true, Ordering::Release);
            })
            .with_context(|| format!("cannot start thread {name}"))?;
        while beat.tid.load(Ordering::Acquire) == 0 {
            std::thread::yield_now();
        }
        Ok(())
    }

    /// Adds a heart beat for the calling thread.
    pub fn adopt(&mut self, name: &str) -> Arc<Beat> {
        let beat = self.register(name);
        beat.tid.store(gettid(), Ordering::Release);
        beat
    }

    fn register(&mut self, name: &str) -> Arc<Beat> {
        let beat = Arc::new(Beat {
            name: name.to_owned(),
            tid: AtomicI32::new(0),
            beats: AtomicU64::new(0),
            ended: AtomicBool::new(false),
        });
        self.0.push(Arc::clone(&beat));
        beat
    }

    /// Units of work of all workers.
    pub fn total(&self) -> u64 {
        self.0.iter().map(|beat| beat.beats()).sum()
    }

    /// Demands that every worker exists.
    pub fn alive(&self) -> Result<(), String> {
        for beat in &self.0 {
            let tid = beat.tid.load(Ordering::Acquire);
            if beat.ended.load(Ordering::Acquire) {
                return Err(format!("worker {} (thread {tid}) ended", beat.name));
            }
            if !std::path::Path::new(&format!("/proc/self/task/{tid}")).exists() {
                return Err(format!(
                    "worker {} (thread {tid}) is lost: the kernel does not know it",
                    beat.name
                ));
            }
        }
        Ok(())
    }

    /// Demands that every worker exists and gets on with its work.
    pub fn working(&self) -> Result<(), String> {
        self.alive()?;
        let before: Vec<u64> = self.0.iter().map(|beat| beat.beats()).collect();
        for (beat, before) in self.0.iter().zip(before) {
            let mut naps = 0;
            while beat.beats() <= before {
                naps += 1;
                if naps > PATIENCE {
                    let tid = beat.tid.load(Ordering::Acquire);
                    return Err(format!(
                        "worker {} (thread {tid}) is stuck at {before}",
                        beat.name
                    ));
                }
                nap(1);
            }
        }
        Ok(())
    }

    /// Names, thread ids and beats, for the replies.
    pub fn report(&self) -> Value {
        let one = |beat: &Arc<Beat>| json!({ "name": beat.name, "tid": beat.tid.load(Ordering::Acquire), "beats": beat.beats() });
        self.0.iter().map(one).collect()
    }
}

/// This thread's id as the kernel knows it (not the C library's cached one).
pub fn gettid() -> i32 {
    // SAFETY: gettid takes nothing and cannot fail.
    unsafe { libc::syscall(libc::SYS_gettid) as i32 }
}
