//! `restore --watch`: a snapshot brought back, and watched from then on.

use super::events::LazyProbes;
use super::revive::{ReviveOptions, Revived, revive};
use super::several::one as watch_one;
use super::{Options, Progress, Result, Schedule, SessionError, Summary};
use crate::store::{Store, StoreError};
use crate::sys::proc;
use std::path::Path;
use std::sync::mpsc::channel;

/// Brings a snapshot back as one process, and watches that until the schedule ends or it ends. Its snapshots are
/// deltas of the session that the snapshot is in, and the first has it as its parent.
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
    let held = store.snapshot(id)?.header().session;
    if !store.session_info(held)?.fits(&store) {
        return Err(SessionError::Usage(format!(
            "with --watch snapshots go on in the session of {}, which is not sealed for the keys of --encrypt-to: leave that option out, or bring the snapshot back without --watch, and watch the new process by itself",
            id.short()
        )));
    }
    // From here on nothing of the session is removed, and nobody else writes it.
    let mut session = store.open_session(held).map_err(|e| match e {
        StoreError::Locked { pid, .. } => SessionError::Usage(format!(
            "the process that snapshot {} is of is being watched{}: end that first, or bring the snapshot back without --watch, and watch the new process by itself",
            id.short(),
            pid.map_or(String::new(), |pid| format!(" by process {pid}"))
        )),
        other => other.into(),
    })?;
    let mut all = revive(dir, &id.to_string(), 1, how, each)?;
    let revived = all.remove(0);
    let pid = revived.pid;
    session.continue_with(pid, proc::stat(pid, None)?.start_time, id)?;
    drop(session);
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
