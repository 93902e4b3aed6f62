//! `snap --tree`: a process and all of its descendants, captured at one moment.
//!
//! Each of them is an ordinary snapshot in a session of its own. What makes them a tree is a record that is published
//! when all of them are stored; whatever happens before leaves single snapshots, and no tree.

use super::control::{self, Also};
use super::events::LazyProbes;
use super::snap::recipients;
use super::tree_engine::TreeEngine;
use super::types::{hex, unhex};
use super::{Engine, KeptConnections, Options, Result, Taken};
use crate::model::{Costs, Phases, SnapshotId};
use crate::store::Store;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// A tree that was captured and stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TakenTree {
    /// The snapshot of its root, by which the tree is named.
    #[serde(serialize_with = "hex", deserialize_with = "unhex")]
    pub id: SnapshotId,
    /// The processes, parents before their children.
    pub processes: Vec<TakenProcess>,
    /// Children that had ended and were not waited for.
    pub zombies: usize,
    /// How long all of them were stopped, in nanoseconds.
    pub stop_ns: u64,
    /// What could not be saved, a sentence each.
    pub unsupported: Vec<String>,
    /// Who keeps its connections, if that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept: Option<KeptConnections>,
    /// What the user should know of how it was tracked, a sentence each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// A process of a tree that was captured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TakenProcess {
    /// The process.
    pub pid: i32,
    /// Its parent among them.
    pub parent: Option<i32>,
    /// Its name.
    pub comm: String,
    /// Its snapshot.
    #[serde(flatten)]
    pub taken: Taken,
}

impl TakenTree {
    /// Bytes of all files stored for it.
    pub fn file_bytes(&self) -> u64 {
        self.processes.iter().map(|one| one.taken.file_bytes).sum()
    }

    /// Pages of all processes that are not what they were.
    pub fn changed(&self) -> u64 {
        let changed = |one: &TakenProcess| one.taken.costs.pages.changed;
        self.processes.iter().map(changed).sum()
    }

    /// What it cost the processes together: they stood for as long as the tree did.
    pub(super) fn costs(&self) -> Costs {
        let all = || self.processes.iter().map(|one| &one.taken.costs);
        Costs {
            phases: Phases {
                stop_ns: self.stop_ns,
                pauses_ns: all().map(|costs| costs.phases.pauses_ns).sum(),
                ..Phases::default()
            },
            faults: all().map(|costs| costs.faults).sum(),
            ..Costs::default()
        }
    }
}

impl TreeEngine<'_> {
    /// What the user should know of how its processes are tracked, a sentence each.
    pub(super) fn notes(&self) -> Vec<String> {
        let mut notes: Vec<String> = self.engines.iter().flat_map(Engine::notes).collect();
        notes.sort();
        notes.dedup();
        notes
    }
}

/// Captures a process and all of its descendants at one moment: through the ksnap that watches them as a tree, or right
/// here.
///
/// # Errors
/// What concerns one of them concerns all: nothing but single snapshots is left in the store then, and all of them
/// run on.
pub fn snap_tree(dir: &Path, pid: i32, options: &Options) -> Result<TakenTree> {
    if let Some(mut watcher) = control::connect(dir, pid)? {
        let also = Also::of(options)?;
        return watcher.snap_tree(options.then, also, &recipients(dir)?);
    }
    let store = Store::open_or_create(dir)?;
    let probes = LazyProbes::new(options.probes);
    let mut tree = TreeEngine::attach(&store, pid, options, &probes)?;
    let mut taken = tree.snapshot_and_settle(options.then)?;
    taken.notes = tree.notes();
    Ok(taken)
}
