//! Making processes of a tree again, and putting groups back: all of it, or nothing.

use super::plan::Regroup;
use crate::model::{PAGE_SIZE, PageRange};
use crate::restore::fault;
use crate::restore::revive::Kin;
use crate::sys::{
    self, Frozen, Gadgets, Remote, Stub, StubCall, proc, read_bytes, wait_for, write_bytes,
};

/// A living process, stopped, and how it does something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hand {
    /// A thread of it.
    pub tid: i32,
    /// A system call instruction of its own, and a return behind it.
    pub insn: u64,
    /// It is to have a signal of a child's end waiting (`SIGCHLD`), as it had.
    pub keeps_signal: bool,
}

impl Hand {
    /// That of a stopped process; `None` where its code has no such instruction.
    ///
    /// # Errors
    /// Where its memory cannot be read.
    pub fn of(frozen: &Frozen, keeps_signal: bool) -> sys::Result<Option<Self>> {
        let pid = frozen.pid();
        let found = Gadgets::find(pid, &proc::maps(pid)?)?;
        Ok(found.and_then(|found| found.syscall_ret).map(|insn| Self {
            tid: frozen.threads()[0],
            insn,
            keeps_signal,
        }))
    }

    fn remote(&self) -> sys::Result<Remote> {
        Remote::new(self.tid, self.insn)
    }

    fn join(&self, group: i32) -> sys::Result<()> {
        let args = [0, group as u64, 0, 0, 0, 0];
        let done = self.remote()?.call("setpgid", libc::SYS_setpgid, args);
        done.map(drop)
    }

    /// Brings a group to the foreground of its session's terminal; gives the one that was there.
    fn front(&self, group: i32) -> sys::Result<i32> {
        self.with_room(|remote, room| {
            write_bytes(self.tid, room, b"/dev/tty\0")?;
            let how = (libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC) as u64;
            let args = [libc::AT_FDCWD as u64, room, how, 0, 0, 0];
            let fd = remote.call("openat", libc::SYS_openat, args)?;
            let mut was = [0; 4];
            let mut ask = |name, request: libc::c_ulong| {
                let args = [fd, request, room, 0, 0, 0];
                remote.call(name, libc::SYS_ioctl, args)
            };
            let done = ask("ioctl(TIOCGPGRP)", libc::TIOCGPGRP)
                .and_then(|_| read_bytes(self.tid, room, &mut was))
                .and_then(|()| write_bytes(self.tid, room, &group.to_ne_bytes()))
                .and_then(|()| ask("ioctl(TIOCSPGRP)", libc::TIOCSPGRP));
            remote.call("close", libc::SYS_close, [fd, 0, 0, 0, 0, 0])?;
            done.map(|_| i32::from_ne_bytes(was))
        })
    }

    /// Does something with a page of its memory that is there for that alone.
    fn with_room<T>(
        &self,
        work: impl FnOnce(&mut Remote, u64) -> sys::Result<T>,
    ) -> sys::Result<T> {
        let mut remote = self.remote()?;
        let room = remote.map_room(PAGE_SIZE)?;
        let done = work(&mut remote, room);
        remote.unmap_room(room, PAGE_SIZE)?;
        done
    }

    /// Waits for children that have ended and that it knows nothing of.
    ///
    /// # Errors
    /// Of the first that it cannot wait for.
    pub fn bury(&self, strangers: &[i32]) -> sys::Result<()> {
        strangers.iter().try_for_each(|pid| self.wait_for(*pid))?;
        self.forget_signal()
    }

    fn wait_for(&self, pid: i32) -> sys::Result<()> {
        wait_for(&mut self.remote()?, pid)
    }

    /// Takes the signal of a child's end out of its queue, which it is for what is not so any more: with the action by
    /// default it is not kept (sigaction(2)).
    fn forget_signal(&self) -> sys::Result<()> {
        if self.keeps_signal {
            return Ok(());
        }
        self.with_room(|remote, room| {
            let (by_default, own) = (room, room + 64);
            write_bytes(self.tid, by_default, &[0; 32])?;
            let mut set = |new, old| {
                let args = [libc::SIGCHLD as u64, new, old, 8, 0, 0];
                remote.call("rt_sigaction", libc::SYS_rt_sigaction, args)
            };
            set(by_default, own)?;
            set(own, 0).map(drop)
        })
    }
}

/// What is left of a process that its parent has not waited for, and that is in the way of a new one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remains {
    /// Its id.
    pub pid: i32,
    /// Who has not waited for it, by its place.
    pub parent: usize,
    /// How it ended (`waitpid(2)`).
    pub status: i32,
    /// Its name.
    pub comm: String,
}

/// What has been done, for the way back.
#[derive(Clone, Copy, Debug)]
enum Done {
    /// What was left of one is gone: by its place among the remains.
    Reaped(usize),
    Made(usize),
    /// Who lives has left this group.
    Left(usize, i32),
    /// This one is not in the foreground any more.
    Front(usize, i32),
}

/// Processes on their way, by their places.
#[derive(Debug)]
pub struct Growth<'a> {
    /// All of them, those that had ended behind the others.
    pub kin: &'a [Kin],
    /// Those that live.
    pub hands: &'a [Option<Hand>],
    /// What is in the way.
    pub remains: &'a [Remains],
    /// Those that are to have ended: place, wait status, name.
    pub ended: &'a [(usize, i32, String)],
    /// Address space that must be free in new ones.
    pub avoid: &'a [PageRange],
    stubs: Vec<Option<Stub>>,
    done: Vec<Done>,
}

/// New processes, each with its place.
pub type Grown = Vec<(usize, Stub)>;

impl<'a> Growth<'a> {
    /// Nothing is done by this.
    pub fn new(
        kin: &'a [Kin],
        hands: &'a [Option<Hand>],
        remains: &'a [Remains],
        ended: &'a [(usize, i32, String)],
        avoid: &'a [PageRange],
    ) -> Self {
        Self {
            kin,
            hands,
            remains,
            ended,
            avoid,
            stubs: kin.iter().map(|_| None).collect(),
            done: Vec::new(),
        }
    }

    /// Takes the steps. Gives those that were made and live, parents before their children.
    ///
    /// # Errors
    /// [`Growth::take_back`] undoes what was done until then.
    pub fn run(&mut self, steps: &[Regroup]) -> sys::Result<Grown> {
        for (n, left) in self.remains.iter().enumerate() {
            if let Some(parent) = self.hands[left.parent] {
                parent.wait_for(left.pid)?;
                self.done.push(Done::Reaped(n));
                fault::point("what was left of one waited for");
            }
        }
        for step in steps {
            self.take(*step)?;
        }
        for (n, status, comm) in self.ended {
            if let Some(stub) = self.stubs[*n].take() {
                end(stub, *status, comm)?;
            }
        }
        self.forget_signals()?;
        let stubs = self.stubs.iter_mut().enumerate();
        Ok(stubs
            .filter_map(|(n, stub)| Some((n, stub.take()?)))
            .collect())
    }

    fn take(&mut self, step: Regroup) -> sys::Result<()> {
        match step {
            Regroup::Make(n) => {
                let (parent, pid) = (self.parent(n), self.kin[n].pid);
                // Also one that could not be finished has ended as a child of its parent.
                self.done.push(Done::Made(n));
                self.stubs[n] = Some(self.fork(parent, pid)?);
                fault::point("one that had ended made again");
                fault::failure("one that had ended made again")
            }
            Regroup::Session(n) => self.call(n, "setsid", libc::SYS_setsid, 0),
            Regroup::Join(n, group) => match self.hands[n] {
                Some(hand) => {
                    let before = proc::own_group(self.kin[n].pid)?;
                    hand.join(group)?;
                    self.done.push(Done::Left(n, before));
                    Ok(())
                }
                None => self.call(n, "setpgid", libc::SYS_setpgid, group),
            },
            Regroup::Front(leader, group) => {
                if let Some(hand) = self.hands[leader] {
                    self.done.push(Done::Front(leader, hand.front(group)?));
                }
                Ok(())
            }
        }
    }

    fn parent(&self, n: usize) -> usize {
        self.kin[n].parent.expect("the first one lives")
    }

    fn fork(&mut self, parent: usize, pid: i32) -> sys::Result<Stub> {
        match self.hands[parent] {
            Some(Hand { tid, insn, .. }) => Stub::graft(tid, insn, pid, self.avoid),
            None => self.stub(parent).fork(Some(pid), true),
        }
    }

    fn stub(&mut self, n: usize) -> &mut Stub {
        self.stubs[n].as_mut().expect("made by a step before")
    }

    /// Has a new one do something about itself.
    fn call(&mut self, n: usize, name: &'static str, nr: i64, group: i32) -> sys::Result<()> {
        let args = [0, group as u64, 0, 0, 0, 0];
        let call = StubCall::new(name, "itself", nr, args);
        self.stub(n).run(&[call]).map(drop)
    }

    /// Parents know nothing of ends that are not so any more. What the snapshot has of such signals of a new one is queued
    /// later.
    fn forget_signals(&mut self) -> sys::Result<()> {
        for (n, hand) in self.hands.iter().enumerate() {
            let is_parent = |step: &Done| match *step {
                Done::Made(child) => self.kin[child].parent == Some(n),
                Done::Reaped(left) => self.remains[left].parent == n,
                Done::Left(..) | Done::Front(..) => false,
            };
            if let Some(hand) = hand.filter(|_| self.done.iter().any(is_parent)) {
                hand.forget_signal()?;
            }
        }
        for (n, ..) in self.ended {
            let parent = self.parent(*n);
            if let Some(stub) = &mut self.stubs[parent] {
                stub.default_action(libc::SIGCHLD)?;
            }
        }
        Ok(())
    }

    /// Undoes all of it. Those that were given away must be gone.
    ///
    /// # Errors
    /// Of the first thing that cannot be undone: they are not as they were then.
    pub fn take_back(mut self) -> sys::Result<()> {
        while let Some(done) = self.done.pop() {
            match done {
                Done::Made(n) => {
                    drop(self.stubs[n].take());
                    if let Some(parent) = self.hands[self.parent(n)] {
                        parent.wait_for(self.kin[n].pid)?;
                        parent.forget_signal()?;
                    }
                }
                Done::Left(n, group) => self.rejoin(n, group)?,
                Done::Front(n, group) => {
                    if let Some(hand) = self.hands[n] {
                        hand.front(group)?;
                    }
                }
                Done::Reaped(n) => {
                    let left = &self.remains[n];
                    let stub = self.fork(left.parent, left.pid)?;
                    end(stub, left.status, &left.comm)?;
                }
            }
        }
        Ok(())
    }

    /// Has one that lives go back into the group that it has left. Where nobody is in that any more, whoever began it is made
    /// for a moment, or for good if that had not been waited for.
    fn rejoin(&mut self, n: usize, group: i32) -> sys::Result<()> {
        let Some(hand) = self.hands[n] else {
            return Ok(());
        };
        let refused = match hand.join(group) {
            Err(e) if e.errno() == Some(libc::EPERM) => e,
            done => return done,
        };
        let leader = self.kin.iter().position(|one| one.pid == group);
        let parent = leader.and_then(|leader| self.kin[leader].parent);
        let Some((at, parent)) = parent.and_then(|at| Some((at, self.hands[at]?))) else {
            return Err(refused);
        };
        let mut stub = self.fork(at, group)?;
        let begin = StubCall::new("setpgid", "itself", libc::SYS_setpgid, [0; 6]);
        stub.run(&[begin])?;
        hand.join(group)?;
        let remains = self.remains;
        let is_its = |done: &Done| matches!(done, Done::Reaped(n) if remains[*n].pid == group);
        if let Some(at) = self.done.iter().position(is_its)
            && let Done::Reaped(n) = self.done.remove(at)
        {
            return end(stub, remains[n].status, &remains[n].comm);
        }
        drop(stub);
        parent.wait_for(group)?;
        parent.forget_signal()
    }
}

/// Has a new process end as another one did.
fn end(mut stub: Stub, status: i32, comm: &str) -> sys::Result<()> {
    stub.set_name(comm)?;
    stub.end_as(status)
}
