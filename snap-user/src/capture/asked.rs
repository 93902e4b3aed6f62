//! What only a process itself can tell, where the probes do not: it is asked by system calls that it runs.
//!
//! Each asking is a short stop of its own, before the one of the snapshot, and no more often than is good
//! for the process: what is told is then up to a second old, and the manifest says how old.

use super::{CaptureError, Result};
use crate::model::{
    AltStack, IntervalTimer, ProcessAttributes, SignalAction, Source, ThreadAttributes, Vma,
};
use crate::sys::ptrace::Tid;
use crate::sys::{
    self, Call, Freeze, Frozen, Gadgets, Guarded, Question, SysError, ask, monotonic_ns, proc,
};
use std::collections::HashMap;
use std::time::Duration;

/// How long an answer is believed, in nanoseconds.
const FRESH: u64 = 1_000_000_000;
/// How long to leave a process alone that could not be asked.
const RETRY: u64 = 10_000_000_000;
/// Threads that are asked in one stop, besides the first.
const PER_STOP: usize = 16;
/// Stops to ask all threads that have not been asked, in one round.
const MOST_STOPS: usize = 32;
/// Threads that are asked inside the stop of a snapshot, having begun just before it.
const LATE: usize = 4;
const PATIENCE: Duration = Duration::from_millis(100);

const PR_GET_MDWE: u64 = 66;
const MEMBARRIER_GET_REGISTRATIONS: u64 = 1 << 9;
/// `SS_ONSTACK` and `SS_DISABLE`: of the moment, not of the setting.
const SS_STATE: u32 = 3;

/// Answers.
#[derive(Debug, Default)]
pub(super) struct Asked {
    gadgets: Option<Gadgets>,
    /// When the process was asked last, or could not be.
    asked_ns: Option<u64>,
    dispositions: [u64; 2],
    process: ProcessAttributes,
    securebits: Option<u32>,
    threads: HashMap<Tid, ThreadAttributes>,
    /// Why there are no answers.
    why: Option<String>,
}

impl Asked {
    /// Asks again what may have changed.
    pub fn refresh(&mut self, pid: i32, vmas: &[Vma]) -> Result<()> {
        let now = monotonic_ns();
        let age = self.asked_ns.map(|then| now - then);
        if self.why.is_some() && age.is_some_and(|age| age < RETRY) {
            return Ok(());
        }
        let Ok(status) = proc::task_status(pid, pid) else {
            return Ok(());
        };
        let tids = proc::threads(pid).map_err(|e| CaptureError::from_sys(pid, e))?;
        self.threads.retain(|tid, _| tids.contains(tid));
        let new = tids.iter().any(|tid| !self.threads.contains_key(tid));
        let changed = status.dispositions != self.dispositions;
        if !new && !changed && age.is_some_and(|age| age < FRESH) {
            return Ok(());
        }
        match self.ask_all(pid, vmas, changed || age.is_none_or(|age| age >= FRESH)) {
            Ok(()) => {
                self.why = None;
                self.dispositions = status.dispositions;
            }
            Err(e) if e.is_vanished() => return Err(CaptureError::from_sys(pid, e)),
            Err(e) => self.why = Some(e.to_string()),
        }
        self.asked_ns = Some(monotonic_ns());
        Ok(())
    }

    /// Asks the first thread about the process if `stale`, then each thread that has not been asked.
    fn ask_all(&mut self, pid: i32, vmas: &[Vma], stale: bool) -> sys::Result<()> {
        let gadgets = match self.gadgets {
            Some(gadgets) => gadgets,
            None => {
                let none = || {
                    let source = std::io::Error::new(
                        std::io::ErrorKind::Unsupported,
                        "its code has no system call to borrow",
                    );
                    SysError::new("inject system calls", format_args!("process {pid}"), source)
                };
                *self
                    .gadgets
                    .insert(Gadgets::find(pid, vmas)?.ok_or_else(none)?)
            }
        };
        let options = Freeze {
            timeout: PATIENCE,
            ..Freeze::default()
        };
        for stop in 0..MOST_STOPS {
            let frozen = Frozen::freeze(pid, options)?;
            if stop == 0 && stale {
                self.ask_process(&frozen, &gadgets, vmas)?;
            }
            let unasked: Vec<Tid> = frozen
                .threads()
                .iter()
                .copied()
                .filter(|tid| !self.threads.contains_key(tid))
                .collect();
            for &tid in unasked.iter().take(PER_STOP) {
                let answers = thread(&frozen, tid, &gadgets, vmas)?;
                self.threads.insert(tid, answers);
            }
            if unasked.len() <= PER_STOP {
                break;
            }
        }
        Ok(())
    }

    fn ask_process(&mut self, frozen: &Frozen, gadgets: &Gadgets, vmas: &[Vma]) -> sys::Result<()> {
        let tid = frozen.threads()[0];
        let mut timers = proc::timers(frozen.pid())?;
        let mut questions: Vec<Question> = (1..=64)
            .map(|signal| {
                // Signal, new, old, size of a mask.
                question(libc::SYS_rt_sigaction, [signal, 0, 0, 8], 2, 32)
            })
            .collect();
        questions
            .extend((0..3).map(|which| question(libc::SYS_getitimer, [which, 0, 0, 0], 1, 32)));
        questions.push(question(
            libc::SYS_prctl,
            [libc::PR_GET_CHILD_SUBREAPER as u64, 0, 0, 0],
            1,
            4,
        ));
        questions.extend(
            timers
                .iter()
                .map(|t| question(libc::SYS_timer_gettime, [t.id as u64, 0, 0, 0], 1, 32)),
        );
        let answers = ask(frozen, tid, gadgets, vmas, &questions)?;
        let (actions, rest) = answers.split_at(64);
        let (intervals, rest) = rest.split_at(3);
        let (subreaper, left) = rest.split_at(1);
        for (timer, answer) in timers.iter_mut().zip(left) {
            if let Some(answer) = answer {
                let [interval, left] = times(answer, 1);
                (timer.interval_ns, timer.left_ns) = (interval, left);
            }
        }
        // What returns its result is asked one by one.
        let mut thread = Guarded::new(frozen, gadgets, vmas)?;
        let mut value = |nr: i64, args: [u64; 2]| -> Option<u32> {
            let args = [args[0], args[1], 0, 0, 0, 0];
            let result = thread.call(Call { nr, args }, None).ok()?;
            u32::try_from(result).ok()
        };
        self.process = ProcessAttributes {
            signals: actions.iter().map(|a| a.as_deref().map(action)).collect(),
            interval_timers: match intervals {
                [Some(real), Some(virtual_time), Some(profiling)] => {
                    Some([real, virtual_time, profiling].map(|answer| {
                        let [interval_ns, left_ns] = times(answer, 1000);
                        IntervalTimer {
                            left_ns,
                            interval_ns,
                        }
                    }))
                }
                _ => None,
            },
            timers: Some(timers),
            subreaper: subreaper[0].as_deref().map(|answer| number(answer) != 0),
            dumpable: value(libc::SYS_prctl, [libc::PR_GET_DUMPABLE as u64, 0]),
            write_execute_denied: value(libc::SYS_prctl, [PR_GET_MDWE, 0]),
            membarrier: value(libc::SYS_membarrier, [MEMBARRIER_GET_REGISTRATIONS, 0]),
            ..ProcessAttributes::default()
        };
        self.securebits = value(libc::SYS_prctl, [libc::PR_GET_SECUREBITS as u64, 0]);
        Ok(())
    }

    /// Asks everything, inside a stop that may take its time.
    pub fn now(&mut self, frozen: &Frozen, vmas: &[Vma]) {
        let pid = frozen.pid();
        let gadgets = match self.gadgets {
            Some(gadgets) => Some(gadgets),
            None => Gadgets::find(pid, vmas).ok().flatten(),
        };
        let Some(gadgets) = gadgets else {
            return;
        };
        let asked = self.ask_process(frozen, &gadgets, vmas).and_then(|()| {
            for &tid in frozen.threads() {
                let answers = thread(frozen, tid, &gadgets, vmas)?;
                self.threads.insert(tid, answers);
            }
            Ok(())
        });
        self.why = asked.err().map(|e| e.to_string());
        self.asked_ns = Some(monotonic_ns());
    }

    /// Asks the threads that have begun since, inside the stop of a snapshot.
    pub fn late(&mut self, frozen: &Frozen, vmas: &[Vma]) {
        let Some(gadgets) = self.gadgets.filter(|_| self.why.is_none()) else {
            return;
        };
        for &tid in frozen.threads() {
            if self.threads.contains_key(&tid) {
                continue;
            }
            let unasked = frozen.threads().len().saturating_sub(self.threads.len());
            if unasked > LATE {
                return;
            }
            match thread(frozen, tid, &gadgets, vmas) {
                Ok(answers) => drop(self.threads.insert(tid, answers)),
                Err(e) => tracing::debug!("{e}"),
            }
        }
    }

    /// Adds the answers about a process to what files have told.
    pub fn add_process(&self, process: &mut ProcessAttributes, unsupported: &mut Vec<String>) {
        if let Some(why) = &self.why {
            unsupported.push(format!(
                "signal dispositions, timers and settings of prctl(2) cannot be read: {why}"
            ));
        }
        let Some(asked_ns) = self.asked_ns.filter(|_| self.why.is_none()) else {
            return;
        };
        let age_ns = monotonic_ns() - asked_ns;
        process.signals.clone_from(&self.process.signals);
        process.interval_timers = self.process.interval_timers;
        process.timers.clone_from(&self.process.timers);
        process.subreaper = self.process.subreaper;
        process.dumpable = self.process.dumpable;
        process.write_execute_denied = self.process.write_execute_denied;
        process.membarrier = self.process.membarrier;
        process.source = Source::Calls { age_ns };
    }

    /// Adds the answers of a thread to what files have told.
    pub fn add_thread(
        &self,
        tid: Tid,
        thread: &mut ThreadAttributes,
        unsupported: &mut Vec<String>,
    ) {
        if let Some(credentials) = &mut thread.credentials {
            credentials.securebits = self.securebits;
        }
        match self.threads.get(&tid) {
            Some(answers) => {
                thread.alt_stack = answers.alt_stack;
                thread.clear_child_tid = answers.clear_child_tid;
                thread.parent_death_signal = answers.parent_death_signal;
                thread.tsc_faults = answers.tsc_faults;
            }
            None if self.why.is_none() => unsupported.push(format!(
                "thread {tid} had just begun: its alternate stack and its settings of prctl(2) were not read"
            )),
            None => {}
        }
    }
}

fn question(nr: i64, args: [u64; 4], at: usize, len: usize) -> Question {
    let [a, b, c, d] = args;
    Question {
        call: Call {
            nr,
            args: [a, b, c, d, 0, 0],
        },
        at,
        len,
    }
}

/// Asks one thread about itself.
fn thread(
    frozen: &Frozen,
    tid: Tid,
    gadgets: &Gadgets,
    vmas: &[Vma],
) -> sys::Result<ThreadAttributes> {
    let prctl = |option: i32, len| question(libc::SYS_prctl, [option as u64, 0, 0, 0], 1, len);
    let questions = [
        question(libc::SYS_sigaltstack, [0; 4], 1, 24),
        prctl(libc::PR_GET_TID_ADDRESS, 8),
        prctl(libc::PR_GET_PDEATHSIG, 4),
        prctl(libc::PR_GET_TSC, 4),
    ];
    let answers = ask(frozen, tid, gadgets, vmas, &questions)?;
    let [stack, address, signal, tsc] = answers.as_slice() else {
        unreachable!("an answer for each question")
    };
    Ok(ThreadAttributes {
        alt_stack: stack.as_deref().map(|answer| AltStack {
            sp: word(answer, 0),
            flags: word(answer, 1) as u32 & !SS_STATE,
            size: word(answer, 2),
        }),
        clear_child_tid: address.as_deref().map(|answer| word(answer, 0)),
        parent_death_signal: signal.as_deref().map(|answer| number(answer) as i32),
        tsc_faults: tsc
            .as_deref()
            .map(|answer| number(answer) == libc::PR_TSC_SIGSEGV as u32),
        ..ThreadAttributes::default()
    })
}

fn word(bytes: &[u8], n: usize) -> u64 {
    u64::from_ne_bytes(bytes[n * 8..n * 8 + 8].try_into().expect("eight bytes"))
}

fn number(bytes: &[u8]) -> u32 {
    u32::from_ne_bytes(bytes[..4].try_into().expect("four bytes"))
}

fn action(answer: &[u8]) -> SignalAction {
    SignalAction {
        handler: word(answer, 0),
        flags: word(answer, 1),
        restorer: word(answer, 2),
        mask: word(answer, 3),
    }
}

/// Interval and time left, of a pair of seconds and parts of seconds that are `unit` nanoseconds each.
fn times(answer: &[u8], unit: u64) -> [u64; 2] {
    [0, 2].map(|n| word(answer, n) * 1_000_000_000 + word(answer, n + 1) * unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_in_nanoseconds() {
        let bytes: Vec<u8> = [1u64, 2, 3, 4]
            .iter()
            .flat_map(|w| w.to_ne_bytes())
            .collect();
        assert_eq!(times(&bytes, 1000), [1_000_002_000, 3_000_004_000]);
        assert_eq!(times(&bytes, 1), [1_000_000_002, 3_000_000_004]);
    }
}
