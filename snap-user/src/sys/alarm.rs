//! Bounds for blocking waits of one thread.

use super::{Result, SysError};
use std::time::{Duration, Instant};

/// How often a wait for a thread to stop is interrupted to look after the others.
const LOOK_AROUND: Duration = Duration::from_millis(5);
/// A timer that interrupts this thread's blocking waits now and then, so that none lasts for ever.
pub(super) struct Alarm {
    timer: libc::timer_t,
    /// When waits are to be given up.
    pub(super) end: Instant,
}

extern "C" fn on_alarm(_: libc::c_int) {}

impl Alarm {
    pub(super) fn start(after: Duration) -> Result<Self> {
        static HANDLER: std::sync::Once = std::sync::Once::new();
        let signal = libc::SIGRTMIN() + 5;
        HANDLER.call_once(|| {
            // SAFETY: an empty handler, installed without SA_RESTART so that waits return EINTR;
            // the zeroed structure is a valid sigaction.
            unsafe {
                let mut action: libc::sigaction = std::mem::zeroed();
                action.sa_sigaction = on_alarm as *const () as usize;
                libc::sigaction(signal, &action, std::ptr::null_mut());
            }
        });
        let mut timer: libc::timer_t = std::ptr::null_mut();
        // SAFETY: zeroed, then the fields for a signal to this very thread are set; `timer` is live.
        let made = unsafe {
            let mut event: libc::sigevent = std::mem::zeroed();
            event.sigev_notify = libc::SIGEV_THREAD_ID;
            event.sigev_signo = signal;
            event.sigev_notify_thread_id = libc::gettid();
            libc::timer_create(libc::CLOCK_MONOTONIC, &mut event, &mut timer)
        };
        if made != 0 {
            return Err(SysError::last("timer_create", "this thread"));
        }
        let alarm = Self {
            timer,
            end: Instant::now() + after,
        };
        let time = |d: Duration| libc::timespec {
            tv_sec: d.as_secs() as libc::time_t,
            tv_nsec: d.subsec_nanos() as libc::c_long,
        };
        // Repeats, so that a signal between two waits is not the only one.
        let spec = libc::itimerspec {
            it_value: time(after.min(LOOK_AROUND)),
            it_interval: time(after.min(LOOK_AROUND)),
        };
        // SAFETY: the timer was made above, and `spec` is live.
        match unsafe { libc::timer_settime(alarm.timer, 0, &spec, std::ptr::null_mut()) } {
            0 => Ok(alarm),
            _ => Err(SysError::last("timer_settime", "this thread")),
        }
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        // SAFETY: deletes the timer that `start` made.
        unsafe { libc::timer_delete(self.timer) };
    }
}
