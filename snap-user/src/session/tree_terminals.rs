//! What is read of the terminals of a stopped tree.

use super::tree_files::{Holder, Side};
use crate::sys::{self, fd, proc};
use std::collections::BTreeSet;

/// A process with its group, as ksnap numbers it and as the process does.
pub(super) struct Grouped {
    outer: i32,
    own: i32,
}

impl Grouped {
    /// `own` is the group as the process numbers it.
    pub(super) fn of(pid: i32, own: i32) -> Self {
        let outer = proc::stat(pid, None).map_or(0, |stat| stat.field(5) as i32);
        Self { outer, own }
    }
}

/// The group in the foreground of the controlling terminal of this process, as it numbers it. `all` are the processes of
/// the tree, this one among them.
pub(super) fn foreground(pid: i32, all: &[Grouped]) -> Option<i32> {
    let stat = proc::stat(pid, None).ok()?;
    // proc_pid_stat(5): tty_nr, tpgid, the latter -1 without a terminal.
    let (terminal, group) = (stat.field(7), stat.field(8) as i32);
    if terminal == 0 || group == 0 {
        return None;
    }
    let known = all.iter().find(|one| one.outer == group);
    let same_numbers = || {
        let own = all.iter().find(|one| one.outer == stat.field(5) as i32)?;
        (own.outer == own.own).then_some(group)
    };
    known.map(|one| one.own).or_else(same_numbers)
}

/// What is in pseudo-terminals whose both sides the tree has, and is in no snapshot: a sentence each. Reading would take
/// it out, so that it is counted only.
pub(super) fn unread(holders: &[Holder<'_>]) -> Vec<String> {
    let all = || {
        holders.iter().flat_map(|holder| {
            let files = holder.files.iter();
            files.filter_map(|file| Some((holder.pid, file.fd, file.terminal?)))
        })
    };
    let masters: BTreeSet<u32> = all()
        .filter_map(|(_, _, side)| match side {
            Side::Master(number) => Some(number),
            Side::Other(_) => None,
        })
        .collect();
    let mut seen = BTreeSet::new();
    let mut lost = Vec::new();
    for (pid, fd, side) in all() {
        let (number, what) = match side {
            Side::Master(number) => (number, "written to it and not yet read by its master"),
            Side::Other(number) => (number, "typed and not yet read"),
        };
        if !masters.contains(&number) || !seen.insert(side) {
            continue;
        }
        let waiting = sys::pidfd_open(pid)
            .and_then(|process| sys::pidfd_getfd(&process, fd))
            .and_then(fd::queued);
        if let Ok(bytes @ 1..) = waiting {
            lost.push(format!(
                "terminal /dev/pts/{number}: {bytes} bytes that were {what} are not saved"
            ));
        }
    }
    lost
}
