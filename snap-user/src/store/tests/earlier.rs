//! Pages that earlier sessions have: borrowed where that is worth it, and nobody's loss is another's.

use super::common::{assert_whole, loans, noise, remove, test_store};
use super::files::{Plan, TestFiles};
use super::support::*;
use crate::model::SnapshotKind;
use crate::store::{PageSink, Published, Session, Store};
use std::fs;

/// What a process holds: so many pages that others of the program have as well, and some of its own.
fn memory(pid: i32, common: u64) -> Memory {
    let own = (1000..1060).map(|number| (number, noise(number * 100 + pid as u64)));
    let all = (0..common).map(|number| (number, noise(number)));
    all.chain(own).collect()
}

/// A session of another process of the program, which has looked at those that are there.
fn later(store: &Store, pid: i32) -> Session {
    let mut session = store.create_session(&info(pid)).expect("a session");
    session.look_for_earlier();
    session
}

fn base(session: &mut Session, memory: &Memory) -> Published {
    publish(session, None, [], memory.clone()).expect("published")
}

/// Two processes of which the second is begun when the first has a base, with so many pages that others have as well.
fn pair(store: &Store, common: [u64; 2]) -> ([Session; 2], [Published; 2]) {
    let all = [1, 2].map(|pid| {
        let mut session = later(store, pid);
        let published = base(&mut session, &memory(pid, common[pid as usize - 1]));
        (session, published)
    });
    let [(first, one), (second, other)] = all;
    ([first, second], [one, other])
}

#[test]
fn a_new_session_borrows_what_an_earlier_one_has() {
    let (_folder, store) = new_disk_store();
    let ([first, mut second], [whole, rest]) = pair(&store, [300, 300]);
    assert_eq!(whole.borrowed, 0);
    assert!(
        rest.bytes * 4 < whole.bytes,
        "{} and {} bytes",
        whole.bytes,
        rest.bytes
    );
    assert_eq!(rest.borrowed, whole.bytes / 2);
    // The third finds them in what the second has borrowed, or where they are.
    let mut third = later(&store, 3);
    let more = base(&mut third, &memory(3, 300));
    assert_eq!(more.borrowed, whole.bytes / 3);
    let mut published = vec![
        (whole.id, memory(1, 300)),
        (rest.id, memory(2, 300)),
        (more.id, memory(3, 300)),
    ];
    assert_whole(store.dir(), &published);

    // What follows is built on what is borrowed.
    let mut grown = memory(2, 300);
    grown.insert(7, noise(77_777));
    let delta = publish(&mut second, Some(rest.id), [], [(7, noise(77_777))]).expect("published");
    published.push((delta.id, grown));
    remove(&store, first);
    published.remove(0);
    assert_whole(store.dir(), &published);
    remove(&store, third);
    published.retain(|(id, _)| *id != more.id);
    assert_whole(store.dir(), &published);
    assert_eq!(loans(store.dir()).len(), 1);
}

#[test]
fn of_little_that_is_alike_nothing_is_kept_whole() {
    let (_folder, store) = new_disk_store();
    let (_, [one, other]) = pair(&store, [600, 100]);
    assert_eq!((other.borrowed, loans(store.dir()).len()), (0, 0));
    let all = [(one.id, memory(1, 600)), (other.id, memory(2, 100))];
    assert_whole(store.dir(), &all);
}

#[test]
fn another_program_borrows_as_well_and_what_is_sealed_is_not_looked_at() {
    let (_folder, store) = new_disk_store();
    let one = base(&mut later(&store, 1), &memory(1, 300));
    let mut told = info(2);
    told.exe = "/usr/bin/another".into();
    let mut other = store.create_session(&told).expect("a session");
    other.look_for_earlier();
    let other = base(&mut other, &memory(2, 300));
    assert_eq!(other.borrowed, one.bytes / 2);
    let all = [(one.id, memory(1, 300)), (other.id, memory(2, 300))];
    assert_whole(store.dir(), &all);

    let owner = Owner::new();
    let (_dir, store) = owner.new_store();
    for pid in [1, 2] {
        let mut session = later(&store, pid);
        let id = base(&mut session, &memory(pid, 300)).id;
        assert_holds(&store.snapshot(id).expect("there"), &memory(pid, 300));
    }
    assert!(loans(store.dir()).is_empty());
}

/// So many pages that are in none of the bases.
fn row(first: u64, count: u64) -> Vec<(u64, u32)> {
    (first..first + count)
        .map(|number| (number, noise(number * 7)))
        .collect()
}

#[test]
fn what_an_earlier_session_came_to_have_is_borrowed_by_a_later_one() {
    let (_folder, store) = new_disk_store();
    let mut first = later(&store, 1);
    let whole = base(&mut first, &memory(1, 300));
    let grown = publish(&mut first, Some(whole.id), [], row(2000, 60)).expect("published");
    assert_eq!(grown.borrowed, 0);

    // Another process that has all of that from the beginning.
    let mut content = memory(2, 300);
    content.extend(row(2000, 60));
    let mut second = later(&store, 2);
    let forked = base(&mut second, &content);
    assert_eq!(forked.borrowed, whole.bytes / 2 + grown.bytes / 2);

    // And one that comes to have it: the same program, begun anew.
    let mut third = later(&store, 3);
    let begun = base(&mut third, &memory(3, 100));
    assert_eq!(begun.borrowed, 0, "too little of what there is");
    let delta = publish(&mut third, Some(begun.id), [], row(2000, 60)).expect("published");
    assert_eq!(delta.borrowed, grown.bytes / 3);
    assert!(delta.bytes * 4 < grown.bytes);
    let mut now = memory(3, 100);
    now.extend(row(2000, 60));
    let all = [
        (forked.id, content),
        (begun.id, memory(3, 100)),
        (delta.id, now),
    ];
    remove(&store, first);
    assert_whole(store.dir(), &all);
}

#[test]
fn of_many_files_those_are_chosen_in_the_end_that_have_most() {
    let (_folder, store) = new_disk_store();
    let mut first = later(&store, 1);
    // Five pages in each of twelve deltas, in front of what is in the base.
    let large = (500..800).map(|number| (number, noise(number)));
    let mut content: Memory = large.collect();
    let whole = base(&mut first, &content);
    let mut parent = whole.id;
    let mut rest = 0;
    for n in 0..12 {
        let pages = row(n * 5, 5);
        content.extend(pages.iter().copied());
        let delta = publish(&mut first, Some(parent), [], pages).expect("published");
        (parent, rest) = (delta.id, rest + delta.bytes);
    }
    let mut second = later(&store, 2);
    let forked = base(&mut second, &content);
    // The base, and six of the deltas.
    assert_eq!(loans(store.dir()).len(), 7);
    assert_eq!(forked.borrowed, whole.bytes / 2 + rest / 12 * 6 / 2);
    assert!(
        forked.bytes * 5 < whole.bytes,
        "{} {}",
        forked.bytes,
        whole.bytes
    );
    remove(&store, first);
    assert_whole(store.dir(), &[(forked.id, content)]);
}

#[test]
fn the_sessions_of_a_later_tree_borrow_from_those_of_an_earlier_one() {
    let (_folder, store) = new_disk_store();
    let tree = |pids: [i32; 2]| {
        let store = store.side_by_side();
        pids.map(|pid| {
            let mut session = later(&store, pid);
            let published = base(&mut session, &memory(pid, 300));
            (session, (published.id, memory(pid, 300)), published.bytes)
        })
    };
    let [(first, _, whole), (second, _, rest)] = tree([1, 2]);
    // Each has pages of its own that it had then, and what both have is where it was.
    let [(_, a, again), (_, b, more)] = tree([1, 2]);
    let sizes = [whole, rest, again, more];
    assert!(
        rest * 4 < whole && again * 10 < whole && more < again * 2,
        "{sizes:?}"
    );
    for session in [first, second] {
        remove(&store, session);
    }
    assert_whole(store.dir(), &[a, b]);
}

#[test]
fn little_of_a_large_file_is_stored_again_by_a_delta_as_well() {
    let (_folder, store) = new_disk_store();
    let ([_, mut second], [_, begun]) = pair(&store, [300, 70]);
    let rest = (250..260).map(|number| (number, noise(number)));
    let delta = publish(&mut second, Some(begun.id), [], rest).expect("published");
    assert_eq!((begun.borrowed, delta.borrowed), (0, 0));
    assert!(loans(store.dir()).is_empty());
}

#[test]
fn for_few_pages_nobody_reads_what_others_have() {
    let (_folder, store) = new_disk_store();
    let ([mut first, mut second], [_, begun]) = pair(&store, [40, 40]);
    assert_eq!(begun.borrowed, 0);
    // But once enough have come, of whichever snapshots.
    let grown = publish(&mut first, None, [], row(2000, 60)).expect("published");
    let delta = publish(&mut second, Some(begun.id), [], row(2000, 60)).expect("published");
    assert_eq!(delta.borrowed, grown.bytes / 2);
}

#[test]
fn an_attempt_that_is_given_up_does_not_end_it() {
    let (_folder, store) = new_disk_store();
    let mut first = later(&store, 1);
    base(&mut first, &memory(1, 300));
    let mut second = later(&store, 2);
    let mut given_up = second.begin(SnapshotKind::Base, None).expect("begun");
    given_up.append(&batch(0, memory(2, 300))).expect("taken");
    drop(given_up);
    assert!(loans(store.dir()).is_empty());
    assert!(base(&mut second, &memory(2, 300)).borrowed > 0);
}

#[test]
fn what_is_gone_or_damaged_by_then_is_stored_again() {
    let (_folder, store) = new_disk_store();
    let ([first, mut second], [_, begun]) = pair(&store, [300, 100]);
    let begun = begun.id;
    remove(&store, first);
    let rest = (100..300).map(|number| (number, noise(number)));
    let id = publish(&mut second, Some(begun), [], rest)
        .expect("published")
        .id;
    assert!(loans(store.dir()).is_empty());
    assert_whole(
        store.dir(),
        &[(begun, memory(2, 100)), (id, memory(2, 300))],
    );

    // All of its pages are others than its index says.
    let (_folder, store) = new_disk_store();
    let mut first = later(&store, 1);
    base(&mut first, &memory(1, 300));
    let folder = store.dir().join(first.id().to_string());
    let files = fs::read_dir(folder).expect("a folder");
    let paths = files.map(|one| one.expect("an entry").path());
    let is_snapshot = |path: &std::path::PathBuf| path.extension().is_some_and(|e| e == "ksnap");
    let path = paths.into_iter().find(is_snapshot).expect("a snapshot");
    let mut bytes = fs::read(&path).expect("readable");
    for at in (8192..200 * 4096).step_by(4096) {
        bytes[at] ^= 1;
    }
    fs::write(&path, bytes).expect("writable");
    let mut third = later(&store, 3);
    let id = base(&mut third, &memory(3, 300)).id;
    assert_holds(&store.snapshot(id).expect("there"), &memory(3, 300));
}

/// What a process of the scenario has behind its base.
fn grown(pid: i32) -> Memory {
    let mut content = memory(pid, 100);
    content.extend(row(2000, 30));
    content
}

/// A base and a delta of one session and of a later one, which then goes without its base.
fn scenario(store: &Store) -> Option<()> {
    let mut sessions = [1, 2].map(|pid| store.create_session(&info(pid)).ok());
    for session in &mut sessions {
        let session = session.as_mut()?;
        session.look_for_earlier();
        let pid = session.info().pid;
        let one = publish(session, None, [], memory(pid, 100)).ok()?;
        publish(session, Some(one.id), [], row(2000, 30)).ok()?;
    }
    let pruner = sessions[1].as_ref()?.pruner();
    let plan = pruner.plan_removal(&[1].into()).ok()?;
    pruner.carry_out(&plan).ok().map(drop)
}

fn assert_all_whole(files: &TestFiles, store: Store) {
    let dir = store.dir().to_owned();
    drop(store);
    let store = Store::open_or_create_with(files.shared(), &dir).expect("opens");
    for (session, _) in store.sessions().expect("a listing") {
        drop(store.open_session(session).expect("opens"));
    }
    let report = store.verify(None).expect("listable");
    assert!(report.is_clean(), "{report:?}");
    for meta in store.list().expect("a listing") {
        let content = match meta.kind {
            SnapshotKind::Base => memory(meta.pid, 100),
            SnapshotKind::Delta => grown(meta.pid),
        };
        assert_holds(&store.snapshot(meta.id).expect("there"), &content);
    }
}

#[test]
fn whatever_fails_and_wherever_the_power_does_all_that_is_there_is_whole() {
    for crash in [false, true] {
        let (mut done, mut not) = (0, 0);
        for at in 1.. {
            let (_folder, files, store) = test_store();
            let before = files.operations();
            files.set_plan(match crash {
                true => Plan::Crash(before + at),
                false => Plan::Fail(before + at, 5),
            });
            match scenario(&store) {
                Some(_) => done += 1,
                None => not += 1,
            }
            let over = before + at > files.operations();
            files.set_plan(Plan::Nothing);
            if crash {
                files.power_cut();
            }
            assert_all_whole(&files, store);
            if over {
                break;
            }
        }
        // What only looks for earlier pages may fail.
        assert!(done > 0 && not > 10, "{crash}: {done} {not}");
    }
}
