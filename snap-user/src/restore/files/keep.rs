//! Which of the open files that processes have are those that they should have. Pure.

use super::plan::Holding;
use super::same::{has_own_identity, is_same};
use crate::model::{Descriptor, Detail, FileKind, OpenFile};
use std::collections::{BTreeMap, HashMap};

/// Live open files that stay: wanted index → live index.
pub(super) type Kept = HashMap<usize, usize>;

/// The descriptors that a process should have, and those that it has.
pub(super) type Tables<'a> = (&'a [Descriptor], &'a [Descriptor]);

/// The open files that there are.
#[derive(Clone, Debug, Default)]
pub(super) struct Living {
    /// Which of them stay.
    pub(super) kept: Kept,
    /// For each a descriptor of it.
    pub(super) holders: Vec<Holding>,
}

/// Pairs wanted files with those that are there, by the descriptors of the processes that have them. Only those that
/// `may` stay.
pub(super) fn pair(
    wanted: &[OpenFile],
    live: &[OpenFile],
    tables: &[Tables<'_>],
    may: impl Fn(usize) -> bool,
) -> Kept {
    let mut kept = Kept::new();
    let mut taken: HashMap<usize, usize> = HashMap::new();
    // Where a descriptor has the same number it is most likely the same file; then any other.
    for exact in [true, false] {
        for (should, has) in tables {
            let at_live: BTreeMap<i32, usize> =
                has.iter().map(|d| (d.fd, d.file as usize)).collect();
            for descriptor in *should {
                let want = descriptor.file as usize;
                if kept.contains_key(&want) || !may(want) {
                    continue;
                }
                let fits =
                    |have: usize| !taken.contains_key(&have) && is_same(&wanted[want], &live[have]);
                let found = match exact {
                    true => at_live
                        .get(&descriptor.fd)
                        .copied()
                        .filter(|have| fits(*have)),
                    false if has_own_identity(&wanted[want]) => {
                        (0..live.len()).find(|have| fits(*have))
                    }
                    false => None,
                };
                if let Some(have) = found {
                    kept.insert(want, have);
                    taken.insert(have, want);
                }
            }
        }
    }
    drop_broken_pairs(wanted, live, &mut kept);
    kept
}

/// Of two sockets connected with each other, either both stay or none, with no direction shut down since.
fn drop_broken_pairs(wanted: &[OpenFile], live: &[OpenFile], kept: &mut Kept) {
    let socket = |file: &OpenFile| match &file.detail {
        Detail::Socket(socket) => Some((socket.peer_inode?, socket.shutdown)),
        _ => None,
    };
    let is_socket =
        |file: &OpenFile, inode: u64| file.kind == FileKind::Socket && file.identity.1 == inode;
    let broken: Vec<usize> = kept
        .keys()
        .filter(|want| {
            let Some((peer, shutdown)) = socket(&wanted[**want]) else {
                return false;
            };
            let Some(other) = wanted.iter().position(|f| is_socket(f, peer)) else {
                return false;
            };
            let now = |at: usize| kept.get(&at).and_then(|have| socket(&live[*have]));
            let changed = now(**want).is_none_or(|(_, now)| now & !shutdown != 0);
            let other_changed = now(other).is_none_or(|(_, now)| {
                let before = socket(&wanted[other]).map_or(0, |(_, shut)| shut);
                now & !before != 0
            });
            changed || other_changed
        })
        .copied()
        .collect();
    kept.retain(|want, _| !broken.contains(want));
}
