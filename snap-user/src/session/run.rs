//! `run`: a command under snapshots from its start.

use super::service::Service;
use super::watch::drive;
use super::{Ended, Engine, Options, Progress, Result, Schedule, SessionError, Summary, Trouble};
use crate::capture::CaptureError;
use crate::store::Store;
use crate::sys::{pidfd_open, ptrace};
use std::ffi::OsString;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus};
use std::sync::mpsc::channel;
use std::time::Duration;

/// Starts a command, watches it, and waits for its end. When the schedule ends first, the command
/// goes on unwatched. `unwatched` is called between the two.
pub fn run(
    dir: &Path,
    command: &[OsString],
    schedule: &Schedule,
    options: &Options,
    report: &mut dyn FnMut(&Progress),
    unwatched: &mut dyn FnMut(&Summary),
) -> Result<(Summary, ExitStatus)> {
    let store = Store::open_or_create(dir)?;
    let Some((program, arguments)) = command.split_first() else {
        return Err(SessionError::Usage("no command to run".into()));
    };
    let mut child =
        Command::new(program)
            .args(arguments)
            .spawn()
            .map_err(|e| SessionError::Io {
                what: format!("start {}", program.display()),
                source: e,
            })?;
    let pid = child.id() as i32;
    let watched = (|| {
        let (send, commands) = channel();
        let pidfd = pidfd_open(pid).map_err(|e| CaptureError::from_sys(pid, e))?;
        let _service = Service::start(store.dir(), pid, pidfd, true, send)?;
        let mut engine = Engine::attach(&store, pid, options)?;
        drive(&mut engine, schedule, &commands, report)
    })();
    let mut summary = match watched {
        Ok(summary) => summary,
        // It ended before the first look at it: nothing to watch, but its status counts.
        Err(e) if e.trouble() == Trouble::Vanished || has_ended(&mut child) => nothing(),
        Err(e) => return Err(e),
    };
    unwatched(&summary);
    let status = wait(&mut child).map_err(SessionError::io(format!("wait for process {pid}")))?;
    if matches!(summary.ended, Ended::TargetExited(_)) {
        summary.ended = Ended::TargetExited(status.code());
    }
    Ok((summary, status))
}

fn has_ended(child: &mut Child) -> bool {
    !matches!(child.try_wait(), Ok(None))
}

/// The child's status; also when the tracer's own wait for a thread has met the end of the process.
fn wait(child: &mut Child) -> std::io::Result<ExitStatus> {
    child
        .wait()
        .or_else(|e| match ptrace::exit_status(child.id() as i32) {
            Some(status) => Ok(ExitStatus::from_raw(status)),
            None => Err(e),
        })
}

fn nothing() -> Summary {
    Summary {
        taken: 0,
        failed: 0,
        first: None,
        last: None,
        bytes: 0,
        stop_p50_ns: 0,
        stop_p99_ns: 0,
        stop_max_ns: 0,
        lasted: Duration::ZERO,
        ended: Ended::TargetExited(None),
    }
}
