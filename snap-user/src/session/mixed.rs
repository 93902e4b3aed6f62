//! Processes that a rollback left on a mixed state, as the store knows them: whoever comes later takes no snapshot of
//! one, and lets none go.

use super::Result;
use crate::capture::{CaptureError, Target};
use crate::image::SessionId;
use crate::store::{Mixed, Plan, Pruner, Store, StoreError};
use crate::sys::proc;

type StoreResult<T> = std::result::Result<T, StoreError>;

/// How a process that may be mixed would be marked.
pub(super) fn mark(target: &Target, program: (u64, u64)) -> Mixed {
    Mixed {
        pid: target.pid,
        start_time: target.start_time,
        program,
    }
}

/// The process and the program that it runs, as it is now; `None` when there is none of this id.
pub(super) fn now(pid: i32) -> Option<Mixed> {
    let stat = proc::stat(pid, None).ok()?;
    let mm = proc::mm_fields(&stat);
    Some(Mixed {
        pid,
        start_time: stat.start_time,
        program: (mm.start_stack, mm.arg_start),
    })
}

/// A mark is of what it says for as long as that process lives and runs that program.
pub(super) fn holds(mixed: &Mixed) -> bool {
    proc::is_alive(mixed.pid) && now(mixed.pid).as_ref() == Some(mixed)
}

/// The mark of a process that could go nowhere if the plan, which removes a session whole, were carried out.
pub(super) fn in_the_way(pruner: &Pruner, plan: &Plan) -> StoreResult<Option<Mixed>> {
    match plan.whole_session {
        true => Ok(pruner.mixed()?.into_iter().find(holds)),
        false => Ok(None),
    }
}

/// Whether a rollback has left the process on a mixed state, as far as this store knows.
pub(super) fn is_mixed(store: &Store, pid: i32) -> Result<bool> {
    let Some(now) = now(pid) else {
        return Ok(false);
    };
    // Also in sealed sessions whose key is missing: a mark is the name of a file.
    for id in store.session_ids()? {
        if is_marked(store, id, &now)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Takes the mark of a process away. A rollback that has made it whole may have had its snapshot in another session
/// than the one that left it `mixed`: then from all of them.
pub(super) fn unmark(store: &Store, own: SessionId, mark: &Mixed, mixed: bool) -> StoreResult<()> {
    let sessions = match mixed {
        true => store.session_ids()?,
        false => vec![own],
    };
    sessions
        .into_iter()
        .try_for_each(|id| store.unmark_mixed(id, mark))
}

fn is_marked(store: &Store, id: SessionId, mixed: &Mixed) -> Result<bool> {
    match store.mixed(id) {
        Ok(marks) => Ok(marks.contains(mixed)),
        Err(_) if store.is_session_gone(id) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Why no snapshot is taken of a process.
pub(super) fn refusal(pid: i32) -> CaptureError {
    CaptureError::Refused {
        pid,
        why: format!(
            "a rollback of it has failed or was cut off in the middle, and left it stopped on a mixed state, of which \
             no snapshot is taken: roll it back again, to this snapshot or another one (ksnap rollback {pid} \
             SNAPSHOT; what was rolled back with --tree, by its first process), or end it (kill -9 {pid})"
        ),
    }
}
