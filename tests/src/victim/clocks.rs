//! `clocks [--threads 3] [--rate 200]`: threads that ask for the time in every way.
//!
//! Each clock is asked by the C library, which has the kernel's own code in the process answer (`vdso(7)`), between two
//! system calls that ask for the same; and clocks that count from the machine's start never go back. What was seen of
//! them lies in memory, so it goes back with a rollback, and the clocks do not.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Result;
use serde_json::{Value, json};

use super::args::Args;
use super::fault::{broken, must, os_error};
use super::pace::Pace;
use super::protocol::{Started, State};
use super::table::poke;
use super::workers::Workers;

const SECOND: i64 = 1_000_000_000;

const EVERY: [(libc::clockid_t, &str); 6] = [
    (libc::CLOCK_REALTIME, "CLOCK_REALTIME"),
    (libc::CLOCK_MONOTONIC, "CLOCK_MONOTONIC"),
    (libc::CLOCK_MONOTONIC_RAW, "CLOCK_MONOTONIC_RAW"),
    (libc::CLOCK_REALTIME_COARSE, "CLOCK_REALTIME_COARSE"),
    (libc::CLOCK_MONOTONIC_COARSE, "CLOCK_MONOTONIC_COARSE"),
    (libc::CLOCK_BOOTTIME, "CLOCK_BOOTTIME"),
];

/// What each thread has seen last of the monotonic clock.
struct Clocks {
    seen: Arc<Vec<AtomicU64>>,
    workers: Workers,
}

fn nanoseconds(time: libc::timespec) -> i64 {
    time.tv_sec * SECOND + time.tv_nsec
}

fn asked_by_library(clock: libc::clockid_t) -> Result<i64, String> {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the time is a live local.
    match unsafe { libc::clock_gettime(clock, &mut time) } {
        0 => Ok(nanoseconds(time)),
        _ => Err(os_error("clock_gettime")),
    }
}

fn asked_by_call(clock: libc::clockid_t) -> Result<i64, String> {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the time is a live local.
    match unsafe { libc::syscall(libc::SYS_clock_gettime, clock, &raw mut time) } {
        0 => Ok(nanoseconds(time)),
        _ => Err(os_error("clock_gettime")),
    }
}

/// That time as the library has it lies between two that the kernel gave. `may_step`: somebody may set the clock.
fn lies_between(name: &str, may_step: bool, times: [i64; 3]) -> Result<(), String> {
    let [before, time, after] = times;
    let slack = if may_step { SECOND / 2 } else { 0 };
    match before - slack <= time && time <= after + slack {
        true => Ok(()),
        false => Err(format!(
            "{name} was {before} ns, then {time} ns by the library, then {after} ns"
        )),
    }
}

/// Every clock, once.
fn compare() -> Result<(), String> {
    for (clock, name) in EVERY {
        let times = [
            asked_by_call(clock)?,
            asked_by_library(clock)?,
            asked_by_call(clock)?,
        ];
        let of_day = matches!(clock, libc::CLOCK_REALTIME | libc::CLOCK_REALTIME_COARSE);
        lies_between(name, of_day, times)?;
        let mut resolution = libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        // SAFETY: the time is a live local.
        let done = unsafe { libc::clock_getres(clock, &mut resolution) };
        if done != 0 || !(1..SECOND).contains(&nanoseconds(resolution)) {
            return Err(format!("the resolution of {name} is {resolution:?}"));
        }
    }
    let before = asked_by_call(libc::CLOCK_REALTIME)?;
    let mut day = libc::timeval {
        tv_sec: 0,
        tv_usec: 0,
    };
    // SAFETY: the time is a live local; no zone is asked for.
    let (done, seconds) = unsafe {
        (
            libc::gettimeofday(&mut day, std::ptr::null_mut()),
            libc::time(std::ptr::null_mut()),
        )
    };
    let after = asked_by_call(libc::CLOCK_REALTIME)?;
    if done != 0 {
        return Err(os_error("gettimeofday"));
    }
    let micro = day.tv_sec * SECOND + day.tv_usec * 1000;
    lies_between("gettimeofday", true, [before, micro, after])?;
    // It is that of the last tick, in whole seconds.
    lies_between(
        "time",
        true,
        [before - SECOND * 3 / 2, seconds * SECOND, after],
    )?;
    // SAFETY: calls without pointers.
    let (here, all) = unsafe {
        (
            libc::sched_getcpu(),
            libc::sysconf(libc::_SC_NPROCESSORS_CONF),
        )
    };
    match (0..all).contains(&i64::from(here)) {
        true => Ok(()),
        false => Err(format!("it is on processor {here} of {all}")),
    }
}

/// Starts the victim.
pub fn start(args: &Args) -> Result<Started> {
    let threads: usize = args.value("threads", 3)?;
    let rate: u64 = args.value("rate", 200)?;
    let seen: Arc<Vec<AtomicU64>> = Arc::new((0..threads).map(|_| AtomicU64::new(0)).collect());
    let mut workers = Workers::new();
    for number in 0..threads {
        let seen = Arc::clone(&seen);
        workers.spawn(&format!("clock-{number}"), move |beat| {
            let mut pace = Pace::new(rate);
            loop {
                must(compare());
                let now = must(asked_by_library(libc::CLOCK_MONOTONIC));
                let now = now as u64;
                let last = seen[number].swap(now, Ordering::Relaxed);
                if last > now {
                    broken(format_args!(
                        "CLOCK_MONOTONIC went from {last} back to {now} ns"
                    ));
                }
                beat.beat();
                pace.step();
            }
        })?;
    }
    Ok(Started::new(Clocks { seen, workers }))
}

impl State for Clocks {
    fn counter(&self) -> u64 {
        self.workers.total()
    }

    fn status(&self) -> Result<(), String> {
        self.workers.alive()
    }

    fn check(&self) -> Result<(), String> {
        self.workers.working()?;
        compare()
    }

    fn details(&self) -> Value {
        json!({
            "workers": self.workers.report(),
            "monotonic_ns": asked_by_call(libc::CLOCK_MONOTONIC).ok(),
            "poke": poke(self.seen.as_ptr().cast()),
        })
    }
}
