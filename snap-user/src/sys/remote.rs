//! System calls run by a thread of a process that is held in a job-control stop.
//!
//! Used where a death of the tracer leaves the target stopped anyway, so that the thread's state
//! needs no guard of its own; see [`super::Guarded`] for the other case.

use super::arch::Registers;
use super::clone::CloneArgs;
use super::ptrace::{self, Event, Options, Tid};
use super::{Result, SysError, write_bytes};
use crate::model::PAGE_SIZE;
use std::io;

/// Flags of clone(2) for a thread as pthread_create(3) makes it, but for what is set back afterwards.
pub const THREAD_FLAGS: u64 = (libc::CLONE_VM
    | libc::CLONE_FS
    | libc::CLONE_FILES
    | libc::CLONE_SIGHAND
    | libc::CLONE_THREAD
    | libc::CLONE_SYSVSEM) as u64;

/// A stopped thread that runs system calls for us. Its registers and mask are put back on drop.
pub struct Remote {
    tid: Tid,
    insn: u64,
    saved: Registers,
    sigmask: u64,
    options: Options,
    /// Stack pointer while calls run.
    sp: u64,
    restore: bool,
}

impl Remote {
    /// Takes a stopped thread. `insn` is the address of a system call instruction in its code.
    pub fn new(tid: Tid, insn: u64) -> Result<Self> {
        Self::with_options(tid, insn, Options::default())
    }

    /// The same for a thread that is traced with these options, which it has again afterwards.
    pub fn with_options(tid: Tid, insn: u64, options: Options) -> Result<Self> {
        let saved = ptrace::registers(tid)?;
        let sigmask = ptrace::sigmask(tid)?;
        let injecting = Options {
            suspend_seccomp: true,
            trace_clone: true,
            ..options
        };
        // Needs CAP_SYS_ADMIN; without it the target's own filters decide.
        if ptrace::set_options(tid, injecting).is_err() {
            ptrace::set_options(
                tid,
                Options {
                    suspend_seccomp: false,
                    ..injecting
                },
            )?;
        }
        ptrace::set_sigmask(tid, u64::MAX)?;
        Ok(Self {
            tid,
            insn,
            sp: saved.sp(),
            saved,
            sigmask,
            options,
            restore: true,
        })
    }

    /// Has the calls that follow run with no stack: as if the thread were on none, for calls that ask.
    pub fn leave_stack(&mut self) {
        self.sp = 0;
    }

    /// Where its stack was before any of this.
    pub fn saved_stack(&self) -> u64 {
        self.saved.sp()
    }

    /// Runs one system call. Returns its result; an error number of the call is an error here,
    /// named `name`.
    pub fn call(&mut self, name: &'static str, nr: i64, args: [u64; 6]) -> Result<u64> {
        let (result, _) = self.run(nr, args)?;
        self.checked(name, result)
    }

    /// Maps `len` bytes of the process's own, for arguments of calls; gives their address.
    pub fn map_room(&mut self, len: u64) -> Result<u64> {
        let writable = (libc::PROT_READ | libc::PROT_WRITE) as u64;
        let anonymous = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u64;
        let args = [0, len, writable, anonymous, u64::MAX, 0];
        self.call("mmap", libc::SYS_mmap, args)
    }

    /// Gives such memory back.
    pub fn unmap_room(&mut self, at: u64, len: u64) -> Result<()> {
        let args = [at, len, 0, 0, 0, 0];
        self.call("munmap", libc::SYS_munmap, args).map(drop)
    }

    /// Makes a thread by clone(2) with these flags; it starts stopped and traced by this tracer,
    /// with the registers of this thread.
    pub fn clone_thread(&mut self, args: [u64; 6], nr: i64) -> Result<Tid> {
        match self.run(nr, args)? {
            (_, Some(child)) => {
                ptrace::wait_for_start(child)?;
                Ok(child)
            }
            (result, None) => self.checked("clone", result).map(|tid| tid as Tid),
        }
    }

    /// Makes a thread or a child by clone3(2), likewise. EEXIST when its id is taken, EPERM when it may not be chosen.
    pub fn clone_with(&mut self, args: &CloneArgs) -> Result<Tid> {
        let room = self.map_room(PAGE_SIZE)?;
        let made = write_bytes(self.tid, room, &args.bytes_at(room))
            .and_then(|()| self.clone_from(room, args));
        self.unmap_room(room, PAGE_SIZE)?;
        made
    }

    /// The same with the arguments in the process's memory at `place` already.
    pub(super) fn clone_from(&mut self, place: u64, args: &CloneArgs) -> Result<Tid> {
        self.clone_thread([place, CloneArgs::SIZE, 0, 0, 0, 0], libc::SYS_clone3)
            .map_err(|e| SysError::new("clone3", args.what(), e.source))
    }

    fn checked(&self, name: &'static str, result: i64) -> Result<u64> {
        if (-4095..0).contains(&result) {
            return Err(SysError::new(
                name,
                format_args!("thread {}, by injection", self.tid),
                io::Error::from_raw_os_error(-result as i32),
            ));
        }
        Ok(result as u64)
    }

    /// Has the thread begin a call that waits and interrupts it there, which leaves it with what the kernel needs to
    /// continue that wait (`restart_syscall(2)`). Gives the result of a call that did not come to wait.
    ///
    /// Calls that the thread runs afterwards leave that alone, unless they wait themselves.
    pub fn begin_wait(&mut self, nr: i64, args: [u64; 6]) -> Result<Option<i64>> {
        // Before the call has begun in earnest: it finds the interruption when it is about to sleep. The stop at its exit
        // stands for the one that was asked for (ptrace_stop in kernel/signal.c).
        let (result, _) = self.run_with(nr, args, || ptrace::interrupt(self.tid))?;
        Ok((!Registers::is_restart_by_block(result)).then_some(result))
    }

    /// The result of a call, and the thread that it made.
    fn run(&mut self, nr: i64, args: [u64; 6]) -> Result<(i64, Option<Tid>)> {
        self.run_with(nr, args, || Ok(()))
    }

    /// The same, with something done when the thread is at the entry of the call.
    ///
    /// Stops at entry and exit rather than steps: the trap of a step is a signal, and forcing one on a
    /// thread that blocks or ignores it takes the program's own handler of SIGTRAP away.
    fn run_with(
        &self,
        nr: i64,
        args: [u64; 6],
        at_entry: impl Fn() -> Result<()>,
    ) -> Result<(i64, Option<Tid>)> {
        let regs = Registers {
            rsp: self.sp,
            ..self.saved.with_syscall(self.insn, nr as u64, args)
        };
        ptrace::set_registers(self.tid, &regs)?;
        let mut child = None;
        let mut stops = 0;
        while stops < 2 {
            ptrace::cont_to_syscall(self.tid)?;
            match ptrace::wait(self.tid)? {
                Event::Clone => child = Some(ptrace::event_message(self.tid)? as Tid),
                Event::Exited(_) => return Err(self.ended()),
                Event::Syscall => {
                    stops += 1;
                    if stops == 1 {
                        at_entry()?;
                    }
                }
                // The instruction itself cannot be run: it would fault again for ever.
                Event::Signal(libc::SIGSEGV | libc::SIGBUS | libc::SIGILL) => {
                    return Err(SysError::new(
                        "inject system call",
                        format_args!("thread {}, at {:#x}", self.tid, self.insn),
                        io::Error::from_raw_os_error(libc::EFAULT),
                    ));
                }
                _ => {}
            }
        }
        let result = ptrace::registers(self.tid)?.syscall_result();
        Ok((result, child))
    }

    /// Ends the thread by exit(2). Other threads go on.
    pub fn exit(mut self) -> Result<()> {
        self.restore = false;
        let regs = self
            .saved
            .with_syscall(self.insn, libc::SYS_exit as u64, [0; 6]);
        ptrace::set_registers(self.tid, &regs)?;
        ptrace::cont(self.tid, 0)?;
        loop {
            match ptrace::wait(self.tid) {
                Ok(Event::Exited(_)) => return Ok(()),
                Ok(_) => ptrace::cont(self.tid, 0)?,
                Err(e) if e.is_vanished() => return Ok(()),
                Err(e) => return Err(e),
            }
        }
    }

    fn ended(&self) -> SysError {
        SysError::new(
            "inject system call",
            format_args!("thread {}", self.tid),
            io::Error::from_raw_os_error(libc::ESRCH),
        )
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        if self.restore {
            let _ = ptrace::set_registers(self.tid, &self.saved);
            let _ = ptrace::set_sigmask(self.tid, self.sigmask);
            let _ = ptrace::set_options(self.tid, self.options);
        }
    }
}
