//! Children of a stub: stubs as well, and ones that end at once.

use super::birth::Child;
use super::graft::{wait_for, with_id};
use super::{Stub, StubCall, StubThread, TRACED};
use crate::model::Limit;
use crate::sys::clone::{CLEAR_SIGHAND, CloneArgs};
use crate::sys::ptrace::{self, Event};
use crate::sys::{Remote, Result, SysError, limits, pidfd_open, proc, set_limit};

impl Stub {
    /// Makes a child of this process that is a stub like it, and has its memory, descriptors, session and group; `id`
    /// is its id in its PID namespace, `None` for whichever the kernel gives. Without `waited`, its end is told to
    /// nobody, and only a wait for children of every kind finds it (`__WALL` in waitpid(2)).
    ///
    /// # Errors
    /// EEXIST when the id is taken.
    pub fn fork(&mut self, id: Option<i32>, waited: bool) -> Result<Self> {
        let exit_signal = if waited { libc::SIGCHLD as u64 } else { 0 };
        let args = |id| CloneArgs {
            flags: CLEAR_SIGHAND,
            exit_signal,
            id,
        };
        let place = self.put_clone(&args(id))?;
        let free = self.put_clone(&args(None))?;
        self.forget();
        let (tid, insn) = (self.threads[0].tid, self.insn());
        let remote = || Remote::with_options(tid, insn, TRACED);
        let made = with_id(
            id,
            |id| remote()?.clone_from(if id.is_some() { place } else { free }, &args(id)),
            |wrong| {
                drop(Child(wrong));
                wait_for(&mut remote()?, wrong)
            },
        );
        let tid = made?;
        // Ended when anything fails.
        let held = Child(tid);
        let mut child = Self {
            threads: vec![StubThread { tid, own: tid }],
            init: None,
            right_proc: self.right_proc,
            pidfd: pidfd_open(tid)?,
            area: self.area,
            kernel: self.kernel.clone(),
            init_runs: false,
            released: false,
            not_send: std::marker::PhantomData,
        };
        held.keep();
        child.threads[0].own = proc::own_id(tid, tid)?;
        Ok(child)
    }

    /// Process 1 of the namespace is to end with this process, rather than with the one that it was started for.
    pub fn take_init(&mut self, other: &mut Self) {
        self.init = other.init.take();
    }

    /// Has the process end as this wait status says (waitpid(2)): with an exit code, or by a signal. Its parent has
    /// been told when this returns.
    pub fn end_as(mut self, status: i32) -> Result<()> {
        let tid = self.threads[0].tid;
        match libc::WIFSIGNALED(status) {
            false => {
                let code = libc::WEXITSTATUS(status) as u64;
                let args = [code, 0, 0, 0, 0, 0];
                self.start_call(libc::SYS_exit_group, args)?;
            }
            true => {
                let signal = libc::WTERMSIG(status);
                // What ksnap ignores its children ignore as well.
                if signal != libc::SIGKILL {
                    self.default_action(signal)?;
                    leave_no_core(tid)?;
                }
                ptrace::set_sigmask(tid, 0)?;
                // SAFETY: a system call without pointers, on a process that this one holds.
                if unsafe { libc::kill(tid, signal) } != 0 {
                    return Err(SysError::last("kill", format_args!("process {tid}")));
                }
                // A kill needs no help, and may be over by now.
                if signal != libc::SIGKILL {
                    ptrace::cont(tid, 0)?;
                }
            }
        }
        loop {
            match ptrace::wait(tid)? {
                Event::Exited(_) => {
                    self.released = true;
                    return Ok(());
                }
                Event::Signal(signal) => ptrace::cont(tid, signal)?,
                _ => ptrace::cont(tid, 0)?,
            }
        }
    }

    /// Gives the process a name (`PR_SET_NAME`).
    pub fn set_name(&mut self, name: &str) -> Result<()> {
        let mut name = name.as_bytes().to_vec();
        name.truncate(15);
        name.push(0);
        let name = self.put(&name)?;
        let args = [libc::PR_SET_NAME as u64, name, 0, 0, 0, 0];
        let done = self.run(&[StubCall::new("prctl", "its name", libc::SYS_prctl, args)]);
        self.forget();
        done.map(drop)
    }

    /// It is to be in a job-control stop from the moment that it is let go.
    pub fn stop_when_free(&self) -> Result<()> {
        // SAFETY: a system call without pointers, on a process that this one holds.
        match unsafe { libc::kill(self.pid(), libc::SIGSTOP) } {
            0 => Ok(()),
            _ => Err(SysError::last(
                "kill",
                format_args!("process {}", self.pid()),
            )),
        }
    }

    /// Begins a call that does not return.
    fn start_call(&mut self, nr: i64, args: [u64; 6]) -> Result<()> {
        let tid = self.threads[0].tid;
        let regs = ptrace::registers(tid)?.with_syscall(self.insn(), nr as u64, args);
        ptrace::set_registers(tid, &regs)?;
        ptrace::cont(tid, 0)
    }

    /// Waits, as the process, for a child of any kind that has ended: by its id in its own PID namespace.
    pub fn reap(&mut self, own: i32) -> Result<()> {
        let args = [own as u64, 0, libc::__WALL as u64, 0, 0, 0];
        let call = StubCall::new("wait4", format!("process {own}"), libc::SYS_wait4, args);
        self.run(&[call]).map(drop)
    }

    /// Sets what is done about a signal to the default, which takes SIGCHLD, where it is queued, out of the queue
    /// (`sigaction(2)`).
    pub fn default_action(&mut self, signal: i32) -> Result<()> {
        let action = self.put(&[0; 32])?;
        let args = [signal as u64, action, 0, 8, 0, 0];
        let what = format!("signal {signal}");
        let call = StubCall::new("rt_sigaction", what, libc::SYS_rt_sigaction, args);
        let done = self.run(&[call]).map(drop);
        self.forget();
        done
    }
}

/// Whatever signal ends the process, it leaves no core behind: one byte is less than any, and with that limit none is
/// piped to a program either (fs/coredump.c). Were it made not dumpable instead, ksnap could not have it run calls any
/// more.
fn leave_no_core(tid: i32) -> Result<()> {
    const CORE: usize = libc::RLIMIT_CORE as usize;
    match set_limit(tid, CORE, Limit { soft: 1, hard: 1 }) {
        // To raise a limit takes CAP_SYS_RESOURCE; where it is nothing, no file is written either.
        Err(e) if e.is_denied() && limits(tid)?[CORE].hard < 1 => Ok(()),
        done => done,
    }
}

#[cfg(test)]
mod tests {
    use super::super::Birth;
    use super::*;

    /// What is left of a child that ends like this.
    fn left_by(status: i32) -> i32 {
        left_below(Stub::start(Birth::default(), &[], &[]).unwrap(), status)
    }

    fn left_below(mut parent: Stub, status: i32) -> i32 {
        let child = parent.fork(None, true).unwrap();
        let pid = child.pid();
        child.end_as(status).unwrap();
        let left = proc::stat(pid, None).unwrap();
        assert_eq!((left.state, left.ppid), ('Z', parent.pid()));
        left.field(52) as i32
    }

    #[test]
    fn a_child_ends_as_it_is_told() {
        for status in [0, 7 << 8, libc::SIGTERM, libc::SIGKILL] {
            assert_eq!(left_by(status), status);
        }
    }

    #[test]
    fn a_child_ends_by_a_signal_that_this_process_ignores() {
        // As every Rust program does from its start on.
        assert_eq!(left_by(libc::SIGPIPE), libc::SIGPIPE);
    }

    #[test]
    fn a_child_leaves_no_core() {
        assert_eq!(left_by(libc::SIGSEGV | 0x80), libc::SIGSEGV);
    }

    #[test]
    fn a_child_that_may_leave_no_core_at_all_ends_as_it_is_told() {
        for status in [7 << 8, libc::SIGTERM, libc::SIGKILL, libc::SIGSEGV] {
            let parent = Stub::start(Birth::default(), &[], &[]).unwrap();
            let none = Limit { soft: 0, hard: 0 };
            set_limit(parent.pid(), libc::RLIMIT_CORE as usize, none).unwrap();
            // A program that cores are piped to gets one of it even so.
            assert_eq!(left_below(parent, status) & !0x80, status);
        }
    }
}
