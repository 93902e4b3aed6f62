//! Where the target's own code holds the instructions that injected system calls need.
//!
//! Nothing is ever written into the target's code: the calls run on instructions that are there.

use super::arch::SYSCALL_INSN;
use super::{Result, memory};
use crate::model::{Backing, PAGE_SIZE, Vma};

/// `syscall; ret`
const SYSCALL_RET: &[u8] = &[0x0f, 0x05, 0xc3];
/// `mov $15, %rax; syscall` and `mov $15, %eax; syscall`: what every C library passes as
/// `sa_restorer`, so that signal handlers return into rt_sigreturn(2).
const RESTORERS: [&[u8]; 2] = [
    &[0x48, 0xc7, 0xc0, 0x0f, 0x00, 0x00, 0x00, 0x0f, 0x05],
    &[0xb8, 0x0f, 0x00, 0x00, 0x00, 0x0f, 0x05],
];
const CHUNK: usize = 1 << 20;

/// Addresses of instructions in the target.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gadgets {
    /// A system call instruction, in the vDSO where there is one.
    pub syscall: u64,
    /// A system call instruction followed by a return.
    pub syscall_ret: Option<u64>,
    /// A call of rt_sigreturn(2).
    pub sigreturn: Option<u64>,
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    // Nearly every candidate fails on its first byte.
    let first = needle[0];
    let mut from = 0;
    while let Some(at) = haystack[from..].iter().position(|&b| b == first) {
        let at = from + at;
        if haystack[at..].starts_with(needle) {
            return Some(at);
        }
        from = at + 1;
    }
    None
}

fn search(bytes: &[u8], base: u64, found: &mut Gadgets) {
    let at = |needle| find(bytes, needle).map(|offset| base + offset as u64);
    if found.syscall == 0 {
        found.syscall = at(&SYSCALL_INSN).unwrap_or(0);
    }
    found.syscall_ret = found.syscall_ret.or_else(|| at(SYSCALL_RET));
    found.sigreturn = found
        .sigreturn
        .or_else(|| RESTORERS.iter().find_map(|r| at(r)));
}

impl Gadgets {
    /// The address of a system call instruction alone: next to no work where there is a vDSO.
    pub fn find_syscall(pid: i32, vmas: &[Vma]) -> Result<Option<u64>> {
        Ok(Self::look(pid, vmas, |found| found.syscall != 0)?.map(|found| found.syscall))
    }

    /// Looks through the executable mappings of a process: the vDSO, then the C library, then the rest.
    /// `None` when there is no system call instruction at all.
    pub fn find(pid: i32, vmas: &[Vma]) -> Result<Option<Self>> {
        Self::look(pid, vmas, |found| {
            found.syscall_ret.is_some() && found.sigreturn.is_some()
        })
    }

    fn look(pid: i32, vmas: &[Vma], enough: impl Fn(&Self) -> bool) -> Result<Option<Self>> {
        let mut code: Vec<&Vma> = vmas.iter().filter(|v| v.prot.exec && v.prot.read).collect();
        code.sort_by_key(|v| match &v.backing {
            Backing::Special(name) if name == "vdso" => 0,
            Backing::File { path, .. } if path.contains("libc") || path.contains("musl") => 1,
            Backing::File { .. } => 2,
            _ => 3,
        });
        let mut found = Self::default();
        let mut buffer = vec![0; CHUNK + PAGE_SIZE as usize];
        for vma in code {
            if matches!(&vma.backing, Backing::Special(name) if name != "vdso") {
                continue;
            }
            let mut base = vma.range.start;
            while base < vma.range.end {
                // Overlap by a page so that no pattern is cut in two.
                let len = (vma.range.end - base).min(buffer.len() as u64) as usize;
                if memory::read_bytes(pid, base, &mut buffer[..len]).is_ok() {
                    search(&buffer[..len], base, &mut found);
                }
                if enough(&found) {
                    return Ok(Some(found));
                }
                base += CHUNK as u64;
            }
        }
        Ok((found.syscall != 0).then_some(found))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_each_pattern_at_its_address() {
        let mut code = vec![0x90; 64];
        code[5..7].copy_from_slice(&SYSCALL_INSN);
        code[20..23].copy_from_slice(SYSCALL_RET);
        code[40..47].copy_from_slice(RESTORERS[1]);
        let mut found = Gadgets::default();
        search(&code, 0x1000, &mut found);
        assert_eq!(
            found,
            Gadgets {
                syscall: 0x1005,
                syscall_ret: Some(0x1014),
                sigreturn: Some(0x1028)
            }
        );
    }

    #[test]
    fn this_process_has_all_of_them() {
        let pid = std::process::id() as i32;
        let vmas = super::super::proc::maps(pid).unwrap();
        let found = Gadgets::find(pid, &vmas).unwrap().expect("a vDSO");
        assert!(
            found.syscall_ret.is_some() && found.sigreturn.is_some(),
            "{found:?}"
        );
    }
}
