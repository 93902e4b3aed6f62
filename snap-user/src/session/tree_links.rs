//! The ways to the watcher of a tree from each of its processes.

use super::control::socket_path;
use crate::store::Store;
use std::collections::BTreeSet;
use std::path::PathBuf;

/// Links from where the socket of each process would lie to that of the root. Taken away on drop; those that a watcher
/// leaves behind that was killed lead nowhere, as its socket does.
pub(super) struct Links {
    store: PathBuf,
    root: i32,
    pids: BTreeSet<i32>,
}

impl Links {
    pub(super) fn new(store: &Store, root: i32) -> Self {
        Self {
            store: store.dir().to_owned(),
            root,
            pids: BTreeSet::new(),
        }
    }

    /// These are its processes now, the root among them.
    pub(super) fn set(&mut self, pids: impl Iterator<Item = i32>) {
        let mut now: BTreeSet<i32> = pids.collect();
        now.remove(&self.root);
        for gone in self.pids.difference(&now) {
            let _ = std::fs::remove_file(socket_path(&self.store, *gone));
        }
        for new in now.difference(&self.pids) {
            let (link, target) = (
                socket_path(&self.store, *new),
                format!("{}.sock", self.root),
            );
            // Left by a watcher that was killed; one that lives holds the session's lock.
            let _ = std::fs::remove_file(&link);
            if let Err(e) = std::os::unix::fs::symlink(target, &link) {
                tracing::warn!("no way to the watcher from process {new}: {e}");
            }
        }
        self.pids = now;
    }
}

impl Drop for Links {
    fn drop(&mut self) {
        for pid in &self.pids {
            let _ = std::fs::remove_file(socket_path(&self.store, *pid));
        }
    }
}
