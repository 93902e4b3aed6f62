//! A running process as the source of a clone: snapshots while it runs, and a last one that it does not run on from.

use super::control::{self, Watcher};
use super::{Engine, Options, Result, SessionError, Taken, Then};
use crate::capture::CaptureError;
use crate::store::Store;
use crate::sys::{Freeze, Frozen, monotonic_ns};
use std::time::Duration;

/// Who takes the snapshots.
pub(super) enum Source {
    /// This program.
    Own(Box<Engine>),
    /// The ksnap that watches the process.
    Watched(Watcher, i32),
}

/// A process that stands still after its last snapshot. It goes on when this is dropped, or when ksnap ends.
pub(super) struct Held {
    /// The snapshot.
    pub(super) taken: Taken,
    frozen: Frozen,
    /// When the stop began, in nanoseconds of the monotonic clock.
    pub(super) stopped_at: u64,
}

impl Source {
    /// Begins with a process.
    pub(super) fn new(store: &Store, pid: i32, options: &Options) -> Result<Self> {
        match control::connect(store.dir(), pid)? {
            Some(watcher) => Ok(Self::Watched(watcher, pid)),
            None => Ok(Self::Own(Box::new(Engine::attach(store, pid, options)?))),
        }
    }

    /// Takes in what happened meanwhile.
    pub(super) fn tick(&mut self) {
        if let Self::Own(engine) = self
            && let Err(e) = engine.tick()
        {
            // The next snapshot meets it as well.
            tracing::debug!("{e}");
        }
    }

    /// A snapshot, after which the process runs on.
    pub(super) fn snap(&mut self) -> Result<Taken> {
        match self {
            Self::Watched(watcher, _) => watcher.snap(Then::GoOn),
            Self::Own(engine) => {
                engine.snapshot()?;
                engine.settle().unwrap_or_else(|| {
                    Err(SessionError::Control {
                        why: "took no snapshot".into(),
                    })
                })
            }
        }
    }

    /// A snapshot, after which the process stands still.
    pub(super) fn hold(&mut self) -> Result<Held> {
        match self {
            Self::Own(engine) => {
                // Quick rather than small: the process waits for it.
                engine.pace(Duration::ZERO);
                let (taken, frozen, stopped_at) = engine.snapshot_and_hold()?;
                Ok(Held {
                    taken,
                    frozen,
                    stopped_at,
                })
            }
            Self::Watched(watcher, pid) => {
                let stopped_at = monotonic_ns();
                let taken = watcher.snap(Then::Stop)?;
                // From the job-control stop, which would outlive ksnap, into a stop that does not.
                let frozen = Frozen::freeze(*pid, Freeze::default());
                rustix::process::Pid::from_raw(*pid)
                    .map(|pid| rustix::process::kill_process(pid, rustix::process::Signal::CONT))
                    .transpose()
                    .map_err(|e| SessionError::io(format!("continue process {pid}"))(e.into()))?;
                Ok(Held {
                    taken,
                    frozen: frozen.map_err(|e| CaptureError::from_sys(*pid, e))?,
                    stopped_at,
                })
            }
        }
    }
}

impl Held {
    /// Ends the process without having it run again.
    pub(super) fn end(self) -> Result<()> {
        Ok(self.frozen.end_with(libc::SIGKILL)?)
    }

    /// Has the process go on.
    pub(super) fn go_on(self) {
        self.frozen.thaw();
    }
}
