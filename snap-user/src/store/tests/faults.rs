//! Whatever fails, and wherever the process dies: the store opens, what was published is whole, and the
//! next try succeeds.

use super::files::{Plan, TestFiles};
use super::support::*;
use crate::image::SessionId;
use crate::model::SnapshotId;
use crate::store::{Session, Store, StoreError};
use std::path::Path;

const ENOSPC: i32 = 28;
const EIO: i32 = 5;

/// Pages of the nth snapshot of the scenario: a base and two deltas, with data enough for several writes.
fn pages(n: u32) -> Vec<(u64, u32)> {
    match n {
        // Noise: 600 pages of it do not fit the write buffer.
        0 => (0..600).map(|page| (page, page as u32 * 5 + 2)).collect(),
        _ => (0..40)
            .map(|page| (page * 7, n * 1000 + page as u32))
            .collect(),
    }
}

fn memory(n: u32) -> Memory {
    let mut memory: Memory = pages(0).into_iter().collect();
    for delta in 1..=n {
        memory.remove(&500);
        memory.extend(pages(delta));
    }
    memory
}

fn take(
    session: &mut Session,
    n: u32,
    parent: Option<SnapshotId>,
) -> Result<SnapshotId, StoreError> {
    let dropped = (n > 0).then_some(500);
    Ok(publish(session, parent, dropped, pages(n))?.id)
}

/// Runs a step until it succeeds, at most twice; says whether the first try failed.
fn twice<T>(errno: i32, mut step: impl FnMut() -> Result<T, StoreError>) -> (T, bool) {
    match step() {
        Ok(done) => (done, false),
        Err(error) => {
            match (errno, &error) {
                (ENOSPC, StoreError::Full { .. }) | (EIO, StoreError::Io { .. }) => {}
                other => panic!("unexpected {other:?}"),
            }
            (step().expect("the second try succeeds"), true)
        }
    }
}

fn assert_whole(owner: &Owner, dir: &Path, published: &[(SnapshotId, u32)]) {
    let store = owner.open(dir);
    let report = store.verify(None).expect("the store can be listed");
    assert!(report.is_clean(), "{report:?}");
    for (id, n) in published {
        assert_holds(
            &store.snapshot(*id).expect("a published snapshot"),
            &memory(*n),
        );
    }
}

#[test]
fn after_any_failed_operation_the_next_try_succeeds() {
    fail_each_operation(&Owner::default());
}

#[test]
fn after_any_failed_operation_on_a_sealed_session_the_next_try_succeeds() {
    fail_each_operation(&Owner::new());
}

fn fail_each_operation(owner: &Owner) {
    for errno in [ENOSPC, EIO] {
        let mut failures = 0;
        for at in 1.. {
            let folder = tempfile::tempdir().expect("a temporary folder");
            let dir = folder.path().join("store");
            let files = TestFiles::new(Plan::Fail(at, errno));
            let keys = owner.keys();
            let open = || Store::open_or_create_with_keys(files.shared(), keys.clone(), &dir);
            let (store, failed) = twice(errno, open);
            failures += u32::from(failed);
            let (mut session, failed) = twice(errno, || store.create_session(&info(7)));
            failures += u32::from(failed);
            let mut published: Vec<(SnapshotId, u32)> = Vec::new();
            for n in 0..3 {
                let parent = published.last().map(|done| done.0);
                let (id, failed) = twice(errno, || take(&mut session, n, parent));
                failures += u32::from(failed);
                published.push((id, n));
            }
            drop(session);
            assert_whole(owner, &dir, &published);
            let list = store.list().expect("a listing");
            assert_eq!(
                list.len(),
                3,
                "a snapshot that failed is not listed, operation {at}"
            );
            assert_eq!(
                store.sessions().expect("sessions").len(),
                1,
                "operation {at}"
            );
            if at > files.operations() {
                break;
            }
        }
        assert!(
            failures > 20,
            "{failures} operations failed and were tried again"
        );
    }
}

#[test]
fn after_a_crash_at_any_operation_there_are_only_whole_snapshots() {
    crash_at_each_operation(&Owner::default());
}

#[test]
fn after_a_crash_at_any_operation_there_are_only_whole_snapshots_in_a_sealed_session() {
    crash_at_each_operation(&Owner::new());
}

fn crash_at_each_operation(owner: &Owner) {
    for power_cut in [false, true] {
        for at in 1.. {
            let folder = tempfile::tempdir().expect("a temporary folder");
            let dir = folder.path().join("store");
            let files = TestFiles::new(Plan::Crash(at));
            let mut published = Vec::new();
            let mut ended = None;
            let done = run(owner, &files, &dir, &mut published, &mut ended);
            if power_cut {
                files.power_cut();
            }
            assert_recovers(owner, &dir, &published, ended);
            if done.is_ok() {
                break;
            }
        }
    }
}

/// The scenario, up to the crash. Everything it holds is dropped, as a dead process's would be.
fn run(
    owner: &Owner,
    files: &TestFiles,
    dir: &Path,
    published: &mut Vec<(SnapshotId, u32)>,
    session_id: &mut Option<SessionId>,
) -> Result<(), StoreError> {
    let store = Store::open_or_create_with_keys(files.shared(), owner.keys(), dir)?;
    let mut session = store.create_session(&info(7))?;
    *session_id = Some(session.id());
    for n in 0..3 {
        let parent = published.last().map(|done| done.0);
        published.push((take(&mut session, n, parent)?, n));
    }
    Ok(())
}

fn assert_recovers(
    owner: &Owner,
    dir: &Path,
    published: &[(SnapshotId, u32)],
    session: Option<SessionId>,
) {
    let store = owner.open_or_create(dir);
    assert_whole(owner, dir, published);
    let list = store.list().expect("a listing");
    assert!(list.len() <= published.len() + 1, "{list:?}");
    // At most the snapshot that was being published is there besides, and then it is whole.
    for meta in &list {
        let n = list
            .iter()
            .position(|other| other.id == meta.id)
            .expect("itself");
        assert_holds(&store.snapshot(meta.id).expect("listed"), &memory(n as u32));
    }
    let mut session = match session {
        Some(id) => store.open_session(id).expect("its writer is gone"),
        None => store.create_session(&info(7)).expect("a session"),
    };
    let n = published.len() as u32;
    let parent = published.last().map(|done| done.0);
    let id = take(&mut session, n, parent).expect("the snapshot can be taken again");
    let mut all = published.to_vec();
    all.push((id, n));
    assert_whole(owner, dir, &all);
    for folder in [dir.to_owned(), dir.join(session.id().to_string())] {
        for entry in std::fs::read_dir(folder).expect("a folder") {
            let name = entry.expect("an entry").file_name();
            let name = name.to_string_lossy();
            assert!(
                !name.starts_with(".tmp-") || name.ends_with("ksnap-store"),
                "{name} is left behind"
            );
        }
    }
}

#[test]
fn a_snapshot_that_is_not_published_leaves_nothing_behind() {
    let (_folder, store) = new_store();
    let mut session = store.create_session(&info(7)).expect("a session");
    let before = std::fs::read_dir(store.dir().join(session.id().to_string()))
        .expect("the session's folder")
        .count();
    let mut pending = session
        .begin(crate::model::SnapshotKind::Base, None)
        .expect("a base");
    crate::store::PageSink::append(&mut pending, &batch(0, pages(0))).expect("pages");
    drop(pending);
    let after = std::fs::read_dir(store.dir().join(session.id().to_string()))
        .expect("the session's folder")
        .count();
    assert_eq!(before, after);
    take(&mut session, 0, None).expect("a base");
}
