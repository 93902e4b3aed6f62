//! Removes snapshots by rule, in every session or in those of one process.

use super::control;
use super::sealing::{left_out, may_be_sealed};
use super::types::{hex, unhex};
use super::{Result, SessionError, mixed};
use crate::image::SessionId;
use crate::model::SnapshotId;
use crate::store::{Plan, Pruner, Rules, SessionInfo, SnapshotMeta, Store, StoreError};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::path::Path;

/// Which snapshots of a session are to go.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum What {
    /// Those that no rule keeps.
    Rules(Rules),
    /// These, 32 hex digits each.
    Snapshots(Vec<String>),
}

/// A snapshot that was removed, or would be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gone {
    /// Its name.
    #[serde(serialize_with = "hex", deserialize_with = "unhex")]
    pub id: SnapshotId,
    /// Its sequence number.
    pub seq: u32,
    /// Wall-clock time, nanoseconds since 1970.
    pub time_ns: u64,
    /// Length of its file.
    pub file_bytes: u64,
}

/// What was removed from a session, or would be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrunedSession {
    /// The session.
    pub session: String,
    /// Its process.
    pub pid: i32,
    /// The process's name.
    pub comm: String,
    /// The snapshots, oldest first.
    pub removed: Vec<Gone>,
    /// Snapshots that stay.
    pub kept: u64,
    /// Pages of the removed ones that others need, and that were merged.
    pub merged_pages: u64,
    /// Bytes of the session's files before.
    pub bytes_before: u64,
    /// Bytes of them afterwards.
    pub bytes_after: u64,
    /// Nothing stays of the session.
    pub whole_session: bool,
    /// A ksnap that watches the process did it.
    pub by_watcher: bool,
}

/// What was removed in all, or would be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Pruning {
    /// Nothing was done.
    pub dry_run: bool,
    /// Sessions from which something goes.
    pub sessions: Vec<PrunedSession>,
    /// Snapshots removed.
    pub removed: u64,
    /// Snapshots that stay.
    pub kept: u64,
    /// Bytes of all sessions looked at, before.
    pub bytes_before: u64,
    /// Bytes of them afterwards.
    pub bytes_after: u64,
    /// Bytes of flat images that nobody used, and that were removed: they count in none of the above.
    pub flat_freed: u64,
    /// The same of pages that transfers had left and that are out of date.
    pub received_freed: u64,
    /// Sessions that were left alone, and why; a sentence each.
    pub notes: Vec<String>,
}

/// Someone who may remove from a session: this process, or the watcher that has its lock.
enum Hand {
    Own(Pruner),
    Watcher(control::Watcher, SessionId),
}

impl Hand {
    fn find(store: &Store, meta: &SessionMeta) -> Result<Self> {
        match store.pruner(meta.id) {
            Ok(pruner) => Ok(Self::Own(pruner)),
            Err(locked @ StoreError::Locked { .. }) => {
                match control::connect(store.dir(), meta.info.pid)? {
                    Some(watcher) => Ok(Self::Watcher(watcher, meta.id)),
                    None => Err(locked.into()),
                }
            }
            Err(error) => Err(error.into()),
        }
    }

    fn remove(&mut self, what: &What, dry_run: bool) -> Result<PrunedSession> {
        match self {
            Self::Own(pruner) => remove(pruner, what, dry_run),
            Self::Watcher(watcher, session) => Ok(PrunedSession {
                by_watcher: true,
                ..watcher.prune(what, dry_run, *session)?
            }),
        }
    }
}

struct SessionMeta {
    id: SessionId,
    info: SessionInfo,
}

/// Removes from one session, or says what it would remove.
pub(super) fn remove(pruner: &Pruner, what: &What, dry_run: bool) -> Result<PrunedSession> {
    let plan = match what {
        What::Rules(rules) => pruner.plan(rules)?,
        What::Snapshots(names) => {
            let list = pruner.snapshots()?;
            let named = |meta: &&SnapshotMeta| names.contains(&meta.id.to_string());
            let gone: BTreeSet<u32> = list.iter().filter(named).map(|meta| meta.seq).collect();
            let protected = pruner.protected(&list)?;
            if let Some(meta) = list
                .iter()
                .filter(named)
                .find(|m| protected.contains(&m.id))
            {
                return Err(SessionError::Usage(format!(
                    "{} (@{}) has a tag, belongs to a tree, or is what the next snapshot builds on: nothing was removed",
                    meta.id.short(),
                    meta.seq
                )));
            }
            pruner.plan_removal(&gone)?
        }
    };
    if let Some(mark) = mixed::in_the_way(pruner, &plan)? {
        return Err(SessionError::Usage(format!(
            "process {pid} is stopped on a mixed state, which only a rollback to one of its snapshots makes whole: nothing was removed; roll it back or end it first (ksnap rollback {pid} SNAPSHOT, or kill -9 {pid})",
            pid = mark.pid
        )));
    }
    let info = pruner.info()?;
    let mut told = describe(pruner, &info, &plan);
    if !dry_run {
        let done = pruner.carry_out(&plan)?;
        told.merged_pages = done.merged_pages;
        told.bytes_after = (plan.bytes_before as i64 - done.freed).max(0) as u64;
    }
    Ok(told)
}

fn describe(pruner: &Pruner, info: &SessionInfo, plan: &Plan) -> PrunedSession {
    PrunedSession {
        session: pruner.session().to_string(),
        pid: info.pid,
        comm: info.comm.clone(),
        removed: plan
            .removed
            .iter()
            .map(|meta| Gone {
                id: meta.id,
                seq: meta.seq,
                time_ns: meta.time_ns,
                file_bytes: meta.file_bytes,
            })
            .collect(),
        kept: plan.kept,
        merged_pages: 0,
        bytes_before: plan.bytes_before,
        bytes_after: plan.bytes_after,
        whole_session: plan.whole_session && !plan.removed.is_empty(),
        by_watcher: false,
    }
}

/// Removes what no rule keeps, in all sessions or in those of one process; with `dry_run` only says what would go.
///
/// Where it is not about one process, the flat images that nobody uses and what transfers left long ago go as well.
/// A session that is being watched is pruned by its watcher. One that someone else writes is left alone, which is
/// an error when it alone was asked for. The size rule counts all sessions together; where it needs more to go
/// than the others, sessions that were active longest ago give first.
///
/// # Errors
/// A tag cannot be read, or has no checksum and names nothing: nothing is removed then, whatever the rules say.
pub fn prune(dir: &Path, rules: &Rules, pid: Option<i32>, dry_run: bool) -> Result<Pruning> {
    let store = Store::open(dir)?;
    store.tagged()?;
    if !dry_run {
        store.sweep();
    }
    let mut told = Pruning {
        dry_run,
        ..Pruning::default()
    };
    let mut hands: Vec<(SessionId, Hand, PrunedSession)> = Vec::new();
    let apart = Rules {
        max_size: None,
        ..*rules
    };
    for (id, info) in store.sessions()? {
        if pid.is_some_and(|pid| pid != info.pid) {
            continue;
        }
        let meta = SessionMeta { id, info };
        let found = Hand::find(&store, &meta).and_then(|mut hand| {
            let plan = hand.remove(&What::Rules(apart), true)?;
            Ok((meta.id, hand, plan))
        });
        match found {
            Ok(found) => hands.push(found),
            Err(error) if pid.is_some() => return Err(error),
            Err(error) => told.notes.push(format!(
                "session {} of process {} is left alone: {error}",
                meta.id, meta.info.pid
            )),
        }
    }
    if let Some(pid) = pid
        && hands.is_empty()
    {
        may_be_sealed(&store, pid)?;
    }
    told.notes.extend(left_out(&store)?);
    let most = rules.max_size;
    let mut excess = most.map_or(0, |most| {
        let total: u64 = hands.iter().map(|(_, _, plan)| plan.bytes_after).sum();
        total.saturating_sub(most)
    });
    let ids: Vec<SessionId> = hands.iter().map(|(id, ..)| *id).collect();
    let mut expected: Vec<Option<u64>> = hands
        .iter()
        .map(|(_, _, plan)| (!plan.removed.is_empty()).then_some(plan.bytes_after))
        .collect();
    // Sessions come in the order in which they began; the last one is the one that goes on longest.
    for (n, (_, mut hand, plan)) in hands.into_iter().enumerate() {
        let rules = Rules {
            max_size: (excess > 0).then(|| plan.bytes_after.saturating_sub(excess)),
            ..apart
        };
        let done = hand.remove(&What::Rules(rules), dry_run)?;
        expected[n] = None;
        excess = match (rules.max_size.and(most), dry_run || done.removed.is_empty()) {
            // What others borrow from stays for them: their shares have grown.
            (Some(most), false) => held(&store, &ids, &expected).saturating_sub(most),
            _ => excess.saturating_sub(plan.bytes_after.saturating_sub(done.bytes_after)),
        };
        told.add(done);
    }
    if pid.is_none() {
        told.flat_freed = store.clear_flat(dry_run);
        told.received_freed = store.clear_received(dry_run);
    }
    if !dry_run {
        told.bytes_after = held(&store, &ids, &expected);
    }
    if excess > 0 {
        told.notes.push(format!(
            "{excess} bytes more than --max-size stay: what is left are tags, the newest snapshot of each \
             session, and what these need"
        ));
    }
    Ok(told)
}

/// What these sessions take now, or are expected to once their turn has come. One that is gone takes nothing.
fn held(store: &Store, ids: &[SessionId], expected: &[Option<u64>]) -> u64 {
    let now = |id: &SessionId| store.session_bytes(*id).unwrap_or(0);
    let all = ids.iter().zip(expected);
    all.map(|(id, expected)| expected.unwrap_or_else(|| now(id)))
        .sum()
}

impl Pruning {
    pub(super) fn add(&mut self, session: PrunedSession) {
        self.removed += session.removed.len() as u64;
        self.kept += session.kept;
        self.bytes_before += session.bytes_before;
        self.bytes_after += session.bytes_after;
        if !session.removed.is_empty() {
            self.sessions.push(session);
        }
    }
}

/// Removes these snapshots of one session.
pub(super) fn remove_from(
    store: &Store,
    session: crate::image::SessionId,
    ids: &[SnapshotId],
    dry_run: bool,
) -> Result<PrunedSession> {
    let info = store.session_info(session)?;
    let meta = SessionMeta { id: session, info };
    let names = ids.iter().map(SnapshotId::to_string).collect();
    Hand::find(store, &meta)?.remove(&What::Snapshots(names), dry_run)
}
