//! `snap`: one snapshot of a running process.

use super::{Engine, Options, Result, SessionError, Taken, control};
use crate::store::{Store, StoreError};
use std::path::Path;

/// Takes one snapshot: through the ksnap that watches the process, or right here.
pub fn snap(dir: &Path, pid: i32, options: &Options) -> Result<Taken> {
    if let Some(mut watcher) = control::connect(dir, pid)? {
        let also = control::Also::of(options)?;
        return watcher.snap(options.then, also, &recipients(dir)?);
    }
    let store = Store::open_or_create(dir)?;
    let mut engine = Engine::attach(&store, pid, options)?;
    engine.snapshot_then(options.then)?;
    let taken = engine.settle().unwrap_or_else(|| {
        Err(SessionError::Control {
            why: "took no snapshot".into(),
        })
    });
    Ok(Taken {
        notes: engine.notes(),
        ..taken?
    })
}

/// The keys for which this process seals. Whoever watches a process has made its store.
pub(super) fn recipients(dir: &Path) -> Result<Vec<String>> {
    match Store::open(dir) {
        Err(StoreError::NoStore { .. }) => Ok(Vec::new()),
        opened => Ok(opened?.recipients()),
    }
}
