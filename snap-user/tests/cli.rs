//! Runs the `ksnap` binary: output, error texts and exit codes, on a store made with the library.

mod cli_support;
mod sleeper;

use cli_support::{Fixture, Ran, ksnap};
use serde_json::Value;
use sleeper::Sleeper;

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
    // All of one day, which the heading has.
    assert!(lines[0].contains("2026-01-02"), "{}", lines[0]);
    assert!(lines[1].contains(" 03:04:05.001"), "{}", lines[1]);
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
