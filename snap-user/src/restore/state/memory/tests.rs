use super::*;
use crate::model::{MemoryPolicy, Protection, ThreadState};

const P: u64 = crate::model::PAGE_SIZE;

fn range(start: u64, end: u64) -> PageRange {
    PageRange::new(start * P, end * P)
}

fn vma(start: u64, end: u64, flags: &str, name: Option<&str>) -> Vma {
    Vma {
        range: range(start, end),
        prot: Protection {
            read: true,
            write: true,
            exec: false,
        },
        shared: false,
        backing: Backing::Anonymous {
            name: name.map(str::to_owned),
        },
        flags: flags.split_whitespace().map(str::to_owned).collect(),
        build_id: None,
    }
}

fn process(vmas: &[Vma]) -> ProcessState {
    ProcessState {
        vmas: vmas.to_vec(),
        threads: vec![ThreadState {
            tid: 1,
            ..ThreadState::default()
        }],
        ..ProcessState::default()
    }
}

/// Number, first address in pages, second and third argument, of each step.
fn steps(plan: &StatePlan) -> Vec<(i64, u64, u64, u64)> {
    plan.steps
        .iter()
        .map(|step| {
            let Action::Call(nr, args) = &step.action else {
                panic!("a call")
            };
            let value = |n: usize| match args.get(n) {
                Some(Arg::Value(value)) => *value,
                _ => 0,
            };
            (*nr, value(0) / P, value(1) / P, value(2))
        })
        .collect()
}

#[test]
fn equal_memory_takes_no_step() {
    let state = process(&[vma(1, 5, "rd wr lo dd", Some("x"))]);
    let plan = plan_memory(&state, &state, &PageSet::new());
    assert_eq!(plan, MemoryPlan::default());
}

#[test]
fn what_was_mapped_anew_gets_all_of_it() {
    let state = process(&[vma(1, 5, "rd wr lo dd sl", Some("x"))]);
    let fresh = PageSet::from_ranges(vec![range(2, 5)]);
    let plan = plan_memory(&state, &state, &fresh);
    assert_eq!(
        steps(&plan.after),
        [
            (libc::SYS_madvise, 2, 3, libc::MADV_DONTDUMP as u64),
            (libc::SYS_mlock2, 2, 3, 0),
            (libc::SYS_prctl, PR_SET_VMA / P, 0, 2 * P),
            (SYS_MSEAL, 2, 3, 0),
        ]
    );
}

#[test]
fn advice_is_given_taken_back_and_replaced_piece_by_piece() {
    let wanted = process(&[vma(1, 9, "rd nh", None)]);
    let live = process(&[vma(1, 4, "rd nh dc rr", None), vma(4, 9, "rd hg lo", None)]);
    let plan = plan_memory(&wanted, &live, &PageSet::new());
    assert_eq!(
        steps(&plan.after),
        [
            (libc::SYS_madvise, 1, 3, libc::MADV_NORMAL as u64),
            (libc::SYS_madvise, 1, 3, libc::MADV_DOFORK as u64),
            (libc::SYS_madvise, 4, 5, libc::MADV_NOHUGEPAGE as u64),
            (libc::SYS_munlock, 4, 5, 0),
        ]
    );
    let plan = plan_memory(
        &process(&[vma(1, 4, "rd", None)]),
        &process(&[vma(1, 4, "rd hg", None)]),
        &PageSet::new(),
    );
    assert!(plan.after.steps.is_empty());
    assert!(plan.after.notes[0].contains("huge pages"));
}

#[test]
fn locking_what_is_to_come_is_taken_back_without_losing_locks() {
    let mut wanted = process(&[vma(1, 5, "rd wr lo lf", None), vma(7, 9, "rd wr", None)]);
    let mut live = wanted.clone();
    wanted.attributes.lock_future = Some(0);
    live.attributes.lock_future = Some(libc::MCL_FUTURE as u32);
    let plan = plan_memory(&wanted, &live, &PageSet::new());
    assert_eq!(
        steps(&plan.after),
        [
            (libc::SYS_munlockall, 0, 0, 0),
            (libc::SYS_mlock2, 1, 4, MLOCK_ONFAULT),
        ]
    );
    let plan = plan_memory(&live, &wanted, &PageSet::new());
    assert_eq!(plan.after.steps.len(), 1);
}

#[test]
fn unread_flags_are_left_alone() {
    let wanted = process(&[vma(1, 9, "", None)]);
    let live = process(&[vma(1, 9, "rd lo", None)]);
    let plan = plan_memory(&wanted, &live, &PageSet::new());
    assert_eq!(plan, MemoryPlan::default());
}

#[test]
fn guards_go_before_pages_are_written_and_come_after() {
    let mut wanted = process(&[vma(1, 20, "rd", None)]);
    let mut live = process(&[vma(1, 20, "rd", None)]);
    wanted.attributes.memory.guards = vec![range(2, 4), range(10, 12)];
    live.attributes.memory.guards = vec![range(3, 6), range(10, 12)];
    let fresh = PageSet::from_ranges(vec![range(10, 11)]);
    let plan = plan_memory(&wanted, &live, &fresh);
    assert_eq!(
        steps(&plan.before),
        [(libc::SYS_madvise, 4, 2, GUARD_REMOVE as u64)]
    );
    let install = GUARD_INSTALL as u64;
    let after: Vec<_> = steps(&plan.after)
        .into_iter()
        .filter(|step| step.3 == install)
        .collect();
    assert_eq!(
        after,
        [
            (libc::SYS_madvise, 2, 1, install),
            (libc::SYS_madvise, 10, 1, install)
        ]
    );
}

#[test]
fn keys_and_policies_come_and_go() {
    let mut wanted = process(&[vma(1, 20, "rd", None)]);
    let mut live = process(&[vma(1, 20, "rd", None)]);
    let policy = MemoryPolicy {
        mode: 2,
        nodes: vec![1],
    };
    wanted.attributes.memory.keys = vec![(range(1, 5), 3)];
    live.attributes.memory.keys = vec![(range(1, 3), 3), (range(8, 9), 4)];
    live.attributes.memory.policies = vec![(range(6, 7), policy)];
    let plan = plan_memory(&wanted, &live, &PageSet::new());
    assert_eq!(
        steps(&plan.after),
        [
            (libc::SYS_pkey_mprotect, 3, 2, 3),
            (libc::SYS_pkey_mprotect, 8, 1, 3),
            (libc::SYS_mbind, 6, 1, 0),
        ]
    );
}
