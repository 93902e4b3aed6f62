use super::*;
use crate::model::{
    AltStack, Credentials, IntervalTimer, Limit, PosixTimer, ProcessState, Scheduling,
    SeccompFilter, SignalAction, ThreadAttributes, ThreadState,
};
use crate::sys::{self, SysError};
use std::io;

fn credentials(id: u32, capabilities: u64) -> Credentials {
    Credentials {
        uids: [id; 4],
        gids: [id; 4],
        groups: vec![],
        capabilities: [0, capabilities, capabilities, u64::MAX, 0],
        securebits: Some(0),
        no_new_privs: false,
    }
}

fn thread(tid: i32) -> ThreadState {
    ThreadState {
        tid,
        attributes: ThreadAttributes {
            alt_stack: Some(AltStack::default()),
            clear_child_tid: Some(0x1000 + tid as u64),
            credentials: Some(credentials(0, u64::MAX)),
            parent_death_signal: Some(0),
            ..ThreadAttributes::default()
        },
        ..ThreadState::default()
    }
}

fn process(tids: &[i32]) -> ProcessState {
    let mut state = ProcessState {
        pid: tids[0],
        cwd: "/".into(),
        threads: tids.iter().map(|tid| thread(*tid)).collect(),
        ..ProcessState::default()
    };
    let attributes = &mut state.attributes;
    attributes.root = "/".into();
    attributes.signals = Some(vec![SignalAction::default(); 64]);
    attributes.interval_timers = Some([IntervalTimer::default(); 3]);
    attributes.timers = Some(vec![]);
    attributes.umask = Some(0o22);
    attributes.dumpable = Some(1);
    attributes.limits = vec![Limit::default(); 16];
    state
}

/// What each step does, in short.
fn calls(plan: &StatePlan) -> Vec<(i32, i64)> {
    plan.steps
        .iter()
        .map(|step| match &step.action {
            Action::Call(nr, _) => (step.tid, *nr),
            _ => (step.tid, -1),
        })
        .collect()
}

#[test]
fn equal_states_take_no_step() {
    let state = process(&[10, 11]);
    assert_eq!(plan(&state, &state), StatePlan::default());
}

#[test]
fn what_is_unknown_is_left_alone() {
    let wanted = process(&[10]);
    let mut live = process(&[10]);
    live.attributes.signals = None;
    live.attributes.umask = None;
    live.attributes.timers = None;
    live.threads[0].attributes.credentials = None;
    assert_eq!(plan(&wanted, &live), StatePlan::default());
}

#[test]
fn only_what_differs_is_set() {
    let mut wanted = process(&[10, 11]);
    let live = process(&[10, 11]);
    wanted.attributes.umask = Some(0o77);
    wanted.attributes.signals.as_mut().unwrap()[14].handler = 0x4000;
    wanted.threads[1].attributes.alt_stack = Some(AltStack {
        sp: 0x9000,
        size: 8192,
        flags: 0,
    });
    let plan = plan(&wanted, &live);
    assert_eq!(
        calls(&plan),
        [
            (10, libc::SYS_umask),
            (10, libc::SYS_rt_sigaction),
            (11, libc::SYS_sigaltstack)
        ]
    );
    let Action::Call(_, args) = &plan.steps[1].action else {
        panic!("a call")
    };
    assert_eq!(args[0], Arg::Value(15));
}

#[test]
fn a_new_thread_begins_as_a_clone_of_one_that_stays() {
    let mut wanted = process(&[10, 12]);
    wanted.threads[1].attributes.parent_death_signal = Some(9);
    let mut live = process(&[11, 10]);
    live.threads[0].attributes.credentials = Some(credentials(7, 0));
    let plan = plan(&wanted, &live);
    assert_eq!(
        calls(&plan),
        [(12, libc::SYS_set_tid_address), (12, libc::SYS_prctl)],
        "{plan:?}"
    );
}

#[test]
fn root_becomes_a_user_and_what_that_undoes_comes_after() {
    let mut wanted = process(&[10]);
    wanted.threads[0].attributes.credentials = Some(credentials(1000, 0));
    wanted.threads[0].attributes.parent_death_signal = Some(15);
    let live = process(&[10]);
    let plan = plan(&wanted, &live);
    assert!(plan.refused.is_empty(), "{plan:?}");
    let order: Vec<i64> = calls(&plan).iter().map(|(_, nr)| *nr).collect();
    let at = |nr| order.iter().position(|n| *n == nr).unwrap();
    assert!(at(libc::SYS_setresgid) < at(libc::SYS_setresuid));
    assert!(at(libc::SYS_setresuid) < order.iter().rposition(|n| *n == libc::SYS_capset).unwrap());
    let whats: Vec<&str> = plan.steps.iter().map(|s| s.what.as_str()).collect();
    assert_eq!(
        whats[whats.len() - 2..],
        ["whether it may be dumped", "the signal at its parent's end"]
    );
}

#[test]
fn what_was_given_up_for_good_is_refused_and_named() {
    let wanted = process(&[10]);
    let mut live = process(&[10]);
    let mut now = credentials(1000, 0);
    now.no_new_privs = true;
    live.threads[0].attributes.credentials = Some(now);
    live.threads[0].attributes.seccomp.mode = 2;
    live.threads[0].attributes.seccomp.filters = Some(vec![SeccompFilter::default()]);
    live.attributes.root = "/jail".into();
    let refused = plan(&wanted, &live).refused.join("\n");
    for word in [
        "user ids",
        "group ids",
        "new privileges",
        "seccomp",
        "root directory",
    ] {
        assert!(refused.contains(word), "{word}: {refused}");
    }
}

#[test]
fn ids_that_are_still_at_hand_need_no_privilege() {
    let mut now = credentials(1000, 0);
    now.uids = [1000, 1000, 0, 1000];
    let mut wanted = process(&[10]);
    let mut live = process(&[10]);
    live.threads[0].attributes.credentials = Some(now.clone());
    wanted.threads[0].attributes.credentials = Some(Credentials {
        uids: [1000, 0, 0, 0],
        ..now
    });
    let plan = plan(&wanted, &live);
    assert!(plan.refused.is_empty(), "{plan:?}");
    assert_eq!(calls(&plan)[0], (10, libc::SYS_setresuid));
}

#[test]
fn capabilities_that_are_kept_for_good_are_not_kept_again() {
    const KEPT_AND_LOCKED: u32 = 3 << 4;
    const SETGID_AND_SETUID: u64 = 3 << 6;
    let now = Credentials {
        securebits: Some(KEPT_AND_LOCKED),
        ..credentials(0, SETGID_AND_SETUID)
    };
    let mut wanted = process(&[10]);
    let mut live = process(&[10]);
    live.threads[0].attributes.credentials = Some(now.clone());
    wanted.threads[0].attributes.credentials = Some(Credentials {
        uids: [1000; 4],
        ..now
    });
    let plan = plan(&wanted, &live);
    assert!(plan.refused.is_empty(), "{plan:?}");
    assert!(calls(&plan).contains(&(10, libc::SYS_setresuid)));
    let keeps = |step: &Step| step.what.starts_with("keeping capabilities");
    assert!(!plan.steps.iter().any(keeps), "{plan:?}");
}

#[test]
fn filters_are_added_to_those_that_are_there() {
    let filter = |n: u8| SeccompFilter {
        flags: 0,
        program: vec![n; 8],
    };
    let mut wanted = process(&[10]);
    let mut live = process(&[10]);
    for (state, filters) in [
        (&mut wanted, vec![filter(1), filter(2)]),
        (&mut live, vec![filter(1)]),
    ] {
        state.threads[0].attributes.seccomp.mode = 2;
        state.threads[0].attributes.seccomp.filters = Some(filters);
    }
    let plan = plan(&wanted, &live);
    assert_eq!(calls(&plan), [(10, libc::SYS_seccomp)]);
    let Action::Call(_, args) = &plan.steps[0].action else {
        panic!("a call")
    };
    let Arg::Pointing { bytes, .. } = &args[2] else {
        panic!("a program")
    };
    assert_eq!((bytes[0], bytes[16]), (1, 2));
}

/// Keeps timers as a kernel does, and refuses what it is told to refuse.
#[derive(Default)]
struct Kernel {
    next: i32,
    takes_ids: bool,
    restores: bool,
    timers: Vec<i32>,
    refuses: Option<i64>,
    ran: Vec<i64>,
    outside: usize,
}

impl Runner for Kernel {
    fn call(
        &mut self,
        tid: i32,
        nr: i64,
        args: &[Arg],
        out: Option<&mut [u8]>,
    ) -> sys::Result<u64> {
        self.ran.push(nr);
        let fail = |errno| {
            Err(SysError::new(
                "call",
                format_args!("thread {tid}"),
                io::Error::from_raw_os_error(errno),
            ))
        };
        if self.refuses == Some(nr) {
            return fail(libc::EPERM);
        }
        match nr {
            libc::SYS_prctl if args[0] == Arg::Value(77) => {
                if !self.takes_ids {
                    return fail(libc::EINVAL);
                }
                self.restores = args[1] == Arg::Value(1);
            }
            libc::SYS_timer_create => {
                let Arg::Bytes(asked) = &args[2] else {
                    panic!("an id")
                };
                let asked = i32::from_ne_bytes(asked[..].try_into().unwrap());
                let id = match self.restores {
                    true => asked,
                    false => self.next,
                };
                self.next = self.next.max(id + 1);
                self.timers.push(id);
                out.unwrap().copy_from_slice(&id.to_ne_bytes());
            }
            libc::SYS_timer_delete => {
                let Arg::Value(id) = args[0] else {
                    panic!("an id")
                };
                self.timers.retain(|timer| *timer != id as i32);
            }
            _ => {}
        }
        Ok(0)
    }

    fn about(&mut self, tid: i32, _: &Action) -> sys::Result<()> {
        self.outside += 1;
        Err(SysError::new(
            "prlimit",
            format_args!("thread {tid}"),
            io::Error::from_raw_os_error(libc::EPERM),
        ))
    }

    fn limits(&mut self) -> sys::Result<Vec<Limit>> {
        Ok(vec![Limit::default(); 16])
    }
}

fn with_timers(ids: &[i32]) -> ProcessState {
    let mut state = process(&[10]);
    let timer = |id| PosixTimer {
        id,
        clock: 1,
        left_ns: 5,
        ..PosixTimer::default()
    };
    state.attributes.timers = Some(ids.iter().map(|id| timer(*id)).collect());
    state
}

#[test]
fn timers_get_their_ids_from_kernels_that_take_them_and_from_those_that_count() {
    for takes_ids in [true, false] {
        let mut kernel = Kernel {
            takes_ids,
            timers: vec![0, 2],
            next: 3,
            ..Kernel::default()
        };
        let plan = plan(&with_timers(&[0, 7]), &with_timers(&[0, 2]));
        apply(&plan, &mut kernel).unwrap();
        kernel.timers.sort_unstable();
        assert_eq!(kernel.timers, [0, 7]);
        assert!(!kernel.restores, "left as it was");
    }
}

#[test]
fn an_id_that_has_been_passed_is_an_error() {
    let mut kernel = Kernel {
        next: 9,
        ..Kernel::default()
    };
    let plan = plan(&with_timers(&[7]), &with_timers(&[]));
    let error = apply(&plan, &mut kernel).unwrap_err().to_string();
    assert!(error.contains("timer 7"), "{error}");
    assert!(kernel.timers.is_empty(), "none is left behind");
}

#[test]
fn a_limit_that_may_not_be_set_from_outside_is_set_by_the_process_itself() {
    let mut wanted = process(&[10]);
    wanted.attributes.limits[7].soft = 100;
    let mut kernel = Kernel::default();
    let plan = plan_limits(&wanted, &process(&[10])).after;
    assert_eq!(apply(&plan, &mut kernel).unwrap(), Vec::<String>::new());
    assert_eq!((kernel.outside, kernel.ran), (1, vec![libc::SYS_prlimit64]));
}

#[test]
fn what_is_not_essential_is_noted_and_the_rest_goes_on() {
    let mut wanted = process(&[10]);
    wanted.attributes.oom_score_adj = Some(-1);
    wanted.attributes.umask = Some(0);
    let mut kernel = Kernel::default();
    let mut live = process(&[10]);
    live.attributes.oom_score_adj = Some(0);
    let plan = plan(&wanted, &live);
    let notes = apply(&plan, &mut kernel).unwrap();
    assert!(notes[0].contains("oom_score_adj"), "{notes:?}");
    assert_eq!(kernel.ran.last(), Some(&libc::SYS_umask));
    kernel.refuses = Some(libc::SYS_umask);
    let error = apply(&plan, &mut kernel).unwrap_err().to_string();
    assert!(error.contains("the umask"), "{error}");
}

#[test]
fn what_no_kernel_gives_again_is_found_while_planning() {
    let (wanted, live) = (with_timers(&[0, 7]), with_timers(&[0]));
    let check = |ids| check_timers(&wanted, &live, ids);
    assert_eq!(check(TimerIds::Chosen), Vec::<String>::new());
    assert_eq!(check(TimerIds::Counted), Vec::<String>::new());
    let refused = check(TimerIds::CountedOn);
    assert!(
        refused.len() == 1 && refused[0].contains("timer 7"),
        "{refused:?}"
    );
    let far = check_timers(&with_timers(&[5000]), &live, TimerIds::Counted);
    assert_eq!(far.len(), 1);
}

#[test]
fn ids_that_are_counted_come_in_their_order() {
    let mut kernel = Kernel::default();
    apply(
        &plan(&with_timers(&[4, 0, 2]), &with_timers(&[])),
        &mut kernel,
    )
    .unwrap();
    assert_eq!(kernel.timers, [0, 2, 4]);
}

#[test]
fn a_clone_of_a_thread_whose_scheduling_is_not_inherited_gets_its_own() {
    let realtime = Scheduling {
        policy: libc::SCHED_RR as u32,
        flags: 1,
        priority: 20,
        ..Scheduling::default()
    };
    let mut wanted = process(&[10, 12]);
    let mut live = process(&[10]);
    live.threads[0].attributes.scheduling = Some(realtime);
    wanted.threads[0].attributes.scheduling = Some(realtime);
    wanted.threads[1].attributes.scheduling = Some(Scheduling {
        flags: 0,
        ..realtime
    });
    let steps = plan(&wanted, &live).steps;
    let scheduled = |step: &&Step| matches!(step.action, Action::Schedule(_));
    let tids: Vec<i32> = steps.iter().filter(scheduled).map(|s| s.tid).collect();
    assert_eq!(tids, [12], "{steps:?}");
    wanted.threads[1].attributes.scheduling = Some(Scheduling::default());
    let steps = plan(&wanted, &live).steps;
    assert!(!steps.iter().any(|s| scheduled(&s)), "{steps:?}");
    let nice = |nice, flags| Scheduling {
        nice,
        flags,
        ..Scheduling::default()
    };
    assert_eq!(cloned_scheduling(&nice(-5, 1)), nice(0, 0));
    assert_eq!(cloned_scheduling(&nice(5, 1)), nice(5, 0));
    assert_eq!(cloned_scheduling(&nice(-5, 0)), nice(-5, 0));
}
