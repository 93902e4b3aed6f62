//! Sealed sessions: the owner of the key has everything, anyone else nothing.

use super::evolve::remove;
use super::files::TestFiles;
use super::support::*;
use crate::model::{ProcessTree, SnapshotId, TreeMember, Zombie};
use crate::store::{Disk, Keys, Rules, Session, Store, StoreError};
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

/// What only the owner of the key may see, in the description and the state of the process and in its memory.
pub(super) const COMM: &str = "victim";
const EXE: &str = "/usr/bin/victim";

pub(super) struct Sample {
    _folder: tempfile::TempDir,
    pub(super) dir: PathBuf,
    pub(super) owner: Owner,
    pub(super) ids: Vec<SnapshotId>,
    pub(super) memories: Vec<Memory>,
}

/// A sealed session of three snapshots.
pub(super) fn sample() -> (Sample, Session) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let dir = folder.path().join("store");
    let owner = Owner::new();
    let store = owner.open_or_create(&dir);
    let mut session = store.create_session(&info(7)).expect("a session");
    let (ids, memories) = take(&mut session, 3);
    let sample = Sample {
        _folder: folder,
        dir,
        owner,
        ids,
        memories,
    };
    (sample, session)
}

pub(super) fn take(session: &mut Session, count: u32) -> (Vec<SnapshotId>, Vec<Memory>) {
    let (mut ids, mut memories) = (Vec::new(), Vec::new());
    let mut memory = Memory::new();
    for n in 0..count {
        let pages = (0..60).map(|page| (page * (u64::from(n) + 1), n * 1000 + page as u32));
        let pages: Vec<_> = pages.collect();
        memory.extend(pages.iter().copied());
        let parent = ids.last().copied();
        ids.push(publish(session, parent, [], pages).expect("a snapshot").id);
        memories.push(memory.clone());
    }
    (ids, memories)
}

impl Sample {
    pub(super) fn assert_whole(&self, store: &Store) {
        for (id, memory) in self.ids.iter().zip(&self.memories) {
            assert_holds(&store.snapshot(*id).expect("there"), memory);
        }
        let report = store.verify(None).expect("listable");
        assert!(report.is_clean(), "{report:?}");
        assert_eq!(report.notes, [""; 0]);
        assert_eq!(
            report.snapshots,
            store.list().expect("a listing").len() as u64
        );
    }

    pub(super) fn open_as(&self, keys: Arc<Keys>) -> Store {
        Store::open_with_keys(Arc::new(Disk), keys, &self.dir).expect("opens")
    }
}

/// Nothing of a session can be seen in the files, and in those of one that is not sealed all of it can.
#[test]
fn nothing_of_the_process_can_be_read_without_the_key() {
    // A page of noise and its beginning, an address, a name and a path.
    let noise = page(1002);
    let secrets: [&[u8]; 4] = [&noise[..32], COMM.as_bytes(), EXE.as_bytes(), b"\"pid\""];
    for owner in [Owner::default(), Owner::new()] {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let dir = folder.path().join("store");
        let files = TestFiles::default().shared();
        let store = Store::open_or_create_with_keys(files, owner.keys(), &dir).expect("a store");
        let mut session = store.create_session(&info(7)).expect("a session");
        let (ids, _) = take(&mut session, 6);
        store.publish_tree(&tree(ids[5])).expect("a tree");
        // What a restore makes, what pruning merges, and the list of headers.
        store
            .flat(&store.snapshot(ids[5]).expect("there"))
            .expect("an image");
        let ahead = store.flat_ahead(&store.snapshot(ids[4]).expect("there"));
        let ahead = ahead.expect("an image");
        remove(&session.pruner(), [1, 3]).expect("removed");
        store.rebuild_headers(session.id()).expect("rebuilt");
        let sealed = store.seals();
        for secret in secrets {
            let found = having(&dir, secret);
            assert_eq!(found.is_empty(), sealed, "{secret:?} in {found:?}");
        }
        drop(ahead);
        let report = owner.open(&dir).verify(None).expect("listable");
        assert!(report.is_clean(), "{report:?}");
    }
}

#[test]
fn another_process_with_the_key_has_everything() {
    let (sample, session) = sample();
    let id = session.id();
    drop(session);
    let store = sample.owner.open(&sample.dir);
    sample.assert_whole(&store);
    assert_eq!(store.session_info(id).expect("readable"), {
        let mut want = info(7);
        want.created_ns = store.session_info(id).expect("readable").created_ns;
        want.recipients = store.recipients();
        want
    });
    // And goes on with it, also without sealing what is new elsewhere.
    let reading = sample.open_as(sample.owner.reading());
    let mut session = reading.open_session(id).expect("its writer is gone");
    let parent = *sample.ids.last().expect("three");
    publish(&mut session, Some(parent), [], [(1, 1002)]).expect("a delta");
    drop(session);
    assert!(having(&sample.dir, &page(1002)[..32]).is_empty());
    sample.assert_whole(&sample.owner.open(&sample.dir));
    assert_eq!(reading.list().expect("a listing").len(), 4);
}

#[test]
fn a_session_is_not_gone_on_with_for_others_than_it_was_begun_for() {
    let (sample, session) = sample();
    let id = session.id();
    drop(session);
    let plain = Store::open_or_create(&sample.dir).expect("opens");
    let clear = plain.create_session(&info(8)).expect("a session").id();
    let for_others = sample.owner.sealing_for(&Owner::new());
    for (session, keys) in [(id, for_others), (clear, sample.owner.keys())] {
        let refused = sample.open_as(keys).open_session(session).map(|_| ());
        assert!(
            matches!(refused, Err(StoreError::Misuse { .. })),
            "{refused:?}"
        );
    }
}

#[test]
fn without_the_key_or_with_another_one_it_is_refused_and_told_which() {
    let (sample, session) = sample();
    let id = session.id();
    drop(session);
    let clear = Store::open_or_create(&sample.dir).expect("opens");
    let mut open = clear.create_session(&info(8)).expect("a session");
    let known = publish(&mut open, None, [], [(1, 1)]).expect("a base").id;
    for (keys, wrong) in [
        (Keys::new(Default::default(), Default::default()), false),
        (Owner::new().reading(), true),
    ] {
        let store = sample.open_as(keys);
        let fits = |error: &StoreError| match error {
            StoreError::Sealed { .. } => !wrong,
            StoreError::WrongIdentity { .. } => wrong,
            _ => false,
        };
        // The others are listed, and how many are not.
        let list = store.list().expect("a listing");
        assert_eq!(list.iter().map(|meta| meta.id).collect::<Vec<_>>(), [known]);
        assert_eq!(store.sessions().expect("sessions").len(), 1);
        let closed = store.sealed_sessions().expect("a listing");
        assert_eq!(closed.len(), 1);
        assert_eq!((closed[0].id, closed[0].wrong_key), (id, wrong));
        let mut ids = closed[0].snapshots.clone();
        ids.sort();
        let mut want = sample.ids.clone();
        want.sort();
        assert_eq!(ids, want);
        let refused = [
            store.snapshot(sample.ids[0]).map(drop),
            store
                .resolve(&sample.ids[1].to_string()[..12], None)
                .map(drop),
            store.resolve("@3", None).map(drop),
            store.resolve("latest", Some(7)).map(drop),
            store.session_info(id).map(drop),
            store.list_session(id).map(drop),
            store.open_session(id).map(drop),
            store
                .pruner(id)
                .and_then(|pruner| pruner.plan(&Rules::default()))
                .map(drop),
            store.verify(Some(sample.ids[0])).map(drop),
            store.rebuild_headers(id).map(drop),
        ];
        for (at, refused) in refused.into_iter().enumerate() {
            let error = refused.expect_err("sealed");
            assert!(fits(&error), "{at}: {error}");
            let text = error.to_string();
            assert!(text.contains("--identity"), "{text}");
            assert_eq!(text.contains("key.age"), wrong, "{text}");
        }
        // What is sealed is older.
        assert_eq!(store.resolve("latest", Some(8)).ok(), Some(known));
        assert_eq!(store.resolve("@1", Some(8)).ok(), Some(known));
        let report = store.verify(None).expect("listable");
        assert!(report.is_clean(), "{report:?}");
        assert!(report.notes[0].contains("3 snapshots"), "{report:?}");
    }
    // A sealed file is known by its time, which is that of the kernel's last tick: on a machine whose processors are taken
    // away now and then, that lags behind the clock by which the other one was taken.
    let list = clear.list().expect("a listing");
    let known_ns = list.iter().map(|meta| meta.time_ns).max().expect("one");
    let ticked = || {
        let file = tempfile::NamedTempFile::new_in(sample.dir.parent()?).ok()?;
        let modified = file.as_file().metadata().ok()?.modified().ok()?;
        let since = modified.duration_since(std::time::UNIX_EPOCH).ok()?;
        Some(since.as_nanos() as u64 > known_ns)
    };
    while !ticked().expect("a file's time") {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    // Where the newest of all is sealed, no older one is taken for it.
    let owner = sample.owner.open(&sample.dir);
    let mut session = owner.open_session(id).expect("its writer is gone");
    let parent = Some(sample.ids[2]);
    let newest = publish(&mut session, parent, [], [(2, 2)]).expect("a delta");
    assert_eq!(owner.resolve("latest", None).ok(), Some(newest.id));
    let stranger = sample.open_as(Owner::new().reading());
    for pid in [None, Some(8)] {
        let refused = stranger.resolve("latest", pid).expect_err("sealed");
        assert!(refused.is_sealed(), "{refused}");
    }
}

#[test]
fn what_a_process_has_begun_it_can_read_without_an_identity() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let dir = folder.path().join("store");
    let keys = Owner::default().sealing_for(&Owner::new());
    let open = || Store::open_or_create_with_keys(Arc::new(Disk), keys.clone(), &dir);
    let mut session = open()
        .expect("a store")
        .create_session(&info(7))
        .expect("a session");
    let (ids, memories) = take(&mut session, 2);
    let other = open().expect("the store again");
    assert_holds(&other.snapshot(ids[1]).expect("there"), &memories[1]);
    remove(&session.pruner(), [1]).expect("removed");
    // Nobody who has the folder in hand brings it to write in plain.
    fs::remove_file(dir.join(session.id().to_string()).join("key.age")).expect("removed");
    publish(&mut session, Some(ids[1]), [], [(1, 1002)]).expect("a delta");
    assert!(having(&dir, &page(1002)[..32]).is_empty());
}

#[test]
fn damage_is_told_apart_from_a_wrong_key() {
    let (sample, session) = sample();
    let folder = sample.dir.join(session.id().to_string());
    drop(session);
    for path in files_below(&folder) {
        let name = path
            .file_name()
            .expect("a name")
            .to_string_lossy()
            .into_owned();
        if name == "lock" || name == "key.age" {
            continue;
        }
        let whole = fs::read(&path).expect("readable");
        for at in (0..whole.len()).step_by(whole.len() / 7 + 1) {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x10;
            fs::write(&path, &bytes).expect("writable");
            let report = sample
                .owner
                .open(&sample.dir)
                .verify(None)
                .expect("listable");
            assert!(!report.is_clean(), "{name}, byte {at}");
            let told = report
                .problems
                .iter()
                .all(|p| !p.what.contains("--identity"));
            assert!(told, "{report:?}");
        }
        // Plain bytes in a sealed session are none of it, whoever put them there.
        fs::write(&path, b"plain").expect("writable");
        let report = sample
            .owner
            .open(&sample.dir)
            .verify(None)
            .expect("listable");
        assert!(!report.is_clean(), "{name}");
        // Without the key, a length that cannot be is found.
        if name.ends_with(".ksnap") {
            let report = Store::open(&sample.dir).expect("opens").verify(None);
            assert!(!report.expect("listable").is_clean(), "{name}");
        }
        fs::write(&path, &whole).expect("writable");
    }
    sample.assert_whole(&sample.owner.open(&sample.dir));
}

#[test]
fn a_damaged_key_takes_its_own_session_alone() {
    let (sample, session) = sample();
    let path = sample.dir.join(session.id().to_string()).join("key.age");
    let mut other = session.store().create_session(&info(8)).expect("a session");
    let known = publish(&mut other, None, [], [(1, 1)]).expect("a base").id;
    drop((session, other));
    let mut bytes = fs::read(&path).expect("readable");
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&path, bytes).expect("writable");
    let store = sample.owner.open(&sample.dir);
    let list = store.list().expect("a listing");
    assert_eq!(list.iter().map(|meta| meta.id).collect::<Vec<_>>(), [known]);
    assert!(store.snapshot(known).is_ok());
    let lost = store.snapshot(sample.ids[0]).map(drop);
    assert!(matches!(lost, Err(StoreError::Corrupt { .. })), "{lost:?}");
    let report = store.verify(None).expect("listable");
    assert_eq!(
        (report.problems.len(), report.snapshots),
        (1, 1),
        "{report:?}"
    );
    assert!(store.verify(Some(known)).expect("there").is_clean());
    let lost = store.verify(Some(sample.ids[0])).map(drop);
    assert!(matches!(lost, Err(StoreError::Corrupt { .. })), "{lost:?}");
}

#[test]
fn files_that_change_places_are_found() {
    let (sample, session) = sample();
    let folder = sample.dir.join(session.id().to_string());
    let other = session.store().create_session(&info(8)).expect("a session");
    let other_folder = sample.dir.join(other.id().to_string());
    drop((session, other));
    let description = other_folder.join("session.json");
    let own = fs::read(&description).expect("readable");
    fs::copy(folder.join("session.json"), &description).expect("copied");
    let store = sample.owner.open(&sample.dir);
    assert_eq!(store.sessions().expect("a listing").len(), 1);
    fs::write(&description, own).expect("writable");
    // Under the key of its own session as well: it is that of another number.
    let names = files_below(&folder);
    let snapshot = |number: &str| {
        let found = names.iter().find(|path| {
            let name = path.file_name().expect("a name").to_string_lossy();
            name.starts_with(number) && name.ends_with(".ksnap")
        });
        found.expect("there").clone()
    };
    fs::copy(snapshot("00000002"), snapshot("00000003")).expect("copied");
    let report = sample
        .owner
        .open(&sample.dir)
        .verify(None)
        .expect("listable");
    assert!(!report.is_clean(), "{report:?}");
}

pub(super) fn tree(root: SnapshotId) -> ProcessTree {
    ProcessTree {
        members: vec![TreeMember {
            id: root,
            pid: 7,
            parent: None,
            group: 7,
            session: 7,
            stopped: false,
            foreground: None,
        }],
        zombies: vec![Zombie {
            pid: 9,
            own_pid: 9,
            parent: 0,
            comm: COMM.into(),
            group: 1,
            session: 1,
            status: 0,
        }],
        ..ProcessTree::default()
    }
}
