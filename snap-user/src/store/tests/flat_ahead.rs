//! A flat image that follows snapshots is what one made at once would be.

use super::support::*;
use crate::model::PAGE_SIZE;
use crate::store::{Flat, Snapshot, Store};
use proptest::prelude::*;
use std::os::unix::fs::{FileExt, MetadataExt};

/// The store's flat image of a snapshot has its pages and no others; whether it was there already.
fn assert_flat(store: &Store, snapshot: &Snapshot, memory: &Memory) -> bool {
    let path = store.dir().join("flat").join(snapshot.id().to_string());
    let there = path.metadata().map(|meta| meta.ino()).ok();
    let flat = store.flat(snapshot).expect("a flat image");
    assert!(!flat.sums.is_empty());
    assert_image(&flat, memory);
    there.is_some_and(|inode| flat.file.metadata().is_ok_and(|meta| meta.ino() == inode))
}

/// An image has these pages and no others.
pub(super) fn assert_image(flat: &Flat, memory: &Memory) {
    let found: Vec<u64> = flat.pieces.iter().flat_map(|p| p.range.iter()).collect();
    let want: Vec<u64> = memory.keys().map(|number| number * PAGE_SIZE).collect();
    assert_eq!(found, want);
    for piece in &flat.pieces {
        for addr in piece.range.iter() {
            let mut bytes = [0; PAGE_SIZE as usize];
            let offset = piece.offset + (addr - piece.range.start);
            flat.file.read_exact_at(&mut bytes, offset).expect("a page");
            assert!(bytes == page(memory[&(addr / PAGE_SIZE)]), "{addr:#x}");
            if let Some(sum) = flat.sums.get((offset / PAGE_SIZE) as usize) {
                assert_eq!(*sum, crc32c::crc32c(&bytes), "{addr:#x}");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 30, ..ProptestConfig::default() })]

    #[test]
    fn an_image_that_followed_snapshots_is_that_of_the_last(
        first in proptest::collection::btree_map(0..400u64, 0u32..1000, 0..200),
        steps in proptest::collection::vec(
            ((0..400u64, 0..60u64), proptest::collection::btree_map(0..400u64, 0u32..1000, 0..40)), 0..6),
    ) {
        let (_folder, store) = new_disk_store();
        let mut session = store.create_session(&info(7)).expect("a session");
        let mut memory: Memory = first.clone();
        let mut last = publish(&mut session, None, [], first).expect("a base").id;
        let mut ahead = store.flat_ahead(&store.snapshot(last).expect("it")).expect("an image");
        for ((from, count), writes) in steps {
            let dropped: Vec<u64> = (from..from + count).filter(|n| memory.contains_key(n)).collect();
            dropped.iter().for_each(|n| {
                memory.remove(n);
            });
            memory.extend(writes.clone());
            last = publish(&mut session, Some(last), dropped, writes).expect("a delta").id;
            ahead.follow(&store.snapshot(last).expect("it")).expect("it follows");
        }
        assert_image(&ahead.publish().expect("published"), &memory);
        let snapshot = store.snapshot(last).expect("it");
        prop_assert!(assert_flat(&store, &snapshot, &memory), "made once more");
    }
}

#[test]
fn an_image_that_is_not_published_leaves_nothing() {
    let (_folder, store) = new_disk_store();
    let mut session = store.create_session(&info(7)).expect("a session");
    let base = publish(&mut session, None, [], [(1, 2), (5, 7)]).expect("a base");
    let snapshot = store.snapshot(base.id).expect("it");
    drop(store.flat_ahead(&snapshot).expect("an image"));
    let left = std::fs::read_dir(store.dir().join("flat")).expect("the folder");
    assert_eq!(left.count(), 0);
    // What was left by one that was killed goes with the next.
    let stale = store.dir().join("flat/.tmp-ahead-00");
    std::fs::write(&stale, "half").expect("a file");
    let other = store.flat_ahead(&snapshot).expect("an image");
    assert!(!stale.exists());
    drop(store.flat_ahead(&snapshot).expect("one beside it"));
    let memory = Memory::from([(1, 2), (5, 7)]);
    assert_image(&other.publish().expect("still there"), &memory);
    assert!(assert_flat(&store, &snapshot, &memory));
}

#[test]
fn an_image_is_made_where_there_is_none_to_follow() {
    let (_folder, store) = new_disk_store();
    let mut session = store.create_session(&info(7)).expect("a session");
    let base = publish(&mut session, None, [], [(1, 2), (5, 7)]).expect("a base");
    let snapshot = store.snapshot(base.id).expect("it");
    assert!(!assert_flat(
        &store,
        &snapshot,
        &Memory::from([(1, 2), (5, 7)])
    ));
}

#[test]
fn an_image_takes_the_place_of_those_used_longest_ago_when_it_is_begun() {
    let (_folder, store) = new_disk_store();
    let mut session = store.create_session(&info(7)).expect("a session");
    let flat = store.dir().join("flat");
    let images = || -> Vec<String> {
        let entries = std::fs::read_dir(&flat).expect("the folder").flatten();
        entries
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .filter(|name| !name.starts_with('.'))
            .collect()
    };
    let mut ids = Vec::new();
    for most in [u64::MAX, u64::MAX, 0] {
        let base = publish(&mut session, None, [], [(1, 2), (5, 7)]).expect("a base");
        let ahead = store.flat_ahead_within(&store.snapshot(base.id).expect("it"), most);
        let ahead = ahead.expect("an image");
        // Behind this a process may stand still.
        assert_eq!(images().len(), if most == 0 { 0 } else { ids.len() });
        ahead.publish().expect("published");
        ids.push(base.id.to_string());
        let left = images();
        match most {
            0 => assert_eq!(left, ids[2..]),
            _ => assert_eq!(left.len(), ids.len()),
        }
    }
}
