//! What a store takes, and how quickly it takes more.

use super::Result;
use super::flush::{FlushPlan, plan_flush, refuse_same};
use super::ram::lies_in_memory;
use super::sealing::left_out;
use crate::store::{Speed, Store};
use crate::sys::room;
use serde::Serialize;
use std::path::{Path, PathBuf};

/// A store as a whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct StoreDescription {
    /// Its folder.
    pub dir: PathBuf,
    /// It lies in memory.
    pub in_memory: bool,
    /// Sessions in it.
    pub sessions: u64,
    /// Snapshots in it.
    pub snapshots: u64,
    /// Bytes of all of them.
    pub bytes: u64,
    /// Bytes of flat images beside them: a cache, at most 8 GiB.
    pub flat_bytes: u64,
    /// Bytes of pages beside them that transfers have left: at most 16 GiB, for seven days.
    pub received_bytes: u64,
    /// Bytes that are left on its file system.
    pub free: u64,
    /// Bytes that its file system has in all.
    pub total: u64,
    /// How many bytes a second become durable: in the store on the disk, measured now.
    pub bytes_per_second: Option<u64>,
    /// For a store in memory: what a flush would write.
    pub flush: Option<FlushPlan>,
    /// What is left out of the numbers, a sentence each.
    pub notes: Vec<String>,
}

/// What a store takes, and how quickly it takes more. `disk`: where a flush of one in memory would go.
pub fn describe_store(dir: &Path, disk: &Path) -> Result<StoreDescription> {
    let store = Store::open(dir)?;
    let in_memory = lies_in_memory(dir);
    let measured = |dir| {
        let speed = Speed::measure(dir).ok();
        speed.map(|speed| speed.bytes_per_second)
    };
    let (mut sessions, mut bytes) = (0, 0);
    for (id, _) in store.sessions()? {
        sessions += 1;
        bytes += store.session_bytes(id)?;
    }
    let flush = match in_memory && refuse_same(dir, disk).is_ok() {
        true => Some(plan_flush(dir, disk, true)?),
        false => None,
    };
    let bytes_per_second = match &flush {
        // One that can be read only has no speed.
        Some(plan) if plan.snapshots > 0 => plan.bytes_per_second,
        Some(_) => measured(disk),
        None => measured(dir),
    };
    let room = room(dir)?;
    Ok(StoreDescription {
        dir: dir.to_owned(),
        in_memory,
        sessions,
        snapshots: store.list()?.len() as u64,
        bytes,
        flat_bytes: store.flat_bytes(),
        received_bytes: store.received_bytes(),
        free: room.free,
        total: room.total,
        bytes_per_second,
        flush,
        notes: left_out(&store)?.into_iter().collect(),
    })
}
