//! Interval timers and POSIX timers.

use super::plan::{Action, Arg, StatePlan};
use crate::model::{IntervalTimer, PosixTimer, ProcessState};

const NAMES: [&str; 3] = ["the real timer", "the virtual timer", "the profiling timer"];

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
