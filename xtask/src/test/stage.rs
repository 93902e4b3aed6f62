//! One step after the other, each with its time and result.

use super::expected;
use crate::table::heading;
use anyhow::{Context, Result};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

enum Ended {
    Passed,
    Failed,
    /// What is missing, and how to get it.
    Skipped(String, String),
}

struct Stage {
    name: String,
    ended: Ended,
    took: Duration,
}

/// Everything that was run so far.
pub struct Stages {
    stages: Vec<Stage>,
    /// Lines in which a test runner sums up.
    results: Vec<String>,
    /// Test → why it was skipped.
    skips: BTreeMap<String, String>,
    failures: BTreeSet<String>,
    /// A skip that is not expected is a failure.
    no_skips: bool,
    begun: Instant,
}

impl Stages {
    /// Nothing yet. With `no_skips` a skip that is not expected is a failure.
    pub fn new(no_skips: bool) -> Self {
        Self {
            stages: Vec::new(),
            results: Vec::new(),
            skips: BTreeMap::new(),
            failures: BTreeSet::new(),
            no_skips,
            begun: Instant::now(),
        }
    }

    /// Runs a command to its end; true if it succeeds. Its output is passed on, and searched for what
    /// belongs into the summary.
    pub fn run(&mut self, name: &str, command: &mut Command) -> Result<bool> {
        println!("\n{}", heading(name));
        let begun = Instant::now();
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", command.get_program().display()))?;
        let lines = Mutex::new(Vec::new());
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        std::thread::scope(|scope| {
            if let Some(stderr) = stderr {
                scope.spawn(|| pass(stderr, &mut std::io::stderr(), &lines));
            }
            if let Some(stdout) = stdout {
                pass(stdout, &mut std::io::stdout(), &lines);
            }
        });
        let status = child.wait().context("cannot wait for a command")?;
        self.notice(
            &lines
                .into_inner()
                .unwrap_or_else(|poisoned| poisoned.into_inner()),
        );
        self.ended(name, status.success(), begun.elapsed());
        Ok(status.success())
    }

    /// Enters a step that was run in another way.
    pub fn ended(&mut self, name: &str, passed: bool, took: Duration) {
        let ended = match passed {
            true => Ended::Passed,
            false => Ended::Failed,
        };
        self.stages.push(Stage {
            name: name.into(),
            ended,
            took,
        });
    }

    /// Enters a step that cannot be run here.
    pub fn skip(&mut self, name: &str, what: &str, how: &str) {
        println!("\nSKIP {name}: missing {what}; {how}");
        self.skipped(name, what, how);
    }

    fn skipped(&mut self, name: &str, what: &str, how: &str) {
        let ended = Ended::Skipped(what.into(), how.into());
        self.stages.push(Stage {
            name: name.into(),
            ended,
            took: Duration::ZERO,
        });
    }

    /// Enters a line that a test runner would print at its end.
    pub fn result(&mut self, line: String) {
        self.results.push(line);
    }

    /// Takes out of some lines of output what belongs into the summary: tests that were skipped, and
    /// what the test runner counted.
    pub fn notice<S: AsRef<str>>(&mut self, lines: &[S]) {
        for line in lines.iter().map(AsRef::as_ref) {
            let plain = without_colours(line);
            if let Some((test, why)) = plain
                .find("SKIP ")
                .and_then(|at| plain[at + 5..].split_once(": "))
            {
                self.skips.insert(test.into(), why.trim_end().into());
            }
            self.failures.extend(failed_test(&plain).map(str::to_owned));
            // Indented, it is a failing test's own output, which nextest shows.
            let line = plain.trim();
            if plain.starts_with("test result: ")
                || (line.starts_with("Summary [") && line.contains("tests run"))
            {
                self.results.push(line.into());
            }
        }
    }

    /// No step failed, and nothing was skipped that should not be.
    pub fn passed(&self) -> bool {
        let failed = |stage: &Stage| matches!(stage.ended, Ended::Failed);
        !self.stages.iter().any(failed) && self.unexpected().is_empty()
    }

    /// Skips that are failures: of what, and why.
    fn unexpected(&self) -> Vec<(&str, String)> {
        if !self.no_skips {
            return Vec::new();
        }
        let steps = self.stages.iter().filter_map(|stage| match &stage.ended {
            Ended::Skipped(what, how) => Some((&*stage.name, format!("missing {what}; {how}"))),
            _ => None,
        });
        let tests = self.skips.iter().map(|(test, why)| (&**test, why.clone()));
        steps
            .chain(tests)
            .filter(|(_, why)| expected::reason(why).is_none())
            .collect()
    }

    /// Steps, skipped tests, and the runner's own counts, for people.
    pub fn summary(&self) -> String {
        let mut text = String::new();
        for stage in &self.stages {
            let (word, more) = match &stage.ended {
                Ended::Passed => ("ok", String::new()),
                Ended::Failed => ("FAILED", String::new()),
                Ended::Skipped(what, how) => ("skipped", format!(": missing {what}; {how}")),
            };
            text += &format!(
                "  {:<8} {:>6.1} s  {}{more}\n",
                word,
                stage.took.as_secs_f64(),
                stage.name
            );
        }
        for (test, why) in &self.skips {
            text += &format!("  skipped            {test}: {why}\n");
        }
        for (what, why) in self.unexpected() {
            text += &format!("  FAILED             {what}: skipped against --no-skips, {why}\n");
        }
        for test in &self.failures {
            text += &format!("  FAILED             {test}\n");
        }
        for line in &self.results {
            text += &format!("  {line}\n");
        }
        let verdict = match self.passed() {
            true => "all passed",
            false => "FAILED",
        };
        let skipped = match self.skips.len() {
            0 => String::new(),
            1 => ", 1 test skipped".into(),
            count => format!(", {count} tests skipped"),
        };
        text + &format!(
            "{verdict}{skipped}, {:.0} s\n",
            self.begun.elapsed().as_secs_f64()
        )
    }
}

/// Copies a stream as it comes, and keeps those of its lines that may belong into the summary.
fn pass(from: impl Read, to: &mut impl Write, kept: &Mutex<Vec<String>>) {
    for line in BufReader::new(from).split(b'\n').map_while(Result::ok) {
        // A closed terminal is no reason to fail.
        let _ = to
            .write_all(&line)
            .and_then(|()| to.write_all(b"\n"))
            .and_then(|()| to.flush());
        let text = String::from_utf8_lossy(&line);
        if ["SKIP ", "test result: ", "Summary ", "FAIL", "TIMEOUT"]
            .iter()
            .any(|word| text.contains(word))
        {
            kept.lock()
                .unwrap_or_else(|poisoned| poisoned.into_inner())
                .push(text.into_owned());
        }
    }
}

/// The test that a line of nextest or of cargo's own runner calls failed.
fn failed_test(line: &str) -> Option<&str> {
    let of_cargo = || line.strip_prefix("test ")?.strip_suffix(" ... FAILED");
    // `FAIL [   0.601s] (213/450) package::binary name`
    let of_nextest = || {
        let words = line.trim_start();
        let rest = ["FAIL [", "TIMEOUT ["]
            .iter()
            .find_map(|word| words.strip_prefix(word))?;
        let name = rest.split_once("] ")?.1;
        Some(match name.strip_prefix('(') {
            Some(counted) => counted.split_once(") ")?.1,
            None => name,
        })
    };
    of_cargo().or_else(of_nextest).map(str::trim)
}

/// Takes out the escape sequences that set colours.
fn without_colours(line: &str) -> String {
    let mut text = String::new();
    let mut rest = line;
    while let Some((before, after)) = rest.split_once("\x1b[") {
        text += before;
        rest = after.find('m').map_or("", |end| &after[end + 1..]);
    }
    text + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failing_step_fails_the_whole_and_the_others_still_run() {
        let mut stages = Stages::new(false);
        assert!(!stages.run("breaks", &mut Command::new("false")).unwrap());
        assert!(stages.run("works", &mut Command::new("true")).unwrap());
        assert!(!stages.passed());
        let summary = stages.summary();
        assert!(
            summary.contains("FAILED") && summary.contains("breaks") && summary.contains("ok"),
            "{summary}"
        );
    }

    #[test]
    fn failed_tests_are_named() {
        let line = "        FAIL [   0.601s] (213/450) tests::crash no_room";
        assert_eq!(failed_test(line), Some("tests::crash no_room"));
        assert_eq!(failed_test("test a::b ... FAILED"), Some("a::b"));
        assert_eq!(failed_test("test result: FAILED. 1 passed; 1 failed"), None);
        assert_eq!(failed_test("    test a::b ... FAILED"), None);
    }

    #[test]
    fn where_no_skips_are_allowed_one_that_is_not_listed_fails_the_whole() {
        let listed = "SKIP a::slow: missing the soft-dirty tracker; take another kernel";
        let mut stages = Stages::new(true);
        stages.notice(&[listed]);
        assert!(stages.passed());
        stages.notice(&["SKIP b::test: missing root; run as root"]);
        assert!(!stages.passed());
        let summary = stages.summary();
        let line =
            "FAILED             b::test: skipped against --no-skips, missing root; run as root";
        assert!(summary.contains(line), "{summary}");
        assert!(!summary.contains("FAILED             a::slow"), "{summary}");

        let mut stages = Stages::new(true);
        stages.skipped("lints", "clippy", "get it");
        assert!(!stages.passed());
    }

    #[test]
    fn skips_and_counts_reach_the_summary() {
        // Nothing of this is printed: a run of these tests would find it and count it as its own.
        let mut stages = Stages::new(false);
        stages.notice(&[
            "SKIP a::test: missing root; run as root",
            "\x1b[1mtest result: \x1b[32mok\x1b[0m. 3 passed; 0 failed",
            "    test result: FAILED. 0 passed; 1 failed",
        ]);
        stages.skipped("lints", "clippy", "get it");
        assert!(stages.passed());
        let summary = stages.summary();
        for part in [
            "a::test: missing root; run as root",
            "test result: ok. 3 passed; 0 failed",
            "missing clippy; get it",
            "1 test skipped",
        ] {
            assert!(summary.contains(part), "{part:?} is not in {summary}");
        }
    }
}
