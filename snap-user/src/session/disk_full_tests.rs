//! Pulls into a store, pushes to a folder, and keys, on a disk that is full at each step of theirs.

use super::*;
use crate::model::{ProcessTree, SnapshotId, TreeMember};
use crate::small_disk::{SmallDisk, each_shortage};
use crate::store::Store;
use crate::store::tests::support::{
    Memory, assert_holds, below, info, is_unnamed, new_store, publish,
};
use crate::wire::{KeyPair, Keys};
use tempfile::TempDir;

/// Pages of process n: none is like another's.
fn memory(n: u64) -> Memory {
    (1..10)
        .map(|page| (page, (n * 100 + page) as u32 * 5 + 2))
        .collect()
}

/// A store with a tree of two processes, root first.
fn stored() -> (TempDir, Store, ProcessTree) {
    let (dir, store) = new_store();
    let mut tree = ProcessTree::default();
    for n in 0..2 {
        let mut session = store.create_session(&info(10 + n)).unwrap();
        let done = publish(&mut session, None, [], memory(n as u64)).unwrap();
        tree.members.push(TreeMember {
            id: done.id,
            pid: 10 + n,
            parent: (n > 0).then_some(0),
            group: 10,
            session: 10,
            stopped: false,
            foreground: None,
        });
    }
    store.publish_tree(&tree).unwrap();
    (dir, store, tree)
}

/// One of a store's own, which stays whatever happens.
fn add_own(store: &Store) -> SnapshotId {
    let mut session = store.create_session(&info(99)).unwrap();
    publish(&mut session, None, [], memory(9)).unwrap().id
}

fn assert_says(error: &impl ToString, words: &[&str]) {
    let text = error.to_string();
    for words in words {
        assert!(text.contains(words), "{words:?} in {text}");
    }
}

#[test]
fn a_tree_that_there_is_no_room_for_is_not_pulled_in_part_and_the_next_pull_succeeds() {
    if SmallDisk::new().is_none() {
        return;
    }
    let (_dir, from, tree) = stored();
    let place = tempfile::tempdir().unwrap();
    let url = format!("file://{}", place.path().display());
    let root = tree.members[0].id.to_string();
    push(from.dir(), &root, &url, &mut |_| {}).unwrap();
    let failures = each_shortage(|room| {
        let disk = SmallDisk::new().unwrap();
        let dir = disk.path().join("store");
        let store = Store::open_or_create(&dir).unwrap();
        let own = add_own(&store);
        let pull = || pull(&dir, &url, &root, &mut |_| {});
        disk.leave(room);
        let done = pull();
        disk.leave_all();
        let succeeded = done.is_ok();
        if let Err(error) = done {
            assert_says(
                &error,
                &[
                    &dir.display().to_string(),
                    "No space left",
                    "free some space",
                ],
            );
            assert_eq!(store.list().unwrap().len(), 1, "half a tree: {error}");
            assert_eq!(store.sessions().unwrap().len(), 1, "{error}");
            assert_eq!(store.tree_roots().unwrap(), []);
            assert!(verify(&dir, None).unwrap().clean, "{error}");
            assert!(
                !below(&dir).iter().any(|path| is_unnamed(path)),
                "{error}: {:?}",
                below(&dir)
            );
            pull().unwrap();
        }
        let verified = verify(&dir, None).unwrap();
        assert!(verified.clean && verified.snapshots == 3, "{verified:?}");
        assert_holds(&store.snapshot(own).unwrap(), &memory(9));
        let root = store.tree_roots().unwrap()[0];
        let members = store.tree(root).unwrap().unwrap().members;
        for (member, n) in members.iter().zip(0..) {
            assert_holds(&store.snapshot(member.id).unwrap(), &memory(n));
        }
        let left = below(&dir.join("received"));
        assert!(left.is_empty(), "{left:?}");
        succeeded
    });
    assert!(failures > 30, "{failures}");
}

#[test]
fn a_push_to_a_full_disk_leaves_what_was_pushed_before_and_the_next_one_succeeds() {
    if SmallDisk::new().is_none() {
        return;
    }
    let (_dir, from, tree) = stored();
    let own = add_own(&from);
    let root = tree.members[0].id;
    let failures = each_shortage(|room| {
        let disk = SmallDisk::new().unwrap();
        let url = format!("file://{}/bucket", disk.path().display());
        let push = |id: SnapshotId| push(from.dir(), &id.to_string(), &url, &mut |_| {});
        let pulled = |id: SnapshotId, memory: &Memory| {
            let (_dir, store) = new_store();
            let done = pull(store.dir(), &url, &id.to_string(), &mut |_| {}).unwrap();
            assert_holds(&store.snapshot(done.stored_id).unwrap(), memory);
            assert!(verify(store.dir(), None).unwrap().clean);
        };
        push(own).unwrap();
        disk.leave(room);
        let done = push(root);
        let succeeded = done.is_ok();
        if let Err(error) = done {
            assert_says(&error, &[&url, "No space left"]);
            // Also while the disk is full.
            pulled(own, &memory(9));
            // Or all of it: what comes behind its publication can fail as well.
            if list_bucket(&url).unwrap().entries.len() > 1 {
                pulled(root, &memory(0));
            }
            disk.leave_all();
            push(root).unwrap();
        }
        disk.leave_all();
        pulled(own, &memory(9));
        pulled(root, &memory(0));
        succeeded
    });
    assert!(failures > 10, "{failures}");
}

#[test]
fn keys_on_a_full_disk_stay_what_they_are_and_the_next_try_succeeds() {
    if SmallDisk::new().is_none() {
        return;
    }
    let others = [1, 2].map(|_| KeyPair::generate().unwrap().public);
    type Verb = fn(&Keys, &[crate::wire::PublicKey; 2]) -> crate::wire::Result<()>;
    let verbs: [(&str, Verb); 3] = [
        ("key", |keys, _| keys.pair().map(drop)),
        ("trusted", |keys, others| {
            keys.trust(others[1], Some("two")).map(drop)
        }),
        ("trusted", |keys, _| keys.forget("one").map(drop)),
    ];
    for (at, (file, verb)) in verbs.into_iter().enumerate() {
        // Where nothing is there yet, too.
        for is_first in [true, false] {
            if at == 2 && is_first {
                continue;
            }
            let failures = each_shortage(|room| {
                let disk = SmallDisk::new().unwrap();
                std::fs::write(disk.path().join("something"), "else").unwrap();
                let dir = disk.path().join("config");
                let keys = Keys::new(dir.clone());
                if !is_first {
                    keys.trust(others[0], Some("one")).unwrap();
                }
                let before = keys.trusted().unwrap();
                disk.leave(room);
                let done = verb(&keys, &others);
                disk.leave_all();
                let succeeded = done.is_ok();
                if let Err(error) = done {
                    let path = dir.join(file).display().to_string();
                    assert_says(&error, &[&path, "No space left", "free some space"]);
                    assert_eq!(keys.trusted().unwrap(), before);
                    assert!(!keys.has_pair().unwrap());
                    let left = if dir.exists() {
                        below(&dir)
                    } else {
                        Vec::new()
                    };
                    assert!(!left.iter().any(|path| is_unnamed(path)), "{left:?}");
                    verb(&keys, &others).unwrap();
                }
                match at {
                    0 => assert!(keys.has_pair().unwrap()),
                    1 => assert_eq!(keys.trusted().unwrap().len(), before.len() + 1),
                    _ => assert_eq!(keys.trusted().unwrap(), []),
                }
                succeeded
            });
            // Where nothing is left, there is nothing but the file to be made.
            let least = if at == 2 { 1 } else { 2 };
            assert!(failures >= least, "{file}: {failures}");
        }
    }
}
