//! Trees: whole or not there, and kept together.

use super::support::*;
use crate::model::{ProcessTree, SnapshotId, TreeMember};
use crate::store::{Rules, Session, Store, StoreError};

/// Two processes with three snapshots each, of which the first and the second were taken as trees.
fn sample(store: &Store) -> ([Session; 2], [[SnapshotId; 3]; 2]) {
    let mut sessions = [10, 11].map(|pid| store.create_session(&info(pid)).expect("a session"));
    let mut ids = [[SnapshotId([0; 16]); 3]; 2];
    for n in 0..3 {
        for (session, ids) in sessions.iter_mut().zip(&mut ids) {
            let parent = (n > 0).then(|| ids[n - 1]);
            let pages = [(n as u64, n as u32 + 3)];
            ids[n] = publish(session, parent, [], pages).expect("a snapshot").id;
        }
        if n < 2 {
            store
                .publish_tree(&tree(ids[0][n], ids[1][n]))
                .expect("a tree");
        }
    }
    (sessions, ids)
}

pub(super) fn tree(root: SnapshotId, child: SnapshotId) -> ProcessTree {
    let member = |id, pid, parent| TreeMember {
        id,
        pid,
        parent,
        group: 10,
        session: 10,
        stopped: false,
        foreground: None,
    };
    ProcessTree {
        members: vec![member(root, 10, None), member(child, 11, Some(0))],
        ..ProcessTree::default()
    }
}

fn last() -> Rules {
    Rules {
        keep_last: Some(1),
        ..Rules::default()
    }
}

fn prune(session: &Session) -> usize {
    let pruner = session.pruner();
    let plan = pruner.plan(&last()).expect("a plan");
    pruner.carry_out(&plan).expect("carried out");
    plan.removed.len()
}

#[test]
fn a_member_stays_as_long_as_its_root() {
    let (_dir, store) = new_store();
    let (sessions, ids) = sample(&store);
    assert_eq!(
        store.tree(ids[0][0]).expect("readable"),
        Some(tree(ids[0][0], ids[1][0]))
    );
    assert_eq!(store.tree(ids[1][0]).expect("readable"), None);
    // The root of the first tree has a name: it stays, and what belongs to it.
    store.set_tag("good", ids[0][0], false).expect("a tag");
    assert_eq!(prune(&sessions[1]), 0);
    assert_eq!(prune(&sessions[0]), 1);
    assert_eq!(prune(&sessions[1]), 1);
    assert_eq!(store.tree_roots().expect("readable"), [ids[0][0]]);
    for id in [ids[0][0], ids[1][0]] {
        assert_holds(&store.snapshot(id).expect("there"), &[(0, 3)].into());
    }
    store.delete_tag("good").expect("deleted");
    assert_eq!((prune(&sessions[0]), prune(&sessions[1])), (1, 1));
    assert!(store.tree_roots().expect("readable").is_empty());
}

#[test]
fn the_newest_tree_is_that_of_the_newest_root_whatever_the_clock_says() {
    let (_dir, store) = new_store();
    let (_sessions, ids) = sample(&store);
    let later = ProcessTree {
        time_ns: 9,
        ..tree(ids[0][0], ids[1][0])
    };
    // The first was published again with a later time than the second.
    store.publish_tree(&later).expect("published");
    assert_eq!(store.latest_tree(10).expect("readable"), Some(ids[0][1]));
    assert_eq!(store.latest_tree(11).expect("readable"), None);
}

/// Two processes with a snapshot each.
fn two_alone(store: &Store) -> ([Session; 2], [SnapshotId; 2]) {
    let mut sessions = [10, 11].map(|pid| store.create_session(&info(pid)).expect("a session"));
    let mut seed = 6;
    let ids = sessions.each_mut().map(|session| {
        seed += 1;
        let done = publish(session, None, [], [(1, seed)]);
        done.expect("a snapshot").id
    });
    (sessions, ids)
}

#[test]
fn what_came_into_a_tree_after_the_plan_is_not_removed() {
    let (_dir, store) = new_store();
    let (mut sessions, [root, child]) = two_alone(&store);
    publish(&mut sessions[1], Some(child), [], [(2, 9)]).expect("a snapshot");
    let pruner = sessions[1].pruner();
    let plan = pruner.plan(&last()).expect("a plan");
    assert_eq!(plan.removed.len(), 1);
    store.publish_tree(&tree(root, child)).expect("a tree");
    assert!(matches!(
        pruner.carry_out(&plan),
        Err(StoreError::NotRemoved { .. })
    ));
    assert_holds(&store.snapshot(child).expect("there"), &[(1, 8)].into());
}

#[test]
fn a_tree_without_one_of_its_members_is_not_published() {
    let (_dir, store) = new_store();
    let mut session = store.create_session(&info(10)).expect("a session");
    let root = publish(&mut session, None, [], [(1, 7)])
        .expect("a snapshot")
        .id;
    let missing = SnapshotId([9; 16]);
    assert!(matches!(
        store.publish_tree(&tree(root, missing)),
        Err(StoreError::NotFound { .. })
    ));
    assert_eq!(store.tree(root).expect("readable"), None);
}

#[test]
fn a_damaged_record_is_found_and_removes_nothing() {
    let (_dir, store) = new_store();
    let (sessions, ids) = sample(&store);
    assert!(store.verify(None).expect("a report").is_clean());
    let path = store.dir().join("trees").join(ids[0][1].to_string());
    let text = std::fs::read_to_string(&path).expect("a record");
    std::fs::write(&path, text.replace("11", "12")).expect("written");
    let report = store.verify(None).expect("a report");
    assert_eq!(report.problems.len(), 1, "{report:?}");
    assert_eq!(report.problems[0].id, Some(ids[0][1]));
    // What it protects is not known.
    assert!(sessions[1].pruner().plan(&last()).is_err());
    assert!(store.resolve("latest", None).is_ok());
}

#[test]
fn latest_names_the_root_of_a_tree() {
    let (_dir, store) = new_store();
    let (_sessions, [root, child]) = two_alone(&store);
    assert_eq!(store.resolve("latest", None).expect("there"), child);
    store.publish_tree(&tree(root, child)).expect("a tree");
    assert_eq!(store.resolve("latest", None).expect("there"), root);
    assert_eq!(store.resolve("latest", Some(11)).expect("there"), child);
}

#[test]
fn a_record_stays_while_its_root_is_hidden_or_its_session_cannot_be_read() {
    let (_dir, store) = new_store();
    let ([root_session, mut other], [root, child]) = two_alone(&store);
    store.publish_tree(&tree(root, child)).expect("a tree");
    let mut parent = child;
    let mut prune_one = || {
        // Nothing that is of the tree: what a removal sweeps besides is what matters.
        for _ in 0..2 {
            let done = publish(&mut other, Some(parent), [], [(2, 9)]);
            parent = done.expect("a snapshot").id;
        }
        prune(&other)
    };
    // Taken under another boot, and nobody has looked since: its writer is there.
    let marker = root_session.dir.join("volatile");
    std::fs::write(&marker, "another boot\n0\n").expect("written");
    assert!(store.snapshot(root).is_err(), "hidden");
    assert_eq!(prune_one(), 1);
    assert!(store.tree(root).expect("readable").is_some());
    std::fs::remove_file(&marker).expect("removed");
    // A pack that is being replaced whenever it is looked for.
    let pack = root_session.dir.join("00000001.kpack");
    std::os::unix::fs::symlink("nowhere", &pack).expect("a link");
    store.sweep_trees();
    assert!(store.tree(root).expect("readable").is_some());
    std::fs::remove_file(&pack).expect("removed");
    assert_eq!(prune_one(), 2);
    assert!(store.tree(root).expect("readable").is_some());
}

#[test]
fn records_are_copied_when_all_of_their_members_are_there() {
    let (_memory, memory) = new_store();
    let (_disk, disk) = new_store();
    let (sessions, ids) = sample(&memory);
    let flush = |at: usize| {
        let done = memory.flush_session(sessions[at].id(), &disk, &mut |_| {});
        done.expect("flushed");
        memory.copy_trees(&disk)
    };
    assert_eq!(flush(0), [""; 0]);
    assert!(disk.tree_roots().expect("readable").is_empty());
    assert_eq!(flush(1), [""; 0]);
    for (root, child) in ids[0].into_iter().zip(ids[1]).take(2) {
        let copied = disk.tree(root).expect("readable");
        assert_eq!(copied, Some(tree(root, child)));
    }
    assert!(disk.verify(None).expect("a report").is_clean());
    // One that is damaged is said, and the other is copied.
    let path = |store: &Store, n: usize| store.tree_path(ids[0][n]);
    for n in 0..2 {
        std::fs::remove_file(path(&disk, n)).expect("removed");
    }
    std::fs::write(path(&memory, 0), "").expect("written");
    let notes = memory.copy_trees(&disk);
    assert!(
        matches!(&notes[..], [one] if one.contains("not all copied")),
        "{notes:?}"
    );
    assert!(disk.tree(ids[0][1]).expect("readable").is_some());
}
