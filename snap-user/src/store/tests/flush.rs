//! Copying sessions into another store: whole at every moment, whatever either store has lost meanwhile.

use super::evolve::{Dice, History, grow, remove};
use super::files::{Plan as Fault, TestFiles};
use super::support::*;
use crate::image::SessionId;
use crate::store::headers::Headers;
use crate::store::session::OWN_FROM;
use crate::store::{Disk, Due, Session, Store, StoreError};
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

/// All snapshots of a store hold what they should, and nothing is wrong with it. Gives their numbers.
fn assert_whole(dir: &Path, history: &History) -> BTreeSet<u32> {
    let store = Store::open(dir).expect("opens");
    let list = store.list().expect("a listing");
    for meta in &list {
        let (id, memory) = &history[&meta.seq];
        assert_eq!(meta.id, *id);
        assert_holds(&store.snapshot(*id).expect("listed"), memory);
    }
    let report = store.verify(None).expect("listable");
    assert!(report.is_clean(), "{report:?}");
    list.iter().map(|meta| meta.seq).collect()
}

/// What a flush would copy.
fn due(from: &Store, to: Option<&Store>) -> Vec<Due> {
    let found = from.due(to).expect("a plan");
    assert_eq!(found.notes, [""; 0]);
    found.sessions
}

fn flush(from: &Store, session: SessionId, to: &Store) -> Result<u64, StoreError> {
    let done = from.flush_session(session, to, &mut |_| {})?;
    assert_eq!(done.notes, [""; 0]);
    Ok(done.snapshots)
}

/// Mostly on the newest; at times back to an older one, or a new base.
fn grow_some(session: &mut Session, now: &BTreeSet<u32>, all: &mut History, dice: &mut Dice) {
    let mut now = now.clone();
    for _ in 0..1 + dice.roll(14) {
        let parent = match dice.roll(10) {
            0 => None,
            1 | 2 => now
                .iter()
                .nth(dice.roll(now.len() as u64) as usize)
                .copied(),
            _ => now.iter().next_back().copied(),
        };
        grow(session, all, parent, dice);
        now.extend(all.keys().next_back());
    }
}

fn some_of(numbers: &BTreeSet<u32>, dice: &mut Dice) -> BTreeSet<u32> {
    let newest = numbers.iter().next_back().copied();
    let from = dice.roll(30) as u32;
    let way = dice.roll(3);
    let picked = numbers.iter().copied().filter(|seq| match way {
        0 => true,
        1 => (from..from + 25).contains(seq),
        _ => dice.roll(2) == 0,
    });
    let mut picked: BTreeSet<u32> = picked.collect();
    picked.retain(|seq| Some(*seq) != newest);
    picked
}

fn numbers(store: &Store) -> BTreeSet<u32> {
    let list = store.list().expect("a listing");
    list.iter().map(|meta| meta.seq).collect()
}

#[test]
fn both_stores_stay_whole_whatever_each_loses_between_two_flushes() {
    let (mut packs, mut lost_there) = (0, 0);
    for seed in 1..40u64 {
        let mut dice = Dice::new(seed * 104_729);
        let (_memory, memory) = new_store();
        let (_disk, disk) = new_store();
        let mut session = memory.create_session(&info(7)).expect("a session");
        let id = session.id();
        let mut history = History::new();
        grow(&mut session, &mut history, None, &mut dice);
        // What the disk has removed by its own rules stays removed.
        let mut unwanted = BTreeSet::new();
        for _ in 0..6 {
            grow_some(&mut session, &numbers(&memory), &mut history, &mut dice);
            if dice.roll(3) > 0 {
                let head = session.head().expect("a head");
                let mut gone = some_of(&numbers(&memory), &mut dice);
                gone.retain(|seq| history[seq].0 != head);
                remove(&session.pruner(), gone).expect("removed from memory");
            }
            if dice.roll(3) > 0 && !disk.sessions().expect("a list").is_empty() {
                let there = numbers(&disk);
                let gone = some_of(&there, &mut dice);
                lost_there += gone.len();
                remove(&disk.pruner(id).expect("free"), gone.clone()).expect("removed from disk");
                unwanted.extend(gone);
            }
            let before = numbers(&disk);
            let due = due(&memory, Some(&disk));
            let copied = flush(&memory, id, &disk).expect("flushed");
            assert_eq!(due.iter().map(|due| due.snapshots).sum::<u64>(), copied);
            let there = assert_whole(disk.dir(), &history);
            let mut want: BTreeSet<u32> = numbers(&memory).difference(&unwanted).copied().collect();
            want.extend(before);
            assert_eq!(there, want, "seed {seed}");
            assert_whole(memory.dir(), &history);
            let folder = disk.dir().join(id.to_string());
            packs += std::fs::read_dir(folder)
                .expect("a folder")
                .filter(|e| {
                    e.as_ref()
                        .is_ok_and(|e| e.path().extension() == Some("kpack".as_ref()))
                })
                .count();
            assert_eq!(flush(&memory, id, &disk).expect("nothing to do"), 0);
            assert_eq!(super::flush::due(&memory, Some(&disk)), []);
        }
    }
    assert!(
        packs > 50 && lost_there > 300,
        "{packs} packs, {lost_there} lost"
    );
}

/// Two branches, a tag, and a removal: what is flushed needs a pack.
fn sample(memory: &Store) -> (Session, History) {
    let mut session = memory.create_session(&info(7)).expect("a session");
    let mut history = History::new();
    let mut dice = Dice::new(4711);
    grow(&mut session, &mut history, None, &mut dice);
    for seq in 1..10 {
        grow(&mut session, &mut history, Some(seq), &mut dice);
    }
    for parent in [6, 11, 12] {
        grow(&mut session, &mut history, Some(parent), &mut dice);
    }
    memory
        .set_tag("early", history[&2].0, false)
        .expect("a tag");
    remove(&session.pruner(), [1, 3, 4, 7]).expect("removed");
    (session, history)
}

#[test]
fn a_flush_that_dies_or_loses_power_at_any_operation_leaves_whole_snapshots_and_goes_on() {
    let (_memory, memory) = new_store();
    let (session, mut history) = sample(&memory);
    history.retain(|seq, _| ![1, 3, 4, 7].contains(seq));
    let all: BTreeSet<u32> = history.keys().copied().collect();
    for power_fails in [false, true] {
        let (mut deaths, mut partly) = (0, 0);
        for at in 1.. {
            let folder = tempfile::tempdir().expect("a temporary folder");
            let dir = folder.path().join("store");
            let files = TestFiles::default();
            let disk = Store::open_or_create_with(files.shared(), &dir).expect("a store");
            files.set_plan(Fault::Crash(files.operations() + at));
            let done = flush(&memory, session.id(), &disk);
            if files.is_dead() {
                deaths += 1;
                assert!(done.is_err());
            }
            drop(disk);
            if power_fails {
                files.power_cut();
            }
            let survived = files.is_dead();
            files.set_plan(Fault::Nothing);
            let there = assert_whole(&dir, &history);
            partly += u32::from(!there.is_empty() && there != all);
            let disk = Store::open_or_create_with(Arc::new(Disk), &dir).expect("a store");
            flush(&memory, session.id(), &disk).expect("the next one goes on");
            assert_eq!(assert_whole(&dir, &history), all);
            assert_eq!(disk.tags().expect("a list")[0].id, history[&2].0);
            if !survived {
                break;
            }
        }
        // Without power all of a batch is lost that is not durable as a whole.
        assert!(deaths > 40, "{deaths} deaths");
        assert!(partly > 5 || power_fails, "{partly} partly");
    }
}

#[test]
fn a_failed_operation_of_a_flush_is_said_and_the_next_try_succeeds() {
    let (_memory, memory) = new_store();
    let (session, mut history) = sample(&memory);
    history.retain(|seq, _| ![1, 3, 4, 7].contains(seq));
    let mut failures = 0;
    for at in 1.. {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let dir = folder.path().join("store");
        let files = TestFiles::default();
        let disk = Store::open_or_create_with(files.shared(), &dir).expect("a store");
        let from = files.operations();
        files.set_plan(Fault::Fail(from + at, 28));
        let done = flush(&memory, session.id(), &disk);
        let ended = files.operations() < from + at;
        files.set_plan(Fault::Nothing);
        failures += u32::from(done.is_err());
        assert_whole(&dir, &history);
        flush(&memory, session.id(), &disk).expect("the next try");
        assert_eq!(assert_whole(&dir, &history).len(), history.len());
        if ended {
            break;
        }
    }
    assert!(failures > 30, "{failures} failed operations");
}

#[test]
fn the_newest_chain_comes_first_and_each_snapshot_after_what_it_builds_on() {
    let (_memory, memory) = new_store();
    let (session, _history) = sample(&memory);
    // 13 → 12 → 11 → 6 → 5, whose parent is gone: so 2 too. Then what branched off: 8, 9, 10.
    let mut order: Vec<u32> = Vec::new();
    for at in 1.. {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let dir = folder.path().join("store");
        let files = TestFiles::default();
        let disk = Store::open_or_create_with(files.shared(), &dir).expect("a store");
        files.set_plan(Fault::Crash(files.operations() + at));
        let _ = flush(&memory, session.id(), &disk);
        let there = numbers(&Store::open(&dir).expect("opens"));
        order.extend(there.difference(&order.iter().copied().collect()));
        if !files.is_dead() {
            break;
        }
    }
    assert_eq!(order, [2, 5, 6, 11, 12, 13, 8, 9, 10]);
}

#[test]
fn a_copy_that_is_added_to_leaves_the_numbers_of_its_home_free() {
    let (_memory, memory) = new_store();
    let (_disk, disk) = new_store();
    let (mut session, mut history) = sample(&memory);
    history.retain(|seq, _| ![1, 3, 4, 7].contains(seq));
    let id = session.id();
    flush(&memory, id, &disk).expect("flushed");
    let add = |session: &mut Session, page, history: &mut History| {
        let (parent, mut memory) = history[&13].clone();
        let done = publish(session, Some(parent), [], [(page, 7)]).expect("published");
        memory.insert(page, 7);
        history.insert(done.seq, (done.id, memory));
        done.seq
    };
    {
        let mut copy = disk.open_session(id).expect("free");
        assert_eq!(add(&mut copy, 1, &mut history), OWN_FROM);
        assert_eq!(add(&mut copy, 2, &mut history), OWN_FROM + 1);
        // Whoever writes it has it alone.
        assert!(matches!(
            flush(&memory, id, &disk),
            Err(StoreError::Locked { .. })
        ));
    }
    assert_eq!(add(&mut session, 3, &mut history), 14);
    assert_eq!(flush(&memory, id, &disk).expect("flushed"), 1);
    assert_eq!(assert_whole(disk.dir(), &history).len(), history.len());
}

#[test]
fn what_is_damaged_or_builds_on_it_is_named_and_the_rest_is_copied() {
    let (_memory, memory) = new_store();
    let (_disk, disk) = new_store();
    let (session, history) = sample(&memory);
    let files = memory.apart().session_files(session.id()).expect("there");
    let path = files.path(8).expect("a name");
    let header = &files.open(8).expect("readable").header;
    let mut bytes = std::fs::read(&path).expect("a file");
    // In the index.
    bytes[header.index.offset as usize + 3] ^= 1;
    std::fs::write(&path, bytes).expect("written");
    let done = memory
        .flush_session(session.id(), &disk, &mut |_| {})
        .expect("flushed");
    let there = assert_whole(disk.dir(), &history);
    assert_eq!(there, [2, 5, 6, 11, 12, 13].into());
    assert_eq!(done.snapshots, 6);
    let text = done.notes.join("\n");
    for part in [
        "(@8) is not copied: ",
        "index",
        "(@9) is not copied: what it builds on, @8, is missing or damaged",
        "(@10)",
    ] {
        assert!(text.contains(part), "{text}");
    }
}

#[test]
fn a_tag_whose_name_is_taken_stays_as_it_is() {
    let (_memory, memory) = new_store();
    let (_disk, disk) = new_store();
    let mut other = disk.create_session(&info(8)).expect("a session");
    let taken = publish(&mut other, None, [], [(1, 7)]).expect("published");
    disk.set_tag("early", taken.id, false).expect("a tag");
    let (session, _) = sample(&memory);
    let done = memory.flush_session(session.id(), &disk, &mut |_| {});
    let notes = done.expect("flushed").notes;
    assert!(
        matches!(&notes[..], [one] if one.contains("the tag early was not copied")),
        "{notes:?}"
    );
    assert_eq!(
        disk.tag("early").expect("readable").map(|tag| tag.id),
        Some(taken.id)
    );
}

#[test]
fn what_is_due_counts_each_session_the_newest_first() {
    let (_memory, memory) = new_store();
    let (_disk, disk) = new_store();
    let (first, _) = sample(&memory);
    let mut second = memory.create_session(&info(8)).expect("a session");
    publish(&mut second, None, [], [(1, 7)]).expect("published");
    let of = |due: &[Due]| {
        due.iter()
            .map(|due| (due.info.pid, due.snapshots))
            .collect::<Vec<_>>()
    };
    assert_eq!(of(&due(&memory, None)), [(8, 1), (7, 9)]);
    flush(&memory, second.id(), &disk).expect("flushed");
    let due = due(&memory, Some(&disk));
    assert_eq!(of(&due), [(7, 9)]);
    let written = memory
        .flush_session(first.id(), &disk, &mut |_| {})
        .expect("flushed")
        .bytes;
    // A pack is made anew, and may have pages whole that were changes.
    let about = due[0].bytes / 2..due[0].bytes * 2;
    assert!(about.contains(&written), "{written} {due:?}");
}

/// Snapshot files in a folder that are removed, and that this process has open.
fn held_open(dir: &Path) -> usize {
    let open = std::fs::read_dir("/proc/self/fd").expect("a folder");
    let links = open.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
    links
        .filter(|link| link.starts_with(dir) && link.to_string_lossy().ends_with("ksnap (deleted)"))
        .count()
}

#[test]
fn what_is_pruned_while_it_is_flushed_is_passed_over_and_the_rest_arrives() {
    for files_go in [false, true] {
        let (_memory, memory) = new_store();
        let (_disk, disk) = new_store();
        let mut session = memory.create_session(&info(7)).expect("a session");
        let mut history = History::new();
        let mut dice = Dice::new(11);
        grow(&mut session, &mut history, None, &mut dice);
        for seq in 1..200 {
            grow(&mut session, &mut history, Some(seq), &mut dice);
        }
        let pruner = session.pruner();
        let mut rounds = 0;
        let mut durable = 0;
        let done = memory
            .flush_session(session.id(), &disk, &mut |now| {
                assert!(now.snapshots >= durable, "none is taken back");
                durable = now.snapshots;
                rounds += 1;
                if rounds == 1 {
                    // Some of those that are still to be copied, or all but the newest.
                    let next = durable as u32 + 1;
                    let gone: Vec<u32> = match files_go {
                        true => (next..190).collect(),
                        false => (next..190).filter(|seq| seq % 3 > 0).collect(),
                    };
                    remove(&pruner, gone.iter().copied()).expect("removed");
                    history.retain(|seq, _| !gone.contains(seq));
                    assert_eq!(held_open(memory.dir()), 0, "their room is free");
                }
            })
            .expect("flushed");
        assert_eq!(done.notes, [""; 0]);
        assert_eq!(done.snapshots as usize, history.len());
        let there = assert_whole(disk.dir(), &history);
        assert_eq!(there, history.keys().copied().collect());
        assert_eq!(due(&memory, Some(&disk)), []);
    }
}

#[test]
fn what_others_build_on_may_be_pruned_before_its_header_is_read() {
    let (_memory, memory) = new_store();
    let (_disk, disk) = new_store();
    let mut session = memory.create_session(&info(7)).expect("a session");
    let mut history = History::new();
    let mut dice = Dice::new(11);
    grow(&mut session, &mut history, None, &mut dice);
    for seq in 1..10 {
        grow(&mut session, &mut history, Some(seq), &mut dice);
    }
    let files = TestFiles::default();
    let reader = Store::open_with(files.shared(), memory.dir()).expect("opens");
    // The first look at the folder finds all of them, what follows only those from the sixth on.
    files.keep_names(&memory.session_path(session.id()));
    remove(&session.pruner(), 1..6).expect("removed");
    history.retain(|seq, _| *seq >= 6);
    let done = reader
        .flush_session(session.id(), &disk, &mut |_| {})
        .expect("flushed");
    assert_eq!(done.notes, [""; 0]);
    let there = assert_whole(disk.dir(), &history);
    assert_eq!(there, history.keys().copied().collect());
}

#[test]
fn a_file_that_is_gone_though_its_name_is_there_is_passed_over() {
    let (_memory, memory) = new_store();
    let (_disk, disk) = new_store();
    let (session, _) = sample(&memory);
    let files = memory.apart().session_files(session.id()).expect("there");
    let last = files.path(13).expect("a name");
    std::fs::remove_file(&last).expect("removed");
    std::os::unix::fs::symlink("nowhere", &last).expect("a link");
    let done = memory.flush_session(session.id(), &disk, &mut |_| {});
    assert_eq!(done.expect("flushed").snapshots, 8);
}

#[test]
fn what_a_killed_flush_left_goes_with_the_next_one() {
    let (_memory, memory) = new_store();
    let (_disk, disk) = new_store();
    let (mut session, history) = sample(&memory);
    flush(&memory, session.id(), &disk).expect("flushed");
    let left = disk.session_path(session.id()).join(".tmp-00000099");
    std::fs::write(&left, "half of a snapshot").expect("written");
    let parent = Some(history[&13].0);
    publish(&mut session, parent, [], [(1, 7)]).expect("published");
    assert_eq!(flush(&memory, session.id(), &disk).expect("flushed"), 1);
    assert!(!left.exists());
}

#[test]
fn the_list_of_headers_knows_what_was_flushed_without_being_made_anew() {
    let (_memory, memory) = new_store();
    let folder = tempfile::tempdir().expect("a temporary folder");
    let files = TestFiles::default();
    let disk = Store::open_or_create_with(files.shared(), &folder.path().join("store"));
    let disk = disk.expect("a store");
    let (mut session, history) = sample(&memory);
    let mut parent = history[&13].0;
    for n in 0..50 {
        let done = publish(&mut session, Some(parent), [], [(n, 7)]);
        parent = done.expect("published").id;
    }
    flush(&memory, session.id(), &disk).expect("flushed");
    let dir = disk.session_path(session.id());
    let listed = Headers::read(&*disk.files, &dir).count;
    assert_eq!(listed as usize, numbers(&disk).len());
    publish(&mut session, Some(parent), [], [(99, 7)]).expect("published");
    files.take_reads();
    assert_eq!(flush(&memory, session.id(), &disk).expect("flushed"), 1);
    let (opened, ..) = files.take_reads();
    assert_eq!(Headers::read(&*disk.files, &dir).count, listed + 1);
    assert!(opened < 30, "{opened} files opened for one snapshot");
}

#[test]
fn a_session_that_cannot_be_looked_at_does_not_keep_the_others_from_the_disk() {
    let (_memory, memory) = new_store();
    let (_disk, disk) = new_store();
    let (first, _) = sample(&memory);
    let mut second = memory.create_session(&info(8)).expect("a session");
    publish(&mut second, None, [], [(1, 7)]).expect("published");
    // A folder where the disk's own copy should be cannot be listed.
    std::fs::write(disk.session_path(first.id()), "a file").expect("written");
    let found = memory.due(Some(&disk)).expect("a plan");
    let pids: Vec<i32> = found.sessions.iter().map(|due| due.info.pid).collect();
    assert_eq!(pids, [8]);
    assert!(
        matches!(&found.notes[..], [one] if one.contains("of process 7 was not written")),
        "{found:?}"
    );
}
