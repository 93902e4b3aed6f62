//! Damages a process's memory on purpose, so that a test can see the damage found.

use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, ensure};
use nix::sys::ptrace;
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

/// Inverts bytes in another process's memory. Works on read-only pages too, as a debugger's write does.
pub fn invert(pid: i32, address: u64, length: usize) -> Result<()> {
    let path = format!("/proc/{pid}/mem");
    let memory = std::fs::File::options()
        .read(true)
        .write(true)
        .open(&path)
        .with_context(|| format!("open {path}"))?;
    let mut bytes = vec![0; length];
    memory
        .read_exact_at(&mut bytes, address)
        .with_context(|| format!("read {length} bytes at {address:#x} of {pid}"))?;
    for byte in &mut bytes {
        *byte = !*byte;
    }
    memory
        .write_all_at(&bytes, address)
        .with_context(|| format!("write {length} bytes at {address:#x} of {pid}"))
}

/// Inverts the lower halves of vector registers 8–14 of a thread, as a debugger would.
#[cfg(target_arch = "x86_64")]
pub fn invert_vector_registers(tid: i32) -> Result<()> {
    // Registers xmm0.. are at 160 in the legacy part of the XSAVE area (Intel SDM 1, 13.4.1).
    const FIRST: usize = 160 + 8 * 16;
    const LAST: usize = 160 + 15 * 16;
    const NT_X86_XSTATE: i32 = 0x202;
    let thread = Pid::from_raw(tid);
    ptrace::seize(thread, ptrace::Options::empty())
        .with_context(|| format!("seize thread {tid}"))?;
    ptrace::interrupt(thread).with_context(|| format!("interrupt thread {tid}"))?;
    waitpid(thread, Some(WaitPidFlag::__WALL)).with_context(|| format!("wait for thread {tid}"))?;
    let mut area = vec![0u8; 16 << 10];
    let mut piece = libc::iovec {
        iov_base: area.as_mut_ptr().cast(),
        iov_len: area.len(),
    };
    let call = |request, piece: *mut libc::iovec| {
        // SAFETY: the thread is stopped, and the piece names a buffer of its length.
        let got = unsafe { libc::ptrace(request, tid, NT_X86_XSTATE, piece) };
        ensure!(
            got == 0,
            "registers of thread {tid}: {}",
            std::io::Error::last_os_error()
        );
        Ok(())
    };
    call(libc::PTRACE_GETREGSET, &raw mut piece)?;
    // The kernel has written to the buffer behind the compiler's back, and set the length that it used.
    for byte in &mut std::hint::black_box(&mut area)[FIRST..LAST] {
        *byte = !*byte;
    }
    call(libc::PTRACE_SETREGSET, &raw mut piece)?;
    ptrace::detach(thread, None).with_context(|| format!("let thread {tid} go"))
}
