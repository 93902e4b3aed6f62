//! Stopping every thread of a process, and letting it go on whatever happens.

use super::alarm::Alarm;
use super::interrupted::{forget_waits, keep_waiting};
use super::ptrace::{self, Event, Options, Tid};
use super::{Result, SysError, proc};
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::io;
use std::time::{Duration, Instant};

/// How long to wait for a thread that must stop before it can be let go.
const LETTING_GO: Duration = Duration::from_millis(250);
/// How long to wait for another tracer that may be gone in a moment, as another ksnap is.
const TURN: Duration = Duration::from_millis(100);

/// How the process is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    /// By ptrace alone: if ksnap dies, the process runs on at once, as if nothing had been.
    Trace,
    /// In a job-control stop as well: if ksnap dies, the process stays stopped. For work that must
    /// never be left half done with the process running.
    JobControl,
}

/// Options of a freeze.
#[derive(Clone, Copy, Debug)]
pub struct Freeze {
    /// How to hold it.
    pub hold: Hold,
    /// How long a thread may take to stop. One that sleeps uninterruptibly, as in vfork(2), never does.
    pub timeout: Duration,
}

impl Default for Freeze {
    fn default() -> Self {
        Self {
            hold: Hold::Trace,
            timeout: Duration::from_secs(2),
        }
    }
}

/// A process all of whose threads are stopped. Thaws on drop.
///
/// Belongs to the thread that froze: only that one is the tracer.
#[derive(Debug)]
pub struct Frozen {
    pid: i32,
    threads: Vec<Tid>,
    hold: Hold,
    /// It was in a job-control stop before we came, and stays in it.
    was_stopped: bool,
    not_send: std::marker::PhantomData<*const ()>,
}

impl Frozen {
    /// Stops every thread of the process.
    ///
    /// # Errors
    /// EPERM when it may not be traced or something traces it already, and for more than a moment, ESRCH when it is gone,
    /// `TimedOut` when a thread does not stop. Nothing stays stopped after an error.
    pub fn freeze(pid: i32, options: Freeze) -> Result<Self> {
        Self::freeze_in_turn(pid, options, TURN)
    }

    /// The same; another tracer is waited for this long.
    fn freeze_in_turn(pid: i32, options: Freeze, turn: Duration) -> Result<Self> {
        release_strays();
        // Outlives the frozen set when an error drops it: letting go waits as well.
        let alarm = Alarm::start(options.timeout)?;
        let turn = Instant::now() + turn;
        let mut denied = false;
        loop {
            let mut frozen = Self {
                pid,
                threads: Vec::new(),
                hold: Hold::Trace,
                was_stopped: false,
                not_send: std::marker::PhantomData,
            };
            match frozen.stop_all(options.hold, &alarm) {
                Ok(()) => return Ok(frozen),
                // Every thread that was there is gone, but one took over the process: execve(2).
                Err(e) if e.is_vanished() && Instant::now() < alarm.end && proc::is_alive(pid) => {}
                Err(e) if e.is_denied() && Instant::now() < turn => {
                    drop(frozen);
                    // One that was there then may be gone by now.
                    if !is_traced(pid) && std::mem::replace(&mut denied, true) {
                        return Err(e);
                    }
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err(e) => return Err(e),
            }
        }
    }

    fn stop_all(&mut self, hold: Hold, alarm: &Alarm) -> Result<()> {
        let was_stopped = hold == Hold::JobControl
            && match proc::stat(self.pid, None)?.state {
                // Another tracer holds it, and hides whether it was.
                't' if !is_ours(self.pid) => {
                    let held = io::Error::from_raw_os_error(libc::EPERM);
                    let what = format_args!("process {}, which another tracer holds", self.pid);
                    return Err(SysError::new("PTRACE_SEIZE", what, held));
                }
                state => state == 'T',
            };
        let mut seen = BTreeSet::new();
        let mut group_stopped = false;
        let mut signalled = false;
        loop {
            let listed = proc::threads(self.pid)?;
            let count = listed.len();
            let new: Vec<Tid> = listed.into_iter().filter(|tid| seen.insert(*tid)).collect();
            if new.is_empty() {
                // A list that was read while a thread ended may lack another one.
                match proc::thread_count(self.pid)? == count {
                    true => break,
                    false if Instant::now() < alarm.end => continue,
                    false => return Err(unlisted(self.pid)),
                }
            }
            let mut seized = Vec::with_capacity(new.len());
            for tid in new {
                match seize(tid) {
                    Ok(()) => seized.push(tid),
                    // Seized under the id that it had before an execve(2), or given up for one that does
                    // not stop.
                    Err(_) if is_ours(tid) => seized.push(tid),
                    Err(e) if is_gone(self.pid, tid, &e) => {
                        await_end(self.pid, tid, alarm.end);
                        continue;
                    }
                    Err(e) => {
                        self.threads.append(&mut seized);
                        return Err(e);
                    }
                }
                if hold == Hold::Trace {
                    let _ = ptrace::interrupt(tid);
                }
            }
            if hold == Hold::JobControl && !signalled {
                signalled = true;
                group_stopped = was_stopped;
                if !was_stopped {
                    kill(self.pid, libc::SIGSTOP)?;
                }
                // From here on an error must take that back as well.
                (self.hold, self.was_stopped) = (hold, was_stopped);
            }
            // From here on an error must thaw these too.
            let mut waiting = seized.clone();
            self.threads.append(&mut seized);
            while !waiting.is_empty() {
                match next_stop(&waiting, &self.threads, alarm.end)? {
                    (tid, Some(in_group_stop)) => {
                        group_stopped |= in_group_stop && hold == Hold::Trace;
                        waiting.retain(|t| *t != tid);
                    }
                    (tid, None) => {
                        self.forget(tid);
                        waiting.retain(|t| *t != tid);
                    }
                }
            }
        }
        self.hold = hold;
        self.was_stopped = group_stopped;
        if self.threads.is_empty() {
            return Err(vanished(self.pid));
        }
        for &tid in &self.threads {
            // A thread that runs 32-bit code is refused by those who look at it; one that is gone
            // waits for nothing.
            if let Err(e) = keep_waiting(self.pid, tid) {
                tracing::debug!("{e}");
            }
        }
        if hold == Hold::JobControl {
            forget_waits(&self.threads);
        }
        Ok(())
    }

    /// A process that this thread traces already, all of whose threads are stopped, with a SIGSTOP on its way. `stopped`:
    /// it was in a job-control stop, and stays in it.
    pub(super) fn held(pid: i32, threads: Vec<Tid>, stopped: bool) -> Self {
        Self {
            pid,
            threads,
            hold: Hold::JobControl,
            was_stopped: stopped,
            not_send: std::marker::PhantomData,
        }
    }

    /// The process.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Its threads, stopped; the leader first unless it has ended before the others.
    pub fn threads(&self) -> &[Tid] {
        &self.threads
    }

    /// It was in a job-control stop before it was frozen.
    pub fn is_job_stopped(&self) -> bool {
        self.was_stopped
    }

    /// Takes a thread into the frozen set that was started stopped and traced by injected calls.
    pub fn adopt(&mut self, tid: Tid) {
        self.threads.push(tid);
    }

    /// Takes a thread that has ended out of the frozen set.
    pub fn forget(&mut self, tid: Tid) {
        self.threads.retain(|t| *t != tid);
    }

    /// Lets the process go on. Same as dropping, said aloud.
    pub fn thaw(self) {}

    /// Lets the process go with a signal that it gets before it runs anything. After SIGKILL, returns
    /// when it is gone, or a zombie that its parent has not waited for.
    pub fn end_with(self, signal: i32) -> Result<()> {
        self.signal(signal)?;
        if signal == libc::SIGKILL {
            self.await_end();
        }
        Ok(())
    }

    /// Sends a signal that the process gets before it runs anything. It stays stopped until this is dropped.
    pub fn signal(&self, signal: i32) -> Result<()> {
        kill(self.pid, signal)
    }

    /// Waits until a process that has been sent SIGKILL is gone, or a zombie that its parent has not waited for.
    pub fn await_end(self) {
        // The last thread is the leader: its end waits until the tracer has met those of the others.
        for tid in self.threads.iter().rev() {
            while !matches!(ptrace::wait(*tid), Ok(Event::Exited(_)) | Err(_)) {}
        }
    }

    /// Ends tracing but leaves the process in its job-control stop: for work that failed in the
    /// middle. Only meaningful with [`Hold::JobControl`].
    pub fn leave_stopped(mut self) {
        self.was_stopped = true;
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        // A panic is as good as the tracer's death: what was half done must not run.
        if self.hold == Hold::JobControl && !self.was_stopped && !std::thread::panicking() {
            let _ = kill(self.pid, libc::SIGCONT);
        }
        for tid in &self.threads {
            if ptrace::detach(*tid).is_err() {
                // Still on its way to a stop (an error came first), or gone: a tracee can only be
                // let go from a stop.
                if ptrace::interrupt(*tid).is_err() {
                    continue;
                }
                match next_stop(&[*tid], &self.threads, Instant::now() + LETTING_GO) {
                    Ok(_) => drop(ptrace::detach(*tid)),
                    Err(_) => STRAYS.with_borrow_mut(|strays| strays.push(*tid)),
                }
            }
        }
    }
}

thread_local! {
    /// Threads that did not stop in time: still seized, and bound to stop once they leave the kernel.
    static STRAYS: RefCell<Vec<Tid>> = const { RefCell::new(Vec::new()) };
}

/// Lets go of threads that stopped only after their freeze was given up. A tracer that goes on
/// working after a timed-out freeze calls this now and then; its exit does the same.
pub fn release_strays() {
    STRAYS.with_borrow_mut(|strays| {
        strays.retain(|&tid| match ptrace::try_wait(tid) {
            Ok(None) => true,
            Ok(Some(Event::Signal(signal))) => ptrace::cont(tid, signal).is_ok(),
            Ok(Some(Event::Stopped | Event::GroupStopped)) => ptrace::detach(tid).is_err(),
            Ok(Some(Event::Syscall | Event::Clone)) => ptrace::cont(tid, 0).is_ok(),
            Ok(Some(Event::Exited(_))) | Err(_) => false,
        });
    });
}

/// Waits until one of the threads `waiting` is stopped as requested, passing signals on meanwhile: its id, and
/// `Some(true)` for a job-control stop, `None` for a thread that has ended. Gives up at `end`, where an [`Alarm`]
/// is set.
fn next_stop(waiting: &[Tid], all: &[Tid], end: Instant) -> Result<(Tid, Option<bool>)> {
    let first = waiting[0];
    loop {
        match ptrace::wait(first) {
            Err(e) if e.errno() == Some(libc::EINTR) && Instant::now() < end => {
                // A thread in execve(2) waits until all others are gone for good, which those are only
                // when their tracer has met their end.
                all.iter().for_each(|other| ptrace::meet_end(*other));
                // And the signal that is to stop them all may have gone to another one, which has to be
                // told to take it.
                for other in &waiting[1..] {
                    if let Some(event) = ptrace::try_wait(*other).transpose()
                        && let Some(stop) = stop_of(*other, event)?
                    {
                        return Ok((*other, stop));
                    }
                }
            }
            Err(e) if e.errno() == Some(libc::EINTR) => {
                return Err(SysError::new(
                    "freeze",
                    format_args!("thread {first}"),
                    io::Error::new(
                        io::ErrorKind::TimedOut,
                        "it does not stop: it sleeps uninterruptibly in the kernel (vfork, a hung disk or network file)",
                    ),
                ));
            }
            event => {
                if let Some(stop) = stop_of(first, event)? {
                    return Ok((first, stop));
                }
            }
        }
    }
}

/// What an event says of a thread that is to stop; nothing yet if it goes on first.
fn stop_of(tid: Tid, event: Result<Event>) -> Result<Option<Option<bool>>> {
    match event {
        Ok(Event::Stopped) => Ok(Some(Some(false))),
        Ok(Event::GroupStopped) => Ok(Some(Some(true))),
        Ok(Event::Exited(_)) => Ok(Some(None)),
        Ok(Event::Signal(signal)) => {
            // Delivered now, so that no signal is in flight while frozen: the handler's frame is part of
            // what is captured.
            let _ = ptrace::cont(tid, signal);
            Ok(None)
        }
        Ok(Event::Syscall | Event::Clone) => {
            let _ = ptrace::cont(tid, 0);
            Ok(None)
        }
        Err(e) if e.is_vanished() => Ok(Some(None)),
        Err(e) => Err(e),
    }
}

fn own_tid() -> Tid {
    rustix::thread::gettid().as_raw_nonzero().get()
}

/// This thread is its tracer already.
fn is_ours(tid: Tid) -> bool {
    proc::status(tid).is_ok_and(|status| status.tracer == own_tid())
}

/// Waits, a moment at most, until nobody but this thread traces the process. Gives who still does then.
pub fn await_turn(pid: i32) -> Option<Tid> {
    let own = own_tid();
    let end = Instant::now() + TURN;
    loop {
        let tracer = proc::status(pid).map_or(0, |status| status.tracer);
        if tracer == 0 || tracer == own {
            return None;
        }
        if Instant::now() > end {
            return Some(tracer);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Whether anybody traces a thread of the process.
fn is_traced(pid: i32) -> bool {
    let threads = proc::threads(pid).unwrap_or_default();
    let mut tracers = threads.iter().filter_map(|tid| proc::status(*tid).ok());
    tracers.any(|status| status.tracer != 0)
}

/// Waits until a thread that is about to end has left the memory: on its way out it clears the word that
/// pthread_join(3) waits for. A snapshot that has neither the thread nor the cleared word would wait for ever.
fn await_end(pid: i32, tid: Tid, end: Instant) {
    let leaves = || proc::stat(pid, Some(tid)).is_ok_and(|stat| !matches!(stat.state, 'Z' | 'X'));
    while leaves() && Instant::now() < end {
        std::thread::sleep(Duration::from_micros(50));
    }
}

/// Becomes the tracer of a thread. In the middle of an execve(2) the kernel denies that for a moment,
/// whoever asks.
fn seize(tid: Tid) -> Result<()> {
    const ATTEMPTS: u32 = 8;
    const AN_EXEC: Duration = Duration::from_micros(500);
    let mut attempt = 1;
    loop {
        match ptrace::seize(tid, Options::default()) {
            Err(e) if e.is_denied() && attempt < ATTEMPTS && !is_ours(tid) => {
                attempt += 1;
                std::thread::sleep(AN_EXEC);
            }
            done => return done,
        }
    }
}

/// The thread has ended, or is about to.
fn is_gone(pid: i32, tid: Tid, error: &SysError) -> bool {
    if error.is_vanished() {
        return true;
    }
    match proc::stat(pid, Some(tid)) {
        Ok(stat) => stat.is_exiting(),
        Err(e) => e.is_vanished(),
    }
}

fn unlisted(pid: i32) -> SysError {
    SysError::new(
        "freeze",
        format_args!("process {pid}"),
        io::Error::new(
            io::ErrorKind::TimedOut,
            "the list of its threads in /proc never has all of them",
        ),
    )
}

fn vanished(pid: i32) -> SysError {
    SysError::new(
        "freeze",
        format_args!("process {pid}"),
        io::Error::from_raw_os_error(libc::ESRCH),
    )
}

fn kill(pid: i32, signal: i32) -> Result<()> {
    // SAFETY: a system call without pointers.
    match unsafe { libc::kill(pid, signal) } {
        0 => Ok(()),
        _ => Err(SysError::last("kill", format_args!("process {pid}"))),
    }
}

#[cfg(test)]
mod tests;
