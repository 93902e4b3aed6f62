//! The ways to the watcher of a tree from each of its processes.

use super::control::{connect, socket_path};
use crate::store::Store;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Links from where the socket of each process would lie to that of the root. Taken away on drop, and by the next watcher of
/// the root where this one was killed.
pub(super) struct Links {
    store: PathBuf,
    root: i32,
    pids: BTreeSet<i32>,
}

impl Links {
    /// Takes away what an earlier watcher of this root has left.
    pub(super) fn new(store: &Store, root: i32) -> Self {
        let links = Self {
            store: store.dir().to_owned(),
            root,
            pids: BTreeSet::new(),
        };
        let entries = std::fs::read_dir(&links.store).into_iter().flatten();
        for entry in entries.flatten() {
            links.remove(&entry.path());
        }
        links
    }

    fn target(&self) -> String {
        format!("{}.sock", self.root)
    }

    /// Removes a link to the root's socket, and nothing else.
    fn remove(&self, path: &Path) {
        if std::fs::read_link(path).is_ok_and(|to| to == Path::new(&self.target())) {
            let _ = std::fs::remove_file(path);
        }
    }

    /// These are its processes now, the root among them.
    pub(super) fn set(&mut self, pids: impl Iterator<Item = i32>) {
        let mut now: BTreeSet<i32> = pids.collect();
        now.remove(&self.root);
        for gone in self.pids.difference(&now) {
            self.remove(&socket_path(&self.store, *gone));
        }
        let new: Vec<i32> = now.difference(&self.pids).copied().collect();
        for new in &new {
            // One that lives has a session of its own, sealed for others.
            if matches!(connect(&self.store, *new), Ok(Some(_))) {
                now.remove(new);
                continue;
            }
            let link = socket_path(&self.store, *new);
            // Left by a watcher that was killed.
            let _ = std::fs::remove_file(&link);
            if let Err(e) = std::os::unix::fs::symlink(self.target(), &link) {
                tracing::warn!("no way to the watcher from process {new}: {e}");
            }
        }
        self.pids = now;
    }
}

impl Drop for Links {
    fn drop(&mut self) {
        for pid in &self.pids {
            self.remove(&socket_path(&self.store, *pid));
        }
    }
}
