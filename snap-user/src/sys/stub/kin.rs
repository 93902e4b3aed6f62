//! Children of a stub: stubs as well, and ones that end at once.

use super::birth::{CLEAR_SIGHAND, CLONE_ARGS_SIZE, Child, clone_args};
use super::{Stub, StubCall, StubThread};
use crate::sys::ptrace::{self, Event};
use crate::sys::{Result, SysError, memory, pidfd_open, proc};

impl Stub {
    /// Makes a child of this process that is a stub like it, and has its memory, descriptors, session and group; `id`
    /// is its id in its PID namespace, `None` for whichever the kernel gives. Without `waited`, its end is told to
    /// nobody, and only a wait for children of every kind finds it (`__WALL` in waitpid(2)).
    ///
    /// # Errors
    /// EEXIST when the id is taken.
    pub fn fork(&mut self, id: Option<i32>, waited: bool) -> Result<Self> {
        let signal = if waited { libc::SIGCHLD as u64 } else { 0 };
        let args = clone_args(CLEAR_SIGHAND, signal, id.is_some());
        let wanted = id.unwrap_or(0);
        let place = self.put(&args.bytes(0, wanted))?;
        memory::write_bytes(self.pid(), place, &args.bytes(place, wanted))?;
        let call = [place, CLONE_ARGS_SIZE, 0, 0, 0, 0];
        let made = self
            .remote(0, self.insn())?
            .clone_thread(call, libc::SYS_clone3)
            .map_err(|e| SysError::new("clone3", format_args!("process {wanted}"), e.source));
        self.forget();
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
            loading: None,
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
        // It leaves no core behind.
        let args = [libc::PR_SET_DUMPABLE as u64, 0, 0, 0, 0, 0];
        let call = StubCall::new("prctl", "its core dump", libc::SYS_prctl, args);
        self.run(&[call])?;
        match libc::WIFSIGNALED(status) {
            false => {
                let code = libc::WEXITSTATUS(status) as u64;
                let args = [code, 0, 0, 0, 0, 0];
                self.start_call(libc::SYS_exit_group, args)?;
            }
            true => {
                ptrace::set_sigmask(tid, 0)?;
                let signal = libc::WTERMSIG(status);
                // SAFETY: a system call without pointers, on a process that this one holds.
                if unsafe { libc::kill(tid, signal) } != 0 {
                    return Err(SysError::last("kill", format_args!("process {tid}")));
                }
                ptrace::cont(tid, 0)?;
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

    /// Forgets that children have ended: setting what is done about it to the default takes such signals out of the
    /// queue (`sigaction(2)`).
    pub fn forget_children(&mut self) -> Result<()> {
        let action = self.put(&[0; 32])?;
        let args = [libc::SIGCHLD as u64, action, 0, 8, 0, 0];
        let call = StubCall::new("rt_sigaction", "SIGCHLD", libc::SYS_rt_sigaction, args);
        let done = self.run(&[call]).map(drop);
        self.forget();
        done
    }
}
