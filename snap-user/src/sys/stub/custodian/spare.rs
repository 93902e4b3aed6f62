//! Memory of ksnap that its child has a copy of and no use for.

use crate::model::{Backing, PAGE_SIZE, PageRange};
use crate::sys::{Result, ScratchMap, proc};
use std::os::fd::RawFd;

/// What the child knows: the descriptors that are its own, and behind them the memory of ksnap that it has no use for.
/// In a mapping of its own, since that memory is where everything else lies.
pub(super) struct Instructions {
    map: ScratchMap,
    descriptors: usize,
}

/// Smaller mappings stay.
const WORTH_DROPPING: u64 = 1 << 20;

impl Instructions {
    pub(super) fn new(descriptors: &[RawFd]) -> Result<Self> {
        /// Mappings that a process may have between two looks.
        const MORE: usize = 64;
        let maps = proc::maps(std::process::id() as i32)?;
        let words = words_of(descriptors.len()) + 2 * (maps.len() + MORE) + 1;
        let mut map = ScratchMap::new((words as u64 * 8).div_ceil(PAGE_SIZE))?;
        let own = map.range();
        let here = 0u8;
        // SAFETY: gives the address of this thread's errno.
        let errno = unsafe { libc::__errno_location() } as u64;
        // The child goes on on this thread's stack, and with this thread's variables.
        let needed = [&raw const here as u64, errno, own.start];
        let spare = maps.iter().filter(|vma| {
            let range = vma.range;
            let plain = matches!(&vma.backing, Backing::Anonymous { .. } | Backing::Heap);
            plain
                && !vma.shared
                && vma.prot.write
                && range.len() >= WORTH_DROPPING
                && !needed.iter().any(|addr| range.contains(*addr))
        });
        let spare: Vec<PageRange> = spare.map(|vma| vma.range).collect();
        let all = map.words();
        for (at, fd) in descriptors.iter().enumerate() {
            all[at / 2] |= u64::from(*fd as u32) << (at % 2 * 32);
        }
        let mut at = words_of(descriptors.len());
        all[at] = spare.len() as u64;
        for range in spare {
            all[at + 1] = range.start;
            all[at + 2] = range.len();
            at += 2;
        }
        Ok(Self {
            map,
            descriptors: descriptors.len(),
        })
    }

    pub(super) fn descriptors(&self) -> &[RawFd] {
        let start = self.map.range().start as *const RawFd;
        // SAFETY: as many were written there, in pairs to a word, the first in its lower half (little-endian, as the
        // architectures that ksnap runs on are); the mapping lives as long as this value.
        unsafe { std::slice::from_raw_parts(start, self.descriptors) }
    }
}

/// Words that so many descriptors take.
fn words_of(descriptors: usize) -> usize {
    descriptors.div_ceil(2)
}

/// Gives up the memory that stands behind `descriptors` in the [`Instructions`] of this child.
///
/// # Safety
/// They are those of [`Instructions::descriptors`], in a child that uses nothing but its stack from here on.
pub(super) unsafe fn drop_memory(descriptors: &[RawFd]) {
    // SAFETY: the words lie behind the descriptors in the same mapping; the ranges are private mappings of ksnap that
    // this child has copies of, and uses nothing of.
    unsafe {
        let words = descriptors.as_ptr().cast::<u64>();
        let words = words.add(words_of(descriptors.len()));
        for n in 0..*words as usize {
            let (start, len) = (*words.add(2 * n + 1), *words.add(2 * n + 2));
            libc::madvise(
                start as *mut libc::c_void,
                len as usize,
                libc::MADV_DONTNEED,
            );
        }
    }
}
