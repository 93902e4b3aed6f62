//! A tree of processes, captured at one moment.

use super::snapshot::SnapshotId;

/// Processes that were captured at one moment: a process and all of its descendants.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProcessTree {
    /// Wall-clock time at which all of them were stopped, nanoseconds since 1970.
    pub time_ns: u64,
    /// From the stop of the first to the moment at which all were captured, in nanoseconds.
    pub stop_ns: u64,
    /// The processes, parents before their children: the first is the root.
    pub members: Vec<TreeMember>,
    /// Children that had ended and that their parents had not waited for.
    pub zombies: Vec<Zombie>,
    /// Open files that several members share: for each the members' own places of it.
    pub shared: Vec<Vec<SharedFile>>,
}

/// A process of a tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TreeMember {
    /// Its snapshot.
    pub id: SnapshotId,
    /// Its process id, as the snapshot has it.
    pub pid: i32,
    /// Its parent, by its place among the members; `None` for the root.
    pub parent: Option<u32>,
    /// Process group, as its own PID namespace numbers it; 0 for one of another namespace.
    pub group: i32,
    /// Session, numbered in the same way.
    pub session: i32,
    /// It was in a job-control stop.
    pub stopped: bool,
    /// Of one that leads a session with a controlling terminal: the group in the foreground of that, numbered in the
    /// same way; `None` where there is none or it is not known.
    pub foreground: Option<i32>,
}

/// A process that has ended and that its parent has not waited for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Zombie {
    /// Its process id, as seen from ksnap's PID namespace.
    pub pid: i32,
    /// Its process id as its parent sees it.
    pub own_pid: i32,
    /// Its parent, by its place among the members.
    pub parent: u32,
    /// Its name.
    pub comm: String,
    /// Process group, as its own PID namespace numbers it; 0 for one of another namespace.
    pub group: i32,
    /// Session, numbered in the same way.
    pub session: i32,
    /// How it ended, as `waitpid(2)` tells.
    pub status: i32,
}

/// An open file of a member, by its place in [`super::ProcessState::files`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SharedFile {
    /// The member, by its place.
    pub member: u32,
    /// The file.
    pub file: u32,
}
