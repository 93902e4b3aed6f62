//! Removes snapshots from a bucket by rule, and chunks that no snapshot needs any more. docs/bucket.md says why nothing
//! goes that another writer has just referred to.

use super::types::hex;
use super::{Result, Rules, SessionError};
use crate::bucket::{Bucket, ChunkName, MAX_DOOMED, Object, SnapshotName};
use crate::image::SessionId;
use crate::model::SnapshotId;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The least time for which what was deleted is remembered, in milliseconds.
const DAY_MS: i64 = 24 * 3600 * 1000;

/// What to remove.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BucketRules {
    /// Which snapshots are kept; no rule keeps all.
    pub keep: Rules,
    /// How long a chunk that nothing refers to is left alone: longer than any push takes. Zero: nobody else works there.
    pub grace: Duration,
}

/// A snapshot that was removed from a bucket, or would be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct GoneFromBucket {
    /// Its name.
    #[serde(serialize_with = "hex")]
    pub id: SnapshotId,
    /// Wall-clock time, nanoseconds since 1970.
    pub time_ns: u64,
}

/// What was removed from a bucket, or would be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BucketPruning {
    /// Where.
    pub url: String,
    /// Nothing was done.
    pub dry_run: bool,
    /// The snapshots, oldest first.
    pub removed: Vec<GoneFromBucket>,
    /// Snapshots that stay.
    pub kept: u64,
    /// Chunks that were deleted, or would be.
    pub deleted_chunks: u64,
    /// Bytes of them, and of what was left behind.
    pub deleted_bytes: u64,
    /// Chunks that nothing refers to, and that are deleted when the grace time is over.
    pub waiting_chunks: u64,
    /// Files that pushes which were killed have left in a folder, and that were deleted, or would be.
    pub deleted_leftovers: u64,
    /// Chunks that stay.
    pub kept_chunks: u64,
    /// Bytes of them.
    pub kept_bytes: u64,
}

/// Removes what no rule keeps, and what nothing refers to.
///
/// # Errors
/// When an index cannot be read, no chunk is deleted: it is not known what that one needs.
pub fn prune_bucket(url: &str, rules: &BucketRules, dry_run: bool) -> Result<BucketPruning> {
    if rules.keep.max_size.is_some() {
        return Err(SessionError::Usage(
            "--max-size is for a store: in a bucket snapshots share chunks; use --keep-last or --keep-within".into(),
        ));
    }
    let bucket = Bucket::open(url)?;
    let names = bucket.snapshots()?;
    let now_ms = match dry_run {
        true => (wall_clock_ns() / 1_000_000) as i64,
        // What is removed is judged by the clock of the service, of which there is one.
        false => bucket.now_ms()?,
    };
    let now_ns = (now_ms.max(0) as u64).saturating_mul(1_000_000);
    let gone = removable(&names, &rules.keep, now_ns);
    // One that is there in several forms is one.
    let mut seen = HashSet::new();
    let (removed, kept): (Vec<SnapshotName>, Vec<_>) = names
        .iter()
        .copied()
        .filter(|name| seen.insert(name.id))
        .partition(|name| gone.contains(name));
    let mut pruning = BucketPruning {
        url: bucket.url().to_owned(),
        dry_run,
        removed: removed
            .iter()
            .map(|name| GoneFromBucket {
                id: name.id,
                time_ns: name.time_ns,
            })
            .collect(),
        kept: kept.len() as u64,
        deleted_chunks: 0,
        deleted_bytes: 0,
        waiting_chunks: 0,
        deleted_leftovers: 0,
        kept_chunks: 0,
        kept_bytes: 0,
    };
    if !dry_run {
        let keys: Vec<String> = gone.iter().map(SnapshotName::key).collect();
        bucket.delete(&keys)?;
    }
    let mut sweep = Sweep {
        bucket: &bucket,
        grace: rules.grace,
        now_ms,
        dry_run,
    };
    sweep.run(&gone, &mut pruning)?;
    sweep.tidy(&mut pruning)?;
    Ok(pruning)
}

fn wall_clock_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_nanos() as u64)
}

/// The snapshots that no rule keeps. `names` are oldest first; a tree is one, in the session of its first process.
fn removable(names: &[SnapshotName], rules: &Rules, now_ns: u64) -> BTreeSet<SnapshotName> {
    if rules.keep_last.is_none() && rules.keep_within.is_none() {
        return BTreeSet::new();
    }
    // Of each session how many snapshots were seen, and the last of them.
    let mut newer: BTreeMap<SessionId, (u64, Option<SnapshotId>)> = BTreeMap::new();
    let mut gone = BTreeSet::new();
    for name in names.iter().rev() {
        let (seen, last) = newer.entry(name.session).or_default();
        // It may be there in several forms: sealed with another key, or plain.
        if *last != Some(name.id) {
            (*seen, *last) = (*seen + 1, Some(name.id));
        }
        let is_last = rules.keep_last.is_some_and(|last| *seen <= last);
        let age = now_ns.saturating_sub(name.time_ns);
        let is_young = rules
            .keep_within
            .is_some_and(|within| u128::from(age) <= within.as_nanos());
        if !is_last && !is_young {
            gone.insert(*name);
        }
    }
    gone
}

struct Sweep<'a> {
    bucket: &'a Bucket,
    grace: Duration,
    /// When it began, by the clock of the service.
    now_ms: i64,
    dry_run: bool,
}

impl Sweep<'_> {
    /// In this order: the time, what is doomed, what is referred to, what there is; only then anything is deleted.
    fn run(&mut self, gone: &BTreeSet<SnapshotName>, pruning: &mut BucketPruning) -> Result<()> {
        let bucket = self.bucket;
        let grace_ms = self.grace.as_millis() as i64;
        let is_older = |object: &Object, ms| self.now_ms.saturating_sub(object.modified_ms) >= ms;
        let is_ripe = |object: &Object| is_older(object, grace_ms);
        let mut lists = Vec::new();
        for (name, object) in bucket.doomed_lists()? {
            match bucket.doomed(name, &object.key) {
                Ok(chunks) => lists.push((name, is_ripe(&object), chunks)),
                // Somebody else has just done with it.
                Err(e) if e.is_missing() => {}
                Err(e) => return Err(e.into()),
            }
        }
        let mut names = bucket.snapshots()?;
        names.retain(|name| !gone.contains(name));
        let needed: HashSet<ChunkName> = bucket.needed(&names)?;
        let unneeded: BTreeMap<ChunkName, Object> = bucket
            .chunks()?
            .into_iter()
            .filter(|(name, object)| {
                let kept = needed.contains(name);
                pruning.kept_chunks += u64::from(kept);
                pruning.kept_bytes += if kept { object.len } else { 0 };
                !kept
            })
            .collect();
        let mut doomed: HashSet<ChunkName> = HashSet::new();
        for (name, ripe, chunks) in &lists {
            let there = chunks.iter().filter_map(|chunk| unneeded.get(chunk));
            let there: Vec<&Object> = there.collect();
            match ripe {
                true => {
                    self.delete(&there, pruning)?;
                    if !self.dry_run {
                        bucket.swept(*name)?;
                    }
                }
                false => pruning.waiting_chunks += there.len() as u64,
            }
            doomed.extend(chunks);
        }
        let newly: Vec<(&ChunkName, &Object)> = unneeded
            .iter()
            .filter(|(name, object)| !doomed.contains(name) && is_ripe(object))
            .collect();
        let young = unneeded
            .keys()
            .filter(|name| !doomed.contains(name))
            .count()
            - newly.len();
        pruning.waiting_chunks += young as u64;
        if self.grace.is_zero() {
            let objects: Vec<&Object> = newly.iter().map(|(_, object)| *object).collect();
            self.delete(&objects, pruning)?;
        } else {
            pruning.waiting_chunks += newly.len() as u64;
            let names: Vec<ChunkName> = newly.iter().map(|(name, _)| **name).collect();
            for list in names.chunks(MAX_DOOMED) {
                if !self.dry_run {
                    bucket.doom(list)?;
                }
            }
        }
        if !self.dry_run {
            let over = bucket.swept_lists()?.into_iter();
            // Another one, with a longer grace time, may still be deleting what a list names.
            let kept_ms = match grace_ms {
                0 => 0,
                _ => grace_ms.max(DAY_MS),
            };
            let over = over.filter(|(_, object)| is_older(object, kept_ms));
            bucket.delete(&over.map(|(_, object)| object.key).collect::<Vec<_>>())?;
        }
        Ok(())
    }

    /// Removes what writers have left that were killed in the middle of an object.
    fn tidy(&self, pruning: &mut BucketPruning) -> Result<()> {
        let grace_ms = self.grace.as_millis() as i64;
        for left in self.bucket.leftovers()? {
            // Younger ones may be being written.
            if self.now_ms.saturating_sub(left.modified_ms) < grace_ms {
                continue;
            }
            if !self.dry_run {
                self.bucket.remove_leftover(&left)?;
            }
            pruning.deleted_leftovers += 1;
            pruning.deleted_bytes += left.len;
        }
        Ok(())
    }

    fn delete(&self, objects: &[&Object], pruning: &mut BucketPruning) -> Result<()> {
        for piece in objects.chunks(256) {
            // A name may be used again when it has been gone for the grace time: by then this must be over.
            let half_ms = (self.grace / 2).as_millis() as i64;
            if half_ms > 0
                && !self.dry_run
                && self.bucket.now_ms()?.saturating_sub(self.now_ms) > half_ms
            {
                return Err(SessionError::Remote(
                    "looking for what may be deleted took more than half of the grace time. What was deleted is; prune again, with a longer --grace".into(),
                ));
            }
            if !self.dry_run {
                let keys: Vec<String> = piece.iter().map(|object| object.key.clone()).collect();
                self.bucket.delete(&keys)?;
            }
            pruning.deleted_chunks += piece.len() as u64;
            pruning.deleted_bytes += piece.iter().map(|object| object.len).sum::<u64>();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bucket::Kin;

    fn name(time_ns: u64, session: u8) -> SnapshotName {
        SnapshotName {
            time_ns,
            kin: Kin::of("a"),
            session: SessionId([session; 16]),
            id: SnapshotId([time_ns as u8; 16]),
        }
    }

    #[test]
    fn any_rule_keeps_a_snapshot_and_without_rules_all_stay() {
        let names = [name(1, 1), name(2, 2), name(3, 1), name(4, 1), name(5, 2)];
        let gone = |keep_last, keep_within: Option<u64>| {
            let rules = Rules {
                keep_last,
                keep_within: keep_within.map(Duration::from_nanos),
                max_size: None,
            };
            let gone = removable(&names, &rules, 6);
            gone.iter().map(|name| name.time_ns).collect::<Vec<_>>()
        };
        assert_eq!(gone(None, None), [0u64; 0]);
        assert_eq!(gone(Some(1), None), [1, 2, 3]);
        assert_eq!(gone(Some(2), None), [1]);
        assert_eq!(gone(None, Some(2)), [1, 2, 3]);
        assert_eq!(gone(Some(1), Some(3)), [1, 2]);
    }

    #[test]
    fn in_several_forms_a_snapshot_counts_once() {
        let forms = |time_ns| {
            [1, 2].map(|kin| SnapshotName {
                kin: Kin([kin; 4]),
                ..name(time_ns, 1)
            })
        };
        let names = [forms(1), forms(2), forms(3)].concat();
        let rules = Rules {
            keep_last: Some(2),
            ..Rules::default()
        };
        let gone = removable(&names, &rules, 6);
        assert_eq!(gone.into_iter().collect::<Vec<_>>(), forms(1));
    }
}
