//! Keeps a watched session within its rules, for as long as it is watched, on a thread that comes after all others.
//!
//! Snapshots that no rule keeps are merged when that pays: merging writes what the others need of them, about a
//! base image, so it waits until as much can be freed as half of that takes. Until then they can still be used.
//! When the watching ends, all of them go.
//!
//! Where the room itself is bounded, as in memory, snapshots wait while merging would not find the room that it takes:
//! once all is full, nothing could be merged any more. How much room there is the file system tells: what was removed
//! takes up room for as long as someone has it open, and others may use the same file system.

use super::control::Reply;
use super::prune::{What, remove};
use super::{Result, SessionError};
use crate::store::{Pruner, Rules, StoreError};
use crate::sys::{renice, room, yield_io};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// Niceness: as far behind as there is.
const NICE: i32 = 19;
/// Niceness where snapshots wait for it: still behind the processes that are watched.
const NICE_BOUNDED: i32 = 4;
/// Snapshots that may wait to be merged, however small they are: keeps listings short.
const MOST_WAITING: usize = 1000;
/// The same where others wait for them, and merging is quick.
const MOST_WAITING_IN_TREE: usize = 20;
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
    /// Where the room ends: the store's folder, and the most bytes that the rules allow.
    bound: Option<(PathBuf, u64)>,
    /// Bytes there are.
    total: AtomicU64,
    /// Bytes that merging takes on top.
    merged: AtomicU64,
    /// Snapshots that could go.
    waiting: AtomicUsize,
    /// The last try removed nothing: waiting for the next one would be for ever.
    stuck: AtomicBool,
    /// What waits is left as it is at the end.
    leave: AtomicBool,
}

impl Level {
    fn has_room(&self) -> bool {
        let Some((dir, rule)) = &self.bound else {
            return true;
        };
        let merged = self.merged.load(Relaxed);
        // Where merging can never find its room, snapshots fail and say so, rather than wait for ever.
        merged > rule / 2
            || self.waiting.load(Relaxed) <= 1
            || self.stuck.load(Relaxed)
            || self.is_below(free(dir), *rule, merged)
    }

    fn is_below(&self, free: Option<u64>, rule: u64, merged: u64) -> bool {
        let total = self.total.load(Relaxed);
        total.saturating_add(merged) <= most_now(rule, total, merged, free)
    }
}

/// What is left on a file system. `None` where that is not known, or where it has no bound of its own.
fn free(dir: &Path) -> Option<u64> {
    let found = room(dir).ok()?;
    (found.total > 0).then_some(found.free)
}

/// Most bytes that a session may take now: what the rules allow, and no more than leaves room for another pack, in
/// addition to the one that `total` with `merged` makes sure of.
fn most_now(rule: u64, total: u64, merged: u64, free: Option<u64>) -> u64 {
    let by_room = free.map(|free| total.saturating_add(free).saturating_sub(merged));
    by_room.map_or(rule, |most| most.min(rule))
}

/// The size to come down to, so that there is room for a while: of `most`, where merging takes `merged` in addition.
fn aim(most: u64, merged: u64) -> u64 {
    let room = most.saturating_sub(merged);
    let usual = room.max(most / 2) / 4 * 3;
    match room.checked_sub(merged) {
        // Else the base image alone would be about as much, and nearly all that follows it would go.
        Some(deltas) => usual.max(merged + deltas / 4 * 3),
        None => usual,
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
    /// rules allow; the folder of the store. `in_tree`: other sessions' snapshots wait for those of this one.
    pub fn start(
        pruner: Pruner,
        rules: Rules,
        bounded: Option<&Path>,
        in_tree: bool,
    ) -> Result<Self> {
        let level = Arc::new(Level {
            bound: bounded.map(Path::to_owned).zip(rules.max_size),
            ..Level::default()
        });
        let nice = match level.bound {
            Some(_) => NICE_BOUNDED,
            None => NICE,
        };
        let (send, messages) = channel();
        let mut work = Work {
            pruner: pruner.clone(),
            rules,
            level: level.clone(),
            in_tree,
            known: Vec::new(),
            fixed: 0,
            pack: 0,
            not_before: Instant::now(),
        };
        let thread = std::thread::Builder::new()
            .name("ksnap-keep".into())
            .spawn(move || {
                renice(nice);
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

    /// Another snapshot leaves enough room for merging. False only while something is being merged, or about to be, or
    /// waits for room that others take.
    pub fn has_room(&self) -> bool {
        self.level.has_room()
    }

    /// The watching ends in haste: where the room is bounded, what could go is left as it is.
    pub fn leave(&self) {
        self.level.leave.store(self.level.bound.is_some(), Relaxed);
    }

    /// Nothing is removed any more when this is dropped.
    pub fn skip_last_look(&self) {
        self.level.leave.store(true, Relaxed);
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
    in_tree: bool,
    /// Time and length of each snapshot that is not protected, oldest first.
    known: Vec<(u64, u64)>,
    /// Bytes of everything else: the pack, and what is protected.
    fixed: u64,
    /// Bytes of the pack.
    pack: u64,
    not_before: Instant,
}

impl Work {
    fn run(&mut self, messages: &Receiver<Message>) {
        if !self.rules.is_empty() {
            self.look_again();
        }
        loop {
            match messages.recv_timeout(TICK) {
                Ok(Message::Published { time_ns, bytes }) => {
                    self.known.push((time_ns, bytes));
                    self.level.merged.store(self.merged(), Relaxed);
                }
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
        if !self.rules.is_empty() && !self.level.leave.load(Relaxed) {
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
        // The pack that is being written and all that it replaces are there together.
        let over = self
            .most()
            .is_some_and(|most| self.total() + merged > most && self.known.len() > 1);
        let most = match self.in_tree && merged <= LEAST_BYTES {
            true => MOST_WAITING_IN_TREE,
            false => MOST_WAITING,
        };
        waiting.len() >= most || freed >= LEAST_BYTES.max(merged / 2) || over
    }

    /// About what a pack takes: the one that is there, or the base image.
    fn merged(&self) -> u64 {
        self.pack.max(self.known.first().map_or(0, |first| first.1))
    }

    fn total(&self) -> u64 {
        self.fixed + self.known.iter().map(|(_, bytes)| bytes).sum::<u64>()
    }

    /// The size that the rules allow, or what there is room for.
    fn most(&self) -> Option<u64> {
        let free = self.level.bound.as_ref().and_then(|(dir, _)| free(dir));
        let rule = self.rules.max_size?;
        Some(most_now(rule, self.total(), self.merged(), free))
    }

    /// The rules, with a size that leaves room for a while.
    fn tightened(&self) -> Rules {
        let merged = self.merged();
        Rules {
            max_size: self.most().map(|most| aim(most, merged)),
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
                // Room comes back: whoever holds removed files open, as a flush does, lets them go.
                let full = matches!(&error, SessionError::Store(StoreError::Full { .. }));
                self.level.stuck.store(!full, Relaxed);
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
            let bytes = self.pruner.bytes_of(&list)?;
            Ok((list, bytes, protected, self.pruner.pack_bytes()?))
        });
        match seen {
            Ok((list, bytes, protected, pack)) => {
                (self.fixed, self.pack) = (pack, pack);
                self.known.clear();
                let newest = list.last().map(|meta| meta.id);
                for (meta, bytes) in list.into_iter().zip(bytes) {
                    // The newest is protected only until there is a newer one.
                    match protected.contains(&meta.id) && Some(meta.id) != newest {
                        true => self.fixed += bytes,
                        false => self.known.push((meta.time_ns, bytes)),
                    }
                }
                self.level.total.store(self.total(), Relaxed);
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
    fn a_session_may_take_what_the_rules_allow_and_there_is_room_for() {
        assert_eq!(most_now(56, 40, 12, Some(24)), 52);
        assert_eq!(most_now(56, 40, 12, Some(20)), 48);
        assert_eq!(most_now(56, 40, 12, Some(500)), 56);
        assert_eq!(most_now(56, 40, 12, None), 56);
        assert_eq!(most_now(56, 4, 12, Some(0)), 0);
    }

    #[test]
    fn coming_down_leaves_what_builds_on_a_large_base_image() {
        assert_eq!(aim(1000, 100), 100 + 800 / 4 * 3);
        // With little more than twice the base image there is room for a few.
        assert_eq!(aim(210, 100), 100 + 10 / 4 * 3);
        assert_eq!(aim(240, 100), 100 + 40 / 4 * 3);
        // Where merging finds no room it is not aimed at.
        assert_eq!(aim(190, 100), 95 / 4 * 3);
        for most in 0..500 {
            let aimed = aim(most, 100);
            assert!(most < 201 || aimed >= aim(most - 1, 100), "{most}");
            assert!(
                aimed <= most && (aimed + 100 <= most || most < 200),
                "{most}"
            );
        }
    }

    #[test]
    fn there_is_room_while_merging_finds_its_own_or_could_free_nothing() {
        let level = |total: u64, waiting: usize, stuck| Level {
            total: total.into(),
            waiting: waiting.into(),
            stuck: AtomicBool::new(stuck),
            ..Level::default()
        };
        let below = |total, rule, free| level(total, 9, false).is_below(free, rule, 12);
        assert!(below(40, 56, Some(24)));
        assert!(!below(40, 56, Some(20)));
        assert!(below(44, 56, Some(500)) && !below(45, 56, Some(500)));
        assert!(below(44, 56, None) && !below(45, 56, None));
        // Over its rule, wherever it is.
        let bounded = |merged: u64, waiting, stuck| Level {
            bound: Some(("/".into(), 100)),
            merged: merged.into(),
            ..level(200, waiting, stuck)
        };
        assert!(level(200, 9, false).has_room());
        assert!(!bounded(50, 2, false).has_room());
        assert!(bounded(51, 2, false).has_room());
        assert!(bounded(50, 1, false).has_room());
        assert!(bounded(50, 2, true).has_room());
    }
}
