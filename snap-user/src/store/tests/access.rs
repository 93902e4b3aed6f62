//! Who may do what: folders, locks, modes, references.

use super::support::*;
use crate::store::{Store, StoreError};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

#[test]
fn a_session_has_one_writer_and_a_store_has_many() {
    let (_folder, store) = new_store();
    let mut one = store.create_session(&info(7)).expect("a session");
    let other_process = Store::open_or_create(store.dir()).expect("the store again");
    let mut two = other_process
        .create_session(&info(8))
        .expect("another session at the same time");
    publish(&mut one, None, [], [(1, 1)]).expect("a base");
    publish(&mut two, None, [], [(1, 1)]).expect("a base");

    let busy = other_process.open_session(one.id());
    let Err(StoreError::Locked { session, pid }) = busy else {
        panic!("two writers of one session: {busy:?}");
    };
    assert_eq!(pid, Some(std::process::id() as i32));
    assert!(session.ends_with(one.id().to_string()));

    // Reading goes on meanwhile, and the lock goes with its holder.
    assert_eq!(other_process.list().expect("a listing").len(), 2);
    let id = one.id();
    drop(one);
    let mut again = other_process.open_session(id).expect("the writer is gone");
    assert_eq!(again.info().pid, 7);
    let parent = store.resolve("latest", Some(7)).expect("the base");
    publish(&mut again, Some(parent), [], [(2, 2)]).expect("a delta");
    assert_eq!(store.sessions().expect("sessions").len(), 2);
}

#[test]
fn only_the_owner_may_enter_or_read() {
    fn check(path: &Path, seen: &mut (u32, u32)) {
        let metadata = fs::metadata(path).expect("metadata");
        let mode = metadata.permissions().mode() & 0o7777;
        if metadata.is_dir() {
            assert_eq!(mode, 0o700, "{path:?}");
            seen.0 += 1;
            for entry in fs::read_dir(path).expect("a folder") {
                check(&entry.expect("an entry").path(), seen);
            }
        } else {
            assert_eq!(mode, 0o600, "{path:?}");
            seen.1 += 1;
        }
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let above = folder.path().join("made");
    let store = Store::open_or_create(&above.join("too/store")).expect("a store");
    let mut session = store.create_session(&info(7)).expect("a session");
    publish(&mut session, None, [], [(1, 1)]).expect("a base");
    let mut seen = (0, 0);
    check(&above, &mut seen);
    // made, too, store, session; marker, description, lock, snapshot, list of headers.
    assert_eq!(seen, (4, 5));
}

#[test]
fn a_folder_that_is_no_store_is_left_alone() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let dir = folder.path();
    assert!(matches!(
        Store::open(&dir.join("none")),
        Err(StoreError::NoStore { .. })
    ));
    assert!(matches!(Store::open(dir), Err(StoreError::NoStore { .. })));
    let file = dir.join("file");
    fs::write(&file, "text").expect("written");
    assert!(matches!(
        Store::open(&file),
        Err(StoreError::NoStore { .. })
    ));
    let refused = Store::open_or_create(dir);
    assert!(
        matches!(&refused, Err(StoreError::NoStore { why, .. }) if why.contains("other things"))
    );
    assert_eq!(fs::read_dir(dir).expect("the folder").count(), 1);
}

#[test]
fn what_a_dead_writer_left_is_passed_over_and_swept() {
    let (_folder, store) = new_store();
    let mut session = store.create_session(&info(7)).expect("a session");
    publish(&mut session, None, [], [(1, 1)]).expect("a base");
    let id = session.id();
    drop(session);
    let left = store.dir().join(id.to_string()).join(".tmp-00000002");
    fs::write(&left, "half a snapshot").expect("written");
    let half_session = store.dir().join(".tmp-0123");
    fs::create_dir(&half_session).expect("made");
    fs::write(half_session.join("lock"), "1\n").expect("written");

    let report = store.verify(None).expect("listable");
    assert!(report.is_clean(), "{report:?}");
    assert_eq!(store.list().expect("a listing").len(), 1);
    let store = Store::open_or_create(store.dir()).expect("the store");
    assert!(!half_session.exists());
    drop(store.open_session(id).expect("the session"));
    assert!(!left.exists());
}

#[test]
fn references_name_what_they_say() {
    let (_folder, store) = new_store();
    assert!(matches!(
        store.resolve("latest", None),
        Err(StoreError::NotFound { .. })
    ));
    let mut first = store.create_session(&info(7)).expect("a session");
    let mut second = store.create_session(&info(8)).expect("a session");
    let a1 = publish(&mut first, None, [], [(1, 1)]).expect("a base").id;
    let a2 = publish(&mut first, Some(a1), [], [(1, 2)])
        .expect("a delta")
        .id;
    let b1 = publish(&mut second, None, [], [(1, 3)]).expect("a base").id;
    let a3 = publish(&mut first, Some(a2), [], [(1, 4)])
        .expect("a delta")
        .id;
    let branch = publish(&mut first, Some(a1), [], [(1, 5)])
        .expect("a branch")
        .id;
    let find = |text: &str, pid| {
        store
            .resolve(text, pid)
            .unwrap_or_else(|e| panic!("{text}: {e}"))
    };

    assert_eq!(find("latest", None), branch);
    assert_eq!(find("latest", Some(8)), b1);
    assert_eq!(
        find("latest~", None),
        a1,
        "the parent, not the snapshot before it in time"
    );
    assert_eq!(find("@3~1", Some(7)), a2);
    assert_eq!(find("@3~2", None), a1);
    assert_eq!(find(&a3.to_string(), None), a3);
    assert_eq!(find(&a3.to_string()[..9].to_uppercase(), Some(7)), a3);
    assert_eq!(find(&format!("{}~~", a3.short()), None), a1);

    let ambiguous = store.resolve("@1", None);
    let Err(StoreError::Ambiguous { candidates, .. }) = &ambiguous else {
        panic!("{ambiguous:?}");
    };
    let ids: Vec<_> = candidates.iter().map(|c| c.id).collect();
    assert_eq!(ids, [b1, a1], "newest first");
    let text = ambiguous.expect_err("ambiguous").to_string();
    assert!(
        text.contains(&b1.short()) && text.contains("pid 8"),
        "{text}"
    );
    assert_eq!(find("@1", Some(7)), a1);

    for missing in ["latest~2", "@9", "ffffffffffff", "@1~1"] {
        let found = store.resolve(missing, Some(7));
        assert!(
            matches!(found, Err(StoreError::NotFound { .. })),
            "{missing}: {found:?}"
        );
    }
    assert!(matches!(
        store.resolve("abc", None),
        Err(StoreError::BadReference { .. })
    ));
}

#[test]
fn a_shared_prefix_lists_the_candidates() {
    let (_folder, store) = new_store();
    let mut session = store.create_session(&info(7)).expect("a session");
    publish(&mut session, None, [], [(1, 1)]).expect("a base");
    let mut list = store.list().expect("a listing");
    let mut twin = list[0].clone();
    twin.id.0[15] ^= 1;
    list.push(twin.clone());
    let shared = &list[0].id.to_string()[..31];
    let found = crate::store::reference::resolve_in(&list, shared, None, None, &Default::default());
    assert!(
        matches!(&found, Err(StoreError::Ambiguous { candidates, .. }) if candidates.len() == 2),
        "{found:?}"
    );
    let whole = twin.id.to_string();
    let found = crate::store::reference::resolve_in(&list, &whole, None, None, &Default::default())
        .expect("all digits");
    assert_eq!(found, twin.id);
}
