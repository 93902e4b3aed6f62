//! Which descriptors share one open file.

use super::Found;
use crate::model::{Descriptor, Detail, FileKind, OpenFile};
use crate::sys::compare_files;
use std::cmp::Ordering;
use std::collections::BTreeMap;

/// What descriptors of one open file agree in.
type Likeness = (FileKind, (u64, u64), u32, u64, i64);

fn likeness(file: &OpenFile) -> Likeness {
    let number = match &file.detail {
        Detail::Eventfd(event) => event.id,
        _ => 0,
    };
    (file.kind, file.identity, file.flags, file.position, number)
}

/// Equal likeness is proof: the kernel makes one open file only for each.
fn is_proof(file: &OpenFile) -> bool {
    match &file.detail {
        Detail::Socket(_) => true,
        Detail::Eventfd(event) => event.id != 0,
        _ => file.kind == FileKind::Socket,
    }
}

/// Each open file once, and the descriptors that refer to it.
pub(super) fn joined(pid: i32, found: Vec<Found>) -> (Vec<(Descriptor, String)>, Vec<OpenFile>) {
    let mut alike: BTreeMap<Likeness, Vec<usize>> = BTreeMap::new();
    for (at, one) in found.iter().enumerate() {
        alike.entry(likeness(&one.file)).or_default().push(at);
    }
    // For each descriptor, the first one that shares its open file.
    let mut first: Vec<usize> = (0..found.len()).collect();
    for group in alike.into_values().filter(|group| group.len() > 1) {
        if is_proof(&found[group[0]].file) {
            group.iter().for_each(|at| first[*at] = group[0]);
            continue;
        }
        let compare = |a: &usize, b: &usize| {
            // Where the kernel does not tell, each counts as its own.
            compare_files(pid, found[*a].fd, found[*b].fd).unwrap_or_else(|_| a.cmp(b))
        };
        let mut sorted = group;
        sorted.sort_by(|a, b| compare(a, b).then(a.cmp(b)));
        for pair in sorted.windows(2) {
            if compare(&pair[0], &pair[1]) == Ordering::Equal {
                first[pair[1]] = first[pair[0]];
            }
        }
    }
    let mut place = vec![0u32; found.len()];
    let (mut descriptors, mut files) = (Vec::with_capacity(found.len()), Vec::new());
    for (at, one) in found.into_iter().enumerate() {
        place[at] = match first[at] == at {
            true => {
                files.push(one.file);
                files.len() as u32 - 1
            }
            false => place[first[at]],
        };
        let descriptor = Descriptor {
            fd: one.fd,
            file: place[at],
            cloexec: one.cloexec,
        };
        descriptors.push((descriptor, one.link));
    }
    (descriptors, files)
}
