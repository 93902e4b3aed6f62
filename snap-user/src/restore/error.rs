//! Errors of restoring.

use crate::sys::SysError;
use thiserror::Error;

/// Why a state was not put back.
#[derive(Debug, Error)]
pub enum RestoreError {
    /// Part of the state cannot be brought back. Nothing was touched.
    #[error("process {pid} cannot be put back; nothing was touched:\n{}", list(.reasons))]
    Refused {
        /// The process.
        pid: i32,
        /// What cannot be brought back, a sentence each.
        reasons: Vec<String>,
    },
    /// It failed in the middle. The process stays stopped.
    #[error(
        "putting process {pid} back failed in the middle, while {step}: {why}; it stays stopped on a mixed state: roll it back again to a snapshot that fits, or end it (kill -9 {pid})"
    )]
    Halfway {
        /// The process.
        pid: i32,
        /// What was being done.
        step: &'static str,
        /// What went wrong.
        why: String,
    },
    /// It failed in the middle of a tree. All of its processes stay stopped.
    #[error(
        "putting the tree of process {root} back failed in the middle, in process {pid}, while {step}: {why}; put back: {}; not put back: {}; all of them stay stopped on a mixed state: roll the tree back again (ksnap rollback {root} SNAPSHOT --tree), or end all of them (kill -9 {})",
        pids(.back), pids(.mixed), words(.back.iter().chain(.mixed))
    )]
    TreeHalfway {
        /// The first process of the tree.
        root: i32,
        /// The one that it failed in.
        pid: i32,
        /// What was being done.
        step: &'static str,
        /// What went wrong.
        why: String,
        /// Processes that are back at their snapshots.
        back: Vec<i32>,
        /// Those that are not.
        mixed: Vec<i32>,
    },
    /// A new process could not be made. Nothing is left of it.
    #[error(
        "process {pid} could not be brought back, while {step}: {source}; nothing of it is left"
    )]
    Unborn {
        /// Its id in the snapshot.
        pid: i32,
        /// What was being done.
        step: &'static str,
        /// What failed.
        source: SysError,
    },
    /// A system call failed before anything was touched.
    #[error(transparent)]
    Sys(#[from] SysError),
}

fn pids(pids: &[i32]) -> String {
    match pids {
        [] => "none".into(),
        some => words(some.iter()),
    }
}

fn words<'a>(pids: impl Iterator<Item = &'a i32>) -> String {
    let words: Vec<String> = pids.map(ToString::to_string).collect();
    words.join(" ")
}

fn list(reasons: &[String]) -> String {
    reasons
        .iter()
        .map(|r| format!("  - {r}"))
        .collect::<Vec<_>>()
        .join("\n")
}
