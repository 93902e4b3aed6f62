//! System calls run by a thread of a process that is held in a job-control stop.
//!
//! Used where a death of the tracer leaves the target stopped anyway, so that the thread's state
//! needs no guard of its own; see [`super::Guarded`] for the other case.

use super::arch::Registers;
use super::ptrace::{self, Event, Options, Tid};
use super::{Result, SysError};
use std::io;

/// A stopped thread that runs system calls for us. Its registers and mask are put back on drop.
pub struct Remote {
    tid: Tid,
    insn: u64,
    saved: Registers,
    sigmask: u64,
    /// Stack pointer while calls run.
    sp: u64,
    restore: bool,
}

impl Remote {
    /// Takes a stopped thread. `insn` is the address of a system call instruction in its code.
    pub fn new(tid: Tid, insn: u64) -> Result<Self> {
        let saved = ptrace::registers(tid)?;
        let sigmask = ptrace::sigmask(tid)?;
        // Needs CAP_SYS_ADMIN; without it the target's own filters decide.
        let options = Options {
            suspend_seccomp: true,
            trace_clone: true,
        };
        if ptrace::set_options(tid, options).is_err() {
            ptrace::set_options(
                tid,
                Options {
                    suspend_seccomp: false,
                    trace_clone: true,
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
            restore: true,
        })
    }

    /// Has the calls that follow run with no stack: as if the thread were on none, for calls that ask.
    pub fn leave_stack(&mut self) {
        self.sp = 0;
    }

    /// Runs one system call. Returns its result; an error number of the call is an error here,
    /// named `name`.
    pub fn call(&mut self, name: &'static str, nr: i64, args: [u64; 6]) -> Result<u64> {
        let result = self.raw(nr, args)?;
        if (-4095..0).contains(&result) {
            return Err(SysError::new(
                name,
                format_args!("thread {}, by injection", self.tid),
                io::Error::from_raw_os_error(-result as i32),
            ));
        }
        Ok(result as u64)
    }

    fn raw(&mut self, nr: i64, args: [u64; 6]) -> Result<i64> {
        let regs = Registers {
            rsp: self.sp,
            ..self.saved.with_syscall(self.insn, nr as u64, args)
        };
        ptrace::set_registers(self.tid, &regs)?;
        ptrace::single_step(self.tid)?;
        loop {
            match ptrace::wait(self.tid)? {
                Event::Signal(libc::SIGTRAP) => {
                    return Ok(ptrace::registers(self.tid)?.syscall_result());
                }
                Event::Exited(_) => return Err(self.ended()),
                // A stop in the middle: the instruction has not run, or its result is still to come.
                _ => {
                    let now = ptrace::registers(self.tid)?;
                    if now.rip != self.insn {
                        return Ok(now.syscall_result());
                    }
                    ptrace::single_step(self.tid)?;
                }
            }
        }
    }

    /// Makes a thread by clone(2) with these flags; it starts stopped and traced by this tracer,
    /// with the registers of this thread.
    pub fn clone_thread(&mut self, args: [u64; 6], nr: i64) -> Result<Tid> {
        let regs = self.saved.with_syscall(self.insn, nr as u64, args);
        ptrace::set_registers(self.tid, &regs)?;
        ptrace::cont_to_syscall(self.tid)?;
        let mut child = None;
        let mut stops = 0;
        loop {
            match ptrace::wait(self.tid)? {
                Event::Clone => child = Some(ptrace::event_message(self.tid)? as Tid),
                Event::Exited(_) => return Err(self.ended()),
                Event::Syscall => stops += 1,
                _ => {}
            }
            // Entry, then exit of the call.
            if stops == 2 {
                break;
            }
            ptrace::cont_to_syscall(self.tid)?;
        }
        let result = ptrace::registers(self.tid)?.syscall_result();
        match child {
            Some(child) => {
                while !matches!(ptrace::wait(child)?, Event::Stopped | Event::GroupStopped) {
                    ptrace::cont(child, 0)?;
                }
                Ok(child)
            }
            None => Err(SysError::new(
                "clone",
                format_args!("thread {}, by injection", self.tid),
                io::Error::from_raw_os_error(-result as i32),
            )),
        }
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
            let _ = ptrace::set_options(self.tid, Options::default());
        }
    }
}
