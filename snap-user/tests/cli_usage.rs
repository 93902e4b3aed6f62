//! What the `ksnap` binary takes and prints, whatever the verb: usage, colours, streams, settings, help.

mod cli_support;

use cli_support::{Fixture, Ran};
use std::process::Stdio;

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
        "io_uring",
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
