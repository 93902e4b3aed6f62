//! Skips as the summary of `cargo xtask test` finds them.

#![allow(dead_code, reason = "each test binary uses a part of it")]

use snap_user::probe::{ProbeError, ProbeOptions, Probes};
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
    // Not by a macro: the test harness hides what a passing test prints by those.
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// The probes, or a printed reason why this test cannot run here.
pub fn loaded(options: &ProbeOptions) -> Option<Probes> {
    match Probes::load(options) {
        Ok(probes) => Some(probes),
        Err(error @ (ProbeError::NotPermitted { .. } | ProbeError::PidNamespace { .. })) => {
            skip(
                &format!("the right to load the probes ({error})"),
                "run the tests as root",
            );
            None
        }
        Err(error @ ProbeError::NoBtf { .. }) => {
            skip(
                &format!("what the probes need of the kernel ({error})"),
                "use a kernel with CONFIG_DEBUG_INFO_BTF",
            );
            None
        }
        Err(error) => panic!("{error}"),
    }
}
