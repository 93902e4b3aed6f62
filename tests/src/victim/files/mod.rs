//! `files KIND`: open files of one kind, with all that a program can see of them.
//!
//! It prepares them, changes everything about them when it is asked to (`change`), and checks on each request that
//! all is as before the change, or as after it: which of the two is kept in memory, and so goes back with a rollback.
//! A check uses what it checks, and leaves it as it was. Descriptors are plain numbers: whether they are open is
//! what is checked.

mod calls;
mod counters;
mod locks;
mod paths;
mod queues;
mod signalfd;
mod sockets;
mod table;
mod terminal;
mod watches;

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use anyhow::{Result, bail};
use serde_json::{Value, json};

use super::args::Args;
use super::protocol::{Started, State};

/// Open files of one kind.
trait Held: Send {
    /// Makes everything about them other than it was.
    fn change(&mut self) -> Result<(), String>;
    /// Checks everything: as before the change, or as after it.
    fn check(&mut self, changed: bool) -> Result<(), String>;
}

type Prepare = fn() -> Result<Box<dyn Held>, String>;

/// Every kind, and how it is prepared.
const KINDS: &[(&str, Prepare)] = &[
    ("regular", paths::regular),
    ("fifo", paths::fifo),
    ("pipe", queues::pipe),
    ("unix", queues::unix),
    ("unix-named", sockets::unix_named),
    ("inet", sockets::inet),
    ("netlink", sockets::netlink),
    ("counters", counters::counters),
    ("memfd", counters::memfd),
    ("epoll", watches::epoll),
    ("inotify", watches::inotify),
    ("pidfd", watches::pidfd),
    ("signals", signalfd::signals),
    ("terminal", terminal::terminal),
    ("locks", locks::locks),
    ("table", table::table),
];

struct Files {
    held: Mutex<Box<dyn Held>>,
    changed: AtomicBool,
    checks: AtomicU64,
}

/// Starts the victim.
pub fn start(args: &Args) -> Result<Started> {
    let Some(name) = args.words.first() else {
        bail!("files: name a kind of file");
    };
    let Some((_, prepare)) = KINDS.iter().find(|(kind, _)| kind == name) else {
        bail!("files: there is no kind {name:?}");
    };
    let held = prepare().map_err(|why| anyhow::anyhow!("files {name}: {why}"))?;
    let files = Files {
        held: Mutex::new(held),
        changed: AtomicBool::new(false),
        checks: AtomicU64::new(0),
    };
    Ok(Started::new(files))
}

impl State for Files {
    fn counter(&self) -> u64 {
        self.checks.load(Ordering::Relaxed)
    }

    fn status(&self) -> Result<(), String> {
        Ok(())
    }

    fn check(&self) -> Result<(), String> {
        let changed = self.changed.load(Ordering::Relaxed);
        let mut held = self.held.lock().map_err(|_| "a check panicked before")?;
        self.checks.fetch_add(1, Ordering::Relaxed);
        let when = if changed {
            "after the change"
        } else {
            "before the change"
        };
        held.check(changed)
            .map_err(|why| format!("as {when}: {why}"))
    }

    fn change(&self) -> Result<(), String> {
        // A request may come twice.
        if !self.changed.load(Ordering::Relaxed) {
            let mut held = self.held.lock().map_err(|_| "a check panicked before")?;
            held.change()?;
            self.changed.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    fn details(&self) -> Value {
        json!({ "changed": self.changed.load(Ordering::Relaxed) })
    }
}
