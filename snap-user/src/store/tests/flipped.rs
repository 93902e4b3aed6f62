//! One bit flipped in each kind of file beside plain snapshots, and in each that is sealed: found and named, and nothing that
//! does not need it is harmed. `corruption.rs` does it to plain snapshots, `common.rs` to what is borrowed.

use super::faults_small::{Sample, memory};
use super::files::TestFiles;
use super::support::*;
use crate::model::{PAGE_SIZE, SnapshotId};
use crate::store::{Report, Store, StoreError};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// A bit of each of so many bytes of a file, spread over it, is flipped, one at a time.
const BYTES: usize = 40;
/// Between the beginning of a flat image and its first page nothing is stored.
const FLAT_GAP: std::ops::Range<usize> = 96 + 24..PAGE_SIZE as usize;

/// Every file of a store but those that hold nothing, locks, and plain snapshots.
fn files(dir: &Path, is_sealed: bool) -> Vec<PathBuf> {
    let mut found = files_below(dir);
    found.retain(|path| {
        let name = path.file_name().expect("a name").to_string_lossy();
        let is_one = !name.ends_with("lock") && (is_sealed || !name.ends_with(".ksnap"));
        is_one && path.metadata().is_ok_and(|meta| meta.len() > 0)
    });
    found
}

/// A store as whoever comes next opens it.
fn open(owner: &Owner, dir: &Path) -> Result<Store, StoreError> {
    Store::open_with_keys(TestFiles::default().shared(), owner.keys(), dir)
}

/// What is said names the file and its folder: a flat image by its snapshot.
fn is_named(report: &Report, path: &Path) -> bool {
    let name = path.file_name().expect("a file").to_string_lossy();
    let name = match (path.parent(), SnapshotId::from_hex(&name)) {
        (Some(folder), Some(id)) if folder.ends_with("flat") => id.short().to_string(),
        _ => name.into_owned(),
    };
    let problems = report.problems.iter();
    let problems = problems.map(|problem| format!("{} {}", problem.path.display(), problem.what));
    let mut said = problems.chain(report.notes.iter().cloned());
    let folder = path.parent().and_then(Path::file_name);
    let folder = folder.expect("in a folder").to_string_lossy();
    said.any(|text| text.contains(&name) && text.contains(&*folder))
}

/// All snapshots of a process are whole, or, where they may be harmed, are an error and never something else.
fn assert_right(
    store: &Store,
    sample: &Sample,
    (process, gone): (usize, &[usize]),
    harmed: bool,
    what: &str,
) {
    let ids = sample.ids[process].iter().enumerate();
    for (n, id) in ids.filter(|(n, _)| !gone.contains(n)) {
        match store.snapshot(*id) {
            Ok(snapshot) if harmed => drop(errors_of(&snapshot, &memory(n), what)),
            Ok(snapshot) => assert_holds(&snapshot, &memory(n)),
            Err(error) => assert!(harmed, "{what}: {error}"),
        }
    }
}

/// Flips bits in one file after the other. Gives the kinds of these: how the file's name ends, or the folder that it is in.
fn flip_each(owner: &Owner, is_sealed: bool) -> BTreeSet<String> {
    // Pages and page tables of both are in the pack of the second process.
    const GONE: [usize; 2] = [0, 2];
    let sample = Sample::new(owner);
    sample.squash(&[1, 3]).expect("merged");
    let dir = sample.store.dir();
    for process in [0, 1] {
        let id = sample.session(process);
        // A sealed one does not grow by itself.
        sample.store.rebuild_headers(id).expect("made anew");
    }
    if !is_sealed {
        let snapshot = sample.store.snapshot(sample.ids[0][3]).expect("there");
        sample.store.flat(&snapshot).expect("an image");
    }
    let sessions = [0, 1].map(|process| dir.join(sample.session(process).to_string()));
    let mut kinds = BTreeSet::new();
    let mut unnamed = Vec::new();
    let mut flips = 0;
    for path in files(dir, is_sealed) {
        let clean = fs::read(&path).expect("a file");
        for at in (0..clean.len()).step_by(clean.len().div_ceil(BYTES)) {
            if path.starts_with(dir.join("flat")) && FLAT_GAP.contains(&at) {
                continue;
            }
            let bit = flips % 8;
            flips += 1;
            let mut bytes = clean.clone();
            bytes[at] ^= 1 << bit;
            fs::write(&path, bytes).expect("written");
            let what = format!("bit {bit} of byte {at} of {}", path.display());
            let store = match open(owner, dir) {
                Ok(store) => store,
                // Nothing can be said of what is in it, and it is said which file that is.
                Err(error) => {
                    assert!(path.ends_with("ksnap-store"), "{what}: {error}");
                    assert!(error.to_string().contains("ksnap-store"), "{error}");
                    continue;
                }
            };
            let report = store.verify(None).expect("the store can be listed");
            if !is_named(&report, &path) {
                unnamed.push(what.clone());
            }
            for (process, gone) in [(0, &[][..]), (1, &GONE)] {
                let harmed = path.starts_with(&sessions[process]);
                assert_right(&store, &sample, (process, gone), harmed, &what);
            }
        }
        fs::write(&path, clean).expect("restored");
        let folder = path.parent().and_then(Path::file_name);
        let folder = folder.expect("in a folder").to_string_lossy().into_owned();
        kinds.insert(match ["tags", "trees", "flat"].contains(&folder.as_str()) {
            true => folder,
            false => {
                let name = path.file_name().expect("a file").to_string_lossy();
                name.rsplit('.').next().unwrap_or_default().to_owned()
            }
        });
    }
    assert_eq!(unnamed, [""; 0]);
    let store = open(owner, dir).expect("opens");
    let report = store.verify(None).expect("the store can be listed");
    assert!(report.is_clean(), "{report:?}");
    kinds
}

#[test]
fn a_bit_flipped_in_any_file_is_named_and_harms_no_other_session() {
    let kinds = flip_each(&Owner::default(), false);
    let want = [
        "flat",
        "headers",
        "json",
        "kpack",
        "ksnap-store",
        "tags",
        "trees",
    ];
    assert_eq!(kinds, want.map(str::to_owned).into());
}

#[test]
fn a_bit_flipped_in_any_file_of_a_sealed_store_is_named_and_harms_no_other_session() {
    let kinds = flip_each(&Owner::new(), true);
    let want = [
        "age",
        "headers",
        "json",
        "kpack",
        "ksnap",
        "ksnap-store",
        "tags",
        "trees",
    ];
    assert_eq!(kinds, want.map(str::to_owned).into());
}
