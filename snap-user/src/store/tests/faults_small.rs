//! The small files beside the snapshots: wherever writing one of them fails, or its process dies, all that was there is whole,
//! the next try succeeds, and nothing stays behind.

use super::files::{Plan, TestFiles};
use super::support::*;
use super::trees::tree;
use crate::model::SnapshotId;
use crate::store::{Store, StoreError};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

const ENOSPC: i32 = 28;
const EIO: i32 = 5;

/// Two processes with four snapshots each. The first of one has a tag, and the second of both are a tree.
pub(super) struct Sample {
    owner: Owner,
    _folder: TempDir,
    files: TestFiles,
    pub(super) store: Store,
    pub(super) ids: [Vec<SnapshotId>; 2],
}

/// What snapshot n of a process holds.
pub(super) fn memory(n: usize) -> Memory {
    (0..=n as u64).map(|page| (page, page as u32 + 3)).collect()
}

impl Sample {
    pub(super) fn new(owner: &Owner) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let files = TestFiles::default();
        let dir = folder.path().join("store");
        let store = Store::open_or_create_with_keys(files.shared(), owner.keys(), &dir);
        let store = store.expect("a new store");
        let ids = [10, 11].map(|pid| {
            let mut session = store.create_session(&info(pid)).expect("a session");
            let mut ids: Vec<SnapshotId> = Vec::new();
            for n in 0..4 {
                let page = (n as u64, n as u32 + 3);
                let done = publish(&mut session, ids.last().copied(), [], [page]);
                ids.push(done.expect("a snapshot").id);
            }
            ids
        });
        let sample = Self {
            owner: owner.clone(),
            _folder: folder,
            files,
            store,
            ids,
        };
        sample.tag("good", 0, false).expect("a tag");
        sample.publish_tree(1).expect("a tree");
        sample
    }

    fn tag(&self, name: &str, n: usize, replace: bool) -> Result<(), StoreError> {
        self.store.set_tag(name, self.ids[0][n], replace).map(drop)
    }

    fn publish_tree(&self, n: usize) -> Result<(), StoreError> {
        self.store
            .publish_tree(&tree(self.ids[0][n], self.ids[1][n]))
    }

    /// Removes snapshots of the second process.
    pub(super) fn squash(&self, gone: &[u32]) -> Result<(), StoreError> {
        let pruner = self.store.pruner(self.session(1))?;
        let plan = pruner.plan_removal(&gone.iter().copied().collect::<BTreeSet<_>>())?;
        pruner.carry_out(&plan).map(drop)
    }

    pub(super) fn session(&self, process: usize) -> crate::image::SessionId {
        let found = self.store.snapshot(self.ids[process][3]);
        found.expect("the newest stays").header().session
    }

    fn tagged(&self, name: &str) -> Option<SnapshotId> {
        let tag = self.owner.open(self.store.dir()).tag(name);
        tag.expect("readable").map(|tag| tag.id)
    }

    fn listed(&self, id: SnapshotId) -> bool {
        let list = self.owner.open(self.store.dir()).list();
        list.expect("a listing").iter().any(|meta| meta.id == id)
    }

    /// All is there and whole, but for what a verb takes away.
    fn assert_whole(&self, verb: &Verb, what: &str) {
        let store = self.owner.open(self.store.dir());
        let report = store.verify(None).expect("the store can be listed");
        assert!(report.is_clean(), "{what}: {report:?}");
        for (process, ids) in self.ids.iter().enumerate() {
            for (n, id) in ids.iter().enumerate() {
                if verb.goes == Some((process, n)) && !self.listed(*id) {
                    continue;
                }
                assert_holds(&store.snapshot(*id).expect(what), &memory(n));
            }
        }
        let found = store.tree(self.ids[0][1]).expect("readable");
        assert_eq!(found, Some(tree(self.ids[0][1], self.ids[1][1])), "{what}");
        if verb.keeps_tag {
            assert_eq!(self.tagged("good"), Some(self.ids[0][0]), "{what}");
        }
    }
}

/// Files and folders that have no name yet, anywhere in a store.
fn unnamed(dir: &Path) -> Vec<PathBuf> {
    let mut found = below(dir);
    found.retain(|path| is_unnamed(path));
    found
}

/// Something that writes small files.
struct Verb {
    name: &'static str,
    run: fn(&Sample) -> Result<(), StoreError>,
    /// It is done: a first try that failed may have been.
    is_done: fn(&Sample) -> bool,
    /// What it needs first.
    before: fn(&Sample),
    /// What it removes: a process and the place of its snapshot.
    goes: Option<(usize, usize)>,
    /// The tag that is there is not its business.
    keeps_tag: bool,
    /// It fails at so many operations at least.
    failures: u32,
}

const VERB: Verb = Verb {
    name: "",
    run: |_| Ok(()),
    is_done: |_| false,
    before: |_| {},
    goes: None,
    keeps_tag: true,
    failures: 4,
};

const VERBS: &[Verb] = &[
    Verb {
        name: "a tag is set",
        run: |sample| sample.tag("new", 2, false),
        is_done: |sample| sample.tagged("new") == Some(sample.ids[0][2]),
        ..VERB
    },
    Verb {
        name: "the first tag of a store is set",
        run: |sample| sample.tag("new", 2, false),
        is_done: |sample| sample.tagged("new") == Some(sample.ids[0][2]),
        before: |sample| {
            let dir = sample.store.dir().join("tags");
            std::fs::remove_dir_all(dir).expect("removed");
        },
        keeps_tag: false,
        ..VERB
    },
    Verb {
        name: "a tag is moved",
        run: |sample| sample.tag("good", 2, true),
        is_done: |sample| {
            let tagged = sample.tagged("good").expect("before or after");
            assert!([0, 2].map(|n| sample.ids[0][n]).contains(&tagged));
            tagged == sample.ids[0][2]
        },
        keeps_tag: false,
        ..VERB
    },
    Verb {
        name: "a tag is taken away",
        run: |sample| sample.store.delete_tag("good").map(drop),
        is_done: |sample| sample.tagged("good").is_none(),
        keeps_tag: false,
        failures: 2,
        ..VERB
    },
    Verb {
        name: "a tree is published",
        run: |sample| sample.publish_tree(2),
        is_done: |sample| {
            let store = sample.owner.open(sample.store.dir());
            store.tree(sample.ids[0][2]).expect("readable").is_some()
        },
        ..VERB
    },
    Verb {
        name: "the record of a tree goes with its root",
        run: |sample| {
            let pruner = sample.store.pruner(sample.session(0))?;
            let plan = pruner.plan_removal(&[3].into())?;
            pruner.carry_out(&plan).map(drop)
        },
        is_done: |sample| !sample.listed(sample.ids[0][2]),
        before: |sample| sample.publish_tree(2).expect("a tree"),
        goes: Some((0, 2)),
        ..VERB
    },
    Verb {
        name: "a list of headers is made anew",
        run: |sample| {
            let id = sample.session(0);
            let _right = sample.store.pruner(id)?;
            sample.store.rebuild_headers(id).map(drop)
        },
        before: |sample| {
            let dir = sample.store.dir().join(sample.session(0).to_string());
            std::fs::write(dir.join("headers"), "damaged").expect("written");
        },
        ..VERB
    },
    Verb {
        name: "what lies between two is merged into the second",
        run: |sample| sample.squash(&[3]),
        is_done: |sample| !sample.listed(sample.ids[1][2]),
        goes: Some((1, 2)),
        ..VERB
    },
    Verb {
        name: "what lies before one is merged into it, a new base",
        run: |sample| sample.squash(&[1]),
        is_done: |sample| !sample.listed(sample.ids[1][0]),
        goes: Some((1, 0)),
        ..VERB
    },
];

/// The error says on what, why, and what to do.
fn assert_told(error: &StoreError, errno: i32, dir: &Path, what: &str) {
    let text = error.to_string();
    let advice = match errno {
        ENOSPC => "free some space",
        _ => "the disk may be failing",
    };
    let shown = dir.display().to_string();
    for words in [shown.as_str(), &format!("os error {errno}"), advice] {
        assert!(text.contains(words), "{what}: {words:?} in {text}");
    }
}

fn fail_each_operation(owner: &Owner, verb: &Verb) {
    for errno in [ENOSPC, EIO] {
        let mut failures = 0;
        for at in 1.. {
            let what = format!("{}, errno {errno} at {at}", verb.name);
            let sample = Sample::new(owner);
            (verb.before)(&sample);
            let from = sample.files.operations();
            sample.files.set_plan(Plan::Fail(from + at, errno));
            let done = (verb.run)(&sample);
            let survived = from + at > sample.files.operations();
            sample.files.set_plan(Plan::Nothing);
            if let Err(error) = &done {
                failures += 1;
                assert_told(error, errno, sample.store.dir(), &what);
            }
            sample.assert_whole_after(verb, &what);
            if survived {
                break;
            }
        }
        assert!(failures >= verb.failures, "{}: {failures}", verb.name);
    }
}

impl Sample {
    /// As it was left, and when the verb was tried again.
    fn assert_whole_after(&self, verb: &Verb, what: &str) {
        self.assert_whole(verb, what);
        if !(verb.is_done)(self) {
            (verb.run)(self).unwrap_or_else(|error| panic!("{what}, tried again: {error}"));
        }
        self.assert_whole(verb, what);
        let left = unnamed(self.store.dir());
        assert!(left.is_empty(), "{what}: {left:?}");
    }
}

#[test]
fn wherever_a_small_file_cannot_be_written_all_is_whole_and_the_next_try_succeeds() {
    VERBS
        .iter()
        .for_each(|verb| fail_each_operation(&Owner::default(), verb));
}

#[test]
fn wherever_a_small_file_of_a_sealed_store_cannot_be_written_all_is_whole() {
    let owner = Owner::new();
    VERBS
        .iter()
        .for_each(|verb| fail_each_operation(&owner, verb));
}

/// Whatever is left, the next one who writes there takes it away.
fn crash_in_each_operation(owner: &Owner, verb: &Verb) {
    for at in 1.. {
        let what = format!("{}, dead at {at}", verb.name);
        let sample = Sample::new(owner);
        (verb.before)(&sample);
        let from = sample.files.operations();
        sample.files.set_plan(Plan::Crash(from + at));
        let _ = (verb.run)(&sample);
        let survived = !sample.files.is_dead();
        sample.files.power_cut();
        sample.files.set_plan(Plan::Nothing);
        sample.assert_whole(verb, &what);
        // As by another process, which has an id of its own.
        let dir = sample.store.dir();
        let folders = ["tags", "trees"].map(|name| dir.join(name));
        for path in folders
            .iter()
            .filter(|dir| dir.exists())
            .flat_map(|dir| unnamed(dir))
        {
            let name = path.file_name().expect("a name").to_string_lossy();
            let pid = std::process::id().to_string();
            let other = path.with_file_name(name.replace(&pid, "1"));
            std::fs::rename(&path, other).expect("renamed");
        }
        sample.assert_whole_after(verb, &what);
        if survived {
            break;
        }
    }
}

#[test]
fn wherever_the_process_dies_that_writes_a_small_file_all_is_whole() {
    for owner in [Owner::default(), Owner::new()] {
        VERBS
            .iter()
            .for_each(|verb| crash_in_each_operation(&owner, verb));
    }
}
