//! Damage is named, and does not spread to snapshots that do not need the damaged bytes.

use super::support::*;
use crate::image::{Header, LATE_LEN, LATE_OFFSET};
use crate::model::SnapshotId;
use crate::store::{Store, StoreError};
use std::fs;
use std::path::PathBuf;
use tempfile::TempDir;

struct Fixture {
    _folder: TempDir,
    store: Store,
    snapshots: Vec<(SnapshotId, Memory, PathBuf, Header)>,
}

/// A base, 17 deltas so that one of them has a span, and a second session beside it.
fn fixture() -> Fixture {
    let (folder, store) = new_store();
    let mut snapshots = Vec::new();
    for pid in [7, 8] {
        let mut session = store.create_session(&info(pid)).expect("a session");
        let mut memory: Memory = (0..60).map(|n| (n * 2, n as u32)).collect();
        let mut parent = None;
        for n in 0..18u64 {
            let writes = if n == 0 {
                memory.clone()
            } else {
                [(n * 2, 1000 + n as u32)].into()
            };
            let gone = (n > 0).then_some(118 - n * 2);
            memory.extend(&writes);
            if let Some(gone) = gone {
                memory.remove(&gone);
            }
            let kept = writes.into_iter().filter(|(page, _)| Some(*page) != gone);
            let done = publish(&mut session, parent, gone, kept).expect("a snapshot");
            parent = Some(done.id);
            let snapshot = store.snapshot(done.id).expect("the snapshot");
            let name = format!("{}/{:08}-{}.ksnap", session.id(), done.seq, done.id);
            let path = store.dir().join(name);
            snapshots.push((done.id, memory.clone(), path, snapshot.header().clone()));
        }
    }
    let store = Store::open(store.dir()).expect("the store");
    Fixture {
        _folder: folder,
        store,
        snapshots,
    }
}

impl Fixture {
    /// With this file damaged: `verify` names it, and no snapshot gives a wrong page. Returns the damage as named.
    fn assert_contained(&self, damaged: usize, what: &str) -> Vec<String> {
        // A store of its own: nothing comes from a cache.
        let store = Store::open(self.store.dir()).expect("the store opens");
        let report = store.verify(None).expect("the store can be listed");
        let path = &self.snapshots[damaged].2;
        let named: Vec<String> = report
            .problems
            .iter()
            .filter(|problem| problem.path == *path)
            .map(|problem| problem.what.clone())
            .collect();
        assert!(!named.is_empty(), "{what}: not found; {report:?}");
        let mut whole = 0;
        for (id, memory, _, header) in &self.snapshots {
            let bad = report
                .problems
                .iter()
                .any(|problem| problem.id == Some(*id));
            if !bad {
                whole += 1;
                let snapshot = store.snapshot(*id).expect("named as whole");
                assert_eq!(snapshot.header(), header, "{what}");
                snapshot.manifest().expect("named as whole");
                assert_holds(&snapshot, memory);
                continue;
            }
            let Ok(snapshot) = store.snapshot(*id) else {
                continue;
            };
            for error in errors_of(&snapshot, memory, what) {
                let is_told = matches!(
                    error,
                    StoreError::Corrupt { .. }
                        | StoreError::NewerVersion { .. }
                        | StoreError::NotFound { .. }
                );
                assert!(is_told, "{what}: {error:?}");
            }
        }
        assert!(whole >= 18, "{what}: the other session is whole");
        named
    }
}

#[test]
fn a_flipped_bit_anywhere_is_found_and_named_by_its_section() {
    let fixture = fixture();
    // The base, a plain delta, and the delta with the span.
    for target in [0, 3, 16] {
        let (_, _, path, header) = &fixture.snapshots[target];
        let clean = fs::read(path).expect("the file");
        let sections = [
            ("header", 0, LATE_OFFSET),
            ("page", header.data.offset, header.data.end()),
            ("index", header.index.offset, header.index.end()),
            ("dropped", header.dropped.offset, header.dropped.end()),
            ("span", header.span.offset, header.span.end()),
            ("manifest", header.manifest.offset, header.manifest.end()),
        ];
        let mut flips = 0;
        for (part, start, end) in sections {
            let step = ((end - start) / 24).max(1);
            for at in (start..end).step_by(step as usize) {
                let mut bytes = clean.clone();
                bytes[at as usize] ^= 1 << (at % 8);
                fs::write(path, &bytes).expect("written");
                let what = format!("byte {at} of {path:?} ({part})");
                let named = fixture.assert_contained(target, &what);
                assert!(
                    named
                        .iter()
                        .any(|why| why.contains(part) || why.contains("newer ksnap")),
                    "{what}: {named:?}"
                );
                flips += 1;
            }
        }
        assert!(flips > 60, "{flips}");
        fs::write(path, &clean).expect("restored");
    }
    let report = fixture.store.verify(None).expect("the store can be listed");
    assert!(report.is_clean(), "{report:?}");
}

#[test]
fn the_late_field_is_the_only_part_that_may_be_lost() {
    let fixture = fixture();
    let (id, memory, path, header) = &fixture.snapshots[0];
    assert!(header.late.is_some());
    let mut bytes = fs::read(path).expect("the file");
    bytes[LATE_OFFSET as usize..][..LATE_LEN].fill(0);
    fs::write(path, &bytes).expect("written");
    let store = Store::open(fixture.store.dir()).expect("the store");
    assert!(store.verify(None).expect("listable").is_clean());
    let snapshot = store.snapshot(*id).expect("the snapshot");
    assert_eq!(snapshot.header().late, None);
    assert_holds(&snapshot, memory);
}

#[test]
fn a_file_cut_short_or_grown_is_found() {
    let fixture = fixture();
    let (_, _, path, header) = &fixture.snapshots[16];
    let clean = fs::read(path).expect("the file");
    let middle = |section: &crate::image::Section| section.offset + section.len / 2;
    for len in [
        0,
        1,
        255,
        256,
        middle(&header.data),
        header.data.end(),
        middle(&header.index),
        header.index.end(),
        header.dropped.end(),
        middle(&header.span),
        header.span.end(),
        middle(&header.manifest),
        header.manifest.end() - 1,
        header.manifest.end() + 1,
    ] {
        let mut bytes = clean.clone();
        bytes.resize(len as usize, 0);
        fs::write(path, &bytes).expect("written");
        let named = fixture.assert_contained(16, &format!("cut to {len}"));
        assert!(
            named.iter().any(|why| why.contains("header")),
            "{len}: {named:?}"
        );
    }
}

#[test]
fn a_missing_or_swapped_file_is_found() {
    let fixture = fixture();
    let path = |n: usize| &fixture.snapshots[n].2;
    let clean = fs::read(path(5)).expect("the file");

    // Another snapshot under its name: whole in itself, and still wrong.
    fs::copy(path(6), path(5)).expect("copied");
    let named = fixture.assert_contained(5, "swapped");
    assert!(named[0].contains("another name"), "{named:?}");

    fs::remove_file(path(5)).expect("removed");
    let store = Store::open(fixture.store.dir()).expect("the store");
    let report = store.verify(None).expect("listable");
    let parent = fixture.snapshots[5].0.short();
    assert!(
        report.problems.iter().any(|problem| {
            problem.id == Some(fixture.snapshots[6].0)
                && problem
                    .what
                    .contains(&format!("parent {parent} is missing"))
        }),
        "{report:?}"
    );
    assert!(matches!(
        store.resolve("latest~12", Some(7)),
        Err(StoreError::NotFound { what }) if what.contains("missing or damaged")
    ));
    fs::write(path(5), clean).expect("restored");
    let store = Store::open(fixture.store.dir()).expect("the store");
    assert!(store.verify(None).expect("listable").is_clean());
}

#[test]
fn a_newer_format_is_told_from_damage() {
    let fixture = fixture();
    let (id, _, path, _) = &fixture.snapshots[2];
    let clean = fs::read(path).expect("the file");
    let mut bytes = clean.clone();
    bytes[8] = 9;
    fs::write(path, bytes).expect("written");
    let store = Store::open(fixture.store.dir()).expect("the store");
    assert!(matches!(
        store.snapshot(*id),
        Err(StoreError::NewerVersion {
            found: 9,
            supported: 1,
            ..
        })
    ));
    fs::write(path, clean).expect("restored");

    let marker = fixture.store.dir().join("ksnap-store");
    fs::write(&marker, "ksnap store 2\n").expect("written");
    assert!(matches!(
        Store::open(fixture.store.dir()),
        Err(StoreError::NewerVersion {
            found: 2,
            supported: 1,
            ..
        })
    ));
    fs::write(&marker, "something else").expect("written");
    assert!(matches!(
        Store::open(fixture.store.dir()),
        Err(StoreError::Corrupt { .. })
    ));
}
