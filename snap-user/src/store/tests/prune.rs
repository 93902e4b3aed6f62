//! Removing snapshots: what is kept stays whole, whatever goes and whatever fails.

use super::files::{Plan as Fault, TestFiles};
use super::support::*;
use crate::codec::Scratch;
use crate::image::{Location, MOST_VERSIONS, Previous, SpanKind};
use crate::model::{Costs, PAGE_SIZE, SnapshotId, SnapshotKind};
use crate::store::verify::Check;
use crate::store::{
    EncodedBatch, PageSink, PageSource, Pruner, Report, Rules, Session, Snapshot, Store, StoreError,
};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// A small generator, seeded: failures can be repeated.
pub(super) struct Dice {
    state: u64,
    /// How many versions are below each page that was stored as changes.
    depths: BTreeMap<Location, usize>,
}

impl Dice {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            state: seed,
            depths: BTreeMap::new(),
        }
    }

    pub(super) fn roll(&mut self, sides: u64) -> u64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        self.state % sides
    }
}

/// What each snapshot should hold.
pub(super) type History = BTreeMap<u32, (SnapshotId, Memory)>;

/// Takes a snapshot on some earlier one: pages that change, go, move, or have come from elsewhere.
pub(super) fn grow(
    session: &mut Session,
    history: &mut History,
    parent: Option<u32>,
    dice: &mut Dice,
) {
    let before = parent.map(|seq| history[&seq].clone());
    let mut memory = before.as_ref().map_or(Memory::new(), |p| p.1.clone());
    let pid = session.info().pid;
    let kind = before
        .as_ref()
        .map_or(SnapshotKind::Base, |_| SnapshotKind::Delta);
    let mut pending = session
        .begin(kind, before.as_ref().map(|p| p.0))
        .expect("begun");
    let mut dropped = BTreeSet::new();
    for _ in 0..dice.roll(3) {
        let page = dice.roll(40);
        dropped.insert(page);
        memory.remove(&page);
    }
    pending.drop_ranges(&set(dropped.iter().copied()));
    let mut same = EncodedBatch::new(0);
    if let Some((_, old)) = &before {
        for _ in 0..dice.roll(3) {
            let to = 40 + dice.roll(20);
            let from = dice.roll(40);
            if let Some(seed) = old.get(&from) {
                same.push_same(to * PAGE_SIZE, from * PAGE_SIZE);
                memory.insert(to, *seed);
            }
        }
    }
    pending.append(&same).expect("references");
    let mut pages = BTreeMap::new();
    let count = if kind == SnapshotKind::Base {
        30
    } else {
        dice.roll(6)
    };
    for _ in 0..count {
        pages.insert(dice.roll(40), dice.roll(1 << 30) as u32);
    }
    memory.extend(&pages);
    pending.append(&batch(1, pages)).expect("pages");
    // A few pages change all the time, in few words.
    let table = pending.parent_table().cloned().unwrap_or_default();
    let mut changes = EncodedBatch::new(2);
    let mut depths = BTreeMap::new();
    for _ in 0..dice.roll(8) {
        let number = dice.roll(8);
        let addr = number * PAGE_SIZE;
        if depths.contains_key(&addr) {
            continue;
        }
        let seed = FAMILIES | (dice.roll(64) << 4 | number) as u32;
        let old = before.as_ref().and_then(|(_, old)| old.get(&number));
        let was = old.map(|old| page(*old)).zip(table.get(addr));
        let depth = |at: &Location| dice.depths.get(at).map_or(1, |depth| depth + 1);
        let was = was.filter(|(_, at)| depth(at) < MOST_VERSIONS);
        let below = was.as_ref().map_or(0, |(_, at)| depth(at));
        let previous = was.as_ref().map(|(page, at)| Previous { page, at: *at });
        let encoding = changes.push_against(addr, &page(seed), previous, &mut Scratch::default());
        depths.insert(addr, if encoding.needs_previous() { below } else { 0 });
        memory.insert(number, seed);
    }
    pending.append(&changes).expect("changes");
    let done = pending
        .publish(&state(pid), &Costs::default())
        .expect("published");
    let table = session.head_table().expect("of the one just published");
    for (addr, depth) in depths {
        let at = table.get(addr).expect("just published");
        assert_eq!(at.seq.get(), done.seq);
        dice.depths.insert(at, depth);
    }
    history.insert(done.seq, (done.id, memory));
}

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

fn assert_all(store: &Store, history: &History) {
    let list: Vec<u32> = store
        .list()
        .expect("a listing")
        .iter()
        .map(|m| m.seq)
        .collect();
    assert_eq!(
        list.iter().collect::<BTreeSet<_>>(),
        history.keys().collect()
    );
    for (id, memory) in history.values() {
        assert_holds(&store.snapshot(*id).expect("kept"), memory);
    }
    let report = store.verify(None).expect("listable");
    assert!(report.is_clean(), "{report:?}");
}

pub(super) fn remove(
    pruner: &Pruner,
    seqs: impl IntoIterator<Item = u32>,
) -> Result<(), StoreError> {
    let gone: BTreeSet<u32> = seqs.into_iter().collect();
    let plan = pruner.plan_removal(&gone)?;
    pruner.carry_out(&plan).map(drop)
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

/// Fifteen snapshots: a chain with a branch.
fn sample(store: &Store) -> (Session, History) {
    let mut session = store.create_session(&info(7)).expect("a session");
    let mut history = History::new();
    let mut dice = Dice::new(42);
    grow(&mut session, &mut history, None, &mut dice);
    for seq in 1..12 {
        grow(&mut session, &mut history, Some(seq), &mut dice);
    }
    for parent in [6, 13, 14] {
        grow(&mut session, &mut history, Some(parent), &mut dice);
    }
    (session, history)
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
    let (pruned, read) = std::thread::scope(|scope| {
        let pruning = scope.spawn(|| {
            let mut pruned = 0;
            while !done.load(Ordering::Relaxed) {
                let plan = pruner.plan(&rules).expect("a plan");
                pruned += pruner.carry_out(&plan).expect("carried out").snapshots;
            }
            pruned
        });
        let reading = scope.spawn(|| {
            let mut read = 0;
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
                    Ok(()) => read += 1,
                    // A reader may be so slow that what it reads is pruned, and is told so.
                    Err(StoreError::NotFound { .. }) => {}
                    Err(error) => panic!("{error}"),
                }
            }
            read
        });
        for _ in 0..600 {
            // Back and forth, as rollbacks do, always to one that is there.
            let parent = *history.keys().next_back().expect("the head");
            grow(&mut session, &mut history, Some(parent), &mut dice);
        }
        done.store(true, Ordering::Relaxed);
        (
            pruning.join().expect("no panic"),
            reading.join().expect("no panic"),
        )
    });
    assert!(pruned > 100 && read > 0, "{pruned} pruned, {read} read");
    let plan = pruner.plan(&rules).expect("a plan");
    pruner.carry_out(&plan).expect("carried out");
    let kept = history.split_off(&(601 - 3));
    assert_all(&store, &kept);
}

#[test]
fn what_is_built_on_or_tagged_is_never_removed() {
    let (_dir, store) = new_store();
    let (mut session, history) = sample(&store);
    let pruner = session.pruner();
    let rules = Rules {
        keep_last: Some(1),
        ..Rules::default()
    };
    store.set_tag("good", history[&3].0, false).expect("a tag");
    // A rollback is about to make this one the head.
    pruner.pin(history[&9].0).expect("there");
    let plan = pruner.plan(&rules).expect("a plan");
    let gone: Vec<u32> = plan.removed.iter().map(|m| m.seq).collect();
    assert_eq!(gone.len(), 12, "{gone:?}");
    assert!(!gone.contains(&3) && !gone.contains(&9) && !gone.contains(&15));
    // Comes into use after the plan.
    store.set_tag("late", history[&5].0, false).expect("a tag");
    assert!(matches!(
        pruner.carry_out(&plan),
        Err(StoreError::NotRemoved { .. })
    ));
    assert_all(&store, &history);
    store.delete_tag("late").expect("deleted");
    publish(&mut session, Some(history[&5].0), [], []).expect("a branch");
    assert!(matches!(
        pruner.carry_out(&plan),
        Err(StoreError::NotRemoved { .. })
    ));
    let plan = pruner.plan(&rules).expect("a plan");
    pruner.carry_out(&plan).expect("carried out");
    let kept: Vec<u32> = store
        .list()
        .expect("a listing")
        .iter()
        .map(|m| m.seq)
        .collect();
    // The branch is the newest and the head; its parent was built on, not the pinned one any more.
    assert_eq!(kept, [3, 16]);
    assert_holds(
        &store.snapshot(history[&3].0).expect("tagged"),
        &history[&3].1,
    );
    assert_eq!(store.resolve("good", None).expect("a tag"), history[&3].0);
    assert!(matches!(
        publish(&mut session, Some(history[&8].0), [], []),
        Err(StoreError::NotFound { .. })
    ));
}

#[test]
fn a_size_is_kept_by_removing_the_oldest_first() {
    let (_dir, store) = new_store();
    let mut session = store.create_session(&info(7)).expect("a session");
    let mut parent = None;
    for round in 0..30u32 {
        // Noise, which takes a page each.
        let pages = (0..20).map(|page| (page, (round * 20 + page as u32) * 5 + 2));
        parent = Some(
            publish(&mut session, parent, [], pages)
                .expect("published")
                .id,
        );
    }
    let pruner = session.pruner();
    let all = pruner.plan(&Rules::default()).expect("a plan");
    assert!(all.removed.is_empty() && all.bytes_before == all.bytes_after);
    for share in [2, 3, 6] {
        let most = all.bytes_before / share;
        let rules = Rules {
            max_size: Some(most),
            ..Rules::default()
        };
        let plan = pruner.plan(&rules).expect("a plan");
        pruner.carry_out(&plan).expect("carried out");
        let list = store.list().expect("a listing");
        let files: u64 = std::fs::read_dir(store.dir().join(session.id().to_string()))
            .expect("a folder")
            .map(|entry| entry.expect("an entry").metadata().expect("metadata").len())
            .sum();
        assert!(files <= most + 4096, "{files} of {most}");
        // No more than needed, and the newest.
        assert!(files > most - 200_000, "{files} of {most}");
        assert_eq!(list.last().map(|m| m.seq), Some(30));
        assert!(list.windows(2).all(|w| w[1].seq == w[0].seq + 1));
    }
    assert!(store.verify(None).expect("listable").is_clean());
}

#[test]
fn a_session_of_which_nothing_is_kept_goes_whole_unless_it_is_written() {
    let (_dir, store) = new_store();
    let (session, _) = sample(&store);
    let rules = Rules {
        keep_within: Some(Duration::from_nanos(1)),
        ..Rules::default()
    };
    let id = session.id();
    assert!(matches!(store.pruner(id), Err(StoreError::Locked { .. })));
    let plan = session.pruner().plan(&rules).expect("a plan");
    assert!(!plan.whole_session && plan.kept == 1);
    drop(session);
    let pruner = store.pruner(id).expect("free");
    let plan = pruner.plan(&rules).expect("a plan");
    assert!(plan.whole_session && plan.bytes_after == 0);
    pruner.carry_out(&plan).expect("carried out");
    assert!(store.sessions().expect("none").is_empty());
    assert!(!store.dir().join(id.to_string()).exists());
    let left = std::fs::read_dir(store.dir()).expect("a folder").count();
    assert_eq!(left, 2, "the marker and the folder of tags");
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

#[test]
fn damage_in_a_pack_is_named_and_stops_further_removals() {
    let (_dir, store) = new_store();
    let (session, history) = sample(&store);
    remove(&session.pruner(), [1, 2, 3]).expect("removed");
    let folder = store.dir().join(session.id().to_string());
    let pack = folder.join("00000001.kpack");
    let whole = std::fs::read(&pack).expect("a pack");
    // One bit in each part: header, data, entries, absorbed numbers, ghosts, runs.
    let mut named = 0;
    for at in (0..whole.len()).step_by(61) {
        let mut bytes = whole.clone();
        bytes[at] ^= 4;
        std::fs::write(&pack, &bytes).expect("written");
        let store = Store::open(store.dir()).expect("opens");
        let report = store.verify(None).expect("listable");
        let about_pack = report.problems.iter().filter(|p| p.path == pack).count();
        // Reserved bytes are covered by the checksum; late page data of no entry is not there.
        assert!(about_pack > 0, "byte {at} of {}: {report:?}", whole.len());
        named += 1;
        for (seq, (id, memory)) in history.iter().filter(|(seq, _)| **seq > 3) {
            let Ok(snapshot) = store.snapshot(*id) else {
                continue;
            };
            // Right or an error, never something else.
            let mut page = [0; PAGE_SIZE as usize];
            for (number, seed) in memory {
                if let Ok(true) = snapshot.read_page(number * PAGE_SIZE, &mut page) {
                    assert!(page == super::support::page(*seed), "@{seq} page {number}");
                }
            }
        }
    }
    assert!(named > 50);
    let mut bytes = whole.clone();
    bytes[20] ^= 1;
    std::fs::write(&pack, &bytes).expect("written");
    assert!(matches!(
        session.pruner().plan_removal(&[4].into()),
        Err(StoreError::Corrupt { .. })
    ));
    std::fs::write(&pack, &whole).expect("written");
    remove(&session.pruner(), [4]).expect("removed");
}

#[test]
fn what_lies_across_a_missing_file_is_kept_or_nothing_is_removed() {
    let (_dir, store) = new_store();
    let mut session = store.create_session(&info(7)).expect("a session");
    let mut memory: Memory = (0..2000).map(|n| (n, 2 + 5 * n as u32)).collect();
    let mut history = History::new();
    let mut parent = None;
    for n in 0..40u32 {
        let written: Memory = match n {
            0 => memory.clone(),
            // Of the one that will be missing nothing is needed later.
            31 => [(0, 7)].into(),
            _ => [(u64::from(n), 7 * n), (0, 5 * n)].into(),
        };
        memory.extend(&written);
        let done = publish(&mut session, parent, [], written).expect("published");
        parent = Some(done.id);
        history.insert(done.seq, (done.id, memory.clone()));
    }
    let files = store.apart().session_files(session.id()).expect("there");
    let kind = |seq: u32| files.open(seq).expect("readable").header.span_kind;
    // 17 and 33 are read by jumps over what is before them.
    assert_eq!(
        (kind(17), kind(33)),
        (SpanKind::Since(1), SpanKind::Since(17))
    );
    let missing = files.path(32).expect("a name");
    std::fs::remove_file(&missing).expect("removed by hand");
    history.remove(&32);
    let assert_readable = |history: &History| {
        for (id, memory) in history.values() {
            assert_holds(&store.snapshot(*id).expect("there"), memory);
        }
        let report = store.verify(None).expect("listable");
        assert!(
            matches!(&report.problems[..], [one] if one.id == Some(history[&33].0)),
            "{report:?}"
        );
    };
    assert_readable(&history);
    let pruner = session.pruner();
    // Without 17 there is no way to 33 but by 32.
    let refused = pruner.plan_removal(&[17].into()).expect_err("needed");
    assert_eq!(
        refused.to_string(),
        "nothing was removed: snapshot @33 builds on @32, whose file is missing, so what it needs of others is \
         not known; first remove its file too: "
            .to_owned()
            + &files.path(33).expect("a name").display().to_string()
    );
    remove(&pruner, (2..17).chain(18..32)).expect("removed");
    history.retain(|seq, _| [1, 17].contains(seq) || *seq > 32);
    assert_readable(&history);
}

#[test]
fn a_flat_image_goes_with_its_snapshot() {
    let (_dir, store) = new_store();
    let mut session = store.create_session(&info(7)).expect("a session");
    let mut parent = None;
    let mut images = Vec::new();
    for n in 0..3 {
        let done = publish(&mut session, parent, [], [(n, 7)]).expect("published");
        parent = Some(done.id);
        let snapshot = store.snapshot(done.id).expect("just published");
        store.flat(&snapshot).expect("an image");
        images.push(store.dir().join("flat").join(done.id.to_string()));
    }
    let there = || images.iter().map(|path| path.exists()).collect::<Vec<_>>();
    assert_eq!(there(), [true; 3]);
    remove(&session.pruner(), [2]).expect("removed");
    assert_eq!(there(), [true, false, true]);
    let id = session.id();
    drop(session);
    let pruner = store.pruner(id).expect("free");
    remove(&pruner, [1, 3]).expect("removed");
    assert_eq!(there(), [false; 3]);
}

#[test]
fn what_stood_in_the_way_is_said() {
    let (_dir, store) = new_store();
    let guard = store.lock_tags().expect("free");
    let busy = store.try_lock_tags(2).expect_err("held");
    let text = busy.to_string();
    assert!(
        text.ends_with("tags are being changed by another ksnap: try again"),
        "{text}"
    );
    drop(guard);
    store.try_lock_tags(1).expect("free again");
    let mut session = store.create_session(&info(7)).expect("a session");
    let first = publish(&mut session, None, [], [(1, 7)]).expect("published");
    publish(&mut session, Some(first.id), [], [(2, 7)]).expect("published");
    let pruner = session.pruner();
    let plan = pruner.plan_removal(&BTreeSet::from([1])).expect("a plan");
    store.set_tag("late", first.id, false).expect("a tag");
    let text = pruner.carry_out(&plan).expect_err("tagged").to_string();
    assert_eq!(
        text,
        "nothing was removed: snapshot @1 came into use just now: try again"
    );
}

#[test]
fn what_is_removed_while_it_is_verified_is_no_damage() {
    let (_dir, store) = new_store();
    let mut session = store.create_session(&info(7)).expect("a session");
    let mut parent = None;
    for n in 0..6 {
        let done = publish(&mut session, parent, [], [(n, 7)]).expect("published");
        parent = Some(done.id);
    }
    let pruner = session.pruner();
    remove(&pruner, [1]).expect("removed");
    let before = store.apart().session_files(session.id()).expect("there");
    let wanted: Vec<_> = before.listing().by_seq.clone().into_iter().collect();
    // Two packs later.
    remove(&pruner, [2, 4]).expect("removed");
    remove(&pruner, [5]).expect("removed");
    let mut report = Report::default();
    Check::new(before, &mut report).run(&wanted);
    assert_eq!((report.snapshots, report.problems), (2, vec![]));
    // All of it.
    let before = store.apart().session_files(session.id()).expect("there");
    let (id, dir) = (session.id(), session.dir.clone());
    drop((session, pruner));
    let pruner = store.pruner(id).expect("free");
    remove(&pruner, [3, 6]).expect("removed");
    assert!(!dir.exists());
    let mut report = Report::default();
    Check::new(before, &mut report).run(&wanted);
    assert_eq!((report.snapshots, report.problems), (0, vec![]));
}

#[test]
fn a_session_removed_after_the_store_was_listed_is_passed_over() {
    let (_dir, store) = new_store();
    let mut session = store.create_session(&info(7)).expect("a session");
    let kept = publish(&mut session, None, [], [(1, 7)]).expect("published");
    // Listed, and not there.
    for name in [
        "00000000000000000000000000000001",
        "ffffffffffffffffffffffffffffffff",
    ] {
        std::os::unix::fs::symlink("nowhere", store.dir().join(name)).expect("a link");
    }
    assert_eq!(store.list().expect("a listing").len(), 1);
    store.snapshot(kept.id).expect("there");
    assert!(matches!(
        store.snapshot(SnapshotId([1; 16])),
        Err(StoreError::NotFound { .. })
    ));
    let report = store.verify(None).expect("listable");
    assert!(report.is_clean() && report.snapshots == 1, "{report:?}");
}
