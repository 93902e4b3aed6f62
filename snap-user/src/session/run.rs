//! `run`: a command under snapshots from its start.

use super::descriptors::raise_descriptors;
use super::events::LazyProbes;
use super::service::{self, Service};
use super::tree_engine::TreeEngine;
use super::watch::drive;
use super::{
    Ended, Engine, Options, Progress, Result, Schedule, SessionError, Summary, TrackerChoice,
    Trouble,
};
use crate::capture::CaptureError;
use crate::store::Store;
use crate::sys::{leave_to_kernel, pidfd_open, proc, ptrace, share_memory};
use crate::track::{Support, TrackError, support};
use std::ffi::OsString;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

/// How long a program that is being executed may take to have memory and arguments.
const ARGUMENTS: Duration = Duration::from_secs(1);

/// Why a command is watched no more, or never was.
#[derive(Debug)]
pub enum Unwatched {
    /// The schedule ended, or the command did.
    Over(Summary),
    /// It ended before it was attached to.
    TooShort,
    /// It cannot be watched, or not any longer. It goes on.
    Failed(SessionError),
}

/// Starts a command, watches it, and waits for its end. When the watching ends first, for whatever reason, the command
/// goes on unwatched. `unwatched` is called between the two. From then on SIGTERM ends ksnap, and the command goes on.
///
/// # Errors
/// What is wrong before the command starts; what is wrong afterwards leaves it alone, and is told.
pub fn run(
    dir: &Path,
    command: &[OsString],
    schedule: &Schedule,
    options: &Options,
    report: &mut dyn FnMut(&Progress),
    unwatched: &mut dyn FnMut(&Unwatched),
) -> Result<(Unwatched, ExitStatus)> {
    if let TrackerChoice::Only(kind) = options.tracker
        && let Support::No(why) | Support::Unknown(why) = support(kind)
    {
        return Err(TrackError::Unavailable { kind, why }.into());
    }
    let store = Store::open_or_create(dir)?;
    let Some((program, arguments)) = command.split_first() else {
        return Err(SessionError::Usage("no command to run".into()));
    };
    // They take longer to load than many a command takes.
    let probes = LazyProbes::new(options.probes);
    probes.load();
    let mut child =
        Command::new(program)
            .args(arguments)
            .spawn()
            .map_err(|e| SessionError::Io {
                what: format!("start {}", program.display()),
                source: e,
            })?;
    let pid = child.id() as i32;
    await_program(pid);
    let mut attached = false;
    let (send, commands) = channel();
    let watched = (|| {
        // The command has its own limit already.
        raise_descriptors();
        let pidfd = pidfd_open(pid).map_err(|e| CaptureError::from_sys(pid, e))?;
        let _service = Service::start(store.dir(), pid, pidfd, true, send)?;
        if options.tree {
            let mut tree = TreeEngine::attach(&store, pid, options, &probes)?;
            attached = true;
            tree.link();
            return drive(&mut tree, schedule, &commands, report);
        }
        let mut engine = Engine::attach_sharing(&store, pid, options, &probes)?;
        attached = true;
        drive(&mut engine, schedule, &commands, report)
    })();
    drop(probes);
    let mut outcome = match watched {
        Ok(summary) => Unwatched::Over(summary),
        Err(e @ SessionError::Audit { .. }) => Unwatched::Failed(e),
        Err(e) if e.trouble() == Trouble::Vanished || has_ended(&mut child) => match attached {
            true => Unwatched::Over(nothing()),
            false => Unwatched::TooShort,
        },
        Err(e) => Unwatched::Failed(e),
    };
    // One that was told to end has that left to do; else nobody hears any more what it is told.
    if !matches!(&outcome, Unwatched::Over(summary) if summary.ended == Ended::Terminated) {
        hear_no_signals();
    }
    unwatched(&outcome);
    hear_no_signals();
    if is_told_to_end(&commands) {
        // It came when nobody was listening any more, or not yet.
        end_as_told();
    }
    let status = wait(&mut child).map_err(SessionError::io(format!("wait for process {pid}")))?;
    if let Unwatched::Over(summary) = &mut outcome {
        // There is nothing left of it that could be mixed.
        summary.mixed = false;
        if matches!(summary.ended, Ended::TargetExited(_)) {
            summary.ended = Ended::TargetExited(status.code());
        }
    }
    Ok((outcome, status))
}

/// The signals that end a watch are not waited for any more: from here on they end ksnap, as they would have before.
/// Ctrl-C stays the command's own.
fn hear_no_signals() {
    for signal in [libc::SIGTERM, libc::SIGPWR] {
        if let Err(e) = leave_to_kernel(signal) {
            tracing::warn!("{e}");
        }
    }
}

/// Whether a signal that ends ksnap is among what nobody has taken in.
fn is_told_to_end(commands: &Receiver<service::Command>) -> bool {
    commands
        .try_iter()
        .any(|told| matches!(told, service::Command::Stop(Ended::Terminated)))
}

/// Ends ksnap as the signal would have, had it come now.
fn end_as_told() {
    let own = rustix::process::getpid();
    if let Err(e) = rustix::process::kill_process(own, rustix::process::Signal::TERM) {
        tracing::warn!("told to end, which is not possible: {e}");
    }
}

/// Waits until a child has memory and arguments of its own. In the middle of its execve(2) it lets its parent go on a
/// moment before: what is opened of its memory then is ksnap's.
fn await_program(pid: i32) {
    let own = std::process::id() as i32;
    let end = Instant::now() + ARGUMENTS;
    // One that has ended has no memory. A kernel without kcmp(2) does not tell; it is ready within microseconds then, too.
    while share_memory(own, pid).unwrap_or(false) && Instant::now() < end {
        std::thread::sleep(Duration::from_micros(50));
    }
    // The arguments come with the program; no program is without any here but one that took them away.
    while proc::is_alive(pid)
        && proc::cmdline(pid).is_ok_and(|arguments| arguments.iter().all(Vec::is_empty))
        && Instant::now() < end
    {
        std::thread::sleep(Duration::from_micros(50));
    }
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
        mixed: false,
    }
}
