//! Names of snapshots and what they cost.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Name of a snapshot: the first 16 bytes of the BLAKE3 hash of what makes it unique (see `docs/format.md`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SnapshotId(pub [u8; 16]);

impl SnapshotId {
    /// The 12 hex digits that listings print.
    pub fn short(&self) -> String {
        self.to_string()[..12].to_owned()
    }

    /// Parses 32 hex digits.
    pub fn from_hex(text: &str) -> Option<Self> {
        if text.len() != 32 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return None;
        }
        let mut bytes = [0; 16];
        for (byte, digits) in bytes.iter_mut().zip(text.as_bytes().chunks(2)) {
            *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
        }
        Some(Self(bytes))
    }
}

impl fmt::Display for SnapshotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl fmt::Debug for SnapshotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.short())
    }
}

/// Whether a snapshot stands alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SnapshotKind {
    /// Holds every page.
    Base,
    /// Holds the pages that changed since its parent.
    Delta,
}

/// What a snapshot cost.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Costs {
    /// Time by phase.
    pub phases: Phases,
    /// Stop of the longest-stopped thread as the scheduler saw it, in nanoseconds; needs the probes.
    pub stop_seen_ns: Option<u64>,
    /// Pages by what became of them.
    pub pages: PageCounts,
    /// Bytes of pages taken up by the encoder.
    pub bytes_in: u64,
    /// Bytes of pages written.
    pub bytes_out: u64,
    /// Events lost because the ring buffer was full, since the stop before. A full scan made up for them.
    pub ring_drops: u64,
    /// Write faults that tracking caused since the snapshot before.
    pub faults: u64,
    /// The tracker's name.
    pub tracker: String,
    /// The stop scanned everything rather than what the fault log named.
    pub full_scan: bool,
    /// The target's CPU time since the snapshot before, in nanoseconds.
    pub target_cpu_ns: u64,
}

/// Time by phase, in nanoseconds. Freeze, scan, copy, state and thaw make up the stop.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "named after the phases")]
pub struct Phases {
    /// Copying while the target runs, ahead of the stop and behind it.
    pub precopy_ns: u64,
    /// Short stops while copying ahead, in which pages are protected again: all of them together.
    pub pauses_ns: u64,
    /// The longest of them.
    pub longest_pause_ns: u64,
    pub freeze_ns: u64,
    pub scan_ns: u64,
    pub copy_ns: u64,
    pub state_ns: u64,
    pub thaw_ns: u64,
    /// From the first freeze request to the last thaw.
    pub stop_ns: u64,
    pub encode_ns: u64,
    pub write_ns: u64,
    pub sync_ns: u64,
}

/// Pages by what became of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PageCounts {
    /// Resident in the target.
    pub resident: u64,
    /// Looked at by scans.
    pub scanned: u64,
    /// Reported dirty by the tracker.
    pub dirty: u64,
    /// Copied inside the stop.
    pub copied_stopped: u64,
    /// Copied in all, the stop included.
    pub copied: u64,
    /// Whose content really differs.
    pub changed: u64,
}
