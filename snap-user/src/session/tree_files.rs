//! Open files that several processes of a tree share.

use crate::model::{Descriptor, FileKind, OpenFile, SharedFile};
use crate::sys::{SysError, compare_files_of};
use std::cmp::Ordering;
use std::collections::BTreeMap;

/// A stopped process and what it has open.
pub(super) struct Holder<'a> {
    pub(super) pid: i32,
    pub(super) descriptors: &'a [Descriptor],
    pub(super) files: &'a [OpenFile],
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
        for (n, file) in holder.files.iter().enumerate() {
            let mut descriptors = holder.descriptors.iter();
            if let Some(descriptor) = descriptors.find(|d| d.file as usize == n) {
                let place = SharedFile {
                    member: at as u32,
                    file: n as u32,
                };
                alike
                    .entry((file.kind, file.identity))
                    .or_default()
                    .push((place, (holder.pid, descriptor.fd)));
            }
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
    use std::os::fd::AsRawFd;
    use std::process::{Command, Stdio};

    /// What was read of a file at this position, in a process that has it as this descriptor.
    fn read_at(position: u64, fd: i32) -> (Vec<Descriptor>, Vec<OpenFile>) {
        let descriptor = Descriptor {
            fd,
            file: 0,
            cloexec: false,
        };
        let file = OpenFile {
            identity: (1, 2),
            position,
            ..OpenFile::default()
        };
        (vec![descriptor], vec![file])
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
            let holders = holders.map(|(pid, (descriptors, files))| Holder {
                pid,
                descriptors,
                files,
            });
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
