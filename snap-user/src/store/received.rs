//! Pages that another machine sends, by their content, until the snapshot that they belong to is published.
//!
//! A file for each connection in the store's folder `received`: records of hash, encoding, length and bytes, one after
//! the other. Nothing is synced, and nothing in it is trusted: a page is decoded and its hash compared whenever
//! it is read, and a record that a crash has cut ends the file. So a transfer that was interrupted goes on
//! with what is there. A record that turns out to be damaged loses its hash, so that the next attempt asks for the page.

use super::directory::Store;
use super::error::StoreError;
use super::flat::memory_file;
use super::received_left::{HEAD, Place, SUFFIX, evict, files, forget, head, records};
use crate::codec::{self, Encoding, LONGEST};
use crate::model::{PAGE_SIZE, Page};
use rustc_hash::FxHashMap;
use std::fs::{DirBuilder, File};
use std::hash::{BuildHasher, RandomState};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::PathBuf;

const FOLDER: &str = "received";
/// Gathered before it is written.
const BUFFER: usize = 1 << 20;

#[derive(Debug)]
struct Part {
    path: PathBuf,
    /// It is there for a later attempt to find; else it is in memory, and this is where it would be.
    has_name: bool,
    file: File,
}

impl Part {
    /// Has no later attempt find a record again: where it cannot be overwritten, nothing of this file.
    fn forget(&self, place: Place) {
        let path = self.path.display();
        let Err(error) = forget(&self.file, place) else {
            return;
        };
        if !self.has_name {
            return;
        }
        tracing::warn!(
            "{path}: a damaged page cannot be overwritten, and the file is removed: {error}"
        );
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!("{path}: cannot be removed: remove it before cloning again: {error}");
        }
    }
}

/// The pages of one transfer: those that come in now, and those that earlier attempts left.
#[derive(Debug)]
pub struct Received {
    /// The first one is being written.
    parts: Vec<Part>,
    out: BufWriter<File>,
    /// Bytes given to `out`.
    end: u64,
    places: FxHashMap<[u8; 32], Place>,
    scratch: Vec<u8>,
}

impl Store {
    /// Goes on with a transfer, or begins one. `transfer` names what is transferred: the same name finds what
    /// earlier attempts left. What is going to be sealed is kept in memory until then, and nothing is left of it.
    pub fn receive_pages(&self, transfer: &[u8]) -> Result<Received, StoreError> {
        let folder = self.dir().join(FOLDER);
        match DirBuilder::new().mode(0o700).create(&folder) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
                return Err(StoreError::io("create folder", &folder)(e));
            }
            _ => {}
        }
        let hash = blake3::hash(transfer).to_hex();
        let prefix = &hash.as_str()[..16];
        let files = files(&folder);
        evict(&files, prefix, false);
        let own = RandomState::new().hash_one(std::process::id());
        let path = folder.join(format!("{prefix}-{own:016x}{SUFFIX}"));
        let has_name = !self.seals();
        let file = match has_name {
            true => File::options()
                .read(true)
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&path)
                .map_err(StoreError::io("create", &path))?,
            false => memory_file(&path)?,
        };
        let write = file.try_clone().map_err(StoreError::io("open", &path))?;
        let mut received = Received {
            parts: vec![Part {
                path,
                has_name,
                file,
            }],
            out: BufWriter::with_capacity(BUFFER, write),
            end: 0,
            places: FxHashMap::default(),
            scratch: Vec::new(),
        };
        for left in files {
            if has_name
                && left.name.starts_with(prefix)
                && let Err(e) = received.adopt(left.path)
            {
                tracing::debug!("left by an earlier attempt: {e}");
            }
        }
        Ok(received)
    }
}

/// No transfer has this name.
const NONE: &str = "/";

impl Store {
    /// Bytes of pages that transfers have left which have not ended.
    pub fn received_bytes(&self) -> u64 {
        let left = files(&self.dir().join(FOLDER));
        left.iter().map(|left| left.bytes).sum()
    }

    /// Removes what of them is out of date; with `dry_run` only says how much that would free. Best effort.
    pub fn clear_received(&self, dry_run: bool) -> u64 {
        evict(&files(&self.dir().join(FOLDER)), NONE, dry_run)
    }
}

impl Received {
    /// Takes over the records of a file, up to the first that is not whole.
    fn adopt(&mut self, path: PathBuf) -> io::Result<()> {
        let file = File::options().read(true).write(true).open(&path)?;
        let number = self.parts.len() as u32;
        // Before its records, which are found by its number also where not all of them can be read.
        self.parts.push(Part {
            path,
            has_name: true,
            file,
        });
        records(
            &self.parts[number as usize].file,
            number,
            &mut |hash, place| {
                self.places.entry(hash).or_insert(place);
            },
        )
    }

    /// Whether there is a record of a page. Only reading it shows that it is whole.
    pub fn has(&self, hash: &[u8; 32]) -> bool {
        self.places.contains_key(hash)
    }

    /// Adds a page, after a look at whether it is what its hash says. `false` when it is not.
    pub fn add(
        &mut self,
        hash: &[u8; 32],
        encoding: Encoding,
        bytes: &[u8],
    ) -> Result<bool, StoreError> {
        self.add_page(hash, encoding, bytes, &mut [0; PAGE_SIZE as usize])
    }

    /// The same; `page` has it from then on.
    pub fn add_page(
        &mut self,
        hash: &[u8; 32],
        encoding: Encoding,
        bytes: &[u8],
        page: &mut Page,
    ) -> Result<bool, StoreError> {
        if bytes.len() > LONGEST || codec::decode(encoding, bytes, None, page).is_err() {
            return Ok(false);
        }
        if blake3::hash(page) != *hash {
            return Ok(false);
        }
        let path = &self.parts[0].path;
        self.out
            .write_all(&head(hash, encoding, bytes))
            .and_then(|()| self.out.write_all(bytes))
            .map_err(StoreError::io("write", path))?;
        let place = Place {
            file: 0,
            at: self.end + HEAD as u64,
            len: bytes.len() as u16,
            encoding,
        };
        self.end = place.at + bytes.len() as u64;
        self.places.insert(*hash, place);
        Ok(true)
    }

    /// Reads a page, and tells how it was sent. `None` when it is not there, or damaged: then it is forgotten, also by
    /// the attempts that come after this one.
    pub fn read(
        &mut self,
        hash: &[u8; 32],
        page: &mut Page,
    ) -> Result<Option<(Encoding, &[u8])>, StoreError> {
        let Some(place) = self.places.get(hash).copied() else {
            return Ok(None);
        };
        if place.file == 0 {
            let path = &self.parts[0].path;
            self.out.flush().map_err(StoreError::io("write", path))?;
        }
        let part = &self.parts[place.file as usize];
        self.scratch.resize(place.len.into(), 0);
        let read = part.file.read_exact_at(&mut self.scratch, place.at);
        let whole = read.is_ok()
            && codec::decode(place.encoding, &self.scratch, None, page).is_ok()
            && blake3::hash(page) == *hash;
        if !whole {
            self.places.remove(hash);
            part.forget(place);
            return Ok(None);
        }
        Ok(Some((place.encoding, &self.scratch)))
    }

    /// All of it is published: nothing has to be kept.
    pub fn finish(self) {
        for part in self.parts.iter().filter(|part| part.has_name) {
            if let Err(e) = std::fs::remove_file(&part.path) {
                tracing::debug!("{}: {e}", part.path.display());
            }
        }
    }
}

impl Drop for Received {
    fn drop(&mut self) {
        if self.end == 0 && self.parts[0].has_name {
            // Nothing came: nothing to go on with.
            let _ = std::fs::remove_file(&self.parts[0].path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::received_left::KEPT;
    use super::*;
    use crate::codec::{Scratch, encode};
    use std::time::{Duration, SystemTime};

    fn page(seed: u8) -> (Page, [u8; 32], Encoding, Vec<u8>) {
        let mut page = [0; PAGE_SIZE as usize];
        for (n, byte) in page.iter_mut().enumerate() {
            *byte = seed.wrapping_mul(n as u8);
        }
        let mut bytes = Vec::new();
        let encoding = encode(&page, None, &mut Scratch::default(), &mut bytes);
        (page, *blake3::hash(&page).as_bytes(), encoding, bytes)
    }

    fn store() -> (Store, tempfile::TempDir) {
        let folder = tempfile::tempdir().unwrap();
        (
            Store::open_or_create(&folder.path().join("store")).unwrap(),
            folder,
        )
    }

    fn count(store: &Store) -> usize {
        files(&store.dir().join(FOLDER)).len()
    }

    #[test]
    fn a_transfer_goes_on_with_what_an_earlier_attempt_left() {
        let (store, _folder) = store();
        let mut found = [0; PAGE_SIZE as usize];
        let mut first = store.receive_pages(b"one").unwrap();
        for seed in 1..4 {
            let (_, hash, encoding, bytes) = page(seed);
            assert!(first.add(&hash, encoding, &bytes).unwrap());
        }
        drop(first);
        let mut second = store.receive_pages(b"one").unwrap();
        let (content, hash, encoding, bytes) = page(2);
        assert!(second.has(&hash));
        assert_eq!(
            second.read(&hash, &mut found).unwrap(),
            Some((encoding, &bytes[..]))
        );
        assert!(found == content);
        assert!(!store.receive_pages(b"two").unwrap().has(&hash));
        second.finish();
        assert_eq!(count(&store), 0);
    }

    #[test]
    fn a_page_that_is_not_what_its_hash_says_is_not_taken() {
        let (store, _folder) = store();
        let mut received = store.receive_pages(b"one").unwrap();
        let (_, hash, encoding, bytes) = page(3);
        assert!(!received.add(&[0; 32], encoding, &bytes).unwrap());
        assert!(!received.add(&hash, Encoding::Raw, &bytes[..1]).unwrap());
        assert!(!received.add(&hash, Encoding::Changes, &bytes).unwrap());
        assert!(!received.has(&hash));
        drop(received);
        assert_eq!(count(&store), 0);
    }

    #[test]
    fn damage_and_a_cut_record_cost_only_what_they_hit() {
        let (store, _folder) = store();
        let mut received = store.receive_pages(b"one").unwrap();
        let path = received.parts[0].path.clone();
        let pages = [1, 2, 3, 4].map(page);
        for (_, hash, encoding, bytes) in &pages {
            assert!(received.add(hash, *encoding, bytes).unwrap());
        }
        drop(received);
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[HEAD] ^= 1;
        bytes.truncate(bytes.len() - 1);
        std::fs::write(&path, bytes).unwrap();
        let mut received = store.receive_pages(b"one").unwrap();
        let mut found = [0; PAGE_SIZE as usize];
        let mut read = |n: usize| received.read(&pages[n].1, &mut found).unwrap().is_some();
        assert_eq!(
            [read(0), read(1), read(2), read(3)],
            [false, true, true, false]
        );
        assert!(!received.has(&pages[0].1));
        drop(received);
        // What was damaged is asked for again, and the rest is still there.
        let received = store.receive_pages(b"one").unwrap();
        let has = pages.each_ref().map(|page| received.has(&page.1));
        assert_eq!(has, [false, true, true, false]);
    }

    #[test]
    fn a_damaged_record_that_cannot_be_overwritten_fails_nothing_and_is_not_found_again() {
        let (store, _folder) = store();
        let mut received = store.receive_pages(b"one").unwrap();
        let path = received.parts[0].path.clone();
        let pages = [1, 2].map(page);
        for (_, hash, encoding, bytes) in &pages {
            assert!(received.add(hash, *encoding, bytes).unwrap());
        }
        drop(received);
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[HEAD] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        let mut received = store.receive_pages(b"one").unwrap();
        received.parts[1].file = File::open(&path).unwrap();
        let mut found = [0; PAGE_SIZE as usize];
        let mut read = |n: usize| received.read(&pages[n].1, &mut found).unwrap().is_some();
        assert_eq!([read(0), read(1)], [false, true]);
        drop(received);
        assert!(!store.receive_pages(b"one").unwrap().has(&pages[0].1));
    }

    #[test]
    fn what_nobody_came_back_for_is_removed() {
        let (store, _folder) = store();
        let mut received = store.receive_pages(b"one").unwrap();
        let (_, hash, encoding, bytes) = page(3);
        assert!(received.add(&hash, encoding, &bytes).unwrap());
        let path = received.parts[0].path.clone();
        drop(received);
        let old = SystemTime::now() - KEPT - Duration::from_secs(60);
        File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_modified(old)
            .unwrap();
        drop(store.receive_pages(b"two").unwrap());
        assert_eq!(count(&store), 0);
    }
}
