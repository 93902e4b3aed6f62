//! What the writer of a session and the one who removes from it agree on: what is being written builds on something that
//! stays, and names pages of something that stays.

use super::error::StoreError;
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How long a snapshot that is being written is waited for.
const PATIENCE: Duration = Duration::from_secs(10);

/// What the writer of a session and the one who removes from it agree on.
#[derive(Debug, Default)]
pub(super) struct Shared {
    agreed: Mutex<Agreed>,
    /// Nothing is named any more.
    settled: Condvar,
}

#[derive(Debug, Default)]
struct Agreed {
    /// What the writer builds on, now or next.
    head: Option<u32>,
    /// What a rollback is about to make the head.
    pinned: Option<u32>,
    /// Snapshots of which the one being written names pages that its parent may not have.
    named: BTreeSet<u32>,
    /// What is to be removed once nothing is named of it.
    leaving: BTreeSet<u32>,
    /// What is being removed.
    removing: BTreeSet<u32>,
    /// What has been removed, until the writer knows.
    gone: BTreeSet<u32>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Agreed> {
        // Plain data, changed in single steps: whole also after a panic.
        self.agreed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A snapshot is about to be written that builds on this one.
    pub(super) fn build_on(&self, parent: Option<u32>, dir: &Path) -> Result<(), StoreError> {
        let mut agreed = self.lock();
        if let Some(parent) = parent {
            if agreed.removing.contains(&parent) {
                return Err(StoreError::NotFound {
                    what: format!("parent @{parent} in {}: it was pruned", dir.display()),
                });
            }
            agreed.head = Some(parent);
        }
        Ok(())
    }

    /// This one may become the head soon. `false`: it is being removed.
    pub(super) fn pin(&self, seq: u32) -> bool {
        let mut agreed = self.lock();
        let stays = !agreed.removing.contains(&seq);
        if stays {
            agreed.pinned = Some(seq);
        }
        stays
    }

    /// What is built on, or may be soon.
    pub(super) fn held(&self) -> [Option<u32>; 2] {
        let agreed = self.lock();
        [agreed.head, agreed.pinned]
    }

    /// The snapshot that is being written is about to name pages of these: gives those that stay for it.
    pub(super) fn name(&self, seqs: &BTreeSet<u32>) -> BTreeSet<u32> {
        let mut agreed = self.lock();
        let go = [&agreed.leaving, &agreed.removing, &agreed.gone];
        let stays = |seq: &u32| go.iter().all(|gone| !gone.contains(seq));
        let named: BTreeSet<u32> = seqs.iter().copied().filter(stays).collect();
        agreed.named.extend(&named);
        named
    }

    /// What has been removed since this was asked last.
    pub(super) fn take_gone(&self) -> BTreeSet<u32> {
        std::mem::take(&mut self.lock().gone)
    }

    /// A snapshot is there, and the next one may build on it.
    pub(super) fn published(&self, seq: u32) {
        let mut agreed = self.lock();
        agreed.head = Some(seq);
        agreed.pinned = None;
        drop(agreed);
        self.written();
    }

    /// No snapshot is being written, whatever became of the last one.
    pub(super) fn written(&self) {
        self.lock().named.clear();
        self.settled.notify_all();
    }

    /// Has these go, which nothing is built on from here on. What a snapshot that is being written names of them is
    /// waited for.
    pub(super) fn remove(&self, gone: &BTreeSet<u32>) -> Result<(), StoreError> {
        let mut agreed = self.lock();
        agreed.leaving.clone_from(gone);
        let is_named = |agreed: &mut Agreed| !agreed.named.is_disjoint(gone);
        let waited = self.settled.wait_timeout_while(agreed, PATIENCE, is_named);
        let (mut agreed, _) = waited.unwrap_or_else(PoisonError::into_inner);
        agreed.leaving.clear();
        let mut held = [agreed.head, agreed.pinned].into_iter().flatten();
        if let Some(seq) = held.find(|seq| gone.contains(seq)) {
            return Err(in_use(seq));
        }
        if let Some(seq) = agreed.named.intersection(gone).next() {
            let why = format!(
                "the snapshot that is being written needs pages of @{seq}: try again when it is there"
            );
            return Err(StoreError::NotRemoved { why });
        }
        agreed.removing.clone_from(gone);
        Ok(())
    }

    /// Done or not: those that are gone are in no listing any more.
    pub(super) fn removed(&self, live: bool) {
        let mut agreed = self.lock();
        let removing = std::mem::take(&mut agreed.removing);
        if live {
            agreed.gone.extend(removing);
        }
    }
}

pub(super) fn in_use(seq: u32) -> StoreError {
    StoreError::NotRemoved {
        why: format!("snapshot @{seq} came into use just now: try again"),
    }
}
