//! The tests themselves: nextest where it is installed, else cargo's own runner.

use super::stage::Stages;
use crate::{cargo, host};
use anyhow::Result;
use std::fs;

/// Runs all tests, or those whose name contains one of `filter`.
pub fn run(filter: &[String], stages: &mut Stages) -> Result<()> {
    let names: Vec<&str> = filter.iter().map(String::as_str).collect();
    if host::find("cargo-nextest").is_some() {
        // What runs alone is in .config/nextest.toml.
        let report = cargo::target().join("nextest/default/junit.xml");
        // Of an earlier run; this one may not get as far as to write its own.
        let _ = fs::remove_file(&report);
        let arguments = [
            &["nextest", "run", "--workspace", "--no-tests", "pass"][..],
            &names,
        ]
        .concat();
        stages.run("tests", &mut cargo::cargo(&arguments))?;
        let output = fs::read_to_string(&report).unwrap_or_else(|error| {
            // Whether tests were skipped is in there alone.
            stages.skip(
                "looking for skipped tests",
                &format!("{} ({error})", report.display()),
                "see above what became of the tests",
            );
            String::new()
        });
        let skips: Vec<&str> = output
            .lines()
            .filter(|line| line.contains("SKIP "))
            .collect();
        stages.notice(&skips.iter().map(|line| unescape(line)).collect::<Vec<_>>());
    } else {
        let base = ["test", "--workspace", "--no-fail-fast"];
        let units = [&base[..], &["--lib", "--bins", "--"], &names].concat();
        stages.run("tests inside the crates", &mut cargo::cargo(&units))?;
        // They stop processes and load eBPF programs, and would see each other's work.
        let whole = [
            &base[..],
            &["--test", "*", "--", "--test-threads=1"],
            &names,
        ]
        .concat();
        stages.run("tests of the whole", &mut cargo::cargo(&whole))?;
    }
    if filter.is_empty() {
        let examples = ["test", "--workspace", "--doc", "--quiet"];
        stages.run(
            "examples in the documentation",
            &mut cargo::cargo(&examples),
        )?;
    }
    Ok(())
}

/// XML's five entities.
fn unescape(text: &str) -> String {
    [
        ("&lt;", "<"),
        ("&gt;", ">"),
        ("&quot;", "\""),
        ("&apos;", "'"),
        ("&amp;", "&"),
    ]
    .iter()
    .fold(text.to_owned(), |text, (entity, character)| {
        text.replace(entity, character)
    })
}
