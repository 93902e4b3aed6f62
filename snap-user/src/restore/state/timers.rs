//! Interval timers and POSIX timers.

use super::plan::{Action, Arg, StatePlan};
use crate::model::{IntervalTimer, PosixTimer, ProcessState};

const NAMES: [&str; 3] = ["the real timer", "the virtual timer", "the profiling timer"];

/// Timers to make on the way to the id of one, where the id cannot be asked for.
pub(super) const MOST_TIMERS: u32 = 4096;

/// How a process comes to a timer with a certain id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimerIds {
    /// It asks for it (Linux 6.15).
    Chosen,
    /// It is new, and counts up from 0.
    Counted,
    /// It counts up from the last one that it ever made, which nobody knows.
    CountedOn,
}

/// Why timers cannot be made with the ids that they had, a sentence each.
pub fn check(wanted: &ProcessState, live: &ProcessState, ids: TimerIds) -> Vec<String> {
    let (Some(want), Some(now)) = (&wanted.attributes.timers, &live.attributes.timers) else {
        return Vec::new();
    };
    let missing = want
        .iter()
        .filter(|timer| !now.iter().any(|now| is_same(timer, now)));
    let why = |timer: &&PosixTimer| match ids {
        TimerIds::Chosen => None,
        TimerIds::Counted if (timer.id as u32) < MOST_TIMERS => None,
        TimerIds::Counted => Some("comes only after thousands of others"),
        TimerIds::CountedOn => Some("is given once, and it has been deleted or changed since"),
    };
    missing
        .filter_map(|timer| {
            let why = why(&timer)?;
            let id = timer.id;
            Some(format!(
                "timer {id} cannot be made again: on this kernel its id {why} (Linux 6.15 lets a process choose it)"
            ))
        })
        .collect()
}

/// Plans the timers.
pub(super) fn plan(plan: &mut StatePlan, worker: i32, wanted: &ProcessState, live: &ProcessState) {
    let (want, now) = (&wanted.attributes, &live.attributes);
    if let (Some(want), Some(now)) = (&want.interval_timers, &now.interval_timers) {
        for (which, (want, now)) in want.iter().zip(now).enumerate() {
            let off = |timer: &IntervalTimer| timer.left_ns == 0 && timer.interval_ns == 0;
            // One that runs has moved on since.
            if !off(want) || !off(now) {
                let args = vec![
                    Arg::Value(which as u64),
                    Arg::Bytes(interval_value(want)),
                    Arg::Value(0),
                ];
                plan.call(worker, NAMES[which], libc::SYS_setitimer, args);
            }
        }
    }
    let (Some(want), Some(now)) = (&want.timers, &now.timers) else {
        return;
    };
    for timer in now {
        if !want.iter().any(|want| is_same(want, timer)) {
            let args = vec![Arg::Value(timer.id as u64)];
            let what = format!("timer {} that was not there", timer.id);
            plan.call(worker, what, libc::SYS_timer_delete, args);
        }
    }
    let mut want: Vec<&PosixTimer> = want.iter().collect();
    // Where ids are counted, the lower one comes first.
    want.sort_by_key(|timer| timer.id);
    for timer in want {
        // The clock of a thread is told by that thread only.
        let tid = timer.counted.unwrap_or(worker);
        match now.iter().any(|now| is_same(timer, now)) {
            true => set(plan, worker, timer),
            false => plan.step(
                tid,
                format!("timer {}", timer.id),
                Action::MakeTimer(*timer),
                true,
            ),
        }
    }
}

/// The same timer, whatever it is set to.
fn is_same(a: &PosixTimer, b: &PosixTimer) -> bool {
    let what = |t: &PosixTimer| {
        (
            t.id, t.clock, t.notify, t.signo, t.value, t.thread, t.counted,
        )
    };
    what(a) == what(b)
}

fn set(plan: &mut StatePlan, worker: i32, timer: &PosixTimer) {
    let [id, flags, value] = settings(timer);
    let args = vec![id, flags, value, Arg::Value(0)];
    let what = format!("timer {}", timer.id);
    plan.call(worker, what, libc::SYS_timer_settime, args);
}

/// The first three arguments of timer_settime(2).
pub(super) fn settings(timer: &PosixTimer) -> [Arg; 3] {
    let (flags, first) = match timer.deadline_ns {
        Some(deadline) => (libc::TIMER_ABSTIME, deadline),
        None => (0, timer.left_ns),
    };
    let mut value = timespec(timer.interval_ns);
    value.extend(timespec(first));
    [
        Arg::Value(timer.id as u64),
        Arg::Value(flags as u64),
        Arg::Bytes(value),
    ]
}

fn timespec(ns: u64) -> Vec<u8> {
    [ns / 1_000_000_000, ns % 1_000_000_000]
        .iter()
        .flat_map(|word| word.to_ne_bytes())
        .collect()
}

/// `struct itimerval`: interval, then time left, in seconds and microseconds. A timer that is about to
/// expire must not turn into one that is off.
fn interval_value(timer: &IntervalTimer) -> Vec<u8> {
    [timer.interval_ns, timer.left_ns]
        .iter()
        .map(|ns| ns.div_ceil(1000))
        .flat_map(|us| [us / 1_000_000, us % 1_000_000])
        .flat_map(u64::to_ne_bytes)
        .collect()
}

/// `struct sigevent`: value, signal, way, thread.
pub(super) fn event(timer: &PosixTimer) -> Vec<u8> {
    let mut bytes = timer.value.to_ne_bytes().to_vec();
    bytes.extend(timer.signo.to_ne_bytes());
    bytes.extend(timer.notify.to_ne_bytes());
    bytes.extend(timer.thread.unwrap_or(0).to_ne_bytes());
    bytes.resize(64, 0);
    bytes
}
