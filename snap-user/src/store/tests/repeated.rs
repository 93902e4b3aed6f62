//! Pages that a session stores once, however often and wherever they come.

use super::common::noise;
use super::support::*;
use crate::model::{Costs, SnapshotId, SnapshotKind};
use crate::store::{PageSink, Published, Session, Store};
use std::collections::BTreeSet;

const PAGES: u64 = 400;

/// Noise that no other page has.
fn fresh(from: u64) -> impl Iterator<Item = (u64, u32)> {
    (0..PAGES).map(move |number| (number, noise(from + number)))
}

fn delta(
    session: &mut Session,
    parent: &Published,
    pages: impl IntoIterator<Item = (u64, u32)>,
) -> Published {
    publish(session, Some(parent.id), [], pages).expect("published")
}

fn assert_is(store: &Store, id: SnapshotId, pages: impl IntoIterator<Item = (u64, u32)>) {
    let store = store.apart();
    assert_holds(
        &store.snapshot(id).expect("there"),
        &pages.into_iter().collect(),
    );
    let report = store.verify(None).expect("listable");
    assert!(report.is_clean(), "{report:?}");
}

/// A session of three snapshots, the last of which is again what the first was.
fn there_and_back(store: &Store) -> (Session, [Published; 3]) {
    let mut session = store.create_session(&info(1)).expect("a session");
    let first = publish(&mut session, None, [], fresh(0)).expect("published");
    let second = delta(&mut session, &first, fresh(1000));
    let third = delta(&mut session, &second, fresh(0));
    (session, [first, second, third])
}

#[test]
fn a_page_that_comes_several_times_in_a_snapshot_is_stored_once() {
    for owner in [Owner::default(), Owner::new()] {
        let (_dir, store) = owner.new_store();
        let mut session = store.create_session(&info(1)).expect("a session");
        // In several batches, of which the later ones find what is in the file by then.
        let mut pending = session.begin(SnapshotKind::Base, None).expect("begun");
        let mut memory = Memory::new();
        for piece in 0..8 {
            let pages = (0..PAGES).map(|n| (piece * PAGES + n, noise(n % 300)));
            memory.extend(pages.clone());
            pending.append(&batch(0, pages)).expect("appended");
        }
        let base = pending.publish(&state(1), &Costs::default());
        let base = base.expect("published");
        assert_eq!(base.data_bytes, 300 * 4096);
        assert_is(&store, base.id, memory.clone());
        let content = store.snapshot(base.id).expect("there").stored_content();
        let content = content.expect("readable");
        assert_eq!((content.unique, content.repeated), (300, 8 * PAGES - 300));

        // So it is in the pack that it goes into.
        let next = delta(&mut session, &base, [(0, noise(5000))]);
        let gone: BTreeSet<u32> = [base.seq].into();
        let plan = session.pruner().plan_removal(&gone).expect("a plan");
        let after = plan.bytes_after;
        session.pruner().carry_out(&plan).expect("carried out");
        memory.insert(0, noise(5000));
        assert_is(&store, next.id, memory);
        let bytes = store.session_bytes(session.id()).expect("known");
        assert!(bytes < 350 * 4096, "{bytes}");
        assert!(after.abs_diff(bytes) < 8192, "{after} was meant, {bytes}");
    }
}

#[test]
fn a_page_that_comes_back_is_not_stored_again() {
    for owner in [Owner::default(), Owner::new()] {
        let (_dir, store) = owner.new_store();
        let (mut session, [_, second, third]) = there_and_back(&store);
        assert_eq!((second.data_bytes, third.data_bytes), (PAGES * 4096, 0));
        assert_is(&store, third.id, fresh(0));

        // Also by one who goes on with the session later.
        let id = session.id();
        drop(session);
        session = store.open_session(id).expect("opened");
        let fourth = delta(&mut session, &third, fresh(1000));
        assert_eq!(fourth.data_bytes, 0);
        assert_is(&store, fourth.id, fresh(1000));

        // And all of them go on when the first ones are gone.
        let gone: BTreeSet<u32> = [1, second.seq].into();
        let plan = session.pruner().plan_removal(&gone).expect("a plan");
        session.pruner().carry_out(&plan).expect("carried out");
        assert_is(&store, third.id, fresh(0));
        assert_is(&store, fourth.id, fresh(1000));
    }
}

#[test]
fn what_is_named_does_not_go_and_what_goes_is_not_named() {
    let (_dir, store) = new_store();
    let mut session = store.create_session(&info(1)).expect("a session");
    let first = publish(&mut session, None, [], fresh(0)).expect("published");
    let second = delta(&mut session, &first, fresh(1000));
    let (pruner, session_shared) = (session.pruner(), session.shared.clone());
    let gone: BTreeSet<u32> = [first.seq].into();
    let plan = pruner.plan_removal(&gone).expect("a plan");

    // One is being written, and names pages of what is to go: that waits for it, and leaves what it needs.
    let mut pending = session
        .begin(SnapshotKind::Delta, Some(second.id))
        .expect("begun");
    pending
        .append(&batch(0, fresh(0).take(9)))
        .expect("appended");
    let third = std::thread::scope(|scope| {
        let removal = scope.spawn(|| pruner.carry_out(&plan));
        // Until it waits, nothing that it removes is refused.
        let named = || session_shared.name(&gone);
        while !named().is_empty() {
            assert!(!removal.is_finished(), "it does not wait");
            std::thread::yield_now();
        }
        pending
            .append(&batch(0, [(9, noise(9))]))
            .expect("appended");
        let third = pending.publish(&state(1), &Costs::default());
        let removed = removal.join().expect("no panic").expect("carried out");
        assert_eq!(removed.snapshots, 1);
        third.expect("published")
    });
    assert_eq!(third.data_bytes, 4096, "of the page that came too late");
    let memory = || fresh(1000).chain(fresh(0).take(10));
    assert_is(&store, third.id, memory());

    // What is gone is stored again.
    let fourth = delta(&mut session, &third, fresh(0).skip(10).take(9));
    assert_eq!(fourth.data_bytes, 9 * 4096);
    assert_is(&store, fourth.id, memory().chain(fresh(0).skip(10).take(9)));
    // A plan may be older than a snapshot that names what it removes.
    let gone: BTreeSet<u32> = [second.seq].into();
    let plan = session.pruner().plan_removal(&gone).expect("a plan");
    let fifth = delta(&mut session, &fourth, fresh(1000).take(4));
    assert_eq!(fifth.data_bytes, 0);
    let removed = session.pruner().carry_out(&plan).expect("carried out");
    assert_eq!(removed.snapshots, 1);
    let memory = memory()
        .chain(fresh(0).skip(10).take(9))
        .chain(fresh(1000).take(4));
    assert_is(&store, fifth.id, memory);
}

#[test]
fn what_is_known_is_bounded_by_what_the_process_has() {
    let (_dir, store) = new_store();
    let (mut session, [_, _, third]) = there_and_back(&store);
    // Many times as much as it has, none of it twice.
    let mut parent = third;
    let mut from = 100_000;
    let most = 1 << 14;
    for _ in 0..60 {
        parent = delta(&mut session, &parent, fresh(from));
        from += PAGES;
        assert!(session.stored.known() <= most, "{}", session.stored.known());
    }
    assert!(session.stored.known() >= most / 2);
    // The latest is known, and the first is not.
    let back = delta(&mut session, &parent, fresh(from - 2 * PAGES));
    assert_eq!(back.data_bytes, 0);
    let first = delta(&mut session, &back, fresh(0));
    assert_eq!(first.data_bytes, PAGES * 4096);
}

#[test]
fn only_what_a_snapshot_builds_on_is_named() {
    let (_dir, store) = new_store();
    let (mut session, [first, ..]) = there_and_back(&store);
    // Behind a rollback to the first one, the second is on another branch.
    let branch = delta(&mut session, &first, fresh(1000));
    assert_eq!(branch.data_bytes, PAGES * 4096);
    let back = delta(&mut session, &branch, fresh(0));
    assert_eq!(back.data_bytes, 0);
    assert_is(&store, back.id, fresh(0));
    // A base stands alone.
    let mut pending = session
        .begin(SnapshotKind::Base, Some(back.id))
        .expect("begun");
    pending.append(&batch(0, fresh(1000))).expect("appended");
    let base = pending.publish(&state(1), &Costs::default());
    let base = base.expect("published");
    assert_eq!(base.data_bytes, PAGES * 4096);
    // And what builds on it needs nothing from before it, whoever goes on with the session.
    let id = session.id();
    drop(session);
    let mut session = store.open_session(id).expect("opened");
    let next = delta(&mut session, &base, fresh(0));
    assert_eq!(next.data_bytes, PAGES * 4096);
    assert_is(&store, next.id, fresh(0));
}

#[test]
fn a_page_whose_first_copy_is_damaged_or_unreadable_is_stored_again() {
    let (_dir, store) = new_store();
    let (mut session, [first, _, third]) = there_and_back(&store);
    let fourth = delta(&mut session, &third, fresh(1000));
    assert_eq!(fourth.data_bytes, 0);
    let dir = store.session_path(session.id());
    let path = crate::store::names::snapshot_file(first.seq, first.id);
    let path = dir.join(path);
    let mut bytes = std::fs::read(&path).expect("readable");
    bytes[256 + 7 * 4096 + 5] ^= 1;
    std::fs::write(&path, bytes).expect("written");
    let fifth = delta(&mut session, &fourth, fresh(0));
    assert_eq!(fifth.data_bytes, 4096, "but for one page");
    assert_holds(
        &store.apart().snapshot(fifth.id).expect("there"),
        &fresh(0).collect(),
    );
    // Where nothing of it can be read, what others have is found all the same.
    std::fs::write(&path, [0; 1000]).expect("written");
    let again = (10..20).map(|n| (n, noise(1000 + n)));
    let pages = fresh(2000).take(9).chain(again);
    let sixth = delta(&mut session, &fifth, pages);
    let back = fresh(0)
        .take(9)
        .chain((20..30).map(|n| (n, noise(1000 + n))));
    let seventh = delta(&mut session, &sixth, back);
    assert_eq!(sixth.data_bytes, 9 * 4096);
    assert_eq!(
        seventh.data_bytes,
        9 * 4096 - 4096,
        "one of the fifth's own is there"
    );
}
