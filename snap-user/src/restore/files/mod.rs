//! Descriptors and open files: what has to be made, put in place and set.
//!
//! [`plan`] is pure: the files wanted, and those that the process has → where each one comes from, which
//! descriptors close and open, and what cannot be. [`make`] makes every open file that is not there in ksnap's own
//! table, and touches nothing of the process. [`Made::install`] hands them over and puts them at their numbers, by
//! calls that a stopped thread of the process runs; [`Made::settle`] sets positions, flags, counters, queues, watches
//! and locks. Sharing between descriptors comes for free, since each open file is made once.
//!
//! Open files are handed over through a Unix socket that the process makes and ksnap takes one end of: the other way
//! round, by pidfd_getfd(2), the process would need the right to trace ksnap.

mod connections;
mod contents;
mod install;
mod joint;
mod keep;
mod locks;
mod make;
mod plan;
mod same;
mod settle;
mod sockets;
mod sources;
mod streams;
mod watches;
mod world;

pub use contents::{SavedContents, look_at, write_back};
pub use joint::{Joint, JointPlan};
pub use make::{Made, Owner, make};
pub use plan::{FileWorld, FilesPlan, Holding, Look, Source, plan};
pub use streams::is_from_elsewhere;
pub use watches::Watch;
pub use world::System;

use std::collections::{BTreeMap, HashMap};
use std::os::fd::RawFd;

/// What to do differently from what was recorded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Descriptors that get another open file (`--map-fd N=PATH`).
    pub map_fds: BTreeMap<i32, Replacement>,
    /// Paths that begin with the first are opened with the second in its place (`--map-path OLD=NEW`).
    pub map_paths: Vec<(String, String)>,
    /// Go on with files that have changed since.
    pub allow_changed: bool,
    /// A terminal of ksnap's own for descriptors of terminals that are gone.
    pub terminal: Option<RawFd>,
    /// Processes that were made anew: the ids that they had, and those that they have.
    pub pids: HashMap<i32, i32>,
    /// Go on with TCP connections that the snapshot has.
    pub tcp: bool,
}

/// What a descriptor gets in place of what it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Replacement {
    /// This path, opened with the access mode that the descriptor had.
    Path(String),
    /// A descriptor of ksnap's own.
    Own(RawFd),
}

impl Options {
    /// Reads `N=PATH`; a path of `fd:M` is ksnap's own descriptor M.
    ///
    /// # Errors
    /// A sentence for the user.
    pub fn map_fd(&mut self, text: &str) -> Result<(), String> {
        let wanted = "expected N=PATH, as in 3=/dev/null";
        let (fd, path) = text.split_once('=').ok_or(wanted)?;
        let fd: i32 = fd.trim().parse().map_err(|_| wanted)?;
        if fd < 0 || path.is_empty() {
            return Err(wanted.into());
        }
        let with = match path.strip_prefix("fd:") {
            Some(own) => {
                Replacement::Own(own.parse().map_err(|_| "expected N=fd:M, as in 1=fd:2")?)
            }
            None => Replacement::Path(path.to_owned()),
        };
        match self.map_fds.insert(fd, with) {
            None => Ok(()),
            Some(_) => Err(format!("descriptor {fd} is replaced twice")),
        }
    }

    /// Reads `OLD=NEW`.
    ///
    /// # Errors
    /// A sentence for the user.
    pub fn map_path(&mut self, text: &str) -> Result<(), String> {
        match text.split_once('=') {
            Some((old, new)) if old.starts_with('/') && new.starts_with('/') => {
                let cut = |path: &str| path.trim_end_matches('/').to_owned();
                self.map_paths.push((cut(old), cut(new)));
                Ok(())
            }
            _ => Err("expected OLD=NEW, both absolute paths, as in /var/old=/var/new".into()),
        }
    }

    /// Where a path is now: the longest rule that fits counts.
    pub fn mapped(&self, path: &str) -> String {
        let fits = |old: &str| {
            path.strip_prefix(old)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        let rule = self
            .map_paths
            .iter()
            .filter(|(old, _)| fits(old))
            .max_by_key(|(old, _)| old.len());
        match rule {
            Some((old, new)) => format!("{new}{}", &path[old.len()..]),
            None => path.to_owned(),
        }
    }
}

/// What was found about an open file that is not as it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// A descriptor that refers to it.
    pub fd: i32,
    /// Its path.
    pub path: String,
    /// What is the matter.
    pub what: Matter,
}

/// What is the matter with a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Matter {
    /// It cannot be opened any more, for this reason.
    Missing(String),
    /// Another file has its name now.
    Replaced,
    /// Its content has changed since.
    Changed,
    /// It has lost its name, and with the last descriptor its content.
    Deleted,
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { fd, path, what } = self;
        match what {
            Matter::Missing(why) => write!(f, "descriptor {fd}: {path} cannot be opened ({why})"),
            Matter::Replaced => write!(f, "descriptor {fd}: another file is at {path} now"),
            Matter::Changed => write!(f, "descriptor {fd}: {path} has changed since"),
            Matter::Deleted => write!(
                f,
                "descriptor {fd}: {path} was deleted and then closed, and its content is gone"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_for_paths_fit_whole_names_and_the_longest_counts() {
        let mut options = Options::default();
        options.map_path("/var=/data").unwrap();
        options.map_path("/var/log/=/logs").unwrap();
        assert_eq!(options.mapped("/var/x"), "/data/x");
        assert_eq!(options.mapped("/var/log/a"), "/logs/a");
        assert_eq!(options.mapped("/various"), "/various");
        assert_eq!(options.mapped("/var"), "/data");
        assert!(options.map_path("relative=/x").is_err());
    }

    #[test]
    fn rules_for_descriptors() {
        let mut options = Options::default();
        options.map_fd("3=/dev/null").unwrap();
        options.map_fd("1=fd:2").unwrap();
        assert_eq!(options.map_fds[&3], Replacement::Path("/dev/null".into()));
        assert_eq!(options.map_fds[&1], Replacement::Own(2));
        for wrong in ["3", "x=/y", "-1=/y", "4=", "3=/again", "5=fd:x"] {
            assert!(options.map_fd(wrong).is_err(), "{wrong}");
        }
    }
}
