//! Sealed pushes to a folder, and pulls from there: with the key all of it, and without nothing.

use super::bucket_keys::Ring;
use super::bucket_list::list_with;
use super::bucket_tests::{DAY, Place, damage, noise, put};
use super::pull::pull_with;
use super::push::push_with;
use super::*;
use crate::bucket::{Bucket, BucketKey, PlacedKey};
use crate::model::SnapshotId;
use crate::store::tests::support::{Memory, Owner, assert_holds, having, new_store, page};
use crate::store::{Keys, Recipients, Store};
use std::sync::Arc;
use tempfile::TempDir;

/// A store of someone, with these snapshots in it, each of another session.
fn stored(owner: &Owner, of: &[&Memory]) -> (TempDir, Store, Vec<SnapshotId>) {
    let (dir, store) = owner.new_store();
    let ids = of.iter().flat_map(|memory| put(&store, &[memory]));
    let ids = ids.collect();
    (dir, store, ids)
}

pub(super) fn push_as(
    keys: Arc<Keys>,
    place: &Place,
    store: &Store,
    id: SnapshotId,
) -> Result<Pushed> {
    push_with(
        keys,
        store.dir(),
        &id.to_string(),
        &place.url(),
        &mut |_| {},
    )
}

/// On a machine that has nothing of it.
pub(super) struct Elsewhere {
    dir: TempDir,
}

impl Elsewhere {
    pub(super) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self { dir }
    }

    pub(super) fn store(&self) -> std::path::PathBuf {
        self.dir.path().join("store")
    }

    pub(super) fn pull(&self, keys: &Arc<Keys>, place: &Place, reference: &str) -> Result<Pulled> {
        pull_with(keys, &self.store(), &place.url(), reference, &mut |_| {})
    }

    pub(super) fn open(&self, owner: &Owner) -> Store {
        owner.open(&self.store())
    }

    /// Nothing can be read of it in the files of the store but with the key of this one, who has this memory.
    fn assert_gives(&self, owner: &Owner, pulled: &Pulled, memory: &Memory) {
        let store = self.open(owner);
        assert_holds(&store.snapshot(pulled.stored_id).unwrap(), memory);
        assert_eq!(pulled.sealed_for, owner.keys().recipients().names());
        for (session, info) in store.sessions().unwrap() {
            assert!(store.is_sealed(session).unwrap());
            assert_eq!(info.recipients, pulled.sealed_for);
        }
        let ends = [memory.values().next(), memory.values().last()];
        for seed in ends.into_iter().flatten() {
            assert!(having(self.dir.path(), &page(*seed)[512..544]).is_empty());
        }
    }
}

/// It comes to the holder of this key, where nothing of it was, and is this memory.
fn assert_comes(owner: &Owner, place: &Place, reference: &str, memory: &Memory) {
    let there = Elsewhere::new();
    let pulled = there.pull(&owner.reading(), place, reference).unwrap();
    there.assert_gives(owner, &pulled, memory);
}

/// A part of a page of noise that no other page has.
fn part_of(seed: u32) -> Vec<u8> {
    page(seed * 5 + 2)[512..544].to_vec()
}

#[test]
fn a_sealed_snapshot_comes_back_with_the_url_and_the_key_alone() {
    let (place, owner, other) = (Place::new(), Owner::new(), Owner::new());
    let memory = noise(0, 3000);
    let (_dir, store, ids) = stored(&owner, &[&memory]);
    // Nobody says for whom: it stays sealed as it is.
    let pushed = push_as(owner.reading(), &place, &store, ids[0]).unwrap();
    assert_eq!(pushed.sealed_for, owner.keys().recipients().names());
    assert_eq!((pushed.new_pages, pushed.notes.len()), (3000, 0));
    assert_eq!(place.objects("keys").len(), 1);
    let there = Elsewhere::new();
    let pulled = there.pull(&owner.reading(), &place, "latest").unwrap();
    assert_eq!((pulled.id, pulled.pages), (ids[0], 3000));
    there.assert_gives(&owner, &pulled, &memory);
    let again = there.pull(&owner.reading(), &place, "latest").unwrap();
    assert!(again.was_there && again.sealed_for == pulled.sealed_for);
    // Without the key, and with another one.
    for (keys, says) in [
        (Owner::default().keys(), "--identity FILE"),
        (other.reading(), "none of the keys"),
    ] {
        let there = Elsewhere::new();
        let error = there.pull(&keys, &place, "latest").unwrap_err();
        assert_eq!(error.trouble(), Trouble::Permission, "{error}");
        let text = error.to_string();
        assert!(
            text.contains(says) && text.contains(&ids[0].to_string()),
            "{text}"
        );
        // There is none in a bucket.
        assert!(!text.contains("key.age"), "{text}");
        assert!(there.open(&owner).sessions().unwrap().is_empty());
        let listed = list_with(&keys, &place.url()).unwrap();
        let entry = &listed.entries[0];
        assert!(entry.sealed && listed.notes[0].contains(says));
        assert_eq!((entry.id, entry.pages), (ids[0], 3000));
        assert_eq!((&entry.comm, entry.pid, entry.tree), (&None, None, None));
    }
    let listed = list_with(&owner.reading(), &place.url()).unwrap();
    let entry = &listed.entries[0];
    assert_eq!(
        (entry.comm.as_deref(), entry.pid),
        (Some("victim"), Some(7))
    );
    assert_eq!((entry.tree, entry.sealed), (Some(false), true));
    assert!(listed.notes.is_empty());
}

#[test]
fn nothing_of_the_process_can_be_read_in_the_place() {
    let owner = Owner::new();
    let memory = noise(0, 700);
    let hash = *blake3::hash(&page(2)).as_bytes();
    let words = [b"victim".to_vec(), part_of(0), part_of(699), hash.to_vec()];
    let mut found = Vec::new();
    for sealing in [false, true] {
        let place = Place::new();
        let keys = if sealing {
            owner.keys()
        } else {
            owner.reading()
        };
        let (_dir, store) = new_store();
        let id = put(&store, &[&memory])[0];
        push_as(keys, &place, &store, id).unwrap();
        found.push(
            words
                .each_ref()
                .map(|word| having(place.folder.path(), word).len()),
        );
    }
    assert!(found[0].iter().all(|files| *files > 0), "{found:?}");
    assert_eq!(found[1], [0; 4]);
}

#[test]
fn only_what_is_not_there_is_sent_and_sealed_pages_are_never_plain_ones() {
    let (place, owner) = (Place::new(), Owner::new());
    let first = noise(0, 3000);
    let mut second = first.clone();
    second.insert(5, 90_002);
    let (_dir, store) = new_store();
    let ids = put(&store, &[&first, &second]);
    // Plain pages are there.
    place.push(&store, ids[0]).unwrap();
    let sealed = push_as(owner.keys(), &place, &store, ids[0]).unwrap();
    assert_eq!(
        (sealed.new_pages, sealed.chunks),
        (3000, sealed.sent_chunks)
    );
    let next = push_as(owner.keys(), &place, &store, ids[1]).unwrap();
    assert_eq!((next.new_pages, next.sent_chunks), (1, 1));
    let again = push_as(owner.keys(), &place, &store, ids[1]).unwrap();
    assert_eq!((again.new_pages, again.sent_chunks), (0, 0));
    assert_eq!(place.objects("keys").len(), 1);
    // Nor the other way round.
    let plain = place.push(&store, ids[1]).unwrap();
    assert_eq!((plain.new_pages, plain.sealed_for.len()), (1, 0));
    // In both forms it is one: the sealed one for who has the key, else the plain one.
    let reference = ids[0].to_string();
    assert_comes(&owner, &place, &reference, &first);
    let there = Elsewhere::new();
    let pulled = there
        .pull(&Owner::default().keys(), &place, &reference)
        .unwrap();
    assert!(pulled.sealed_for.is_empty());
    // There it can be found.
    assert!(!having(there.dir.path(), &part_of(0)).is_empty());
}

#[test]
fn a_push_that_was_cut_off_goes_on_with_the_sealed_chunks_that_are_there() {
    let (place, owner) = (Place::new(), Owner::new());
    let memory = noise(0, 5000);
    let (_dir, store, ids) = stored(&owner, &[&memory]);
    let first = push_as(owner.reading(), &place, &store, ids[0]).unwrap();
    assert!(first.sent_chunks > 1, "{first:?}");
    std::fs::remove_file(&place.objects("snapshots")[0]).unwrap();
    std::fs::remove_file(&place.objects("chunks")[0]).unwrap();
    let again = push_as(owner.reading(), &place, &store, ids[0]).unwrap();
    assert_eq!((again.new_pages, again.sent_chunks), (5000, 1));
    assert_comes(&owner, &place, "latest", &memory);
}

#[test]
fn without_a_key_a_prune_removes_what_is_sealed_and_only_what_nobody_needs() {
    let (place, owner) = (Place::new(), Owner::new());
    // So few that they are one chunk, wherever the key, which is another one each time, would end it.
    let (old, new) = (noise(0, 200), noise(1000, 200));
    let (_dir, store) = new_store();
    let ids = put(&store, &[&old, &new]);
    push_as(owner.keys(), &place, &store, ids[0]).unwrap();
    push_as(owner.keys(), &place, &store, ids[1]).unwrap();
    place.push(&store, ids[1]).unwrap();
    // The newest one is there in two forms.
    let done = place.prune(Some(1), DAY);
    assert_eq!((done.removed.len(), done.kept), (1, 1));
    place.two_days_pass();
    assert_eq!(place.prune(None, DAY).waiting_chunks, 1);
    // What is doomed is stored under another name.
    let again = push_as(owner.keys(), &place, &store, ids[0]).unwrap();
    assert_eq!((again.new_pages, again.sent_chunks), (200, 1));
    place.two_days_pass();
    assert_eq!(place.prune(None, DAY).deleted_chunks, 1);
    for (id, memory) in ids.iter().zip([&old, &new]) {
        assert_comes(&owner, &place, &id.to_string(), memory);
    }
}

#[test]
fn damage_of_any_object_is_told_and_nothing_of_it_is_in_the_store() {
    let (place, owner) = (Place::new(), Owner::new());
    let memory = noise(0, 400);
    let (_dir, store, ids) = stored(&owner, &[&memory]);
    push_as(owner.reading(), &place, &store, ids[0]).unwrap();
    let there = Elsewhere::new();
    let pull = || there.pull(&owner.reading(), &place, "latest");
    let fails = |says: &str| {
        let error = pull().unwrap_err();
        assert_eq!(error.trouble(), Trouble::Corrupt, "{error}");
        assert!(error.to_string().contains(says), "{says}: {error}");
    };
    for folder in ["chunks", "snapshots", "keys"] {
        let object = place.objects(folder).remove(0);
        let whole = std::fs::read(&object).unwrap();
        // At the beginning, in what is clear and in what is sealed.
        for at in [0, 10, 50, 90, 130, 300, whole.len() / 2, whole.len() - 1] {
            damage(&object, at);
            fails("");
            std::fs::write(&object, &whole[..at]).unwrap();
            fails("");
            std::fs::write(&object, &whole).unwrap();
        }
    }
    let key = place.objects("keys").remove(0);
    let whole = std::fs::read(&key).unwrap();
    std::fs::remove_file(&key).unwrap();
    fails("its key, ");
    let listed = list_with(&owner.reading(), &place.url()).unwrap();
    assert_eq!((listed.entries.len(), &listed.entries[0].comm), (1, &None));
    assert!(listed.notes[0].contains("its key, "), "{:?}", listed.notes);
    // Nobody takes another one for it.
    push_as(owner.reading(), &place, &store, ids[0]).unwrap();
    std::fs::write(&key, whole).unwrap();
    let listed = list_with(&owner.reading(), &place.url()).unwrap();
    assert_eq!(listed.entries.len(), 2);
    let pulled = pull().unwrap();
    there.assert_gives(&owner, &pulled, &memory);
}

#[test]
fn what_has_come_sealed_before_damage_is_seen_waits_nowhere_in_plain() {
    let (place, owner) = (Place::new(), Owner::new());
    let (_dir, store, ids) = stored(&owner, &[&noise(0, 5000)]);
    push_as(owner.reading(), &place, &store, ids[0]).unwrap();
    let there = Elsewhere::new();
    let mut most = 0;
    for chunk in place.objects("chunks") {
        damage(&chunk, 100);
        let error = pull_with(
            &owner.reading(),
            &there.store(),
            &place.url(),
            "latest",
            &mut |pulling| most = most.max(pulling.done),
        );
        assert_eq!(error.unwrap_err().trouble(), Trouble::Corrupt);
        damage(&chunk, 100);
    }
    assert!(most > 0, "one came before the one that was damaged");
    for at in [0, 2500, 4999] {
        assert!(having(there.dir.path(), &part_of(at)).is_empty());
    }
}

#[test]
fn what_is_there_sealed_and_plain_is_not_taken_in_plain_where_the_sealed_one_is_damaged() {
    let (place, owner) = (Place::new(), Owner::new());
    let memory = noise(0, 50);
    let (_dir, store) = new_store();
    let id = put(&store, &[&memory])[0];
    push_as(owner.keys(), &place, &store, id).unwrap();
    let sealed = place.objects("snapshots");
    place.push(&store, id).unwrap();
    let key = place.objects("keys").remove(0);
    let there = Elsewhere::new();
    for object in sealed.into_iter().chain([key]) {
        let whole = std::fs::read(&object).unwrap();
        // In what is sealed, too.
        for at in [50, whole.len() / 2] {
            damage(&object, at);
            let error = there.pull(&owner.reading(), &place, "latest").unwrap_err();
            assert_eq!(error.trouble(), Trouble::Corrupt, "{error}");
            assert!(there.open(&owner).sessions().unwrap().is_empty());
            std::fs::write(&object, &whole).unwrap();
        }
    }
    let pulled = there.pull(&owner.reading(), &place, "latest").unwrap();
    there.assert_gives(&owner, &pulled, &memory);
}

#[test]
fn who_pulls_may_name_others_and_so_may_who_pushes() {
    let (place, owner, other) = (Place::new(), Owner::new(), Owner::new());
    let memory = noise(0, 50);
    let (_dir, store, ids) = stored(&owner, &[&memory]);
    push_as(owner.reading(), &place, &store, ids[0]).unwrap();
    let there = Elsewhere::new();
    let keys = owner.sealing_for(&other);
    let pulled = there.pull(&keys, &place, "latest").unwrap();
    there.assert_gives(&other, &pulled, &memory);
    let place = Place::new();
    let pushed = push_as(keys, &place, &store, ids[0]).unwrap();
    assert_eq!(pushed.sealed_for, other.keys().recipients().names());
    let there = Elsewhere::new();
    let error = there.pull(&owner.reading(), &place, "latest").unwrap_err();
    assert_eq!(error.trouble(), Trouble::Permission);
    assert_comes(&other, &place, "latest", &memory);
}

#[test]
fn a_key_that_somebody_else_has_made_seals_nothing() {
    let (place, owner) = (Place::new(), Owner::new());
    let memory = noise(0, 300);
    let (_dir, store) = new_store();
    let id = put(&store, &[&memory])[0];
    // By anybody who knows for whom to make it, and so knows the key.
    let bucket = Bucket::open_or_create(&place.url()).unwrap();
    let keys = owner.keys();
    let recipients = keys.recipients();
    let planted = BucketKey::generate(&recipients.names(), |_| Vec::new()).unwrap();
    let file = recipients.encrypt(planted.encode().as_bytes()).unwrap();
    let name = bucket.put_key(file, 1).unwrap();
    push_as(owner.keys(), &place, &store, id).unwrap();
    assert_eq!(place.objects("keys").len(), 2);
    let heads = bucket.heads(&bucket.snapshots().unwrap()).unwrap();
    assert!(
        heads
            .iter()
            .all(|head| head.key().is_some_and(|key| key != name))
    );
    // Nor does damage keep anybody from pushing.
    for key in place.objects("keys") {
        damage(&key, 30);
    }
    let again = push_as(owner.keys(), &place, &store, id).unwrap();
    assert_eq!(again.new_pages, 300);
    assert_eq!(place.objects("keys").len(), 3);
}

#[test]
fn who_else_is_named_in_a_key_that_somebody_else_has_made_cannot_read_what_is_pulled() {
    let (place, owner, other) = (Place::new(), Owner::new(), Owner::new());
    let memory = noise(0, 50);
    let (_dir, store) = new_store();
    let id = put(&store, &[&memory])[0];
    let names = [&owner, &other].map(|one| one.keys().recipients().names());
    let both = Recipients::from_names(&names.concat()).unwrap();
    push_as(
        other.reading().sealing_for(both.clone()),
        &place,
        &store,
        id,
    )
    .unwrap();
    let there = Elsewhere::new();
    let pulled = there.pull(&owner.reading(), &place, "latest").unwrap();
    there.assert_gives(&owner, &pulled, &memory);
    assert!(pulled.notes[0].contains("--encrypt-to"), "{pulled:?}");
    let again = there.pull(&owner.reading(), &place, "latest").unwrap();
    assert!(again.was_there && again.notes == pulled.notes);
    // Who has made it knows whom he has named.
    let there = Elsewhere::new();
    let pulled = there.pull(&other.reading(), &place, "latest").unwrap();
    assert_eq!((pulled.sealed_for, pulled.notes), (both.names(), vec![]));
    // One that names nobody, or not the one who opens it, is no key.
    let bucket = Bucket::open(&place.url()).unwrap();
    let keys = owner.reading();
    for named in ["age1nobody".into(), names[1][0].clone()] {
        let key = PlacedKey {
            name: bucket.keys().unwrap()[0],
            key: Arc::new(BucketKey::generate(&[named], |_| Vec::new()).unwrap()),
        };
        let error = Ring::new(&bucket, &keys).trusted(&key).unwrap_err();
        assert_eq!(error.trouble(), Trouble::Corrupt, "{error}");
        assert!(error.to_string().contains("keys/"), "{error}");
    }
}

#[test]
fn who_has_only_the_public_key_pushes_for_its_holder() {
    let (place, owner) = (Place::new(), Owner::new());
    let memory = noise(0, 300);
    let (_dir, store) = new_store();
    let id = put(&store, &[&memory])[0];
    for _ in 0..2 {
        let pushed = push_as(Owner::default().sealing_for(&owner), &place, &store, id).unwrap();
        assert_eq!(pushed.new_pages, 300);
        assert!(pushed.notes[0].contains("--identity"), "{:?}", pushed.notes);
    }
    assert_comes(&owner, &place, "latest", &memory);
}
