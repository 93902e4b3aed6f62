//! Keeps a watched session within its rules, for as long as it is watched, on a thread that comes after all others.
//!
//! Snapshots that no rule keeps are merged when that pays: merging writes what the others need of them, about a
//! base image, so it waits until as much can be freed as half of that takes. Until then they can still be used.
//! When the watching ends, all of them go.
//!
//! Where the room itself is bounded, as in memory, snapshots wait while merging would not find the room that it takes:
//! once all is full, nothing could be merged any more.

use super::control::Reply;
use super::prune::{What, remove};
use super::{Result, SessionError};
use crate::store::{Pruner, Rules};
use crate::sys::{renice, yield_io};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// Niceness: as far behind as there is.
const NICE: i32 = 19;
/// Snapshots that may wait to be merged, however small they are: keeps listings short.
const MOST_WAITING: usize = 1000;
/// Least that is worth merging.
const LEAST_BYTES: u64 = 16 << 20;
/// How long to wait after a failure, or when all that is left is protected.
const PAUSE: Duration = Duration::from_secs(2);
/// How often snapshots are looked at that only grow older.
const TICK: Duration = Duration::from_secs(1);

enum Message {
    Published {
        time_ns: u64,
        bytes: u64,
    },
    Ask {
        what: What,
        dry_run: bool,
        answer: oneshot::Sender<Reply>,
    },
}

/// How full the session is, for whoever fills it.
#[derive(Debug, Default)]
struct Level {
    /// Most bytes; 0 for no bound.
    most: u64,
    /// Bytes there are.
    total: AtomicU64,
    /// Bytes that merging takes on top.
    merged: AtomicU64,
    /// Snapshots that could go.
    waiting: AtomicUsize,
    /// The last try removed nothing: waiting for the next one would be for ever.
    stuck: AtomicBool,
}

impl Level {
    fn has_room(&self) -> bool {
        let taken = self
            .total
            .load(Relaxed)
            .saturating_add(self.merged.load(Relaxed));
        self.most == 0
            || taken <= self.most
            || self.waiting.load(Relaxed) <= 1
            || self.stuck.load(Relaxed)
    }
}

/// The running keeper. On drop it does what is left to do, and ends.
pub struct Keeper {
    send: Option<Sender<Message>>,
    pruner: Pruner,
    level: Arc<Level>,
    thread: Option<JoinHandle<()>>,
}

impl Keeper {
    /// Starts keeping a session. Without rules it only answers. `bounded`: the room ends soon behind the size that the
    /// rules allow.
    pub fn start(pruner: Pruner, rules: Rules, bounded: bool) -> Result<Self> {
        let level = Arc::new(Level {
            most: rules.max_size.filter(|_| bounded).unwrap_or(0),
            ..Level::default()
        });
        let (send, messages) = channel();
        let mut work = Work {
            pruner: pruner.clone(),
            rules,
            level: level.clone(),
            known: Vec::new(),
            fixed: 0,
            not_before: Instant::now(),
        };
        let thread = std::thread::Builder::new()
            .name("ksnap-keep".into())
            .spawn(move || {
                renice(NICE);
                yield_io();
                work.run(&messages);
            })
            .map_err(SessionError::io("start the thread that keeps the rules"))?;
        Ok(Self {
            send: Some(send),
            pruner,
            level,
            thread: Some(thread),
        })
    }

    fn tell(&self, message: Message) {
        if let Some(send) = &self.send {
            // If its thread has died, snapshots are kept rather than lost.
            let _ = send.send(message);
        }
    }

    /// A snapshot is there.
    pub fn published(&self, time_ns: u64, bytes: u64) {
        self.level.total.fetch_add(bytes, Relaxed);
        self.level.waiting.fetch_add(1, Relaxed);
        self.tell(Message::Published { time_ns, bytes });
    }

    /// Another snapshot leaves enough room for merging. False only while something is being merged, or about to be.
    pub fn has_room(&self) -> bool {
        self.level.has_room()
    }

    /// Removes snapshots on someone's request.
    pub fn ask(&self, what: What, dry_run: bool, answer: oneshot::Sender<Reply>) {
        self.tell(Message::Ask {
            what,
            dry_run,
            answer,
        });
    }

    /// A rollback is about to make this snapshot the head: it stays.
    pub fn pin(&self, id: crate::model::SnapshotId) -> Result<()> {
        Ok(self.pruner.pin(id)?)
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.send = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Work {
    pruner: Pruner,
    rules: Rules,
    level: Arc<Level>,
    /// Time and length of each snapshot that is not protected, oldest first.
    known: Vec<(u64, u64)>,
    /// Bytes of everything else: the pack, and what is protected.
    fixed: u64,
    not_before: Instant,
}

impl Work {
    fn run(&mut self, messages: &Receiver<Message>) {
        if !self.rules.is_empty() {
            self.look_again();
        }
        loop {
            match messages.recv_timeout(TICK) {
                Ok(Message::Published { time_ns, bytes }) => self.known.push((time_ns, bytes)),
                Ok(Message::Ask {
                    what,
                    dry_run,
                    answer,
                }) => {
                    let reply = match remove(&self.pruner, &what, dry_run) {
                        Ok(done) => Reply::Pruned(Box::new(done)),
                        Err(error) => Reply::Failed(error.to_string()),
                    };
                    let _ = answer.send(reply);
                    self.look_again();
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            if !self.rules.is_empty() && Instant::now() >= self.not_before && self.pays() {
                self.keep(&self.tightened());
            }
        }
        if !self.rules.is_empty() {
            self.keep(&self.rules.clone());
        }
    }

    /// Whether merging is due. Works on what is known without looking at a file.
    fn pays(&self) -> bool {
        let now = self.known.last().map_or(0, |newest| newest.0);
        let is_kept = |at: usize, time_ns: u64| {
            let last = self.known.len() - at;
            let within = |d: Duration| u128::from(now.saturating_sub(time_ns)) <= d.as_nanos();
            let by_size_only = self.rules.keep_last.is_none() && self.rules.keep_within.is_none();
            by_size_only
                || self.rules.keep_last.is_some_and(|most| last as u64 <= most)
                || self.rules.keep_within.is_some_and(within)
        };
        let waiting: Vec<u64> = self
            .known
            .iter()
            .enumerate()
            .filter(|(at, (time_ns, _))| !is_kept(*at, *time_ns))
            .map(|(_, (_, bytes))| *bytes)
            .collect();
        let freed: u64 = waiting.iter().sum();
        let merged = self.merged();
        let total: u64 = self.fixed + self.known.iter().map(|(_, bytes)| bytes).sum::<u64>();
        // The pack that is being written and all that it replaces are there together.
        let over = self
            .rules
            .max_size
            .is_some_and(|most| total + merged > most && self.known.len() > 1);
        waiting.len() >= MOST_WAITING || freed >= LEAST_BYTES.max(merged / 2) || over
    }

    /// About what a pack takes: the one that is there, or the base image.
    fn merged(&self) -> u64 {
        self.fixed
            .max(self.known.first().map_or(0, |first| first.1))
    }

    /// The rules, with a size that leaves room for a while.
    fn tightened(&self) -> Rules {
        let merged = self.merged();
        Rules {
            max_size: self
                .rules
                .max_size
                .map(|most| most.saturating_sub(merged).max(most / 2) / 4 * 3),
            ..self.rules
        }
    }

    fn keep(&mut self, rules: &Rules) {
        match remove(&self.pruner, &What::Rules(*rules), false) {
            Ok(done) => {
                tracing::debug!(
                    "{} snapshots merged, {} kept, {} bytes",
                    done.removed.len(),
                    done.kept,
                    done.bytes_after
                );
                self.level.stuck.store(done.removed.is_empty(), Relaxed);
                if done.removed.is_empty() {
                    // What is left is protected.
                    self.not_before = Instant::now() + PAUSE;
                }
            }
            Err(error) => {
                self.level.stuck.store(true, Relaxed);
                tracing::warn!(
                    "snapshots that no rule keeps could not be removed, next try in {} s: {error}",
                    PAUSE.as_secs()
                );
                self.not_before = Instant::now() + PAUSE;
            }
        }
        self.look_again();
    }

    /// Takes in what the folder has.
    fn look_again(&mut self) {
        let seen = self.pruner.snapshots().and_then(|list| {
            let protected = self.pruner.protected(&list)?;
            Ok((list, protected, self.pruner.pack_bytes()?))
        });
        match seen {
            Ok((list, protected, pack)) => {
                self.fixed = pack;
                self.known.clear();
                let newest = list.last().map(|meta| meta.id);
                for meta in list {
                    // The newest is protected only until there is a newer one.
                    match protected.contains(&meta.id) && Some(meta.id) != newest {
                        true => self.fixed += meta.file_bytes,
                        false => self.known.push((meta.time_ns, meta.file_bytes)),
                    }
                }
                let known: u64 = self.known.iter().map(|(_, bytes)| bytes).sum();
                self.level.total.store(self.fixed + known, Relaxed);
                self.level.merged.store(self.merged(), Relaxed);
                self.level.waiting.store(self.known.len(), Relaxed);
            }
            Err(error) => tracing::warn!("what is kept is not known: {error}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_room_while_merging_finds_its_own_or_could_free_nothing() {
        let level = |most, total: u64, merged: u64, waiting: usize, stuck| Level {
            most,
            total: total.into(),
            merged: merged.into(),
            waiting: waiting.into(),
            stuck: AtomicBool::new(stuck),
        };
        assert!(level(0, 500, 500, 9, false).has_room());
        assert!(level(100, 60, 40, 9, false).has_room());
        assert!(!level(100, 61, 40, 9, false).has_room());
        assert!(level(100, 61, 40, 1, false).has_room());
        assert!(level(100, 61, 40, 9, true).has_room());
    }
}
