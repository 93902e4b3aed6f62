//! System calls run by the target itself, safe against the tracer's death at any moment.
//!
//! Before its registers are touched, the thread gets a signal frame that holds all of its state,
//! in dead memory below its stack. Each injected call runs on a `syscall; ret` of the target's own
//! code and returns into a call of rt_sigreturn(2) on that frame. The tracer, alive, stops the
//! thread at the entry of that sigreturn, cancels it, and puts the next call in. Dead, it does not,
//! and the target restores itself and goes on where it was.

use super::arch::{self, Registers, SigFrame};
use super::ptrace::{self, Event, Tid};
use super::{Gadgets, Result, SysError, memory};
use crate::model::{Backing, PAGE_SIZE, Vma};
use std::io;
use zerocopy::IntoBytes;

const SYS_RT_SIGRETURN: u64 = libc::SYS_rt_sigreturn as u64;
/// Two frames, their return addresses and the extended state with its alignment.
const SCRATCH: u64 = 2 * 512 + 128;

/// A system call to inject.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    /// Number.
    pub nr: i64,
    /// Arguments.
    pub args: [u64; 6],
}

/// A frozen thread prepared to run system calls. Its state is put back on drop.
pub struct Guarded<'a> {
    tid: Tid,
    gadgets: Guards,
    saved: Registers,
    sigmask: u64,
    /// Where the return address of the next injected call lies.
    chain: u64,
    frame: u64,
    fpstate: u64,
    /// What lay there before: address, bytes.
    memory: (u64, Vec<u8>),
    /// Memory for more than one call, behind all else.
    room: u64,
    /// The extended state, where calls may change it.
    extended: Vec<u8>,
    pid: i32,
    active: bool,
    frozen: std::marker::PhantomData<&'a super::Frozen>,
}

#[derive(Clone, Copy)]
struct Guards {
    syscall_ret: u64,
    sigreturn: u64,
}

impl<'a> Guarded<'a> {
    /// Prepares the first thread of a frozen process.
    ///
    /// # Errors
    /// `Unsupported` where the target's code holds no suitable instructions, its shadow stack is
    /// on, or there is no dead memory below the main stack.
    pub fn new(frozen: &'a super::Frozen, gadgets: &Gadgets, vmas: &[Vma]) -> Result<Self> {
        Self::with_room(frozen, frozen.threads()[0], gadgets, vmas, 0)
    }

    /// Prepares thread `tid` of a frozen process, with `room` bytes of memory for more than one call.
    pub(super) fn with_room(
        frozen: &'a super::Frozen,
        tid: Tid,
        gadgets: &Gadgets,
        vmas: &[Vma],
        room: u64,
    ) -> Result<Self> {
        let pid = frozen.pid();
        let unsupported = |why: &str| {
            SysError::new(
                "inject system call",
                format_args!("thread {tid}"),
                io::Error::new(io::ErrorKind::Unsupported, why),
            )
        };
        let (Some(syscall_ret), Some(sigreturn)) = (gadgets.syscall_ret, gadgets.sigreturn) else {
            return Err(unsupported("its code has no system call to borrow"));
        };
        if super::proc::status(pid)?.shadow_stack {
            return Err(unsupported("its shadow stack is on"));
        }
        let saved = ptrace::registers(tid)?;
        let sigmask = ptrace::sigmask(tid)?;
        let extended = ptrace::extended(tid)?;
        let fpstate_bytes = arch::signal_fpstate(&extended);
        let need = SCRATCH + fpstate_bytes.len() as u64 + PAGE_SIZE + room;
        let base = scratch(frozen, vmas, need)
            .ok_or_else(|| unsupported("there is no room below its main stack"))?;

        // From the bottom: return address, frame of the cleaning call, return address, frame of
        // the thread's own state, extended state.
        let fpstate = (base + SCRATCH).next_multiple_of(64);
        // Dead memory, but a snapshot may have looked at it already.
        let mut before = vec![0; need as usize];
        memory::read_bytes(pid, base, &mut before)?;
        memory::write_bytes(pid, fpstate, &fpstate_bytes)?;
        let frame = base + 512 + 128;
        let resume = leave_rseq(pid, tid, &saved)?.resume_point();
        memory::write_bytes(
            pid,
            frame,
            SigFrame::new(&resume, sigmask, fpstate).as_bytes(),
        )?;
        Ok(Self {
            tid,
            gadgets: Guards {
                syscall_ret,
                sigreturn,
            },
            saved: leave_rseq(pid, tid, &saved)?,
            sigmask,
            chain: base,
            frame,
            fpstate,
            memory: (base, before),
            room: (fpstate + fpstate_bytes.len() as u64).next_multiple_of(64),
            extended,
            pid,
            active: false,
            frozen: std::marker::PhantomData,
        })
    }

    /// Runs one call and returns its result, negative for an error number. `on_death` runs behind
    /// it if the tracer dies before the next call has begun.
    pub fn call(&mut self, call: Call, on_death: Option<Call>) -> Result<i64> {
        let stack = match on_death {
            None => self.frame - 8,
            Some(cleaning) => {
                let regs = Registers {
                    rsp: self.frame - 8,
                    ..self.base()
                }
                .with_syscall(
                    self.gadgets.syscall_ret,
                    cleaning.nr as u64,
                    cleaning.args,
                );
                self.write_chain(&SigFrame::new(&regs, u64::MAX, self.fpstate))?;
                self.chain
            }
        };
        memory::write_bytes(
            self.tid,
            self.frame - 8,
            &self.gadgets.sigreturn.to_le_bytes(),
        )?;
        let regs = Registers {
            rsp: stack,
            ..self.base()
        }
        .with_syscall(self.gadgets.syscall_ret, call.nr as u64, call.args);
        self.enter(&regs)?;
        // Entry and exit of the call itself, then the entry of the sigreturn behind it.
        let mut result = None;
        loop {
            ptrace::cont_to_syscall(self.tid)?;
            self.expect_syscall()?;
            let now = ptrace::registers(self.tid)?;
            if now.orig_rax == SYS_RT_SIGRETURN && result.is_some() {
                break;
            }
            // At the entry the result reads as ENOSYS; the exit overwrites it.
            result = Some(now.syscall_result());
        }
        self.cancel(stack + 8)?;
        result.ok_or_else(|| self.lost("returned without having run"))
    }

    /// The thread.
    pub(super) fn tid(&self) -> Tid {
        self.tid
    }

    /// Address of the memory for more than one call.
    pub(super) fn room(&self) -> u64 {
        self.room
    }

    /// Address of a call of rt_sigreturn(2).
    pub(super) fn sigreturn(&self) -> u64 {
        self.gadgets.sigreturn
    }

    /// Stack pointer for a call that returns into the thread's own state.
    pub(super) fn last(&self) -> u64 {
        self.frame - 8
    }

    /// The registers with which the thread begins a call, and returns to the address at `stack`.
    pub(super) fn registers_for(&self, call: &Call, stack: u64) -> Registers {
        Registers {
            rsp: stack,
            ..self.base()
        }
        .with_syscall(self.gadgets.syscall_ret, call.nr as u64, call.args)
    }

    /// Begins calls that the tracer does not stop one by one.
    pub(super) fn enter_all(&mut self, regs: &Registers) -> Result<()> {
        self.enter(regs)
    }

    fn base(&self) -> Registers {
        Registers {
            orig_rax: u64::MAX,
            ..self.saved
        }
    }

    fn write_chain(&self, frame: &SigFrame) -> Result<()> {
        memory::write_bytes(self.tid, self.chain, &self.gadgets.sigreturn.to_le_bytes())?;
        memory::write_bytes(self.tid, self.chain + 8, frame.as_bytes())
    }

    /// The registers first, the blocked signals second: a death in between leaves a thread that
    /// restores both from its frame.
    fn enter(&mut self, regs: &Registers) -> Result<()> {
        ptrace::set_registers(self.tid, regs)?;
        self.active = true;
        ptrace::set_sigmask(self.tid, u64::MAX)
    }

    /// At the entry of the sigreturn: skip it, but stay on the way to it and to the frame at `frame`.
    fn cancel(&mut self, frame: u64) -> Result<()> {
        let back = Registers {
            rip: self.gadgets.sigreturn,
            rsp: frame,
            orig_rax: u64::MAX,
            ..self.saved
        };
        ptrace::set_registers(self.tid, &back)?;
        // A stop in the signal path, where the kernel looks at the registers once more before it
        // returns to user space: the only place from which an interrupted call restarts.
        ptrace::interrupt(self.tid)?;
        loop {
            ptrace::cont(self.tid, 0)?;
            match ptrace::wait(self.tid)? {
                Event::Stopped | Event::GroupStopped => return Ok(()),
                Event::Exited(_) => return Err(self.lost("ended")),
                Event::Syscall | Event::Clone | Event::Signal(_) => {}
            }
        }
    }

    fn expect_syscall(&self) -> Result<()> {
        loop {
            match ptrace::wait(self.tid)? {
                Event::Syscall => return Ok(()),
                Event::Exited(_) => return Err(self.lost("ended")),
                Event::Signal(libc::SIGSEGV | libc::SIGBUS | libc::SIGILL) => {
                    return Err(self.lost("faulted"));
                }
                _ => ptrace::cont_to_syscall(self.tid)?,
            }
        }
    }

    pub(super) fn lost(&self, what: &str) -> SysError {
        SysError::new(
            "inject system call",
            format_args!("thread {}", self.tid),
            io::Error::other(format!("the thread {what} on the way")),
        )
    }
}

impl Drop for Guarded<'_> {
    fn drop(&mut self) {
        if self.active {
            let _ = ptrace::set_sigmask(self.tid, self.sigmask);
            let _ = ptrace::set_registers(self.tid, &self.saved);
            let _ = ptrace::set_extended(self.tid, &self.extended);
        }
        let (at, bytes) = &self.memory;
        let _ = memory::write_bytes(self.pid, *at, bytes);
    }
}

/// The lowest bytes of the main stack's mapping: below every frame that the stack can hold now.
fn scratch(frozen: &super::Frozen, vmas: &[Vma], need: u64) -> Option<u64> {
    let stack = vmas
        .iter()
        .find(|v| v.backing == Backing::Stack && v.prot.write)?;
    let base = stack.range.start;
    let mut top = stack.range.end;
    for &tid in frozen.threads() {
        let sp = ptrace::registers(tid).ok()?.sp();
        if stack.range.contains(sp) {
            top = top.min(sp - arch::RED_ZONE);
        }
    }
    (top.checked_sub(base)? >= need).then_some(base)
}

/// Registers moved to the abort handler if the thread is inside a restartable sequence, as the
/// kernel does when anything runs in between (`rseq(2)`).
fn leave_rseq(pid: i32, tid: Tid, regs: &Registers) -> Result<Registers> {
    let Ok(Some(rseq)) = ptrace::rseq(tid) else {
        return Ok(*regs);
    };
    let mut word = [0u8; 8];
    memory::read_bytes(pid, rseq.addr + 8, &mut word)?;
    let section = u64::from_le_bytes(word);
    let mut fields = [0u8; 32];
    if section == 0 || memory::read_bytes(pid, section, &mut fields).is_err() {
        return Ok(*regs);
    }
    let field = |at: usize| u64::from_le_bytes(fields[at..at + 8].try_into().expect("eight bytes"));
    let (start, length, abort) = (field(8), field(16), field(24));
    match regs.rip.wrapping_sub(start) < length {
        true => Ok(Registers {
            rip: abort,
            ..*regs
        }),
        false => Ok(*regs),
    }
}
/// Stops a process, has its first thread run one system call, and lets it go on. Returns the result.
pub fn inject(pid: i32, call: Call) -> Result<i64> {
    let vmas = super::proc::maps(pid)?;
    let missing = || {
        SysError::new(
            "inject system call",
            format_args!("process {pid}"),
            io::Error::new(io::ErrorKind::Unsupported, "no system call in its code"),
        )
    };
    let gadgets = Gadgets::find(pid, &vmas)?.ok_or_else(missing)?;
    let frozen = super::Frozen::freeze(pid, super::Freeze::default())?;
    match Guarded::new(&frozen, &gadgets, &vmas) {
        Ok(mut thread) => thread.call(call, None),
        Err(e) if e.source.kind() == io::ErrorKind::Unsupported => {
            let mut thread = super::Remote::new(frozen.threads()[0], gadgets.syscall)?;
            thread
                .call("inject system call", call.nr, call.args)
                .map(|result| result as i64)
        }
        Err(e) => Err(e),
    }
}
