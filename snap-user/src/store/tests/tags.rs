//! Tags and session descriptions that are damaged: found, told, and nothing goes because of them.

use super::support::*;
use crate::model::SnapshotId;
use crate::store::{Pruner, Rules, Session, Store, StoreError};
use std::fs;
use std::path::PathBuf;

/// A session with four snapshots, of which the first has a tag; and where that lies.
fn sample(store: &Store) -> (Session, Vec<SnapshotId>, PathBuf) {
    let mut session = store.create_session(&info(10)).expect("a session");
    let mut ids: Vec<SnapshotId> = Vec::new();
    for n in 0..4u32 {
        let parent = ids.last().copied();
        let taken = publish(&mut session, parent, [], [(0, n + 3)]);
        ids.push(taken.expect("a snapshot").id);
    }
    store.set_tag("good", ids[0], false).expect("a tag");
    (session, ids, store.dir().join("tags/good"))
}

fn rules() -> Rules {
    Rules {
        keep_last: Some(1),
        ..Rules::default()
    }
}

/// How many snapshots the rules would remove.
fn removable(pruner: &Pruner) -> usize {
    pruner.plan(&rules()).expect("a plan").removed.len()
}

/// Nothing is removed because of the tag, and it is said which one and what to do.
fn refuses(pruner: &Pruner, why: &str) {
    let error = pruner
        .plan(&rules())
        .expect_err("what it protects is not known");
    assert!(matches!(error, StoreError::BadTag { .. }), "{error:?}");
    let text = error.to_string();
    for words in ["tag good", why, "`ksnap tag -d good`"] {
        assert!(text.contains(words), "{words:?} in {text}");
    }
}

fn found(store: &Store) -> Vec<(PathBuf, String)> {
    let report = store.verify(None).expect("a report");
    let problems = report.problems.into_iter();
    problems
        .map(|problem| (problem.path, problem.what))
        .collect()
}

#[test]
fn a_bit_flipped_in_a_tag_is_found_and_nothing_is_removed_until_it_is_mended() {
    let (_dir, store) = new_store();
    let (session, ids, path) = sample(&store);
    let clean = fs::read(&path).expect("the tag");
    let pruner = session.pruner();
    let plan = pruner.plan(&rules()).expect("a plan");
    assert_eq!(plan.removed.len(), 2);
    let id = ids[0].to_string();
    let in_id = clean
        .windows(id.len())
        .position(|bytes| bytes == id.as_bytes())
        .expect("the id");
    for at in [0, 3, in_id, in_id + 31, clean.len() - 2] {
        let mut bytes = clean.clone();
        bytes[at] ^= 1;
        fs::write(&path, bytes).expect("written");
        let found = found(&store);
        assert!(
            matches!(&found[..], [(at, what)] if *at == path && what.contains("damaged tag")),
            "{found:?}"
        );
        refuses(&pruner, "damaged tag");
        // Planned while it was whole.
        assert!(pruner.carry_out(&plan).is_err());
        assert_eq!(store.damaged_tags().expect("a list")[0].0, "good");
        assert!(store.resolve("good", None).is_err());
    }
    // Set again, or taken away.
    store.set_tag("good", ids[1], true).expect("set again");
    assert!(found(&store).is_empty());
    fs::write(&path, "x").expect("written");
    assert_eq!(store.delete_tag("good").expect("taken away"), None);
    assert_eq!(removable(&pruner), 3);
}

#[test]
fn a_tag_that_names_nothing_is_found_and_nothing_is_removed() {
    let (_dir, store) = new_store();
    let (session, ids, path) = sample(&store);
    let other = SnapshotId([7; 16]);
    let text = fs::read_to_string(&path).expect("the tag");
    // As it was written before there were checksums.
    let created = text.split("created_ns\": ").nth(1).expect("its time");
    let created = created.trim_end_matches(|c: char| !c.is_ascii_digit());
    let old = |id| format!("{{\"id\":\"{id}\",\"created_ns\":{created}}}");
    fs::write(&path, old(ids[0])).expect("written");
    let tag = store.tag("good").expect("readable").expect("there");
    assert_eq!(
        (tag.id, tag.created_ns.to_string()),
        (ids[0], created.into())
    );
    assert!(found(&store).is_empty());
    assert_eq!(removable(&session.pruner()), 2);

    fs::write(&path, old(other)).expect("written");
    let found = found(&store);
    let names = format!("it names snapshot {other}, which is not there");
    assert!(
        matches!(&found[..], [(at, what)] if *at == path && what.contains(&names)),
        "{found:?}"
    );
    refuses(&session.pruner(), &names);
    let taken = store.delete_tag("good").expect("taken away");
    assert_eq!(taken.map(|tag| tag.id), Some(other));
    session.pruner().plan(&rules()).expect("a plan");
}

/// As after a power failure that took it: what the tag named is known, and there is nothing to protect.
#[test]
fn a_whole_tag_whose_snapshot_is_gone_is_told_and_stands_in_nobodys_way() {
    let (_dir, store) = new_store();
    let (session, _, _) = sample(&store);
    let mut gone = store.create_session(&info(11)).expect("a session");
    let taken = publish(&mut gone, None, [], [(0, 9)]).expect("a snapshot");
    store.set_tag("lost", taken.id, false).expect("a tag");
    let folder = store.dir().join(gone.id().to_string());
    drop(gone);
    fs::remove_dir_all(folder).expect("removed behind its back");
    let report = store.verify(None).expect("a report");
    assert!(report.problems.is_empty(), "{:?}", report.problems);
    assert!(
        report.notes.iter().any(|note| note.contains("tag lost")),
        "{:?}",
        report.notes
    );
    assert_eq!(removable(&session.pruner()), 2);
}

#[test]
fn a_file_among_the_tags_whose_name_is_none_is_found() {
    let (_dir, store) = new_store();
    let (session, _, path) = sample(&store);
    let renamed = path.with_file_name("go#d");
    fs::rename(&path, &renamed).expect("renamed");
    let found = found(&store);
    assert!(
        matches!(&found[..], [(at, what)] if *at == renamed && what.contains("remove the file")),
        "{found:?}"
    );
    assert!(session.pruner().plan(&rules()).is_err());
}

#[test]
fn a_bit_flipped_in_a_session_description_is_found_by_whoever_reads_it() {
    let (_dir, store) = new_store();
    let (session, ids, _) = sample(&store);
    let id = session.id();
    drop(session);
    let path = store.session_path(id).join("session.json");
    let clean = fs::read_to_string(&path).expect("the description");
    let flipped = clean.replace("\"pid\": 10", "\"pid\": 30");
    assert!(flipped != clean);
    fs::write(&path, flipped).expect("written");
    let error = store.session_info(id).expect_err("its checksum");
    assert!(error.to_string().contains("checksum"), "{error}");
    assert!(store.open_session(id).is_err());
    let found = found(&store);
    assert!(
        matches!(&found[..], [(_, what)] if what.contains("damaged session description")),
        "{found:?}"
    );
    // What it describes is whole, and what it said can be told from that.
    store.snapshot(ids[3]).expect("there");
    for lost in [false, true] {
        if lost {
            fs::remove_file(&path).expect("removed");
        }
        let right = store.pruner(id).expect("free");
        store.rebuild_description(&right).expect("made anew");
        let made = store.session_info(id).expect("readable");
        assert_eq!(
            (made.pid, made.start_time, made.comm.as_str()),
            (10, 0, "victim")
        );
        assert_eq!(made.created_ns, store.list().expect("a list")[0].time_ns);
    }
    // As it was written before there were checksums.
    let (_, members) = clean.split_once('\n').expect("two lines");
    fs::write(&path, format!("{{{members}")).expect("written");
    assert_eq!(store.session_info(id).expect("readable").pid, 10);
    assert!(store.verify(None).expect("a report").is_clean());
}
