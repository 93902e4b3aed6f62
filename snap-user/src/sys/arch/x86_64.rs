//! x86-64: registers, the system call instruction, restart of interrupted calls.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `e_machine` of this architecture, as images record it.
pub const MACHINE: u16 = 62;
/// The system call instruction.
pub const SYSCALL_INSN: [u8; 2] = [0x0f, 0x05];
/// Length of a [`jump`].
pub const JUMP: usize = 5;
/// Bytes below the stack pointer that a function may use without moving it (System V ABI).
pub const RED_ZONE: u64 = 128;
/// End of user addresses with four-level paging.
pub const USER_END: u64 = 0x7fff_ffff_f000;

const ERESTARTSYS: i64 = -512;
const ERESTARTNOINTR: i64 = -513;
const ERESTARTNOHAND: i64 = -514;
const ERESTART_RESTARTBLOCK: i64 = -516;

/// Zero flag and sign flag: no result is zero and negative, so that no instruction that computes sets both.
const RESTART_MARK: u64 = 0x40 | 0x80;

/// General registers: `struct user_regs_struct`, the layout of `NT_PRSTATUS`.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
#[allow(missing_docs, reason = "the processor's names")]
pub struct Registers {
    pub r15: u64,
    pub r14: u64,
    pub r13: u64,
    pub r12: u64,
    pub rbp: u64,
    pub rbx: u64,
    pub r11: u64,
    pub r10: u64,
    pub r9: u64,
    pub r8: u64,
    pub rax: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub orig_rax: u64,
    pub rip: u64,
    pub cs: u64,
    pub eflags: u64,
    pub rsp: u64,
    pub ss: u64,
    pub fs_base: u64,
    pub gs_base: u64,
    pub ds: u64,
    pub es: u64,
    pub fs: u64,
    pub gs: u64,
}

/// The instruction at `from` that goes on at `to`; `None` if that is more than 2 GiB away.
pub fn jump(from: u64, to: u64) -> Option<[u8; JUMP]> {
    let by = to.wrapping_sub(from.wrapping_add(JUMP as u64)) as i64;
    let [a, b, c, d] = i32::try_from(by).ok()?.to_le_bytes();
    Some([0xe9, a, b, c, d])
}

impl Registers {
    /// Reads the layout of `NT_PRSTATUS`; `None` if the length is another architecture's (a 32-bit task).
    pub fn from_prstatus(bytes: &[u8]) -> Option<Self> {
        Self::read_from_bytes(bytes).ok()
    }

    /// Each register with the processor's name for it.
    pub fn named(&self) -> [(&'static str, u64); 27] {
        [
            ("r15", self.r15),
            ("r14", self.r14),
            ("r13", self.r13),
            ("r12", self.r12),
            ("rbp", self.rbp),
            ("rbx", self.rbx),
            ("r11", self.r11),
            ("r10", self.r10),
            ("r9", self.r9),
            ("r8", self.r8),
            ("rax", self.rax),
            ("rcx", self.rcx),
            ("rdx", self.rdx),
            ("rsi", self.rsi),
            ("rdi", self.rdi),
            ("orig_rax", self.orig_rax),
            ("rip", self.rip),
            ("cs", self.cs),
            ("eflags", self.eflags),
            ("rsp", self.rsp),
            ("ss", self.ss),
            ("fs_base", self.fs_base),
            ("gs_base", self.gs_base),
            ("ds", self.ds),
            ("es", self.es),
            ("fs", self.fs),
            ("gs", self.gs),
        ]
    }

    /// Program counter.
    pub fn ip(&self) -> u64 {
        self.rip
    }

    /// Stack pointer.
    pub fn sp(&self) -> u64 {
        self.rsp
    }

    /// Where the C library keeps what belongs to the thread.
    pub fn thread_pointer(&self) -> u64 {
        self.fs_base
    }

    /// These registers, about to execute the system call instruction at `insn`.
    pub fn with_syscall(&self, insn: u64, nr: u64, args: [u64; 6]) -> Self {
        Self {
            rip: insn,
            rax: nr,
            // Not inside a system call: keeps the kernel from restarting one on the way out.
            orig_rax: u64::MAX,
            rdi: args[0],
            rsi: args[1],
            rdx: args[2],
            r10: args[3],
            r8: args[4],
            r9: args[5],
            // No trap flag and no direction flag of the interrupted code.
            eflags: self.eflags & !0x500,
            ..*self
        }
    }

    /// Result of a system call that has returned.
    pub fn syscall_result(&self) -> i64 {
        self.rax as i64
    }

    /// The system call that the stop interrupted and the kernel will restart by itself, if any.
    pub fn interrupted_syscall(&self) -> Option<u64> {
        let restarts = matches!(
            self.rax as i64,
            ERESTARTSYS | ERESTARTNOINTR | ERESTARTNOHAND | ERESTART_RESTARTBLOCK
        );
        (restarts && (self.orig_rax as i64) >= 0).then_some(self.orig_rax)
    }

    /// Whether a call's result says that the thread's restart block continues it.
    pub fn is_restart_by_block(result: i64) -> bool {
        result == ERESTART_RESTARTBLOCK
    }

    /// Arguments of the system call that the thread is in.
    pub fn arguments(&self) -> [u64; 6] {
        [self.rdi, self.rsi, self.rdx, self.r10, self.r8, self.r9]
    }

    /// These registers with the result on which the kernel restarts the call, or has it return
    /// EINTR if a signal handler runs first; and with a mark by which a later stop tells that the call
    /// has not returned to the program since.
    pub fn with_restart_unless_handled(&self) -> Self {
        Self {
            rax: ERESTARTNOHAND as u64,
            eflags: self.eflags | RESTART_MARK,
            ..*self
        }
    }

    /// The mark is there. The flags go into a call and come back from it unchanged, but no program looks at
    /// them behind it: the first comparison replaces them.
    pub fn has_restart_mark(&self) -> bool {
        self.eflags & RESTART_MARK == RESTART_MARK
    }

    /// The interrupted system call continues by the thread's restart block, which only that thread,
    /// at that moment, has.
    pub fn needs_restart_block(&self) -> bool {
        self.interrupted_syscall().is_some() && self.rax as i64 == ERESTART_RESTARTBLOCK
    }

    /// These registers in a form that does not need the restart block: the call is issued again
    /// with its own arguments. `call`: its number, where it is known; the registers have that of
    /// restart_syscall(2) if the kernel has continued it before.
    pub fn without_restart_block(&self, call: Option<u64>) -> Self {
        if !self.needs_restart_block() {
            return *self;
        }
        Self {
            rax: call.unwrap_or(self.orig_rax),
            rip: self.rip - SYSCALL_INSN.len() as u64,
            orig_rax: u64::MAX,
            ..*self
        }
    }

    /// These registers in a form in which the thread's restart block, which it must have, continues the call.
    pub fn continuing(&self, call: u64) -> Self {
        Self {
            rax: ERESTART_RESTARTBLOCK as u64,
            orig_rax: call,
            ..*self
        }
    }

    /// These registers, of a thread in a system call, as they are when it has returned.
    pub fn returned(&self, result: i64) -> Self {
        Self {
            rax: result as u64,
            orig_rax: u64::MAX,
            ..*self
        }
    }

    /// What the thread will execute first: the registers after the kernel has prepared a restart.
    pub fn resume_point(&self) -> Self {
        match self.interrupted_syscall() {
            None => *self,
            Some(nr) => Self {
                rax: nr,
                rip: self.rip - SYSCALL_INSN.len() as u64,
                orig_rax: u64::MAX,
                ..*self
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_registers_have_their_size() {
        assert_eq!(size_of::<Registers>(), 27 * 8);
    }

    #[test]
    fn a_sleep_is_issued_again_without_its_restart_block() {
        let regs = Registers {
            rax: -516i64 as u64,
            orig_rax: 35,
            rip: 0x1002,
            ..Default::default()
        };
        assert!(regs.needs_restart_block());
        let again = regs.without_restart_block(None);
        assert_eq!(
            (again.rax, again.rip, again.orig_rax),
            (35, 0x1000, u64::MAX)
        );
    }

    #[test]
    fn a_restarted_wait_is_marked_by_flags_that_no_computation_leaves() {
        let regs = Registers {
            rax: -4i64 as u64,
            orig_rax: 232,
            eflags: 0x246,
            ..Default::default()
        };
        assert!(!regs.has_restart_mark());
        let again = regs.with_restart_unless_handled();
        assert!(again.has_restart_mark());
        assert_eq!(again.interrupted_syscall(), Some(232));
        assert_eq!(again.eflags, 0x2c6);
    }

    #[test]
    fn a_sleep_that_was_continued_before_is_issued_by_its_own_number() {
        let regs = Registers {
            rax: -516i64 as u64,
            orig_rax: 219,
            rip: 0x1002,
            ..Default::default()
        };
        assert_eq!(regs.without_restart_block(Some(230)).rax, 230);
    }

    #[test]
    fn a_finished_call_is_not_interrupted() {
        let regs = Registers {
            rax: 5,
            orig_rax: 0,
            rip: 0x1002,
            ..Default::default()
        };
        assert_eq!(regs.interrupted_syscall(), None);
        assert_eq!(regs.resume_point(), regs);
    }
}
