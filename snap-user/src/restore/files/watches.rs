//! What epoll instances watch.

use super::plan::{FilesPlan, Source};
use crate::model::{Detail, EpollWatch, ProcessState};
use std::collections::HashMap;

/// A watch to add to an epoll instance, or to change. By the process itself: the kernel remembers it under the
/// number that the descriptor has for whoever adds it (`epoll_ctl(2)`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watch {
    /// Descriptor of the epoll instance.
    pub epoll: i32,
    /// What to watch.
    pub watch: EpollWatch,
    /// It is watched already, for other events or with other data.
    pub change: bool,
}

impl Watch {
    /// That the process cannot add it, and nobody else will.
    pub(super) fn lost(&self) -> String {
        format!(
            "descriptor {}: a file that it watched under number {} is not watched any more, since that number is not its own now",
            self.epoll, self.watch.fd
        )
    }
}

/// Not changed by `EPOLL_CTL_MOD`.
const EPOLLEXCLUSIVE: u32 = 1 << 28;

/// Adds the steps from the live watches to the wanted ones. `kept` has the live file of each wanted one that stays.
pub(super) fn plan(
    wanted: &ProcessState,
    live: &ProcessState,
    kept: &HashMap<usize, usize>,
    plan: &mut FilesPlan,
) {
    let table = |state: &ProcessState| -> HashMap<i32, usize> {
        state
            .descriptors
            .iter()
            .map(|d| (d.fd, d.file as usize))
            .collect()
    };
    let (wanted_at, live_at) = (table(wanted), table(live));
    let inode = |state: &ProcessState, at: Option<&usize>| {
        at.and_then(|at| state.files.get(*at))
            .map(|file| file.identity.1)
    };
    // The descriptor refers to the same open file before and after.
    let stays = |fd: i32| match (wanted_at.get(&fd), live_at.get(&fd)) {
        (Some(want), Some(have)) => {
            kept.get(want) == Some(have) && matches!(plan.sources[*want], Source::Live(_))
        }
        _ => false,
    };
    let mut unwatch = Vec::new();
    let mut watch = Vec::new();
    let mut watched = Vec::new();
    let mut out_of_reach = Vec::new();
    for (at, file) in wanted.files.iter().enumerate() {
        let Detail::Epoll(want) = &file.detail else {
            continue;
        };
        let Some(epoll) = wanted
            .descriptors
            .iter()
            .find(|d| d.file as usize == at)
            .map(|d| d.fd)
        else {
            continue;
        };
        let have = match (&plan.sources[at], kept.get(&at)) {
            (Source::Live(_), Some(have)) => match &live.files[*have].detail {
                Detail::Epoll(watches) => watches.as_slice(),
                _ => &[],
            },
            (Source::Make, _) => &[],
            _ => continue,
        };
        // Of the process's own; among several, one of the others may have it.
        let live_epoll = kept.get(&at).and_then(|have| {
            let mut all = live.descriptors.iter();
            all.find(|d| d.file as usize == *have).map(|d| d.fd)
        });
        let mut there: HashMap<i32, &EpollWatch> = HashMap::new();
        for one in have {
            // Of a descriptor that was closed while the file stayed open elsewhere: out of reach.
            if inode(live, live_at.get(&one.fd)) != Some(one.inode) {
                continue;
            }
            let keep = stays(one.fd)
                && want.iter().any(|w| {
                    w.fd == one.fd && (w.events | one.events) & EPOLLEXCLUSIVE == 0 || *w == *one
                });
            match keep {
                true => drop(there.insert(one.fd, one)),
                false => unwatch.extend(live_epoll.map(|epoll| (epoll, one.fd))),
            }
        }
        for one in want {
            let step = Watch {
                epoll,
                watch: *one,
                change: there.contains_key(&one.fd),
            };
            if inode(wanted, wanted_at.get(&one.fd)) != Some(one.inode) {
                out_of_reach.push(step);
                continue;
            }
            let lost = wanted_at
                .get(&one.fd)
                .is_none_or(|at| plan.sources[*at] == Source::Lost);
            match there.get(&one.fd) {
                Some(same) if (same.events, same.data) == (one.events, one.data) => {
                    watched.push(step);
                }
                _ if lost => {}
                _ => watch.push(step),
            }
        }
    }
    plan.unwatch = unwatch;
    plan.watch = watch;
    plan.watched = watched;
    plan.out_of_reach = out_of_reach;
}
