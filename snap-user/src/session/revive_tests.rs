//! When those that a snapshot is brought back for are asked whether they still want it.

use super::asleep::await_sleep;
use super::revive::{Prepared, ReviveOptions, revive_prepared};
use super::*;
use std::cell::Cell;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// What brings back may choose ids, and so must this.
fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        crate::skip::without_root("the right to choose ids");
    }
    root
}

#[test]
fn whether_a_tree_is_wanted_is_asked_when_nothing_is_left_that_may_be_refused() {
    if !is_root() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut shell = Command::new("sh")
        .args(["-c", "sleep 600 & wait"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
        .unwrap();
    let pid = shell.id() as i32;
    let end = Instant::now() + Duration::from_secs(60);
    while look_at_tree(pid).unwrap().len() < 2 {
        assert!(Instant::now() < end, "no child");
        std::thread::sleep(Duration::from_millis(2));
    }
    look_at_tree(pid).unwrap().into_iter().for_each(await_sleep);
    let options = Options {
        tracker: TrackerChoice::Only(TrackerKind::Hash),
        probes: false,
        ..Options::default()
    };
    let bring_back = |id: crate::model::SnapshotId| {
        let asked = Cell::new(false);
        let is_wanted = || {
            asked.set(true);
            Err(SessionError::Remote("nobody wants it".into()))
        };
        let prepared = Prepared {
            flat: None,
            is_wanted: &is_wanted,
        };
        let how = ReviveOptions::default();
        let id = id.to_string();
        let done = revive_prepared(folder.path(), &id, 1, &how, prepared, &mut |_| {});
        (done.unwrap_err().to_string(), asked.get())
    };
    // Its ids are taken, which is found out first.
    let running = snap_tree(folder.path(), pid, &options).unwrap();
    let (refused, asked) = bring_back(running.id);
    assert!(!asked && refused.contains(&pid.to_string()), "{refused}");
    let ended = Options {
        then: Then::Kill,
        ..options
    };
    let taken = snap_tree(folder.path(), pid, &ended).unwrap();
    assert_eq!(taken.processes.len(), 2);
    // Whoever ended it, this program, may have waited for it already.
    let _ = shell.wait();
    let end = Instant::now() + Duration::from_secs(60);
    for process in &taken.processes {
        while is_process(process.pid) {
            assert!(Instant::now() < end, "{} does not end", process.pid);
            std::thread::sleep(Duration::from_millis(2));
        }
    }
    let (unwanted, asked) = bring_back(taken.id);
    assert!(asked && unwanted == "nobody wants it", "{unwanted}");
    assert!(!taken.processes.iter().any(|one| is_process(one.pid)));
}
