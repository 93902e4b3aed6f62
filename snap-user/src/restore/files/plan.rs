//! Where each open file comes from, and what changes in the descriptor table. Pure.

use super::same::{differs, has_own_identity, is_same};
use super::watches::{self, Watch};
use super::{Finding, Options, Replacement};
use crate::model::{
    Descriptor, Detail, FileKind, LockKind, OpenFile, ProcessState, Regular, Socket,
};
use std::collections::{BTreeMap, HashMap};
use std::os::fd::RawFd;

/// What is known of a path.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Look {
    /// Device and inode.
    pub identity: (u64, u64),
    /// Size and last change.
    pub content: Regular,
}

/// What of the world the plan depends on.
pub trait FileWorld {
    /// What is at a path, as the process sees it; why not, if nothing is.
    fn look(&self, path: &str) -> Result<Look, String>;
    /// Start time of a process in clock ticks since boot, if there is one with this id.
    fn process(&self, pid: i32) -> Option<u64>;
    /// A path by which a pipe that another process holds can be opened.
    fn pipe(&self, identity: (u64, u64)) -> Option<String>;
    /// Why connections cannot go on here, each where it cannot, in their order. With each socket the inode of the one
    /// that had its connection.
    fn connections(&self, all: &[(&Socket, u64)]) -> Vec<Result<(), String>>;
}

/// Where an open file comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// The process has it, as this descriptor.
    Live(i32),
    /// It is opened by this path.
    Path(String),
    /// It is made at this path, with these permissions; its content is in the snapshot.
    Create(String, u32),
    /// It is made without a name, in the folder of this path; its content is in the snapshot.
    Unnamed(String, u32),
    /// It is made anew.
    Make,
    /// A descriptor of ksnap's own.
    Own(RawFd),
    /// Nowhere: its descriptors stay closed.
    Lost,
}

/// The way from the descriptors that a process has to those that it should have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FilesPlan {
    /// Where each wanted open file comes from, by its index.
    pub sources: Vec<Source>,
    /// Watches to take out before anything closes: epoll descriptor and watched descriptor.
    pub unwatch: Vec<(i32, i32)>,
    /// Descriptors to close.
    pub close: Vec<i32>,
    /// Descriptors to put in place.
    pub install: Vec<Descriptor>,
    /// Descriptors whose close-on-exec flag is to be set or cleared.
    pub cloexec: Vec<(i32, bool)>,
    /// Wanted open files whose state is to be set, by index.
    pub settle: Vec<u32>,
    /// Watches to add or change.
    pub watch: Vec<Watch>,
    /// Watches that the process cannot add, since it does not have the file under that number. One that shares the epoll
    /// instance may.
    pub out_of_reach: Vec<Watch>,
    /// Descriptors whose locks of the process are to be set.
    pub lock: Vec<i32>,
    /// What is not as it was, and why that is no reason to stop: a sentence each.
    pub notes: Vec<String>,
    /// Files that are not as they were.
    pub findings: Vec<Finding>,
    /// What cannot be brought back, a sentence each.
    pub refusals: Vec<String>,
}

/// What the plan is for: the process that the snapshot is of, or a new one.
fn in_place(wanted: &ProcessState, live: &ProcessState) -> bool {
    (wanted.pid, wanted.start_time) == (live.pid, live.start_time)
}

/// Plans the way from `live` to `wanted`. For a new process, `live` has what it was born with.
pub fn plan(
    wanted: &ProcessState,
    live: &ProcessState,
    world: &dyn FileWorld,
    options: &Options,
) -> FilesPlan {
    let mut plan = plan_of_one(wanted, live, world, options);
    plan.notes.extend(plan.out_of_reach.iter().map(Watch::lost));
    plan
}

/// The same for one of several processes: what is out of its reach is not told, since another one may reach it.
pub(super) fn plan_of_one(
    wanted: &ProcessState,
    live: &ProcessState,
    world: &dyn FileWorld,
    options: &Options,
) -> FilesPlan {
    let mut planner = Planner {
        wanted,
        live,
        world,
        options,
        same: in_place(wanted, live),
        first: first_of(wanted),
        going: Vec::new(),
        plan: FilesPlan::default(),
    };
    planner.plan.sources = vec![Source::Make; wanted.files.len()];
    planner.replace();
    let kept = match planner.same {
        true => planner.keep(),
        false => HashMap::new(),
    };
    planner.obtain(&kept);
    planner.check_connections();
    planner.table(&kept);
    planner.state(&kept);
    planner.plan
}

/// The lowest descriptor of each open file.
fn first_of(state: &ProcessState) -> Vec<i32> {
    let mut first = vec![-1; state.files.len()];
    for descriptor in state.descriptors.iter().rev() {
        if let Some(place) = first.get_mut(descriptor.file as usize) {
            *place = descriptor.fd;
        }
    }
    first
}

pub(super) struct Planner<'a> {
    pub(super) wanted: &'a ProcessState,
    pub(super) live: &'a ProcessState,
    pub(super) world: &'a dyn FileWorld,
    pub(super) options: &'a Options,
    pub(super) same: bool,
    /// Lowest descriptor of each wanted file.
    pub(super) first: Vec<i32>,
    /// Wanted files whose connections are to go on.
    pub(super) going: Vec<usize>,
    pub(super) plan: FilesPlan,
}

impl Planner<'_> {
    /// Files that the user replaces.
    fn replace(&mut self) {
        for (at, fd) in self
            .wanted
            .descriptors
            .iter()
            .map(|d| (d.file as usize, d.fd))
        {
            if let Some(with) = self.options.map_fds.get(&fd)
                && let Some(source) = self.plan.sources.get_mut(at)
            {
                *source = match with {
                    Replacement::Path(path) => Source::Path(path.clone()),
                    Replacement::Own(own) => Source::Own(*own),
                };
            }
        }
    }

    /// Pairs wanted files with those that the process still has: wanted index → live index.
    fn keep(&mut self) -> HashMap<usize, usize> {
        let mut kept: HashMap<usize, usize> = HashMap::new();
        let mut taken: HashMap<usize, usize> = HashMap::new();
        let at_live: BTreeMap<i32, usize> = self
            .live
            .descriptors
            .iter()
            .map(|d| (d.fd, d.file as usize))
            .collect();
        // Where a descriptor has the same number it is most likely the same file; then any other.
        for exact in [true, false] {
            for descriptor in &self.wanted.descriptors {
                let want = descriptor.file as usize;
                if kept.contains_key(&want) || self.plan.sources[want] != Source::Make {
                    continue;
                }
                let fits = |have: usize| {
                    !taken.contains_key(&have)
                        && is_same(&self.wanted.files[want], &self.live.files[have])
                };
                let found = match exact {
                    true => at_live
                        .get(&descriptor.fd)
                        .copied()
                        .filter(|have| fits(*have)),
                    false if has_own_identity(&self.wanted.files[want]) => {
                        (0..self.live.files.len()).find(|have| fits(*have))
                    }
                    false => None,
                };
                if let Some(have) = found {
                    kept.insert(want, have);
                    taken.insert(have, want);
                }
            }
        }
        self.drop_broken_pairs(&mut kept);
        kept
    }

    /// Of two sockets connected with each other, either both stay or none, with no direction shut down since.
    fn drop_broken_pairs(&self, kept: &mut HashMap<usize, usize>) {
        let socket = |file: &OpenFile| match &file.detail {
            Detail::Socket(socket) => Some((socket.peer_inode?, socket.shutdown)),
            _ => None,
        };
        let is_socket =
            |file: &OpenFile, inode: u64| file.kind == FileKind::Socket && file.identity.1 == inode;
        let broken: Vec<usize> = kept
            .keys()
            .filter(|want| {
                let Some((peer, shutdown)) = socket(&self.wanted.files[**want]) else {
                    return false;
                };
                let Some(other) = self.wanted.files.iter().position(|f| is_socket(f, peer)) else {
                    return false;
                };
                let now = |at: usize| {
                    kept.get(&at)
                        .and_then(|have| socket(&self.live.files[*have]))
                };
                let changed = now(**want).is_none_or(|(_, now)| now & !shutdown != 0);
                let other_changed = now(other).is_none_or(|(_, now)| {
                    let before = socket(&self.wanted.files[other]).map_or(0, |(_, shut)| shut);
                    now & !before != 0
                });
                changed || other_changed
            })
            .copied()
            .collect();
        kept.retain(|want, _| !broken.contains(want));
    }

    /// Decides where each wanted file comes from.
    fn obtain(&mut self, kept: &HashMap<usize, usize>) {
        let live_first = first_of(self.live);
        for at in 0..self.wanted.files.len() {
            if self.plan.sources[at] != Source::Make || self.first[at] < 0 {
                continue;
            }
            self.plan.sources[at] = match kept.get(&at) {
                Some(have) => Source::Live(live_first[*have]),
                None => self.source(at),
            };
        }
    }

    /// What changes in the descriptor table.
    fn table(&mut self, kept: &HashMap<usize, usize>) {
        let live: BTreeMap<i32, Descriptor> =
            self.live.descriptors.iter().map(|d| (d.fd, *d)).collect();
        let lost = |d: &Descriptor| self.plan.sources[d.file as usize] == Source::Lost;
        let wanted: BTreeMap<i32, Descriptor> = self
            .wanted
            .descriptors
            .iter()
            .filter(|d| (d.file as usize) < self.wanted.files.len() && !lost(d))
            .map(|d| (d.fd, *d))
            .collect();
        self.plan.close = live
            .keys()
            .filter(|fd| !wanted.contains_key(fd))
            .copied()
            .collect();
        for (fd, want) in &wanted {
            let stays = live.get(fd).filter(|have| {
                kept.get(&(want.file as usize)) == Some(&(have.file as usize))
                    && matches!(self.plan.sources[want.file as usize], Source::Live(_))
            });
            match stays {
                Some(have) if have.cloexec != want.cloexec => {
                    self.plan.cloexec.push((*fd, want.cloexec));
                }
                Some(_) => {}
                None => self.plan.install.push(*want),
            }
        }
    }

    /// What lies in a socket's queue is put there through the one that it is connected with.
    fn both_of_pairs(&mut self) {
        let peers: Vec<u32> = self
            .plan
            .settle
            .iter()
            .filter_map(|at| match &self.wanted.files[*at as usize].detail {
                Detail::Socket(socket) => socket.peer_inode,
                _ => None,
            })
            .filter_map(|inode| {
                let is_it =
                    |file: &OpenFile| file.kind == FileKind::Socket && file.identity.1 == inode;
                self.wanted.files.iter().position(is_it).map(|at| at as u32)
            })
            .filter(|at| self.plan.sources[*at as usize] != Source::Lost)
            .collect();
        self.plan.settle.extend(peers);
        self.plan.settle.sort_unstable();
        self.plan.settle.dedup();
    }

    /// What changes in the open files.
    fn state(&mut self, kept: &HashMap<usize, usize>) {
        for (at, want) in self.wanted.files.iter().enumerate() {
            let fresh = match &self.plan.sources[at] {
                Source::Lost => continue,
                // What the user gives instead keeps its own state.
                Source::Own(_) => continue,
                Source::Path(_) | Source::Create(..) | Source::Unnamed(..) | Source::Make => true,
                Source::Live(_) => false,
            };
            let replaced = self
                .wanted
                .descriptors
                .iter()
                .any(|d| d.file as usize == at && self.options.map_fds.contains_key(&d.fd));
            let have = kept.get(&at).map(|have| &self.live.files[*have]);
            if !replaced
                && self.first[at] >= 0
                && (fresh || have.is_some_and(|have| differs(want, have)))
            {
                self.plan.settle.push(at as u32);
            }
            let own = |file: &OpenFile| {
                let mut locks: Vec<_> = file
                    .locks
                    .iter()
                    .filter(|l| l.kind == LockKind::Posix)
                    .copied()
                    .collect();
                locks.sort_unstable();
                locks
            };
            let held = have.map(own).unwrap_or_default();
            // One closed descriptor drops the process's locks on the whole file.
            let dropped = !own(want).is_empty()
                && self.live.open_files().any(|(d, file)| {
                    file.identity == want.identity && self.plan.close.contains(&d.fd)
                });
            if !replaced && (own(want) != held || dropped) {
                self.plan.lock.push(self.first[at]);
            }
        }
        self.both_of_pairs();
        watches::plan(self.wanted, self.live, kept, &mut self.plan);
    }
}
