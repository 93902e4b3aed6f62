//! Interval timers and POSIX timers, none of which expires.

use super::{Item, call, same};
use anyhow::Result;
use std::mem::zeroed;
use std::ptr::null_mut;
use std::sync::{Arc, Mutex};

/// Seconds between the settings of one round and the next: much longer than any test.
const APART: i64 = 100_000;

/// Seconds that a timer is set to.
fn seconds(round: u64) -> i64 {
    APART * (1 + round as i64 % 9)
}

/// What is left of it.
fn left(seconds_left: i64, round: u64) -> Result<(), String> {
    let set = seconds(round);
    match (set - APART / 2..=set).contains(&seconds_left) {
        true => Ok(()),
        false => Err(format!("{seconds_left} s are left of {set} s")),
    }
}

fn interval_timer(name: &'static str, which: i32) -> Item {
    Item::new(
        name,
        move |round| {
            // SAFETY: a zeroed structure, then filled.
            unsafe {
                let mut value: libc::itimerval = zeroed();
                // Off now and then.
                if round % 3 != 0 {
                    value.it_value.tv_sec = seconds(round);
                    value.it_interval.tv_sec = round as i64 % 5;
                }
                call(
                    "setitimer",
                    libc::setitimer(which as _, &value, null_mut()).into(),
                )
                .map(drop)
            }
        },
        move |round| {
            // SAFETY: a zeroed structure that the call fills.
            let value = unsafe {
                let mut value: libc::itimerval = zeroed();
                call("getitimer", libc::getitimer(which as _, &mut value).into())?;
                value
            };
            if round % 3 == 0 {
                return same((value.it_value.tv_sec, value.it_value.tv_usec), (0, 0));
            }
            same(value.it_interval.tv_sec, round as i64 % 5)?;
            left(value.it_value.tv_sec, round)
        },
    )
}

/// `struct sigevent`.
fn event(notify: i32, signo: i32, value: u64) -> [u64; 8] {
    // SAFETY: takes nothing.
    let tid = unsafe { libc::gettid() } as u64;
    let mut words = [0; 8];
    words[0] = value;
    words[1] = signo as u64 | (notify as u64) << 32;
    words[2] = tid;
    words
}

/// A timer that is made anew each few rounds.
fn posix_timer(name: &'static str, clock: i32, absolute: bool, every: u64) -> Item {
    let id = Arc::new(Mutex::new(None::<i32>));
    let kept = Arc::clone(&id);
    let get = move |id: i32| -> Result<libc::itimerspec, String> {
        // SAFETY: a zeroed structure that the call fills.
        unsafe {
            let mut value: libc::itimerspec = zeroed();
            let result = libc::syscall(libc::SYS_timer_gettime, id, &raw mut value);
            call("timer_gettime", result)?;
            Ok(value)
        }
    };
    Item::new(
        name,
        move |round| {
            let mut kept = kept.lock().unwrap();
            if round % every == 0
                && let Some(old) = kept.take()
            {
                // SAFETY: takes an integer.
                call("timer_delete", unsafe {
                    libc::syscall(libc::SYS_timer_delete, old)
                })?;
            }
            let id = match *kept {
                Some(id) => id,
                None => {
                    // In turn: to this thread, to the process, to nobody.
                    let way = [libc::SIGEV_THREAD_ID, libc::SIGEV_SIGNAL, libc::SIGEV_NONE];
                    let event = event(way[(round / every % 3) as usize], libc::SIGURG, round);
                    let mut id = 0i32;
                    // SAFETY: both are live and of the kernel's layout.
                    let result = unsafe {
                        libc::syscall(libc::SYS_timer_create, clock, event.as_ptr(), &raw mut id)
                    };
                    call("timer_create", result)?;
                    *kept.insert(id)
                }
            };
            // SAFETY: a zeroed structure, then filled; the clock is one that exists.
            unsafe {
                let mut value: libc::itimerspec = zeroed();
                value.it_value.tv_sec = seconds(round);
                value.it_interval.tv_sec = round as i64 % 4;
                if absolute {
                    let mut now: libc::timespec = zeroed();
                    libc::clock_gettime(clock, &mut now);
                    value.it_value.tv_sec += now.tv_sec;
                }
                let flags = if absolute { libc::TIMER_ABSTIME } else { 0 };
                let none = null_mut::<libc::itimerspec>();
                let result =
                    libc::syscall(libc::SYS_timer_settime, id, flags, &raw const value, none);
                call("timer_settime", result).map(drop)
            }
        },
        move |round| {
            let id = id.lock().unwrap().ok_or("it has no id")?;
            let value = get(id)?;
            same(value.it_interval.tv_sec, round as i64 % 4)?;
            left(value.it_value.tv_sec, round)
        },
    )
}

/// The items.
pub fn items(_: u64) -> Result<Vec<Item>> {
    Ok(vec![
        interval_timer("the real timer", libc::ITIMER_REAL),
        interval_timer("the virtual timer", libc::ITIMER_VIRTUAL),
        interval_timer("the profiling timer", libc::ITIMER_PROF),
        posix_timer("a monotonic timer", libc::CLOCK_MONOTONIC, false, 4),
        posix_timer("a timer to a time of day", libc::CLOCK_REALTIME, true, 3),
        posix_timer("a timer of time since boot", libc::CLOCK_BOOTTIME, false, 7),
        posix_timer(
            "a timer of CPU time",
            libc::CLOCK_PROCESS_CPUTIME_ID,
            false,
            5,
        ),
        posix_timer(
            "a timer of a thread's CPU time",
            libc::CLOCK_THREAD_CPUTIME_ID,
            false,
            6,
        ),
    ])
}
