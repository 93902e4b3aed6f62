//! Merges a stretch of snapshots into one.

use super::prune::{Pruning, remove_from};
use super::{Result, SessionError};
use crate::store::Store;
use std::collections::HashMap;
use std::path::Path;

/// Removes the snapshots between two, `A..B`, so that B follows A with all that changed between them; or those
/// before B, `..B`, so that B stands on a new base. Tagged ones are not removed: that is an error.
pub fn squash(dir: &Path, range: &str, dry_run: bool) -> Result<Pruning> {
    let usage = |why: String| SessionError::Usage(why);
    let Some((first, last)) = range.split_once("..") else {
        return Err(usage(format!(
            "'{range}' is no stretch of snapshots: A..B is what lies between two, ..B is all before one"
        )));
    };
    let store = Store::open(dir)?;
    let last = store.resolve(last, None)?;
    let first = match first {
        "" => None,
        first => Some(store.resolve(first, None)?),
    };
    let list = store.list()?;
    let by_id: HashMap<_, _> = list.iter().map(|meta| (meta.id, meta)).collect();
    let end = by_id.get(&last).ok_or_else(|| {
        usage(format!(
            "snapshot {} cannot be read: see `ksnap verify`",
            last.short()
        ))
    })?;
    let mut between = Vec::new();
    let mut at = end.parent;
    while at != first {
        let Some(meta) = at.and_then(|id| by_id.get(&id)) else {
            // The beginning of what is still there.
            match first {
                None => break,
                Some(first) => {
                    return Err(usage(format!(
                        "{} does not follow {}, or what lay between them was pruned: squash needs a snapshot and one of its ancestors",
                        last.short(),
                        first.short()
                    )));
                }
            }
        };
        between.push(meta.id);
        at = meta.parent;
    }
    let mut told = Pruning {
        dry_run,
        ..Pruning::default()
    };
    if !between.is_empty() {
        told.add(remove_from(&store, end.session, &between, dry_run)?);
    }
    Ok(told)
}
