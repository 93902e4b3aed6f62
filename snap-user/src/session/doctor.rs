//! What works on this machine for this user, what is missing, and how to get it.
//!
//! Each check tries the thing itself: versions and capabilities say little about containers and patched kernels.

mod host;
mod kernel;
mod target;

use crate::track::TrackerKind;
use serde::Serialize;
use std::path::Path;

/// What was found out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Diagnosis {
    /// Processes can be captured and rolled back.
    pub ready: bool,
    /// One sentence.
    pub verdict: String,
    /// Kernel release.
    pub kernel: String,
    /// Processor architecture.
    pub arch: String,
    /// Effective user id.
    pub uid: u32,
    /// The tracker that `--tracker auto` would use.
    pub tracker: Option<String>,
    /// One for each feature.
    pub checks: Vec<Check>,
}

/// Outcome of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It works.
    Supported,
    /// It does not.
    Unsupported,
    /// The check itself could not be carried out.
    CouldNotTell,
}

/// One feature.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// Stable name for scripts.
    pub name: &'static str,
    /// Name for people.
    pub title: &'static str,
    /// Whether it works.
    pub outcome: Outcome,
    /// What was seen.
    pub detail: String,
    /// What ksnap uses it for.
    pub used_for: &'static str,
    /// What happens without it.
    pub without: &'static str,
    /// How to get it.
    pub how: &'static str,
}

/// What is the same in every outcome of a check.
#[derive(Clone, Copy)]
struct About {
    name: &'static str,
    title: &'static str,
    used_for: &'static str,
    without: &'static str,
    how: &'static str,
}

impl About {
    fn check(self, outcome: Outcome, detail: impl Into<String>) -> Check {
        Check {
            name: self.name,
            title: self.title,
            outcome,
            detail: detail.into(),
            used_for: self.used_for,
            without: self.without,
            how: self.how,
        }
    }

    fn yes(self, detail: impl Into<String>) -> Check {
        self.check(Outcome::Supported, detail)
    }

    fn no(self, detail: impl Into<String>) -> Check {
        self.check(Outcome::Unsupported, detail)
    }

    fn unknown(self, detail: impl Into<String>) -> Check {
        self.check(Outcome::CouldNotTell, detail)
    }
}

/// Checks everything. Starts a process of its own to try things on, and ends it; loads the probes, attached to
/// nothing. `store` is where snapshots would go.
pub fn doctor(store: Option<&Path>) -> Diagnosis {
    let mut checks = target::checks();
    checks.push(host::yama());
    checks.extend(kernel::trackers());
    checks.extend(kernel::probes());
    checks.push(host::thread_ids());
    checks.push(host::io_uring());
    checks.push(host::store(store));
    let host = host::describe();
    let ready = is_ready(&checks);
    let tracker = TrackerKind::ALL
        .into_iter()
        .find(|kind| works(&checks, kernel::tracker_name(*kind)))
        .map(|kind| kind.to_string());
    Diagnosis {
        verdict: verdict(ready, tracker.as_deref(), &checks),
        ready,
        kernel: host.kernel,
        arch: host.arch,
        uid: host.uid,
        tracker,
        checks,
    }
}

fn works(checks: &[Check], name: &str) -> bool {
    checks
        .iter()
        .any(|check| check.name == name && check.outcome == Outcome::Supported)
}

/// The main job needs a process that can be stopped and read, and any tracker.
fn is_ready(checks: &[Check]) -> bool {
    let tracks = TrackerKind::ALL
        .into_iter()
        .any(|kind| works(checks, kernel::tracker_name(kind)));
    works(checks, "ptrace") && works(checks, "read_memory") && tracks
}

fn verdict(ready: bool, tracker: Option<&str>, checks: &[Check]) -> String {
    let missing = |check: &&Check| check.outcome != Outcome::Supported;
    if !ready {
        let culprit = ["ptrace", "read_memory"]
            .iter()
            .find_map(|name| checks.iter().find(|c| c.name == *name).filter(missing));
        return match culprit {
            Some(check) => format!(
                "ksnap cannot work here: {} failed ({})",
                check.title, check.detail
            ),
            None => "ksnap cannot work here: no tracker works".into(),
        };
    }
    let tracker = tracker.unwrap_or("hash");
    let probes = match works(checks, "probes") {
        true => "with the fault log",
        false => "without the fault log",
    };
    let lacking = checks.iter().filter(missing).count();
    let all = checks.len();
    match lacking {
        0 => format!("ksnap works here: tracker {tracker}, {probes}; nothing is missing"),
        n => format!(
            "ksnap works here: tracker {tracker}, {probes}; {n} of {all} features are missing or unknown"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ABOUT: About = About {
        name: "",
        title: "stop a process",
        used_for: "u",
        without: "w",
        how: "h",
    };

    fn named(name: &'static str, outcome: Outcome) -> Check {
        About { name, ..ABOUT }.check(outcome, "EPERM")
    }

    #[test]
    fn the_main_job_needs_ptrace_memory_and_a_tracker() {
        use Outcome::{CouldNotTell, Supported, Unsupported};
        let all = |ptrace, memory, hash| {
            vec![
                named("ptrace", ptrace),
                named("read_memory", memory),
                named("tracker_wp", Unsupported),
                named("tracker_hash", hash),
            ]
        };
        assert!(is_ready(&all(Supported, Supported, Supported)));
        assert!(!is_ready(&all(Unsupported, Supported, Supported)));
        assert!(!is_ready(&all(Supported, CouldNotTell, Supported)));
        assert!(!is_ready(&all(Supported, Supported, Unsupported)));
        let text = verdict(false, None, &all(Unsupported, Supported, Supported));
        assert_eq!(
            text,
            "ksnap cannot work here: stop a process failed (EPERM)"
        );
        let text = verdict(true, Some("hash"), &all(Supported, Supported, Supported));
        assert!(
            text.contains("tracker hash, without the fault log; 1 of 4 features"),
            "{text}"
        );
    }

    #[test]
    fn every_check_has_its_own_name_and_says_what_for() {
        let diagnosis = doctor(Some(Path::new("/nonexistent/store")));
        let mut names: Vec<_> = diagnosis.checks.iter().map(|c| c.name).collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
        for check in &diagnosis.checks {
            for text in [check.used_for, check.without, check.how, check.title] {
                assert!(text.len() > 5, "{check:?}");
            }
        }
        assert!(works(&diagnosis.checks, "tracker_hash"));
    }
}
