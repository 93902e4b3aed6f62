//! Where each open file comes from, and what changes in the descriptor table. Pure.

use super::keep::{Kept, Living, pair};
use super::same::differs;
use super::watches::{self, Watch};
use super::{Finding, Options, Replacement, locks};
use crate::model::{Descriptor, Detail, FileKind, OpenFile, ProcessState, Regular, Socket};
use std::collections::BTreeMap;
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

/// A descriptor of one of the processes that a plan is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holding {
    /// The process, by its place; 0 where the plan is for one.
    pub member: usize,
    /// The descriptor.
    pub fd: i32,
}

/// Where an open file comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A process has it.
    Live(Holding),
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
    /// Which live open file each wanted one is, by their indexes.
    pub kept: BTreeMap<u32, u32>,
    /// Pipes that processes have an end of, through which other ends of them are opened: by the wanted file.
    pub leads: BTreeMap<u32, Holding>,
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
    /// Wanted open files that are both sides of terminals, by index: what waits in these is thrown away.
    pub flush: Vec<u32>,
    /// Watches to add or change.
    pub watch: Vec<Watch>,
    /// Watches that are as they should be.
    pub watched: Vec<Watch>,
    /// Watches that the process cannot add, since it does not have the file under that number. One that shares the epoll
    /// instance may.
    pub out_of_reach: Vec<Watch>,
    /// Descriptors of files of which the process gives back all locks that are its own, before it takes any.
    pub unlock: Vec<i32>,
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
    let mut plan = plan_of_one(wanted, live, world, options, None);
    plan.notes.extend(plan.out_of_reach.iter().map(Watch::lost));
    plan
}

/// The same for one of several processes: what is out of its reach is not told, since another one may reach it. `among`
/// has which files of all of them stay, where they are put back in place.
pub(super) fn plan_of_one(
    wanted: &ProcessState,
    live: &ProcessState,
    world: &dyn FileWorld,
    options: &Options,
    among: Option<&Living>,
) -> FilesPlan {
    let held: Vec<Holding>;
    let holders = match among {
        Some(living) => &living.holders,
        None => {
            let first = first_of(live).into_iter();
            held = first.map(|fd| Holding { member: 0, fd }).collect();
            &held
        }
    };
    let mut planner = Planner {
        wanted,
        live,
        world,
        options,
        same: in_place(wanted, live),
        holders,
        first: first_of(wanted),
        going: Vec::new(),
        plan: FilesPlan::default(),
    };
    planner.plan.sources = vec![Source::Make; wanted.files.len()];
    planner.replace();
    let paired: Kept;
    let kept = match among {
        Some(living) => &living.kept,
        None => {
            paired = planner.pair();
            &paired
        }
    };
    planner.obtain(kept);
    planner.check_connections();
    planner.table(kept);
    planner.state(kept);
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

/// What lies in a socket's queue is put there through the one that it is connected with: adds those.
pub(super) fn with_peers(files: &[OpenFile], sources: &[Source], settle: &mut Vec<u32>) {
    let peers: Vec<u32> = settle
        .iter()
        .filter_map(|at| match &files[*at as usize].detail {
            Detail::Socket(socket) => socket.peer_inode,
            _ => None,
        })
        .filter_map(|inode| {
            let is_it = |file: &OpenFile| file.kind == FileKind::Socket && file.identity.1 == inode;
            files.iter().position(is_it).map(|at| at as u32)
        })
        .filter(|at| sources[*at as usize] != Source::Lost)
        .collect();
    settle.extend(peers);
    settle.sort_unstable();
    settle.dedup();
}

pub(super) struct Planner<'a> {
    pub(super) wanted: &'a ProcessState,
    pub(super) live: &'a ProcessState,
    pub(super) world: &'a dyn FileWorld,
    pub(super) options: &'a Options,
    pub(super) same: bool,
    /// For each live file a descriptor of it.
    pub(super) holders: &'a [Holding],
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

    /// Which files stay, where the plan is for one process.
    fn pair(&self) -> Kept {
        if !self.same {
            return Kept::new();
        }
        let tables = [(&self.wanted.descriptors[..], &self.live.descriptors[..])];
        pair(&self.wanted.files, &self.live.files, &tables, |want| {
            self.plan.sources[want] == Source::Make
        })
    }

    /// Decides where each wanted file comes from.
    fn obtain(&mut self, kept: &Kept) {
        for at in 0..self.wanted.files.len() {
            if self.plan.sources[at] != Source::Make || self.first[at] < 0 {
                continue;
            }
            self.plan.sources[at] = match kept.get(&at) {
                Some(have) => {
                    self.plan.kept.insert(at as u32, *have as u32);
                    Source::Live(self.holders[*have])
                }
                None => self.source(at),
            };
        }
    }

    /// What changes in the descriptor table.
    fn table(&mut self, kept: &Kept) {
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

    /// What changes in the open files.
    fn state(&mut self, kept: &Kept) {
        for (at, want) in self.wanted.files.iter().enumerate() {
            let fresh = match &self.plan.sources[at] {
                Source::Lost => continue,
                // What the user gives instead keeps its own state.
                Source::Own(_) => continue,
                Source::Path(_) | Source::Create(..) | Source::Unnamed(..) | Source::Make => true,
                Source::Live(_) => false,
            };
            let replaced = self.is_replaced(at as u32);
            let have = kept.get(&at).map(|have| &self.live.files[*have]);
            if !replaced
                && self.first[at] >= 0
                && (fresh || have.is_some_and(|have| differs(want, have)))
            {
                self.plan.settle.push(at as u32);
            }
        }
        with_peers(
            &self.wanted.files,
            &self.plan.sources,
            &mut self.plan.settle,
        );
        watches::plan(self.wanted, self.live, kept, &mut self.plan);
        let has = |d: &Descriptor| {
            let source = self.plan.sources.get(d.file as usize);
            !matches!(source, None | Some(Source::Lost | Source::Own(_)))
                && !self.is_replaced(d.file)
        };
        (self.plan.unlock, self.plan.lock) = locks::plan(self.wanted, self.live, has);
    }

    /// Whether the user gives another open file instead.
    fn is_replaced(&self, file: u32) -> bool {
        let mut own = self.wanted.descriptors.iter();
        own.any(|d| d.file == file && self.options.map_fds.contains_key(&d.fd))
    }
}
