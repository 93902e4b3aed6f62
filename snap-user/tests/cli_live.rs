//! The `ksnap` binary on processes that live: `snap`, `watch`, `run`, `rollback`, `profile`.

mod cli_support;
mod skip;
mod sleeper;

use cli_support::{Fixture, Ran};
use serde_json::Value;
use sleeper::Sleeper;
use std::process::Stdio;

#[test]
fn rollback_is_refused_without_consent_before_anything_is_touched() {
    let fixture = Fixture::new();
    let ran = fixture.ksnap(&["rollback", "4242", "@1"]).fails(2);
    assert!(ran.err.contains("confirm with -y"), "{}", ran.err);
    let sleeper = Sleeper::start();
    let pid = sleeper.pid();
    let ran = fixture.ksnap(&["rollback", &pid, "latest", "-y"]).fails(1);
    let not_found = format!("not found: snapshot latest of process {pid}");
    assert!(ran.err.contains(&not_found), "{}", ran.err);
    drop(sleeper);
    let ran = fixture.ksnap(&["rollback", &pid, "latest", "-y"]).fails(14);
    assert!(ran.err.contains("is gone"), "{}", ran.err);
}

/// Whether processes can be captured here; says so when not.
fn can_capture(fixture: &Fixture) -> bool {
    let ready = fixture.ksnap(&["doctor", "--json"]).json()["ready"] == true;
    if !ready {
        skip::skip(
            "the right to capture processes",
            "`ksnap doctor` says how to get it",
        );
    }
    ready
}

#[test]
fn run_passes_the_commands_output_and_exit_status_on() {
    let fixture = Fixture::new();
    if !can_capture(&fixture) {
        return;
    }
    let every = &["run", "--every", "20ms", "--", "sh", "-c"];
    let run = |script: &str| fixture.ksnap(&[every, &[script][..]].concat());
    // Goes on until there are two snapshots of it, for a minute at most.
    let count = format!("$(ls {}/*/*.ksnap | wc -l)", fixture.store.display());
    let seen = format!(
        "n=0; c={count}; while [ $n -lt 600 ] && [ {count} -lt $((c + 2)) ]; do n=$((n + 1)); sleep 0.1; done; [ $n -lt 600 ] || exit 9"
    );
    let ran = run(&format!("echo data; {seen}; exit 7")).fails(7);
    assert_eq!(ran.out, "data\n", "standard output is the command's alone");
    assert!(ran.err.contains("snapshots in "), "{}", ran.err);
    let killed = run(&format!("{seen}; kill -9 $$")).fails(137);
    assert!(killed.err.contains("the command ended"), "{}", killed.err);
    let missing = fixture
        .ksnap(&["run", "--", "/nonexistent/command"])
        .fails(1);
    assert!(
        missing.err.contains("/nonexistent/command"),
        "{}",
        missing.err
    );
}

#[test]
fn snap_watch_and_rollback_report_in_json_and_by_exit_code() {
    let fixture = Fixture::new();
    if !can_capture(&fixture) {
        return;
    }
    let sleeper = Sleeper::start();
    let pid = sleeper.pid();
    let taken = fixture.ksnap(&["snap", &pid, "--json"]).ok().json();
    let id = taken["id"].as_str().expect("an id").to_owned();
    assert!(
        taken["costs"]["phases"]["stop_ns"].as_u64() > Some(0),
        "{taken}"
    );

    let watch = ["watch", &pid, "--every", "20ms", "--count", "3", "--json"];
    let watched = fixture.ksnap(&watch).ok();
    let events: Vec<Value> = watched
        .out
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    let count = |event: &str| events.iter().filter(|e| e["event"] == event).count();
    assert_eq!(
        (count("attached"), count("taken"), count("ended")),
        (1, 3, 1)
    );
    let last = events.last().expect("an end");
    assert_eq!(
        (&last["ended"], &last["taken"]),
        (&"count".into(), &3.into())
    );
    assert!(watched.err.contains("3 snapshots in "), "{}", watched.err);

    let done = fixture
        .ksnap(&["rollback", &pid, &id, "-y", "--json"])
        .ok()
        .json();
    assert_eq!(done["to"], id);
    let report = ["profile", &pid, "--every", "20ms", "--for", "3s", "--json"];
    let report = fixture.ksnap(&report).ok().json();
    assert!(report["snapshots"].as_u64() > Some(1), "{report}");

    drop(sleeper);
    let gone = fixture.ksnap(&["snap", &pid]).fails(14);
    assert!(gone.err.contains("is gone"), "{}", gone.err);
}

#[test]
fn a_watch_ends_when_nobody_reads_its_json_and_the_process_runs_on() {
    let fixture = Fixture::new();
    if !can_capture(&fixture) {
        return;
    }
    let mut sleeper = Sleeper::start();
    let mut child = fixture
        .command(&[
            "watch",
            &sleeper.pid(),
            "--every",
            "20ms",
            "--for",
            "180s",
            "--json",
        ])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let start = std::time::Instant::now();
    let mut reader = std::io::BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    std::io::BufRead::read_line(&mut reader, &mut line).unwrap();
    assert!(line.contains("attached"), "{line}");
    drop(reader);
    Ran::new(child.wait_with_output().unwrap()).ok();
    assert!(
        start.elapsed().as_secs() < 120,
        "it went on: {:?}",
        start.elapsed()
    );
    assert!(
        sleeper.0.try_wait().unwrap().is_none(),
        "the process runs on"
    );
}
