//! One session, a few snapshots.

use super::files::TestFiles;
use super::support::*;
use crate::model::{Costs, PAGE_SIZE, SnapshotId, SnapshotKind};
use crate::store::{
    EncodedBatch, PageChange, PageDiff, PageSink, Rules, Session, SnapshotMeta, Store, StoreError,
};

#[test]
fn deltas_and_branches_read_back() {
    let (_dir, store) = new_store();
    let mut session = store.create_session(&info(7)).expect("a session");
    let base = publish(&mut session, None, [], (0..600).map(|n| (n, n as u32))).expect("a base");
    let first = publish(
        &mut session,
        Some(base.id),
        100..200,
        [(3, 900), (150, 901)],
    )
    .expect("a delta");
    let second = publish(&mut session, Some(first.id), [3], [(700, 902)]).expect("a delta");
    // Back to the base: a branch.
    let branch = publish(&mut session, Some(base.id), [], [(0, 903)]).expect("a branch");

    let base_pages: Memory = (0..600).map(|n| (n, n as u32)).collect();
    let mut first_pages = base_pages.clone();
    first_pages.retain(|n, _| !(100..200).contains(n));
    first_pages.extend([(3, 900), (150, 901)]);
    let mut second_pages = first_pages.clone();
    second_pages.remove(&3);
    second_pages.insert(700, 902);
    let mut branch_pages = base_pages.clone();
    branch_pages.insert(0, 903);

    let store = Store::open(store.dir()).expect("the store");
    for (published, pages) in [
        (&base, &base_pages),
        (&first, &first_pages),
        (&second, &second_pages),
        (&branch, &branch_pages),
    ] {
        let snapshot = store.snapshot(published.id).expect("the snapshot");
        assert_holds(&snapshot, pages);
        assert_eq!(published.pages, pages.len() as u64);
    }
    let report = store.verify(None).expect("a listable store");
    assert!(report.is_clean(), "{report:?}");
    assert_eq!((report.snapshots, report.pages), (4, 600 + 2 + 1 + 1));

    let changes = store.diff(first.id, second.id).expect("a diff");
    let at = |n: u64, change| PageDiff {
        addr: n * PAGE_SIZE,
        change,
    };
    assert_eq!(
        changes,
        [at(3, PageChange::Removed), at(700, PageChange::Added)]
    );
    assert_eq!(store.diff(base.id, branch.id).expect("a diff").len(), 1);
}

#[test]
fn a_later_pass_wins_whatever_the_order_of_arrival() {
    let (_dir, store) = new_store();
    let mut session = store.create_session(&info(7)).expect("a session");
    let base = publish(&mut session, None, [], [(9, 1), (10, 2)]).expect("a base");
    let mut pending = session
        .begin(SnapshotKind::Delta, Some(base.id))
        .expect("a delta");
    pending
        .append(&batch(1, [(1, 11), (2, 12)]))
        .expect("pass 1");
    pending.remove_pages(&set([3, 4, 9]), 1);
    // The encoder of pass 0 was slow.
    pending
        .append(&batch(0, [(1, 1), (2, 2), (3, 3), (4, 4)]))
        .expect("pass 0");
    pending
        .append(&batch(1, [(2, 22), (4, 14)]))
        .expect("pass 1 again");
    let delta = pending
        .publish(&state(7), &Costs::default())
        .expect("published");
    let snapshot = store.snapshot(delta.id).expect("the delta");
    assert_holds(&snapshot, &[(1, 11), (2, 22), (4, 14), (10, 2)].into());
    assert!(store.verify(None).expect("a listable store").is_clean());
}

#[test]
fn a_page_that_moved_or_stayed_is_stored_once() {
    let (_dir, store) = new_store();
    let mut session = store.create_session(&info(7)).expect("a session");
    let mut id = publish(&mut session, None, [], [(1, 2), (2, 7)])
        .expect("a base")
        .id;
    for round in 0..40u64 {
        let mut batch = EncodedBatch::new(0);
        batch.push_same((round + 2) * PAGE_SIZE, (round + 1) * PAGE_SIZE);
        batch.push_same(100 * PAGE_SIZE, (round + 1) * PAGE_SIZE);
        let mut pending = session
            .begin(SnapshotKind::Delta, Some(id))
            .expect("a delta");
        pending.append(&batch).expect("references");
        let done = pending
            .publish(&state(7), &Costs::default())
            .expect("published");
        assert_eq!(done.data_bytes, 0);
        id = done.id;
    }
    let snapshot = store.snapshot(id).expect("the last");
    let mut want: Memory = (1..42).map(|n| (n, 2)).collect();
    want.insert(100, 2);
    assert_holds(&snapshot, &want);
    assert!(store.verify(None).expect("a listable store").is_clean());

    let mut batch = EncodedBatch::new(0);
    batch.push_same(0, 5000 * PAGE_SIZE);
    let mut pending = session
        .begin(SnapshotKind::Delta, Some(id))
        .expect("a delta");
    assert!(matches!(
        pending.append(&batch),
        Err(StoreError::Misuse { .. })
    ));
}

#[test]
fn manifest_and_costs_come_back() {
    let (_dir, store) = new_store();
    let mut session = store.create_session(&info(7)).expect("a session");
    let mut pending = session.begin(SnapshotKind::Base, None).expect("a base");
    pending.append(&batch(0, [(1, 2)])).expect("a page");
    let mut costs = Costs {
        ring_drops: 3,
        ..Costs::default()
    };
    costs.phases.stop_ns = 77;
    (costs.pages.dirty, costs.pages.changed) = (9, 5);
    let done = pending.publish(&state(7), &costs).expect("published");
    let snapshot = store.snapshot(done.id).expect("the base");
    let manifest = snapshot.manifest().expect("its manifest");
    assert_eq!(manifest.state, state(7));
    assert_eq!(manifest.costs.ring_drops, 3);
    assert_eq!(manifest.costs.bytes_out, 4096);
    assert!(manifest.costs.phases.write_ns > 0 && manifest.costs.phases.sync_ns > 0);
    let meta = &store.list().expect("a listing")[0];
    assert_eq!(
        (meta.stop_ns, meta.pid, meta.comm.as_str()),
        (77, 7, "victim")
    );
    let found = meta.found.expect("recorded");
    assert_eq!((found.dirty, found.changed), (9, 5));
    let late = meta.late.expect("recorded");
    assert_eq!(late.sync_ns, manifest.costs.phases.sync_ns);
    assert_eq!(late.write_ns, manifest.costs.phases.write_ns);
}

#[test]
fn what_is_newest_is_so_also_after_the_clock_was_set_back() {
    let (_dir, store) = new_store();
    let mut a = store.create_session(&info(7)).expect("a session");
    let mut b = store.create_session(&info(8)).expect("a session");
    let mut taken = Vec::new();
    let mut take = |session: &mut Session, time_ns: u64| {
        let (parent, pid) = (session.head(), session.info().pid);
        let kind = parent.map_or(SnapshotKind::Base, |_| SnapshotKind::Delta);
        let mut pending = session.begin(kind, parent).expect("begun");
        pending.set_time_ns(time_ns);
        let pages = [(1, 10 + taken.len() as u32)];
        pending.append(&batch(0, pages)).expect("a page");
        let done = pending.publish(&state(pid), &Costs::default());
        taken.push(done.expect("published").id);
    };
    // An hour back behind the second of them; another session in between, and one snapshot after all.
    take(&mut a, 5_000);
    take(&mut a, 6_000);
    take(&mut a, 2_400);
    take(&mut b, 5_500);
    take(&mut a, 2_500);
    let ids =
        |list: Vec<SnapshotMeta>| -> Vec<SnapshotId> { list.iter().map(|meta| meta.id).collect() };
    let order = [0, 3, 1, 2, 4].map(|n: usize| taken[n]);
    assert_eq!(ids(store.list().expect("a listing")), order);
    assert_eq!(store.resolve("latest", None).expect("one"), taken[4]);
    assert_eq!(store.resolve("latest~", Some(7)).expect("one"), taken[2]);
    assert_eq!(store.resolve("latest", Some(8)).expect("one"), taken[3]);
    // A clock is all there is across sessions.
    let mut take_b = b.begin(SnapshotKind::Delta, Some(taken[3])).expect("begun");
    take_b.set_time_ns(6_001);
    let last = take_b
        .publish(&state(8), &Costs::default())
        .expect("published");
    assert_eq!(store.resolve("latest", None).expect("one"), last.id);
}

#[test]
fn it_is_told_where_the_content_of_a_snapshot_is() {
    let (_dir, store) = new_store();
    let mut session = store.create_session(&info(7)).expect("a session");
    // Noise: a page each.
    let base = publish(&mut session, None, [], [(1, 2), (2, 7), (3, 12)]).expect("a base");
    let content = |id| {
        let snapshot = store.snapshot(id).expect("there");
        snapshot.stored_content().expect("readable")
    };
    let found = content(base.id);
    assert_eq!(
        (found.unique, found.written, found.written_bytes),
        (3, 3, 3 * 4096)
    );
    assert_eq!((found.known, found.repeated, found.borrowed), (0, 0, 0));
    let mut new = batch(0, [(5, 17)]);
    new.push_same(9 * PAGE_SIZE, PAGE_SIZE);
    let mut pending = session
        .begin(SnapshotKind::Delta, Some(base.id))
        .expect("a delta");
    pending.append(&new).expect("pages");
    let done = pending.publish(&state(7), &Costs::default());
    let found = content(done.expect("published").id);
    assert_eq!((found.known, found.unique, found.written), (1, 1, 1));
}

#[test]
fn writer_and_reader_can_move_to_worker_threads() {
    fn send<T: Send>() {}
    fn sync<T: Sync>() {}
    send::<crate::store::Session>();
    send::<crate::store::PendingSnapshot<'_>>();
    send::<crate::store::Snapshot>();
    sync::<crate::store::Snapshot>();
    sync::<Store>();
}

#[test]
fn a_session_whose_numbers_are_used_up_is_full() {
    let (_dir, store) = new_store();
    let mut session = store.create_session(&info(7)).expect("a session");
    let done = publish(&mut session, None, [], [(1, 7)]).expect("published");
    let (id, dir) = (session.id(), session.dir.clone());
    drop(session);
    std::fs::write(dir.join(format!("{}-{}.ksnap", u32::MAX, done.id)), []).expect("a file");
    let error = store
        .open_session(id)
        .map(drop)
        .expect_err("no number is left");
    assert!(error.to_string().contains("the session is full"), "{error}");
}

#[test]
fn a_snapshot_that_is_given_up_takes_no_number() {
    let (_dir, store) = new_store();
    let mut session = store.create_session(&info(7)).expect("a session");
    let first = publish(&mut session, None, [], [(1, 7)]).expect("a base");
    for _ in 0..2 {
        drop(
            session
                .begin(SnapshotKind::Delta, Some(first.id))
                .expect("begun"),
        );
    }
    let second = publish(&mut session, Some(first.id), [], [(1, 8)]).expect("a delta");
    assert_eq!((first.seq, second.seq), (1, 2));
}

#[test]
fn a_listing_that_pruning_has_overtaken_is_made_again() {
    let (_dir, store) = new_store();
    let mut session = store.create_session(&info(7)).expect("a session");
    let old = publish(&mut session, None, [], [(0, 1)]).expect("a base");
    let files = TestFiles::default();
    let reader = Store::open_with(files.shared(), store.dir()).expect("opens");
    let listed = reader.list().expect("a list");
    assert_eq!(listed.len(), 1);
    files.keep_names(listed[0].path.parent().expect("a folder"));
    let new = publish(&mut session, Some(old.id), [], [(0, 2)]).expect("a delta");
    let pruner = session.pruner();
    let rules = Rules {
        keep_last: Some(1),
        ..Rules::default()
    };
    let plan = pruner.plan(&rules).expect("a plan");
    assert_eq!(pruner.carry_out(&plan).expect("carried out").snapshots, 1);
    assert_eq!(reader.resolve("latest", None).expect("one"), new.id);
}
