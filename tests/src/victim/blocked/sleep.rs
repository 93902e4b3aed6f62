//! Sleeping calls, and what they may return. Raw calls: the standard library's would hide an EINTR.

use std::time::Duration;

use super::super::fault::os_error;

/// CLOCK_MONOTONIC. It goes on across a freeze and a rollback, so it only ever shows a sleep as longer.
pub fn now() -> Duration {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the timespec is valid for writing.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

/// A duration for the kernel.
pub fn timespec(duration: Duration) -> libc::timespec {
    libc::timespec {
        tv_sec: duration.as_secs() as i64,
        tv_nsec: i64::from(duration.subsec_nanos()),
    }
}

/// Demands that a call which began at `start` has taken at least so long.
pub fn not_cut_short(call: &str, start: Duration, asked: Duration) -> Result<(), String> {
    let slept = now().saturating_sub(start);
    match slept >= asked {
        true => Ok(()),
        false => Err(format!(
            "{call} was cut short: {slept:?} instead of {asked:?}"
        )),
    }
}

/// Demands that a call gave `wanted`.
pub fn gave(call: &str, got: i64, wanted: i64) -> Result<(), String> {
    match (got == wanted, got) {
        (true, _) => Ok(()),
        (false, -1) => Err(os_error(call)),
        (false, _) => Err(format!("{call} gave {got} instead of {wanted}")),
    }
}

/// Demands that a call failed with this error.
pub fn failed(call: &str, got: i64, wanted: i32) -> Result<(), String> {
    let error = std::io::Error::last_os_error();
    match got == -1 && error.raw_os_error() == Some(wanted) {
        true => Ok(()),
        false if got == -1 => Err(format!(
            "{call} failed with {error}, which it must not here"
        )),
        false => Err(format!("{call} gave {got} although nothing has come")),
    }
}

/// nanosleep.
pub fn nanosleep(asked: Duration) -> Result<(), String> {
    let (start, request) = (now(), timespec(asked));
    // SAFETY: the timespec is valid.
    let got = unsafe { libc::nanosleep(&raw const request, std::ptr::null_mut()) };
    gave("nanosleep", got.into(), 0)?;
    not_cut_short("nanosleep", start, asked)
}

/// clock_nanosleep until an absolute time.
pub fn clock_nanosleep(asked: Duration) -> Result<(), String> {
    let until = now() + asked;
    let request = timespec(until);
    // SAFETY: the timespec is valid.
    let error = unsafe {
        libc::clock_nanosleep(
            libc::CLOCK_MONOTONIC,
            libc::TIMER_ABSTIME,
            &raw const request,
            std::ptr::null_mut(),
        )
    };
    if error != 0 {
        return Err(format!(
            "clock_nanosleep: {}",
            std::io::Error::from_raw_os_error(error)
        ));
    }
    match now() >= until {
        true => Ok(()),
        false => Err(format!(
            "clock_nanosleep returned {:?} before its time",
            until - now()
        )),
    }
}
