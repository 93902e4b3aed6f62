//! Power failures under each mode: only whole snapshots come back, and never is an older one lost.

use super::files::TestFiles;
use super::support::*;
use crate::store::{Durability, Store};
use std::time::Duration;

/// Twelve snapshots, then the power fails; gives how many come back.
fn survivors(mode: Durability, names_first: bool, ended: bool) -> usize {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let dir = folder.path().join("store");
    let files = TestFiles::default();
    let store = Store::open_or_create_with(files.shared(), &dir).expect("a store");
    let mut session = store.create_session(&info(7)).expect("a session");
    session.set_durability(mode);
    session.unsynced.interval = Duration::from_secs(3600);
    let mut memory = Memory::new();
    let mut taken = Vec::new();
    for n in 0..12u32 {
        let pages = [(u64::from(n), n * 5 + 2), (50, n * 5 + 7)];
        memory.extend(pages);
        let parent = taken.last().map(|(id, _)| *id);
        let done = publish(&mut session, parent, [], pages).expect("published");
        taken.push((done.id, memory.clone()));
    }
    // As long as the kernel runs, all of them are there, whoever looks.
    let reader = Store::open_with(files.shared(), &dir).expect("opens");
    assert_eq!(reader.list().expect("a listing").len(), 12);
    let id = session.id();
    match ended {
        true => drop(session),
        // The process dies with the machine.
        false => session.forget(),
    }
    match names_first {
        true => files.power_cut_keeping_names(),
        false => files.power_cut(),
    }
    let store = Store::open_with(files.shared(), &dir).expect("opens");
    let list = store.list().expect("a listing");
    let report = store.verify(None).expect("listable");
    assert!(report.is_clean(), "{mode:?}: {report:?}");
    // The oldest ones, without a gap.
    for (meta, (taken, memory)) in list.iter().zip(&taken) {
        assert_eq!(meta.id, *taken);
        assert_holds(&store.snapshot(meta.id).expect("listed"), memory);
    }
    let mut session = store.open_session(id).expect("free");
    let parent = list.last().map(|meta| meta.id);
    publish(&mut session, parent, [], [(1, 1)]).expect("it goes on");
    assert!(store.verify(None).expect("listable").is_clean());
    list.len()
}

#[test]
fn a_power_failure_takes_what_the_mode_says_and_nothing_older() {
    for names_first in [false, true] {
        assert_eq!(survivors(Durability::Each, names_first, false), 12);
        // The first one is synced at once, the others a second later.
        assert_eq!(survivors(Durability::Interval, names_first, false), 1);
        assert_eq!(survivors(Durability::Interval, names_first, true), 12);
        assert_eq!(survivors(Durability::None, names_first, false), 0);
    }
}

#[test]
fn on_a_read_only_store_what_may_be_torn_is_not_shown() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let dir = folder.path().join("store");
    let files = TestFiles::default();
    let store = Store::open_or_create_with(files.shared(), &dir).expect("a store");
    let mut session = store.create_session(&info(7)).expect("a session");
    session.set_durability(Durability::Interval);
    session.unsynced.interval = Duration::from_secs(3600);
    let first = publish(&mut session, None, [], [(1, 1)]).expect("published");
    publish(&mut session, Some(first.id), [], [(1, 2)]).expect("published");
    session.forget();
    files.power_cut_keeping_names();
    // Nothing can be changed: neither lock nor removal.
    files.set_plan(super::files::Plan::Crash(files.operations() + 1));
    let store = Store::open_with(files.shared(), &dir).expect("opens");
    let list = store.list().expect("a listing");
    assert_eq!(list.iter().map(|m| m.id).collect::<Vec<_>>(), [first.id]);
}
