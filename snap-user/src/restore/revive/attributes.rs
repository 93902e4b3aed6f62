//! Attributes of a new process: from those of a fork of ksnap to the snapshot's.

use super::own_users;
use crate::model::{
    AltStack, IntervalTimer, Limit, MemoryPolicy, ProcessAttributes, ProcessState, Seccomp,
    SignalAction, ThreadAttributes, ThreadState,
};
use crate::restore::state::{
    self, Action, Arg, Held, LimitsPlan, Runner, StatePlan, Step, TimerIds, cloned_scheduling,
};
use crate::restore::{RestoreError, Result};
use crate::sys::{self, Stub, StubCall, SysError, proc, ptrace};

/// Plans the way to the snapshot's attributes, of threads by the ids that they have in it. `users`: in a user namespace of
/// its own.
///
/// # Errors
/// [`RestoreError::Refused`] with everything that this ksnap may not give a new process.
pub fn plan_attributes(wanted: &ProcessState, users: bool) -> Result<(StatePlan, LimitsPlan)> {
    plan_from(wanted, users, |_| {})
}

/// The same for a process of a tree, which has its session and its group since it was made.
///
/// # Errors
/// [`RestoreError::Refused`] with everything that this ksnap may not give a new process.
pub fn plan_attributes_in_tree(
    wanted: &ProcessState,
    users: bool,
) -> Result<(StatePlan, LimitsPlan)> {
    plan_from(wanted, users, |now| {
        now.attributes.session = wanted.attributes.session;
        now.attributes.group = wanted.attributes.group;
        // What is to be said of that is said of the session.
        now.attributes.terminal = wanted.attributes.terminal;
    })
}

fn plan_from(
    wanted: &ProcessState,
    users: bool,
    make: impl FnOnce(&mut ProcessState),
) -> Result<(StatePlan, LimitsPlan)> {
    let mut now = newborn(wanted)?;
    make(&mut now);
    let refused = match users {
        true => own_users::enter(wanted, &mut now)?,
        false => own_users::leave(wanted)?,
    };
    plan_between(wanted, &now, refused)
}

/// Plans the way between two states of a new process, of which this is `refused` already.
pub(super) fn plan_between(
    wanted: &ProcessState,
    now: &ProcessState,
    mut refused: Vec<String>,
) -> Result<(StatePlan, LimitsPlan)> {
    let mut plan = state::plan(wanted, now);
    plan.refused.append(&mut refused);
    let ids = match sys::chooses_timer_ids() {
        true => TimerIds::Chosen,
        false => TimerIds::Counted,
    };
    plan.refused
        .append(&mut state::check_timers(wanted, now, ids));
    if !plan.refused.is_empty() {
        return Err(RestoreError::Refused {
            pid: wanted.pid,
            reasons: plan.refused,
        });
    }
    Ok((plan, state::plan_limits(wanted, now)))
}

/// What a process is when ksnap has just forked it.
fn newborn(wanted: &ProcessState) -> sys::Result<ProcessState> {
    let pid = std::process::id() as i32;
    let stat = proc::stat(pid, None)?;
    let status = proc::task_status(pid, pid)?;
    let number = |name: &str, radix| proc::number(pid, name, radix).ok();
    let attributes = ProcessAttributes {
        signals: Some(signals(status.dispositions[0])),
        interval_timers: Some([IntervalTimer::default(); 3]),
        timers: Some(Vec::new()),
        umask: status.umask,
        root: proc::link(pid, "root")?,
        limits: sys::limits(pid)?,
        oom_score_adj: number("oom_score_adj", 10).map(|n| n as i32),
        coredump_filter: number("coredump_filter", 16).map(|n| n as u32),
        dumpable: Some(1),
        huge_pages_disabled: status.huge_pages.map(|on| u32::from(!on)),
        write_execute_denied: Some(0),
        memory_merge: Some(false),
        subreaper: Some(false),
        membarrier: Some(0),
        group: match wanted.attributes.session == wanted.pid {
            // So it does with a group.
            true => wanted.attributes.session,
            false => stat.field(5) as i32,
        },
        session: match wanted.attributes.session == wanted.pid {
            // It begins a session of its own.
            true => wanted.attributes.session,
            false => stat.field(6) as i32,
        },
        terminal: match wanted.attributes.session == wanted.pid {
            // None of ksnap's then.
            true => 0,
            false => stat.field(7) as u32,
        },
        cgroup: proc::text(pid, "cgroup").unwrap_or_default(),
        namespaces: wanted.attributes.namespaces.clone(),
        ..ProcessAttributes::default()
    };
    Ok(ProcessState {
        pid: wanted.pid,
        cwd: proc::link(pid, "cwd")?,
        threads: threads(pid, wanted)?,
        attributes,
        ..ProcessState::default()
    })
}

/// Forks keep what is ignored; everything else is set to its default.
fn signals(ignored: u64) -> Vec<SignalAction> {
    (0..64)
        .map(|n| SignalAction {
            handler: ignored >> n & 1,
            ..SignalAction::default()
        })
        .collect()
}

/// All threads begin as the one that forks.
fn threads(pid: i32, wanted: &ProcessState) -> sys::Result<Vec<ThreadState>> {
    let status = proc::task_status(pid, pid)?;
    let number = |name: &str, radix| proc::number(pid, name, radix).ok();
    let attributes = ThreadAttributes {
        alt_stack: Some(AltStack::default()),
        credentials: Some(status.credentials),
        personality: number("personality", 16).map(|n| n as u32),
        scheduling: sys::scheduling(pid).ok().map(|s| cloned_scheduling(&s)),
        affinity: sys::affinity(pid).ok(),
        io_priority: sys::io_priority(pid).ok(),
        timer_slack_ns: number("timerslack_ns", 10).map(|n| n as u64),
        parent_death_signal: Some(0),
        seccomp: Seccomp {
            mode: status.seccomp,
            filters: Some(Vec::new()),
        },
        syscall_dispatch: Some(Default::default()),
        tsc_faults: Some(false),
        cpuid_faults: Some(false),
        speculation: status.speculation,
        memory_policy: Some(MemoryPolicy::default()),
        ..ThreadAttributes::default()
    };
    let of = |want: &ThreadState| ThreadState {
        tid: want.tid,
        // Set with what is registered for it.
        comm: want.comm.clone(),
        attributes: ThreadAttributes {
            machine_check_kill: want.attributes.machine_check_kill,
            ..attributes.clone()
        },
        ..ThreadState::default()
    };
    Ok(wanted.threads.iter().map(of).collect())
}

/// Gives the process a session or a group of its own if it had one.
pub(super) fn begin_session(stub: &mut Stub, wanted: &ProcessState) -> sys::Result<()> {
    let attributes = &wanted.attributes;
    let call = |name, nr| StubCall::new(name, "itself", nr, [0; 6]);
    let calls = if attributes.session == wanted.pid {
        vec![call("setsid", libc::SYS_setsid)]
    } else if attributes.group == wanted.pid {
        vec![call("setpgid", libc::SYS_setpgid)]
    } else {
        Vec::new()
    };
    stub.run(&calls).map(drop)
}

/// Carries the plan out. Returns what stays different, a sentence each.
pub(super) fn apply(
    stub: &mut Stub,
    plan: &StatePlan,
    wanted: &ProcessState,
) -> sys::Result<Vec<String>> {
    let mut notes = Vec::new();
    let mut by_stub = ByStub { stub, wanted };
    let is_plain = |step: &Step| step.essential && matches!(step.action, Action::Call(..));
    let same = |a: &Step, b: &Step| is_plain(a) && is_plain(b) && a.tid == b.tid;
    for steps in plan.steps.chunk_by(same) {
        match is_plain(&steps[0]) {
            true => by_stub.run(steps)?,
            false => {
                let mut steps = steps.to_vec();
                steps.iter_mut().for_each(|step| by_stub.rename(step));
                let one = StatePlan {
                    steps,
                    ..StatePlan::default()
                };
                notes.extend(state::apply(&one, &mut by_stub)?);
            }
        }
    }
    Ok(notes)
}

/// Steps that the stub runs, by lists where it can.
struct ByStub<'a> {
    stub: &'a mut Stub,
    wanted: &'a ProcessState,
}

impl ByStub<'_> {
    /// Place of a thread, by its id in the snapshot.
    fn place(&self, tid: i32) -> usize {
        let at = self.wanted.threads.iter().position(|t| t.tid == tid);
        at.expect("planned for the snapshot's threads")
    }

    /// A timer signals the thread that is now the one that it signalled, whatever its id is.
    fn rename(&self, step: &mut Step) {
        let Action::MakeTimer(timer) = &mut step.action else {
            return;
        };
        let mut threads = self.wanted.threads.iter();
        if let Some(at) = threads.position(|t| Some(t.own_id()) == timer.thread) {
            timer.thread = Some(self.stub.threads()[at].own);
        }
    }

    /// Arguments as numbers, and the address of the last one in memory.
    fn prepare(&mut self, args: &[Arg]) -> sys::Result<([u64; 6], u64)> {
        let mut words = [0; 6];
        let mut last = 0;
        for (word, arg) in words.iter_mut().zip(args) {
            if let Arg::Value(value) = arg {
                *word = *value;
                continue;
            }
            let at = self.stub.room(arg.len() as usize)?;
            sys::write_bytes(self.stub.pid(), at, &arg.placed(at))?;
            (*word, last) = (at, at);
        }
        Ok((words, last))
    }

    /// Calls of one thread that must all succeed.
    fn run(&mut self, steps: &[Step]) -> sys::Result<()> {
        let place = self.place(steps[0].tid);
        for some in steps.chunks(64) {
            let mut calls = Vec::with_capacity(some.len());
            for step in some {
                let Action::Call(nr, args) = &step.action else {
                    unreachable!("sorted out by the caller")
                };
                let (words, _) = self.prepare(args)?;
                let name = sys::arch::syscall_name(*nr as u64).unwrap_or("system call");
                calls.push(StubCall::new(name, step.what.clone(), *nr, words));
            }
            self.stub.run_by(place, &calls)?;
            self.stub.forget();
        }
        Ok(())
    }
}

impl Runner for ByStub<'_> {
    fn call(
        &mut self,
        tid: i32,
        nr: i64,
        args: &[Arg],
        out: Option<&mut [u8]>,
    ) -> sys::Result<u64> {
        let (words, last) = self.prepare(args)?;
        let name = sys::arch::syscall_name(nr as u64).unwrap_or("system call");
        let call = StubCall::new(name, format!("thread {tid}"), nr, words);
        let result = self.stub.run_by(self.place(tid), &[call]);
        if let (Ok(_), Some(out)) = (&result, out) {
            sys::read_bytes(self.stub.pid(), last, out)?;
        }
        self.stub.forget();
        Ok(result?[0] as u64)
    }

    fn about(&mut self, tid: i32, action: &Action) -> sys::Result<()> {
        let pid = self.stub.pid();
        let tid = self.stub.threads()[self.place(tid)].tid;
        match action {
            Action::Limit(number, to) => sys::set_limit(pid, *number, *to),
            Action::Schedule(to) => sys::set_scheduling(tid, to),
            Action::Affinity(to) => sys::set_affinity(tid, to),
            Action::IoPriority(to) => sys::set_io_priority(tid, *to),
            Action::Dispatch(to) => ptrace::set_syscall_dispatch(tid, to),
            Action::File(name, content) => proc::write(pid, name, content),
            Action::Call(..) | Action::MakeTimer(_) | Action::SoftLimit(..) => {
                unreachable!("done by other means")
            }
        }
    }

    fn limits(&mut self) -> sys::Result<Vec<Limit>> {
        sys::limits(self.stub.pid())
    }
}

/// Steps that are done from outside, to a process that cannot run any yet.
struct Outside(i32);

impl Runner for Outside {
    fn call(&mut self, _: i32, _: i64, _: &[Arg], _: Option<&mut [u8]>) -> sys::Result<u64> {
        Err(SysError::new(
            "prlimit",
            format_args!("new process {}", self.0),
            std::io::Error::from_raw_os_error(libc::EPERM),
        ))
    }

    fn about(&mut self, _: i32, action: &Action) -> sys::Result<()> {
        match action {
            Action::Limit(number, to) => sys::set_limit(self.0, *number, *to),
            _ => unreachable!("limits alone"),
        }
    }

    fn limits(&mut self) -> sys::Result<Vec<Limit>> {
        sys::limits(self.0)
    }
}

/// Takes resource limits out of the way of what is to be made.
pub(super) fn lift_limits(stub: &Stub, plan: &LimitsPlan) -> sys::Result<Vec<String>> {
    state::apply(&plan.before, &mut Outside(stub.pid()))
}

/// Gives it its resource limits, when nothing more is to be made, by an instruction of its own.
pub(super) fn set_limits(stub: &Stub, plan: &LimitsPlan, insn: u64) -> sys::Result<Vec<String>> {
    let mut after = plan.after.clone();
    after
        .steps
        .iter_mut()
        .for_each(|step| step.tid = stub.pid());
    let mut held = Held::traced(stub.pid(), insn, stub.traced_with());
    let notes = state::apply(&after, &mut held)?;
    held.finish(stub.pid())?;
    Ok(notes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Credentials;
    use crate::sys::Birth;

    #[test]
    fn a_fork_keeps_what_is_ignored_alone() {
        let signals = signals(1 << (libc::SIGPIPE - 1));
        assert_eq!(signals[libc::SIGPIPE as usize - 1].handler, 1);
        assert_eq!(signals.iter().map(|s| s.handler).sum::<u64>(), 1);
    }

    #[test]
    fn nothing_is_to_be_done_for_what_ksnap_is_itself() {
        let pid = std::process::id() as i32;
        let wanted = ProcessState {
            pid,
            threads: vec![ThreadState {
                tid: pid,
                ..Default::default()
            }],
            ..Default::default()
        };
        let now = newborn(&wanted).unwrap();
        let plan = state::plan(&now, &now);
        assert!(plan.steps.is_empty(), "{plan:?}");
    }

    /// Has a new process take credentials, one after the other, and looks at what it has then.
    fn becomes(all: &[Credentials]) {
        if !rustix::process::geteuid().is_root() {
            return crate::skip::without_root("capabilities to give up");
        }
        let map = std::fs::read_to_string("/proc/self/uid_map").unwrap();
        if map.split_whitespace().ne(["0", "0", "4294967295"]) {
            return crate::skip::skip(
                "the right to become another user",
                "run the tests outside of user namespaces",
            );
        }
        let mut stub = Stub::start(Birth::default(), &[], &[]).unwrap();
        let pid = stub.pid();
        let with = |credentials: Credentials| ProcessState {
            pid,
            threads: vec![ThreadState {
                tid: pid,
                attributes: ThreadAttributes {
                    credentials: Some(credentials),
                    ..ThreadAttributes::default()
                },
                ..ThreadState::default()
            }],
            ..ProcessState::default()
        };
        let seen = || proc::task_status(pid, pid).unwrap().credentials;
        for want in all {
            let wanted = with(want.clone());
            let plan = state::plan(&wanted, &with(seen()));
            assert_eq!(plan.refused, Vec::<String>::new());
            apply(&mut stub, &plan, &wanted).unwrap();
            let got = seen();
            assert_eq!(
                (got.uids, got.gids, got.capabilities),
                (want.uids, want.gids, want.capabilities)
            );
        }
    }

    const SETUID: u64 = 1 << 7;
    const NET_BIND: u64 = 1 << 10;
    const NET_ADMIN: u64 = 1 << 12;

    fn credentials(id: u32, capabilities: [u64; 5]) -> Credentials {
        Credentials {
            uids: [id; 4],
            gids: [0; 4],
            capabilities,
            ..Credentials::default()
        }
    }

    #[test]
    fn capabilities_stay_when_ids_change_without_the_right_to_change_securebits() {
        let bounding = proc::task_status(std::process::id() as i32, std::process::id() as i32)
            .unwrap()
            .credentials
            .capabilities[3];
        let few = SETUID | NET_BIND;
        becomes(&[
            credentials(0, [0, few, few, bounding, 0]),
            credentials(1000, [NET_BIND, NET_BIND, NET_BIND, bounding, NET_BIND]),
        ]);
        let mut half = credentials(0, [0, few, NET_BIND, bounding, 0]);
        half.uids = [0, 1000, 0, 1000];
        becomes(&[half, credentials(1000, [0, NET_BIND, 0, bounding, 0])]);
    }

    #[test]
    fn what_is_inherited_may_have_left_the_bounding_set() {
        let inherited = NET_BIND | NET_ADMIN;
        becomes(&[credentials(
            1000,
            [inherited, NET_BIND, 0, NET_BIND, NET_BIND],
        )]);
    }
}
