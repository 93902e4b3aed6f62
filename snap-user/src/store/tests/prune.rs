//! Removing snapshots: what is kept stays whole, whatever goes and whatever fails.

use super::evolve::{Dice, History, assert_all, grow, remove, sample};
use super::files::{Plan as Fault, TestFiles};
use super::support::*;
use crate::image::MOST_VERSIONS;
use crate::model::PAGE_SIZE;
use crate::store::{PageSource, Rules, Session, Snapshot, Store, StoreError};
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Pages of a session's pack that hold changes, and those whose versions are as many as may be.
fn changes_packed(store: &Store, session: &Session, dice: &Dice) -> (usize, usize) {
    let files = store.session_files(session.id()).expect("a session");
    let listing = files.listing();
    let pack = listing.pack.as_ref().expect("a pack");
    let entries = pack.entries().expect("readable").iter();
    let depths = entries.filter(|entry| entry.encoding.needs_previous());
    let depths: Vec<usize> = depths.map(|entry| dice.depths[&entry.name]).collect();
    let deepest = depths.iter().filter(|depth| **depth + 1 == MOST_VERSIONS);
    (depths.len(), deepest.count())
}

#[test]
fn whatever_is_removed_the_others_stay_whole_and_can_be_built_on() {
    let mut changes = (0, 0);
    for seed in 1..25u64 {
        let mut dice = Dice::new(seed * 7919);
        let (_dir, store) = new_store();
        let mut session = store.create_session(&info(7)).expect("a session");
        let pruner = session.pruner();
        let mut history = History::new();
        grow(&mut session, &mut history, None, &mut dice);
        for round in 0..6 {
            for _ in 0..dice.roll(30) {
                // Mostly on the newest; at times back to an older one, or a new base.
                let parent = match dice.roll(12) {
                    0 => None,
                    1 | 2 => history.keys().nth(dice.roll(history.len() as u64) as usize),
                    _ => history.keys().next_back(),
                };
                let parent = parent.copied();
                grow(&mut session, &mut history, parent, &mut dice);
            }
            let head = session.head().expect("a head");
            let gone: BTreeSet<u32> = match round % 3 {
                // All but the head, a stretch, or here and there.
                0 => history.keys().copied().collect(),
                1 => {
                    let from = dice.roll(30) as u32;
                    (from..from + 20).collect()
                }
                _ => history
                    .keys()
                    .copied()
                    .filter(|_| dice.roll(2) == 0)
                    .collect(),
            };
            let gone: BTreeSet<u32> = history
                .iter()
                .filter(|(seq, (id, _))| gone.contains(seq) && *id != head)
                .map(|(seq, _)| *seq)
                .collect();
            let open: Vec<(Snapshot, Memory)> = history
                .iter()
                .filter(|(seq, _)| !gone.contains(seq))
                .map(|(_, (id, memory))| (store.snapshot(*id).expect("kept"), memory.clone()))
                .collect();
            let plan = pruner.plan_removal(&gone).expect("a plan");
            pruner.carry_out(&plan).expect("removed");
            if !gone.is_empty() {
                // As long as was said, but for the numbers of those that are gone.
                let after = pruner.plan_removal(&BTreeSet::new()).expect("a plan");
                let numbers = after.bytes_before - plan.bytes_after;
                assert!(numbers.is_multiple_of(8) && numbers <= 8 * 200, "{numbers}");
                let packed = changes_packed(&store, &session, &dice);
                changes = (changes.0 + packed.0, changes.1 + packed.1);
            }
            for seq in &gone {
                let (id, _) = history.remove(seq).expect("known");
                assert!(matches!(
                    store.snapshot(id),
                    Err(StoreError::NotFound { .. })
                ));
            }
            assert_all(&store, &history);
            assert_all(&Store::open(store.dir()).expect("opens"), &history);
            // Opened before, read only now.
            for (snapshot, memory) in &open {
                assert_holds(snapshot, memory);
            }
        }
        drop((session, pruner));
        // Another writer goes on, with new numbers.
        let id = store.sessions().expect("one")[0].0;
        let last = *history.keys().next_back().expect("the head");
        let mut session = store.open_session(id).expect("free");
        grow(&mut session, &mut history, Some(last), &mut dice);
        assert!(history.len() > 1 && history.keys().next_back() > Some(&last));
        assert_all(&store, &history);
    }
    assert!(changes.0 > 100 && changes.1 > 5, "{changes:?} in packs");
}

/// Two removals, of which the second replaces the pack of the first.
const REMOVALS: [&[u32]; 2] = [&[1, 2, 3, 7], &[4, 5, 6, 13]];

/// What is there is whole, and is what there was before the removal under way, or after it.
fn assert_one_of(dir: &Path, history: &History, done: usize) {
    let store = Store::open(dir).expect("opens");
    let mut without = history.clone();
    for removal in &REMOVALS[..done] {
        without.retain(|seq, _| !removal.contains(seq));
    }
    let list: BTreeSet<u32> = store
        .list()
        .expect("a listing")
        .iter()
        .map(|m| m.seq)
        .collect();
    if let Some(removal) = REMOVALS.get(done)
        && list.len() < without.len()
    {
        without.retain(|seq, _| !removal.contains(seq));
    }
    assert_all(&store, &without);
}

#[test]
fn a_failed_operation_of_a_removal_leaves_everything_whole_and_the_next_try_succeeds() {
    for errno in [28, 5] {
        let mut failures = 0;
        for at in 1.. {
            let folder = tempfile::tempdir().expect("a temporary folder");
            let dir = folder.path().join("store");
            let files = TestFiles::default();
            let store = Store::open_or_create_with(files.shared(), &dir).expect("a store");
            let (session, history) = sample(&store);
            let pruner = session.pruner();
            let from = files.operations();
            files.set_plan(Fault::Fail(from + at, errno));
            for (done, removal) in REMOVALS.iter().enumerate() {
                if remove(&pruner, removal.iter().copied()).is_err() {
                    failures += 1;
                    assert_one_of(&dir, &history, done);
                    remove(&pruner, removal.iter().copied()).expect("the next try");
                }
                assert_one_of(&dir, &history, done + 1);
            }
            files.set_plan(Fault::Nothing);
            remove(&pruner, []).expect("swept");
            assert_files(&dir, &session, history.len() - 8);
            if from + at > files.operations() {
                break;
            }
        }
        assert!(failures > 12, "{failures} failed operations");
    }
}

/// Nothing lies about: the snapshots that are kept, and one pack.
fn assert_files(dir: &Path, session: &Session, snapshots: usize) {
    let folder = dir.join(session.id().to_string());
    let names: Vec<String> = std::fs::read_dir(folder)
        .expect("a folder")
        .map(|entry| {
            entry
                .expect("an entry")
                .file_name()
                .into_string()
                .expect("UTF-8")
        })
        .collect();
    let with = |suffix: &str| names.iter().filter(|name| name.ends_with(suffix)).count();
    assert_eq!(
        (with(".ksnap"), with(".kpack")),
        (snapshots, 1),
        "{names:?}"
    );
    // Besides: the description, the lock, the list of headers.
    assert_eq!(names.len(), snapshots + 4, "{names:?}");
}

#[test]
fn a_crash_at_any_operation_of_a_removal_leaves_everything_whole() {
    for power_cut in [false, true] {
        for at in 1.. {
            let folder = tempfile::tempdir().expect("a temporary folder");
            let dir = folder.path().join("store");
            let files = TestFiles::default();
            let store = Store::open_or_create_with(files.shared(), &dir).expect("a store");
            let (session, history) = sample(&store);
            let (id, pruner) = (session.id(), session.pruner());
            files.set_plan(Fault::Crash(files.operations() + at));
            let mut done = 0;
            let ended = REMOVALS.iter().try_for_each(|removal| {
                remove(&pruner, removal.iter().copied()).inspect(|()| done += 1)
            });
            let crashed = ended.is_err() || files.is_dead();
            drop((session, pruner));
            if power_cut {
                files.power_cut();
            }
            assert_one_of(&dir, &history, done);
            // Whoever comes next finishes it.
            let store = Store::open_or_create(&dir).expect("opens");
            let pruner = store.pruner(id).expect("nobody has it");
            for removal in REMOVALS {
                remove(&pruner, removal.iter().copied()).expect("removed");
            }
            remove(&pruner, []).expect("swept");
            assert_one_of(&dir, &history, 2);
            drop(pruner);
            let session = store.open_session(id).expect("nobody has it");
            assert_files(&dir, &session, history.len() - 8);
            if !crashed {
                break;
            }
        }
    }
}

#[test]
fn a_writer_a_pruner_and_readers_do_not_disturb_each_other() {
    let (_dir, store) = new_store();
    let mut session = store.create_session(&info(7)).expect("a session");
    let pruner = session.pruner();
    let mut dice = Dice::new(5);
    let mut history = History::new();
    grow(&mut session, &mut history, None, &mut dice);
    let done = AtomicBool::new(false);
    let rules = Rules {
        keep_last: Some(4),
        ..Rules::default()
    };
    let (pruned, read) = (AtomicU64::new(0), AtomicU64::new(0));
    let is_enough = || pruned.load(Ordering::Relaxed) > 100 && read.load(Ordering::Relaxed) > 0;
    let mut newest = 1u32;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let plan = pruner.plan(&rules).expect("a plan");
                let gone = pruner.carry_out(&plan).expect("carried out").snapshots;
                pruned.fetch_add(gone, Ordering::Relaxed);
            }
        });
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let store = Store::open(store.dir()).expect("opens");
                let latest = store.resolve("latest", None).expect("one");
                let pages = store.snapshot(latest).and_then(|snapshot| {
                    let addrs: Vec<u64> = snapshot.page_table()?.iter().map(|p| p.0).collect();
                    let mut pages = 0;
                    snapshot.read_pages(&addrs, &mut |_, _| pages += 1)?;
                    assert_eq!(pages, addrs.len());
                    Ok(())
                });
                match pages {
                    Ok(()) => {
                        read.fetch_add(1, Ordering::Relaxed);
                    }
                    // A reader may be so slow that what it reads is pruned, and is told so.
                    Err(StoreError::NotFound { .. }) => {}
                    Err(error) => panic!("{error}"),
                }
            }
        });
        // And on, where a busy machine has not let the others have their turns by then.
        let end = Instant::now() + Duration::from_secs(60);
        while newest <= 600 || (!is_enough() && Instant::now() < end) {
            // Back and forth, as rollbacks do, always to one that is there.
            let parent = *history.keys().next_back().expect("the head");
            grow(&mut session, &mut history, Some(parent), &mut dice);
            newest += 1;
        }
        done.store(true, Ordering::Relaxed);
    });
    assert!(is_enough(), "{pruned:?} pruned, {read:?} read");
    let plan = pruner.plan(&rules).expect("a plan");
    pruner.carry_out(&plan).expect("carried out");
    let kept = history.split_off(&(newest - 3));
    assert_all(&store, &kept);
}

#[test]
fn reading_stays_flat_after_any_number_of_removals() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let dir = folder.path().join("store");
    let files = TestFiles::default();
    let store = Store::open_or_create_with(files.shared(), &dir).expect("a store");
    let mut session = store.create_session(&info(7)).expect("a session");
    let pruner = session.pruner();
    let mut parent = publish(&mut session, None, [], (0..500).map(|n| (n, n as u32)))
        .expect("a base")
        .id;
    let mut most = 0;
    for n in 0..900u32 {
        let pages = [(u64::from(n) % 500, n + 1), (u64::from(n * 7) % 500, n + 2)];
        parent = publish(&mut session, Some(parent), [], pages)
            .expect("a delta")
            .id;
        if n % 101 == 100 {
            let rules = Rules {
                keep_last: Some(40),
                ..Rules::default()
            };
            let plan = pruner.plan(&rules).expect("a plan");
            pruner.carry_out(&plan).expect("carried out");
        }
        if n % 50 == 49 {
            let reader = Store::open_with(files.shared(), &dir).expect("opens");
            let snapshot = reader.snapshot(parent).expect("the newest");
            files.take_reads();
            let mut page = [0; PAGE_SIZE as usize];
            assert!(snapshot.read_page(0, &mut page).expect("readable"));
            most = most.max(files.take_reads().0);
        }
    }
    // At most 15 jumps for each of three digits, and as many again past a jump that leads nowhere.
    assert!(most <= 1 + 15 * 3 * 2, "{most} files opened for a page");
    assert!(store.verify(None).expect("listable").is_clean());
}
