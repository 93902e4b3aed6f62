//! A running process as the source of a clone: snapshots while it runs, and a last one that it does not run on from.

use super::control::{self, Also, Watcher};
use super::engine::wall_clock_ns;
use super::{Engine, Options, Result, SessionError, Taken, Then, mixed};
use crate::capture::CaptureError;
use crate::store::Store;
use crate::sys::{self, Freeze, Frozen, monotonic_ns, proc};
use std::time::{Duration, Instant};

/// How long a watcher may take to let go of a process that it has answered for.
const LETTING_GO: Duration = Duration::from_secs(2);
/// Between two attempts at a process that somebody else still traces.
const AGAIN: Duration = Duration::from_millis(1);

/// Who takes the snapshots.
pub(super) enum Source {
    /// This program.
    Own(Box<Engine>),
    /// The ksnap that watches the process, with its store.
    Watched(Watcher, Store, i32, Also),
}

/// A process that stands still after its last snapshot. It goes on when this is dropped, or when ksnap ends; one that
/// its user had stopped stays as it was.
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
            Some(watcher) => {
                let also = Also::of(options)?;
                Ok(Self::Watched(watcher, store.clone(), pid, also))
            }
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
            Self::Watched(watcher, store, _, also) => {
                watcher.snap(Then::GoOn, *also, &store.recipients())
            }
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
            Self::Watched(watcher, store, pid, also) => hold_watched(watcher, store, *pid, *also),
        }
    }
}

/// Has a watcher take the last snapshot, and takes the process over from it: from a job-control stop, which would
/// outlive ksnap, into a stop that does not.
fn hold_watched(watcher: &mut Watcher, store: &Store, pid: i32, also: Also) -> Result<Held> {
    let was_stopped = is_job_stopped(pid)?;
    let asked = monotonic_ns();
    // Whatever came of it: a watcher that failed or died may have left the process stopped.
    let taken = watcher.snap(Then::Stop, also, &store.recipients());
    let frozen = freeze(pid);
    // A rollback that failed meanwhile has stopped it for good.
    let is_mixed = || {
        mixed::is_mixed(store, pid).map_err(|e| SessionError::Control {
            why: format!(
                "may have left process {pid} stopped in the middle of a rollback, which cannot be found out: {e}. If no \
                 rollback of it has failed, let it go on (kill -CONT {pid})"
            ),
        })
    };
    if !was_stopped && !is_mixed()? {
        go_on(pid)?;
    }
    let taken = taken?;
    let since_ns = wall_clock_ns().saturating_sub(taken.time_ns);
    Ok(Held {
        // The time of a snapshot is that of the end of its stop, by a clock that may be set meanwhile.
        stopped_at: monotonic_ns()
            .saturating_sub(since_ns)
            .saturating_sub(taken.costs.phases.stop_ns)
            .max(asked),
        taken,
        frozen: frozen.map_err(|e| CaptureError::from_sys(pid, e))?,
    })
}

/// Whether a process is in a job-control stop, as soon as its watcher, which may be at work, lets one see that.
///
/// # Errors
/// Where it does not for so long: whether the process was stopped before is not known then.
fn is_job_stopped(pid: i32) -> Result<bool> {
    let end = Instant::now() + LETTING_GO;
    loop {
        let stat = proc::stat(pid, None).map_err(|e| CaptureError::from_sys(pid, e))?;
        match stat.state {
            't' if Instant::now() < end => std::thread::sleep(AGAIN),
            't' => {
                return Err(SessionError::Control {
                    why: format!("keeps process {pid} stopped just now: try again"),
                });
            }
            state => return Ok(state == 'T'),
        }
    }
}

/// Stops a process that somebody else may be about to let go of.
fn freeze(pid: i32) -> sys::Result<Frozen> {
    let end = Instant::now() + LETTING_GO;
    loop {
        match Frozen::freeze(pid, Freeze::default()) {
            Err(e) if e.is_denied() && Instant::now() < end => std::thread::sleep(AGAIN),
            done => return done,
        }
    }
}

/// Ends a job-control stop.
fn go_on(pid: i32) -> Result<()> {
    let Some(process) = rustix::process::Pid::from_raw(pid) else {
        return Ok(());
    };
    match rustix::process::kill_process(process, rustix::process::Signal::CONT) {
        // It ended meanwhile, which the snapshot or the freeze tells.
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(e) => Err(SessionError::io(format!("continue process {pid}"))(
            e.into(),
        )),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::asleep::await_sleep;
    use crate::store::{Mixed, SessionInfo};
    use rustix::process::{Pid, Signal, kill_process};
    use std::io::{BufRead, BufReader, Write};
    use std::os::unix::net::UnixListener;
    use std::process::{Child, Command};

    struct Sleeper(Child);

    impl Sleeper {
        /// It sleeps when this returns: a program is known by its stack only when all of it has been loaded.
        fn start() -> Self {
            let sleeper = Self(Command::new("sleep").arg("600").spawn().unwrap());
            await_sleep(sleeper.pid());
            sleeper
        }

        fn pid(&self) -> i32 {
            self.0.id() as i32
        }

        /// In a moment it is stopped, or is not.
        fn assert_stopped(&self, stopped: bool) {
            let end = Instant::now() + Duration::from_secs(60);
            while is_job_stopped(self.pid()).unwrap() != stopped {
                assert!(Instant::now() < end, "stopped is not {stopped}");
                std::thread::sleep(AGAIN);
            }
        }
    }

    impl Drop for Sleeper {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    /// What comes of holding a process whose watcher stops it and then says this.
    fn hold_by(sleeper: &Sleeper, answer: &str) -> Result<Held> {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open_or_create(folder.path()).unwrap();
        hold_in(&store, sleeper, answer)
    }

    fn hold_in(store: &Store, sleeper: &Sleeper, answer: &str) -> Result<Held> {
        let (pid, answer) = (sleeper.pid(), answer.to_owned());
        let listener = UnixListener::bind(control::socket_path(store.dir(), pid)).unwrap();
        let watching = std::thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let mut request = String::new();
            BufReader::new(&stream).read_line(&mut request).unwrap();
            assert!(request.contains("stop"), "{request}");
            kill_process(Pid::from_raw(pid).unwrap(), Signal::STOP).unwrap();
            (&stream).write_all(answer.as_bytes()).unwrap();
        });
        let watcher = control::connect(store.dir(), pid).unwrap().unwrap();
        let held = Source::Watched(watcher, store.clone(), pid, Also::default()).hold();
        watching.join().unwrap();
        held
    }

    #[test]
    fn a_process_whose_watcher_fails_goes_on() {
        for answer in ["", "{\"failed\":\"no room\"}\n"] {
            let sleeper = Sleeper::start();
            let error = hold_by(&sleeper, answer).err().expect("no snapshot");
            assert!(matches!(error, SessionError::Control { .. }), "{error}");
            sleeper.assert_stopped(false);
        }
    }

    #[test]
    fn a_process_that_a_rollback_has_left_mixed_meanwhile_stays_stopped() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open_or_create(folder.path()).unwrap();
        let sleeper = Sleeper::start();
        let pid = sleeper.pid();
        let stat = proc::stat(pid, None).unwrap();
        let info = SessionInfo {
            pid,
            start_time: stat.start_time,
            ..SessionInfo::default()
        };
        let id = store.create_session(&info).unwrap().id();
        let mm = proc::mm_fields(&stat);
        let mark = Mixed {
            pid,
            start_time: stat.start_time,
            program: (mm.start_stack, mm.arg_start),
        };
        store.mark_mixed(id, &mark).unwrap();
        assert!(hold_in(&store, &sleeper, "").is_err());
        sleeper.assert_stopped(true);
        std::thread::sleep(Duration::from_millis(20));
        sleeper.assert_stopped(true);
    }

    #[test]
    fn whether_a_process_was_stopped_is_not_guessed_while_it_is_traced() {
        let sleeper = Sleeper::start();
        let frozen = freeze(sleeper.pid()).unwrap();
        let error = is_job_stopped(sleeper.pid()).expect_err("it is traced");
        assert!(error.to_string().contains("try again"), "{error}");
        frozen.thaw();
        sleeper.assert_stopped(false);
    }

    #[test]
    fn a_stop_does_not_begin_before_it_is_asked_for_wherever_the_clock_was_set() {
        // In 1970.
        let taken = Taken {
            id: crate::model::SnapshotId([7; 16]),
            seq: 1,
            kind: crate::model::SnapshotKind::Base,
            time_ns: 0,
            costs: crate::model::Costs::default(),
            unsupported: Vec::new(),
            file_bytes: 0,
            kept: None,
            notes: Vec::new(),
        };
        let answer = serde_json::to_string(&control::Reply::Taken(Box::new(taken))).unwrap();
        let sleeper = Sleeper::start();
        let before = monotonic_ns();
        let held = hold_by(&sleeper, &(answer + "\n")).unwrap();
        assert!(held.stopped_at >= before, "{} {before}", held.stopped_at);
    }

    #[test]
    fn a_process_that_its_user_had_stopped_stays_stopped() {
        let sleeper = Sleeper::start();
        kill_process(Pid::from_raw(sleeper.pid()).unwrap(), Signal::STOP).unwrap();
        sleeper.assert_stopped(true);
        assert!(hold_by(&sleeper, "").is_err());
        sleeper.assert_stopped(true);
    }
}
