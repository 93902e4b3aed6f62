//! Power failures under each mode: only whole snapshots come back, and never is an older one lost.

use super::files::TestFiles;
use super::support::*;
use crate::codec::Scratch;
use crate::image::Previous;
use crate::model::{Costs, SnapshotId, SnapshotKind};
use crate::store::{Durability, EncodedBatch, PageSink, Rules, Session, Store, StoreError};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
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

/// A store on files that lose power, with a session that syncs its first snapshot at most.
struct Machine {
    files: TestFiles,
    folder: tempfile::TempDir,
}

impl Machine {
    fn start(mode: Durability) -> (Self, Session) {
        let machine = Self {
            files: TestFiles::default(),
            folder: tempfile::tempdir().expect("a temporary folder"),
        };
        let store = Store::open_or_create_with(machine.files.shared(), &machine.dir());
        let session = store.and_then(|store| store.create_session(&info(7)));
        (machine, set_up(session.expect("a session"), mode))
    }

    fn dir(&self) -> PathBuf {
        self.folder.path().join("store")
    }

    fn open(&self) -> Store {
        Store::open_with(self.files.shared(), &self.dir()).expect("opens")
    }

    /// What is there is whole; gives its numbers.
    fn whole(&self) -> Vec<u32> {
        let store = self.open();
        let report = store.verify(None).expect("listable");
        assert!(report.is_clean(), "{report:?}");
        seqs(&store)
    }
}

fn set_up(mut session: Session, mode: Durability) -> Session {
    session.set_durability(mode);
    session.unsynced.interval = Duration::from_secs(3600);
    session
}

fn seqs(store: &Store) -> Vec<u32> {
    let list = store.list().expect("a listing");
    let set: BTreeSet<u32> = list.iter().map(|meta| meta.seq).collect();
    set.into_iter().collect()
}

fn path_of(session: &Session, seq: u32) -> PathBuf {
    let files = session.store().session_files(session.id());
    files.and_then(|files| files.path(seq)).expect("listed")
}

/// Publishes so many snapshots in a row, each with a page that none before it has; gives the last.
fn publish_row(session: &mut Session, count: u64) -> SnapshotId {
    let mut parent = None;
    for n in 0..count {
        let page = (n, n as u32 * 5 + 7);
        let done = publish(session, parent, [], [page]).expect("published");
        parent = Some(done.id);
    }
    parent.expect("at least one")
}

/// Removes one of its snapshots.
fn remove(session: &Session, seq: u32) {
    let pruner = session.pruner();
    let plan = pruner.plan_removal(&[seq].into()).expect("a plan");
    pruner.carry_out(&plan).expect("removed");
}

fn tear(path: &Path) {
    let file = std::fs::OpenOptions::new().write(true).open(path);
    let file = file.expect("writable");
    let len = file.metadata().expect("a length").len();
    file.set_len(len / 2).expect("truncatable");
}

/// A delta whose page 0 holds the changes to its parent's.
fn publish_changes(session: &mut Session, parent: SnapshotId, was: u32, is: u32) -> SnapshotId {
    let pid = session.info().pid;
    let mut pending = session
        .begin(SnapshotKind::Delta, Some(parent))
        .expect("begun");
    let at = pending.parent_table().and_then(|table| table.get(0));
    let (at, before) = (at.expect("a page"), page(was));
    let mut batch = EncodedBatch::new(0);
    let previous = Previous { page: &before, at };
    let encoding = batch.push_against(0, &page(is), Some(previous), &mut Scratch::default());
    assert!(encoding.needs_previous());
    pending.append(&batch).expect("changes");
    let done = pending.publish(&state(pid), &Costs::default());
    done.expect("published").id
}

#[test]
fn what_cannot_be_read_is_not_torn() {
    // EIO, EACCES, EMFILE
    for errno in [5, 13, 24] {
        let (machine, mut session) = Machine::start(Durability::Interval);
        publish_row(&mut session, 4);
        let (id, path) = (session.id(), path_of(&session, 3));
        session.forget();
        machine.files.reboot();
        machine.files.set_unreadable(&path, Some(errno));
        let store = machine.open();
        // Nothing in doubt is shown, and nothing is lost.
        assert_eq!(seqs(&store), [1]);
        let refused = store.open_session(id).map(drop);
        assert!(matches!(refused, Err(StoreError::Io { .. })), "{refused:?}");
        assert_eq!(seqs(&store), [1]);
        machine.files.set_unreadable(&path, None);
        assert_eq!(machine.whole(), [1, 2, 3, 4]);
    }
}

#[test]
fn with_a_damaged_pack_nothing_is_judged() {
    let (machine, mut session) = Machine::start(Durability::None);
    publish_row(&mut session, 4);
    remove(&session, 2);
    let (id, dir) = (session.id(), session.dir.clone());
    session.forget();
    machine.files.reboot();
    let pack = dir.join("00000001.kpack");
    let bytes = std::fs::read(&pack).expect("a pack");
    tear(&pack);
    let store = machine.open();
    assert_eq!(seqs(&store), [0; 0]);
    let refused = store.open_session(id).map(drop);
    assert!(
        matches!(&refused, Err(StoreError::Corrupt { path, .. }) if *path == pack),
        "{refused:?}"
    );
    std::fs::write(&pack, bytes).expect("writable");
    assert_eq!(machine.whole(), [1, 3, 4]);
}

#[test]
fn a_torn_snapshot_takes_only_those_that_build_on_it() {
    let (machine, mut session) = Machine::start(Durability::None);
    let mut base = |seed| publish(&mut session, None, [], [(0, seed), (1, 2)]).expect("published");
    let first = base(FAMILIES).id;
    let second = publish_changes(&mut session, first, FAMILIES, FAMILIES | 16);
    publish_changes(&mut session, second, FAMILIES | 16, FAMILIES | 32);
    let other = publish(&mut session, None, [], [(0, FAMILIES), (3, 3)]).expect("published");
    publish_changes(&mut session, other.id, FAMILIES, FAMILIES | 16);
    publish_changes(&mut session, first, FAMILIES, FAMILIES | 48);
    let path = path_of(&session, 2);
    session.forget();
    machine.files.reboot();
    tear(&path);
    assert_eq!(machine.whole(), [1, 4, 5, 6]);
}

#[test]
fn a_kept_snapshot_with_pages_in_a_torn_one_goes_though_its_parent_was_pruned() {
    let (machine, mut session) = Machine::start(Durability::None);
    publish_row(&mut session, 5);
    remove(&session, 3);
    let path = path_of(&session, 2);
    session.forget();
    machine.files.reboot();
    tear(&path);
    assert_eq!(machine.whole(), [1]);
}

#[test]
fn a_snapshot_that_names_a_page_of_a_torn_one_goes_though_its_parent_needs_nothing_of_that() {
    let (machine, mut session) = Machine::start(Durability::None);
    let first = publish(&mut session, None, [], [(0, 7)]).expect("published");
    let mut parent = first.id;
    for page in [(0, 12), (5, 17), (0, 7)] {
        let done = publish(&mut session, Some(parent), [], [page]).expect("published");
        parent = done.id;
    }
    remove(&session, 2);
    let path = path_of(&session, 1);
    session.forget();
    machine.files.reboot();
    tear(&path);
    assert_eq!(machine.whole(), [3]);
}

#[test]
fn another_run_in_the_same_boot_does_not_vouch_for_the_first() {
    let (machine, mut session) = Machine::start(Durability::None);
    let parent = Some(publish_row(&mut session, 3));
    let id = session.id();
    session.forget();
    let session = machine.open().open_session(id).expect("free");
    let mut session = set_up(session, Durability::Interval);
    publish(&mut session, parent, [], [(9, 7)]).expect("published");
    publish(&mut session, None, [], [(9, 8)]).expect("published");
    drop(session);
    assert_eq!(machine.whole(), [1, 2, 3, 4, 5]);
    machine.files.power_cut_keeping_names();
    // The last one needs none of those that were never synced.
    assert_eq!(machine.whole(), [5]);
}

#[test]
fn after_a_failed_sync_nobody_vouches_for_what_was_to_be_synced() {
    let (machine, mut session) = Machine::start(Durability::Interval);
    publish_row(&mut session, 3);
    let next = machine.files.operations() + 1;
    machine.files.set_plan(super::files::Plan::Fail(next, 5));
    let dir = session.dir.clone();
    let failed = session.unsynced.sync(&machine.files, &dir);
    assert!(matches!(failed, Err(StoreError::Io { .. })), "{failed:?}");
    publish(&mut session, None, [], [(9, 8)]).expect("published");
    // The kernel does not say it again.
    session.unsynced.sync(&machine.files, &dir).expect("synced");
    drop(session);
    machine.files.power_cut_keeping_names();
    assert_eq!(machine.whole(), [1, 4]);
}

#[test]
fn removal_by_rule_leaves_one_that_a_power_failure_cannot_take() {
    let (machine, mut session) = Machine::start(Durability::Interval);
    publish_row(&mut session, 5);
    let pruner = session.pruner();
    let last = Rules {
        keep_last: Some(1),
        ..Rules::default()
    };
    let plan = pruner.plan(&last).expect("a plan");
    pruner.carry_out(&plan).expect("removed");
    drop(pruner);
    assert_eq!(machine.whole(), [1, 5]);
    session.forget();
    machine.files.power_cut();
    assert_eq!(machine.whole(), [1]);
}
