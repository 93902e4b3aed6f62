//! ptrace(2), one request a function.
//!
//! A tracer is one thread: every call here must come from the thread that seized the tracee.

mod kept;
mod waits;

pub use kept::{
    SIGINFO_SIZE, pending, robust_list, rseq, seccomp_filters, set_syscall_dispatch,
    syscall_dispatch,
};
pub use waits::{Event, exit_status, meet_any_end, meet_end, try_wait, wait, wait_for_start};

use super::{Result, SysError};
use std::io;

/// A thread id.
pub type Tid = i32;

const PTRACE_GETSIGMASK: u32 = 0x420a;
const PTRACE_SETSIGMASK: u32 = 0x420b;
const PTRACE_O_SUSPEND_SECCOMP: u64 = 1 << 21;
const PTRACE_O_TRACECLONE: u64 = 1 << 3;
const PTRACE_O_TRACEFORK: u64 = 1 << 1;
const PTRACE_O_EXITKILL: u64 = 1 << 20;
const PTRACE_O_TRACESYSGOOD: u64 = 1;
const NT_PRSTATUS: i32 = 1;
/// Options of a seizure.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Let injected calls pass the target's seccomp filters. Needs CAP_SYS_ADMIN; the caller retries without.
    pub suspend_seccomp: bool,
    /// New threads and children of the tracee start traced and stopped.
    pub trace_clone: bool,
    /// The tracee is killed when its tracer ends.
    pub exit_kill: bool,
}

impl Options {
    fn bits(self) -> u64 {
        let mut bits = PTRACE_O_TRACESYSGOOD;
        if self.suspend_seccomp {
            bits |= PTRACE_O_SUSPEND_SECCOMP;
        }
        if self.trace_clone {
            bits |= PTRACE_O_TRACECLONE | PTRACE_O_TRACEFORK;
        }
        if self.exit_kill {
            bits |= PTRACE_O_EXITKILL;
        }
        bits
    }
}

fn request(name: &'static str, request: u32, tid: Tid, addr: usize, data: usize) -> Result<i64> {
    // SAFETY: every caller passes, for its request, either integers or pointers to live buffers of
    // the size the request demands (ptrace(2)); the kernel writes nothing else.
    let result = unsafe { libc::ptrace(request, tid, addr, data) };
    if result == -1 {
        Err(SysError::last(name, format_args!("thread {tid}")))
    } else {
        Ok(result)
    }
}

/// Becomes the tracer of a thread without stopping it.
pub fn seize(tid: Tid, options: Options) -> Result<()> {
    request(
        "PTRACE_SEIZE",
        libc::PTRACE_SEIZE,
        tid,
        0,
        options.bits() as usize,
    )
    .map(drop)
}

/// Changes the options of a stopped tracee.
pub fn set_options(tid: Tid, options: Options) -> Result<()> {
    request(
        "PTRACE_SETOPTIONS",
        libc::PTRACE_SETOPTIONS,
        tid,
        0,
        options.bits() as usize,
    )
    .map(drop)
}

/// Asks a seized thread to stop.
pub fn interrupt(tid: Tid) -> Result<()> {
    request("PTRACE_INTERRUPT", libc::PTRACE_INTERRUPT, tid, 0, 0).map(drop)
}

/// Resumes a stopped thread, delivering `signal` (0 for none).
pub fn cont(tid: Tid, signal: i32) -> Result<()> {
    request("PTRACE_CONT", libc::PTRACE_CONT, tid, 0, signal as usize).map(drop)
}

/// Resumes a stopped thread until the next entry or exit of a system call.
pub fn cont_to_syscall(tid: Tid) -> Result<()> {
    request("PTRACE_SYSCALL", libc::PTRACE_SYSCALL, tid, 0, 0).map(drop)
}

/// Ends tracing and resumes the thread; one in a job-control stop stays stopped.
pub fn detach(tid: Tid) -> Result<()> {
    request("PTRACE_DETACH", libc::PTRACE_DETACH, tid, 0, 0).map(drop)
}

/// The new thread's id after [`Event::Clone`].
pub fn event_message(tid: Tid) -> Result<u64> {
    let mut message: libc::c_ulong = 0;
    request(
        "PTRACE_GETEVENTMSG",
        libc::PTRACE_GETEVENTMSG,
        tid,
        0,
        &raw mut message as usize,
    )?;
    Ok(message)
}

fn regset(tid: Tid, kind: i32, buffer: &mut [u8], set: bool) -> Result<usize> {
    let mut iov = libc::iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len(),
    };
    let (name, code) = match set {
        false => ("PTRACE_GETREGSET", libc::PTRACE_GETREGSET),
        true => ("PTRACE_SETREGSET", libc::PTRACE_SETREGSET),
    };
    request(name, code, tid, kind as usize, &raw mut iov as usize)?;
    Ok(iov.iov_len)
}

/// General registers in the layout of `NT_PRSTATUS`.
pub fn general(tid: Tid) -> Result<Vec<u8>> {
    let mut buffer = vec![0; 512];
    let len = regset(tid, NT_PRSTATUS, &mut buffer, false)?;
    buffer.truncate(len);
    Ok(buffer)
}

/// Sets the general registers.
pub fn set_general(tid: Tid, bytes: &[u8]) -> Result<()> {
    regset(tid, NT_PRSTATUS, &mut bytes.to_vec(), true).map(drop)
}

/// General registers, parsed. A 32-bit task is an error of kind `Unsupported`.
pub fn registers(tid: Tid) -> Result<super::arch::Registers> {
    let bytes = general(tid)?;
    super::arch::Registers::from_prstatus(&bytes).ok_or_else(|| {
        SysError::new(
            "PTRACE_GETREGSET",
            format_args!("thread {tid}"),
            io::Error::new(
                io::ErrorKind::Unsupported,
                "the registers are those of a 32-bit task",
            ),
        )
    })
}

/// Sets the general registers.
pub fn set_registers(tid: Tid, regs: &super::arch::Registers) -> Result<()> {
    set_general(tid, zerocopy::IntoBytes::as_bytes(regs))
}

/// Extended state (floating point, vectors, protection keys) of the processor's own layout.
pub fn extended(tid: Tid) -> Result<Vec<u8>> {
    let mut buffer = vec![0; super::arch::EXTENDED_MAX];
    let len = regset(tid, super::arch::NT_EXTENDED, &mut buffer, false)?;
    buffer.truncate(len);
    Ok(buffer)
}

/// Sets the extended state.
pub fn set_extended(tid: Tid, bytes: &[u8]) -> Result<()> {
    regset(tid, super::arch::NT_EXTENDED, &mut bytes.to_vec(), true).map(drop)
}

/// Blocked signals; the mask to come back to when the thread waits with a temporary one.
pub fn sigmask(tid: Tid) -> Result<u64> {
    let mut mask = 0u64;
    request(
        "PTRACE_GETSIGMASK",
        PTRACE_GETSIGMASK,
        tid,
        size_of::<u64>(),
        &raw mut mask as usize,
    )?;
    Ok(mask)
}

/// Sets the blocked signals.
pub fn set_sigmask(tid: Tid, mask: u64) -> Result<()> {
    request(
        "PTRACE_SETSIGMASK",
        PTRACE_SETSIGMASK,
        tid,
        size_of::<u64>(),
        &raw const mask as usize,
    )
    .map(drop)
}
