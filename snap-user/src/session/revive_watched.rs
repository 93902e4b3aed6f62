//! `restore --watch`: a snapshot brought back, and watched from then on.

use super::events::LazyProbes;
use super::revive::{ReviveOptions, Revived, revive};
use super::several::one as watch_one;
use super::{Options, Progress, Result, Schedule, SessionError, Summary};
use crate::model::SnapshotId;
use crate::store::{Session, Store, StoreError};
use crate::sys::proc;
use std::path::Path;
use std::sync::mpsc::channel;

/// Brings a snapshot back, and watches the process, or all processes of the tree as one, until the schedule ends or it ends.
/// New snapshots are deltas of the sessions that those brought back are in, and the first have these as their parents.
///
/// `each` has the process as soon as it runs. Watching begins when all of its memory is there.
///
/// # Errors
/// What cannot be brought back, and a session that another ksnap writes, are refused before anything is started.
/// What fails later leaves the process running.
pub fn revive_watched(
    dir: &Path,
    reference: &str,
    how: &ReviveOptions,
    (schedule, options): (&Schedule, &Options),
    each: &mut dyn FnMut(&Revived),
    report: &mut dyn FnMut(i32, &Progress),
) -> Result<(Revived, Summary)> {
    let store = Store::open(dir)?;
    let id = store.resolve(reference, None)?;
    let tree = store.tree(id)?.filter(|_| !how.alone);
    if tree.is_some() && (options.bounded || options.keep.max_size.is_some()) {
        return Err(SessionError::Usage(
            "a tree is watched in a store on a disk only, and not bounded by --max-size: bound what is kept with --keep \
             or --keep-last, or bring its first process back alone (--alone)"
                .into(),
        ));
    }
    let members: Vec<SnapshotId> = match &tree {
        Some(tree) => tree.members.iter().map(|member| member.id).collect(),
        None => vec![id],
    };
    // From here on nothing of the sessions is removed, and nobody else writes them.
    let held = members.iter().map(|id| hold(&store, *id));
    let mut sessions = held.collect::<Result<Vec<Session>>>()?;
    let mut all = revive(dir, &id.to_string(), 1, how, each)?;
    let revived = all.remove(0);
    let pid = revived.pid;
    let others = revived.others.iter().map(|other| other.pid);
    let pids = std::iter::once(pid).chain(others);
    for ((session, pid), from) in sessions.iter_mut().zip(pids).zip(&members) {
        match proc::stat(pid, None) {
            Ok(stat) => session.continue_with(pid, stat.start_time, *from)?,
            // Who comes after it is another process.
            Err(_) if pid != revived.pid && !proc::is_alive(pid) => {}
            Err(e) => return Err(e.into()),
        }
    }
    drop(sessions);
    let options = &Options {
        tree: tree.is_some(),
        ..*options
    };
    let (send, commands) = channel();
    let probes = LazyProbes::new(options.probes);
    let summary = watch_one(
        &store,
        pid,
        schedule,
        options,
        &probes,
        (send, &commands),
        &mut |progress| report(pid, progress),
    )?;
    Ok((revived, summary))
}

/// The session of a snapshot, so that it can go on.
fn hold(store: &Store, id: SnapshotId) -> Result<Session> {
    let held = store.snapshot(id)?.header().session;
    if !store.session_info(held)?.fits(store) {
        return Err(SessionError::Usage(format!(
            "with --watch snapshots go on in the session of {}, which is not sealed for the keys of --encrypt-to: leave that option out, or bring the snapshot back without --watch, and watch the new process by itself",
            id.short()
        )));
    }
    store.open_session(held).map_err(|e| match e {
        StoreError::Locked { pid, .. } => SessionError::Usage(format!(
            "the process that snapshot {} is of is being watched{}: end that first, or bring the snapshot back without --watch, and watch the new process by itself",
            id.short(),
            pid.map_or(String::new(), |pid| format!(" by process {pid}"))
        )),
        other => other.into(),
    })
}
