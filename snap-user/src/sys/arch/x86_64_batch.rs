//! Code that runs a list of system calls in a process that has no code of its own yet.

use super::Registers;

core::arch::global_asm!(
    ".pushsection .rodata.ksnap_batch, \"a\"",
    ".global ksnap_batch_start",
    ".hidden ksnap_batch_start",
    ".global ksnap_batch_syscall",
    ".hidden ksnap_batch_syscall",
    ".global ksnap_batch_end",
    ".hidden ksnap_batch_end",
    "ksnap_batch_start:",
    // r12: the next call (number, six arguments, result); r13: how many are left.
    "2: test r13, r13",
    "   jz 3f",
    "   mov rax, [r12]",
    "   mov rdi, [r12 + 8]",
    "   mov rsi, [r12 + 16]",
    "   mov rdx, [r12 + 24]",
    "   mov r10, [r12 + 32]",
    "   mov r8,  [r12 + 40]",
    "   mov r9,  [r12 + 48]",
    "   syscall",
    "   mov [r12 + 56], rax",
    "   add r12, 64",
    "   dec r13",
    // An error number ends the list early.
    "   cmp rax, -4095",
    "   jb 2b",
    // Done: tgkill(r14, r15, SIGSTOP), which the tracer sees and swallows. A breakpoint would do, but
    // its signal is forced, which takes the process's own disposition of SIGTRAP away.
    "3: mov eax, 234",
    "   mov rdi, r14",
    "   mov rsi, r15",
    "   mov edx, 19",
    "ksnap_batch_syscall:",
    "   syscall",
    "   ud2",
    "ksnap_batch_end:",
    ".popsection",
);

unsafe extern "C" {
    static ksnap_batch_start: u8;
    static ksnap_batch_syscall: u8;
    static ksnap_batch_end: u8;
}

/// The code, and the offset in it of a system call instruction. Runs at any address.
pub fn batch_code() -> (&'static [u8], u64) {
    let start = &raw const ksnap_batch_start;
    let end = &raw const ksnap_batch_end;
    let insn = &raw const ksnap_batch_syscall;
    // SAFETY: the three symbols mark places in one piece of read-only data, in this order.
    unsafe {
        let code = core::slice::from_raw_parts(start, end.offset_from(start) as usize);
        (code, insn.offset_from(start) as u64)
    }
}

impl Registers {
    /// About to run `count` calls listed at `calls` by the code at `code`, and then to stop; `tgid` and
    /// `tid` are the thread's own as it sees them.
    pub fn with_batch(&self, code: u64, calls: u64, count: u64, (tgid, tid): (i32, i32)) -> Self {
        Self {
            rip: code,
            // Not inside a system call: keeps the kernel from restarting one on the way out.
            orig_rax: u64::MAX,
            rax: 0,
            r12: calls,
            r13: count,
            r14: tgid as u64,
            r15: tid as u64,
            eflags: self.eflags & !0x500,
            ..*self
        }
    }

    /// The call that the batch would run next.
    pub fn batch_position(&self) -> u64 {
        self.r12
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_is_one_short_piece_with_a_system_call_where_it_says() {
        let (code, insn) = batch_code();
        assert!(code.len() < 128, "{}", code.len());
        assert_eq!(code[insn as usize..][..2], super::super::SYSCALL_INSN);
    }
}
