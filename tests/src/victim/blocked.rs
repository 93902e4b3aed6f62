//! `blocked KIND [--rollbacks]`: a thread that is nearly always asleep in one kind of system call.
//!
//! Each return is checked: a sleep that ends early, an EINTR (no thread here has a signal handler), a wake-up
//! without a reason, and a message that is lost, damaged, repeated or out of turn all end the victim. Kinds that
//! can be woken alternate between a call that times out and one that another thread wakes.
//!
//! Messages wait in the kernel, where a rollback does not reach: with `--rollbacks` the waker sends again what
//! is not received, and the sleeper passes over messages that are not the one it waits for.

mod calls;
mod channel;
mod sleep;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use self::channel::Channel;
use super::args::Args;
use super::fault::must;
use super::pace::nap;
use super::protocol::{Started, State};
use super::rng::{Rng, mix};
use super::table::poke;
use super::workers::{Beat, Workers};

/// The kinds of blocking call.
pub const KINDS: &[&str] = &[
    "nanosleep",
    "clock_nanosleep",
    "poll",
    "ppoll",
    "select",
    "futex",
    "futex-timeout",
    "pipe",
    "epoll_wait",
    "sigtimedwait",
    "wait4",
    "accept",
    "recv",
    "recv-timeout",
    "read-timeout",
];

/// Naps of a millisecond after which a message is sent again where rollbacks are announced.
const RESEND: u32 = 300;

/// What the sleeper wants and has, in memory that goes back with a rollback.
struct Progress {
    wanted: AtomicU64,
    received: AtomicU64,
    // A hash over all received messages and its expected value follow from `received` alone.
    seal: AtomicU64,
}

struct Blocked {
    kind: &'static str,
    progress: Arc<Progress>,
    workers: Workers,
}

/// Starts the victim.
pub fn start(args: &Args) -> Result<Started> {
    let named = args.words.first().map_or("", String::as_str);
    let kind = KINDS.iter().find(|kind| **kind == named).copied();
    ensure!(kind.is_some(), "blocked needs one of: {}", KINDS.join(", "));
    let kind = kind.unwrap_or_default();
    let rollbacks = args.rollbacks()?;
    let channel = Arc::new(Channel::open(kind, rollbacks)?);
    let seal = AtomicU64::new(mix(0));
    let progress = Arc::new(Progress {
        wanted: AtomicU64::new(0),
        received: AtomicU64::new(0),
        seal,
    });
    let mut workers = Workers::new();
    let (sleeper_channel, inner) = (Arc::clone(&channel), Arc::clone(&progress));
    workers.spawn(
        &format!("asleep-{kind}")
            .chars()
            .take(15)
            .collect::<String>(),
        move |beat| {
            sleeper(beat, &sleeper_channel, &inner);
        },
    )?;
    if channel.has_waker() {
        let inner = Arc::clone(&progress);
        workers.spawn("waker", move |beat| {
            waker(beat, &channel, &inner, rollbacks)
        })?;
    }
    Ok(Started::new(Blocked {
        kind,
        progress,
        workers,
    }))
}

fn sleeper(beat: &Beat, channel: &Channel, progress: &Progress) {
    let mut rng = Rng::new(1);
    loop {
        let received = progress.received.load(Ordering::SeqCst);
        must(channel.time_out(1 + rng.below(20) as u64));
        let next = received + 1;
        progress.wanted.store(next, Ordering::SeqCst);
        must(channel.receive(next));
        // Before it is replaced, or damage done during the sleep would be covered up.
        must(progress.verify());
        progress.seal.store(mix(next), Ordering::SeqCst);
        progress.received.store(next, Ordering::SeqCst);
        beat.beat();
    }
}

fn waker(beat: &Beat, channel: &Channel, progress: &Progress, rollbacks: bool) {
    let mut rng = Rng::new(2);
    loop {
        // Long enough for the sleeper to be asleep.
        nap(1 + rng.word() % 15);
        let wanted = progress.wanted.load(Ordering::SeqCst);
        if wanted <= progress.received.load(Ordering::SeqCst) {
            continue;
        }
        must(channel.send(wanted));
        let mut naps = 0;
        while progress.received.load(Ordering::SeqCst) < wanted {
            nap(1);
            naps += 1;
            if rollbacks && naps % RESEND == 0 {
                must(channel.send(wanted));
            }
        }
        beat.beat();
    }
}

impl Progress {
    fn verify(&self) -> Result<(), String> {
        let received = self.received.load(Ordering::SeqCst);
        match self.seal.load(Ordering::SeqCst) == mix(received) {
            true => Ok(()),
            false => Err(format!(
                "the count of wake-ups, {received}, does not fit its seal"
            )),
        }
    }
}

impl State for Blocked {
    fn counter(&self) -> u64 {
        self.progress.received.load(Ordering::SeqCst)
    }

    fn status(&self) -> Result<(), String> {
        self.workers.alive()
    }

    fn check(&self) -> Result<(), String> {
        // The calls are checked by the thread that makes them, once a round.
        self.workers.working()?;
        self.workers.working()
    }

    fn details(&self) -> Value {
        json!({
            "kind": self.kind,
            "workers": self.workers.report(),
            "poke": poke((&raw const self.progress.seal).cast()),
        })
    }
}
