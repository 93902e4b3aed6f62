//! `snap`: one snapshot of a running process.

use super::{Engine, Options, Result, SessionError, Taken, control};
use crate::store::Store;
use std::path::Path;

/// Takes one snapshot: through the ksnap that watches the process, or right here.
pub fn snap(dir: &Path, pid: i32, options: &Options) -> Result<Taken> {
    if let Some(mut watcher) = control::connect(dir, pid)? {
        return watcher.snap(options.then, control::Also::of(options)?);
    }
    let store = Store::open_or_create(dir)?;
    let mut engine = Engine::attach(&store, pid, options)?;
    engine.snapshot_then(options.then)?;
    engine.settle().unwrap_or_else(|| {
        Err(SessionError::Control {
            why: "took no snapshot".into(),
        })
    })
}
