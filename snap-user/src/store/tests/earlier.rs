//! Pages that earlier sessions of the same program have: borrowed where that is worth it, and nobody's loss is another's.

use super::common::{assert_whole, loans, noise, remove, test_store};
use super::files::{Plan, TestFiles};
use super::support::*;
use crate::model::SnapshotId;
use crate::store::{Published, Session, Store};
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

#[test]
fn a_new_session_borrows_what_an_earlier_one_has() {
    let (_folder, store) = new_disk_store();
    let mut first = later(&store, 1);
    let whole = base(&mut first, &memory(1, 300));
    assert_eq!(whole.borrowed, 0);
    let mut second = later(&store, 2);
    let rest = base(&mut second, &memory(2, 300));
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
    let mut first = later(&store, 1);
    let one = base(&mut first, &memory(1, 600));
    let mut second = later(&store, 2);
    let other = base(&mut second, &memory(2, 100));
    assert_eq!((other.borrowed, loans(store.dir()).len()), (0, 0));
    let all = [(one.id, memory(1, 600)), (other.id, memory(2, 100))];
    assert_whole(store.dir(), &all);
}

#[test]
fn what_is_not_the_same_program_or_sealed_is_not_looked_at() {
    let (_folder, store) = new_disk_store();
    base(&mut later(&store, 1), &memory(1, 300));
    let mut told = info(2);
    told.exe = "/usr/bin/another".into();
    let mut other = store.create_session(&told).expect("a session");
    other.look_for_earlier();
    base(&mut other, &memory(2, 300));
    assert!(loans(store.dir()).is_empty());

    let owner = Owner::new();
    let (_dir, store) = owner.new_store();
    for pid in [1, 2] {
        let mut session = later(&store, pid);
        let id = base(&mut session, &memory(pid, 300)).id;
        assert_holds(&store.snapshot(id).expect("there"), &memory(pid, 300));
    }
    assert!(loans(store.dir()).is_empty());
}

#[test]
fn what_is_gone_or_damaged_by_then_is_stored_again() {
    let (_folder, store) = new_disk_store();
    let mut first = later(&store, 1);
    base(&mut first, &memory(1, 300));
    let mut second = later(&store, 2);
    remove(&store, first);
    let id = base(&mut second, &memory(2, 300)).id;
    assert!(loans(store.dir()).is_empty());
    assert_whole(store.dir(), &[(id, memory(2, 300))]);

    // All of its pages are others than its index says.
    let folder = store.dir().join(second.id().to_string());
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

/// A base of one session and of a later one.
fn scenario(store: &Store) -> Option<[SnapshotId; 2]> {
    let mut first = store.create_session(&info(1)).ok()?;
    let one = publish(&mut first, None, [], memory(1, 100)).ok()?;
    let mut second = store.create_session(&info(2)).ok()?;
    second.look_for_earlier();
    let other = publish(&mut second, None, [], memory(2, 100)).ok()?;
    Some([one.id, other.id])
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
        let pid = meta.pid;
        assert_holds(&store.snapshot(meta.id).expect("there"), &memory(pid, 100));
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
