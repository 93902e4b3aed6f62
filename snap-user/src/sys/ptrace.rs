//! ptrace(2), one request a function.
//!
//! A tracer is one thread: every call here must come from the thread that seized the tracee.

use super::{Result, SysError};
use crate::model::{RobustList, Rseq, SeccompFilter, SyscallDispatch};
use std::collections::BTreeMap;
use std::io;
use std::ptr;
use std::sync::Mutex;

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
const PTRACE_EVENT_STOP: i32 = 128;
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

/// What a wait for a tracee returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Stopped on request or at its start (`PTRACE_EVENT_STOP`).
    Stopped,
    /// In a job-control stop.
    GroupStopped,
    /// About to receive this signal.
    Signal(i32),
    /// At the entry or the exit of a system call.
    Syscall,
    /// Made a new thread or a child (`PTRACE_EVENT_CLONE`, `PTRACE_EVENT_FORK`).
    Clone,
    /// Ended, with the wait status.
    Exited(i32),
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

/// Waits until a tracee reports. Fails with EINTR when a signal handler ran in this thread.
pub fn wait(tid: Tid) -> Result<Event> {
    wait_with(tid, 0).map(|event| event.expect("a blocking wait returns with an event"))
}

/// Waits until a thread that was made by a tracee is stopped at its start.
pub fn wait_for_start(tid: Tid) -> Result<()> {
    while !matches!(wait(tid)?, Event::Stopped | Event::GroupStopped) {
        cont(tid, 0)?;
    }
    Ok(())
}

/// What a tracee has to report, without waiting for it.
pub fn try_wait(tid: Tid) -> Result<Option<Event>> {
    wait_with(tid, libc::WNOHANG)
}

/// Lets a tracee that has ended go for good. One that lives keeps what it has to report.
pub fn meet_end(tid: Tid) {
    // SAFETY: zeroed, a siginfo_t is valid; the kernel fills it.
    let code = unsafe {
        let mut info: libc::siginfo_t = std::mem::zeroed();
        // Looks only: stops of a tracee are reported, and taken, whatever was asked for.
        let options = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT | libc::__WALL;
        libc::waitid(libc::P_PID, tid as libc::id_t, &mut info, options);
        info.si_code
    };
    if matches!(code, libc::CLD_EXITED | libc::CLD_KILLED | libc::CLD_DUMPED) {
        let _ = try_wait(tid);
    }
}

/// Waits for the end of any child or tracee of this thread, and lets those that stop meanwhile go on. `None` when
/// there is none.
pub fn meet_any_end() -> Option<Tid> {
    loop {
        let mut status = 0;
        // SAFETY: `status` is a live integer that the kernel fills.
        let tid = unsafe { libc::waitpid(-1, &mut status, libc::__WALL | libc::__WNOTHREAD) };
        if tid == -1 && io::Error::last_os_error().kind() == io::ErrorKind::Interrupted {
            continue;
        }
        if tid <= 0 {
            return None;
        }
        match decode(status) {
            Event::Exited(status) => {
                remember_end(tid, status);
                return Some(tid);
            }
            _ => drop(cont(tid, 0)),
        }
    }
}

/// Statuses of tracees that a wait here has met at their end. When the tracer is the parent too, no
/// other wait gets them.
static EXITED: Mutex<BTreeMap<Tid, i32>> = Mutex::new(BTreeMap::new());

fn remember_end(tid: Tid, status: i32) {
    EXITED.lock().expect("no holder panics").insert(tid, status);
}

/// The wait status of a process whose end a wait for its main thread has met.
pub fn exit_status(pid: i32) -> Option<i32> {
    EXITED.lock().expect("no holder panics").get(&pid).copied()
}

fn wait_with(tid: Tid, options: i32) -> Result<Option<Event>> {
    let mut status = 0;
    // SAFETY: `status` is a live integer that the kernel fills.
    match unsafe { libc::waitpid(tid, &mut status, libc::__WALL | options) } {
        -1 => Err(SysError::last("waitpid", format_args!("thread {tid}"))),
        0 => Ok(None),
        _ => {
            let event = decode(status);
            if let Event::Exited(status) = event {
                remember_end(tid, status);
            }
            Ok(Some(event))
        }
    }
}

fn decode(status: i32) -> Event {
    if !libc::WIFSTOPPED(status) {
        return Event::Exited(status);
    }
    let signal = libc::WSTOPSIG(status);
    match status >> 16 {
        PTRACE_EVENT_STOP if signal == libc::SIGTRAP => Event::Stopped,
        PTRACE_EVENT_STOP => Event::GroupStopped,
        libc::PTRACE_EVENT_CLONE | libc::PTRACE_EVENT_FORK => Event::Clone,
        _ if signal == libc::SIGTRAP | 0x80 => Event::Syscall,
        _ => Event::Signal(signal),
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wait_statuses_are_told_apart() {
        let stopped = |event: i32, signal: i32| event << 16 | signal << 8 | 0x7f;
        assert_eq!(
            decode(stopped(PTRACE_EVENT_STOP, libc::SIGTRAP)),
            Event::Stopped
        );
        assert_eq!(
            decode(stopped(PTRACE_EVENT_STOP, libc::SIGSTOP)),
            Event::GroupStopped
        );
        assert_eq!(decode(stopped(0, libc::SIGTRAP | 0x80)), Event::Syscall);
        assert_eq!(
            decode(stopped(0, libc::SIGTRAP)),
            Event::Signal(libc::SIGTRAP)
        );
        assert_eq!(
            decode(stopped(0, libc::SIGUSR1)),
            Event::Signal(libc::SIGUSR1)
        );
        assert_eq!(
            decode(stopped(libc::PTRACE_EVENT_CLONE, libc::SIGTRAP)),
            Event::Clone
        );
        assert_eq!(decode(7 << 8), Event::Exited(7 << 8));
    }
}
