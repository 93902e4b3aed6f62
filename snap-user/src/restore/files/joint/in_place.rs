//! Open files of several living processes, put back in place.

use super::super::Options;
use super::super::keep::{Kept, Living, Tables, pair};
use super::super::plan::{FileWorld, Holding, plan_of_one, with_peers};
use super::super::streams::other_end;
use super::{Joint, JointPlan};
use crate::model::{Detail, ProcessState};
use std::collections::BTreeSet;

impl Joint {
    /// Plans the way of several processes from what they have. `live` are their files now, `states` and `now` those that
    /// were joined. Each open file is kept, made and set once, whoever has it.
    pub fn plan_in_place(
        &mut self,
        live: &mut Joint,
        states: &[&ProcessState],
        now: &[&ProcessState],
        world: &dyn FileWorld,
    ) -> JointPlan {
        let tables: Vec<Tables<'_>> = self
            .descriptors
            .iter()
            .zip(&live.descriptors)
            .map(|(should, has)| (&should[..], &has[..]))
            .collect();
        let living = Living {
            kept: pair(&self.state.files, &live.state.files, &tables, |_| true),
            holders: live.holders(),
        };
        let options = Options::default();
        let mut plan = self.merge(states, |wanted, n| {
            let mut own = plan_of_one(wanted, live.view(n), world, &options, Some(&living));
            own.plan_locks(wanted, (states[n], now[n]), &options);
            // Where the instance stays, its watch may be there all the same.
            own.out_of_reach.retain(|one| {
                let epoll = wanted.descriptors.iter().find(|d| d.fd == one.epoll);
                let there = epoll.and_then(|d| living.kept.get(&(d.file as usize)));
                let have = there.map(|at| &live.state.files[*at].detail);
                !matches!(have, Some(Detail::Epoll(all)) if all.contains(&one.watch))
            });
            own
        });
        self.spare_watches(live, &living.kept, &mut plan);
        for own in &plan.members {
            for (at, have) in &own.kept {
                plan.all.kept.insert(*at, *have);
            }
            for (at, lead) in &own.leads {
                plan.all.leads.insert(*at, *lead);
            }
            // So that those are made that only need to be handed over.
            plan.all.install.extend(&own.install);
        }
        // What was on its way then is in no snapshot; what is on its way now comes from another time.
        let files = &self.state.files;
        let is_terminal = |at: &usize| matches!(files[*at].detail, Detail::Terminal(_));
        let stays = |at: &usize| living.kept.contains_key(at);
        for side in (0..files.len()).filter(is_terminal).filter(stays) {
            if let Some(master) = other_end(files, side).filter(stays) {
                plan.all.flush.extend([side as u32, master as u32]);
            }
        }
        plan.all.settle.extend(&plan.all.flush);
        with_peers(&self.state.files, &plan.all.sources, &mut plan.all.settle);
        plan
    }

    /// A descriptor of each open file.
    fn holders(&self) -> Vec<Holding> {
        let nobody = Holding { member: 0, fd: -1 };
        let mut holders = vec![nobody; self.state.files.len()];
        for (member, own) in self.descriptors.iter().enumerate().rev() {
            for d in own.iter().rev() {
                holders[d.file as usize] = Holding { member, fd: d.fd };
            }
        }
        holders
    }

    /// A watch belongs to an open file and a number, not to a process: what one of them needs to stay none of the others
    /// takes out, and what one of them has none of the others adds.
    fn spare_watches(&self, live: &Joint, kept: &Kept, plan: &mut JointPlan) {
        let mut there: BTreeSet<(u32, u32, i32)> = BTreeSet::new();
        for (n, own) in plan.members.iter().enumerate() {
            let changed = own.watch.iter().filter(|one| one.change);
            there.extend(own.watched.iter().chain(changed).filter_map(|one| {
                let fd = one.watch.fd;
                Some((self.place(n, one.epoll)?, self.place(n, fd)?, fd))
            }));
        }
        let now = |at: u32| kept.get(&(at as usize)).map(|have| *have as u32);
        let stay: BTreeSet<(u32, u32, i32)> = there
            .iter()
            .filter_map(|(epoll, file, fd)| Some((now(*epoll)?, now(*file)?, *fd)))
            .collect();
        for (n, own) in plan.members.iter_mut().enumerate() {
            own.watch.retain(|one| {
                let fd = one.watch.fd;
                let places = (self.place(n, one.epoll), self.place(n, fd));
                let is_there = |(epoll, file)| there.contains(&(epoll, file, fd));
                one.change || !places.0.zip(places.1).is_some_and(is_there)
            });
            own.unwatch.retain(|&(epoll, fd)| {
                let places = (live.place(n, epoll), live.place(n, fd));
                let stays = |(epoll, file)| stay.contains(&(epoll, file, fd));
                !places.0.zip(places.1).is_some_and(stays)
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::plan::{Look, Source};
    use super::*;
    use crate::model::{
        Descriptor, EpollWatch, FileKind, OpenFile, Pipe, SharedFile, Socket, SocketState,
    };

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
        fn connections(&self, all: &[(&Socket, u64)]) -> Vec<Result<(), String>> {
            vec![Ok(()); all.len()]
        }
    }

    fn file(kind: FileKind, inode: u64, flags: i32, detail: Detail) -> OpenFile {
        OpenFile {
            kind,
            identity: (1, inode),
            flags: flags as u32,
            detail,
            ..OpenFile::default()
        }
    }

    fn end(flags: i32, content: &[u8]) -> OpenFile {
        let pipe = Pipe {
            content: content.to_vec(),
            ..Pipe::default()
        };
        file(FileKind::Pipe, 5, flags, Detail::Pipe(pipe))
    }

    fn socket(inode: u64, peer: u64, queue: &[&[u8]]) -> OpenFile {
        let message = |data: &&[u8]| crate::model::Message {
            data: data.to_vec(),
            from: Vec::new(),
        };
        let socket = Socket {
            domain: libc::AF_UNIX,
            state: SocketState::Connected,
            peer_inode: Some(peer),
            queue: queue.iter().map(message).collect(),
            ..Socket::default()
        };
        let detail = Detail::Socket(Box::new(socket));
        file(FileKind::Socket, inode, libc::O_RDWR, detail)
    }

    fn state(pid: i32, files: Vec<OpenFile>) -> ProcessState {
        let fds = 0..files.len() as u32;
        ProcessState {
            pid,
            descriptors: fds
                .map(|file| Descriptor {
                    fd: 3 + file as i32,
                    file,
                    cloexec: false,
                })
                .collect(),
            files,
            ..ProcessState::default()
        }
    }

    fn plan_of(
        then: [&ProcessState; 2],
        now: [&ProcessState; 2],
        shared: &[Vec<SharedFile>],
        shared_now: &[Vec<SharedFile>],
    ) -> JointPlan {
        let mut wanted = Joint::new(&then, shared).unwrap();
        let mut live = Joint::new(&now, shared_now).unwrap();
        wanted.plan_in_place(&mut live, &then, &now, &Nowhere)
    }

    fn held(member: usize, fd: i32) -> Holding {
        Holding { member, fd }
    }

    #[test]
    fn what_is_in_a_pipe_between_processes_is_set_through_its_reader_alone() {
        let writer = state(10, vec![end(libc::O_WRONLY, b"")]);
        let reader = |content| state(11, vec![end(libc::O_RDONLY, content)]);
        let (then, now) = (reader(b"old"), reader(b"new"));
        let plan = plan_of([&writer, &then], [&writer, &now], &[], &[]);
        let live = [held(0, 3), held(1, 3)].map(Source::Live);
        assert_eq!(plan.all.sources, live);
        assert_eq!(plan.all.settle, [1]);
        assert!(plan.members.iter().all(|own| own.install.is_empty()));
        let plan = plan_of([&writer, &then], [&writer, &then], &[], &[]);
        assert!(plan.all.settle.is_empty());
    }

    #[test]
    fn an_end_that_was_closed_is_opened_through_another_process() {
        let writer = state(10, vec![end(libc::O_WRONLY, b"")]);
        let reader = state(11, vec![end(libc::O_RDONLY, b"old")]);
        let nothing = state(11, Vec::new());
        let plan = plan_of([&writer, &reader], [&writer, &nothing], &[], &[]);
        assert_eq!(plan.all.sources[1], Source::Make);
        assert_eq!(plan.all.leads[&1], held(0, 3));
        assert_eq!(plan.members[1].install.len(), 1);
        assert_eq!(plan.all.settle, [1]);
        assert!(plan.all.refusals.is_empty(), "{:?}", plan.all.refusals);
    }

    #[test]
    fn what_one_has_closed_is_handed_over_by_who_has_it_still() {
        let place = |member| SharedFile { member, file: 0 };
        let shared = [vec![place(0), place(1)]];
        let with = |pid| state(pid, vec![end(libc::O_RDWR, b"")]);
        let (a, b, nothing) = (with(10), with(11), state(10, Vec::new()));
        let plan = plan_of([&a, &b], [&nothing, &b], &shared, &[]);
        assert_eq!(plan.all.sources, [Source::Live(held(1, 3))]);
        assert_eq!(plan.members[0].install.len(), 1);
        assert!(plan.members[1].install.is_empty());
    }

    #[test]
    fn messages_between_processes_are_sent_through_the_other_side() {
        let near = state(10, vec![socket(20, 21, &[])]);
        let far = |queue: &[&[u8]]| state(11, vec![socket(21, 20, queue)]);
        let plan = plan_of([&near, &far(&[b"one"])], [&near, &far(&[])], &[], &[]);
        assert_eq!(plan.all.settle, [0, 1]);
        // Of two that are connected, either both stay or none.
        let nothing = state(11, Vec::new());
        let plan = plan_of([&near, &far(&[])], [&near, &nothing], &[], &[]);
        assert_eq!(plan.all.sources, [Source::Make, Source::Make]);
        let installs = plan.members.iter().map(|own| own.install.len());
        assert_eq!(installs.collect::<Vec<_>>(), [1, 1]);
    }

    #[test]
    fn a_watch_that_one_process_keeps_is_left_alone_by_the_others() {
        let watch = EpollWatch {
            fd: 4,
            inode: 5,
            ..EpollWatch::default()
        };
        let epoll = file(FileKind::Epoll, 9, libc::O_RDWR, Detail::Epoll(vec![watch]));
        let both = vec![epoll.clone(), end(libc::O_RDWR, b"")];
        let other = file(
            FileKind::Eventfd,
            7,
            libc::O_RDWR,
            Detail::Eventfd(Default::default()),
        );
        let place = |member, file| SharedFile { member, file };
        let epolls = vec![place(0, 0), place(1, 0)];
        let all = [epolls.clone(), vec![place(0, 1), place(1, 1)]];
        let (a, b) = (state(10, both.clone()), state(11, both));
        let changed = state(11, vec![epoll, other]);
        // The second has another file under that number now, or had it then.
        for (then, now, shared, shared_now) in [
            (&b, &changed, &all[..], &all[..1]),
            (&changed, &b, &all[..1], &all[..]),
        ] {
            let plan = plan_of([&a, then], [&a, now], shared, shared_now);
            for own in &plan.members {
                assert_eq!((&own.watch[..], &own.unwatch[..]), (&[][..], &[][..]));
            }
            assert!(plan.all.notes.is_empty(), "{:?}", plan.all.notes);
        }
    }

    #[test]
    fn a_watch_that_one_process_changes_no_other_adds() {
        let watch = |events| EpollWatch {
            fd: 4,
            inode: 5,
            events,
            ..EpollWatch::default()
        };
        let epoll = |events| {
            let detail = Detail::Epoll(vec![watch(events)]);
            file(FileKind::Epoll, 9, libc::O_RDWR, detail)
        };
        let both = |pid, events| state(pid, vec![epoll(events), end(libc::O_RDWR, b"")]);
        let place = |member, file| SharedFile { member, file };
        let epolls = vec![place(0, 0), place(1, 0)];
        let all = [epolls.clone(), vec![place(0, 1), place(1, 1)]];
        // The first has closed what it watched, and the events are others now.
        let (a, b) = (both(10, 1), both(11, 1));
        let closed = state(10, vec![epoll(4)]);
        let changed = both(11, 4);
        let plan = plan_of([&a, &b], [&closed, &changed], &all, &all[..1]);
        let set = |n: usize| plan.members[n].watch.iter().map(|one| one.change);
        assert_eq!(set(0).count(), 0);
        assert_eq!(set(1).collect::<Vec<_>>(), [true]);
    }
}
