//! What the verbs take and what they tell.

use super::{RolledBackTree, TakenTree};
use crate::model::{Costs, SnapshotId, SnapshotKind};
pub use crate::store::{Durability, Rules};
use crate::sys::proc;
pub use crate::track::{TrackerChoice, TrackerKind};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::time::Duration;

/// Bound of the copy buffers unless the user says otherwise, in bytes: at least this, and
/// [`default_memory`] where there is more.
pub const LEAST_MEMORY: u64 = 512 << 20;

/// A quarter of what memory is available now, in bytes. Pages that do not fit have to be encoded before the rest can
/// be copied, while the process goes on writing.
pub fn default_memory() -> u64 {
    (proc::available_memory().unwrap_or(0) / 4).max(LEAST_MEMORY)
}
/// Bound of what is held of the last snapshot's pages unless the user says otherwise, in bytes.
pub const DEFAULT_MIRROR: u64 = 256 << 20;

/// How to take snapshots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Which tracker to use.
    pub tracker: TrackerChoice,
    /// Use the eBPF probes where the kernel accepts them.
    pub probes: bool,
    /// Inside each stop, compare all memory with what the stored chain gives back.
    pub audit: bool,
    /// Most bytes held in copy buffers at any time.
    pub memory: u64,
    /// Most bytes held of what pages were in the last snapshot, to store changes instead of pages.
    pub mirror: u64,
    /// Save the contents of files that the process has open for writing.
    pub files: bool,
    /// Which snapshots are kept while others are taken.
    pub keep: Rules,
    /// The room for them ends soon behind the size that they may take: snapshots wait until others are removed.
    pub bounded: bool,
    /// When a snapshot is made durable.
    pub durability: Durability,
    /// What becomes of the process after a snapshot that is asked for.
    pub then: Then,
    /// A watch is of the process and all of its descendants, as one.
    pub tree: bool,
    /// An option that the user gave and that only whoever begins to track the process can follow: refused where
    /// a watcher does already.
    pub own: Option<&'static str>,
}

/// What becomes of a process once its snapshot is stored. It does not run in between.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Then {
    /// It runs on, as soon as it is captured.
    #[default]
    GoOn,
    /// It is stopped (SIGSTOP).
    Stop,
    /// It is ended (SIGKILL).
    Kill,
    /// It is ended, and its TCP connections are kept, for a restore to go on with.
    KillKeeping,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            tracker: TrackerChoice::Auto,
            probes: true,
            audit: false,
            memory: LEAST_MEMORY,
            mirror: DEFAULT_MIRROR,
            files: false,
            keep: Rules::default(),
            bounded: false,
            then: Then::GoOn,
            tree: false,
            durability: Durability::Each,
            own: None,
        }
    }
}

/// When to take snapshots, and until when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// From the start of one snapshot to the start of the next.
    pub every: Duration,
    /// End after this many.
    pub count: Option<u64>,
    /// End after this long.
    pub lasting: Option<Duration>,
    /// Most that snapshots may cost the process, in thousandths of the time that passes; where they
    /// would cost more, they are taken less often. `None` for as often as asked.
    pub max_overhead: Option<u32>,
}

/// A snapshot that was taken and stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Taken {
    /// Its name.
    #[serde(serialize_with = "hex", deserialize_with = "unhex")]
    pub id: SnapshotId,
    /// Sequence number in its session.
    pub seq: u32,
    /// Base or delta.
    pub kind: SnapshotKind,
    /// Wall-clock time, nanoseconds since 1970.
    pub time_ns: u64,
    /// What it cost.
    pub costs: Costs,
    /// What could not be saved, a sentence each.
    pub unsupported: Vec<String>,
    /// Length of its file.
    pub file_bytes: u64,
    /// TCP connections that were kept when the process was ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept: Option<KeptConnections>,
    /// What the user should know of how it was tracked, a sentence each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// TCP connections whose process was ended, and that wait to be brought back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptConnections {
    /// How many.
    pub count: u32,
    /// The process that has them, silent; when it ends, they are given up.
    pub holder: i32,
}

/// A rollback that was done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RolledBack {
    /// The snapshot that the process is back at.
    #[serde(serialize_with = "hex", deserialize_with = "unhex")]
    pub to: SnapshotId,
    /// Its sequence number.
    pub seq: u32,
    /// Pages written into the process.
    pub written: u64,
    /// Pages thrown away in the process, because the snapshot does not have them.
    pub discarded: u64,
    /// How long the process was stopped, in nanoseconds.
    pub stop_ns: u64,
    /// The process is in a job-control stop, as it was before.
    #[serde(default)]
    pub stopped: bool,
    /// What the user should know, a sentence each.
    pub notes: Vec<String>,
}

/// What a running watch reports as it happens.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(
    clippy::large_enum_variant,
    reason = "one at a time, by reference, and nearly always the large one"
)]
pub enum Progress {
    /// Watching begins.
    Attached {
        /// The process.
        pid: i32,
        /// Its name.
        comm: String,
        /// Its descendants that are watched with it.
        below: u64,
        /// The tracker in use.
        tracker: TrackerKind,
        /// Where the fault log comes from; `None` without one.
        faults: Option<String>,
        /// What is missing on this kernel or with these privileges, a sentence each.
        notes: Vec<String>,
    },
    /// A snapshot is stored.
    Taken(Taken),
    /// A snapshot of a tree is stored.
    TakenTree(TakenTree),
    /// A snapshot failed; its pages go into the next one.
    Failed {
        /// Why.
        why: String,
    },
    /// A snapshot begins later than planned, because storing the ones before takes longer than the interval.
    Late {
        /// By how much.
        by: Duration,
    },
    /// Snapshots are taken less often than asked, so that they do not cost the process more than allowed.
    Held {
        /// From the start of one to the start of the next, now.
        every: Duration,
    },
    /// The process was rolled back on someone's request.
    RolledBack(RolledBack),
    /// The tree was rolled back on someone's request.
    RolledBackTree(RolledBackTree),
    /// A rollback failed in the middle: no snapshots of the process are taken until another one has put it right.
    Mixed {
        /// What failed, and how the process was left.
        why: String,
    },
}

/// What a watch did, when it is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Snapshots stored.
    pub taken: u64,
    /// Snapshots that failed.
    pub failed: u64,
    /// The first one stored.
    pub first: Option<SnapshotId>,
    /// The last one stored.
    pub last: Option<SnapshotId>,
    /// Bytes of all files stored.
    pub bytes: u64,
    /// Median stop, in nanoseconds.
    pub stop_p50_ns: u64,
    /// 99th percentile of the stops, in nanoseconds.
    pub stop_p99_ns: u64,
    /// Longest stop, in nanoseconds.
    pub stop_max_ns: u64,
    /// How long it went on.
    pub lasted: Duration,
    /// What ended it.
    pub ended: Ended,
    /// The process was left in the middle of a rollback that failed, and no other one has put it right.
    pub mixed: bool,
}

impl Summary {
    /// The process stands still in the middle of a rollback: it has not ended since.
    pub fn is_left_mixed(&self) -> bool {
        self.mixed && !matches!(self.ended, Ended::TargetExited(_))
    }
}

/// What ended a watch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// As many snapshots as asked for.
    Count,
    /// The time asked for.
    Time,
    /// Ctrl-C or a request to end.
    Interrupted,
    /// SIGTERM, or SIGPWR: the power fails.
    Terminated,
    /// The process ended, with this exit code where it is known.
    TargetExited(Option<i32>),
}

/// Writes an id as 32 hex digits.
pub(super) fn hex<S: Serializer>(id: &SnapshotId, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(id)
}

/// Reads what [`hex`] wrote.
pub(super) fn unhex<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SnapshotId, D::Error> {
    let text = String::deserialize(deserializer)?;
    SnapshotId::from_hex(&text).ok_or_else(|| serde::de::Error::custom("an id has 32 hex digits"))
}

/// Writes an id that may be missing as 32 hex digits or null.
pub(super) fn hex_option<S: Serializer>(
    id: &Option<SnapshotId>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match id {
        Some(id) => serializer.collect_str(id),
        None => serializer.serialize_none(),
    }
}
