//! Removes snapshots of a session, and nothing that others need: what they leave goes into a pack first.
//!
//! In this order: write the pack and make it durable; from then on the snapshots that it stands for are gone,
//! whether their files are still there or not; then remove those files. A crash leaves all snapshots, or the pack
//! and some files that nobody needs, which the next removal takes away.
//!
//! Only one process has the right to remove from a session: the one that holds its lock. A watcher removes on a
//! thread of its own; [`Shared`] is what the two threads agree on.

use super::agreed::{Shared, in_use};
use super::chain::SessionFiles;
use super::directory::Store;
use super::durability::{durable_up_to, recover};
use super::error::StoreError;
use super::files::LockGuard;
use super::headers::Headers;
use super::meta::SnapshotMeta;
use super::needs::{Fate, Needs};
use super::pack::PackWriter;
use super::retention::{Rules, removable};
use super::session::{SessionInfo, lock, now_ns};
use crate::image::{Ghost, IndexEntry, SessionId, runs_of};
use crate::model::SnapshotId;
use std::collections::{BTreeSet, HashSet};
use std::ops::Bound;
use std::sync::Arc;

/// The right to remove snapshots of a session.
#[derive(Clone, Debug)]
pub struct Pruner {
    pub(super) store: Store,
    pub(super) session: SessionId,
    shared: Arc<Shared>,
    /// The session is being written: its newest snapshot is what the next one builds on.
    live: bool,
    _lock: Arc<LockGuard>,
}

/// What a removal would do.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Snapshots that go, ascending by sequence number.
    pub removed: Vec<SnapshotMeta>,
    /// Snapshots that stay.
    pub kept: u64,
    /// Bytes of the session's files now.
    pub bytes_before: u64,
    /// Bytes of them afterwards, but for a few of each file's own.
    pub bytes_after: u64,
    /// Bytes of the snapshots that go, and of the pack.
    replaced_bytes: u64,
    /// Nothing stays: the whole session goes.
    pub whole_session: bool,
    /// The newest snapshot that was looked at.
    newest: u32,
    needs: Needs,
}

/// What a removal did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pruned {
    /// Snapshots removed.
    pub snapshots: u64,
    /// Pages that others need of them, merged.
    pub merged_pages: u64,
    /// Bytes freed; negative where the pack is larger than what it replaces.
    pub freed: i64,
}

impl Store {
    /// The right to remove snapshots of a session that nobody writes.
    pub fn pruner(&self, session: SessionId) -> Result<Pruner, StoreError> {
        let dir = self.session_path(session);
        let lock = lock(self, &dir)?;
        recover(self, session)?;
        // Nobody writes: what was left by one that was killed keeps others' files alive.
        self.remove_temps(session)?;
        self.remove_orphans(&dir, &self.session_files(session)?.listing())?;
        Ok(Pruner::new(
            self,
            session,
            &Arc::default(),
            &Arc::new(lock),
            false,
        ))
    }
}

impl Pruner {
    pub(super) fn new(
        store: &Store,
        session: SessionId,
        shared: &Arc<Shared>,
        lock: &Arc<LockGuard>,
        live: bool,
    ) -> Self {
        Self {
            // Open files of its own: merging must not push out what a reader has open.
            store: store.apart(),
            session,
            shared: Arc::clone(shared),
            live,
            _lock: Arc::clone(lock),
        }
    }

    /// The session.
    pub fn session(&self) -> SessionId {
        self.session
    }

    /// What the session says of its process.
    pub fn info(&self) -> Result<SessionInfo, StoreError> {
        self.store.session_info(self.session)
    }

    /// The snapshots of the session, ascending by sequence number.
    pub fn snapshots(&self) -> Result<Vec<SnapshotMeta>, StoreError> {
        let mut list = self.store.list_session(self.session)?;
        list.sort_by_key(|meta| meta.seq);
        Ok(list)
    }

    /// The session's share of its pack, and of the files that it borrows from; 0 without one.
    pub fn pack_bytes(&self) -> Result<u64, StoreError> {
        let listing = self.store.session_files(self.session)?.listing();
        Ok(self.store.pack_bytes(self.session, &listing))
    }

    /// What each of these snapshots takes: its share of its file, which others may borrow from, and of those that it
    /// borrows from.
    pub fn bytes_of(&self, list: &[SnapshotMeta]) -> Result<Vec<u64>, StoreError> {
        let listing = self.store.session_files(self.session)?.listing();
        let borrowed = |seq| self.store.loan_bytes(self.session, seq, &listing);
        let own = |meta| self.store.own_bytes(meta);
        let bytes = list.iter().map(|meta| own(meta) + borrowed(meta.seq));
        Ok(bytes.collect())
    }

    /// This snapshot may become the head soon, by a rollback: it stays until another one is published.
    pub fn pin(&self, id: SnapshotId) -> Result<(), StoreError> {
        let files = self.store.session_files(self.session)?;
        let listing = files.listing();
        let found = listing.by_seq.iter().find(|(_, other)| **other == id);
        let seq = found
            .map(|(seq, _)| *seq)
            .ok_or_else(|| StoreError::NotFound {
                what: format!("snapshot {id}"),
            })?;
        match self.shared.pin(seq) {
            true => Ok(()),
            false => Err(StoreError::NotFound {
                what: format!("snapshot {id}: it is being pruned"),
            }),
        }
    }

    /// Snapshots that stay whatever the rules say: tagged ones, those that a tree needs, what is being built on, while
    /// the session is being written the newest, and where that may not survive a power failure, the newest that will.
    pub fn protected(&self, list: &[SnapshotMeta]) -> Result<HashSet<SnapshotId>, StoreError> {
        let mut ids = self.store.tagged_beside(list)?;
        ids.extend(self.store.in_trees()?);
        let dir = self.store.session_path(self.session);
        if let Some(durable) = durable_up_to(&*self.store.files, &dir)? {
            let newest = list.iter().rev().find(|meta| meta.seq <= durable);
            ids.extend(newest.map(|meta| meta.id));
        }
        let held = self.shared.held();
        if self.live {
            ids.extend(list.last().map(|meta| meta.id));
        }
        ids.extend(
            list.iter()
                .filter(|meta| held.contains(&Some(meta.seq)))
                .map(|meta| meta.id),
        );
        Ok(ids)
    }

    /// What the rules remove. The size rule counts this session alone.
    pub fn plan(&self, rules: &Rules) -> Result<Plan, StoreError> {
        let list = self.snapshots()?;
        let protected = self.protected(&list)?;
        let by_rule = removable(&list, rules, now_ns(), &protected);
        let mut gone: BTreeSet<u32> = by_rule.iter().map(|meta| meta.seq).collect();
        let plan = self.plan_removal(&gone)?;
        let Some(most) = rules.max_size.filter(|most| plan.bytes_after > *most) else {
            return Ok(plan);
        };
        // The oldest go until it fits: with more of them gone, less is left.
        let newest = list.last().map(|meta| meta.seq);
        let rest: Vec<u32> = list
            .iter()
            .filter(|meta| !gone.contains(&meta.seq) && !protected.contains(&meta.id))
            .map(|meta| meta.seq)
            .filter(|seq| Some(*seq) != newest)
            .collect();
        let with = |count: usize| {
            let mut all = gone.clone();
            all.extend(&rest[..count]);
            self.plan_removal(&all)
        };
        let (mut low, mut high) = (0, rest.len());
        while low < high {
            let middle = (low + high) / 2;
            match with(middle)?.bytes_after <= most {
                true => high = middle,
                false => low = middle + 1,
            }
        }
        gone.extend(&rest[..low]);
        self.plan_removal(&gone)
    }

    /// What the removal of these snapshots would do.
    pub fn plan_removal(&self, gone: &BTreeSet<u32>) -> Result<Plan, StoreError> {
        // In this order: what is published in between is newer than all of the list, and is looked at before
        // anything is removed.
        let list = self.snapshots()?;
        let files = self.store.session_files(self.session)?;
        let listing = files.listing();
        if let Some((path, what)) = &listing.pack_damage {
            return Err(StoreError::corrupt(path, "pack", what.clone()));
        }
        let readable: BTreeSet<u32> = list.iter().map(|meta| meta.seq).collect();
        let newest = readable.last().copied().unwrap_or(0);
        let mut known = listing.by_seq.range(..=newest);
        if let Some((seq, _)) = known.find(|(seq, _)| !readable.contains(seq)) {
            // What it needs of the others is not known.
            return Err(StoreError::corrupt(
                &files.path(*seq)?,
                "header",
                "nothing is removed from a session with a damaged snapshot: remove that file first",
            ));
        }
        let (removed, kept): (Vec<_>, Vec<_>) =
            list.into_iter().partition(|meta| gone.contains(&meta.seq));
        let pack_bytes = self.store.pack_bytes(self.session, &listing);
        let borrowed =
            |meta: &SnapshotMeta| self.store.loan_bytes(self.session, meta.seq, &listing);
        let bytes = |meta: &SnapshotMeta| self.store.own_bytes(meta) + borrowed(meta);
        let sum = |list: &[SnapshotMeta]| list.iter().map(bytes).sum::<u64>();
        let mut plan = Plan {
            bytes_before: sum(&removed) + sum(&kept) + pack_bytes,
            bytes_after: sum(&kept) + pack_bytes,
            replaced_bytes: sum(&removed) + pack_bytes,
            whole_session: kept.is_empty(),
            kept: kept.len() as u64,
            needs: Needs::default(),
            newest,
            removed,
        };
        if plan.removed.is_empty() || plan.whole_session {
            plan.bytes_after = if plan.whole_session {
                0
            } else {
                plan.bytes_before
            };
            return Ok(plan);
        }
        let fate = |seq: u32| match listing.by_seq.contains_key(&seq) {
            _ if gone.contains(&seq) || listing.is_gone(seq) => Fate::Goes,
            true => Fate::Stays,
            false => Fate::Missing,
        };
        plan.needs = Needs::find(&files, &kept, &fate)?;
        plan.bytes_after = sum(&kept) + plan.needs.bytes;
        Ok(plan)
    }

    /// Does what was planned. What has come to be built on since then makes it fail, with everything as before.
    /// Waits ten seconds at most for a snapshot that is being written and names pages of what goes.
    pub fn carry_out(&self, plan: &Plan) -> Result<Pruned, StoreError> {
        if plan.removed.is_empty() {
            let files = self.store.session_files(self.session)?;
            return self.sweep(&files).map(|()| Pruned::default());
        }
        let gone: BTreeSet<u32> = plan.removed.iter().map(|meta| meta.seq).collect();
        self.shared.remove(&gone)?;
        // From here on nothing new is begun on them, and none of their pages is named.
        let done = self.remove(plan, &gone);
        self.shared.removed(self.live);
        done
    }

    /// Removes these, which were to go by a plan.
    fn remove(&self, plan: &Plan, gone: &BTreeSet<u32>) -> Result<Pruned, StoreError> {
        let files = self.store.session_files(self.session)?;
        check_newer(&files, plan, gone)?;
        if !is_named(&files, plan.newest, gone)? {
            return self.replace(&files, plan, gone);
        }
        // What others need of them is more than was known.
        let plan = self.plan_removal(gone)?;
        self.replace(&files, &plan, gone)
    }

    fn replace(
        &self,
        files: &SessionFiles,
        plan: &Plan,
        gone: &BTreeSet<u32>,
    ) -> Result<Pruned, StoreError> {
        let written = match plan.whole_session {
            true => None,
            false => Some(self.write_pack(files, plan, gone)?),
        };
        let guard = self.store.lock_tags()?;
        let mut needed = self.store.tagged()?;
        needed.extend(self.store.in_trees()?);
        if let Some(meta) = plan.removed.iter().find(|meta| needed.contains(&meta.id)) {
            return Err(in_use(meta.seq));
        }
        let Some((writer, absorbed, ghosts)) = written else {
            self.store.remove_session(self.session)?;
            self.store.sweep_trees();
            self.store.remove_flat(&plan.removed);
            return Ok(Pruned {
                snapshots: plan.removed.len() as u64,
                merged_pages: 0,
                freed: plan.bytes_before as i64,
            });
        };
        let bytes = writer.publish(&absorbed, &ghosts)?;
        self.store.sweep_trees();
        drop(guard);
        self.store.remove_flat(&plan.removed);
        // They are gone from here on. What fails below is swept by the next one.
        let fresh = self.store.session_files(self.session)?;
        if let Err(error) = self.sweep(&fresh) {
            tracing::warn!("files of removed snapshots stay until the next prune: {error}");
        }
        let listed = fresh.listing().by_seq.len();
        if Headers::read(&*fresh.files, &fresh.dir).is_stale(listed)
            && let Err(error) = self.store.rebuild_headers(self.session)
        {
            tracing::debug!("list of headers: {error}");
        }
        Ok(Pruned {
            snapshots: plan.removed.len() as u64,
            merged_pages: plan.needs.places.len() as u64,
            freed: plan.replaced_bytes as i64 - bytes as i64,
        })
    }

    /// Writes the pages that others need under their old names.
    #[allow(
        clippy::type_complexity,
        reason = "what the pack's publication takes, used once"
    )]
    fn write_pack<'a>(
        &'a self,
        files: &'a SessionFiles,
        plan: &Plan,
        gone: &BTreeSet<u32>,
    ) -> Result<(PackWriter<'a>, Vec<(u32, u32)>, Vec<Ghost>), StoreError> {
        let listing = files.listing();
        let generation = listing.pack.as_ref().map_or(0, |p| p.header.generation);
        let generation = generation
            .checked_add(1)
            .ok_or_else(|| StoreError::NotRemoved {
                why: "the session has been merged too often: begin another".into(),
            })?;
        let mut writer = PackWriter::begin(&files.files, &files.dir, self.session, generation)?;
        writer.borrow_from(&plan.needs.borrowed);
        writer.add_all(files, &plan.needs.places)?;
        let mut absorbed: Vec<(u32, u32)> = gone.iter().map(|seq| (*seq, *seq)).collect();
        if let Some(pack) = &listing.pack {
            absorbed.extend(pack.absorbed());
        }
        let ghosts = plan.needs.ghosts.iter().map(|(seq, table)| Ghost {
            seq: *seq,
            runs: runs_of(table),
        });
        Ok((writer, merge(absorbed), ghosts.collect()))
    }
}

/// Whether snapshots that are newer than this one name pages of these.
fn is_named(files: &SessionFiles, newest: u32, gone: &BTreeSet<u32>) -> Result<bool, StoreError> {
    let listing = files.listing();
    let newer = (Bound::Excluded(newest), Bound::Unbounded);
    for (seq, _) in listing.by_seq.range(newer) {
        let entries = files.open(*seq)?.index()?;
        let mut named = entries.iter().filter_map(IndexEntry::target);
        if named.any(|place| gone.contains(&place.seq.get())) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Snapshots that were taken since the plan must not build on what goes.
fn check_newer(files: &SessionFiles, plan: &Plan, gone: &BTreeSet<u32>) -> Result<(), StoreError> {
    let listing = files.listing();
    for (seq, _) in listing
        .by_seq
        .range((Bound::Excluded(plan.newest), Bound::Unbounded))
    {
        let parent = files.open(*seq)?.header.parent_seq;
        if gone.contains(&parent) {
            return Err(in_use(parent));
        }
    }
    match plan.whole_session && listing.by_seq.keys().any(|seq| *seq > plan.newest) {
        true => Err(in_use(plan.newest)),
        false => Ok(()),
    }
}

/// Ranges, first and last number, as few as it takes, ascending. Not number by number: a file may say any range.
pub(super) fn merge(mut ranges: Vec<(u32, u32)>) -> Vec<(u32, u32)> {
    ranges.sort_unstable();
    let mut merged: Vec<(u32, u32)> = Vec::new();
    for (first, last) in ranges {
        match merged.last_mut() {
            Some(range) if first <= range.1.saturating_add(1) => range.1 = range.1.max(last),
            _ => merged.push((first, last)),
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::merge;

    #[test]
    fn ranges_that_touch_become_one() {
        assert_eq!(merge(vec![]), []);
        assert_eq!(merge(vec![(7, 7), (1, 3), (4, 4)]), [(1, 4), (7, 7)]);
        assert_eq!(merge(vec![(2, 2), (1, 9), (5, 6)]), [(1, 9)]);
        assert_eq!(
            merge(vec![(u32::MAX, u32::MAX), (1, u32::MAX), (9, 9)]),
            [(1, u32::MAX)]
        );
    }
}
