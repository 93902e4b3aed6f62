//! Pages stored as the changes to earlier versions.

use super::support::*;
use crate::codec::Scratch;
use crate::image::{EncodedBatch, Location, MOST_VERSIONS, Previous};
use crate::model::{Costs, PAGE_SIZE, Page, SnapshotId, SnapshotKind};
use crate::store::{PageSink, PageSource, Published, Session, Store, StoreError};
use proptest::prelude::*;
use std::collections::BTreeMap;

/// Content of the pages of a snapshot, by number.
type Content = BTreeMap<u64, Box<Page>>;

/// Publishes a delta whose pages are the changes to what the parent has, where `against` says so.
fn publish_changes(
    session: &mut Session,
    parent: SnapshotId,
    before: &Content,
    pages: &Content,
    against: impl Fn(u64, Location) -> bool,
) -> Result<Published, StoreError> {
    let mut pending = session.begin(SnapshotKind::Delta, Some(parent))?;
    let table = pending.parent_table().expect("a delta has one").clone();
    let mut batch = EncodedBatch::new(0);
    for (number, page) in pages {
        let addr = number * PAGE_SIZE;
        let previous = before.get(number).zip(table.get(addr));
        let previous = previous
            .filter(|(_, at)| against(*number, *at))
            .map(|(page, at)| Previous { page, at });
        batch.push_against(addr, page, previous, &mut Scratch::default());
    }
    pending.append(&batch)?;
    pending.publish(&state(7), &Costs::default())
}

/// A page of noise, and the same with a word changed `times` times.
fn version(times: u64) -> Box<Page> {
    let mut page = Box::new(page(2));
    for n in 0..times {
        page.as_chunks_mut::<8>().0[(n * 37 % 512) as usize] = n.to_le_bytes();
    }
    page
}

/// A store with a page in so many versions, each the changes to the one before, and the snapshots.
fn versions(count: u64) -> (tempfile::TempDir, Store, Vec<SnapshotId>) {
    let (dir, store) = new_store();
    let mut session = store.create_session(&info(7)).expect("a session");
    let mut ids = vec![
        publish(&mut session, None, [], [(5, 2), (6, 3)])
            .expect("a base")
            .id,
    ];
    for n in 1..count {
        let before = BTreeMap::from([(5, version(n - 1))]);
        let pages = BTreeMap::from([(5, version(n))]);
        let last = ids[ids.len() - 1];
        let done = publish_changes(&mut session, last, &before, &pages, |_, _| true);
        ids.push(done.expect("published").id);
    }
    (dir, store, ids)
}

fn read(store: &Store, id: SnapshotId) -> Result<Page, StoreError> {
    let mut page = [0xee; PAGE_SIZE as usize];
    let snapshot = store.snapshot(id)?;
    assert!(snapshot.read_page(5 * PAGE_SIZE, &mut page)?);
    Ok(page)
}

#[test]
fn every_version_of_a_page_reads_back() {
    let (_dir, store, ids) = versions(MOST_VERSIONS as u64);
    for (id, n) in ids.iter().zip(0..) {
        assert!(
            read(&store, *id).expect("a page") == *version(n),
            "version {n}"
        );
    }
    let report = store.verify(None).expect("a listable store");
    assert!(report.is_clean(), "{report:?}");
    assert_eq!(report.pages, 2 + MOST_VERSIONS as u64 - 1);
}

#[test]
fn a_page_behind_too_many_versions_is_refused() {
    let (_dir, store, ids) = versions(MOST_VERSIONS as u64 + 1);
    let last = ids[MOST_VERSIONS];
    let error = read(&store, last).expect_err("too many").to_string();
    assert!(error.contains("too many versions"), "{error}");
    assert!(read(&store, ids[MOST_VERSIONS - 1]).is_ok());
    let report = store.verify(None).expect("a listable store");
    let named: Vec<_> = report.problems.iter().map(|problem| problem.id).collect();
    assert_eq!(named, [Some(last)]);
}

#[test]
fn damage_in_a_version_is_damage_in_those_above_it() {
    let (_dir, store, ids) = versions(5);
    let session = store.session_ids().expect("sessions")[0];
    let folder = store.dir().join(session.to_string());
    let damaged = std::fs::read_dir(folder)
        .expect("a folder")
        .map(|entry| entry.expect("an entry").path())
        .find(|path| path.to_string_lossy().contains(&ids[2].to_string()))
        .expect("the third snapshot's file");
    let mut bytes = std::fs::read(&damaged).expect("a file");
    // The first byte of page data.
    bytes[256] ^= 0x40;
    std::fs::write(&damaged, bytes).expect("a writable file");
    let store = Store::open(store.dir()).expect("the store");
    for (id, n) in ids.iter().zip(0u64..) {
        assert_eq!(read(&store, *id).is_ok(), n < 2, "version {n}");
    }
    let report = store.verify(None).expect("a listable store");
    let named: Vec<_> = report
        .problems
        .iter()
        .filter_map(|problem| problem.id)
        .collect();
    assert_eq!(named, ids[2..]);
}

#[test]
fn changes_to_anything_but_the_parents_page_are_refused() {
    let (_dir, store) = new_store();
    let mut session = store.create_session(&info(7)).expect("a session");
    let base = publish(&mut session, None, [], [(5, 2), (6, 3)])
        .expect("a base")
        .id;
    let mut pending = session
        .begin(SnapshotKind::Delta, Some(base))
        .expect("a delta");
    let (was, is) = (version(0), version(1));
    let other = pending
        .parent_table()
        .and_then(|table| table.get(6 * PAGE_SIZE));
    let mut batch = EncodedBatch::new(0);
    let previous = other.map(|at| Previous { page: &was, at });
    batch.push_against(5 * PAGE_SIZE, &is, previous, &mut Scratch::default());
    let error = pending
        .append(&batch)
        .expect_err("not the page that it was");
    assert!(error.to_string().contains("0x5000"), "{error}");
}

/// What happens to a page from one snapshot to the next: number, words to change, against its previous version.
fn edit() -> impl Strategy<Value = (u64, Vec<(usize, u64)>, bool)> {
    let words = proptest::collection::vec((0usize..512, any::<u64>()), 1..20);
    (0u64..60, words, proptest::bool::weighted(0.8))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    #[test]
    fn any_history_of_changes_reads_back(
        steps in proptest::collection::vec((proptest::collection::vec(edit(), 0..30), 0usize..4), 1..25),
    ) {
        let (_dir, store) = new_store();
        let mut session = store.create_session(&info(7)).expect("a session");
        let first: BTreeMap<u64, u32> = (0..40).map(|n| (n, n as u32)).collect();
        let base = publish(&mut session, None, [], first.clone()).expect("a base").id;
        let content = first.iter().map(|(n, seed)| (*n, Box::new(page(*seed)))).collect();
        // Each snapshot with its pages, and for each place in the store the versions below it.
        let mut history: Vec<(SnapshotId, Content)> = vec![(base, content)];
        let mut depths: BTreeMap<Location, usize> = BTreeMap::new();
        for (edits, back) in steps {
            let (parent, before) = history[history.len() - 1 - back % history.len()].clone();
            let (mut pages, mut against) = (Content::new(), BTreeMap::new());
            for (number, words, changes) in edits {
                let page = pages.entry(number).or_insert_with(|| {
                    before.get(&number).cloned().unwrap_or_else(|| Box::new([0; PAGE_SIZE as usize]))
                });
                for (word, value) in words {
                    page.as_chunks_mut::<8>().0[word] = value.to_le_bytes();
                }
                against.insert(number, changes);
            }
            let used = std::cell::RefCell::new(BTreeMap::new());
            let done = publish_changes(&mut session, parent, &before, &pages, |number, at| {
                let depth = depths.get(&at).copied().unwrap_or(0);
                let changes = against[&number] && depth + 1 < MOST_VERSIONS;
                if changes {
                    used.borrow_mut().insert(number, depth + 1);
                }
                changes
            }).expect("published");
            for (number, slot) in pages.keys().zip(0..) {
                let depth = used.borrow().get(number).copied().unwrap_or(0);
                depths.insert(Location::new(done.seq, slot).expect("not 0"), depth);
            }
            let mut after = before;
            after.extend(pages);
            history.push((done.id, after));
        }
        let report = store.verify(None).expect("a listable store");
        prop_assert!(report.is_clean(), "{:?}", report);
        let fresh = Store::open(store.dir()).expect("the store");
        for (id, content) in &history {
            let snapshot = fresh.snapshot(*id).expect("the snapshot");
            let addrs: Vec<u64> = content.keys().map(|number| number * PAGE_SIZE).collect();
            let mut found = 0;
            snapshot.read_pages(&addrs, &mut |addr, page| {
                found += 1;
                assert!(*page == *content[&(addr / PAGE_SIZE)], "{addr:#x} of {id:?}");
            }).expect("readable pages");
            prop_assert_eq!(found, content.len());
        }
    }
}
