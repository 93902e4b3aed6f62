//! Open files of several processes: each is made once, and shared as it was.

mod in_place;

use super::plan::{FileWorld, FilesPlan, Look, Source, plan_of_one};
use super::{Options, Replacement, is_from_elsewhere, locks};
use crate::model::{Descriptor, OpenFile, ProcessState, SharedFile, Socket};
use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet};

/// The open files of several processes, and who has which.
#[derive(Clone, Debug, Default)]
pub struct Joint {
    /// Has all open files, and the descriptors of one process at a time.
    state: ProcessState,
    /// Descriptors of each process, with the places of their files among all.
    descriptors: Vec<Vec<Descriptor>>,
    /// For each process the places of its own files among all.
    places: Vec<Vec<u32>>,
}

/// What is to be made of the open files of several processes, and what each of them does with them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct JointPlan {
    /// Where each open file comes from, and what is set.
    pub all: FilesPlan,
    /// Descriptors, watches and locks of each process.
    pub members: Vec<FilesPlan>,
}

impl Joint {
    /// Joins the files of these processes. `shared` has those that are one.
    ///
    /// # Errors
    /// A sentence, where `shared` names files that no process has.
    pub fn new(states: &[&ProcessState], shared: &[Vec<SharedFile>]) -> Result<Self, String> {
        let mut places: Vec<Vec<Option<u32>>> =
            states.iter().map(|s| vec![None; s.files.len()]).collect();
        let mut files: Vec<OpenFile> = Vec::new();
        for group in shared {
            let at = files.len() as u32;
            for place in group {
                let known = places.get_mut(place.member as usize);
                let slot = known.and_then(|known| known.get_mut(place.file as usize));
                *slot.ok_or("the tree shares a file that no process has")? = Some(at);
            }
            if let Some(first) = group.first() {
                let file = &states[first.member as usize].files[first.file as usize];
                files.push(file.clone());
            }
        }
        for (state, places) in states.iter().zip(&mut places) {
            for (file, place) in state.files.iter().zip(places) {
                if place.is_none() {
                    *place = Some(files.len() as u32);
                    files.push(file.clone());
                }
            }
        }
        let places: Vec<Vec<u32>> = places
            .into_iter()
            .map(|own| own.into_iter().flatten().collect())
            .collect();
        let descriptors = states.iter().zip(&places).map(|(state, places)| {
            let there = state
                .descriptors
                .iter()
                .filter(|d| (d.file as usize) < places.len());
            let joint = |d: &Descriptor| Descriptor {
                file: places[d.file as usize],
                ..*d
            };
            there.map(joint).collect()
        });
        Ok(Self {
            descriptors: descriptors.collect(),
            state: ProcessState {
                files,
                // No process, so that none is taken for one that lives.
                pid: -1,
                ..ProcessState::default()
            },
            places,
        })
    }

    /// All open files, and the descriptors of the process with this place.
    pub fn view(&mut self, member: usize) -> &ProcessState {
        self.state.descriptors.clone_from(&self.descriptors[member]);
        &self.state
    }

    /// Where the files of a process come from, by their places in its own state.
    pub fn sources(&self, plan: &FilesPlan, member: usize) -> Vec<Source> {
        let own = self.places[member].iter();
        own.map(|at| plan.sources[*at as usize].clone()).collect()
    }

    /// All open files.
    pub fn files(&self) -> &[OpenFile] {
        &self.state.files
    }

    /// Standard streams of any of the processes that were a terminal, or one end of a pipe or socket, whose other end
    /// none of them has: descriptor, and the place of its file. Each file once.
    pub fn streams(&self) -> Vec<(i32, u32)> {
        let mut seen = BTreeSet::new();
        let standard = self.descriptors.iter().flatten();
        standard
            .filter(|d| {
                (0..3).contains(&d.fd) && is_from_elsewhere(&self.state.files, d.file as usize)
            })
            .filter(|d| seen.insert(d.file))
            .map(|d| (d.fd, d.file))
            .collect()
    }

    /// Options for each process, in which every descriptor of a file that is replaced has the same in its place.
    pub fn options(&self, common: &Options, replaced: &BTreeMap<u32, Replacement>) -> Vec<Options> {
        let of = |descriptors: &Vec<Descriptor>| {
            let with = |d: &Descriptor| Some((d.fd, replaced.get(&d.file)?.clone()));
            Options {
                map_fds: descriptors.iter().filter_map(with).collect(),
                ..common.clone()
            }
        };
        self.descriptors.iter().map(of).collect()
    }

    /// The place of the file behind a descriptor of a process.
    pub fn place(&self, member: usize, fd: i32) -> Option<u32> {
        let own = self.descriptors[member].iter();
        own.clone().find(|d| d.fd == fd).map(|d| d.file)
    }

    /// The file that a sentence begins with the descriptor of, and what is said of it.
    fn subject(&self, member: usize, text: &str) -> Option<(u32, String)> {
        let rest = text.strip_prefix("descriptor ")?;
        let (number, said) = rest.split_at(rest.find(|c: char| !c.is_ascii_digit())?);
        Some((self.place(member, number.parse().ok()?)?, said.to_owned()))
    }

    /// Plans all of them, for new processes. `states` are those that were joined, `options` for each.
    pub fn plan(
        &mut self,
        states: &[&ProcessState],
        world: &dyn FileWorld,
        options: &[Options],
    ) -> JointPlan {
        let new = ProcessState::default();
        let world = Remembering {
            world,
            connections: OnceCell::new(),
        };
        self.merge(states, |wanted, n| {
            let mut own = plan_of_one(wanted, &new, &world, &options[n], None);
            own.plan_locks(wanted, (states[n], &new), &options[n]);
            own
        })
    }

    /// Joins the plans that are made for each process, with the files of all.
    fn merge(
        &mut self,
        states: &[&ProcessState],
        mut plan: impl FnMut(&ProcessState, usize) -> FilesPlan,
    ) -> JointPlan {
        let mut all = FilesPlan {
            sources: vec![Source::Lost; self.state.files.len()],
            ..FilesPlan::default()
        };
        let mut members = Vec::with_capacity(states.len());
        let mut had = BTreeSet::new();
        let mut watched = BTreeSet::new();
        let mut reached = BTreeSet::new();
        let mut said = BTreeSet::new();
        self.state.saved = states.iter().flat_map(|s| s.saved.clone()).collect();
        for (n, state) in states.iter().enumerate() {
            let mut own = plan(self.view(n), n);
            for (texts, told) in [
                (&mut own.notes, &mut all.notes),
                (&mut own.refusals, &mut all.refusals),
            ] {
                // What is told of a file that several have is told once.
                texts.retain(|text| match self.subject(n, text) {
                    Some(subject) => said.insert(subject),
                    None => true,
                });
                let named = |text: String| format!("process {}: {text}", state.pid);
                told.extend(texts.drain(..).map(named));
            }
            all.findings.append(&mut own.findings);
            let mut mine: BTreeSet<u32> = self.descriptors[n].iter().map(|d| d.file).collect();
            mine.retain(|at| had.insert(*at));
            for at in &mine {
                let at = *at as usize;
                all.sources[at] = own.sources[at].clone();
            }
            // What a file holds is set once, whoever has it.
            own.settle.retain(|at| mine.contains(at));
            let reaches = own.watch.iter().chain(&own.watched);
            reached.extend(reaches.map(|one| (self.place(n, one.epoll), one.watch)));
            all.settle.extend(&own.settle);
            members.push(own);
        }
        // A watch is set once, whoever can: where one of them has it and changes it, the others need not add it.
        for change in [true, false] {
            for (n, own) in members.iter_mut().enumerate() {
                own.watch.retain(|one| {
                    let places = (self.place(n, one.epoll), self.place(n, one.watch.fd));
                    one.change != change || watched.insert((places, one.watch.fd))
                });
            }
        }
        for (n, own) in members.iter().enumerate() {
            for one in &own.out_of_reach {
                let epoll = self.place(n, one.epoll);
                // Several processes may have the epoll instance, and each would tell the same.
                if reached.insert((epoll, one.watch)) {
                    let pid = states[n].pid;
                    all.notes.push(format!("process {pid}: {}", one.lost()));
                }
            }
        }
        // A descriptor of a file that is lost stays closed, whoever has it.
        for own in &mut members {
            own.install
                .retain(|d| all.sources[d.file as usize] != Source::Lost);
        }
        all.settle.sort_unstable();
        JointPlan { all, members }
    }
}

/// Looks for connections once, of which all of the processes ask for the same: all that any of them has.
struct Remembering<'a> {
    world: &'a dyn FileWorld,
    connections: OnceCell<Vec<Result<(), String>>>,
}

impl FileWorld for Remembering<'_> {
    fn look(&self, path: &str) -> Result<Look, String> {
        self.world.look(path)
    }

    fn process(&self, pid: i32) -> Option<u64> {
        self.world.process(pid)
    }

    fn pipe(&self, identity: (u64, u64)) -> Option<String> {
        self.world.pipe(identity)
    }

    fn connections(&self, all: &[(&Socket, u64)]) -> Vec<Result<(), String>> {
        let looked = || self.world.connections(all);
        self.connections.get_or_init(looked).clone()
    }
}

impl FilesPlan {
    /// By the records of the process's own, as it was and is: `wanted` has the files of all, and of one that several have
    /// the locks of another.
    fn plan_locks(
        &mut self,
        wanted: &ProcessState,
        (then, now): (&ProcessState, &ProcessState),
        options: &Options,
    ) {
        let has = |d: &Descriptor| {
            let mut joint = wanted.descriptors.iter();
            let joint = joint.find(|joint| joint.fd == d.fd);
            joint.is_some_and(|joint| self.sources[joint.file as usize] != Source::Lost)
                && !options.map_fds.contains_key(&d.fd)
        };
        (self.unlock, self.lock) = locks::plan(then, now, has);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Detail, EpollWatch, FileKind, Pipe};

    struct Nowhere;

    impl FileWorld for Nowhere {
        fn look(&self, _: &str) -> Result<Look, String> {
            Err("nothing is there".into())
        }
        fn process(&self, _: i32) -> Option<u64> {
            None
        }
        fn pipe(&self, _: (u64, u64)) -> Option<String> {
            None
        }
        fn connections(&self, all: &[(&crate::model::Socket, u64)]) -> Vec<Result<(), String>> {
            vec![Ok(()); all.len()]
        }
    }

    fn end(inode: u64, flags: i32) -> OpenFile {
        OpenFile {
            kind: FileKind::Pipe,
            link: format!("pipe:[{inode}]"),
            identity: (1, inode),
            flags: flags as u32,
            detail: Detail::Pipe(Pipe::default()),
            ..OpenFile::default()
        }
    }

    fn state(pid: i32, files: Vec<OpenFile>, fds: &[(i32, u32)]) -> ProcessState {
        let descriptor = |&(fd, file): &(i32, u32)| Descriptor {
            fd,
            file,
            cloexec: false,
        };
        ProcessState {
            pid,
            files,
            descriptors: fds.iter().map(descriptor).collect(),
            ..ProcessState::default()
        }
    }

    /// Two processes with a pipe between them, whose standard output goes to the same place.
    fn two() -> (ProcessState, ProcessState, Vec<Vec<SharedFile>>) {
        let out = end(9, libc::O_WRONLY);
        let a = state(
            10,
            vec![out.clone(), end(5, libc::O_WRONLY)],
            &[(1, 0), (4, 1)],
        );
        let b = state(
            11,
            vec![end(5, libc::O_RDONLY), out],
            &[(0, 0), (1, 1), (2, 1)],
        );
        let place = |member, file| SharedFile { member, file };
        (a, b, vec![vec![place(0, 0), place(1, 1)]])
    }

    #[test]
    fn a_pipe_between_processes_is_one_and_a_shared_file_is_made_once() {
        let (a, b, shared) = two();
        let mut joint = Joint::new(&[&a, &b], &shared).unwrap();
        assert_eq!(joint.files().len(), 3);
        assert_eq!(joint.streams(), [(1, 0)]);
        let replaced = BTreeMap::from([(0, Replacement::Own(1))]);
        let options = joint.options(&Options::default(), &replaced);
        assert_eq!(options[1].map_fds.keys().collect::<Vec<_>>(), [&1, &2]);
        let plan = joint.plan(&[&a, &b], &Nowhere, &options);
        assert_eq!(
            plan.all.sources,
            [Source::Own(1), Source::Make, Source::Make]
        );
        assert!(plan.all.notes.is_empty(), "{:?}", plan.all.notes);
        let installed = |n: usize| -> Vec<(i32, u32)> {
            let install = plan.members[n].install.iter();
            install.map(|d| (d.fd, d.file)).collect()
        };
        assert_eq!(installed(0), [(1, 0), (4, 1)]);
        assert_eq!(installed(1), [(0, 2), (1, 0), (2, 0)]);
        assert_eq!(plan.all.settle, [1, 2]);
        // Nothing is replaced: what is said of the file that both have is said once.
        let plan = joint.plan(
            &[&a, &b],
            &Nowhere,
            &[Options::default(), Options::default()],
        );
        assert_eq!(plan.all.notes.len(), 1, "{:?}", plan.all.notes);
        assert!(plan.all.notes[0].starts_with("process 10: descriptor 1 "));
    }

    #[test]
    fn a_watch_that_another_process_can_add_is_not_lost() {
        let watch = |fd: i32, inode: u64| EpollWatch {
            fd,
            inode,
            ..EpollWatch::default()
        };
        let epoll = OpenFile {
            kind: FileKind::Epoll,
            detail: Detail::Epoll(vec![watch(5, 105), watch(7, 107), watch(9, 109)]),
            ..OpenFile::default()
        };
        let both = |inode| [end(inode, libc::O_RDONLY), end(inode, libc::O_WRONLY)];
        // Made before the fork; then each closed and opened what it liked, and nobody has the third.
        let (a_ends, b_ends) = (both(105), both(107));
        let a = state(
            10,
            [std::slice::from_ref(&epoll), &a_ends[..]].concat(),
            &[(3, 0), (5, 1), (6, 2)],
        );
        let b = state(
            11,
            [std::slice::from_ref(&epoll), &b_ends[..]].concat(),
            &[(3, 0), (7, 1), (8, 2)],
        );
        let place = |member| SharedFile { member, file: 0 };
        let mut joint = Joint::new(&[&a, &b], &[vec![place(0), place(1)]]).unwrap();
        let options = [Options::default(), Options::default()];
        let plan = joint.plan(&[&a, &b], &Nowhere, &options);
        let added = |n: usize| -> Vec<i32> {
            let watch = plan.members[n].watch.iter();
            watch.map(|one| one.watch.fd).collect()
        };
        assert_eq!((added(0), added(1)), (vec![5], vec![7]));
        assert_eq!(plan.all.notes.len(), 1, "{:?}", plan.all.notes);
        assert!(plan.all.notes[0].contains("under number 9"));
    }

    #[test]
    fn what_no_process_has_is_an_error() {
        let (a, b, _) = two();
        let bad = vec![vec![SharedFile { member: 0, file: 7 }]];
        assert!(Joint::new(&[&a, &b], &bad).is_err());
        let bad = vec![vec![SharedFile { member: 2, file: 0 }]];
        assert!(Joint::new(&[&a, &b], &bad).is_err());
    }
}
