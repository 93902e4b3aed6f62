//! Flat images: where they are, and when they go.

use super::evolve::remove;
use super::flat_ahead::assert_image;
use super::support::*;
use crate::store::{Disk, Files, Store};
use std::path::Path;

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
