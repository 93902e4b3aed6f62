//! What the kernel keeps for a thread besides its registers.

use super::{Tid, request};
use crate::model::{RobustList, Rseq, SeccompFilter, SyscallDispatch};
use crate::sys::{Result, SysError};
use std::ptr;

const PTRACE_PEEKSIGINFO: u32 = 0x4209;
const PTRACE_PEEKSIGINFO_SHARED: u32 = 1;
const PTRACE_SECCOMP_GET_FILTER: u32 = 0x420c;
const PTRACE_SECCOMP_GET_METADATA: u32 = 0x420d;
const PTRACE_SET_SYSCALL_USER_DISPATCH_CONFIG: u32 = 0x4210;
const PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG: u32 = 0x4211;
const PTRACE_GET_RSEQ_CONFIGURATION: u32 = 0x420f;
/// Size of the kernel's `siginfo_t`.
pub const SIGINFO_SIZE: usize = 128;

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
