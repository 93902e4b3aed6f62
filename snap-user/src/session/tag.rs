//! Names for snapshots.

use super::Result;
use super::types::hex_option;
use crate::model::SnapshotId;
use crate::store::{SnapshotMeta, Store, Tag};
use serde::Serialize;
use std::path::Path;

/// A name and what it names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TagEntry {
    /// The name.
    pub name: String,
    /// The snapshot; `null` when the tag itself is damaged.
    #[serde(serialize_with = "hex_option")]
    pub id: Option<SnapshotId>,
    /// When the name was given, nanoseconds since 1970; `null` when the tag itself is damaged.
    pub created_ns: Option<u64>,
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
        id: Some(tag.id),
        created_ns: Some(tag.created_ns),
        seq: meta.map(|meta| meta.seq),
        pid: meta.map(|meta| meta.pid),
        comm: meta.map(|meta| meta.comm.clone()),
        time_ns: meta.map(|meta| meta.time_ns),
    }
}

/// One of which nothing but the name is known.
fn damaged(name: String) -> TagEntry {
    TagEntry {
        name,
        id: None,
        created_ns: None,
        seq: None,
        pid: None,
        comm: None,
        time_ns: None,
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

/// All names, also those of damaged tags, of which there is a warning.
pub fn tags(dir: &Path) -> Result<Vec<TagEntry>> {
    let store = Store::open(dir)?;
    let mut tags = described(&store, store.tags()?)?;
    let lost = store.damaged_tags()?;
    tags.extend(lost.into_iter().map(|(name, _)| damaged(name)));
    tags.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(tags)
}

/// Names the snapshot that a reference means; with `replace` also when the name is another one's.
pub fn set_tag(dir: &Path, name: &str, reference: &str, replace: bool) -> Result<TagEntry> {
    let store = Store::open(dir)?;
    let id = store.resolve(reference, None)?;
    let tag = store.set_tag(name, id, replace)?;
    Ok(described(&store, vec![tag])?.remove(0))
}

/// Takes a name away, also one of a damaged tag.
pub fn delete_tag(dir: &Path, name: &str) -> Result<TagEntry> {
    let store = Store::open(dir)?;
    match store.delete_tag(name)? {
        Some(tag) => Ok(described(&store, vec![tag])?.remove(0)),
        None => Ok(damaged(name.to_owned())),
    }
}
