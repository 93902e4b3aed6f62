//! Sealed sessions in what stores do with sessions: durability, flushes, removal, trees.

use super::evolve::remove;
use super::files::TestFiles;
use super::seal::*;
use super::support::*;
use crate::model::TreeMember;
use crate::store::{Disk, Durability, Keys, Store};
use std::fs;
use std::sync::Arc;

#[test]
fn snapshots_that_are_not_synced_are_sealed_and_whole() {
    for mode in [Durability::None, Durability::Interval] {
        let (sample, mut session) = sample();
        session.set_durability(mode);
        let mut memory = sample.memories[2].clone();
        memory.insert(9, 1002);
        let parent = Some(sample.ids[2]);
        let id = publish(&mut session, parent, [], [(9, 1002)])
            .expect("a delta")
            .id;
        let reader = sample.owner.open(&sample.dir);
        assert_holds(&reader.snapshot(id).expect("there"), &memory);
        drop(session);
        assert!(having(&sample.dir, COMM.as_bytes()).is_empty());
        assert!(having(&sample.dir, &page(1002)[..32]).is_empty());
        sample.assert_whole(&sample.owner.open(&sample.dir));
    }
}

#[test]
fn a_power_failure_leaves_whole_sealed_snapshots() {
    for names_first in [false, true] {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let dir = folder.path().join("store");
        let (owner, files) = (Owner::new(), TestFiles::default());
        let open =
            |keys| Store::open_or_create_with_keys(files.shared(), keys, &dir).expect("a store");
        let mut session = open(owner.keys())
            .create_session(&info(7))
            .expect("a session");
        let (ids, memories) = take(&mut session, 2);
        session.set_durability(Durability::None);
        publish(&mut session, Some(ids[1]), [], [(9, 1002)]).expect("a delta");
        session.forget();
        match names_first {
            true => files.power_cut_keeping_names(),
            false => files.power_cut(),
        }
        // Without the key nothing is judged, and so nothing is removed.
        let there = || {
            let mut all = files_below(&dir);
            all.retain(|path| path.extension().is_some_and(|end| end == "ksnap"));
            all.len()
        };
        let before = there();
        let stranger = Keys::new(Default::default(), Default::default());
        assert_eq!(open(stranger).list().expect("a listing"), []);
        assert_eq!(there(), before);
        let store = open(owner.keys());
        assert_eq!(store.list().expect("a listing").len(), 2);
        for (id, memory) in ids.iter().zip(&memories) {
            assert_holds(&store.snapshot(*id).expect("there"), memory);
        }
        let report = store.verify(None).expect("listable");
        assert!(report.is_clean(), "{report:?}");
    }
}

#[test]
fn a_flush_keeps_it_sealed_for_the_same_keys() {
    let (sample, mut session) = sample();
    let target = tempfile::tempdir().expect("a temporary folder");
    let dir = target.path().join("store");
    // Whoever flushes can read, and seals for nobody by themselves.
    let flush = || {
        let from = sample.open_as(sample.owner.reading());
        let to = Store::open_or_create_with_keys(Arc::new(Disk), sample.owner.reading(), &dir);
        let to = to.expect("a store");
        from.flush_session(session.id(), &to, &mut |_| {})
    };
    assert_eq!(flush().expect("flushed").snapshots, 3);
    assert!(having(&dir, COMM.as_bytes()).is_empty());
    assert!(having(&dir, &page(1002)[..32]).is_empty());
    sample.assert_whole(&sample.owner.open(&dir));
    // What was removed from it since, and what came.
    remove(&session.pruner(), [1, 2]).expect("removed");
    let last = publish(&mut session, Some(sample.ids[2]), [], [(1, 1002)]);
    let last = last.expect("a delta").id;
    let from = sample.owner.open(&sample.dir);
    let to = sample.owner.open(&dir);
    let done = from.flush_session(session.id(), &to, &mut |_| {});
    assert_eq!(done.expect("flushed").snapshots, 1);
    sample.assert_whole(&sample.owner.open(&dir));
    assert!(sample.owner.open(&dir).snapshot(last).is_ok());
    // And not at all by someone who cannot read it.
    let from = sample.open_as(Owner::new().reading());
    let refused = from.flush_session(session.id(), &to, &mut |_| {});
    assert!(refused.expect_err("sealed").is_sealed());
}

#[test]
fn pages_that_pruning_merges_are_sealed_and_come_back() {
    let (sample, mut session) = sample();
    remove(&session.pruner(), [1, 2]).expect("removed");
    assert!(having(&sample.dir, &page(1002)[..32]).is_empty());
    let id = session.id();
    let last = sample.ids[2];
    assert_holds(
        &sample
            .owner
            .open(&sample.dir)
            .snapshot(last)
            .expect("there"),
        &sample.memories[2],
    );
    publish(&mut session, Some(last), [], [(3, 1002)]).expect("a delta");
    drop(session);
    let store = sample.owner.open(&sample.dir);
    let report = store.verify(None).expect("listable");
    assert!(report.is_clean(), "{report:?}");
    let session = store.open_session(id).expect("free");
    assert_eq!(session.next_seq, 5);
}

#[test]
fn a_tree_is_sealed_with_its_root_and_protects_its_members_without_the_key() {
    let (sample, session) = sample();
    let mut child = session.store().create_session(&info(8)).expect("a session");
    let member = publish(&mut child, None, [], [(1, 1)]).expect("a base").id;
    let mut tree = tree(sample.ids[0]);
    tree.members.push(TreeMember {
        id: member,
        parent: Some(0),
        ..tree.members[0].clone()
    });
    session.store().publish_tree(&tree).expect("a tree");
    let owner = sample.owner.open(&sample.dir);
    assert_eq!(
        owner.tree(sample.ids[0]).expect("readable"),
        Some(tree.clone())
    );
    assert!(having(&sample.dir, COMM.as_bytes()).is_empty());
    let stranger = sample.open_as(Owner::new().reading());
    assert!(
        stranger
            .tree(sample.ids[0])
            .expect_err("sealed")
            .is_sealed()
    );
    assert!(
        stranger
            .in_trees()
            .expect("known without it")
            .contains(&member)
    );
    // Into another store it goes as it is.
    let (_target, to) = sample.owner.new_store();
    for id in [session.id(), child.id()] {
        owner.flush_session(id, &to, &mut |_| {}).expect("flushed");
    }
    assert_eq!(owner.copy_trees(&to), [""; 0]);
    assert_eq!(to.tree(sample.ids[0]).expect("readable"), Some(tree));
    assert!(having(to.dir(), COMM.as_bytes()).is_empty());
    // Under another name it is none.
    let record = sample.dir.join("trees");
    let (path, other) = (
        record.join(sample.ids[0].to_string()),
        record.join(sample.ids[1].to_string()),
    );
    fs::copy(&path, other).expect("copied");
    assert!(owner.tree(sample.ids[1]).is_err());
    // Any change of the record is an error.
    let whole = fs::read(&path).expect("readable");
    for at in 0..whole.len() {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        fs::write(&path, &bytes).expect("writable");
        assert!(owner.tree(sample.ids[0]).is_err(), "byte {at}");
    }
}
