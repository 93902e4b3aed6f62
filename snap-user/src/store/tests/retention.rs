//! Which snapshots a removal takes, and which it must leave where they are.

use super::evolve::{History, assert_all, remove, sample};
use super::support::*;
use crate::image::SpanKind;
use crate::model::{PAGE_SIZE, SnapshotId};
use crate::store::verify::Check;
use crate::store::{PageSource, Report, Rules, Store, StoreError};
use std::collections::BTreeSet;
use std::time::Duration;

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
