//! A new process that is nobody yet: stopped, traced, without memory of its own but for one small area
//! with code that runs lists of system calls.
//!
//! Until [`Stub::release`], everything that was started is killed when this value is dropped, and by the
//! kernel when ksnap is killed (`PTRACE_O_EXITKILL`, and `PR_SET_PDEATHSIG` before tracing begins).

mod area;
mod birth;
mod calls;
mod custodian;
mod filler;
mod graft;
mod guard;
mod init;
mod kin;
mod lazy;
mod network;

pub use birth::Birth;
pub use calls::StubCall;
pub use custodian::{Custodian, Keeper, Kept, custodians, end_custody, is_custodian};
pub use filler::is_filler;
pub use graft::wait_for;
pub use guard::Guard;
pub use init::fill_all;
pub use lazy::{Handed, Lacking, Lazy, Loading};

use super::ptrace::{self, Event, Options, Tid};
use super::{PidFd, Remote, Result, pidfd_kill};
use crate::model::PageRange;
use area::Area;
use rustix::event::Timespec;
use std::os::fd::RawFd;
use std::sync::Arc;

/// How long whoever fills memory waits for more to do: while there is something to fill, and where something is to be tried
/// again that nobody tells of.
const AT_ONCE: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 0,
};
const SOON: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 200_000,
};

const TRACED: Options = Options {
    // Filters are put back before the last calls are made.
    suspend_seccomp: true,
    trace_clone: true,
    exit_kill: true,
};

/// A thread of the stub: its id here, and its id as it sees it itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StubThread {
    /// Its id in ksnap's PID namespace.
    pub tid: Tid,
    /// Its id in its own.
    pub own: i32,
}

/// The new process. Killed on drop unless released. Belongs to the thread that made it, its tracer.
#[derive(Debug)]
pub struct Stub {
    threads: Vec<StubThread>,
    /// Process 1 of its own PID namespace.
    init: Option<birth::Init>,
    right_proc: bool,
    pidfd: PidFd,
    area: Area,
    /// What the kernel provides, by name, and where it is parked until it is moved to its place.
    kernel: Vec<(String, PageRange)>,
    /// Process 1 runs already, and fills memory.
    init_runs: bool,
    released: bool,
    not_send: std::marker::PhantomData<*const ()>,
}

impl Stub {
    /// Starts a process and empties its memory. `avoid` is address space that must be free afterwards;
    /// `lazy` what [`Stub::load_lazily`] will be asked for, of it and its children.
    ///
    /// # Errors
    /// EEXIST when the id is taken, EPERM when choosing it, or a namespace, is not allowed.
    pub fn start(birth: Birth<'_>, avoid: &[PageRange], lazy: &[Arc<Lazy>]) -> Result<Self> {
        let born = birth::start(birth, lazy)?;
        let mut stub = Self {
            threads: vec![born.thread],
            init: born.init,
            right_proc: born.right_proc,
            pidfd: born.pidfd,
            area: Area::default(),
            kernel: Vec::new(),
            init_runs: false,
            released: false,
            not_send: std::marker::PhantomData,
        };
        let emptied = area::empty(stub.pid(), avoid)?;
        stub.area = emptied.area;
        stub.kernel = emptied.kernel;
        stub.clear()?;
        let enter = |namespace: &RawFd| {
            let args = [*namespace as u64, 0, 0, 0, 0, 0];
            StubCall::new("setns", "a namespace that it was in", libc::SYS_setns, args)
        };
        let calls: Vec<_> = birth.enters.iter().map(enter).collect();
        stub.run(&calls)?;
        Ok(stub)
    }

    /// Unmaps everything but the area.
    fn clear(&mut self) -> Result<()> {
        let area = self.area.range();
        let unmap = |start: u64, end: u64| {
            let target = format!("{start:x}-{end:x}");
            let args = [start, end - start, 0, 0, 0, 0];
            StubCall::new("munmap", target, libc::SYS_munmap, args)
        };
        self.run(&[unmap(0, area.start), unmap(area.end, super::arch::USER_END)])?;
        Ok(())
    }

    /// Its id in ksnap's PID namespace.
    pub fn pid(&self) -> i32 {
        self.threads[0].tid
    }

    /// Its threads, the leader first.
    pub fn threads(&self) -> &[StubThread] {
        &self.threads
    }

    /// Process 1 of its own PID namespace, where it has one.
    pub fn init(&self) -> Option<i32> {
        self.init.as_ref().map(|init| init.tid)
    }

    /// Whether the /proc that it sees has the ids that it knows.
    pub fn has_right_proc(&self) -> bool {
        self.right_proc
    }

    /// Its descriptor.
    pub fn pidfd(&self) -> &PidFd {
        &self.pidfd
    }

    /// What the kernel provides (`vdso`, `vvar`, …), by name, and where it is parked.
    pub fn kernel_mappings(&self) -> &[(String, PageRange)] {
        &self.kernel
    }

    /// A system call instruction in the stub's area.
    pub fn insn(&self) -> u64 {
        self.area.insn()
    }

    /// Takes the area away, by a system call instruction of the process's own at `insn`. From here on
    /// only [`Stub::remote`] with such an instruction runs calls.
    pub fn remove_area(&mut self, insn: u64) -> Result<()> {
        let range = self.area.range();
        let args = [range.start, range.len(), 0, 0, 0, 0];
        self.remote(0, insn)?
            .call("munmap", libc::SYS_munmap, args)
            .map(drop)
    }

    /// How its threads are traced.
    pub fn traced_with(&self) -> Options {
        TRACED
    }

    /// Single calls by one of its threads.
    pub fn remote(&self, thread: usize, insn: u64) -> Result<Remote> {
        Remote::with_options(self.threads[thread].tid, insn, TRACED)
    }

    /// Lets it go: from here on it is a process like any other, a child of ksnap.
    ///
    /// # Errors
    /// When a thread cannot be let go; what has been started is killed then.
    pub fn release(mut self) -> Result<Released> {
        if let Some(init) = self.init() {
            init::set_free(init, self.threads[0].own, self.init_runs)?;
        }
        // The first thread last: while one is held, the death of ksnap is the death of all.
        for thread in self.threads.iter().rev() {
            match ptrace::detach(thread.tid) {
                // One that was let go before has killed it.
                Err(e) if e.is_vanished() => birth::bury_killed(thread.tid),
                done => done?,
            }
        }
        self.released = true;
        Ok(Released {
            pid: self.pid(),
            child: self.init().unwrap_or(self.pid()),
            loading: None,
        })
    }
}

/// A process that was let go.
#[derive(Debug)]
pub struct Released {
    /// Its id in ksnap's PID namespace.
    pub pid: i32,
    /// The child of ksnap to wait for: the process, or process 1 of its own PID namespace, which ends
    /// with its exit code.
    pub child: i32,
    /// Its memory, and that of those that were let go of with it, where some is still to come.
    pub loading: Option<Loading>,
}

impl Released {
    /// Waits until all memory is there; only then can it live without ksnap.
    pub fn finish_loading(&mut self) -> Result<()> {
        self.loading.take().map_or(Ok(()), Loading::finish)
    }

    /// Waits for its end, and gives the wait status.
    pub fn wait(&self) -> Result<i32> {
        loop {
            match ptrace::wait(self.child) {
                Ok(Event::Exited(status)) => return Ok(status),
                Ok(_) => {}
                Err(e) if e.errno() == Some(libc::EINTR) => {}
                Err(e) => match ptrace::exit_status(self.child) {
                    Some(status) => return Ok(status),
                    None => return Err(e),
                },
            }
        }
    }
}

impl Drop for Stub {
    fn drop(&mut self) {
        if self.released {
            return;
        }
        // Their ends may have been met with those of others of the namespace: by now their ids may be somebody else's.
        let is_there = |pidfd: &PidFd| !matches!(pidfd_kill(pidfd), Err(e) if e.is_vanished());
        if is_there(&self.pidfd) {
            for thread in self.threads.iter().rev() {
                birth::bury(thread.tid);
            }
        }
        if let Some(init) = self.init.as_ref().filter(|init| is_there(&init.pidfd)) {
            birth::end(init.tid);
        }
    }
}

#[cfg(test)]
mod tests;
