//! A new process that is nobody yet: stopped, traced, without memory of its own but for one small area
//! with code that runs lists of system calls.
//!
//! Until [`Stub::release`], everything that was started is killed when this value is dropped, and by the
//! kernel when ksnap is killed (`PTRACE_O_EXITKILL`, and `PR_SET_PDEATHSIG` before tracing begins).

mod area;
mod birth;
mod guard;
mod init;
mod kin;
mod lazy;

pub use birth::Birth;
pub use guard::Guard;
pub use init::fill_all;
pub use lazy::{Lazy, Loading};

use super::arch::Registers;
use super::ptrace::{self, Event, Options, Tid};
use super::{CloneArgs, PidFd, Remote, Result, SysError, memory, pidfd_kill};
use crate::model::PageRange;
use area::Area;
use std::io;

const TRACED: Options = Options {
    // Filters are put back before the last calls are made.
    suspend_seccomp: true,
    trace_clone: true,
    exit_kill: true,
};

/// A system call to be run by the stub.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StubCall {
    /// The call, by the name of its manual page.
    pub name: &'static str,
    /// What it is called on, for the error.
    pub target: String,
    /// Its number.
    pub nr: i64,
    /// Its arguments.
    pub args: [u64; 6],
    /// The list goes on when it fails; its result says why.
    pub may_fail: bool,
}

impl StubCall {
    /// A call that must succeed.
    pub fn new(name: &'static str, target: impl Into<String>, nr: i64, args: [u64; 6]) -> Self {
        Self {
            name,
            target: target.into(),
            nr,
            args,
            may_fail: false,
        }
    }

    /// The same call, allowed to fail.
    pub fn or_not(self) -> Self {
        Self {
            may_fail: true,
            ..self
        }
    }
}

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
    init: Option<Tid>,
    right_proc: bool,
    pidfd: PidFd,
    area: Area,
    /// What the kernel provides, by name, and where it is parked until it is moved to its place.
    kernel: Vec<(String, PageRange)>,
    /// Process 1 runs already, and fills memory.
    init_runs: bool,
    /// A thread of ksnap's that fills memory.
    loading: Option<Loading>,
    released: bool,
    not_send: std::marker::PhantomData<*const ()>,
}

impl Stub {
    /// Starts a process and empties its memory. `avoid` is address space that must be free afterwards;
    /// `lazy` what [`Stub::load_lazily`] will be asked for.
    ///
    /// # Errors
    /// EEXIST when the id is taken, EPERM when choosing it, or a namespace, is not allowed.
    pub fn start(birth: Birth, avoid: &[PageRange], lazy: Option<&Lazy>) -> Result<Self> {
        let born = birth::start(birth, lazy)?;
        let mut stub = Self {
            threads: vec![born.thread],
            init: born.init,
            right_proc: born.right_proc,
            pidfd: born.pidfd,
            area: Area::default(),
            kernel: Vec::new(),
            init_runs: false,
            loading: None,
            released: false,
            not_send: std::marker::PhantomData,
        };
        let emptied = area::empty(stub.pid(), avoid)?;
        stub.area = emptied.area;
        stub.kernel = emptied.kernel;
        stub.clear()?;
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
        self.init
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

    /// Copies bytes to where calls can refer to them. They stay until [`Stub::forget`].
    pub fn put(&mut self, bytes: &[u8]) -> Result<u64> {
        self.put_placed(bytes.len() as u64, |_| bytes.to_vec())
    }

    /// The same for arguments of clone3(2), which tell where they are themselves.
    fn put_clone(&mut self, args: &CloneArgs) -> Result<u64> {
        self.put_placed(CloneArgs::LEN, |at| args.bytes_at(at))
    }

    fn put_placed(&mut self, len: u64, bytes: impl FnOnce(u64) -> Vec<u8>) -> Result<u64> {
        let at = self.area.reserve(len).ok_or_else(|| {
            SysError::new(
                "write",
                format_args!("process {}", self.pid()),
                io::Error::new(io::ErrorKind::OutOfMemory, "too many arguments at once"),
            )
        })?;
        memory::write_bytes(self.pid(), at, &bytes(at))?;
        Ok(at)
    }

    /// Room for what calls return.
    pub fn room(&mut self, len: usize) -> Result<u64> {
        self.put(&vec![0; len])
    }

    /// Gives up everything that [`Stub::put`] has copied.
    pub fn forget(&mut self) {
        self.area.forget();
    }

    /// Runs calls by the first thread, one after the other, and returns their results.
    ///
    /// # Errors
    /// The first call that fails and may not.
    pub fn run(&mut self, calls: &[StubCall]) -> Result<Vec<i64>> {
        self.run_by(0, calls)
    }

    /// The same by another thread, by its place in [`Stub::threads`].
    pub fn run_by(&mut self, thread: usize, calls: &[StubCall]) -> Result<Vec<i64>> {
        let mut results = Vec::with_capacity(calls.len());
        while results.len() < calls.len() {
            let rest = &calls[results.len()..];
            let some = &rest[..rest.len().min(self.area.most_calls())];
            let done = self.run_some(thread, some)?;
            let last = done.last().copied().unwrap_or(0);
            results.extend(done);
            let call = &calls[results.len() - 1];
            if is_error(last) && !call.may_fail {
                return Err(SysError::new(
                    call.name,
                    format_args!("{} (new process {})", call.target, self.pid()),
                    io::Error::from_raw_os_error(-last as i32),
                ));
            }
        }
        Ok(results)
    }

    /// Results up to the first failure.
    fn run_some(&mut self, thread: usize, calls: &[StubCall]) -> Result<Vec<i64>> {
        let StubThread { tid, own } = self.threads[thread];
        let tgid = self.threads[0].own;
        let list: Vec<u8> = calls
            .iter()
            .flat_map(|call| {
                let [a, b, c, d, e, f] = call.args;
                [call.nr as u64, a, b, c, d, e, f, 0]
            })
            .flat_map(u64::to_le_bytes)
            .collect();
        let at = self.area.calls();
        memory::write_bytes(self.pid(), at, &list)?;
        let regs = Registers {
            rsp: 0,
            ..ptrace::registers(tid)?
        };
        let regs = regs.with_batch(self.area.code(), at, calls.len() as u64, (tgid, own));
        ptrace::set_registers(tid, &regs)?;
        self.until_done(tid)?;
        let position = ptrace::registers(tid)?.batch_position();
        let done = (position.wrapping_sub(at) / 64).min(calls.len() as u64) as usize;
        let mut bytes = vec![0; done * 64];
        memory::read_bytes(self.pid(), at, &mut bytes)?;
        Ok(bytes
            .chunks_exact(64)
            .map(|slot| i64::from_le_bytes(slot[56..].try_into().expect("eight bytes")))
            .collect())
    }

    /// Lets a thread run its list, and takes in the threads that it makes.
    fn until_done(&mut self, tid: Tid) -> Result<()> {
        loop {
            ptrace::cont(tid, 0)?;
            match ptrace::wait(tid)? {
                Event::Signal(libc::SIGSTOP) => return Ok(()),
                Event::Clone => {
                    let child = ptrace::event_message(tid)? as Tid;
                    // Its own id is filled in by the caller, who has asked for it.
                    self.threads.push(StubThread {
                        tid: child,
                        own: child,
                    });
                    ptrace::wait_for_start(child)?;
                }
                Event::Exited(status) => {
                    return Err(self.lost(format_args!("wait status {status:#x}")));
                }
                Event::Signal(signal) => {
                    let at = ptrace::registers(tid).map_or(0, |regs| regs.ip());
                    return Err(self.lost(format_args!("signal {signal} at {at:#x}")));
                }
                Event::Stopped | Event::GroupStopped | Event::Syscall => {}
            }
        }
    }

    fn lost(&self, how: std::fmt::Arguments<'_>) -> SysError {
        SysError::new(
            "run system calls",
            format_args!("new process {}", self.pid()),
            io::Error::other(format!("it ended: {how}")),
        )
    }

    /// Makes threads by clone3(2) with these flags; `ids` are theirs in their own PID namespace, `None`
    /// for whichever the kernel gives.
    pub fn make_threads(&mut self, flags: u64, ids: &[Option<i32>]) -> Result<()> {
        for some in ids.chunks(self.area.most_calls().min(256)) {
            let mut calls = Vec::with_capacity(some.len());
            for id in some {
                let args = CloneArgs {
                    flags,
                    exit_signal: 0,
                    id: *id,
                };
                let place = self.put_clone(&args)?;
                let call = [place, CloneArgs::SIZE, 0, 0, 0, 0];
                calls.push(StubCall::new("clone3", args.what(), libc::SYS_clone3, call));
            }
            let first = self.threads.len();
            let results = self.run(&calls)?;
            for (thread, own) in self.threads[first..].iter_mut().zip(results) {
                thread.own = own as i32;
            }
            self.forget();
        }
        Ok(())
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
        if let Some(init) = self.init {
            init::set_free(init, self.threads[0].own, self.init_runs)?;
        }
        // The first thread last: while one is held, the death of ksnap is the death of all.
        for thread in self.threads.iter().rev() {
            ptrace::detach(thread.tid)?;
        }
        self.released = true;
        Ok(Released {
            pid: self.pid(),
            child: self.init.unwrap_or(self.pid()),
            loading: self.loading.take(),
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
    /// The rest of its memory, which ksnap still fills.
    loading: Option<Loading>,
}

impl Released {
    /// Waits until all of its memory is filled; only then can it live without ksnap. `death_signal`: what
    /// it gets when its parent ends, from then on.
    pub fn finish_loading(&mut self, death_signal: i32) -> Result<()> {
        match self.loading.take() {
            Some(loading) => loading.finish(self.pid, death_signal),
            None => Ok(()),
        }
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

fn is_error(result: i64) -> bool {
    (-4095..0).contains(&result)
}

impl Drop for Stub {
    fn drop(&mut self) {
        if self.released {
            return;
        }
        // Its end may have been met with those of others of its namespace: by now its id may be somebody else's.
        let _ = pidfd_kill(&self.pidfd);
        for thread in self.threads.iter().rev() {
            birth::bury(thread.tid);
        }
        if let Some(init) = self.init {
            birth::end(init);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::proc;

    fn is_root() -> bool {
        // SAFETY: a system call without arguments.
        unsafe { libc::geteuid() == 0 }
    }

    #[test]
    fn a_stub_is_empty_runs_calls_and_is_gone_when_dropped() {
        let avoid = [PageRange::new(0x40_0000, 0x80_0000)];
        let mut stub = Stub::start(Birth::default(), &avoid, None).unwrap();
        let pid = stub.pid();
        let maps = proc::maps(pid).unwrap();
        assert!(maps.iter().all(|v| v.range.intersect(&avoid[0]).is_none()));
        let own = stub.area.range();
        for vma in &maps {
            assert!(
                own.intersect(&vma.range).is_some() || vma.is_special(),
                "{vma:?}"
            );
        }
        assert!(
            stub.kernel_mappings()
                .iter()
                .any(|(name, _)| name == "vdso")
        );
        let getpid = StubCall::new("getpid", "itself", libc::SYS_getpid, [0; 6]);
        let bad = StubCall::new(
            "close",
            "no descriptor",
            libc::SYS_close,
            [u64::from(u32::MAX), 0, 0, 0, 0, 0],
        );
        let results = stub
            .run(&[getpid.clone(), bad.clone().or_not(), getpid])
            .unwrap();
        assert_eq!(
            results,
            [i64::from(pid), -i64::from(libc::EBADF), i64::from(pid)]
        );
        let error = stub.run(&[bad]).unwrap_err();
        assert_eq!((error.call, error.errno()), ("close", Some(libc::EBADF)));
        drop(stub);
        assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
    }

    #[test]
    fn threads_are_made_and_run_calls_of_their_own() {
        let mut stub = Stub::start(Birth::default(), &[], None).unwrap();
        stub.make_threads(super::super::THREAD_FLAGS, &[None; 300])
            .unwrap();
        assert_eq!(stub.threads().len(), 301);
        let gettid = StubCall::new("gettid", "itself", libc::SYS_gettid, [0; 6]);
        for n in [0, 1, 300] {
            let got = stub.run_by(n, std::slice::from_ref(&gettid)).unwrap();
            assert_eq!(got, [i64::from(stub.threads()[n].own)]);
        }
        let pid = stub.pid();
        drop(stub);
        assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
    }

    #[test]
    fn a_namespace_gives_the_process_the_id_it_asks_for() {
        if !is_root() {
            return eprintln!("skipped: a PID namespace needs root");
        }
        let birth = Birth {
            pid: Some(4711),
            namespace: true,
            network: true,
        };
        let mut stub = Stub::start(birth, &[], None).unwrap();
        assert_eq!(stub.threads()[0].own, 4711);
        let getpid = StubCall::new("getpid", "itself", libc::SYS_getpid, [0; 6]);
        assert_eq!(stub.run(&[getpid]).unwrap(), [4711]);
        let (pid, init) = (stub.pid(), stub.init().unwrap());
        drop(stub);
        for gone in [pid, init] {
            assert!(!std::path::Path::new(&format!("/proc/{gone}")).exists());
        }
    }

    #[test]
    fn processes_of_a_namespace_are_gone_when_they_are_dropped_first_to_last() {
        if !is_root() {
            return eprintln!("skipped: a PID namespace needs root");
        }
        // The tracer is the thread that would wait for ever.
        let (done, is_done) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let birth = Birth {
                namespace: true,
                ..Birth::default()
            };
            let mut first = Stub::start(birth, &[], None).unwrap();
            let mut second = first.fork(None, true).unwrap();
            second
                .make_threads(super::super::THREAD_FLAGS, &[None; 2])
                .unwrap();
            let pids = [first.init().unwrap(), first.pid(), second.pid()];
            drop(vec![first, second]);
            done.send(pids).unwrap();
        });
        let pids = is_done
            .recv_timeout(std::time::Duration::from_secs(60))
            .expect("it waits for process 1, which waits for the second");
        for pid in pids {
            assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
        }
    }

    #[test]
    fn dropping_a_namespace_leaves_other_children_alone() {
        if !is_root() {
            return eprintln!("skipped: a PID namespace needs root");
        }
        let mut other = std::process::Command::new("sleep")
            .arg("1000")
            .spawn()
            .unwrap();
        let birth = Birth {
            namespace: true,
            ..Birth::default()
        };
        let stub = Stub::start(birth, &[], None).unwrap();
        // Its process 1 is gone, and waited for, before anything is dropped.
        birth::end(stub.init().unwrap());
        drop(stub);
        assert!(other.try_wait().unwrap().is_none());
        other.kill().unwrap();
        other.wait().unwrap();
    }
}
