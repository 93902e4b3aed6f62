//! Skips of tests, as the summary of `cargo xtask test` finds them. Also a part of the test executables beside this crate.

use std::io::Write;

/// Says what the test lacks and how to get it. With `KSNAP_TESTS_STRICT=1` that is a failure.
pub fn skip(missing: &str, how: &str) {
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("a test");
    let line = format!("SKIP {test}: missing {missing}; {how}");
    assert!(
        std::env::var_os("KSNAP_TESTS_STRICT").is_none_or(|value| value != "1"),
        "{line} (strict)"
    );
    // Not by a macro: the test harness hides what a passing test prints by those. At once, or another test's line could
    // get in between.
    let _ = std::io::stderr().write_all(format!("{line}\n").as_bytes());
}

/// The same where it takes root of the machine.
pub fn without_root(missing: &str) {
    skip(missing, "run the tests as root, outside of user namespaces");
}
