//! `attributes GROUP [--rate 200]`: the attributes of a process and its threads that are neither memory nor
//! descriptors. A worker changes all of a group, again and again, then asks the kernel for each of them:
//! what it gets must be what it set last. So after a rollback to any moment, also to one between two of
//! the changes, the kernel has to have what the memory says was set.
//!
//! | group | what |
//! |---|---|
//! | `signals` | dispositions, alternate stack and a handler that runs on it |
//! | `timers` | interval timers, POSIX timers that come and go |
//! | `process` | umask, working directory, limits, prctl settings |
//! | `threads` | scheduling, affinity, I/O priority, timer slack, name, … of two threads |
//! | `memory` | advice, locks, names, guard pages, policies |
//! | `credentials` | ids, groups and capabilities of two threads |

mod credentials;
mod memory;
mod process;
mod signals;
mod threads;
mod timers;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::args::Args;
use super::fault::{broken, must};
use super::pace::Pace;
use super::protocol::{Started, State};
use super::table::poke;
use super::workers::Workers;

/// One attribute: how it is set, and how the kernel is asked for it.
pub(super) struct Item {
    name: &'static str,
    /// Sets it to the value of a round.
    set: Box<dyn FnMut(u64) -> Result<(), String> + Send>,
    /// Demands that it has the value of a round.
    check: Box<dyn FnMut(u64) -> Result<(), String> + Send>,
}

impl Item {
    fn new(
        name: &'static str,
        set: impl FnMut(u64) -> Result<(), String> + Send + 'static,
        check: impl FnMut(u64) -> Result<(), String> + Send + 'static,
    ) -> Self {
        Self {
            name,
            set: Box::new(set),
            check: Box::new(check),
        }
    }

    /// An attribute that is a number.
    fn number(
        name: &'static str,
        want: impl Fn(u64) -> u64 + Send + Copy + 'static,
        mut set: impl FnMut(u64) -> Result<(), String> + Send + 'static,
        mut get: impl FnMut() -> Result<u64, String> + Send + 'static,
    ) -> Self {
        Self::new(
            name,
            move |round| set(want(round)),
            move |round| same(get()?, want(round)),
        )
    }
}

/// Makes the items of a worker, by its number.
type Make = fn(u64) -> Result<Vec<Item>>;

/// Demands that two values are the same.
fn same<T: PartialEq + std::fmt::Debug>(got: T, want: T) -> Result<(), String> {
    match got == want {
        true => Ok(()),
        false => Err(format!("the kernel has {got:x?}, and {want:x?} was set")),
    }
}

/// The result of a system call, or its error.
fn call(name: &str, result: i64) -> Result<u64, String> {
    match result {
        -1 => Err(format!("{name}: {}", std::io::Error::last_os_error())),
        result => Ok(result as u64),
    }
}

/// prctl(2) with integers.
fn prctl(option: i32, args: [u64; 4]) -> Result<u64, String> {
    let [a, b, c, d] = args;
    // SAFETY: the options used here take integers, or the address of a live word.
    call(
        "prctl",
        i64::from(unsafe { libc::prctl(option, a, b, c, d) }),
    )
}

/// The round that a worker is in, and its complement.
#[derive(Default)]
struct Rounds {
    now: AtomicU64,
    twice: AtomicU64,
}

impl Rounds {
    /// Demands that both are those of a round.
    fn whole(&self, round: u64) {
        let twice = self.twice.load(Ordering::SeqCst);
        if self.now.load(Ordering::SeqCst) != round || twice != !round {
            broken(format_args!("the round {round} is damaged"));
        }
    }
}

struct Attributes {
    workers: Workers,
    rounds: Vec<Arc<Rounds>>,
}

/// Starts the victim.
pub fn start(args: &Args) -> Result<Started> {
    let group = args.words.first().context("which group of attributes?")?;
    let rate: u64 = args.value("rate", 200)?;
    let (make, threads): (Make, u64) = match group.as_str() {
        "signals" => (signals::items, 1),
        "timers" => (timers::items, 1),
        "process" => (process::items, 1),
        "memory" => (memory::items, 1),
        "threads" => (threads::items, 2),
        "credentials" => (credentials::items, 2),
        other => anyhow::bail!("there is no group {other:?}"),
    };
    let mut victim = Attributes {
        workers: Workers::new(),
        rounds: Vec::new(),
    };
    for number in 0..threads {
        let rounds = Arc::new(Rounds::default());
        rounds.twice.store(!0, Ordering::SeqCst);
        victim.rounds.push(Arc::clone(&rounds));
        let name = format!("{group}-{number}");
        victim.workers.spawn(&name, move |beat| {
            let mut items = make(number).unwrap_or_else(|e| broken(format_args!("{e:#}")));
            let mut pace = Pace::new(rate);
            loop {
                let round = rounds.now.load(Ordering::SeqCst);
                rounds.whole(round);
                for item in &mut items {
                    let name = item.name;
                    must((item.set)(round).map_err(|e| format!("setting {name}: {e}")));
                }
                for _ in 0..2 {
                    for item in &mut items {
                        let name = item.name;
                        must(
                            (item.check)(round).map_err(|e| format!("round {round}, {name}: {e}")),
                        );
                    }
                    pace.step();
                }
                // Before it is overwritten.
                rounds.whole(round);
                rounds.now.store(round + 1, Ordering::SeqCst);
                rounds.twice.store(!(round + 1), Ordering::SeqCst);
                beat.beat();
            }
        })?;
    }
    Ok(Started::new(victim))
}

impl State for Attributes {
    fn counter(&self) -> u64 {
        self.rounds
            .iter()
            .map(|rounds| rounds.now.load(Ordering::SeqCst))
            .sum()
    }

    fn status(&self) -> Result<(), String> {
        self.workers.alive()
    }

    fn check(&self) -> Result<(), String> {
        // The workers check what they set. A round under way may have looked before the damage.
        self.workers.working()?;
        self.workers.working()
    }

    fn details(&self) -> Value {
        let word = self.rounds[0].twice.as_ptr();
        json!({ "workers": self.workers.report(), "poke": poke(word.cast()) })
    }
}
