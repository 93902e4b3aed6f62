//! Resource limits: out of the way while everything is put back, and as they shall be at the very end.

use super::plan::{Action, StatePlan, worker};
use crate::model::{Limit, ProcessState};
use crate::sys::limit_name;

const DATA: usize = libc::RLIMIT_DATA as usize;
const STACK: usize = libc::RLIMIT_STACK as usize;
const NPROC: usize = libc::RLIMIT_NPROC as usize;
const NOFILE: usize = libc::RLIMIT_NOFILE as usize;
const MEMLOCK: usize = libc::RLIMIT_MEMLOCK as usize;
const AS: usize = libc::RLIMIT_AS as usize;
const SIGPENDING: usize = libc::RLIMIT_SIGPENDING as usize;

/// What mappings, descriptors, threads, timers and queued signals are measured against when they are made
/// (`getrlimit(2)`). A process may hold more of each than its limit allows by then, as limits apply to what comes.
const MEASURED: [usize; 7] = [DATA, STACK, NPROC, NOFILE, MEMLOCK, AS, SIGPENDING];

/// The way of resource limits.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LimitsPlan {
    /// Before anything is made.
    pub before: StatePlan,
    /// When nothing more is to be made.
    pub after: StatePlan,
}

/// Plans the way from `live` to `wanted`.
pub fn plan_limits(wanted: &ProcessState, live: &ProcessState) -> LimitsPlan {
    let mut plan = LimitsPlan::default();
    let Some(worker) = worker(wanted, live).map(|thread| thread.tid) else {
        return plan;
    };
    let (want, now) = (&wanted.attributes.limits, &live.attributes.limits);
    let mut limits: Vec<(usize, Limit, Limit)> = (want.iter().zip(now).enumerate())
        .map(|(number, (want, now))| (number, *want, *now))
        .collect();
    // A process that sets them itself needs memory for it as long as one is left.
    limits.sort_by_key(|(number, ..)| *number == AS);
    for (number, want, now) in limits {
        let name = limit_name(number);
        let measured = MEASURED.contains(&number) && now.soft < now.hard;
        if measured {
            let open = Limit {
                soft: now.hard,
                hard: now.hard,
            };
            plan.before
                .attempt(worker, name, Action::Limit(number, open));
        }
        if want.hard > now.hard {
            // Takes CAP_SYS_RESOURCE, which its new credentials may lack.
            let raised = Limit {
                soft: if measured { want.hard } else { now.soft },
                hard: want.hard,
            };
            plan.before
                .attempt(worker, name, Action::Limit(number, raised));
            plan.after
                .attempt(worker, name, Action::SoftLimit(number, want.soft));
        } else if measured || want != now {
            plan.after
                .attempt(worker, name, Action::Limit(number, want));
        }
    }
    plan
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ThreadState;

    fn process(limits: [Limit; 16]) -> ProcessState {
        let mut state = ProcessState {
            threads: vec![ThreadState {
                tid: 10,
                ..ThreadState::default()
            }],
            ..ProcessState::default()
        };
        state.attributes.limits = limits.to_vec();
        state
    }

    fn actions(plan: &StatePlan) -> Vec<Action> {
        plan.steps.iter().map(|step| step.action.clone()).collect()
    }

    const OPEN: Limit = Limit {
        soft: 1000,
        hard: 1000,
    };
    const LOW: Limit = Limit {
        soft: 10,
        hard: 1000,
    };

    #[test]
    fn what_is_low_now_is_out_of_the_way_first_and_what_was_low_comes_last() {
        let (mut then, mut now) = ([OPEN; 16], [OPEN; 16]);
        now[AS] = LOW;
        then[NOFILE] = LOW;
        let plan = plan_limits(&process(then), &process(now));
        assert_eq!(actions(&plan.before), [Action::Limit(AS, OPEN)]);
        assert_eq!(
            actions(&plan.after),
            [Action::Limit(NOFILE, LOW), Action::Limit(AS, OPEN)]
        );
    }

    #[test]
    fn a_limit_that_stays_low_is_open_in_between() {
        let mut both = [OPEN; 16];
        (both[AS], both[DATA]) = (LOW, LOW);
        let plan = plan_limits(&process(both), &process(both));
        let (as_, data) = (Action::Limit(AS, OPEN), Action::Limit(DATA, OPEN));
        assert_eq!(actions(&plan.before), [data, as_]);
        let (as_, data) = (Action::Limit(AS, LOW), Action::Limit(DATA, LOW));
        assert_eq!(actions(&plan.after), [data, as_]);
    }

    #[test]
    fn what_has_nothing_to_do_with_making_is_left_until_the_end() {
        let (mut then, now) = ([OPEN; 16], [OPEN; 16]);
        then[libc::RLIMIT_CORE as usize] = LOW;
        let plan = plan_limits(&process(then), &process(now));
        assert_eq!(actions(&plan.before), []);
        assert_eq!(actions(&plan.after).len(), 1);
    }

    #[test]
    fn a_hard_limit_is_raised_while_that_is_allowed_and_the_soft_one_set_whatever_came_of_it() {
        let then = [OPEN; 16];
        let mut now = then;
        now[NOFILE] = LOW;
        now[NOFILE].hard = 100;
        let plan = plan_limits(&process(then), &process(now));
        let first = Limit {
            soft: 100,
            hard: 100,
        };
        assert_eq!(
            actions(&plan.before),
            [Action::Limit(NOFILE, first), Action::Limit(NOFILE, OPEN)]
        );
        assert_eq!(actions(&plan.after), [Action::SoftLimit(NOFILE, 1000)]);
    }
}
