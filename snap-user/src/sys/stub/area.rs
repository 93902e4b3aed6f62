//! The one piece of memory that a stub keeps: code, a list of calls, their arguments, and a place to
//! park what the kernel provides.

use crate::model::{Backing, PAGE_SIZE, PageRange, Vma};
use crate::sys::arch::{USER_END, batch_code};
use crate::sys::{Gadgets, Remote, Result, SysError, memory, proc, ptrace};
use std::io;

const CODE_PAGES: u64 = 1;
const CALL_PAGES: u64 = 16;
const DATA_PAGES: u64 = 64;
const PARK_PAGES: u64 = 48;
const PAGES: u64 = CODE_PAGES + CALL_PAGES + DATA_PAGES + PARK_PAGES;
/// Bytes of one call in the list.
const CALL: u64 = 64;
/// Lowest address that is tried: below it mappings may be forbidden (vm.mmap_min_addr).
const LOWEST: u64 = 0x1_0000;

/// Where the parts of a stub's area lie.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Area {
    base: u64,
    used: u64,
}

impl Area {
    pub(super) fn range(&self) -> PageRange {
        PageRange::new(self.base, self.base + PAGES * PAGE_SIZE)
    }

    pub(super) fn code(&self) -> u64 {
        self.base
    }

    pub(super) fn insn(&self) -> u64 {
        self.base + batch_code().1
    }

    pub(super) fn calls(&self) -> u64 {
        self.base + CODE_PAGES * PAGE_SIZE
    }

    pub(super) fn most_calls(&self) -> usize {
        (CALL_PAGES * PAGE_SIZE / CALL) as usize
    }

    fn data(&self) -> u64 {
        self.calls() + CALL_PAGES * PAGE_SIZE
    }

    fn park(&self) -> u64 {
        self.data() + DATA_PAGES * PAGE_SIZE
    }

    /// Room for arguments, aligned to 8 bytes.
    pub(super) fn reserve(&mut self, len: u64) -> Option<u64> {
        let at = self.used;
        let end = at.checked_add(len)?.next_multiple_of(8);
        (end <= DATA_PAGES * PAGE_SIZE).then(|| {
            self.used = end;
            self.data() + at
        })
    }

    pub(super) fn forget(&mut self) {
        self.used = 0;
    }
}

/// The lowest gap of `pages` pages between ranges, which may overlap and come in any order.
fn gap(taken: impl Iterator<Item = PageRange>, pages: u64) -> Option<u64> {
    let mut taken: Vec<PageRange> = taken.collect();
    taken.sort_unstable();
    let mut at = LOWEST;
    for range in taken {
        if range.start >= at + pages * PAGE_SIZE {
            break;
        }
        at = at.max(range.end);
    }
    (at + pages * PAGE_SIZE <= USER_END).then_some(at)
}

/// A new process with its area, everything else still mapped.
pub(super) struct Emptied {
    pub(super) area: Area,
    pub(super) kernel: Vec<(String, PageRange)>,
}

/// Makes the area in a process that was forked from this one, and parks the kernel's mappings in it.
pub(super) fn empty(pid: i32, avoid: &[PageRange]) -> Result<Emptied> {
    let maps = proc::maps(pid)?;
    let refused = |why: &'static str| {
        SysError::new(
            "prepare",
            format_args!("new process {pid}"),
            io::Error::other(why),
        )
    };
    let insn = Gadgets::find_syscall(pid, &maps)?
        .ok_or_else(|| refused("no system call instruction in it"))?;
    let taken = maps.iter().map(|v| v.range).chain(avoid.iter().copied());
    let base = gap(taken, PAGES).ok_or_else(|| refused("no address space is left for its code"))?;
    let area = Area { base, used: 0 };

    let mut remote = Remote::with_options(pid, insn, super::TRACED)?;
    if let Some(rseq) = ptrace::rseq(pid)? {
        // The kernel would write to it on every way out, into memory that is about to go.
        const UNREGISTER: u64 = 1;
        let args = [
            rseq.addr,
            rseq.size.into(),
            UNREGISTER,
            rseq.signature.into(),
            0,
            0,
        ];
        remote.call("rseq", libc::SYS_rseq, args)?;
    }
    let writable = (libc::PROT_READ | libc::PROT_WRITE) as u64;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
    let len = area.range().len();
    remote.call(
        "mmap",
        libc::SYS_mmap,
        [base, len, writable, flags as u64, u64::MAX, 0],
    )?;
    memory::write_bytes(pid, area.code(), batch_code().0)?;
    let executable = (libc::PROT_READ | libc::PROT_EXEC) as u64;
    let args = [area.code(), CODE_PAGES * PAGE_SIZE, executable, 0, 0, 0];
    remote.call("mprotect", libc::SYS_mprotect, args)?;
    drop(remote);

    // By the area's own instruction: the borrowed one may lie in the vDSO, which moves.
    let mut remote = Remote::with_options(pid, area.insn(), super::TRACED)?;
    // ksnap's own alternate signal stack, which a fork inherits.
    let disable = area.data();
    let mut stack = [0u8; 24];
    stack[8..12].copy_from_slice(&libc::SS_DISABLE.to_le_bytes());
    memory::write_bytes(pid, disable, &stack)?;
    remote.call(
        "sigaltstack",
        libc::SYS_sigaltstack,
        [disable, 0, 0, 0, 0, 0],
    )?;
    let kernel = park(&mut remote, &maps, area)?;
    Ok(Emptied { area, kernel })
}

/// Moves what the kernel provides out of the way. It cannot be mapped again by ordinary means.
fn park(remote: &mut Remote, maps: &[Vma], area: Area) -> Result<Vec<(String, PageRange)>> {
    let flags = (libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED) as u64;
    let mut at = area.park();
    let mut parked = Vec::new();
    for vma in maps {
        let Backing::Special(name) = &vma.backing else {
            continue;
        };
        // At the same address in every process, and not to be moved.
        if name == "vsyscall" {
            continue;
        }
        let len = vma.range.len();
        if at + len > area.range().end {
            return Err(SysError::new(
                "mremap",
                format_args!("[{name}]"),
                io::Error::other("what the kernel provides is larger than expected"),
            ));
        }
        remote.call(
            "mremap",
            libc::SYS_mremap,
            [vma.range.start, len, len, flags, at, 0],
        )?;
        parked.push((name.clone(), PageRange::new(at, at + len)));
        at += len;
    }
    Ok(parked)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gap_is_the_lowest_that_is_large_enough() {
        let range = |start: u64, end: u64| PageRange::new(start << 12, end << 12);
        let found = |taken: &[PageRange], pages| gap(taken.iter().copied(), pages).map(|a| a >> 12);
        assert_eq!(found(&[], 4), Some(16));
        assert_eq!(found(&[range(20, 30)], 4), Some(16));
        assert_eq!(found(&[range(19, 30)], 4), Some(30));
        assert_eq!(
            found(&[range(33, 40), range(10, 30), range(12, 20)], 4),
            Some(40)
        );
        assert_eq!(found(&[range(16, USER_END >> 12)], 1), None);
    }
}
