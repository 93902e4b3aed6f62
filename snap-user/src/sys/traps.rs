//! Instructions that a thread may have raise a signal: `PR_SET_TSC`, `ARCH_SET_CPUID`.

/// An instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trap {
    /// Reading the time stamp counter.
    Tsc,
    /// Asking for the processor's features. Not all processors can have it raise a signal.
    Cpuid,
}

const ARCH_SET_CPUID: u64 = 0x1012;

/// Has the instruction raise a signal in the calling thread, or no longer. `false` when this machine cannot.
/// Until it is undone the thread must not execute it, which reading a clock may.
pub fn set_trap(trap: Trap, on: bool) -> bool {
    // SAFETY: system calls without pointers, on the calling thread alone.
    let result = unsafe {
        match trap {
            Trap::Tsc => {
                let mode = match on {
                    true => libc::PR_TSC_SIGSEGV,
                    false => libc::PR_TSC_ENABLE,
                };
                libc::syscall(libc::SYS_prctl, libc::PR_SET_TSC, mode, 0, 0, 0)
            }
            Trap::Cpuid => libc::syscall(libc::SYS_arch_prctl, ARCH_SET_CPUID, u64::from(!on)),
        }
    };
    result == 0
}
