//! Pages that sessions have in common which are written side by side: stored once, and nobody's loss is another's.

use super::evolve::Dice;
use super::files::{Plan, TestFiles};
use super::support::*;
use crate::model::{Costs, SnapshotId, SnapshotKind};
use crate::store::{Durability, PageSink, PendingSnapshot, Session, Store, StoreError};
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// Noise, which no encoding makes shorter.
pub(super) fn noise(number: u64) -> u32 {
    number as u32 * 5 + 2
}

/// Pages that processes have in common: more than a file's buffer holds.
fn shared() -> impl Iterator<Item = (u64, u32)> {
    (0..400).map(|number| (number, noise(number)))
}

/// Pages that only this process has.
fn private(pid: i32) -> impl Iterator<Item = (u64, u32)> {
    (1000..1020).map(move |number| (number, noise(number * 100 + pid as u64)))
}

pub(super) fn memory(pid: i32) -> Memory {
    shared().chain(private(pid)).collect()
}

pub(super) fn sessions(store: &Store, pids: [i32; 2]) -> [Session; 2] {
    let store = store.side_by_side();
    pids.map(|pid| store.create_session(&info(pid)).expect("a session"))
}

fn base(session: &mut Session) -> Result<PendingSnapshot<'_>, StoreError> {
    let pid = session.info().pid;
    let mut pending = session.begin(SnapshotKind::Base, None)?;
    pending.append(&batch(0, memory(pid)))?;
    Ok(pending)
}

fn end(pending: PendingSnapshot<'_>, pid: i32) -> Result<SnapshotId, StoreError> {
    Ok(pending.publish(&state(pid), &Costs::default())?.id)
}

fn take(session: &mut Session) -> Result<SnapshotId, StoreError> {
    let pid = session.info().pid;
    base(session).and_then(|pending| end(pending, pid))
}

pub(super) fn assert_whole(dir: &Path, published: &[(SnapshotId, Memory)]) {
    let store = Store::open(dir).expect("opens");
    for (id, memory) in published {
        assert_holds(&store.snapshot(*id).expect("published"), memory);
    }
    let report = store.verify(None).expect("listable");
    assert!(report.is_clean(), "{report:?}");
    assert_eq!(report.snapshots, published.len() as u64);
}

/// A store whose files count and fail.
pub(super) fn test_store() -> (TempDir, TestFiles, Store) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let files = TestFiles::default();
    let store = Store::open_or_create_with(files.shared(), &folder.path().join("store"));
    (folder, files, store.expect("a store"))
}

/// Removes a session with all that it has.
pub(super) fn remove(store: &Store, session: Session) {
    let id = session.id();
    drop(session);
    let right = store.pruner(id).expect("the right");
    right.store.remove_session(id).expect("removed");
}

/// Files below a folder that snapshots borrow from.
pub(super) fn loans(dir: &Path) -> Vec<PathBuf> {
    let folders = fs::read_dir(dir).expect("a folder");
    let folders = folders.map(|one| one.expect("an entry").path());
    folders
        .filter(|path| path.is_dir())
        .flat_map(|folder| fs::read_dir(folder).expect("a folder"))
        .map(|one| one.expect("an entry").path())
        .filter(|path| path.to_string_lossy().contains(".kloan"))
        .collect()
}

fn stored(store: &Store, id: SnapshotId) -> u64 {
    let list = store.list().expect("a listing");
    list.iter()
        .find(|meta| meta.id == id)
        .expect("there")
        .file_bytes
}

#[test]
fn what_two_processes_have_in_common_is_stored_once() {
    let (_folder, store) = new_store();
    let [mut a, mut b] = sessions(&store, [1, 2]);
    let ids = [take(&mut a), take(&mut b)].map(|id| id.expect("published"));
    assert_whole(store.dir(), &[(ids[0], memory(1)), (ids[1], memory(2))]);
    let [whole, rest] = ids.map(|id| stored(&store, id));
    assert!(rest * 5 < whole, "{whole} and {rest} bytes");
    assert_eq!(loans(store.dir()).len(), 1);

    // Each takes its share of what both have, and together they take what is on the disk.
    let shares = [&a, &b].map(|session| store.session_bytes(session.id()).expect("known"));
    assert_eq!(shares, [whole / 2, rest + whole / 2]);
    let borrowed = store.snapshot(ids[1]).expect("there").stored_content();
    let borrowed = borrowed.expect("readable");
    assert!(borrowed.borrowed * 4 > borrowed.unique * 3, "{borrowed:?}");
    assert_eq!(borrowed.borrowed + borrowed.written, borrowed.unique);

    // One that is removed takes nothing with it.
    remove(&store, a);
    assert_whole(store.dir(), &[(ids[1], memory(2))]);
    let share = store.session_bytes(b.id()).expect("known");
    assert_eq!(share, rest + whole);
}

#[test]
pub(super) fn sessions_apart_and_sealed_ones_have_nothing_in_common() {
    let (_folder, store) = new_store();
    for pid in [1, 2] {
        take(&mut store.create_session(&info(pid)).expect("a session")).expect("published");
    }
    assert_eq!(loans(store.dir()), [""; 0].map(PathBuf::from));

    let owner = Owner::new();
    let (_dir, store) = owner.new_store();
    for mut session in sessions(&store, [1, 2]) {
        let id = take(&mut session).expect("published");
        let memory = memory(session.info().pid);
        assert_holds(&store.snapshot(id).expect("there"), &memory);
    }
    assert_eq!(loans(store.dir()), [""; 0].map(PathBuf::from));
}

#[test]
fn a_page_that_a_snapshot_has_twice_is_stored_once() {
    let (_folder, store) = new_store();
    let store = store.side_by_side();
    let mut session = store.create_session(&info(1)).expect("a session");
    let memory: Memory = (0..300)
        .map(|number| (number, noise(number % 100)))
        .collect();
    let mut pending = session.begin(SnapshotKind::Base, None).expect("begun");
    for part in [0..150, 150..300] {
        let pages = part.map(|number| (number, memory[&number]));
        pending.append(&batch(0, pages)).expect("pages");
    }
    assert_eq!(pending.data_bytes(), 100 * 4096);
    let id = end(pending, 1).expect("published");
    assert_whole(store.dir(), &[(id, memory)]);
    assert_eq!(loans(store.dir()).len(), 0);
}

#[test]
fn deltas_borrow_too_and_build_on_what_is_borrowed() {
    let (_folder, store) = new_store();
    let [mut a, mut b] = sessions(&store, [1, 2]);
    let mut published = Vec::new();
    let mut last = Vec::new();
    for session in [&mut a, &mut b] {
        let id = take(session).expect("published");
        published.push((id, memory(session.info().pid)));
        last.push(id);
    }
    for round in 0..4u64 {
        for (session, last) in [&mut a, &mut b].into_iter().zip(&mut last) {
            let (_, before) = published.iter().find(|(id, _)| id == last).expect("there");
            let mut memory = before.clone();
            // Grown by what both have, and changed where only this one is.
            let mut pages: Memory = (0..60)
                .map(|n| (2000 + round * 60 + n, noise(n + 9000 + round * 60)))
                .collect();
            pages.insert(1003, noise(round + 77 * session.info().pid as u64));
            pages.insert(1004, noise(round + 5));
            memory.extend(pages.clone());
            let done = publish(session, Some(*last), [], pages).expect("published");
            *last = done.id;
            published.push((done.id, memory));
        }
    }
    assert_whole(store.dir(), &published);
    // Of whole bases, and of what both have come to have; never for a page that happens to be there.
    let numbers: Vec<usize> = (1..=5)
        .map(|seq| {
            let of_it = format!("{seq:08}-");
            let is_of_it = |path: &&PathBuf| path.to_string_lossy().contains(&of_it);
            loans(store.dir()).iter().filter(is_of_it).count()
        })
        .collect();
    assert_eq!(numbers, [1; 5]);

    // What goes leaves what it had borrowed to what stays.
    let of_b: Vec<SnapshotId> = published
        .iter()
        .skip(1)
        .step_by(2)
        .map(|one| one.0)
        .collect();
    let before = store.session_bytes(b.id()).expect("known");
    let pruner = b.pruner();
    let list = pruner.snapshots().expect("a listing");
    let gone = list[..3].iter().map(|meta| meta.seq).collect();
    let plan = pruner.plan_removal(&gone).expect("a plan");
    assert_eq!(plan.bytes_before, before);
    let done = pruner.carry_out(&plan).expect("removed");
    let after = store.session_bytes(b.id()).expect("known");
    assert_eq!(before as i64 - after as i64, done.freed);
    published.retain(|(id, _)| !of_b[..3].contains(id));
    assert_whole(store.dir(), &published);
    let there = loans(store.dir());
    let gone = |path: &&PathBuf| {
        let name = path.file_name().expect("a name").to_string_lossy();
        list[..3]
            .iter()
            .any(|meta| name.starts_with(&format!("{:08}-", meta.seq)))
    };
    let of_b = there
        .iter()
        .filter(|path| path.starts_with(store.dir().join(b.id().to_string())));
    assert_eq!(of_b.filter(gone).count(), 0, "{there:?}");
}

#[test]
fn what_is_borrowed_of_a_snapshot_that_is_given_up_is_there() {
    let (_folder, store) = new_store();
    let [mut a, mut b] = sessions(&store, [1, 2]);
    let lender = base(&mut a).expect("written");
    let borrower = base(&mut b).expect("written");
    // Part of it is in its buffer until now.
    drop(lender);
    let id = end(borrower, 2).expect("published");
    assert_whole(store.dir(), &[(id, memory(2))]);
    assert!(stored(&store, id) * 5 < 400 * 4096);
}

#[test]
fn two_that_borrow_from_each_other_wait_for_each_other() {
    let (_folder, store) = new_store();
    let [mut a, mut b] = sessions(&store, [1, 2]);
    let halves = |first: bool| shared().filter(move |(number, _)| (number % 2 == 0) == first);
    let mut one = a.begin(SnapshotKind::Base, None).expect("begun");
    let mut other = b.begin(SnapshotKind::Base, None).expect("begun");
    one.append(&batch(0, halves(true))).expect("pages");
    other.append(&batch(0, halves(false))).expect("pages");
    one.append(&batch(0, halves(false))).expect("pages");
    other.append(&batch(0, halves(true))).expect("pages");
    let ids = std::thread::scope(|scope| {
        let one = scope.spawn(|| end(one, 1).expect("published"));
        let other = scope.spawn(|| end(other, 2).expect("published"));
        [one, other].map(|thread| thread.join().expect("no panic"))
    });
    assert_whole(store.dir(), &ids.map(|id| (id, shared().collect())));
    assert_eq!(loans(store.dir()).len(), 2);
}

/// Two bases, the second of which borrows from the first before that is published.
pub(super) fn scenario([a, b]: &mut [Session; 2]) -> [Result<SnapshotId, StoreError>; 2] {
    let one = base(a);
    let other = base(b);
    let one = one.and_then(|pending| end(pending, 1));
    [one, other.and_then(|pending| end(pending, 2))]
}

#[test]
fn whatever_fails_nothing_is_lost_that_was_published() {
    for errno in [28, 5] {
        let mut failures = 0;
        for at in 1.. {
            let (_folder, files, store) = test_store();
            let dir = store.dir().to_owned();
            let mut pair = sessions(&store, [1, 2]);
            let before = files.operations();
            files.set_plan(Plan::Fail(before + at, errno));
            let first = scenario(&mut pair);
            failures += first.iter().filter(|one| one.is_err()).count();
            files.set_plan(Plan::Nothing);
            let second = scenario(&mut pair).map(|one| one.expect("the second try succeeds"));
            drop(pair);
            let pids = [1, 2, 1, 2];
            let all = first.into_iter().chain(second.map(Ok)).zip(pids);
            let published: Vec<_> = all
                .filter_map(|(id, pid)| Some((id.ok()?, memory(pid))))
                .collect();
            assert_whole(&dir, &published);
            let left = loans(&dir);
            let unnamed = |path: &&PathBuf| path.to_string_lossy().contains(".tmp-");
            assert_eq!(left.iter().filter(unnamed).count(), 0, "{left:?}");
            if before + at > files.operations() {
                break;
            }
        }
        assert!(failures > 10, "{failures}");
    }
}

#[test]
fn wherever_ksnap_ends_and_the_power_fails_the_store_is_whole() {
    for names_first in [false, true] {
        let mut both = 0;
        for at in 1.. {
            let (_folder, files, store) = test_store();
            let dir = store.dir().to_owned();
            let mut pair = sessions(&store, [1, 2]);
            let before = files.operations();
            files.set_plan(Plan::Crash(before + at));
            let done = scenario(&mut pair);
            let survived = !files.is_dead();
            drop(pair);
            drop(store);
            files.set_plan(Plan::Nothing);
            match names_first {
                true => files.power_cut_keeping_names(),
                false => files.power_cut(),
            }
            let store = Store::open_or_create_with(files.shared(), &dir).expect("opens");
            for (session, _) in store.sessions().expect("a listing") {
                drop(store.open_session(session).expect("opens"));
            }
            let published: Vec<(SnapshotId, Memory)> = done
                .into_iter()
                .zip([1, 2])
                .filter_map(|(id, pid)| Some((id.ok()?, memory(pid))))
                .collect();
            for (id, memory) in &published {
                assert_holds(&store.snapshot(*id).expect("published"), memory);
            }
            let report = store.verify(None).expect("listable");
            assert!(report.is_clean(), "{at}: {report:?}");
            assert!(report.snapshots >= published.len() as u64);
            both += u32::from(report.snapshots == 2);
            assert!(loans(&dir).len() as u64 <= report.snapshots, "{at}");
            if survived {
                assert_eq!(published.len(), 2);
                break;
            }
        }
        assert!(both > 0);
    }
}

#[test]
fn what_is_not_synced_yet_is_looked_through_with_what_it_borrows() {
    for mode in [Durability::None, Durability::Interval] {
        for names_first in [false, true] {
            let (_folder, files, store) = test_store();
            let dir = store.dir().to_owned();
            let mut pair = sessions(&store, [1, 2]);
            let first = scenario(&mut pair).map(|one| one.expect("published"));
            for session in &mut pair {
                session.set_durability(mode);
                let parent = session.head();
                let pages = (3000..3050).map(|number| (number, noise(number)));
                publish(session, parent, [], pages).expect("published");
            }
            pair.into_iter().for_each(Session::forget);
            match names_first {
                true => files.power_cut_keeping_names(),
                false => files.power_cut(),
            }
            let store = Store::open_or_create_with(files.shared(), &dir).expect("opens");
            for (id, pid) in first.into_iter().zip([1, 2]) {
                assert_holds(&store.snapshot(id).expect("there"), &memory(pid));
            }
            let report = store.verify(None).expect("listable");
            assert!(report.is_clean(), "{report:?}");
        }
    }
}

#[test]
fn damage_to_what_is_borrowed_is_found() {
    type Harm = fn(&Path) -> std::io::Result<()>;
    let cut: Harm = |path| fs::OpenOptions::new().write(true).open(path)?.set_len(5000);
    let flip: Harm = |path| {
        let mut bytes = fs::read(path)?;
        bytes[9000] ^= 1;
        fs::write(path, bytes)
    };
    let harms: [Harm; 3] = [cut, flip, |path| fs::remove_file(path)];
    for harm in harms {
        let (_folder, store) = new_store();
        let mut pair = sessions(&store, [1, 2]);
        let ids = scenario(&mut pair).map(|one| one.expect("published"));
        // Apart from the lender's own: it would be damaged as well.
        let loan = loans(store.dir()).remove(0);
        let bytes = fs::read(&loan).expect("readable");
        fs::remove_file(&loan).expect("removable");
        fs::write(&loan, bytes).expect("writable");
        harm(&loan).expect("harmed");
        let store = Store::open(store.dir()).expect("opens");
        let report = store.verify(None).expect("listable");
        let named: Vec<_> = report.problems.iter().map(|problem| problem.id).collect();
        assert_eq!(named, [Some(ids[1])], "{report:?}");
        assert_holds(&store.snapshot(ids[0]).expect("there"), &memory(1));
    }
}

#[test]
fn a_flush_takes_along_what_is_borrowed() {
    let (_folder, store) = new_store();
    let (_other, to) = new_store();
    let mut pair = sessions(&store, [1, 2]);
    let ids = scenario(&mut pair).map(|one| one.expect("published"));
    let done = store
        .flush_session(pair[1].id(), &to, &mut |_| {})
        .expect("flushed");
    assert_eq!((done.snapshots, done.notes.len()), (1, 0));
    assert_whole(to.dir(), &[(ids[1], memory(2))]);
}

#[test]
fn any_processes_are_what_they_were() {
    for seed in 1..30 {
        let mut dice = Dice::new(seed);
        let (_folder, store) = new_store();
        let side_by_side = store.side_by_side();
        let mut all: Vec<(Session, Option<SnapshotId>, Memory)> = Vec::new();
        let mut published = Vec::new();
        for pid in 1..=4 {
            let session = side_by_side.create_session(&info(pid)).expect("a session");
            all.push((session, None, Memory::new()));
        }
        for _ in 0..6 {
            let common: Vec<u32> = (0..80).map(|_| dice.roll(1000) as u32).collect();
            let mut pending = Vec::new();
            for (session, last, was) in &mut all {
                let mut memory = was.clone();
                let (pid, kind) = match last {
                    None => (session.info().pid, SnapshotKind::Base),
                    Some(_) => (session.info().pid, SnapshotKind::Delta),
                };
                let mut one = session.begin(kind, *last).expect("begun");
                for _ in 0..1 + dice.roll(4) {
                    let pages: Memory = (0..dice.roll(60))
                        .map(|_| (dice.roll(200), common[dice.roll(80) as usize]))
                        .collect();
                    one.append(&batch(0, pages.clone())).expect("pages");
                    memory.extend(pages);
                }
                pending.push((one, pid, (last, was), memory));
            }
            // Some are given up. Each of the others may wait for any of them.
            let ends: Vec<_> = std::thread::scope(|scope| {
                let ended: Vec<_> = pending
                    .into_iter()
                    .filter_map(|(one, pid, last, memory)| match dice.roll(8) {
                        0 => {
                            drop(one);
                            None
                        }
                        _ => Some((scope.spawn(move || end(one, pid)), last, memory)),
                    })
                    .collect();
                ended
                    .into_iter()
                    .map(|(id, last, memory)| (id.join().expect("no panic"), last, memory))
                    .collect()
            });
            for (id, (last, was), memory) in ends {
                let id = id.expect("published");
                (*last, *was) = (Some(id), memory.clone());
                published.push((id, memory));
            }
        }
        assert_whole(store.dir(), &published);
    }
}
