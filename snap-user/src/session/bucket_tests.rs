//! Pushes, pulls and prunes on a folder, whose clock is the time of its files: tests set it back.

use super::*;
use crate::model::{PAGE_SIZE, SnapshotId};
use crate::store::tests::support::{Memory, assert_holds, files_below, info, new_store, publish};
use crate::store::{Rules, Store};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tempfile::TempDir;

pub(super) const DAY: Duration = Duration::from_secs(24 * 3600);

/// A folder as a bucket.
pub(super) struct Place {
    pub(super) folder: TempDir,
}

impl Place {
    pub(super) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self { folder }
    }

    pub(super) fn url(&self) -> String {
        format!("file://{}/bucket", self.folder.path().display())
    }

    /// The objects in a folder of it.
    pub(super) fn objects(&self, folder: &str) -> Vec<PathBuf> {
        let folder = self.folder.path().join("bucket").join(folder);
        match folder.exists() {
            true => files_below(&folder),
            false => Vec::new(),
        }
    }

    /// All that is there becomes two days older.
    pub(super) fn two_days_pass(&self) {
        for path in self.objects("") {
            let file = std::fs::File::options().write(true).open(path).unwrap();
            let modified = file.metadata().unwrap().modified().unwrap();
            file.set_modified(modified - 2 * DAY).unwrap();
        }
    }

    pub(super) fn push(&self, store: &Store, id: SnapshotId) -> Result<Pushed> {
        push(store.dir(), &id.to_string(), &self.url(), &mut |_| {})
    }

    /// Pulls into a store of its own, and compares.
    fn assert_gives(&self, id: SnapshotId, memory: &Memory) {
        let (_dir, store) = new_store();
        let done = pull(store.dir(), &self.url(), &id.to_string(), &mut |_| {}).unwrap();
        assert_holds(&store.snapshot(done.stored_id).unwrap(), memory);
        assert!(verify(store.dir(), None).unwrap().clean);
    }

    pub(super) fn prune(&self, keep_last: Option<u64>, grace: Duration) -> BucketPruning {
        let keep = Rules {
            keep_last,
            ..Rules::default()
        };
        prune_bucket(&self.url(), &BucketRules { keep, grace }, false).unwrap()
    }
}

/// Pages 1, 2, … of these seeds.
fn memory(seeds: impl IntoIterator<Item = u32>) -> Memory {
    (1..).zip(seeds).collect()
}

/// A store with a session of one process, with snapshots that hold these, each a delta of the one before.
fn stored(of: &[&Memory]) -> (TempDir, Store, Vec<SnapshotId>) {
    let (dir, store) = new_store();
    let ids = put(&store, of);
    (dir, store, ids)
}

/// Puts such a session into a store.
pub(super) fn put(store: &Store, of: &[&Memory]) -> Vec<SnapshotId> {
    let mut session = store.create_session(&info(7)).unwrap();
    let mut ids: Vec<SnapshotId> = Vec::new();
    for memory in of {
        let pages = memory.iter().map(|(number, seed)| (*number, *seed));
        let done = publish(&mut session, ids.last().copied(), [], pages).unwrap();
        ids.push(done.id);
    }
    ids
}

/// Random pages, of which none is like another.
pub(super) fn noise(from: u32, count: u32) -> Memory {
    memory((from..from + count).map(|n| n * 5 + 2))
}

pub(super) fn message<T: std::fmt::Debug>(result: Result<T>) -> String {
    result.unwrap_err().to_string()
}

#[test]
fn what_is_pulled_is_what_was_pushed_whatever_the_chain_behind_it() {
    let place = Place::new();
    let (first, second) = (memory(0..600), memory((0..600).map(|n| n / 2 + 7)));
    let (_dir, store, ids) = stored(&[&first, &second]);
    let pushed = place.push(&store, ids[1]).unwrap();
    assert_eq!((pushed.id, pushed.pages), (ids[1], 600));
    // Pages of zeroes are one page, so fewer than all are new.
    assert!(pushed.new_pages < 600 && pushed.chunks >= 1);
    place.assert_gives(ids[1], &second);
    // The other one was not pushed.
    let (_dir, other) = new_store();
    let error = pull(other.dir(), &place.url(), &ids[0].to_string(), &mut |_| {});
    assert!(message(error).contains(&ids[0].to_string()));
    assert!(other.list().unwrap().is_empty());
}

#[test]
fn what_killed_pushes_leave_in_a_folder_goes_when_it_is_old() {
    let place = Place::new();
    let (_dir, store, ids) = stored(&[&memory(0..50)]);
    place.push(&store, ids[0]).unwrap();
    let chunk = place.objects("chunks").remove(0);
    let bucket = place.folder.path().join("bucket");
    let left = [
        PathBuf::from(format!("{}#1", chunk.display())),
        bucket.join("clock#12"),
        bucket.join("snapshots").join("name#3"),
    ];
    let other = bucket.join("other").join("notes#1");
    std::fs::create_dir(bucket.join("other")).unwrap();
    let beside = bucket.join("notes#2");
    for path in left.iter().chain([&other, &beside]) {
        std::fs::write(path, "half").unwrap();
    }
    assert_eq!(place.prune(None, DAY).deleted_leftovers, 0);
    assert!(left.iter().all(|path| path.exists()));
    place.two_days_pass();
    let done = place.prune(None, DAY);
    assert_eq!((done.deleted_leftovers, done.deleted_bytes), (3, 12));
    assert!(left.iter().all(|path| !path.exists()));
    // Nothing of ksnap's.
    assert!(other.exists() && beside.exists());
    place.assert_gives(ids[0], &memory(0..50));
}

#[test]
fn a_snapshot_is_pulled_once_and_not_at_all_into_the_store_that_it_came_from() {
    let place = Place::new();
    let (_dir, store, ids) = stored(&[&memory(0..50)]);
    place.push(&store, ids[0]).unwrap();
    let back = pull(store.dir(), &place.url(), "latest", &mut |_| {}).unwrap();
    assert!(back.was_there && back.stored_id == ids[0]);
    let (_dir, other) = new_store();
    let first = pull(other.dir(), &place.url(), "latest", &mut |_| {}).unwrap();
    let again = pull(other.dir(), &place.url(), "latest", &mut |_| {}).unwrap();
    assert!(!first.was_there && again.was_there);
    assert_eq!(first.stored_id, again.stored_id);
    assert_eq!(other.list().unwrap().len(), 1);
    assert_ne!(first.stored_id, ids[0]);
}

#[test]
fn only_what_is_not_there_is_sent() {
    let place = Place::new();
    let first = noise(0, 3000);
    let mut second = first.clone();
    second.insert(5, 90_002);
    second.insert(4000, 90_007);
    let (_dir, store, ids) = stored(&[&first, &second]);
    assert_eq!(place.push(&store, ids[0]).unwrap().new_pages, 3000);
    let next = place.push(&store, ids[1]).unwrap();
    assert_eq!((next.pages, next.new_pages, next.sent_chunks), (3001, 2, 1));
    let again = place.push(&store, ids[1]).unwrap();
    assert_eq!((again.new_pages, again.sent_chunks), (0, 0));
    assert_eq!(list_bucket(&place.url()).unwrap().entries.len(), 2);
    place.assert_gives(ids[0], &first);
    place.assert_gives(ids[1], &second);
}

#[test]
fn chunks_that_a_push_left_without_an_index_are_not_sent_again() {
    let place = Place::new();
    let pages = noise(0, 5000);
    let (_dir, store, ids) = stored(&[&pages]);
    let first = place.push(&store, ids[0]).unwrap();
    assert!(first.sent_chunks > 1, "{first:?}");
    // As if it had been killed in front of the index, and before one chunk.
    std::fs::remove_file(&place.objects("snapshots")[0]).unwrap();
    std::fs::remove_file(&place.objects("chunks")[0]).unwrap();
    let (_dir, other) = new_store();
    assert!(pull(other.dir(), &place.url(), "latest", &mut |_| {}).is_err());
    let again = place.push(&store, ids[0]).unwrap();
    assert_eq!((again.new_pages, again.sent_chunks), (5000, 1));
    place.assert_gives(ids[0], &pages);
}

#[test]
fn chunks_are_deleted_only_when_they_were_doomed_for_the_grace_time() {
    let place = Place::new();
    let (old, new) = (noise(0, 400), noise(1000, 400));
    let (_dir, store, ids) = stored(&[&old, &new]);
    place.push(&store, ids[0]).unwrap();
    place.push(&store, ids[1]).unwrap();
    let young = place.prune(Some(1), DAY);
    assert_eq!((young.removed.len(), young.kept), (1, 1));
    assert_eq!((young.deleted_chunks, young.waiting_chunks), (0, 1));
    assert!(place.objects("doomed").is_empty(), "it is young");
    place.two_days_pass();
    let doomed = place.prune(None, DAY);
    assert_eq!((doomed.deleted_chunks, doomed.waiting_chunks), (0, 1));
    assert_eq!(place.objects("doomed").len(), 1);
    let waits = place.prune(None, DAY);
    assert_eq!((waits.deleted_chunks, waits.waiting_chunks), (0, 1));
    place.two_days_pass();
    let deleted = place.prune(None, DAY);
    assert_eq!((deleted.deleted_chunks, deleted.waiting_chunks), (1, 0));
    assert!(deleted.deleted_bytes > 400 * PAGE_SIZE);
    // The name stays forbidden for as long again: somebody slow may still be deleting it.
    assert_eq!(
        (place.objects("doomed").len(), place.objects("swept").len()),
        (0, 1)
    );
    place.two_days_pass();
    place.prune(None, DAY);
    assert_eq!(place.objects("swept").len(), 0);
    place.assert_gives(ids[1], &new);
}

#[test]
fn a_push_refers_to_nothing_that_is_doomed_and_stores_it_under_another_name() {
    let place = Place::new();
    let pages = noise(0, 400);
    let mut more = pages.clone();
    more.insert(1000, 90_002);
    let (_dir, store, ids) = stored(&[&pages, &more]);
    place.push(&store, ids[0]).unwrap();
    place.two_days_pass();
    place.prune(None, DAY);
    std::fs::remove_file(&place.objects("snapshots")[0]).unwrap();
    place.prune(None, DAY);
    let doomed = place.objects("chunks");
    assert_eq!((doomed.len(), place.objects("doomed").len()), (1, 1));
    // The same pages, in the same order, which would be a chunk of the same name.
    let again = place.push(&store, ids[0]).unwrap();
    assert_eq!((again.new_pages, again.sent_chunks), (400, 1));
    assert_eq!(place.push(&store, ids[1]).unwrap().new_pages, 1);
    place.two_days_pass();
    assert_eq!(place.prune(None, DAY).deleted_chunks, 1);
    assert!(!doomed[0].exists());
    place.assert_gives(ids[0], &pages);
    place.assert_gives(ids[1], &more);
}

#[test]
fn what_a_writer_referred_to_in_the_meantime_is_not_deleted() {
    let place = Place::new();
    let pages = noise(0, 400);
    let (_dir, store, ids) = stored(&[&pages]);
    place.push(&store, ids[0]).unwrap();
    let index = place.objects("snapshots").remove(0);
    let bytes = std::fs::read(&index).unwrap();
    // A writer that has seen the chunk, and has not yet written its index, when the chunk is doomed.
    std::fs::remove_file(&index).unwrap();
    place.two_days_pass();
    assert_eq!(place.prune(None, DAY).waiting_chunks, 1);
    std::fs::write(&index, &bytes).unwrap();
    place.two_days_pass();
    let pruned = place.prune(None, DAY);
    assert_eq!((pruned.deleted_chunks, pruned.kept_chunks), (0, 1));
    place.assert_gives(ids[0], &pages);
}

#[test]
fn without_a_grace_time_all_that_is_not_needed_goes_at_once() {
    let place = Place::new();
    let (old, new) = (noise(0, 400), noise(1000, 400));
    let (_dir, store, ids) = stored(&[&old, &new]);
    place.push(&store, ids[0]).unwrap();
    place.push(&store, ids[1]).unwrap();
    let planned = prune_bucket(
        &place.url(),
        &BucketRules {
            keep: Rules {
                keep_last: Some(1),
                ..Rules::default()
            },
            grace: Duration::ZERO,
        },
        true,
    );
    let done = place.prune(Some(1), Duration::ZERO);
    assert_eq!((done.deleted_chunks, done.waiting_chunks), (1, 0));
    let planned = planned.unwrap();
    assert_eq!(planned.removed, done.removed);
    assert_eq!(planned.deleted_bytes, done.deleted_bytes);
    place.assert_gives(ids[1], &new);
}

#[test]
fn an_index_that_cannot_be_read_keeps_every_chunk() {
    let place = Place::new();
    let (_dir, store, ids) = stored(&[&noise(0, 400), &noise(1000, 400)]);
    place.push(&store, ids[0]).unwrap();
    place.push(&store, ids[1]).unwrap();
    let index = place.objects("snapshots").remove(0);
    // In its table of chunks, which is all of it that is read.
    damage(&index, 270);
    let rules = BucketRules {
        keep: Rules::default(),
        grace: Duration::ZERO,
    };
    let error = message(prune_bucket(&place.url(), &rules, false));
    assert!(error.contains("damaged"), "{error}");
    assert_eq!(place.objects("chunks").len(), 2);
}

pub(super) fn damage(path: &Path, at: usize) {
    let mut bytes = std::fs::read(path).unwrap();
    let at = at.min(bytes.len() - 1);
    bytes[at] ^= 1;
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn damage_leaves_nothing_in_the_store_and_the_next_pull_takes_up_what_came() {
    let place = Place::new();
    let pages = noise(0, 6000);
    let (_dir, store, ids) = stored(&[&pages]);
    place.push(&store, ids[0]).unwrap();
    let chunks = place.objects("chunks");
    assert!(chunks.len() > 1);
    let index = place.objects("snapshots").remove(0);
    let (_dir, other) = new_store();
    let pull = || pull(other.dir(), &place.url(), "latest", &mut |_| {});
    let fails = |path: &Path, with: &[u8], says: &str| {
        let before = std::fs::read(path).unwrap();
        match with.is_empty() {
            true => std::fs::remove_file(path).unwrap(),
            false => std::fs::write(path, with).unwrap(),
        }
        let error = pull().unwrap_err();
        assert_eq!(error.trouble(), Trouble::Corrupt, "{error}");
        assert!(error.to_string().contains(says), "{error}");
        assert!(other.list().unwrap().is_empty(), "{says}");
        std::fs::write(path, before).unwrap();
    };
    for path in [&chunks[0], &index] {
        let bytes = std::fs::read(path).unwrap();
        let mut flipped = bytes.clone();
        let middle = flipped.len() / 2;
        flipped[middle] ^= 0x10;
        fails(path, &flipped, "damaged");
        fails(path, &bytes[..bytes.len() - 1], "damaged");
        fails(path, b"x", "damaged");
    }
    fails(&chunks[0], b"", "which is not there");
    let done = pull().unwrap();
    assert!(done.chunks < chunks.len() as u64, "{done:?}");
    assert_holds(&other.snapshot(done.stored_id).unwrap(), &pages);
}

#[test]
fn a_place_of_a_newer_version_or_of_nobody_is_told_apart() {
    let place = Place::new();
    let (_dir, other) = new_store();
    let pull = || pull(other.dir(), &place.url(), "latest", &mut |_| {});
    assert_eq!(pull().unwrap_err().trouble(), Trouble::NoStore);
    let (_dir, store, ids) = stored(&[&memory(0..5)]);
    place.push(&store, ids[0]).unwrap();
    let marker = place.folder.path().join("bucket/ksnap-bucket");
    std::fs::write(&marker, "ksnap bucket 2\n").unwrap();
    for error in [message(pull()), message(place.push(&store, ids[0]))] {
        assert!(error.contains("newer ksnap"), "{error}");
    }
    std::fs::write(&marker, "something else").unwrap();
    assert_eq!(pull().unwrap_err().trouble(), Trouble::Corrupt);
    std::fs::remove_file(&marker).unwrap();
    assert!(message(pull()).contains("nothing has been pushed"));
}

#[test]
fn two_writers_at_once_leave_two_whole_snapshots() {
    let place = Place::new();
    let (a, b) = (noise(0, 3000), noise(1500, 3000));
    let writers = [&a, &b].map(|memory| stored(&[memory]));
    for _ in 0..3 {
        std::thread::scope(|scope| {
            for (_, store, ids) in &writers {
                scope.spawn(|| place.push(store, ids[0]).unwrap());
            }
        });
        place.assert_gives(writers[0].2[0], &a);
        place.assert_gives(writers[1].2[0], &b);
        std::fs::remove_dir_all(place.folder.path().join("bucket/snapshots")).unwrap();
    }
}
