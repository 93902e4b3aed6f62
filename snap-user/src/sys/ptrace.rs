//! ptrace(2), one request a function.
//!
//! A tracer is one thread: every call here must come from the thread that seized the tracee.

mod waits;

pub use waits::{Event, exit_status, meet_any_end, meet_end, try_wait, wait, wait_for_start};

use super::{Result, SysError};
use crate::model::{RobustList, Rseq, SeccompFilter, SyscallDispatch};
use std::io;
use std::ptr;

/// A thread id.
pub type Tid = i32;

const PTRACE_GETSIGMASK: u32 = 0x420a;
const PTRACE_SETSIGMASK: u32 = 0x420b;
const PTRACE_PEEKSIGINFO: u32 = 0x4209;
const PTRACE_PEEKSIGINFO_SHARED: u32 = 1;
const PTRACE_SECCOMP_GET_FILTER: u32 = 0x420c;
const PTRACE_SECCOMP_GET_METADATA: u32 = 0x420d;
const PTRACE_SET_SYSCALL_USER_DISPATCH_CONFIG: u32 = 0x4210;
const PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG: u32 = 0x4211;
const PTRACE_GET_RSEQ_CONFIGURATION: u32 = 0x420f;
const PTRACE_O_SUSPEND_SECCOMP: u64 = 1 << 21;
const PTRACE_O_TRACECLONE: u64 = 1 << 3;
const PTRACE_O_TRACEFORK: u64 = 1 << 1;
const PTRACE_O_EXITKILL: u64 = 1 << 20;
const PTRACE_O_TRACESYSGOOD: u64 = 1;
const NT_PRSTATUS: i32 = 1;
/// Size of the kernel's `siginfo_t`.
pub const SIGINFO_SIZE: usize = 128;

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

#[repr(C)]
struct PeekSiginfo {
    off: u64,
    flags: u32,
    nr: i32,
}

/// Signals queued for the thread, or for its whole process if `shared`, oldest first.
pub fn pending(tid: Tid, shared: bool) -> Result<Vec<[u8; SIGINFO_SIZE]>> {
    const BATCH: usize = 16;
    let mut found = Vec::new();
    loop {
        let args = PeekSiginfo {
            off: found.len() as u64,
            flags: if shared { PTRACE_PEEKSIGINFO_SHARED } else { 0 },
            nr: BATCH as i32,
        };
        let mut buffer = [[0u8; SIGINFO_SIZE]; BATCH];
        let count = request(
            "PTRACE_PEEKSIGINFO",
            PTRACE_PEEKSIGINFO,
            tid,
            &raw const args as usize,
            buffer.as_mut_ptr() as usize,
        )?;
        found.extend_from_slice(&buffer[..count as usize]);
        if (count as usize) < BATCH {
            return Ok(found);
        }
    }
}

#[repr(C)]
#[derive(Default)]
struct RseqConfiguration {
    addr: u64,
    size: u32,
    signature: u32,
    flags: u32,
    pad: u32,
}

/// The thread's restartable-sequence registration. Linux 5.13.
pub fn rseq(tid: Tid) -> Result<Option<Rseq>> {
    let mut conf = RseqConfiguration::default();
    request(
        "PTRACE_GET_RSEQ_CONFIGURATION",
        PTRACE_GET_RSEQ_CONFIGURATION,
        tid,
        size_of::<RseqConfiguration>(),
        &raw mut conf as usize,
    )?;
    let RseqConfiguration {
        addr,
        size,
        signature,
        flags,
        ..
    } = conf;
    Ok((addr != 0).then_some(Rseq {
        addr,
        size,
        signature,
        flags,
    }))
}

/// The thread's robust futex list (`get_robust_list(2)`), which any thread with ptrace access may ask for.
pub fn robust_list(tid: Tid) -> Result<Option<RobustList>> {
    let (mut head, mut len) = (ptr::null_mut::<libc::c_void>(), 0usize);
    // SAFETY: both pointers are to live locals of the types that the call fills.
    let result = unsafe { libc::syscall(libc::SYS_get_robust_list, tid, &mut head, &mut len) };
    if result == -1 {
        return Err(SysError::last(
            "get_robust_list",
            format_args!("thread {tid}"),
        ));
    }
    Ok((!head.is_null()).then_some(RobustList {
        head: head as u64,
        len: len as u64,
    }))
}

/// The system call filters of a thread, the first installed first. Needs CAP_SYS_ADMIN, and a
/// caller without filters of its own.
pub fn seccomp_filters(tid: Tid) -> Result<Vec<SeccompFilter>> {
    /// Bytes of `struct sock_filter`.
    const INSN: usize = 8;
    let mut filters = Vec::new();
    // Number 0 is the one installed last.
    for index in 0.. {
        let get = |buffer: usize| {
            request(
                "PTRACE_SECCOMP_GET_FILTER",
                PTRACE_SECCOMP_GET_FILTER,
                tid,
                index,
                buffer,
            )
        };
        let insns = match get(0) {
            Ok(insns) => insns as usize,
            Err(e) if e.errno() == Some(libc::ENOENT) => break,
            Err(e) => return Err(e),
        };
        let mut program = vec![0u8; insns * INSN];
        get(program.as_mut_ptr() as usize)?;
        // Filter number, flags (Linux 4.17).
        let mut metadata = [index as u64, 0];
        let size = size_of_val(&metadata);
        let _ = request(
            "PTRACE_SECCOMP_GET_METADATA",
            PTRACE_SECCOMP_GET_METADATA,
            tid,
            size,
            metadata.as_mut_ptr() as usize,
        );
        filters.push(SeccompFilter {
            flags: metadata[1],
            program,
        });
    }
    filters.reverse();
    Ok(filters)
}

/// `struct ptrace_sud_config`: mode, address of the selector, start and length of the range.
type DispatchConfiguration = [u64; 4];

/// A thread's dispatch of system calls to a handler. Linux 6.4.
pub fn syscall_dispatch(tid: Tid) -> Result<SyscallDispatch> {
    let mut config = DispatchConfiguration::default();
    request(
        "PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG",
        PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG,
        tid,
        size_of_val(&config),
        config.as_mut_ptr() as usize,
    )?;
    let [mode, selector, offset, len] = config;
    Ok(SyscallDispatch {
        mode,
        selector,
        offset,
        len,
    })
}

/// Sets a thread's dispatch of system calls. Linux 6.4.
pub fn set_syscall_dispatch(tid: Tid, to: &SyscallDispatch) -> Result<()> {
    let config: DispatchConfiguration = [to.mode, to.selector, to.offset, to.len];
    request(
        "PTRACE_SET_SYSCALL_USER_DISPATCH_CONFIG",
        PTRACE_SET_SYSCALL_USER_DISPATCH_CONFIG,
        tid,
        size_of_val(&config),
        config.as_ptr() as usize,
    )
    .map(drop)
}
