//! The frame of a signal handler, by which `rt_sigreturn(2)` loads registers.

use super::Registers;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The part of `struct sigcontext` and its frame that `rt_sigreturn(2)` reads.
///
/// Layout: arch/x86/include/uapi/asm/{ucontext,sigcontext}.h. The frame starts where the stack
/// pointer is when the call is made, which is past the return address of `struct rt_sigframe`.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SigFrame {
    uc_flags: u64,
    uc_link: u64,
    ss_sp: u64,
    ss_flags: u32,
    pad: u32,
    ss_size: u64,
    r8: u64,
    r9: u64,
    r10: u64,
    r11: u64,
    r12: u64,
    r13: u64,
    r14: u64,
    r15: u64,
    rdi: u64,
    rsi: u64,
    rbp: u64,
    rbx: u64,
    rdx: u64,
    rax: u64,
    rcx: u64,
    rsp: u64,
    rip: u64,
    eflags: u64,
    cs: u16,
    gs: u16,
    fs: u16,
    ss: u16,
    err: u64,
    trapno: u64,
    oldmask: u64,
    cr2: u64,
    fpstate: u64,
    reserved: [u64; 8],
    sigmask: u64,
}

const UC_FP_XSTATE: u64 = 1;
const UC_SIGCONTEXT_SS: u64 = 2;
const UC_STRICT_RESTORE_SS: u64 = 4;
/// Alternate stack marked as unset: `rt_sigreturn` leaves the thread's own alone when the size is
/// too small to be accepted.
const SS_INVALID: u32 = 0xffff_ffff;

impl SigFrame {
    /// A frame that loads `regs`, `sigmask` and the extended state at address `fpstate`.
    pub fn new(regs: &Registers, sigmask: u64, fpstate: u64) -> Self {
        Self {
            uc_flags: UC_FP_XSTATE | UC_SIGCONTEXT_SS | UC_STRICT_RESTORE_SS,
            uc_link: 0,
            // restore_altstack() refuses these flags with EINVAL, which rt_sigreturn ignores: the
            // alternate stack stays as it is.
            ss_sp: 0,
            ss_flags: SS_INVALID,
            pad: 0,
            ss_size: 0,
            r8: regs.r8,
            r9: regs.r9,
            r10: regs.r10,
            r11: regs.r11,
            r12: regs.r12,
            r13: regs.r13,
            r14: regs.r14,
            r15: regs.r15,
            rdi: regs.rdi,
            rsi: regs.rsi,
            rbp: regs.rbp,
            rbx: regs.rbx,
            rdx: regs.rdx,
            rax: regs.rax,
            rcx: regs.rcx,
            rsp: regs.rsp,
            rip: regs.rip,
            eflags: regs.eflags,
            cs: regs.cs as u16,
            gs: 0,
            fs: 0,
            ss: regs.ss as u16,
            err: 0,
            trapno: 0,
            oldmask: 0,
            cr2: 0,
            fpstate,
            reserved: [0; 8],
            sigmask,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_frame_has_its_size() {
        // 40 bytes of ucontext head, 256 of sigcontext, 8 of mask.
        assert_eq!(size_of::<SigFrame>(), 304);
    }
}
