//! The steps, and their order.

use super::{process, thread, timers};
use crate::model::{Limit, PosixTimer, ProcessState, Scheduling, SyscallDispatch, ThreadState};

/// An argument of a system call that the target runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Arg {
    /// The number itself.
    Value(u64),
    /// The address of these bytes.
    Bytes(Vec<u8>),
    /// The address of these bytes, in which the eight at `pointer_at` are the address of the byte at `to`.
    Pointing {
        /// The bytes.
        bytes: Vec<u8>,
        /// Where the pointer goes.
        pointer_at: usize,
        /// What it points to.
        to: usize,
    },
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// A system call that the thread runs: number, arguments.
    Call(i64, Vec<Arg>),
    /// Makes a POSIX timer with its id, and sets it.
    MakeTimer(PosixTimer),
    /// Sets a resource limit of the process, by its number.
    Limit(usize, Limit),
    /// Sets the soft one alone, as far as the hard one of then allows.
    SoftLimit(usize, u64),
    /// Schedules the thread.
    Schedule(Scheduling),
    /// Gives the thread its processors.
    Affinity(Vec<u64>),
    /// Gives the thread its I/O priority.
    IoPriority(u32),
    /// Sets the thread's dispatch of system calls.
    Dispatch(SyscallDispatch),
    /// Writes a file of `/proc/PID`: its name, its content.
    File(&'static str, String),
}

/// One step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// The thread that does it, or that it is done to.
    pub tid: i32,
    /// What it puts back, for messages.
    pub what: String,
    /// What to do.
    pub action: Action,
    /// Where it fails, everything does. Else what stays different is told.
    pub essential: bool,
}

/// The way from one state to another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StatePlan {
    /// In the order in which they have to be done.
    pub steps: Vec<Step>,
    /// What cannot be put back, a sentence each. The plan must not be applied where there is any.
    pub refused: Vec<String>,
    /// What differs and stays as it is, a sentence each.
    pub notes: Vec<String>,
}

impl StatePlan {
    /// A system call whose failure is one of everything.
    pub(super) fn call(&mut self, tid: i32, what: impl Into<String>, nr: i64, args: Vec<Arg>) {
        self.step(tid, what, Action::Call(nr, args), true);
    }

    /// A step without which the rest is still worth having.
    pub(super) fn attempt(&mut self, tid: i32, what: impl Into<String>, action: Action) {
        self.step(tid, what, action, false);
    }

    /// prctl(2), of integers.
    pub(super) fn prctl(&mut self, tid: i32, what: &str, args: &[u64], essential: bool) {
        let args = args.iter().map(|arg| Arg::Value(*arg)).collect();
        self.step(tid, what, Action::Call(libc::SYS_prctl, args), essential);
    }

    pub(super) fn step(
        &mut self,
        tid: i32,
        what: impl Into<String>,
        action: Action,
        essential: bool,
    ) {
        self.steps.push(Step {
            tid,
            what: what.into(),
            action,
            essential,
        });
    }
}

/// Plans the way from `live` to `wanted`. Each thread of `wanted` is in `live` by its id, or will be a
/// clone of the first of those that are. What is unknown of either state is left alone.
///
/// The order: first what takes privileges (directories), then what any thread may, then
/// credentials, which may take privileges away, then what changing credentials undoes, then timers, so
/// that they lose no time. Resource limits have a plan of their own, around all of it.
pub fn plan(wanted: &ProcessState, live: &ProcessState) -> StatePlan {
    let mut plan = StatePlan::default();
    let Some(first) = worker(wanted, live) else {
        plan.refused
            .push("none of its threads is one that it shall have".to_owned());
        return plan;
    };
    let worker = first.tid;
    process::shared(&mut plan, worker, wanted, live);
    let pairs: Vec<(&ThreadState, ThreadState)> = wanted
        .threads
        .iter()
        .map(|thread| (thread, counterpart(thread, live, first)))
        .collect();
    for (thread, now) in &pairs {
        thread::before_credentials(&mut plan, thread, now);
    }
    for (thread, now) in &pairs {
        thread::credentials(&mut plan, thread, now);
    }
    process::after_credentials(&mut plan, worker, wanted, live, &pairs);
    for (thread, now) in &pairs {
        thread::after_credentials(&mut plan, thread, now);
    }
    timers::plan(&mut plan, worker, wanted, live);
    plan
}

/// The thread that does what needs no particular one: the first that is in both states.
pub fn worker<'a>(wanted: &ProcessState, live: &'a ProcessState) -> Option<&'a ThreadState> {
    let stays = |thread: &&ThreadState| wanted.threads.iter().any(|t| t.tid == thread.tid);
    live.threads.iter().find(stays)
}

/// A set of nodes as `set_mempolicy(2)` takes it: address, number of bits and one more.
pub(super) fn nodes(words: &[u64]) -> [Arg; 2] {
    match words {
        [] => [Arg::Value(0), Arg::Value(0)],
        words => [
            Arg::Bytes(words.iter().flat_map(|word| word.to_ne_bytes()).collect()),
            Arg::Value(words.len() as u64 * 64 + 1),
        ],
    }
}

/// What a thread is now: itself, or as a clone of `first` begins (`clone(2)`).
fn counterpart(thread: &ThreadState, live: &ProcessState, first: &ThreadState) -> ThreadState {
    if let Some(same) = live.threads.iter().find(|now| now.tid == thread.tid) {
        return same.clone();
    }
    let mut cloned = first.clone();
    cloned.tid = thread.tid;
    cloned.attributes.scheduling = first.attributes.scheduling.map(|s| cloned_scheduling(&s));
    cloned.attributes.alt_stack = Some(Default::default());
    // A clone has none.
    cloned.attributes.clear_child_tid = None;
    cloned.attributes.parent_death_signal = Some(0);
    cloned
}

/// `SCHED_FLAG_RESET_ON_FORK` of `sched_setattr(2)`.
const RESET_ON_FORK: u64 = 1;

/// Whether the kernel lets a thread make others as it is scheduled (`SCHED_DEADLINE` in `sched(7)`).
pub fn can_clone(thread: &ThreadState) -> bool {
    let by_deadline =
        |s: Scheduling| s.policy == libc::SCHED_DEADLINE as u32 && s.flags & RESET_ON_FORK == 0;
    !thread.attributes.scheduling.is_some_and(by_deadline)
}

/// How a clone, or a child, of a thread that is scheduled so is scheduled itself (`SCHED_RESET_ON_FORK` in
/// `sched(7)`).
pub fn cloned_scheduling(of: &Scheduling) -> Scheduling {
    let ordinary = [libc::SCHED_OTHER, libc::SCHED_BATCH, libc::SCHED_IDLE];
    if of.flags & RESET_ON_FORK == 0 {
        return *of;
    }
    let mut own = Scheduling {
        flags: of.flags & !RESET_ON_FORK,
        ..*of
    };
    if !ordinary.contains(&(of.policy as i32)) {
        own = Scheduling {
            // The rest is for other policies.
            util_min: of.util_min,
            util_max: of.util_max,
            ..Scheduling::default()
        };
    } else if own.nice < 0 {
        own.nice = 0;
    }
    own
}
