//! Names for snapshots.

use super::Result;
use super::types::hex;
use crate::model::SnapshotId;
use crate::store::{SnapshotMeta, Store, Tag};
use serde::Serialize;
use std::path::Path;

/// A name and what it names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TagEntry {
    /// The name.
    pub name: String,
    /// The snapshot.
    #[serde(serialize_with = "hex")]
    pub id: SnapshotId,
    /// When the name was given, nanoseconds since 1970.
    pub created_ns: u64,
    /// The snapshot's sequence number; `null` when its file is damaged, or sealed and the key is missing.
    pub seq: Option<u32>,
    /// Its process.
    pub pid: Option<i32>,
    /// The process's name.
    pub comm: Option<String>,
    /// When it was taken, nanoseconds since 1970.
    pub time_ns: Option<u64>,
}

fn entry(tag: Tag, meta: Option<&SnapshotMeta>) -> TagEntry {
    TagEntry {
        name: tag.name,
        id: tag.id,
        created_ns: tag.created_ns,
        seq: meta.map(|meta| meta.seq),
        pid: meta.map(|meta| meta.pid),
        comm: meta.map(|meta| meta.comm.clone()),
        time_ns: meta.map(|meta| meta.time_ns),
    }
}

fn described(store: &Store, tags: Vec<Tag>) -> Result<Vec<TagEntry>> {
    let list = store.list()?;
    let find = |tag: &Tag| list.iter().find(|meta| meta.id == tag.id);
    Ok(tags
        .into_iter()
        .map(|tag| {
            let meta = find(&tag);
            entry(tag, meta)
        })
        .collect())
}

/// All names.
pub fn tags(dir: &Path) -> Result<Vec<TagEntry>> {
    let store = Store::open(dir)?;
    let tags = store.tags()?;
    described(&store, tags)
}

/// Names the snapshot that a reference means; with `replace` also when the name is another one's.
pub fn set_tag(dir: &Path, name: &str, reference: &str, replace: bool) -> Result<TagEntry> {
    let store = Store::open(dir)?;
    let id = store.resolve(reference, None)?;
    let tag = store.set_tag(name, id, replace)?;
    Ok(described(&store, vec![tag])?.remove(0))
}

/// Takes a name away.
pub fn delete_tag(dir: &Path, name: &str) -> Result<TagEntry> {
    let store = Store::open(dir)?;
    let tag = store.delete_tag(name)?;
    Ok(described(&store, vec![tag])?.remove(0))
}
