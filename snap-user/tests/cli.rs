//! Runs the `ksnap` binary: output, error texts and exit codes, on a store made with the library.

mod cli_support;

use cli_support::{Fixture, Ran, ksnap};
use serde_json::Value;
use std::process::Stdio;

#[test]
fn log_lists_snapshots_newest_last_and_marks_a_branch() {
    let fixture = Fixture::new();
    let ran = fixture.ksnap(&["log"]).ok();
    let lines: Vec<&str> = ran.out.lines().collect();
    assert_eq!(lines.len(), 5, "{}", ran.out);
    assert!(lines[0].starts_with("seq  id"), "{}", ran.out);
    for (line, id) in lines[1..].iter().zip(&fixture.ids) {
        assert!(line.contains(&id[..12]), "{line}");
        assert!(line.contains("victim") && line.contains("4242"), "{line}");
    }
    assert!(lines[1].contains(" base ") && lines[2].contains(" delta "));
    assert!(lines[1].contains("2026-01-02 03:04:05.001"), "{}", lines[1]);
    assert!(lines[1].contains("1.50 ms"), "{}", lines[1]);
    assert!(lines[4].ends_with("@2"), "{}", lines[4]);
    assert!(!lines[3].ends_with("@2"), "{}", lines[3]);

    assert_eq!(
        fixture.ksnap(&["log", "-n", "2"]).ok().out.lines().count(),
        3
    );
    let none = fixture.ksnap(&["log", "--pid", "1"]).ok();
    assert_eq!(
        (none.out.as_str(), none.err.trim()),
        ("", "no snapshots of process 1 yet")
    );
    assert_eq!(fixture.ksnap(&["-q", "log", "--pid", "1"]).ok().err, "");
}

#[test]
fn log_prints_an_object_a_line() {
    let fixture = Fixture::new();
    let ran = fixture.ksnap(&["log", "--json"]).ok();
    let entries: Vec<Value> = ran
        .out
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    assert_eq!(entries.len(), 4);
    for (n, entry) in entries.iter().enumerate() {
        assert_eq!(entry["id"], fixture.ids[n]);
        assert_eq!(entry["seq"], n as u64 + 1);
        assert_eq!(entry["pid"], 4242);
        assert_eq!(entry["stop_ns"], 1_500_000);
    }
    assert_eq!(entries[0]["kind"], "base");
    assert_eq!(entries[0]["parent"], Value::Null);
    assert_eq!(entries[2]["parent"], fixture.ids[1]);
    assert_eq!(entries[3]["parent"], fixture.ids[1]);
    let branches: Vec<_> = entries.iter().map(|e| e["branch"] == true).collect();
    assert_eq!(branches, [false, false, false, true]);
    assert_eq!(entries[1]["stored_pages"], 2);
    assert_eq!(entries[1]["pages"], 8);
}

#[test]
fn show_describes_process_threads_mappings_and_costs() {
    let fixture = Fixture::new();
    let text = fixture.ksnap(&["show", "@2"]).ok().out;
    for part in [
        fixture.ids[1].as_str(),
        "/usr/bin/victim",
        "victim --fast",
        "worker\\x1b[2J",
        "nanosleep",
        "0x401000",
        "[heap]",
        "rw-p",
        "/var/log/victim.log",
        "device memory is not captured",
        "freeze 100 µs",
        "12 dirty",
    ] {
        assert!(text.contains(part), "no {part} in\n{text}");
    }
    assert!(!text.contains('\x1b'), "no name reaches the terminal raw");

    let json = fixture.ksnap(&["show", "latest", "--json"]).ok().json();
    assert_eq!(json["snapshot"]["id"], fixture.ids[3]);
    assert_eq!(json["process"]["cmdline"][1], "--fast");
    assert_eq!(json["threads"][0]["tid"], 4242);
    assert_eq!(json["threads"][0]["blocked_syscall"], 35);
    assert_eq!(json["threads"][0]["blocked_syscall_name"], "nanosleep");
    assert_eq!(json["threads"][1]["blocked_syscall"], Value::Null);
    assert_eq!(json["mappings"][0]["name"], "[heap]");
    assert_eq!(json["mappings"][0]["pages"], 8);
    assert_eq!(json["mappings"][0]["stored_pages"], 1);
    assert_eq!(json["descriptors"][0]["kind"], "regular");
    assert_eq!(json["costs"]["phases"]["stop_ns"], 1_500_000);
    assert_eq!(json["unsupported"].as_array().map(Vec::len), Some(1));
}

#[test]
fn diff_tells_pages_mappings_registers_and_descriptors_apart() {
    let fixture = Fixture::new();
    let json = fixture.ksnap(&["diff", "@1", "@3", "--json"]).ok().json();
    assert_eq!(json["pages"]["changed"], 2);
    assert_eq!(json["pages"]["added"], 0);
    let mapping = &json["pages"]["by_mapping"][0];
    assert_eq!(
        (&mapping["name"], &mapping["changed"]),
        (&"[heap]".into(), &2.into())
    );
    assert_eq!(json["mappings"][0]["change"], "added");
    assert_eq!(json["mappings"][0]["name_b"], "/lib/new.so");
    let thread = &json["threads"][0];
    assert_eq!(thread["tid"], 4242);
    assert_eq!(thread["registers"][0]["name"], "rip");
    assert_eq!(thread["registers"][0]["a"], 0x401001);
    assert_eq!(thread["registers"][0]["b"], 0x401003);
    assert_eq!(json["threads"].as_array().map(Vec::len), Some(1));
    assert_eq!(json["descriptors"][0]["a"]["position"], 100);
    assert_eq!(json["descriptors"][0]["b"]["position"], 300);

    let text = fixture.ksnap(&["diff", "@1", "@3"]).ok().out;
    for part in [
        "+ ",
        "/lib/new.so",
        "rip",
        "0x401001 → 0x401003",
        "position 100 → 300",
    ] {
        assert!(text.contains(part), "no {part} in\n{text}");
    }
    let same = fixture.ksnap(&["diff", "@1", "@1"]).ok().out;
    assert!(same.contains("no difference"), "{same}");
}

#[test]
fn verify_finds_damage_and_ends_with_15() {
    let fixture = Fixture::new();
    let whole = fixture.ksnap(&["verify"]).ok();
    assert_eq!(whole.out.trim(), "whole: 4 snapshots and 12 pages checked");
    assert_eq!(
        fixture.ksnap(&["verify", "@1", "--json"]).ok().json()["clean"],
        true
    );

    fixture.damage(&fixture.ids[2], 300);
    let ran = fixture.ksnap(&["verify"]).fails(15);
    assert!(
        ran.out.starts_with("damaged: 1 problem; 4 snapshots"),
        "{}",
        ran.out
    );
    assert!(ran.out.contains(&fixture.ids[2][..12]), "{}", ran.out);
    let json = fixture.ksnap(&["verify", "--json"]).fails(15).json();
    assert_eq!(json["clean"], false);
    assert_eq!(json["problems"][0]["id"], fixture.ids[2]);
    fixture.ksnap(&["verify", "@1"]).ok();
    fixture.ksnap(&["verify", "@3"]).fails(15);
}

#[test]
fn a_damaged_manifest_is_an_error_with_15_that_names_the_file() {
    let fixture = Fixture::new();
    fixture.damage_end(&fixture.ids[3]);
    let ran = fixture.ksnap(&["show", "latest"]).fails(15);
    assert!(
        ran.err.contains("manifest") && ran.err.contains(&fixture.ids[3]),
        "{}",
        ran.err
    );
    assert!(ran.err.contains("ksnap verify"), "{}", ran.err);
    assert_eq!(ran.out, "");
}

#[test]
fn a_damaged_header_is_passed_over_with_a_warning_and_found_by_its_whole_name() {
    let fixture = Fixture::new();
    fixture.damage(&fixture.ids[2], 60);
    let ran = fixture.ksnap(&["log"]).ok();
    assert_eq!(ran.out.lines().count(), 4);
    assert!(
        ran.err.contains("WARN") && ran.err.contains(&fixture.ids[2]),
        "{}",
        ran.err
    );
    assert_eq!(fixture.ksnap(&["-q", "log"]).ok().err, "");
    fixture.ksnap(&["verify", &fixture.ids[2]]).fails(15);
}

#[test]
fn no_store_is_10_and_says_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("none");
    for verb in [&["log"][..], &["show"], &["diff", "@1", "@2"], &["verify"]] {
        let ran = ksnap(&missing, verb).fails(10);
        assert!(ran.err.starts_with("ksnap: no store at "), "{}", ran.err);
        assert!(ran.err.contains("--store"), "{}", ran.err);
    }
    assert!(!missing.exists(), "looking makes nothing");
}

#[test]
fn what_is_no_store_is_called_what_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "text").unwrap();
    let sleeper = Sleeper::start();
    let pid = sleeper.pid();
    for store in [&file, &file.join("below")] {
        for verb in [&["log"][..], &["snap", &pid], &["watch", &pid]] {
            let ran = ksnap(store, verb).fails(10);
            assert!(ran.err.contains("not a folder"), "{verb:?}: {}", ran.err);
            assert!(ran.err.contains("--store"), "{verb:?}: {}", ran.err);
        }
    }
    for verb in [&["log"][..], &["snap", &pid]] {
        let ran = ksnap(dir.path(), verb).fails(10);
        assert!(ran.err.contains("other things"), "{verb:?}: {}", ran.err);
    }
    let ran = Ran::new(
        std::process::Command::new(env!("CARGO_BIN_EXE_ksnap"))
            .args(["flush", "--to"])
            .arg(dir.path().join("to"))
            .env("KSNAP_RAM", dir.path().join("ram"))
            .output()
            .unwrap(),
    )
    .fails(10);
    assert!(
        ran.err.contains("KSNAP_RAM") && !ran.err.contains("--store"),
        "{}",
        ran.err
    );
}

#[test]
fn verify_tells_of_a_damaged_marker_and_what_to_do() {
    let fixture = Fixture::new();
    let marker = std::fs::read_dir(&fixture.store)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| std::fs::read_to_string(path).is_ok_and(|t| t.starts_with("ksnap store ")))
        .expect("a marker");
    std::fs::write(&marker, "ksnap stoer 1\n").unwrap();
    let ran = fixture.ksnap(&["verify"]).fails(15);
    assert!(ran.out.starts_with("damaged: 1 problem"), "{ran:?}");
    assert!(ran.out.contains(marker.to_str().unwrap()), "{ran:?}");
    assert!(!format!("{ran:?}").contains("lists all damage"), "{ran:?}");
    // As it says.
    assert!(ran.out.contains("`ksnap store 1`"), "{ran:?}");
    std::fs::write(&marker, "ksnap store 1\n").unwrap();
    fixture.ksnap(&["verify"]).ok();
}

#[test]
fn key_show_says_when_it_makes_a_key() {
    let dir = tempfile::tempdir().unwrap();
    let show = || {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_ksnap"));
        command
            .args(["key", "show"])
            .env("KSNAP_CONFIG", dir.path());
        Ran::new(command.output().unwrap()).ok()
    };
    let (first, second) = (show(), show());
    assert!(first.err.contains("a new pair was made"), "{first:?}");
    assert_eq!((second.err.as_str(), &first.out), ("", &second.out));
}

#[test]
fn references_that_mean_nothing_or_too_much_are_explained() {
    let fixture = Fixture::new();
    let unknown = fixture.ksnap(&["show", "dead"]).fails(1);
    assert!(
        unknown.err.contains("not found: snapshot dead"),
        "{}",
        unknown.err
    );
    let early = fixture.ksnap(&["show", "@1~"]).fails(1);
    assert!(early.err.contains("has no parent"), "{}", early.err);
    let bad = fixture.ksnap(&["show", "later"]).fails(2);
    assert!(bad.err.contains("a reference is latest"), "{}", bad.err);
    fixture.second_session();
    let many = fixture.ksnap(&["show", "@1"]).fails(1);
    assert!(
        many.err.contains("may mean") && many.err.contains("pid 4343"),
        "{}",
        many.err
    );
}

#[test]
fn usage_is_2_with_help_on_standard_error() {
    let fixture = Fixture::new();
    for words in [
        &["frobnicate"][..],
        &[],
        &["show", "a", "b"],
        &["watch", "0"],
        &["run"],
        &["log", "--color", "maybe"],
        &["man", "nothing"],
    ] {
        let ran = fixture.ksnap(words).fails(2);
        assert!(
            !ran.err.is_empty() && ran.out.is_empty(),
            "{words:?}: {}",
            ran.err
        );
    }
    let help = fixture.ksnap(&["rollback", "--help"]).ok();
    assert!(
        help.out.contains("Examples:") && help.out.contains("latest~2"),
        "{}",
        help.out
    );
    assert!(
        fixture
            .ksnap(&["--version"])
            .ok()
            .out
            .starts_with("ksnap 0.")
    );
}

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

#[test]
fn colours_follow_the_option_and_no_color() {
    let fixture = Fixture::new();
    assert!(
        !fixture.ksnap(&["log"]).ok().out.contains('\x1b'),
        "a pipe is no terminal"
    );
    let always = fixture.ksnap(&["log", "--color", "always"]).ok().out;
    assert!(always.contains("\x1b[1m"), "{always}");
    let error = fixture
        .ksnap(&["show", "dead", "--color=always"])
        .fails(1)
        .err;
    assert!(error.contains("\x1b[31m"), "{error}");
}

#[test]
fn a_reader_that_leaves_early_is_no_error() {
    let fixture = Fixture::new();
    for words in [
        &["log", "--json"][..],
        &["show"],
        &["completions", "bash"],
        &["man"],
        &["--help"],
    ] {
        let mut child = fixture
            .command(words)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stdout.take());
        let ran = Ran::new(child.wait_with_output().unwrap()).ok();
        assert_eq!(ran.err, "", "{words:?}");
    }
}

#[test]
fn a_full_disk_under_standard_output_is_an_error() {
    let fixture = Fixture::new();
    let full = std::fs::File::options()
        .write(true)
        .open("/dev/full")
        .unwrap();
    let output = fixture.command(&["log"]).stdout(full).output().unwrap();
    let ran = Ran::new(output).fails(1);
    assert!(
        ran.err.contains("standard output: No space left"),
        "{}",
        ran.err
    );
}

#[test]
fn the_store_comes_from_the_option_else_the_environment() {
    let fixture = Fixture::new();
    let mut by_variable = std::process::Command::new(env!("CARGO_BIN_EXE_ksnap"));
    by_variable.arg("log").env("KSNAP_STORE", &fixture.store);
    let ran = Ran::new(by_variable.output().unwrap()).ok();
    assert_eq!(ran.out.lines().count(), 5);
    by_variable.env("KSNAP_STORE", "/nonexistent/store");
    Ran::new(by_variable.output().unwrap()).fails(10);
    by_variable.arg("--store").arg(&fixture.store);
    Ran::new(by_variable.output().unwrap()).ok();
}

#[test]
fn doctor_says_what_works_what_for_and_how_to_get_the_rest() {
    let fixture = Fixture::new();
    let ran = fixture.ksnap(&["doctor", "--json"]);
    let json = ran.json();
    let ready = json["ready"].as_bool().expect("a verdict");
    assert_eq!(ran.code, if ready { 0 } else { 12 }, "{}", ran.err);
    let checks = json["checks"].as_array().expect("checks");
    let outcome = |name: &str| {
        let check = checks.iter().find(|check| check["name"] == name);
        check.unwrap_or_else(|| panic!("no check {name}"))["outcome"].clone()
    };
    for name in [
        "ptrace",
        "read_memory",
        "pidfd_getfd",
        "tracker_wp",
        "tracker_soft_dirty",
        "tracker_hash",
        "probes",
        "trace_others",
        "thread_ids",
    ] {
        let outcome = outcome(name);
        let known = ["supported", "unsupported", "could_not_tell"];
        assert!(
            known.iter().any(|known| outcome == *known),
            "{name}: {outcome}"
        );
    }
    assert_eq!(outcome("tracker_hash"), "supported");
    assert_eq!(outcome("store"), "supported");
    assert_eq!(
        ready,
        outcome("ptrace") == "supported" && outcome("read_memory") == "supported"
    );

    let text = fixture.ksnap(&["doctor"]).out;
    let verdict = text.lines().next().expect("a verdict first");
    assert_eq!(verdict, json["verdict"].as_str().unwrap());
    for check in checks
        .iter()
        .filter(|check| check["outcome"] != "supported")
    {
        assert!(text.contains(check["how"].as_str().unwrap()), "{text}");
        assert!(text.contains(check["without"].as_str().unwrap()), "{text}");
    }
}

#[test]
fn completions_and_manual_pages_know_the_commands() {
    let fixture = Fixture::new();
    for shell in ["bash", "zsh", "fish"] {
        let script = fixture.ksnap(&["completions", shell]).ok().out;
        assert!(script.contains("rollback") && script.contains("--tracker") || shell == "fish");
        assert!(script.len() > 1000, "{shell}");
    }
    let page = fixture.ksnap(&["man"]).ok().out;
    assert!(page.contains(".TH") && page.contains("rollback"), "{page}");
    let page = fixture.ksnap(&["man", "rollback"]).ok().out;
    assert!(page.contains("\\-\\-yes"), "{page}");
}

#[test]
fn a_bad_log_filter_is_passed_over_with_a_word() {
    let fixture = Fixture::new();
    let mut command = fixture.command(&["log"]);
    let ran = Ran::new(command.env("KSNAP_LOG", "ksnap=loud").output().unwrap()).ok();
    assert!(ran.err.contains("KSNAP_LOG is passed over"), "{}", ran.err);
}

/// Whether processes can be captured here; says so when not.
fn can_capture(fixture: &Fixture) -> bool {
    let ready = fixture.ksnap(&["doctor", "--json"]).json()["ready"] == true;
    if !ready {
        println!(
            "SKIPPED: processes cannot be captured here; `ksnap doctor` says how to change that"
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
    let run = |script| fixture.ksnap(&[every, &[script][..]].concat());
    let ran = run("echo data; sleep 0.3; exit 7").fails(7);
    assert_eq!(ran.out, "data\n", "standard output is the command's alone");
    assert!(ran.err.contains("snapshots in "), "{}", ran.err);
    let killed = run("sleep 0.2; kill -9 $$").fails(137);
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

/// A process that sleeps, ended on drop.
struct Sleeper(std::process::Child);

impl Sleeper {
    fn start() -> Self {
        let child = std::process::Command::new("sleep").arg("60").spawn();
        Self(child.expect("sleep"))
    }

    fn pid(&self) -> String {
        self.0.id().to_string()
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
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
    let report = [
        "profile", &pid, "--every", "20ms", "--for", "200ms", "--json",
    ];
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
            "30s",
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
        start.elapsed().as_secs() < 20,
        "it went on: {:?}",
        start.elapsed()
    );
    assert!(
        sleeper.0.try_wait().unwrap().is_none(),
        "the process runs on"
    );
}
