//! `latest~2`, prefixes and the like → id.

use super::directory::Store;
use super::error::{Candidate, StoreError};
use super::meta::SnapshotMeta;
use super::seal::SealedSession;
use crate::image::SessionId;
use crate::model::SnapshotId;
use std::collections::{HashMap, HashSet};

/// Fewest hex digits that count as a prefix.
const SHORTEST_PREFIX: usize = 4;

/// A reference taken apart.
#[derive(Debug, PartialEq, Eq)]
enum Start<'a> {
    Latest,
    Sequence(u32),
    Prefix(&'a str),
    /// Any other word.
    Name(&'a str),
}

/// Splits `START~N~…` into its start and the number of parents to follow.
fn parse(text: &str) -> Result<(Start<'_>, u64), String> {
    let (start, steps) = match text.find('~') {
        Some(at) => text.split_at(at),
        None => (text, ""),
    };
    let mut back = 0u64;
    for step in steps.split('~').skip(1) {
        let step: u64 = match step {
            "" => 1,
            digits => digits
                .parse()
                .map_err(|_| format!("~{digits} is no number of parents"))?,
        };
        back = back.saturating_add(step);
    }
    if start == "latest" {
        return Ok((Start::Latest, back));
    }
    if let Some(seq) = start.strip_prefix('@') {
        return match seq.parse() {
            Ok(seq) => Ok((Start::Sequence(seq), back)),
            Err(_) => Err(format!("@{seq} is no sequence number")),
        };
    }
    let is_hex = !start.is_empty() && start.bytes().all(|b| b.is_ascii_hexdigit());
    match start.len() {
        _ if !is_hex && !start.is_empty() => Ok((Start::Name(start), back)),
        _ if !is_hex => Err("not understood".into()),
        0..SHORTEST_PREFIX => Err(format!("at least {SHORTEST_PREFIX} digits are needed")),
        33.. => Err("an id has 32 digits".into()),
        _ => Ok((Start::Prefix(start), back)),
    }
}

impl Store {
    /// Finds the snapshot that a reference names, among all or among those of one process.
    ///
    /// | form | means |
    /// |---|---|
    /// | `latest` | the newest snapshot; of a tree, that of its root |
    /// | `3f9a…` | the one whose id begins so; 4 digits or more |
    /// | `@7` | the one with this sequence number in its session; the newest session of `pid` comes first |
    /// | `before-upgrade` | the one with this tag |
    /// | `REF~`, `REF~3` | its parent, its parent's parent's parent |
    pub fn resolve(&self, text: &str, pid: Option<i32>) -> Result<SnapshotId, StoreError> {
        self.resolve_among(&self.list()?, text, pid)
    }

    /// As [`Store::resolve`], among the snapshots of one session: what is sealed elsewhere does not matter.
    pub fn resolve_in_session(
        &self,
        session: SessionId,
        text: &str,
        pid: i32,
    ) -> Result<SnapshotId, StoreError> {
        let tag = self.tag_meant(text)?;
        let list = self.list_session(session)?;
        resolve_in(&list, text, Some(pid), tag, &HashSet::new())
    }

    fn tag_meant(&self, text: &str) -> Result<Option<SnapshotId>, StoreError> {
        let name = text.split('~').next().unwrap_or_default();
        Ok(self.tag(name)?.map(|tag| tag.id))
    }

    /// [`Store::resolve`] in a listing that is known already.
    pub fn resolve_among(
        &self,
        list: &[SnapshotMeta],
        text: &str,
        pid: Option<i32>,
    ) -> Result<SnapshotId, StoreError> {
        let tag = self.tag_meant(text)?;
        // Of one process, it is its own newest that is asked for.
        let parts = match pid {
            None => self.in_trees().unwrap_or_default(),
            Some(_) => HashSet::new(),
        };
        let found = resolve_in(list, text, pid, tag, &parts);
        let mut closed = self.sealed_sessions()?;
        closed.retain(|session| !session.snapshots.is_empty());
        if closed.is_empty() {
            return found;
        }
        match meant_in(&closed, list, text, pid, tag, &found) {
            Some(error) => Err(error),
            None => found,
        }
    }
}

/// Whether a reference means, or may mean, a snapshot that cannot be read, as the names of files and their times tell:
/// then it must not mean another one instead.
fn meant_in(
    closed: &[SealedSession],
    list: &[SnapshotMeta],
    text: &str,
    pid: Option<i32>,
    tag: Option<SnapshotId>,
    found: &Result<SnapshotId, StoreError>,
) -> Option<StoreError> {
    let (start, _) = parse(text).ok()?;
    let has = |which: &dyn Fn(&SnapshotId) -> bool| {
        let mut all = closed.iter();
        all.find(|session| session.snapshots.iter().any(which))
    };
    let meant = match start {
        Start::Prefix(prefix) => {
            let prefix = prefix.to_ascii_lowercase();
            has(&|id| id.to_string().starts_with(&prefix))
        }
        Start::Name(_) => has(&|id| Some(*id) == tag),
        // Of which process each is cannot be told.
        Start::Sequence(_) => closed.first().filter(|_| found.is_err()),
        Start::Latest => {
            let newest = closed.iter().max_by_key(|session| session.newest_ns)?;
            let own = |meta: &&SnapshotMeta| pid.is_none_or(|pid| meta.pid == pid);
            let known = list.iter().filter(own).map(|meta| meta.time_ns).max();
            Some(newest).filter(|newest| known.is_none_or(|known| newest.newest_ns > known))
        }
    };
    meant.map(|session| {
        let scope = pid.map_or(String::new(), |pid| format!(" of process {pid}"));
        session.error(format!(
            "snapshot {text}{scope}, which is or may be in session {},",
            session.id
        ))
    })
}

/// [`Store::resolve`] in a listing, oldest first. `parts` of trees are not what `latest` means.
pub(super) fn resolve_in(
    list: &[SnapshotMeta],
    text: &str,
    pid: Option<i32>,
    tag: Option<SnapshotId>,
    parts: &HashSet<SnapshotId>,
) -> Result<SnapshotId, StoreError> {
    let (start, back) = parse(text).map_err(|why| StoreError::BadReference {
        reference: text.to_owned(),
        why,
    })?;
    let in_scope = |meta: &&SnapshotMeta| pid.is_none_or(|pid| meta.pid == pid);
    let mut found: Vec<&SnapshotMeta> = match &start {
        Start::Latest => {
            let whole = |meta: &&SnapshotMeta| in_scope(meta) && !parts.contains(&meta.id);
            list.iter().rev().find(whole).into_iter().collect()
        }
        Start::Name(name) => {
            let tag = tag.ok_or_else(|| StoreError::BadReference {
                reference: (*name).to_owned(),
                why: "no such tag".into(),
            })?;
            list.iter()
                .filter(in_scope)
                .filter(|m| m.id == tag)
                .collect()
        }
        Start::Sequence(seq) => list
            .iter()
            .filter(in_scope)
            .filter(|meta| meta.seq == *seq)
            .collect(),
        Start::Prefix(prefix) => {
            let prefix = prefix.to_ascii_lowercase();
            list.iter()
                .filter(in_scope)
                .filter(|meta| meta.id.to_string().starts_with(&prefix))
                .collect()
        }
    };
    if let (Start::Sequence(_), Some(_)) = (&start, pid)
        && let Some(newest) = list.iter().rev().find(in_scope)
        && let Some(own) = found.iter().find(|meta| meta.session == newest.session)
    {
        found = vec![own];
    }
    let not_found = |what: String| StoreError::NotFound { what };
    let scope = pid.map_or(String::new(), |pid| format!(" of process {pid}"));
    let mut at = match found.as_slice() {
        [] => return Err(not_found(format!("snapshot {text}{scope}"))),
        [one] => *one,
        many => {
            return Err(StoreError::Ambiguous {
                reference: text.to_owned(),
                candidates: many
                    .iter()
                    .rev()
                    .map(|meta| Candidate {
                        id: meta.id,
                        seq: meta.seq,
                        pid: meta.pid,
                    })
                    .collect(),
            });
        }
    };
    let by_id: HashMap<SnapshotId, &SnapshotMeta> = list.iter().map(|m| (m.id, m)).collect();
    for step in 0..back {
        let parent = at.parent.ok_or_else(|| {
            not_found(format!(
                "snapshot {text}: {} has no parent, {step} back from where it starts",
                at.id.short()
            ))
        })?;
        at = by_id.get(&parent).ok_or_else(|| {
            not_found(format!(
                "snapshot {parent}, the parent of {}: it was pruned, or its file is missing or damaged",
                at.id.short()
            ))
        })?;
    }
    Ok(at.id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_taken_apart() {
        assert_eq!(parse("latest"), Ok((Start::Latest, 0)));
        assert_eq!(parse("latest~"), Ok((Start::Latest, 1)));
        assert_eq!(parse("latest~2~~3"), Ok((Start::Latest, 6)));
        assert_eq!(parse("@12~0"), Ok((Start::Sequence(12), 0)));
        assert_eq!(parse("12aB"), Ok((Start::Prefix("12aB"), 0)));
        assert_eq!(parse("good-1~2"), Ok((Start::Name("good-1"), 2)));
        for bad in ["", "~1", "123", "@", "@x", "@-1", "latest~x", "latest~-1"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        assert!(parse(&"a".repeat(33)).is_err());
    }
}
