//! What only a process itself can tell, where the probes do not: it is asked by system calls that it runs.
//!
//! It is asked inside the stop of the snapshot: about the process, and thread by thread as far as time allows. Of a process with many threads each stop asks some, and the others' answers are older; the
//! manifest says how old.

use super::{CaptureError, Result};
use crate::model::{
    AltStack, Credentials, IntervalTimer, ProcessAttributes, SignalAction, Source,
    ThreadAttributes, Vma,
};
use crate::sys::ptrace::Tid;
use crate::sys::{
    self, Call, Freeze, Frozen, Gadgets, Question, ask, ask_values, monotonic_ns, proc,
};
use std::collections::HashMap;
use std::time::Duration;

/// How long a stop may be made longer, in nanoseconds.
const BUDGET: u64 = 700_000;
/// How long to leave a process alone that could not be asked.
const RETRY: u64 = 10_000_000_000;
/// Threads that are asked in one stop, besides the first.
const PER_STOP: usize = 16;
/// Stops to ask all threads that have not been asked, in one round.
const MOST_STOPS: usize = 32;
/// Threads that the stop of a snapshot asks each time: with more, those not yet asked are asked ahead of it, and
/// each stop asks some again.
const FEW: usize = 6;
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
    process: ProcessAttributes,
    /// Each thread's answers, and when it gave them.
    threads: HashMap<Tid, (u64, ThreadAttributes)>,
    /// Why there are no answers.
    why: Option<String>,
}

impl Asked {
    /// Asks, ahead of a stop, threads that have not been asked, where there are many.
    pub fn refresh(&mut self, pid: i32, vmas: &[Vma]) -> Result<()> {
        let now = monotonic_ns();
        if self.why.is_some() && self.asked_ns.is_some_and(|then| now - then < RETRY) {
            return Ok(());
        }
        let sys = |e| CaptureError::from_sys(pid, e);
        if self.gadgets.is_none() {
            self.gadgets = Gadgets::find(pid, vmas).map_err(sys)?;
        }
        let tids = proc::threads(pid).map_err(sys)?;
        self.threads.retain(|tid, _| tids.contains(tid));
        let new = tids.iter().filter(|tid| !self.threads.contains_key(tid));
        if new.count() <= FEW {
            return Ok(());
        }
        match self.ask_new(pid, vmas) {
            Err(e) if e.is_vanished() => Err(sys(e)),
            // They may be asked yet.
            Err(e) => {
                tracing::debug!("{e}");
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    fn ask_new(&mut self, pid: i32, vmas: &[Vma]) -> sys::Result<()> {
        let Some(gadgets) = self.gadgets else {
            return Ok(());
        };
        let options = Freeze {
            timeout: PATIENCE,
            ..Freeze::default()
        };
        for _ in 0..MOST_STOPS {
            let frozen = Frozen::freeze(pid, options)?;
            let new = |tid: &&Tid| !self.threads.contains_key(tid);
            let new: Vec<Tid> = frozen.threads().iter().filter(new).copied().collect();
            for &tid in new.iter().take(PER_STOP) {
                self.ask_thread(&frozen, tid, &gadgets, vmas)?;
            }
            if new.len() <= PER_STOP {
                break;
            }
        }
        Ok(())
    }

    fn ask_thread(
        &mut self,
        frozen: &Frozen,
        tid: Tid,
        gadgets: &Gadgets,
        vmas: &[Vma],
    ) -> sys::Result<()> {
        let answers = thread(frozen, tid, gadgets, vmas)?;
        self.threads.insert(tid, (monotonic_ns(), answers));
        Ok(())
    }

    fn ask_process(&mut self, frozen: &Frozen, gadgets: &Gadgets, vmas: &[Vma]) -> sys::Result<()> {
        let tid = frozen.threads()[0];
        let mut timers = proc::timers(frozen.pid())?;
        // All of them: one that has its default way may have flags and a mask for the day it has not.
        let signals: Vec<u64> = (1..=64).collect();
        let mut questions: Vec<Question> = signals
            .iter()
            .map(|signal| {
                // Signal, new, old, size of a mask.
                question(libc::SYS_rt_sigaction, [*signal, 0, 0, 8], 2, 32)
            })
            .collect();
        let which = [0, 1, 2].map(|which| question(libc::SYS_getitimer, [which, 0, 0, 0], 1, 32));
        questions.extend(which);
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
        let (actions, rest) = answers.split_at(signals.len());
        let (intervals, rest) = rest.split_at(3);
        let (subreaper, left) = rest.split_at(1);
        for (timer, answer) in timers.iter_mut().zip(left) {
            if let Some(answer) = answer {
                let [interval, left] = times(answer, 1);
                (timer.interval_ns, timer.left_ns) = (interval, left);
            }
        }
        // What returns its result is asked one by one, and not at all where that might do harm.
        let call = |nr, option| Call {
            nr,
            args: [option, 0, 0, 0, 0, 0],
        };
        let calls = [
            call(libc::SYS_prctl, libc::PR_GET_DUMPABLE as u64),
            call(libc::SYS_prctl, PR_GET_MDWE),
            call(libc::SYS_membarrier, MEMBARRIER_GET_REGISTRATIONS),
        ];
        let values = ask_values(frozen, tid, gadgets, vmas, &calls);
        let value = |n: usize| -> Option<u32> {
            let values = values.as_ref().ok()?;
            u32::try_from(values[n]).ok()
        };
        self.process = ProcessAttributes {
            signals: dispositions(&signals, actions),
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
            dumpable: value(0),
            write_execute_denied: value(1),
            membarrier: value(2),
            ..ProcessAttributes::default()
        };
        Ok(())
    }

    /// Asks inside a stop: everything if it may take its `time`, else as much as a short stop allows, what
    /// has not been asked first.
    pub fn now(&mut self, frozen: &Frozen, vmas: &[Vma], time: bool) {
        let begun = monotonic_ns();
        if self.gadgets.is_none() {
            self.gadgets = Gadgets::find(frozen.pid(), vmas).ok().flatten();
        }
        let known = self.why.is_some() && self.asked_ns.is_some_and(|then| begun - then < RETRY);
        if known && !time {
            return;
        }
        self.why = match self.gadgets {
            None => Some("its code has no system call to borrow".to_owned()),
            Some(gadgets) => self
                .ask_in_turn(frozen, &gadgets, vmas, time.then_some(begun))
                .err(),
        };
        self.asked_ns = Some(begun);
    }

    fn ask_in_turn(
        &mut self,
        frozen: &Frozen,
        gadgets: &Gadgets,
        vmas: &[Vma],
        patient: Option<u64>,
    ) -> std::result::Result<(), String> {
        let begun = monotonic_ns();
        let text = |e: sys::SysError| e.to_string();
        self.ask_process(frozen, gadgets, vmas).map_err(text)?;
        let mut tids = frozen.threads().to_vec();
        tids.sort_by_key(|tid| self.threads.get(tid).map_or(0, |(asked, _)| *asked));
        for tid in tids {
            // Those never asked are few: many were asked ahead of the stop.
            let over = monotonic_ns() - begun > BUDGET && self.threads.contains_key(&tid);
            if patient.is_none() && over && frozen.threads().len() > FEW {
                break;
            }
            self.ask_thread(frozen, tid, gadgets, vmas).map_err(text)?;
        }
        Ok(())
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
        // The oldest answer of any thread.
        let oldest = self.threads.values().map(|(asked, _)| *asked).min();
        let age_ns = asked_ns.saturating_sub(oldest.unwrap_or(asked_ns));
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
            credentials.securebits = self
                .threads
                .get(&tid)
                .and_then(|(_, answers)| answers.credentials.as_ref()?.securebits);
        }
        match self.threads.get(&tid) {
            Some((_, answers)) => {
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
    let securebits = Call {
        nr: libc::SYS_prctl,
        args: [libc::PR_GET_SECUREBITS as u64, 0, 0, 0, 0, 0],
    };
    let securebits = ask_values(frozen, tid, gadgets, vmas, &[securebits]);
    Ok(ThreadAttributes {
        credentials: Some(Credentials {
            securebits: securebits.ok().and_then(|bits| u32::try_from(bits[0]).ok()),
            ..Credentials::default()
        }),
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

/// All dispositions; `None` when one was not told.
fn dispositions(signals: &[u64], answers: &[Option<Vec<u8>>]) -> Option<Vec<SignalAction>> {
    let mut all = vec![SignalAction::default(); 64];
    for (signal, answer) in signals.iter().zip(answers) {
        all[*signal as usize - 1] = action(answer.as_deref()?);
    }
    Some(all)
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
