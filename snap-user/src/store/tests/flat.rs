//! Flat images: where they are, and when they go.

use super::evolve::remove;
use super::flat_ahead::assert_image;
use super::support::*;
use crate::model::SnapshotId;
use crate::store::{Disk, Files, Store};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

#[test]
fn a_flat_image_goes_with_its_snapshot() {
    let (_dir, store) = new_disk_store();
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
fn a_store_in_memory_keeps_its_room_for_snapshots() {
    let memory = Path::new("/dev/shm");
    // Not in every container.
    if !Disk.is_in_memory(memory) {
        return crate::skip::skip(
            "/dev/shm in memory",
            "mount -t tmpfs tmpfs /dev/shm, or start the container with one",
        );
    }
    let folder = tempfile::tempdir_in(memory).expect("a temporary folder");
    let store = Store::open_or_create(&folder.path().join("store")).expect("a store");
    let mut session = store.create_session(&info(7)).expect("a session");
    let done = publish(&mut session, None, [], [(3, 7), (9, 8)]).expect("published");
    let flat = store.flat(&store.snapshot(done.id).expect("just published"));
    let starts: Vec<u64> = flat
        .expect("an image")
        .pieces
        .iter()
        .map(|piece| piece.range.start / 4096)
        .collect();
    assert_eq!(starts, [3, 9]);
    assert!(!store.dir().join("flat").exists());
    // Nor is one that follows snapshots in its way.
    let ahead = store.flat_ahead(&store.snapshot(done.id).expect("just published"));
    let mut ahead = ahead.expect("an image");
    let next = publish(&mut session, Some(done.id), [3], [(9, 1), (11, 2)]).expect("published");
    let followed = ahead.follow(&store.snapshot(next.id).expect("just published"));
    followed.expect("it follows");
    assert!(!store.dir().join("flat").exists());
    let image = ahead.publish().expect("an image");
    assert_image(&image, &Memory::from([(9, 1), (11, 2)]));
    assert!(!store.dir().join("flat").exists());
}

/// Two snapshots with flat images, and where these are.
fn two_images(store: &Store) -> Vec<(SnapshotId, Memory, PathBuf)> {
    let mut session = store.create_session(&info(7)).expect("a session");
    let mut made = Vec::new();
    for memory in [
        Memory::from([(3, 7), (9, 8)]),
        Memory::from([(3, 0), (4, 12), (70, 9)]),
    ] {
        let done = publish(&mut session, None, [], memory.clone()).expect("published");
        let flat = store.flat(&store.snapshot(done.id).expect("just published"));
        assert_image(&flat.expect("an image"), &memory);
        let path = store.dir().join("flat").join(done.id.to_string());
        made.push((done.id, memory, path));
    }
    made
}

fn flip(path: &Path, at: u64) {
    let file = File::options().read(true).write(true).open(path);
    let file = file.expect("the image");
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).expect("a byte");
    file.write_all_at(&[byte[0] ^ 4], at).expect("written");
}

#[test]
fn a_bit_flipped_in_a_flat_image_is_found_and_the_image_made_anew() {
    let (_dir, store) = new_disk_store();
    let made = two_images(&store);
    let notes = || {
        let report = store.verify(None).expect("a report");
        assert!(report.is_clean(), "{report:?}");
        report.notes
    };
    assert_eq!(notes(), [""; 0]);
    let (id, memory, path) = &made[0];
    let len = path.metadata().expect("there").len();
    // In the head, in a page, and in the checksums.
    for at in [30, 4096 + 5, 2 * 4096 + 4095, len - 3] {
        flip(path, at);
        let said = notes();
        assert_eq!(said.len(), 1, "{said:?}");
        let name = format!("the flat image of snapshot {} was removed", id.short());
        assert!(said[0].contains(&name), "{said:?}");
        assert!(!path.exists() && made[1].2.exists());
        // Before a rollback, too, and without anybody having asked.
        let snapshot = store.snapshot(*id).expect("there");
        store.flat(&snapshot).expect("made anew");
        flip(path, at);
        assert_image(&store.checked_flat(&snapshot).expect("an image"), memory);
        assert_eq!(notes(), [""; 0]);
    }
    // A whole one of another snapshot.
    std::fs::copy(&made[1].2, path).expect("copied");
    assert_eq!(notes().len(), 1);
    let gone = path.with_file_name(SnapshotId([9; 16]).to_string());
    std::fs::copy(&made[1].2, &gone).expect("copied");
    assert_eq!(notes().len(), 1);
    assert!(!gone.exists());
}

#[test]
fn flat_images_that_nobody_has_open_are_cleared() {
    let (_dir, store) = new_disk_store();
    let made = two_images(&store);
    let all = store.flat_bytes();
    assert!(all >= 6 * 4096, "{all}");
    let snapshot = store.snapshot(made[0].0).expect("there");
    let in_use = store.flat(&snapshot).expect("an image");
    let freed = store.clear_flat(true);
    assert!(freed > 0 && freed < all);
    assert!(made.iter().all(|(_, _, path)| path.exists()));
    assert_eq!(store.clear_flat(false), freed);
    assert!(made[0].2.exists() && !made[1].2.exists());
    // Also where it has been handed on.
    let copy = in_use.file.try_clone().expect("a copy");
    drop(in_use);
    assert_eq!(store.clear_flat(false), 0);
    drop(copy);
    assert_eq!(store.clear_flat(false), all - freed);
    assert_eq!(store.flat_bytes(), 0);
    // One in the making is not an image yet.
    let ahead = store.flat_ahead(&snapshot).expect("begun");
    assert_eq!(store.clear_flat(false), 0);
    assert_image(&ahead.publish().expect("published"), &made[0].1);
}

#[test]
fn what_transfers_have_left_is_counted_and_goes_when_it_is_old() {
    let (_dir, store) = new_disk_store();
    let folder = store.dir().join("received");
    std::fs::create_dir(&folder).expect("a folder");
    for (name, days) in [("a", 1), ("b", 8)] {
        let path = folder.join(format!("{name}.pages"));
        std::fs::write(&path, vec![0; 1000 * days as usize]).expect("written");
        let then = SystemTime::now() - Duration::from_secs(days * 24 * 3600);
        let file = File::options().write(true).open(&path).expect("opened");
        file.set_modified(then).expect("set");
    }
    assert_eq!(store.received_bytes(), 9000);
    assert_eq!(store.clear_received(true), 8000);
    assert_eq!(store.received_bytes(), 9000);
    assert_eq!(store.clear_received(false), 8000);
    assert_eq!(store.received_bytes(), 1000);
}
