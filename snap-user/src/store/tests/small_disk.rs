//! Flat images and the pages of transfers on a disk that is full, at each step of theirs.

use super::files::TestFiles;
use super::flat_ahead::assert_image;
use super::support::*;
use crate::codec::{Scratch, encode};
use crate::model::{PAGE_SIZE, SnapshotId};
use crate::small_disk::{SmallDisk, each_shortage};
use crate::store::{FlatAhead, Store, StoreError};
use std::path::Path;

fn memory() -> Memory {
    (0..12).map(|n| (n * 3, n as u32 * 5 + 2)).collect()
}

/// A store as if it were on a disk, with a snapshot.
fn stored(disk: &SmallDisk) -> (Store, SnapshotId) {
    let dir = disk.path().join("store");
    let store = Store::open_or_create_with(TestFiles::default().shared(), &dir);
    let store = store.expect("a store");
    let mut session = store.create_session(&info(7)).expect("a session");
    let done = publish(&mut session, None, [], memory()).expect("published");
    (store, done.id)
}

/// Names in a folder of the store, none where it is not there.
fn names(store: &Store, folder: &str) -> Vec<String> {
    let entries = std::fs::read_dir(store.dir().join(folder));
    let entries = entries.into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.collect()
}

fn assert_whole(store: &Store, id: SnapshotId) {
    let report = store.verify(None).expect("the store can be listed");
    assert!(report.is_clean() && report.notes.is_empty(), "{report:?}");
    assert_holds(&store.snapshot(id).expect("there"), &memory());
}

#[test]
fn a_flat_image_that_there_is_no_room_for_is_made_in_memory_and_one_ahead_not_at_all() {
    for ahead in [false, true] {
        let Some(disk) = SmallDisk::new() else { return };
        let (store, id) = stored(&disk);
        let made = |store: &Store| {
            let snapshot = store.snapshot(id).expect("there");
            match ahead {
                false => assert_image(&store.flat(&snapshot).expect("an image"), &memory()),
                // Whoever has none makes one at once, which is the other case.
                true => match store.flat_ahead(&snapshot).and_then(FlatAhead::publish) {
                    Ok(image) => assert_image(&image, &memory()),
                    Err(error) => assert_full(&error, &store.dir().join("flat")),
                },
            }
            let names = names(store, "flat");
            assert!(names.is_empty() || names == [id.to_string()], "{names:?}");
            names.len()
        };
        let failures = each_shortage(|room| {
            disk.leave(room);
            let is_on_disk = made(&store) == 1;
            disk.leave_all();
            assert_whole(&store, id);
            // There, when there is room.
            assert_eq!(made(&store), 1);
            assert_whole(&store, id);
            std::fs::remove_dir_all(store.dir().join("flat")).expect("removed");
            is_on_disk
        });
        // Folder and file; head, pages and checksums.
        assert!(failures >= 2 + 14, "{failures}");
    }
}

/// Receives all pages and reads each back.
fn receive(store: &Store) -> Result<(), StoreError> {
    let mut received = store.receive_pages(b"one")?;
    let mut found = page(0);
    for seed in memory().into_values() {
        let page = page(seed);
        let hash = *blake3::hash(&page).as_bytes();
        let mut bytes = Vec::new();
        let encoding = encode(&page, None, &mut Scratch::default(), &mut bytes);
        assert!(received.add(&hash, encoding, &bytes)?, "its own hash");
        let read = received.read(&hash, &mut found)?;
        assert!(read.is_some() && found == page);
    }
    received.finish();
    Ok(())
}

fn assert_full(error: &StoreError, dir: &Path) {
    let text = error.to_string();
    let shown = dir.display().to_string();
    for words in [shown.as_str(), "No space left", "free some space"] {
        assert!(text.contains(words), "{words:?} in {text}");
    }
}

#[test]
fn pages_that_there_is_no_room_for_are_an_error_and_the_next_attempt_goes_on_with_those_that_came()
{
    let Some(disk) = SmallDisk::new() else { return };
    let (store, id) = stored(&disk);
    let failures = each_shortage(|room| {
        disk.leave(room);
        let done = receive(&store);
        disk.leave_all();
        if let Err(error) = &done {
            assert_full(error, &store.dir().join("received"));
            assert_whole(&store, id);
            let left = store.received_bytes() / PAGE_SIZE;
            let came = store.receive_pages(b"one").expect("room");
            let hashes = memory()
                .into_values()
                .map(|seed| *blake3::hash(&page(seed)).as_bytes());
            let known = hashes.filter(|hash| came.has(hash)).count() as u64;
            assert!(known + 1 >= left, "{known} of {left} pages");
            drop(came);
            receive(&store).expect("room");
        }
        assert_eq!(names(&store, "received"), [""; 0]);
        assert_whole(&store, id);
        std::fs::remove_dir_all(store.dir().join("received")).expect("removed");
        done.is_ok()
    });
    assert!(failures >= 2 + 12, "{failures}");
}
