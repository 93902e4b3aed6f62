//! One process under snapshots: everything that its tracer thread does.

mod attach;

use attach::layout;

use super::events::Events;
use super::flight::Flight;
use super::keeper::Keeper;
use super::kept::end_keeping;
use super::pipeline::{Hashes, Pipeline};
use super::postcopy::Caution;
use super::profile::Profiling;
use super::{Options, Result, SessionError, Taken, Then, mixed};
use crate::capture::{
    CaptureError, Contents, Live, Target, compared, irreplaceable, take_connections,
};
use crate::image::SessionId;
use crate::model::{PageSet, SnapshotId, SnapshotKind, Vma};
use crate::probe::Losses;
use crate::store::Store;
use crate::sys::{self, Freeze, Frozen, SysError, monotonic_ns, proc};
use crate::track::{Epoch, TrackerKind};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// For so long a process that is replacing its program has no memory, on a busy machine.
pub(super) const EXEC_SOON: Duration = Duration::from_millis(2);
/// Attempts at what a process gets in the way of by replacing its program.
const MOST_EXECS: u32 = 5;
/// How long a thread may take to stop. A vfork in progress takes as long as its child needs to
/// execute something; the other threads should not wait for it.
const FREEZE_TIMEOUT: Duration = Duration::from_millis(250);
/// What became of a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Captured {
    /// It is on its way.
    Whole,
    /// The process runs another program than is tracked.
    NewProgram,
    /// What was to be copied behind the stop has changed in a way that nobody saved.
    Spoilt,
}

/// Tells one program of a process from the next: an exec lays both anew.
type Layout = (u64, u64);

/// Takes snapshots of one process. All of its calls must come from one thread, the tracer.
pub struct Engine {
    pub(super) target: Target,
    pub(super) store: Store,
    pub(super) options: Options,
    pub(super) epoch: Epoch,
    pub(super) events: Events,
    pub(super) live: Live,
    pub(super) head: Option<SnapshotId>,
    /// The process is as `head` has it, but for what was tracked since.
    pub(super) synced: bool,
    pub(super) hashes: Arc<Hashes>,
    pub(super) pipeline: Pipeline,
    /// After the pipeline: what is being written is written before the last look at what to keep.
    pub(super) keeper: Keeper,
    pub(super) flight: Option<Flight>,
    /// Contents of files, where they are saved.
    pub(super) contents: Contents,
    /// Why it is not tracked by a better mechanism.
    instead: Option<String>,
    pub(super) profiling: Option<Profiling>,
    hurry: Option<Duration>,
    /// Of copying behind the stop.
    pub(super) caution: Caution,
    layout: Layout,
    /// Address space that the last snapshot covers, and every look since.
    pub(super) covered: PageSet,
    /// Copied for the snapshot under way without a look at their content.
    pub(super) unhashed: PageSet,
    /// Of this machine.
    pub(super) processors: usize,
    cpu_ns: u64,
    session: SessionId,
    /// The process stays stopped after the snapshot under way, for as long as ksnap lives.
    hold: bool,
    /// It does, and when that stop began, in nanoseconds of the monotonic clock.
    held: Option<(Frozen, u64)>,
    /// A rollback failed in the middle: the process is as no moment had it, until another one succeeds.
    pub(super) mixed: bool,
    /// What the probes had lost before the last stop that is copied behind.
    pub(super) losses: Losses,
}

impl Engine {
    /// Snapshots are to follow each other at this interval: encoding must not take longer.
    pub fn pace(&mut self, every: Duration) {
        self.hurry = Some(every / 2);
    }

    /// The mechanism that finds changed pages.
    pub fn tracker(&self) -> TrackerKind {
        self.epoch.tracker().kind()
    }

    /// The process.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// Its session in the store.
    pub fn session(&self) -> SessionId {
        self.session
    }

    /// Where write faults are seen, if they are.
    pub fn fault_source(&self) -> Option<String> {
        self.events.fault_source()
    }

    /// What the user should know of how the process is tracked, a sentence each.
    pub fn notes(&self) -> Vec<String> {
        let probes = self.events.why_off().map(str::to_owned);
        probes.into_iter().chain(self.instead.clone()).collect()
    }

    /// Takes in what happened meanwhile. Call it often enough that the ring buffer does not overflow.
    pub fn tick(&mut self) -> Result<()> {
        sys::release_strays();
        self.events.drain(&mut self.epoch);
        self.feed_profile();
        // Without the probes nothing else tells that the mixed program is gone.
        if self.mixed && !self.is_same_program()? {
            self.events.exec = true;
        }
        if std::mem::take(&mut self.events.exec)
            && let Err(e) = self.reattach()
        {
            if !is_mere_exec(self.target.pid, &e) {
                return Err(e.of_process(self.target.pid));
            }
            // Replaced again: later.
            self.events.exec = true;
        }
        Ok(())
    }

    /// Takes a snapshot. It is on its way when this returns; [`Engine::settle`] tells what became
    /// of it, and must have been called since the one before.
    pub fn snapshot(&mut self) -> Result<()> {
        debug_assert!(self.flight.is_none(), "one snapshot at a time");
        for attempt in 0..MOST_EXECS {
            let ready = match attempt {
                0 => self.tick().and_then(|()| self.refuse_mixed()),
                // The program was replaced in the middle of it: once more, with the new one.
                _ if self.events.exec => {
                    self.events.exec = false;
                    self.reattach()
                }
                _ => Ok(()),
            };
            match ready.and_then(|()| self.try_snapshot()) {
                Ok(Captured::Whole) => return Ok(()),
                Ok(Captured::NewProgram) => self.events.exec = true,
                Ok(Captured::Spoilt) => {}
                // Nothing found again and again, though the process lives, is more than an exec.
                Err(e) if attempt + 1 < MOST_EXECS && is_mere_exec(self.target.pid, &e) => {
                    self.events.exec = true;
                    std::thread::sleep(EXEC_SOON);
                }
                Err(e) => return Err(e.of_process(self.target.pid)),
            }
        }
        Err(CaptureError::Refused {
            pid: self.target.pid,
            why: "it replaces its program (exec) faster than a snapshot can be taken".into(),
        }
        .into())
    }

    /// The keys for which its snapshots are sealed.
    pub(super) fn recipients(&self) -> Result<Vec<String>> {
        Ok(self.store.session_info(self.session)?.recipients)
    }

    pub(super) fn refuse_mixed(&self) -> Result<()> {
        match self.mixed {
            false => Ok(()),
            true => Err(mixed::refusal(self.target.pid).into()),
        }
    }

    /// Says in the store that the process is about to be changed, so that whoever comes after a ksnap that died knows.
    pub(super) fn mark_mixed(&self) -> Result<()> {
        let mark = mixed::mark(&self.target, self.layout);
        Ok(self.store.mark_mixed(self.session, &mark)?)
    }

    /// The process is whole, or it is another one.
    pub(super) fn unmark_mixed(&self) {
        let mark = mixed::mark(&self.target, self.layout);
        if let Err(e) = mixed::unmark(&self.store, self.session, &mark, self.mixed) {
            tracing::warn!(
                "process {} is whole, but no snapshot is taken of it until that file is removed: {e}",
                self.target.pid
            );
        }
    }

    /// The same, and what becomes of the process then. Unless it goes on, the snapshot is stored when this
    /// returns.
    pub fn snapshot_then(&mut self, then: Then) -> Result<()> {
        let usual = std::mem::replace(&mut self.options.then, then);
        let done = self.snapshot();
        self.options.then = usual;
        done
    }

    /// Takes a snapshot and leaves the process stopped: it goes on when what is returned is dropped, or when ksnap ends
    /// in whatever way. Also tells when the stop began, in nanoseconds of the monotonic clock.
    pub(super) fn snapshot_and_hold(&mut self) -> Result<(Taken, Frozen, u64)> {
        self.hold = true;
        let done = self.snapshot_then(Then::GoOn);
        self.hold = false;
        let held = self.held.take();
        done?;
        match (self.settle(), held) {
            (Some(taken), Some((held, stopped_at))) => Ok((taken?, held, stopped_at)),
            _ => Err(SessionError::Control {
                why: "took no snapshot".into(),
            }),
        }
    }

    fn try_snapshot(&mut self) -> Result<Captured> {
        let kind = self.begin();
        let done = self.capture(kind);
        if !matches!(done, Ok(Captured::Whole)) {
            self.give_up();
        }
        done
    }

    /// Begins a snapshot, which is then captured or given up.
    pub(super) fn begin(&mut self) -> SnapshotKind {
        let kind = match self.head {
            None => SnapshotKind::Base,
            Some(_) => SnapshotKind::Delta,
        };
        // The first takes as long as it takes: what is not encoded has to wait for the disk.
        let hurry = match kind {
            SnapshotKind::Base => None,
            SnapshotKind::Delta => self.hurry.map(|after| Instant::now() + after),
        };
        self.pipeline.begin(kind, self.head, &self.hashes, hurry);
        kind
    }

    /// Gives up a snapshot that was begun, unless it is on its way already.
    pub(super) fn give_up(&mut self) {
        if self.flight.is_none() {
            self.events.stop_saving();
            self.pipeline.abandon();
            self.epoch.abort();
        }
    }

    /// The process runs the program that is tracked.
    pub(super) fn is_same_program(&self) -> Result<bool> {
        Ok(layout(self.target.pid)? == self.layout)
    }

    pub(super) fn maps(&mut self) -> Result<Vec<Vma>> {
        let pid = self.target.pid;
        let vmas = proc::maps(pid).map_err(|e| CaptureError::from_sys(pid, e))?;
        if vmas.is_empty() {
            let memory = std::io::Error::from_raw_os_error(libc::ESRCH);
            let error = SysError::new("read", format_args!("/proc/{pid}/maps"), memory);
            return Err(CaptureError::from_sys(pid, error).into());
        }
        Ok(vmas)
    }

    pub(super) fn freeze(&self) -> Result<Frozen> {
        let options = Freeze {
            timeout: FREEZE_TIMEOUT,
            ..Freeze::default()
        };
        let pid = self.target.pid;
        Frozen::freeze(pid, options).map_err(|e| CaptureError::from_sys(pid, e).into())
    }

    /// The process's processor time since the last call, in nanoseconds.
    pub(super) fn cpu_since_last(&mut self) -> u64 {
        let cpu = proc::cpu_time_ns(self.target.pid).unwrap_or(self.cpu_ns);
        cpu.saturating_sub(std::mem::replace(&mut self.cpu_ns, cpu))
    }

    fn capture(&mut self, kind: SnapshotKind) -> Result<Captured> {
        let hold = self.hold || self.options.then != Then::GoOn;
        let ahead = self.ahead(hold)?;
        let stop = monotonic_ns();
        let frozen = self.freeze()?;
        // Dropped, the connections go on: so they do whatever fails from here on.
        let connections = match self.options.then {
            Then::KillKeeping => {
                let (taken, custodian) = take_connections(&[self.target.pid])?;
                self.live.files.set_connections(Arc::new(taken));
                custodian
            }
            _ => None,
        };
        let outcome = self.stopped(kind, ahead, frozen, stop, (hold, None));
        self.live.files.set_connections(Arc::default());
        let mut caught = match outcome? {
            Ok(caught) => caught,
            Err(why) => return Ok(why),
        };
        if caught.frozen.is_some() || caught.audit.is_asked() {
            let mut taken = self.settle().expect("just put there")?;
            let wrong = self.compare(&caught.audit, &taken)?;
            match (caught.frozen.take(), self.options.then) {
                (Some(held), Then::Stop) if wrong.is_empty() => held.end_with(libc::SIGSTOP)?,
                (Some(held), Then::Kill) if wrong.is_empty() => held.end_with(libc::SIGKILL)?,
                (Some(held), Then::KillKeeping) if wrong.is_empty() => {
                    let keeping = end_keeping([held], connections)?;
                    taken.kept = keeping.kept;
                    taken.unsupported.extend(keeping.lost);
                }
                (held, Then::GoOn) if wrong.is_empty() => self.held = held.map(|held| (held, stop)),
                (held, _) => drop(held),
            }
            if !wrong.is_empty() {
                return Err(SessionError::Audit { pages: wrong });
            }
            self.flight = Some(Flight::Done(Box::new(taken)));
        }
        Ok(Captured::Whole)
    }
}

/// Address space whose content snapshots hold: private mappings, shared ones that are compared, the kernel's code.
pub(super) fn covered(vmas: &[Vma]) -> PageSet {
    let private = vmas.iter().filter(|v| !v.shared && !v.is_special());
    let all: PageSet = private.chain(compared(vmas)).map(|v| v.range).collect();
    all.union(&irreplaceable(vmas))
}

/// What found nothing, as if the process were gone, because its memory is: it has replaced its program.
pub(super) fn is_mere_exec(pid: i32, error: &SessionError) -> bool {
    error.sys().is_some_and(SysError::is_vanished) && proc::is_alive(pid)
}

pub(super) fn wall_clock_ns() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| since.as_nanos() as u64)
}
