//! Trees of processes on a folder as a bucket: there as a whole or not at all, and gone as one.

use super::bucket_tests::{DAY, Place, damage, message, noise};
use super::*;
use crate::model::{ProcessTree, SharedFile, SnapshotId, TreeMember, Zombie};
use crate::store::tests::support::{Memory, assert_holds, info, new_store, publish};
use crate::store::{Rules, Session, Store};
use std::path::PathBuf;
use std::time::Duration;
use tempfile::TempDir;

/// A tree of processes in a store, and what each holds.
pub(super) struct Tree {
    _dir: TempDir,
    pub(super) store: Store,
    sessions: Vec<Session>,
    pub(super) memories: Vec<Memory>,
    record: ProcessTree,
}

impl Tree {
    pub(super) fn root(&self) -> SnapshotId {
        self.record.members[0].id
    }

    /// Another snapshot of each of its processes, and of the tree; nothing has changed.
    fn again(&mut self) -> SnapshotId {
        for (session, member) in self.sessions.iter_mut().zip(&mut self.record.members) {
            member.id = publish(session, Some(member.id), [], []).unwrap().id;
        }
        self.store.publish_tree(&self.record).unwrap();
        self.root()
    }
}

/// One of processes with these pages: each is a child of the one before it.
fn tree(memories: Vec<Memory>) -> Tree {
    let (dir, store) = new_store();
    tree_in(dir, store, memories)
}

/// The same in this store.
pub(super) fn tree_in(dir: TempDir, store: Store, memories: Vec<Memory>) -> Tree {
    let mut record = ProcessTree {
        time_ns: 77,
        stop_ns: 5_000,
        zombies: vec![Zombie {
            pid: 90,
            own_pid: 90,
            comm: "gone".into(),
            ..Zombie::default()
        }],
        shared: vec![vec![SharedFile { member: 0, file: 3 }]],
        ..ProcessTree::default()
    };
    let mut sessions = Vec::new();
    for (memory, place) in memories.iter().zip(0..) {
        let mut session = store.create_session(&info(10 + place)).unwrap();
        let pages = memory.iter().map(|(number, seed)| (*number, *seed));
        let id = publish(&mut session, None, [], pages).unwrap().id;
        sessions.push(session);
        record.members.push(TreeMember {
            id,
            pid: 10 + place,
            parent: (place > 0).then(|| place as u32 - 1),
            group: 10,
            session: 10,
            stopped: false,
            foreground: None,
        });
    }
    store.publish_tree(&record).unwrap();
    Tree {
        _dir: dir,
        store,
        sessions,
        memories,
        record,
    }
}

/// Three processes: two that have most pages in common, and a small one.
pub(super) fn three() -> Vec<Memory> {
    let mut second = noise(0, 2000);
    second.insert(7, 90_002);
    second.insert(3000, 90_007);
    vec![noise(0, 2000), second, noise(50_000, 3)]
}

fn sample() -> Tree {
    tree(three())
}

fn pull_from(place: &Place, store: &Store, reference: &str) -> Result<Pulled> {
    pull(store.dir(), &place.url(), reference, &mut |_| {})
}

/// All of a tree is in a store, which it was pulled into, and nothing in that is damaged.
fn assert_whole(store: &Store, pulled: &Pulled, tree: &Tree) {
    assert_has(store, pulled, tree);
    assert!(verify(store.dir(), None).unwrap().clean);
}

/// All of a tree is in a store, which it was pulled into.
pub(super) fn assert_has(store: &Store, pulled: &Pulled, tree: &Tree) {
    let back = store.tree(pulled.stored_id).unwrap().expect("a tree");
    for (member, memory) in back.members.iter().zip(&tree.memories) {
        assert_holds(&store.snapshot(member.id).unwrap(), memory);
    }
    let mut want = tree.record.clone();
    for (member, back) in want.members.iter_mut().zip(&back.members) {
        member.id = back.id;
    }
    assert_eq!(back, want);
    assert_eq!(store.resolve("latest", None).unwrap(), pulled.stored_id);
}

fn prune(place: &Place, keep_last: Option<u64>) -> BucketPruning {
    place.prune(keep_last, Duration::ZERO)
}

#[test]
fn a_tree_comes_back_as_a_whole_with_each_page_sent_once() {
    let (place, tree) = (Place::new(), sample());
    let pushed = place.push(&tree.store, tree.root()).unwrap();
    assert_eq!((pushed.id, pushed.processes), (tree.root(), 3));
    // 2000 of the first, of the second what is its own, of the third all.
    assert_eq!((pushed.pages, pushed.new_pages), (4004, 2005));
    assert_eq!(place.objects("snapshots").len(), 1);
    assert_eq!(place.objects("chunks").len() as u64, pushed.chunks);
    let listed = list_bucket(&place.url()).unwrap().entries;
    assert_eq!(listed.len(), 1);
    let entry = &listed[0];
    assert_eq!((entry.tree, entry.processes), (Some(true), Some(3)));
    assert_eq!((entry.pages, entry.sealed), (4004, false));
    assert_eq!(
        (entry.id, entry.pid, entry.stop_ns),
        (tree.root(), Some(10), Some(5_000))
    );
    assert_eq!(u64::from(entry.chunks), pushed.chunks);
    let (_dir, store) = new_store();
    let pulled = pull_from(&place, &store, "latest").unwrap();
    assert_eq!((pulled.processes, pulled.pages), (3, 4004));
    assert_eq!(pulled.chunks, pushed.chunks, "each chunk comes once");
    assert_whole(&store, &pulled, &tree);
    assert_eq!(store.list().unwrap().len(), 3);
    // A second time there is nothing to do, neither here nor where it came from.
    let again = pull_from(&place, &store, &tree.root().to_string()).unwrap();
    assert!(again.was_there && again.stored_id == pulled.stored_id);
    assert_eq!((again.processes, again.pages), (3, 4004));
    let own = pull_from(&place, &tree.store, "latest").unwrap();
    assert!(own.was_there && own.stored_id == tree.root() && own.processes == 3);
    assert_eq!(store.list().unwrap().len(), 3);
}

#[test]
fn of_a_tree_that_was_pushed_before_only_what_is_new_is_sent() {
    let (place, mut tree) = (Place::new(), sample());
    place.push(&tree.store, tree.root()).unwrap();
    let next = tree.again();
    let pushed = place.push(&tree.store, next).unwrap();
    assert_eq!((pushed.new_pages, pushed.sent_chunks), (0, 0));
    assert_eq!(list_bucket(&place.url()).unwrap().entries.len(), 2);
    let (_dir, store) = new_store();
    let pulled = pull_from(&place, &store, "latest").unwrap();
    assert_eq!(pulled.id, next);
    assert_whole(&store, &pulled, &tree);
}

#[test]
fn a_member_is_pushed_by_itself_and_a_tree_of_one_is_a_process() {
    let (place, tree) = (Place::new(), sample());
    let child = tree.record.members[1].id;
    assert_eq!(place.push(&tree.store, child).unwrap().processes, 1);
    // Newer or not: the tree is another thing, also where one of it is there already.
    let pushed = place.push(&tree.store, tree.root()).unwrap();
    assert_eq!(pushed.new_pages, 4, "{pushed:?}");
    let (_dir, store) = new_store();
    let alone = pull_from(&place, &store, &child.to_string()).unwrap();
    assert_holds(&store.snapshot(alone.stored_id).unwrap(), &tree.memories[1]);
    // That one is not pulled twice.
    let whole = pull_from(&place, &store, &tree.root().to_string()).unwrap();
    assert_whole(&store, &whole, &tree);
    assert_eq!(store.list().unwrap().len(), 3);
}

#[test]
fn nothing_of_a_tree_is_there_until_all_is() {
    let (place, tree) = (Place::new(), sample());
    place.push(&tree.store, tree.root()).unwrap();
    // As if it had been killed in front of the end.
    let object = place.objects("snapshots").remove(0);
    let bytes = std::fs::read(&object).unwrap();
    std::fs::remove_file(&object).unwrap();
    assert!(list_bucket(&place.url()).unwrap().entries.is_empty());
    let (_dir, store) = new_store();
    let error = message(pull_from(&place, &store, "latest"));
    assert!(error.contains("not found"), "{error}");
    assert!(store.list().unwrap().is_empty());
    // Its chunks are taken up again.
    let again = place.push(&tree.store, tree.root()).unwrap();
    assert_eq!((again.sent_chunks, again.new_pages), (0, 2005));
    assert_eq!(std::fs::read(&object).unwrap(), bytes);
}

#[test]
fn a_damaged_tree_is_named_and_nothing_of_it_is_in_the_store() {
    let (place, tree) = (Place::new(), sample());
    place.push(&tree.store, tree.root()).unwrap();
    let object = place.objects("snapshots").remove(0);
    let whole = std::fs::read(&object).unwrap();
    let (_dir, store) = new_store();
    let record = 256 + 3 * 32;
    for (at, says) in [
        (20, "the checksum of its header"),
        (260, "its table of processes"),
        (record + 30, "its record of processes"),
        (whole.len() / 2, "damaged"),
        (whole.len() - 1, "damaged"),
    ] {
        damage(&object, at);
        let error = pull_from(&place, &store, "latest").unwrap_err();
        assert_eq!(error.trouble(), Trouble::Corrupt, "{error}");
        let text = error.to_string();
        assert!(text.contains(says), "{at}: {text}");
        assert!(text.contains(&tree.root().to_string()), "{text}");
        assert!(store.list().unwrap().is_empty());
        std::fs::write(&object, &whole).unwrap();
    }
    std::fs::write(&object, &whole[..whole.len() - 1]).unwrap();
    assert!(message(pull_from(&place, &store, "latest")).contains("damaged"));
    std::fs::write(&object, &whole).unwrap();
    let pulled = pull_from(&place, &store, "latest").unwrap();
    assert_whole(&store, &pulled, &tree);
}

#[test]
fn a_damaged_tree_keeps_every_chunk() {
    let (place, tree) = (Place::new(), sample());
    place.push(&tree.store, tree.root()).unwrap();
    let object = place.objects("snapshots").remove(0);
    let chunks = place.objects("chunks").len();
    let whole = std::fs::read(&object).unwrap();
    let (front, record) = (256 + 3 * 32, tree_text(&tree).len());
    // In front, and in the table of chunks of the first index.
    for at in [front - 1, front + record + 256 + 3] {
        damage(&object, at);
        let rules = BucketRules {
            keep: Rules::default(),
            grace: Duration::ZERO,
        };
        let error = message(prune_bucket(&place.url(), &rules, false));
        assert!(error.contains("damaged"), "{error}");
        assert_eq!(place.objects("chunks").len(), chunks);
        std::fs::write(&object, &whole).unwrap();
    }
}

fn tree_text(tree: &Tree) -> String {
    crate::store::tree_to_text(&tree.record)
}

#[test]
fn a_prune_takes_a_tree_as_one_and_nothing_that_another_needs() {
    let (place, mut tree) = (Place::new(), sample());
    place.push(&tree.store, tree.root()).unwrap();
    let chunks = place.objects("chunks").len();
    assert_eq!(prune(&place, Some(1)).kept, 1);
    assert_eq!(place.objects("chunks").len(), chunks);
    let next = tree.again();
    place.push(&tree.store, next).unwrap();
    let done = prune(&place, Some(1));
    assert_eq!((done.removed.len(), done.kept), (1, 1));
    assert_ne!(done.removed[0].id, next);
    assert_eq!((done.deleted_chunks, done.kept_chunks), (0, chunks as u64));
    let (_dir, store) = new_store();
    let pulled = pull_from(&place, &store, "latest").unwrap();
    assert_whole(&store, &pulled, &tree);
    // With it, all of it goes.
    let done = prune(&place, Some(0));
    assert_eq!((done.removed.len(), done.kept), (1, 0));
    assert_eq!(done.deleted_chunks, chunks as u64);
    assert!(place.objects("chunks").is_empty());
    assert!(list_bucket(&place.url()).unwrap().entries.is_empty());
}

#[test]
fn what_a_tree_refers_to_is_not_doomed_and_what_is_doomed_it_does_not_refer_to() {
    let (place, tree) = (Place::new(), sample());
    place.push(&tree.store, tree.root()).unwrap();
    place.two_days_pass();
    assert_eq!(place.prune(None, DAY).waiting_chunks, 0);
    std::fs::remove_file(place.objects("snapshots").remove(0)).unwrap();
    let doomed: Vec<PathBuf> = place.objects("chunks");
    assert_eq!(place.prune(None, DAY).waiting_chunks, doomed.len() as u64);
    let again = place.push(&tree.store, tree.root()).unwrap();
    assert_eq!(again.sent_chunks, again.chunks);
    place.two_days_pass();
    let done = place.prune(None, DAY);
    assert_eq!(done.deleted_chunks, doomed.len() as u64);
    let (_dir, store) = new_store();
    let pulled = pull_from(&place, &store, "latest").unwrap();
    assert_whole(&store, &pulled, &tree);
}

#[test]
fn where_the_tree_cannot_be_published_none_of_its_processes_is_left() {
    let (place, tree) = (Place::new(), sample());
    place.push(&tree.store, tree.root()).unwrap();
    let (_dir, store) = new_store();
    let in_the_way = store.dir().join("trees");
    std::fs::write(&in_the_way, "no folder").unwrap();
    pull_from(&place, &store, "latest").unwrap_err();
    assert!(store.list().unwrap().is_empty());
    assert!(store.sessions().unwrap().is_empty());
    std::fs::remove_file(&in_the_way).unwrap();
    let pulled = pull_from(&place, &store, "latest").unwrap();
    // What had come is still here, but for what waited in memory.
    assert_whole(&store, &pulled, &tree);
}

#[test]
fn a_process_that_came_without_its_tree_is_taken_up_by_the_next_pull() {
    let (place, tree) = (Place::new(), sample());
    place.push(&tree.store, tree.root()).unwrap();
    let (_dir, store) = new_store();
    let first = pull_from(&place, &store, "latest").unwrap();
    let root = store.snapshot(first.stored_id).unwrap().header().session;
    // As if it had been killed in front of the tree, and the others had gone since.
    std::fs::remove_dir_all(store.dir().join("trees")).unwrap();
    for (session, _) in store.sessions().unwrap() {
        if session != root {
            let pruner = store.pruner(session).unwrap();
            let all = pruner.snapshots().unwrap().iter().map(|m| m.seq).collect();
            let plan = pruner.plan_removal(&all).unwrap();
            pruner.carry_out(&plan).unwrap();
        }
    }
    assert_eq!(store.list().unwrap().len(), 1);
    let again = pull_from(&place, &store, "latest").unwrap();
    assert!(!again.was_there && again.stored_id == first.stored_id);
    assert_whole(&store, &again, &tree);
    assert_eq!(store.list().unwrap().len(), 3);
}
