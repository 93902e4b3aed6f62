//! Sealed trees of processes on a folder as a bucket.

use super::bucket_list::list_with;
use super::bucket_sealed_tests::{Elsewhere, push_as};
use super::bucket_tests::{Place, message, noise, put};
use super::bucket_tree_tests::{assert_has, three, tree_in};
use super::*;
use crate::model::{ProcessTree, TreeMember};
use crate::store::Store;
use crate::store::tests::support::{Owner, assert_holds, new_store};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tempfile::TempDir;

#[test]
fn a_sealed_tree_comes_back_as_a_whole() {
    let (place, owner) = (Place::new(), Owner::new());
    let (dir, store) = owner.new_store();
    let tree = tree_in(dir, store, three());
    let pushed = push_as(owner.reading(), &place, &tree.store, tree.root()).unwrap();
    assert_eq!((pushed.processes, pushed.new_pages), (3, 2005));
    assert_eq!(place.objects("snapshots").len(), 1);
    let there = Elsewhere::new();
    let error = there.pull(&Owner::default().keys(), &place, "latest");
    assert_eq!(error.unwrap_err().trouble(), Trouble::Permission);
    let pulled = there.pull(&owner.reading(), &place, "latest").unwrap();
    assert_eq!((pulled.processes, pulled.chunks), (3, pushed.chunks));
    let store = there.open(&owner);
    assert_has(&store, &pulled, &tree);
    for (session, info) in store.sessions().unwrap() {
        assert!(store.is_sealed(session).unwrap());
        assert_eq!(info.recipients, pulled.sealed_for);
    }
    let again = there.pull(&owner.reading(), &place, "latest").unwrap();
    assert!(again.was_there && again.stored_id == pulled.stored_id);
    let listed = list_with(&owner.reading(), &place.url()).unwrap().entries;
    assert_eq!((listed[0].tree, listed[0].processes), (Some(true), Some(3)));
    let pushed = push_as(owner.reading(), &place, &tree.store, tree.root()).unwrap();
    assert_eq!((pushed.new_pages, pushed.sent_chunks), (0, 0));
    // By itself the first one would take the tree's place.
    let (_alone, copy) = without_tree(&tree.store);
    let error = push_as(owner.reading(), &place, &owner.open(&copy), tree.root());
    assert!(message(error).contains("as a tree"));
    // Under another key it would be taken for another form of it.
    let keys = owner.sealing_for(&Owner::new());
    let error = push_as(keys, &place, &owner.open(&copy), tree.root());
    assert!(message(error).contains("as a tree"));
    let done = place.prune(Some(0), Duration::ZERO);
    assert_eq!(
        (done.removed.len(), done.deleted_chunks),
        (1, pushed.chunks)
    );
}

#[test]
fn a_tree_comes_before_its_first_process_alone_for_who_can_read_both() {
    let (place, owner) = (Place::new(), Owner::new());
    let (dir, store) = new_store();
    let tree = tree_in(dir, store, three());
    let (_alone, copy) = without_tree(&tree.store);
    let copy = Owner::default().open(&copy);
    push_as(owner.keys(), &place, &tree.store, tree.root()).unwrap();
    // Without the key nobody knows that a tree is there.
    push_as(Owner::default().keys(), &place, &copy, tree.root()).unwrap();
    let reference = tree.root().to_string();
    let pull = |keys| Elsewhere::new().pull(&keys, &place, &reference).unwrap();
    assert_eq!(pull(owner.reading()).processes, 3);
    assert_eq!(pull(Owner::default().keys()).processes, 1);
    // A plain one is seen by all.
    let place = Place::new();
    place.push(&tree.store, tree.root()).unwrap();
    let error = push_as(owner.keys(), &place, &copy, tree.root());
    assert!(message(error).contains("as a tree"));
}

#[test]
fn what_a_pull_of_a_tree_left_for_others_is_not_a_part_of_it() {
    let (place, owner, other) = (Place::new(), Owner::new(), Owner::new());
    let (dir, store) = owner.new_store();
    let tree = tree_in(dir, store, three());
    push_as(owner.reading(), &place, &tree.store, tree.root()).unwrap();
    let there = Elsewhere::new();
    let first = there.pull(&owner.reading(), &place, "latest").unwrap();
    // As when it was killed before the tree was there.
    std::fs::remove_dir_all(there.store().join("trees")).unwrap();
    let keys = owner.sealing_for(&other);
    let pulled = there.pull(&keys, &place, "latest").unwrap();
    assert_eq!(pulled.sealed_for, other.keys().recipients().names());
    let store = there.open(&other);
    let back = store.tree(pulled.stored_id).unwrap().expect("a tree");
    for (member, memory) in back.members.iter().zip(&tree.memories) {
        assert_holds(&store.snapshot(member.id).unwrap(), memory);
    }
    // For whom it was, it is taken up.
    let again = there.pull(&owner.reading(), &place, "latest").unwrap();
    assert_eq!((again.stored_id, again.processes), (first.stored_id, 3));
}

/// A copy of a store that has the processes of its trees, and not the trees.
fn without_tree(store: &Store) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let copy = dir.path().join("store");
    copy_all(store.dir(), &copy);
    std::fs::remove_dir_all(copy.join("trees")).unwrap();
    (dir, copy)
}

fn copy_all(from: &Path, to: &Path) {
    std::fs::create_dir(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().flatten() {
        let target = to.join(entry.file_name());
        match entry.path().is_dir() {
            true => copy_all(&entry.path(), &target),
            false => drop(std::fs::copy(entry.path(), target).unwrap()),
        }
    }
}

#[test]
fn of_a_tree_all_processes_are_sealed_for_the_same_keys_or_the_user_says_for_which() {
    let (place, owner) = (Place::new(), Owner::new());
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    // In plain, but for its last process.
    let plain = Owner::default().open_or_create(&path);
    let store = owner.open(&path);
    let ids = [&plain, &store].map(|store| put(store, &[&noise(0, 5)])[0]);
    let members = ids.iter().zip(0..).map(|(id, place)| TreeMember {
        id: *id,
        pid: 10 + place,
        parent: (place > 0).then_some(0),
        group: 10,
        session: 10,
        stopped: false,
        foreground: None,
    });
    let record = ProcessTree {
        members: members.collect(),
        ..ProcessTree::default()
    };
    store.publish_tree(&record).unwrap();
    let error = push_as(owner.reading(), &place, &store, ids[0]);
    assert!(message(error).contains("--encrypt-to"));
    assert!(place.objects("").is_empty());
    let pushed = push_as(owner.keys(), &place, &store, ids[0]).unwrap();
    assert_eq!((pushed.processes, pushed.sealed_for.len()), (2, 1));
}
