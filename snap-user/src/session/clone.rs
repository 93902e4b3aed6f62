//! `clone`: a snapshot, or a running process, to another machine.

use super::clone_fetch::Fetched;
use super::clone_order::There;
use super::clone_send::{Sender, Sending};
use super::clone_source::Source;
use super::key::keys;
use super::remote::{Transferred, dial, is_lost};
use super::types::{hex, hex_option};
use super::{Options, Pids, Result, SessionError};
use crate::capture::CaptureError;
use crate::model::SnapshotId;
use crate::restore::fault;
use crate::store::{Snapshot, Store, StoreError};
use crate::sys::{monotonic_ns, proc};
use crate::wire::{Limit, Link, Message};
use serde::Serialize;
use std::path::Path;
use std::time::{Duration, Instant};

/// Pages that are left for the stop without another round.
const FEW_PAGES: u64 = 256;
/// A round that sends more than so many hundredths of what the one before sent does not get anywhere.
const LITTLE_LESS: u64 = 70;

/// How to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CloneOptions {
    /// Bring it back there.
    pub restore: bool,
    /// End the process here once it runs there.
    pub end: bool,
    /// Which ids it gets there; if left out, its own where they are free, else its own in a namespace.
    pub pids: Option<Pids>,
    /// Fill all memory before the first instruction.
    pub eager: bool,
    /// Bring it back at once, and have its pages fetched behind its first instruction.
    pub lazy: bool,
    /// Go on there when a mapped file is another one than here.
    pub allow_changed_files: bool,
    /// A network of its own there.
    pub network: bool,
    /// Rounds while the process runs, at most.
    pub rounds: u32,
    /// How long the other machine may be without a sign of life.
    pub stall: Duration,
    /// How long the process may stand still until all of it is stored there.
    pub max_stop: Duration,
    /// How snapshots of the running process are taken.
    pub taking: Options,
}

/// A snapshot that was sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Round {
    /// The snapshot here.
    #[serde(serialize_with = "hex")]
    pub id: SnapshotId,
    /// The same there, unless it is only listed.
    #[serde(serialize_with = "hex_option")]
    pub target_id: Option<SnapshotId>,
    /// Pages that it has, or has other than the one before.
    pub pages: u64,
    /// Pages that the target did not have.
    pub sent_pages: u64,
    /// Bytes that went over the network.
    pub bytes: u64,
    /// How long sending took, in nanoseconds.
    pub took_ns: u64,
    /// The process stood still meanwhile.
    pub stopped: bool,
}

/// A process that runs on another machine now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RunsThere {
    /// Its id there.
    pub pid: i32,
    /// Its id as it sees itself.
    pub own_pid: i32,
    /// From the order to its first instruction, in nanoseconds.
    pub took_ns: u64,
    /// What differs from what it was, a sentence each; what could not be saved here is not said again.
    pub notes: Vec<String>,
}

/// A clone that was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Cloned {
    /// Where.
    pub target: String,
    /// The process here, where it was a running one.
    pub pid: Option<i32>,
    /// What was sent, in order.
    pub rounds: Vec<Round>,
    /// Bytes that went over the network in all.
    pub bytes: u64,
    /// How long the process ran neither here nor there, in nanoseconds.
    pub downtime_ns: Option<u64>,
    /// The process there, if it was brought back.
    pub running: Option<RunsThere>,
    /// What the other machine has fetched, with `--lazy`.
    pub fetched: Option<Fetched>,
    /// The process here was ended.
    pub ended: bool,
    /// What could not be saved, a sentence each.
    pub unsupported: Vec<String>,
}

/// Whether a process has this id.
pub fn is_process(pid: i32) -> bool {
    proc::stat(pid, None).is_ok()
}

/// What is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    /// A snapshot that was taken earlier.
    Stored,
    /// A process that runs meanwhile.
    Running,
    /// A process that stands still meanwhile.
    Stopped,
}

impl What {
    /// What there is to say of it here when the connection breaks off before the order to bring it back; `over` when
    /// it stood still for too long.
    fn left(self, over: bool) -> &'static str {
        match (self, over) {
            (Self::Stored, _) => "",
            (Self::Stopped, true) => {
                " The process here goes on as it was; with --max-stop it may stand still for longer."
            }
            (Self::Running | Self::Stopped, _) => " The process here is as it was.",
        }
    }

    /// And when it breaks off behind that order.
    pub(super) fn left_unsure(self) -> &'static str {
        match self {
            Self::Stored => "Look there whether it runs",
            Self::Running | Self::Stopped => {
                "The process here was not ended; look there whether it runs there too"
            }
        }
    }
}

/// The snapshot that is meant. A number that is none is a process that is not there any more.
fn find(dir: &Path, reference: &str) -> Result<(Store, SnapshotId)> {
    let found = Store::open(dir).and_then(|store| {
        let id = store.resolve(reference, None)?;
        Ok((store, id))
    });
    found.map_err(|e| match (reference.parse::<i32>(), &e) {
        (
            Ok(pid @ 1..),
            StoreError::NoStore { .. }
            | StoreError::BadReference { .. }
            | StoreError::NotFound { .. },
        ) => CaptureError::Vanished {
            pid,
            why: format!("no process has this id, and no snapshot is meant: {e}"),
        }
        .into(),
        _ => e.into(),
    })
}

/// Sends a stored snapshot, and has it brought back if that is asked for.
pub fn clone_stored(
    dir: &Path,
    reference: &str,
    target: &str,
    options: &CloneOptions,
    report: &mut dyn FnMut(&Round),
) -> Result<Cloned> {
    options.check()?;
    let (store, id) = find(dir, reference)?;
    if options.end {
        return Err(SessionError::Usage(format!(
            "--move ends a running process, and {reference} is a snapshot: name the process by its id"
        )));
    }
    if let Some(tree) = store.tree(id)?
        && (tree.members.len() > 1 || !tree.zombies.is_empty())
    {
        return Err(SessionError::Usage(format!(
            "{reference} is a tree of processes, and only single ones can be cloned: `ksnap restore {reference}` brings all of it back here"
        )));
    }
    let snapshot = store.snapshot(id)?;
    let mut link = dial(target, &keys()?, options.stall)?;
    let what = What::Stored;
    let round = send(&mut link, options, &snapshot, None, what, &mut || {})?;
    report(&round);
    let mut cloned = Cloned::new(target, None);
    cloned.unsupported = snapshot.manifest()?.state.unsupported;
    cloned.rounds.push(round);
    if options.restore {
        let mut there = There::new(&mut link, options, &snapshot, what);
        let running = there.order()?;
        there.settled(what)?;
        cloned.running = Some(running);
        there.stored(&mut cloned);
    }
    finish(&mut link, cloned)
}

/// Sends a running process: rounds of snapshots while it runs, then one stop, from which it goes on there.
///
/// # Errors
/// Whatever happens, the process here runs on unless it runs there. What was sent is kept there: the next attempt goes
/// on with it.
pub fn clone_live(
    dir: &Path,
    pid: i32,
    target: &str,
    options: &CloneOptions,
    report: &mut dyn FnMut(&Round),
) -> Result<Cloned> {
    // Refused before the process is touched.
    options.check()?;
    let mut link = dial(target, &keys()?, options.stall)?;
    let store = Store::open_or_create(dir)?;
    let mut source = Source::new(&store, pid, &options.taking)?;
    let mut cloned = Cloned::new(target, Some(pid));
    let mut before: Option<Snapshot> = None;
    let rounds = match options.restore {
        true => options.rounds.max(1),
        false => 1,
    };
    for number in 1..=rounds {
        let taken = source.snap()?;
        let snapshot = store.snapshot(taken.id)?;
        let round = send(
            &mut link,
            options,
            &snapshot,
            before.as_ref(),
            What::Running,
            &mut || {
                source.tick();
            },
        )?;
        report(&round);
        let last = cloned.rounds.last().map(|round| round.pages);
        let (pages, first) = (round.pages, number == 1);
        cloned.unsupported = taken.unsupported;
        cloned.rounds.push(round);
        before = Some(snapshot);
        let stuck = last.is_some_and(|last| pages * 100 > last * LITTLE_LESS);
        if !first && (pages <= FEW_PAGES || stuck) {
            break;
        }
    }
    if !options.restore {
        return finish(&mut link, cloned);
    }
    let held = source.hold()?;
    fault::point("clone-held");
    cloned.unsupported.clone_from(&held.taken.unsupported);
    let snapshot = store.snapshot(held.taken.id)?;
    link.set_limit(Some(limit(held.stopped_at, options.max_stop)));
    let round = send(
        &mut link,
        options,
        &snapshot,
        before.as_ref(),
        What::Stopped,
        &mut || {},
    )?;
    // From here on giving up would leave open whether it runs there.
    link.set_limit(None);
    let mut there = There::new(&mut link, options, &snapshot, What::Stopped);
    let running = there.order()?;
    fault::point("clone-running");
    cloned.downtime_ns = Some(monotonic_ns().saturating_sub(held.stopped_at));
    cloned.running = Some(running);
    report(&round);
    cloned.rounds.push(round);
    cloned.ended = there.conclude(held, source)?;
    there.stored(&mut cloned);
    finish(&mut link, cloned)
}

/// Until when all of a process has to be there that has been stopped since `stopped_at`.
fn limit(stopped_at: u64, within: Duration) -> Limit {
    let since = Duration::from_nanos(monotonic_ns().saturating_sub(stopped_at));
    Limit {
        at: Instant::now() + within.saturating_sub(since),
        within,
        what: "stored all of the stopped process",
    }
}

fn send(
    link: &mut Link,
    options: &CloneOptions,
    snapshot: &Snapshot,
    before: Option<&Snapshot>,
    what: What,
    idle: &mut dyn FnMut(),
) -> Result<Round> {
    let (begun, bytes) = (monotonic_ns(), link.bytes().0);
    let stopped = what == What::Stopped;
    let how = Sending {
        restore: options.restore,
        lazy: options.lazy,
        hurry: stopped,
    };
    let sent = Sender::new(link, how, idle).send(snapshot, before);
    let Transferred {
        offered,
        sent,
        stored,
    } = sent.map_err(|e| match is_lost(&e) {
        true => SessionError::Remote(format!(
            "{e}.{} What was sent is kept there: cloning again goes on with it",
            what.left(link.is_over())
        )),
        false => e,
    })?;
    Ok(Round {
        id: snapshot.id(),
        target_id: stored.map(|stored| stored.id),
        pages: offered,
        sent_pages: sent,
        bytes: link.bytes().0 - bytes,
        took_ns: monotonic_ns() - begun,
        stopped,
    })
}

impl CloneOptions {
    /// # Errors
    /// Options that exclude each other.
    fn check(&self) -> Result<()> {
        match self.pids {
            Some(Pids::Same | Pids::New) if self.lazy => Err(SessionError::Usage(
                "--lazy needs --pids namespace: if the connection breaks off before all memory has come, all that the process \
                 has started there has to end with it, and a PID namespace sees to that"
                    .into(),
            )),
            _ => Ok(()),
        }
    }
}

fn finish(link: &mut Link, mut cloned: Cloned) -> Result<Cloned> {
    // All is done: that the other side does not hear of it costs nothing but room there, for a while.
    if let Err(e) = link.send(&Message::Done) {
        tracing::debug!("{e}");
    }
    cloned.bytes = link.bytes().0;
    if let Some(running) = &mut cloned.running {
        let said = &cloned.unsupported;
        running.notes.retain(|note| !said.contains(note));
    }
    Ok(cloned)
}

impl Cloned {
    fn new(target: &str, pid: Option<i32>) -> Self {
        Self {
            target: target.to_owned(),
            pid,
            rounds: Vec::new(),
            bytes: 0,
            downtime_ns: None,
            running: None,
            fetched: None,
            ended: false,
            unsupported: Vec::new(),
        }
    }
}
