//! Open files that several processes of a tree share.

use crate::model::{Detail, FileKind, OpenFile, ProcessState, SharedFile};
use crate::sys::{SysError, compare_files_of};
use std::cmp::Ordering;
use std::collections::BTreeMap;

/// A stopped process and what it has open.
pub(super) struct Holder<'a> {
    pub(super) pid: i32,
    pub(super) files: &'a [HeldFile],
}

/// An open file of a stopped process, as far as it matters to whether others have it too.
pub(super) struct HeldFile {
    /// Its place among the open files of the process.
    file: u32,
    /// A descriptor of it.
    pub(super) fd: i32,
    like: Likeness,
    /// Of the master side of a pseudo-terminal: number of its other side. Of a side: its own.
    pub(super) terminal: Option<Side>,
}

/// A side of a pseudo-terminal, by the number in `/dev/pts`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Side {
    Master(u32),
    Other(u32),
}

fn side(file: &OpenFile) -> Option<Side> {
    let Detail::Terminal(terminal) = &file.detail else {
        return None;
    };
    let other = || terminal.number().map(Side::Other);
    terminal.master_of.map(Side::Master).or_else(other)
}

/// The open files that a process has descriptors of, each by the first of them.
pub(super) fn held_files(state: &ProcessState) -> Vec<HeldFile> {
    let mut seen = vec![false; state.files.len()];
    let open = state.open_files();
    let first = open.filter(|(d, _)| !std::mem::replace(&mut seen[d.file as usize], true));
    first
        .map(|(descriptor, file)| HeldFile {
            file: descriptor.file,
            fd: descriptor.fd,
            like: (file.kind, file.identity),
            terminal: side(file),
        })
        .collect()
}

/// What open files must agree in to be one. Their positions and flags are read of one process after the other, and may
/// change in between, where one that is not stopped has them as well.
type Likeness = (FileKind, (u64, u64));

/// A process and a descriptor of it.
type Held = (i32, i32);

/// Open files that several of the stopped processes share (`kcmp(2)`).
pub(super) fn shared_files(
    holders: &[Holder<'_>],
    notes: &mut Vec<String>,
) -> Vec<Vec<SharedFile>> {
    // Each open file by a descriptor of it.
    let mut alike: BTreeMap<Likeness, Vec<(SharedFile, Held)>> = BTreeMap::new();
    for (at, holder) in holders.iter().enumerate() {
        for held in holder.files {
            let place = SharedFile {
                member: at as u32,
                file: held.file,
            };
            let alike = alike.entry(held.like).or_default();
            alike.push((place, (holder.pid, held.fd)));
        }
    }
    let mut shared = Vec::new();
    let mut unknown = None;
    for mut group in alike.into_values().filter(|group| group.len() > 1) {
        group.sort_by(|(a, x), (b, y)| {
            let order = match a.member == b.member {
                // Told apart when they were read.
                true if a == b => Ordering::Equal,
                _ => compare_files_of(*x, *y).unwrap_or_else(|e: SysError| {
                    unknown.get_or_insert(e.to_string());
                    Ordering::Equal
                }),
            };
            order.then(a.cmp(b))
        });
        let same = |a: &(SharedFile, Held), b: &(SharedFile, Held)| {
            a.0.member != b.0.member
                && compare_files_of(a.1, b.1).is_ok_and(|order| order == Ordering::Equal)
        };
        for run in group.chunk_by(same).filter(|run| run.len() > 1) {
            shared.push(run.iter().map(|(place, _)| *place).collect());
        }
    }
    if let Some(why) = unknown {
        notes.push(format!(
            "which open files the processes share is not known ({why}): each gets its own"
        ));
    }
    shared
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Descriptor;
    use std::os::fd::AsRawFd;
    use std::process::{Command, Stdio};

    /// What was read of a file at this position, in a process that has it as this descriptor.
    fn read_at(position: u64, fd: i32) -> Vec<HeldFile> {
        let file = OpenFile {
            identity: (1, 2),
            position,
            ..OpenFile::default()
        };
        held_files(&ProcessState {
            descriptors: vec![descriptor(fd, 0)],
            files: vec![file],
            ..ProcessState::default()
        })
    }

    fn descriptor(fd: i32, file: u32) -> Descriptor {
        Descriptor {
            fd,
            file,
            cloexec: false,
        }
    }

    #[test]
    fn each_open_file_is_held_by_its_first_descriptor() {
        let file = |inode| OpenFile {
            identity: (1, inode),
            ..OpenFile::default()
        };
        let open = [(0, 2), (1, 0), (2, 2), (3, 0), (4, 9)];
        let held = held_files(&ProcessState {
            descriptors: open.map(|(fd, at)| descriptor(fd, at)).to_vec(),
            files: vec![file(10), file(11), file(12)],
            ..ProcessState::default()
        });
        let told: Vec<_> = held.iter().map(|h| (h.file, h.fd, h.like.1.1)).collect();
        assert_eq!(told, [(2, 0, 12), (0, 1, 10)]);
    }

    #[test]
    fn a_file_whose_position_moves_meanwhile_is_one_and_the_same_path_opened_again_is_not() {
        let file = tempfile::tempfile().unwrap();
        let again = std::fs::File::open(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap();
        let mut child = Command::new("sleep")
            .arg("1000")
            .stdin(Stdio::from(file.try_clone().unwrap()))
            .stdout(Stdio::from(again))
            .spawn()
            .unwrap();
        let own = std::process::id() as i32;
        let mine = read_at(10, file.as_raw_fd());
        let shared_with = |fd: i32, position: u64| {
            let other = read_at(position, fd);
            let holders = [(own, &mine), (child.id() as i32, &other)];
            let holders = holders.map(|(pid, files)| Holder { pid, files });
            let mut notes = Vec::new();
            let shared = shared_files(&holders, &mut notes);
            assert!(notes.is_empty(), "{notes:?}");
            shared
        };
        let place = |member| SharedFile { member, file: 0 };
        let one = vec![vec![place(0), place(1)]];
        assert_eq!(shared_with(0, 10), one);
        assert_eq!(shared_with(0, 11), one);
        assert!(shared_with(1, 10).is_empty());
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
