//! The signal handler and what it counts. It runs on the receiver thread only, which allocates nothing.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use anyhow::{Result, bail};

use super::super::fault::{broken, os_error};
use super::super::rng::mix;
use super::STACK;

/// Streams of queued signals, one signal number each.
pub const STREAMS: usize = 3;
/// What the timer's signals carry.
pub const COOKIE: usize = 0x6b73_6e61;

/// Everything the handlers count.
pub struct Tally {
    /// The last value of each stream.
    pub received: [AtomicU64; STREAMS],
    /// A hash of each stream's last value.
    pub seals: [AtomicU64; STREAMS],
    /// Signals of each stream, in turn or not.
    pub handled: [AtomicU64; STREAMS],
    /// SIGUSR1.
    pub usr1: AtomicU64,
    /// SIGUSR2, of the masker.
    pub usr2: AtomicU64,
    /// The timer's signals.
    pub ticks: AtomicU64,
    /// Where the receiver's alternate stack is.
    pub stack: AtomicU64,
    /// Whether signals may come out of turn.
    pub rollbacks: AtomicBool,
}

/// The one tally of this process.
pub static TALLY: Tally = Tally {
    received: [const { AtomicU64::new(0) }; STREAMS],
    seals: [const { AtomicU64::new(mix(0)) }; STREAMS],
    handled: [const { AtomicU64::new(0) }; STREAMS],
    usr1: AtomicU64::new(0),
    usr2: AtomicU64::new(0),
    ticks: AtomicU64::new(0),
    stack: AtomicU64::new(0),
    rollbacks: AtomicBool::new(false),
};

/// A stream's signal number.
pub fn stream_signal(stream: usize) -> i32 {
    libc::SIGRTMIN() + 1 + stream as i32
}

/// The timer's signal number.
pub fn timer_signal() -> i32 {
    libc::SIGRTMIN() + 1 + STREAMS as i32
}

/// What the receiver's handlers are for.
pub fn received() -> Vec<i32> {
    (0..STREAMS)
        .map(stream_signal)
        .chain([timer_signal(), libc::SIGUSR1])
        .collect()
}

/// All signals of this victim.
pub fn all() -> Vec<i32> {
    [received(), vec![libc::SIGUSR2]].concat()
}

/// Installs the handlers.
pub fn install() -> Result<()> {
    for signal in all() {
        // SAFETY: all zero is a valid sigaction; the handler has the type that SA_SIGINFO asks for, and uses
        // only atomics unless the process is about to end.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            let function: extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void) = handle;
            action.sa_sigaction = function as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART;
            libc::sigfillset(&raw mut action.sa_mask);
            if libc::sigaction(signal, &raw const action, std::ptr::null_mut()) != 0 {
                bail!(os_error("sigaction"));
            }
        }
    }
    Ok(())
}

extern "C" fn handle(signal: i32, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    if signal == libc::SIGUSR2 {
        TALLY.usr2.fetch_add(1, Ordering::SeqCst);
        return;
    }
    let here = &raw const signal as u64;
    let stack = TALLY.stack.load(Ordering::Acquire);
    if !(stack..stack + STACK as u64).contains(&here) {
        broken(format_args!(
            "the handler of signal {signal} runs at {here:#x}, not on its stack at {stack:#x}"
        ));
    }
    // SAFETY: the kernel gives a valid siginfo with SA_SIGINFO; all signals here carry a value or are SIGUSR1.
    let (code, value) = unsafe { ((*info).si_code, (*info).si_value().sival_ptr.addr()) };
    if signal == libc::SIGUSR1 {
        TALLY.usr1.fetch_add(1, Ordering::SeqCst);
    } else if signal == timer_signal() {
        if code != libc::SI_TIMER || value != COOKIE {
            broken(format_args!(
                "a timer's signal has code {code} and value {value:#x} instead of {COOKIE:#x}"
            ));
        }
        TALLY.ticks.fetch_add(1, Ordering::SeqCst);
    } else {
        in_turn((signal - stream_signal(0)) as usize, code, value as u64);
    }
}

fn in_turn(stream: usize, code: i32, value: u64) {
    let last = TALLY.received[stream].load(Ordering::SeqCst);
    if TALLY.seals[stream].load(Ordering::SeqCst) != mix(last) {
        broken(format_args!(
            "stream {stream}: its last value, {last}, does not fit its seal"
        ));
    }
    if code != libc::SI_QUEUE {
        broken(format_args!(
            "a queued signal of stream {stream} has code {code}"
        ));
    }
    if value == last.wrapping_add(1) {
        TALLY.received[stream].store(value, Ordering::SeqCst);
        TALLY.seals[stream].store(mix(value), Ordering::SeqCst);
    } else if !TALLY.rollbacks.load(Ordering::Relaxed) {
        broken(format_args!(
            "stream {stream}: signal {value} came after {last}"
        ));
    }
    TALLY.handled[stream].fetch_add(1, Ordering::SeqCst);
}

/// Queues the next signal of a stream to one thread.
pub fn queue(tid: i32, stream: usize, value: u64) -> std::io::Result<()> {
    // struct siginfo of a queued signal (include/uapi/asm-generic/siginfo.h): number, errno, code, padding, pid
    // and uid of the sender, value.
    #[repr(C)]
    struct Queued {
        signo: i32,
        errno: i32,
        code: i32,
        pad: i32,
        pid: i32,
        uid: u32,
        value: u64,
        rest: [u64; 12],
    }
    const _: () = assert!(size_of::<Queued>() == 128);
    let signo = stream_signal(stream);
    // SAFETY: the structure is a whole siginfo and lives across the call.
    let result = unsafe {
        let pid = libc::getpid();
        let info = Queued {
            signo,
            errno: 0,
            code: libc::SI_QUEUE,
            pad: 0,
            pid,
            uid: libc::getuid(),
            value,
            rest: [0; 12],
        };
        libc::syscall(
            libc::SYS_rt_tgsigqueueinfo,
            pid,
            tid,
            signo,
            &raw const info,
        )
    };
    match result {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}
