//! What a system call did to the mappings of its process, from its number, arguments and result.

use super::syscalls::MAP_SHADOW_STACK;
use crate::model::PageRange;
use snap_common::SystemEvent;

/// A call that changes mappings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum MappingKind {
    /// New memory; with MAP_FIXED in place of what was there.
    Mmap,
    /// Memory removed.
    Munmap,
    /// Memory moved, grown or shrunk.
    Mremap,
    /// The heap grew or shrank; what it was before is not known.
    Brk {
        /// Its end now.
        end: u64,
    },
    /// Another protection.
    Mprotect,
    /// Advice, some of which drops content: the number of `MADV_…`.
    Madvise(i32),
    /// A shared memory segment was attached; its length is not known.
    Shmat {
        /// Where it starts.
        at: u64,
    },
    /// A shared memory segment was detached; its length is not known.
    Shmdt {
        /// Where it started.
        at: u64,
    },
    /// Pages of a shared file mapping were rearranged.
    RemapFilePages,
    /// Memory for a shadow stack.
    ShadowStack,
}

/// One change to the mappings of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MappingChange {
    /// What happened.
    pub kind: MappingKind,
    /// Addresses whose mapping or content may no longer be what it was.
    pub old: Option<PageRange>,
    /// Addresses that are mapped, with new content or attributes, from now on.
    pub new: Option<PageRange>,
}

impl MappingChange {
    /// True when neither range is known: only reading the process's maps tells what changed.
    pub fn is_unbounded(&self) -> bool {
        self.old.is_none() && self.new.is_none()
    }
}

fn range(addr: u64, len: u64) -> Option<PageRange> {
    Some(PageRange::covering(addr, len)).filter(|range| !range.is_empty())
}

/// Decodes a mapping event; `None` when the call changed nothing.
///
/// A failed call may have done part of its work: advice and protection changes stop at the first
/// gap, and a fixed mapping may already have removed what was in its way.
pub fn decode(event: &SystemEvent) -> Option<MappingChange> {
    let [a0, a1, a2, a3, result] = event.args;
    // The kernel's error range (include/linux/err.h).
    let failed = result > (-4096_i64) as u64;
    let here = |kind, range| {
        Some(MappingChange {
            kind,
            old: range,
            new: range,
        })
    };
    match libc::c_long::from(event.header.nr) {
        libc::SYS_mmap => {
            let fixed = a3 & libc::MAP_FIXED as u64 != 0;
            let old = if fixed { range(a0, a1) } else { None };
            let new = if failed { None } else { range(result, a1) };
            let change = MappingChange {
                kind: MappingKind::Mmap,
                old,
                new,
            };
            (!change.is_unbounded()).then_some(change)
        }
        libc::SYS_munmap => (!failed).then_some(MappingChange {
            kind: MappingKind::Munmap,
            old: range(a0, a1),
            new: None,
        }),
        libc::SYS_mremap => mremap(event.args, failed),
        // The result is the break, moved or not; a query asks for 0.
        libc::SYS_brk => (a0 != 0 && a0 == result).then_some(MappingChange {
            kind: MappingKind::Brk { end: result },
            old: None,
            new: None,
        }),
        libc::SYS_mprotect | libc::SYS_pkey_mprotect => {
            range(a0, a1).and_then(|r| here(MappingKind::Mprotect, Some(r)))
        }
        libc::SYS_madvise => {
            range(a0, a1).and_then(|r| here(MappingKind::Madvise(a2 as i32), Some(r)))
        }
        // Its ranges are in a vector in the caller's memory.
        libc::SYS_process_madvise => here(MappingKind::Madvise(a3 as i32), None),
        libc::SYS_shmat => (!failed).then_some(MappingChange {
            kind: MappingKind::Shmat { at: result },
            old: None,
            new: None,
        }),
        libc::SYS_shmdt => (!failed).then_some(MappingChange {
            kind: MappingKind::Shmdt { at: a0 },
            old: None,
            new: None,
        }),
        libc::SYS_remap_file_pages => {
            range(a0, a1).and_then(|r| here(MappingKind::RemapFilePages, Some(r)))
        }
        MAP_SHADOW_STACK => (!failed).then_some(MappingChange {
            kind: MappingKind::ShadowStack,
            old: None,
            new: range(result, a1),
        }),
        _ => None,
    }
}

/// `mremap(old, old_len, new_len, flags, new)`: the result is where it went.
fn mremap([old, old_len, new_len, flags, result]: [u64; 5], failed: bool) -> Option<MappingChange> {
    let kind = MappingKind::Mremap;
    if !failed {
        // A length of zero makes a second mapping of shared memory, and leaves the first.
        return Some(MappingChange {
            kind,
            old: range(old, old_len),
            new: range(result, new_len),
        });
    }
    // The new place, which may have been cleared already, is in an argument not recorded.
    let fixed = flags & libc::MREMAP_FIXED as u64 != 0;
    fixed.then_some(MappingChange {
        kind,
        old: None,
        new: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use snap_common::{EventHeader, EventKind};

    const ENOMEM: u64 = -12_i64 as u64;

    fn change(nr: libc::c_long, args: [u64; 5]) -> Option<MappingChange> {
        let header = EventHeader {
            kind: EventKind::Mapping as u16,
            flags: 0,
            tgid: 1,
            tid: 1,
            nr: nr as u32,
            time_ns: 0,
        };
        decode(&SystemEvent { header, args })
    }

    fn pages(start: u64, end: u64) -> Option<PageRange> {
        Some(PageRange::new(start, end))
    }

    #[test]
    fn mmap_gives_the_place_it_got_and_a_fixed_one_also_what_it_covered() {
        let anywhere = change(libc::SYS_mmap, [0, 100, 3, 0x22, 0x7000]).unwrap();
        assert_eq!((anywhere.old, anywhere.new), (None, pages(0x7000, 0x8000)));
        let fixed = change(libc::SYS_mmap, [0x7000, 0x2000, 3, 0x32, 0x7000]).unwrap();
        assert_eq!(
            (fixed.old, fixed.new),
            (pages(0x7000, 0x9000), pages(0x7000, 0x9000))
        );
    }

    #[test]
    fn a_failed_mmap_is_nothing_unless_it_was_fixed() {
        assert_eq!(change(libc::SYS_mmap, [0, 100, 3, 0x22, ENOMEM]), None);
        let fixed = change(libc::SYS_mmap, [0x7000, 0x1000, 3, 0x32, ENOMEM]).unwrap();
        assert_eq!((fixed.old, fixed.new), (pages(0x7000, 0x8000), None));
    }

    #[test]
    fn munmap_rounds_up_and_counts_only_when_it_worked() {
        let gone = change(libc::SYS_munmap, [0x4000, 0x1001, 0, 0, 0]).unwrap();
        assert_eq!((gone.old, gone.new), (pages(0x4000, 0x6000), None));
        assert_eq!(
            change(libc::SYS_munmap, [0x4000, 0x1001, 0, 0, ENOMEM]),
            None
        );
    }

    #[test]
    fn mremap_gives_both_places() {
        let moved = change(libc::SYS_mremap, [0x4000, 0x1000, 0x3000, 1, 0x9000]).unwrap();
        assert_eq!(
            (moved.old, moved.new),
            (pages(0x4000, 0x5000), pages(0x9000, 0xc000))
        );
        let twin = change(libc::SYS_mremap, [0x4000, 0, 0x3000, 1, 0x9000]).unwrap();
        assert_eq!((twin.old, twin.new), (None, pages(0x9000, 0xc000)));
        assert_eq!(
            change(libc::SYS_mremap, [0x4000, 0x1000, 0x3000, 1, ENOMEM]),
            None
        );
        assert!(
            change(libc::SYS_mremap, [0x4000, 0x1000, 0x3000, 3, ENOMEM])
                .unwrap()
                .is_unbounded()
        );
    }

    #[test]
    fn brk_counts_when_it_moved_and_not_when_it_asked_or_was_refused() {
        let grown = change(libc::SYS_brk, [0x9000, 0, 0, 0, 0x9000]).unwrap();
        assert_eq!(grown.kind, MappingKind::Brk { end: 0x9000 });
        assert!(grown.is_unbounded());
        assert_eq!(change(libc::SYS_brk, [0, 0, 0, 0, 0x9000]), None);
        assert_eq!(change(libc::SYS_brk, [0xa000, 0, 0, 0, 0x9000]), None);
    }

    #[test]
    fn advice_and_protection_count_even_when_they_failed_half_way() {
        let dropped = change(libc::SYS_madvise, [0x4000, 0x2000, 4, 0, ENOMEM]).unwrap();
        assert_eq!(dropped.kind, MappingKind::Madvise(libc::MADV_DONTNEED));
        assert_eq!(
            (dropped.old, dropped.new),
            (pages(0x4000, 0x6000), pages(0x4000, 0x6000))
        );
        let sealed = change(libc::SYS_mprotect, [0x4000, 0x2000, 1, 0, ENOMEM]).unwrap();
        assert_eq!(sealed.old, pages(0x4000, 0x6000));
        let vector = change(libc::SYS_process_madvise, [3, 0x1234, 1, 4, 0x1000]).unwrap();
        assert!(vector.is_unbounded());
    }

    #[test]
    fn shared_memory_segments_tell_where_but_not_how_long() {
        let on = change(libc::SYS_shmat, [5, 0, 0, 0, 0x7000]).unwrap();
        assert_eq!(on.kind, MappingKind::Shmat { at: 0x7000 });
        let off = change(libc::SYS_shmdt, [0x7000, 0, 0, 0, 0]).unwrap();
        assert_eq!(off.kind, MappingKind::Shmdt { at: 0x7000 });
        assert!(on.is_unbounded() && off.is_unbounded());
        assert_eq!(change(libc::SYS_shmat, [5, 0, 0, 0, ENOMEM]), None);
    }

    #[test]
    fn a_length_that_wraps_around_is_cut_at_the_top() {
        let wild = change(libc::SYS_madvise, [0x4000, u64::MAX, 4, 0, ENOMEM]).unwrap();
        assert_eq!(wild.old.unwrap().start, 0x4000);
    }
}
