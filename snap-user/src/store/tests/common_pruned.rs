//! What sessions have in common stays stored once when snapshots are removed, for as long as two of them have it.

use super::common::{assert_whole, loans, memory, noise, remove, scenario, sessions, test_store};
use super::files::Plan;
use super::support::*;
use crate::model::SnapshotId;
use crate::store::{Session, Store, StoreError};
use std::fs;

/// Adds deltas to both, and removes all but the newest. Gives the newest of each with what it holds. `sizes`: they become
/// what was planned.
fn grow_and_prune(
    pair: &mut [Session; 2],
    from: u64,
    sizes: bool,
) -> Result<Vec<(SnapshotId, Memory)>, StoreError> {
    let mut newest = Vec::new();
    for session in pair.iter_mut() {
        let pid = session.info().pid;
        let mut held = memory(pid);
        for round in 0..from + 3 {
            held.insert(1005 + round, noise(7_000_000 + round * 10 + pid as u64));
        }
        for round in from..from + 3 {
            let page = (1005 + round, held[&(1005 + round)]);
            let parent = session.head();
            publish(session, parent, [], [page])?;
        }
        newest.push((session.head().expect("published"), held));
    }
    for session in pair.iter() {
        let pruner = session.pruner();
        let mut list = pruner.snapshots()?;
        list.pop();
        let gone = list.iter().map(|meta| meta.seq).collect();
        let plan = pruner.plan_removal(&gone)?;
        let before = session.store().session_bytes(session.id())?;
        let done = pruner.carry_out(&plan)?;
        if !sizes {
            continue;
        }
        let after = session.store().session_bytes(session.id())?;
        assert_eq!(before as i64 - after as i64, done.freed);
        assert!(plan.bytes_after.abs_diff(after) < 2000, "{after}");
    }
    Ok(newest)
}

#[test]
fn what_is_pruned_leaves_stored_once_what_it_had_in_common() {
    let (_folder, store) = new_store();
    let mut pair = sessions(&store, [1, 2]);
    let _ = scenario(&mut pair).map(|one| one.expect("published"));
    let common = 400 * 4096;
    for round in 0..4 {
        let published = grow_and_prune(&mut pair, round * 3, true).expect("pruned");
        assert_whole(store.dir(), &published);
        let all: u64 = pair
            .iter()
            .map(|one| store.session_bytes(one.id()).expect("known"))
            .sum();
        assert!((common..2 * common).contains(&all), "{all}");
        assert_eq!(loans(store.dir()).len(), 2);
    }
    // Nobody else has it any more: the pack takes what it needs, and the rest is free.
    let [a, b] = pair;
    remove(&store, a);
    let held = |extra: u64| {
        let mut held = memory(2);
        held.extend((0..12 + extra).map(|round| (1005 + round, noise(7_000_000 + round * 10 + 2))));
        held
    };
    let mut b = [b];
    let session = &mut b[0];
    let parent = session.head();
    let page = (1017, noise(7_000_000 + 120 + 2));
    publish(session, parent, [], [page]).expect("published");
    let parent = session.head().expect("published");
    let seq = session.pruner().snapshots().expect("a listing")[0].seq;
    let plan = session
        .pruner()
        .plan_removal(&[seq].into())
        .expect("a plan");
    session.pruner().carry_out(&plan).expect("removed");
    assert_eq!(loans(store.dir()).len(), 0);
    assert_whole(store.dir(), &[(parent, held(1))]);
}

#[test]
fn wherever_a_removal_fails_or_ends_the_store_is_whole() {
    for crash in [false, true] {
        let mut ended = 0;
        for at in 1.. {
            let (_folder, files, store) = test_store();
            let dir = store.dir().to_owned();
            let mut pair = sessions(&store, [1, 2]);
            let _ = scenario(&mut pair).map(|one| one.expect("published"));
            grow_and_prune(&mut pair, 0, true).expect("pruned");
            let before = files.operations();
            files.set_plan(match crash {
                true => Plan::Crash(before + at),
                false => Plan::Fail(before + at, 5),
            });
            let done = grow_and_prune(&mut pair, 3, false);
            ended += u32::from(done.is_err());
            let survived = before + at > files.operations();
            files.set_plan(Plan::Nothing);
            if crash {
                pair.into_iter().for_each(Session::forget);
                files.power_cut_keeping_names();
                let store = Store::open_or_create_with(files.shared(), &dir).expect("opens");
                for (session, _) in store.sessions().expect("a listing") {
                    drop(store.open_session(session).expect("opens"));
                }
            } else {
                for one in &pair {
                    let pruner = one.pruner();
                    let plan = pruner.plan_removal(&[].into()).expect("a plan");
                    pruner.carry_out(&plan).expect("swept");
                }
            }
            let report = Store::open(&dir)
                .expect("opens")
                .verify(None)
                .expect("listable");
            assert!(report.is_clean(), "{crash} {at}: {report:?}");
            if let Ok(published) = done {
                for (id, memory) in &published {
                    let store = Store::open(&dir).expect("opens");
                    assert_holds(&store.snapshot(*id).expect("there"), memory);
                }
            }
            if survived {
                break;
            }
        }
        assert!(ended > 20, "{ended}");
    }
}

#[test]
fn damage_to_what_a_pack_borrows_is_found() {
    for cut in [false, true] {
        let (_folder, store) = new_store();
        let mut pair = sessions(&store, [1, 2]);
        let _ = scenario(&mut pair).map(|one| one.expect("published"));
        let published = grow_and_prune(&mut pair, 0, true).expect("pruned");
        let of_b = store.dir().join(pair[1].id().to_string());
        let mut there = loans(store.dir());
        there.retain(|path| path.starts_with(&of_b));
        assert_eq!(there.len(), 1);
        let mut bytes = fs::read(&there[0]).expect("readable");
        fs::remove_file(&there[0]).expect("removable");
        if cut {
            bytes.truncate(5000);
            fs::write(&there[0], bytes).expect("writable");
        }
        drop(pair);
        let store = Store::open(store.dir()).expect("opens");
        let report = store.verify(None).expect("listable");
        let named = |id| report.problems.iter().any(|problem| problem.id == Some(id));
        assert!(named(published[1].0), "{report:?}");
        assert!(!named(published[0].0), "{report:?}");
        assert_holds(
            &store.snapshot(published[0].0).expect("there"),
            &published[0].1,
        );
    }
}
