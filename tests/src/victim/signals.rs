//! `signals [--rate 300] [--rollbacks]`: a storm of signals, each of them accounted for.
//!
//! - Queued realtime signals with values: each stream's values arrive in order, and none is lost.
//! - SIGUSR1 in numbers: it may merge, but never arrives more often than it was sent.
//! - A timer's signals carry the timer's cookie.
//! - A blocked SIGUSR2 stays pending until it is unblocked, and then comes once, before the call returns.
//! - Handlers run on the receiver's alternate stack; masks and the alternate stack stay what they were set to.
//!
//! Signals wait in the kernel, so a rollback loses or repeats them: with `--rollbacks` the senders send again
//! what is not received, and the handlers pass over what comes out of turn.

mod handler;
mod masker;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Result, bail};
use serde_json::{Value, json};

use self::handler::{STREAMS, TALLY, timer_signal};
use super::args::Args;
use super::fault::{broken, must, os_error};
use super::mem::Mapping;
use super::pace::{Pace, nap};
use super::protocol::{Started, State};
use super::table::poke;
use super::workers::{Beat, Workers, gettid};

/// Signals of one stream that may be on their way.
const WINDOW: u64 = 16;
/// Naps of a millisecond without any progress of the receiver after which a signal counts as lost.
const PATIENCE: u32 = 20_000;
/// The same, after which it is sent again where rollbacks are announced.
const RESEND: u32 = 200;
const STACK: usize = 64 << 10;

struct Signals {
    workers: Workers,
    sent: Arc<[AtomicU64; STREAMS]>,
    usr1: Arc<AtomicU64>,
    rollbacks: bool,
}

/// Starts the victim.
pub fn start(args: &Args) -> Result<Started> {
    let rate: u64 = args.value("rate", 300)?;
    let rollbacks = args.rollbacks()?;
    TALLY.rollbacks.store(rollbacks, Ordering::Relaxed);
    // Threads inherit the mask: only the receiver opens it.
    set_mask(libc::SIG_BLOCK, &handler::all())?;
    handler::install()?;
    let mut workers = Workers::new();
    let receiver = Arc::new(AtomicU64::new(0));
    let stack = Mapping::private(STACK)?;
    let own = Arc::clone(&receiver);
    workers.spawn("receiver", move |beat| receive(beat, &stack, &own))?;
    while receiver.load(Ordering::Acquire) == 0 {
        nap(1);
    }
    let tid = receiver.load(Ordering::Acquire) as i32;
    let sent: Arc<[AtomicU64; STREAMS]> = Arc::default();
    let inner = Arc::clone(&sent);
    workers.spawn("sender", move |beat| {
        send_streams(beat, tid, rate, rollbacks, &inner)
    })?;
    let usr1 = Arc::new(AtomicU64::new(0));
    let inner = Arc::clone(&usr1);
    workers.spawn("usr1-storm", move |beat| {
        let mut pace = Pace::new(rate);
        loop {
            // Counted first: the receiver may be faster than this thread.
            inner.fetch_add(1, Ordering::SeqCst);
            // SAFETY: takes numbers only.
            if unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), tid, libc::SIGUSR1) } != 0 {
                broken(os_error("tgkill SIGUSR1 of the receiver"));
            }
            beat.beat();
            pace.step();
        }
    })?;
    workers.spawn("masker", move |beat| masker::run(beat, rollbacks))?;
    start_timer(tid)?;
    Ok(Started::new(Signals {
        workers,
        sent,
        usr1,
        rollbacks,
    }))
}

/// Waits for signals, and looks between them whether its masks and its stack are what it set.
fn receive(beat: &Beat, stack: &Mapping, tid: &AtomicU64) {
    let wanted = libc::stack_t {
        ss_sp: stack.at().cast(),
        ss_flags: 0,
        ss_size: STACK,
    };
    // SAFETY: the stack is this thread's for as long as it lives.
    if unsafe { libc::sigaltstack(&raw const wanted, std::ptr::null_mut()) } != 0 {
        broken(os_error("sigaltstack"));
    }
    TALLY.stack.store(stack.at() as u64, Ordering::Release);
    must(set_mask(libc::SIG_UNBLOCK, &handler::received()));
    let mask = must(get_mask());
    tid.store(gettid() as u64, Ordering::Release);
    loop {
        // Returns early with EINTR when a handler ran, which is as it should be on this thread.
        let short = libc::timespec {
            tv_sec: 0,
            tv_nsec: 3_000_000,
        };
        // SAFETY: the timespec is valid.
        unsafe { libc::nanosleep(&raw const short, std::ptr::null_mut()) };
        // SAFETY: all zero is a valid stack_t, and it is valid for writing.
        let is = unsafe {
            let mut is: libc::stack_t = std::mem::zeroed();
            libc::sigaltstack(std::ptr::null(), &raw mut is);
            is
        };
        if is.ss_sp != wanted.ss_sp || is.ss_size != STACK {
            broken("the alternate signal stack is not the one that was set");
        }
        if must(get_mask()) != mask {
            broken("the receiver's signal mask has changed");
        }
        beat.beat();
    }
}

fn send_streams(beat: &Beat, tid: i32, rate: u64, rollbacks: bool, sent: &[AtomicU64; STREAMS]) {
    let mut pace = Pace::new(rate);
    let mut stream = 0;
    loop {
        stream = (stream + 1) % STREAMS;
        let mut naps = 0;
        loop {
            let (out, received) = (
                sent[stream].load(Ordering::SeqCst),
                TALLY.received[stream].load(Ordering::SeqCst),
            );
            if out.wrapping_sub(received) < WINDOW {
                break;
            }
            naps += 1;
            if naps > RESEND && rollbacks {
                sent[stream].store(received, Ordering::SeqCst);
            } else if naps > PATIENCE {
                broken(format_args!(
                    "queued signals of stream {stream} are lost: {out} sent, {received} received"
                ));
            }
            nap(1);
        }
        let value = sent[stream].fetch_add(1, Ordering::SeqCst) + 1;
        while let Err(error) = handler::queue(tid, stream, value) {
            // The queue of the user may be full for a moment.
            if error.raw_os_error() != Some(libc::EAGAIN) {
                broken(format_args!("rt_tgsigqueueinfo of the receiver: {error}"));
            }
            nap(1);
        }
        beat.beat();
        pace.step();
    }
}

fn start_timer(tid: i32) -> Result<()> {
    // SAFETY: all zero is a valid sigevent and itimerspec.
    let (mut event, mut every): (libc::sigevent, libc::itimerspec) = unsafe { std::mem::zeroed() };
    event.sigev_notify = libc::SIGEV_THREAD_ID;
    event.sigev_signo = timer_signal();
    event.sigev_value = libc::sigval {
        sival_ptr: std::ptr::without_provenance_mut(handler::COOKIE),
    };
    event.sigev_notify_thread_id = tid;
    every.it_value.tv_nsec = 7_000_000;
    every.it_interval.tv_nsec = 7_000_000;
    let mut timer: libc::timer_t = std::ptr::null_mut();
    // SAFETY: all pointers are to live locals of the right types.
    unsafe {
        if libc::timer_create(libc::CLOCK_MONOTONIC, &raw mut event, &raw mut timer) != 0
            || libc::timer_settime(timer, 0, &raw const every, std::ptr::null_mut()) != 0
        {
            bail!(os_error("timer_create"));
        }
    }
    Ok(())
}

/// Changes this thread's mask.
fn set_mask(how: i32, signals: &[i32]) -> Result<()> {
    // SAFETY: the set is initialised by sigemptyset before use.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        for signal in signals {
            libc::sigaddset(&raw mut set, *signal);
        }
        match libc::pthread_sigmask(how, &raw const set, std::ptr::null_mut()) {
            0 => Ok(()),
            error => bail!(
                "pthread_sigmask: {}",
                std::io::Error::from_raw_os_error(error)
            ),
        }
    }
}

/// The numbers of the signals that this thread blocks, as bits.
fn get_mask() -> Result<u64> {
    // SAFETY: the set is filled by pthread_sigmask before use.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        match libc::pthread_sigmask(libc::SIG_BLOCK, std::ptr::null(), &raw mut set) {
            0 => Ok((1..=64)
                .filter(|signal| libc::sigismember(&raw const set, *signal) == 1)
                .fold(0, |bits, at| bits | 1 << (at - 1))),
            error => bail!(
                "pthread_sigmask: {}",
                std::io::Error::from_raw_os_error(error)
            ),
        }
    }
}

impl State for Signals {
    fn counter(&self) -> u64 {
        TALLY
            .received
            .iter()
            .map(|count| count.load(Ordering::SeqCst))
            .fold(0, u64::wrapping_add)
    }

    fn status(&self) -> Result<(), String> {
        self.workers.alive()
    }

    fn check(&self) -> Result<(), String> {
        self.workers.working()?;
        for (stream, sent) in self.sent.iter().enumerate() {
            let received = TALLY.received[stream].load(Ordering::SeqCst);
            let sent = sent.load(Ordering::SeqCst);
            if received > sent && !self.rollbacks {
                return Err(format!(
                    "stream {stream}: {received} signals received, but only {sent} sent"
                ));
            }
        }
        let got = TALLY.usr1.load(Ordering::SeqCst);
        let sent = self.usr1.load(Ordering::SeqCst);
        if got > sent && !self.rollbacks {
            return Err(format!("{got} SIGUSR1 received, but only {sent} sent"));
        }
        // Every source must still be going. The handler looks at what it counts, so this is a check of that too.
        let sources = || TALLY.handled.iter().chain([&TALLY.usr1, &TALLY.ticks]);
        let before: Vec<u64> = sources()
            .map(|count| count.load(Ordering::SeqCst))
            .collect();
        let going = || {
            sources()
                .zip(&before)
                .all(|(count, before)| count.load(Ordering::SeqCst) > *before)
        };
        for _ in 0..PATIENCE {
            if going() {
                return Ok(());
            }
            nap(1);
        }
        Err("a stream of signals, SIGUSR1 or the timer's signals have stopped coming".to_owned())
    }

    fn details(&self) -> Value {
        json!({
            "workers": self.workers.report(),
            "usr1": [self.usr1.load(Ordering::SeqCst), TALLY.usr1.load(Ordering::SeqCst)],
            "ticks": TALLY.ticks.load(Ordering::SeqCst),
            "poke": poke(TALLY.received.as_ptr().cast()),
        })
    }
}
