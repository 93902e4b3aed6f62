//! Attributes of a new process that a living one makes.

use super::attributes::plan_between;
use crate::model::{
    AltStack, IntervalTimer, ProcessAttributes, ProcessState, SignalAction, ThreadAttributes,
    ThreadState,
};
use crate::restore::Result;
use crate::restore::state::{LimitsPlan, StatePlan, cloned_scheduling};

/// Plans the way to the snapshot's attributes, from what a child has of a process in this state.
///
/// # Errors
/// [`RestoreError::Refused`] with everything that a child of it may not be given.
pub fn plan_attributes_below(
    wanted: &ProcessState,
    maker: &ProcessState,
) -> Result<(StatePlan, LimitsPlan)> {
    plan_between(wanted, &child_of(wanted, maker), Vec::new())
}

/// What a child is that the first thread of a process has just forked, as a stub: it has all that its parent has but for what
/// a fork leaves behind (`fork(2)`). Session, group and terminal are those that it is given when it is made.
fn child_of(wanted: &ProcessState, maker: &ProcessState) -> ProcessState {
    let ignored = |action: &SignalAction| SignalAction {
        handler: u64::from(action.handler == 1),
        ..SignalAction::default()
    };
    let had = &maker.attributes;
    let attributes = ProcessAttributes {
        // Those of its parent that are not known are by default.
        signals: Some(match &had.signals {
            Some(all) => all.iter().map(ignored).collect(),
            None => vec![SignalAction::default(); 64],
        }),
        interval_timers: Some([IntervalTimer::default(); 3]),
        timers: Some(Vec::new()),
        subreaper: Some(false),
        lock_future: Some(0),
        group: wanted.attributes.group,
        session: wanted.attributes.session,
        terminal: wanted.attributes.terminal,
        memory: Default::default(),
        ..had.clone()
    };
    let first = maker.threads.first().cloned().unwrap_or_default();
    let thread = ThreadAttributes {
        alt_stack: Some(AltStack::default()),
        clear_child_tid: None,
        scheduling: first.attributes.scheduling.map(|s| cloned_scheduling(&s)),
        parent_death_signal: Some(0),
        syscall_dispatch: Some(Default::default()),
        ..first.attributes
    };
    let of = |want: &ThreadState| ThreadState {
        tid: want.tid,
        // Set with what is registered for it.
        comm: want.comm.clone(),
        attributes: thread.clone(),
        ..ThreadState::default()
    };
    ProcessState {
        pid: wanted.pid,
        cwd: maker.cwd.clone(),
        threads: wanted.threads.iter().map(of).collect(),
        attributes,
        ..ProcessState::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Seccomp, SeccompFilter};

    #[test]
    fn a_child_has_what_its_parent_has_but_for_handlers_and_timers() {
        let action = |handler| SignalAction {
            handler,
            flags: 4,
            ..SignalAction::default()
        };
        let mut maker = ProcessState {
            pid: 10,
            cwd: "/srv".into(),
            threads: vec![ThreadState {
                tid: 10,
                ..ThreadState::default()
            }],
            ..ProcessState::default()
        };
        maker.attributes.umask = Some(0o27);
        maker.attributes.subreaper = Some(true);
        maker.attributes.signals = Some(vec![action(0), action(1), action(0x4000)]);
        maker.threads[0].attributes.seccomp = Seccomp {
            mode: 2,
            filters: Some(vec![SeccompFilter::default()]),
        };
        let wanted = ProcessState {
            pid: 11,
            threads: [11, 12]
                .map(|tid| ThreadState {
                    tid,
                    ..ThreadState::default()
                })
                .into(),
            ..ProcessState::default()
        };
        let child = child_of(&wanted, &maker);
        assert_eq!(
            (child.cwd.as_str(), child.attributes.umask),
            ("/srv", Some(0o27))
        );
        assert_eq!(child.attributes.subreaper, Some(false));
        let handlers = child.attributes.signals.unwrap();
        let handlers: Vec<u64> = handlers.iter().map(|one| one.handler).collect();
        assert_eq!(handlers, [0, 1, 0]);
        for thread in &child.threads {
            assert_eq!(thread.attributes.seccomp.mode, 2);
        }
        assert_eq!(child.threads[1].tid, 12);
        // What it has of its parent cannot be taken back.
        let refused = plan_attributes_below(&wanted, &maker)
            .unwrap_err()
            .to_string();
        assert!(refused.contains("seccomp"), "{refused}");
    }
}
