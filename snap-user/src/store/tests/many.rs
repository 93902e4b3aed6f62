//! A hundred thousand deltas: listing opens one file, reading a page a few.

use super::support::*;
use crate::model::{Costs, PAGE_SIZE, SnapshotKind};
use crate::store::{Disk, Files, Locking, PageSink, PageSource, ReadFile, Stamp, Store, WriteFile};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// The real files without syncs, which would take most of an hour; counts what is opened.
#[derive(Clone, Debug, Default)]
struct Quick(Arc<AtomicU64>);

impl Quick {
    fn shared(&self) -> Arc<dyn Files> {
        Arc::new(self.clone())
    }

    /// Files opened since the last call.
    fn take_opens(&self) -> u64 {
        self.0.swap(0, Ordering::Relaxed)
    }
}

#[derive(Debug)]
struct Unsynced(Box<dyn WriteFile>);

impl WriteFile for Unsynced {
    fn write_all_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.0.write_all_at(bytes, offset)
    }

    fn sync(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Files for Quick {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        Disk.create_dir(path)
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn WriteFile>> {
        Ok(Box::new(Unsynced(Disk.create(path)?)))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn ReadFile>> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Disk.open(path)
    }

    fn names(&self, dir: &Path) -> io::Result<Vec<String>> {
        Disk.names(dir)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        Disk.rename(from, to)
    }

    fn sync_file(&self, _path: &Path) -> io::Result<()> {
        Ok(())
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        Disk.remove_file(path)
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        Disk.remove_dir(path)
    }

    fn sync_dir(&self, _path: &Path) -> io::Result<()> {
        Ok(())
    }

    fn stat(&self, path: &Path) -> io::Result<Stamp> {
        Disk.stat(path)
    }

    fn append(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        Disk.append(path, bytes)
    }

    fn boot(&self) -> Option<String> {
        Disk.boot()
    }

    fn is_in_memory(&self, dir: &Path) -> bool {
        Disk.is_in_memory(dir)
    }

    fn lock(&self, path: &Path) -> io::Result<Locking> {
        Disk.lock(path)
    }
}

const DELTAS: u32 = 100_000;
const PAGES: u64 = 2000;

/// What page `number` holds in delta `n`: each delta writes two pages.
fn seed(n: u32, number: u64) -> u32 {
    let wrote = |n: u32| u64::from(n) % PAGES == number || u64::from(n) * 7 % PAGES == number;
    (1..=n)
        .rev()
        .take(2 * PAGES as usize)
        .find(|n| wrote(*n))
        .map_or(number as u32, |n| n * 5 + 3)
}

#[test]
fn a_hundred_thousand_deltas_are_listed_by_one_file_and_read_by_few() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let dir = folder.path().join("store");
    let files = Quick::default();
    let store = Store::open_or_create_with(files.shared(), &dir).expect("a store");
    let mut session = store.create_session(&info(7)).expect("a session");
    let start = Instant::now();
    let mut ids = vec![
        publish(&mut session, None, [], (0..PAGES).map(|n| (n, n as u32)))
            .expect("a base")
            .id,
    ];
    for n in 1..=DELTAS {
        let mut pending = session
            .begin(SnapshotKind::Delta, ids.last().copied())
            .expect("begun");
        let pages = [u64::from(n) % PAGES, u64::from(n) * 7 % PAGES];
        let content = pages.map(|page| (page, n * 5 + 3));
        pending.append(&batch(0, content)).expect("pages");
        let done = pending.publish(&state(7), &Costs::default());
        ids.push(done.expect("published").id);
    }
    println!("{DELTAS} deltas made in {:?}", start.elapsed());

    files.take_opens();
    let start = Instant::now();
    let store = Store::open_with(files.shared(), &dir).expect("opens");
    let latest = store.resolve("latest", None).expect("the newest");
    println!("opened, listed and resolved in {:?}", start.elapsed());
    // The marker, the description of the session, the headers; no pack, no tags.
    let opens = files.take_opens();
    assert!(opens <= 5, "{opens} files opened for a listing");
    assert_eq!(Some(&latest), ids.last());

    let mut most = 0;
    let mut page = [0; PAGE_SIZE as usize];
    for at in [0, 1, 17, 4095, 4097, 65_535, 77_777, 99_999, 100_000] {
        let reader = Store::open_with(files.shared(), &dir).expect("opens");
        files.take_opens();
        let snapshot = reader.snapshot(ids[at as usize]).expect("there");
        for number in [0, 3, 1234] {
            assert!(
                snapshot
                    .read_page(number * PAGE_SIZE, &mut page)
                    .expect("readable")
            );
            assert!(
                page == super::support::page(seed(at, number)),
                "@{at} page {number}"
            );
        }
        most = most.max(files.take_opens());
    }
    // 15 jumps for each hexadecimal digit of the depth at most, the file with the full list, and the pages' own.
    assert!(most <= 15 * 5 + 1 + 3, "{most} files opened for a page");

    // Without its list the store is slower, and the list can be made anew from the files alone.
    let headers = dir.join(session.id().to_string()).join("headers");
    std::fs::remove_file(&headers).expect("removed");
    assert_eq!(store.list().expect("a listing").len(), ids.len());
    assert!(files.take_opens() > u64::from(DELTAS));
    let rebuilt = store.rebuild_headers(session.id()).expect("rebuilt");
    assert_eq!(rebuilt, ids.len() as u64);
    files.take_opens();
    assert_eq!(store.list().expect("a listing").len(), ids.len());
    assert!(files.take_opens() <= 3);
}

#[test]
fn a_list_of_headers_that_is_wrong_is_not_believed() {
    let (_dir, store) = new_store();
    let mut session = store.create_session(&info(7)).expect("a session");
    let mut parent = None;
    for n in 0..5 {
        parent = Some(
            publish(&mut session, parent, [], [(1, n)])
                .expect("published")
                .id,
        );
    }
    let list = store.list().expect("a listing");
    let headers = store.dir().join(session.id().to_string()).join("headers");
    let whole = std::fs::read(&headers).expect("written");
    assert_eq!(whole.len(), 5 * 280);
    // Cut, shifted, empty, noise before it, damaged anywhere: the listing is the same.
    let mut wrong = vec![
        (whole[..700].to_vec(), true),
        (whole[3..].to_vec(), true),
        (Vec::new(), false),
        ([&[7; 100_000][..], &whole].concat(), true),
    ];
    for at in (0..whole.len()).step_by(37) {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x10;
        // The last four bytes of a record mean nothing.
        wrong.push((bytes, at % 280 < 276));
    }
    for (bytes, damaged) in wrong {
        std::fs::write(&headers, &bytes).expect("written");
        assert_eq!(store.list().expect("a listing"), list);
        let report = store.verify(None).expect("listable");
        assert!(report.is_clean(), "{report:?}");
        let named = report.notes.iter().any(|note| note.contains("--rebuild"));
        assert_eq!(named, damaged, "{report:?}");
    }
    // The next writer puts it right.
    std::fs::write(&headers, &whole[..700]).expect("written");
    let id = session.id();
    drop(session);
    let mut session = store.open_session(id).expect("free");
    publish(&mut session, parent, [], [(2, 2)]).expect("published");
    assert_eq!(std::fs::read(&headers).expect("written").len(), 6 * 280);
    assert!(store.verify(None).expect("listable").is_clean());
    // A file that changed since is read itself.
    let path = &list[2].path;
    let bytes = std::fs::read(path).expect("a snapshot");
    std::fs::write(path, &bytes[..100]).expect("cut");
    assert_eq!(store.list().expect("a listing").len(), 5);
}
