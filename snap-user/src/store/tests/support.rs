//! What the tests of the store share.

use crate::codec::Scratch;
use crate::model::{Costs, PAGE_SIZE, Page, PageSet, ProcessState, SnapshotId, SnapshotKind};
use crate::store::{
    Disk, EncodedBatch, Identities, Keys, PageSink, PageSource, Published, Recipients, Session,
    SessionInfo, Snapshot, Store, StoreError,
};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tempfile::TempDir;

/// What a snapshot should hold: page number → seed of its content.
pub type Memory = BTreeMap<u64, u32>;

/// Seeds from here on are of pages that differ in few words from others of their family: the lower four bits are
/// the family, those above them how many words.
pub const FAMILIES: u32 = 1 << 31;

/// A page made from a seed. Seeds choose among all encodings.
pub fn page(seed: u32) -> Page {
    let mut page = [0; PAGE_SIZE as usize];
    if seed >= FAMILIES {
        page = self::page((seed & 0xf) * 5 + 2);
        for n in 0..u64::from(seed >> 4 & 0x3f) {
            page.as_chunks_mut::<8>().0[(n * 37 % 512) as usize] = (n * n).to_le_bytes();
        }
        return page;
    }
    match seed % 5 {
        0 => {}
        1 => page.fill(seed as u8 | 1),
        2 => {
            let mut state = u64::from(seed) | 1;
            for word in page.chunks_exact_mut(8) {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                word.copy_from_slice(&state.to_le_bytes());
            }
        }
        _ => {
            for (at, word) in page.chunks_exact_mut(4).enumerate() {
                word.copy_from_slice(&(seed + at as u32 / 8).to_le_bytes());
            }
        }
    }
    page
}

/// A store in a folder of its own.
pub fn new_store() -> (TempDir, Store) {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let store = Store::open_or_create(&dir.path().join("store")).expect("a new store");
    (dir, store)
}

/// As [`new_store`], but as if it were on a disk, wherever the folder is.
pub fn new_disk_store() -> (TempDir, Store) {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let files = super::files::TestFiles::default().shared();
    let store = Store::open_or_create_with(files, &dir.path().join("store"));
    (dir, store.expect("a new store"))
}

/// All files and folders below a folder, ascending.
pub fn below(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            found.extend(below(&path));
        }
        found.push(path);
    }
    found.sort();
    found
}

/// All files below a folder, ascending.
pub fn files_below(dir: &Path) -> Vec<PathBuf> {
    let mut files = below(dir);
    files.retain(|path| !path.is_dir());
    files
}

/// What is below a folder and has these bytes, in it or in its name.
pub fn having(dir: &Path, bytes: &[u8]) -> Vec<PathBuf> {
    let has = |all: &[u8]| all.windows(bytes.len()).any(|part| part == bytes);
    let mut found = below(dir);
    found.retain(|path| {
        let name = path.file_name().expect("a name").as_encoded_bytes();
        has(name) || !path.is_dir() && has(&std::fs::read(path).expect("readable"))
    });
    found
}

/// Whether a file or folder has no name yet.
pub fn is_unnamed(path: &Path) -> bool {
    let name = path.file_name().expect("a name");
    name.as_encoded_bytes().starts_with(b".tmp-")
}

/// Someone for whom sessions are sealed, or nobody.
#[derive(Clone, Debug, Default)]
pub struct Owner(Option<(Identities, Recipients)>);

impl Owner {
    /// With a key of their own.
    pub fn new() -> Self {
        Self(Some(Identities::generate()))
    }

    /// What a process of theirs begins with.
    pub fn keys(&self) -> Arc<Keys> {
        let (identities, recipients) = self.0.clone().unwrap_or_default();
        Keys::new(identities, recipients)
    }

    /// The same, in a process that stores without sealing.
    pub fn reading(&self) -> Arc<Keys> {
        let (identities, _) = self.0.clone().unwrap_or_default();
        Keys::new(identities, Recipients::default())
    }

    /// They read, and seal for someone else.
    pub fn sealing_for(&self, other: &Self) -> Arc<Keys> {
        let (identities, _) = self.0.clone().unwrap_or_default();
        let (_, recipients) = other.0.clone().unwrap_or_default();
        Keys::new(identities, recipients)
    }

    /// A store of theirs in a folder of its own.
    pub fn new_store(&self) -> (TempDir, Store) {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let store = self.open_or_create(&dir.path().join("store"));
        (dir, store)
    }

    /// As another process of theirs opens a store.
    pub fn open(&self, dir: &Path) -> Store {
        let keys = self.keys();
        Store::open_with_keys(Arc::new(Disk), keys, dir).expect("the store opens")
    }

    /// As [`Owner::open`], and makes it first if need be.
    pub fn open_or_create(&self, dir: &Path) -> Store {
        let store = Store::open_or_create_with_keys(Arc::new(Disk), self.keys(), dir);
        store.expect("the store opens or is made")
    }
}

pub fn info(pid: i32) -> SessionInfo {
    SessionInfo {
        pid,
        comm: "victim".into(),
        exe: "/usr/bin/victim".into(),
        ..SessionInfo::default()
    }
}

pub fn state(pid: i32) -> ProcessState {
    ProcessState {
        pid,
        comm: "victim".into(),
        ..ProcessState::default()
    }
}

pub fn batch(pass: u32, pages: impl IntoIterator<Item = (u64, u32)>) -> EncodedBatch {
    let mut scratch = Scratch::default();
    let mut batch = EncodedBatch::new(pass);
    for (number, seed) in pages {
        batch.push(number * PAGE_SIZE, &page(seed), &mut scratch);
    }
    batch
}

/// The pages with these numbers.
pub fn set(numbers: impl IntoIterator<Item = u64>) -> PageSet {
    PageSet::from_pages(numbers.into_iter().map(|n| n * PAGE_SIZE).collect())
}

/// Publishes a snapshot that drops some pages and adds others.
pub fn publish(
    session: &mut Session,
    parent: Option<SnapshotId>,
    dropped: impl IntoIterator<Item = u64>,
    pages: impl IntoIterator<Item = (u64, u32)>,
) -> Result<Published, StoreError> {
    let kind = match parent {
        Some(_) => SnapshotKind::Delta,
        None => SnapshotKind::Base,
    };
    let pid = session.info().pid;
    let mut pending = session.begin(kind, parent)?;
    pending.drop_ranges(&set(dropped));
    pending.append(&batch(0, pages))?;
    pending.publish(&state(pid), &Costs::default())
}

/// All pages of a snapshot are what `memory` says, read one by one and in bulk, and there are no others.
pub fn assert_holds(snapshot: &Snapshot, memory: &Memory) {
    let table = snapshot.page_table().expect("a readable page table");
    let addrs: Vec<u64> = table.iter().map(|page| page.0).collect();
    let want: Vec<u64> = memory.keys().map(|number| number * PAGE_SIZE).collect();
    assert_eq!(addrs, want, "the pages of {:?}", snapshot.id());
    let mut bulk = BTreeMap::new();
    snapshot
        .read_pages(&addrs, &mut |addr, content| {
            assert!(bulk.insert(addr, *content).is_none(), "{addr:#x} twice");
        })
        .expect("readable pages");
    for (number, seed) in memory {
        let addr = number * PAGE_SIZE;
        let mut one = [0xcc; PAGE_SIZE as usize];
        assert!(snapshot.read_page(addr, &mut one).expect("a readable page"));
        assert!(one == page(*seed), "page {addr:#x} of {:?}", snapshot.id());
        assert!(bulk.get(&addr) == Some(&one), "page {addr:#x} in bulk");
    }
    let mut absent = [0; PAGE_SIZE as usize];
    let none = (0..).find(|n| !memory.contains_key(n)).expect("endless");
    assert!(
        !snapshot
            .read_page(none * PAGE_SIZE, &mut absent)
            .expect("no page")
    );
}

/// Each page of a snapshot is what `memory` says, or an error: never something else, and none is missing. Gives the errors.
pub fn errors_of(snapshot: &Snapshot, memory: &Memory, what: &str) -> Vec<StoreError> {
    let mut errors = Vec::new();
    for (number, seed) in memory {
        let mut content = page(0);
        match snapshot.read_page(number * PAGE_SIZE, &mut content) {
            Ok(true) => assert!(content == page(*seed), "{what}: a wrong page"),
            Ok(false) => panic!("{what}: a page is missing without an error"),
            Err(error) => errors.push(error),
        }
    }
    errors
}
