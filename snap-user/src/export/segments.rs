//! Which memory goes into a core file, and which is only named.

use super::mapped;
use crate::model::{PAGE_SIZE, Page, PageRange, PageTable, Vma};
use std::collections::BTreeMap;

/// Holes of memory that reads as zeroes become part of the segment around them up to this length; longer ones
/// end it, so that a sparse reservation of terabytes does not become a file of that length.
const LONGEST_HOLE: u64 = 2 << 20;

/// A piece of a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    /// Addresses.
    pub(super) range: PageRange,
    /// Its bytes are in the core. Otherwise debuggers take them from the mapped file, or read zeroes.
    pub(super) stored: bool,
    /// `PF_R`, `PF_W`, `PF_X`.
    pub(super) flags: u32,
}

/// All memory of a process, ascending.
#[derive(Debug, Default)]
pub(super) struct Layout {
    pub(super) segments: Vec<Segment>,
    /// Pages that are in no snapshot: first ones of ELF files.
    pub(super) extra: BTreeMap<u64, Page>,
}

impl Layout {
    /// Lays out the mappings of a snapshot with these pages.
    pub(super) fn new<T: Copy + PartialEq>(vmas: &[Vma], table: &PageTable<T>) -> Self {
        let mut layout = Self::default();
        for vma in vmas {
            layout.add(vma, table);
        }
        layout
    }

    fn add<T: Copy + PartialEq>(&mut self, vma: &Vma, table: &PageTable<T>) {
        // The program asked for it to be left out (MADV_DONTDUMP in madvise(2)).
        let unwanted = vma.flags.iter().any(|flag| flag == "dd");
        let mut runs = match unwanted {
            true => Vec::new(),
            false => runs(vma, table),
        };
        let starts_late = runs.first().is_none_or(|run| run.start != vma.range.start);
        if starts_late
            && !unwanted
            && !vma.range.is_empty()
            && let Some(page) = mapped::elf_header_page(vma)
        {
            let start = vma.range.start;
            self.extra.insert(start, page);
            runs.insert(0, PageRange::new(start, start + PAGE_SIZE));
        }
        let flags = [(vma.prot.read, 4), (vma.prot.write, 2), (vma.prot.exec, 1)];
        let flags = flags
            .iter()
            .filter(|(set, _)| *set)
            .map(|(_, bit)| bit)
            .sum();
        let mut push = |start, end, stored| {
            if start < end {
                self.segments.push(Segment {
                    range: PageRange { start, end },
                    stored,
                    flags,
                });
            }
        };
        let mut at = vma.range.start;
        for run in runs {
            push(at, run.start, false);
            push(run.start, run.end, true);
            at = run.end;
        }
        push(at, vma.range.end, false);
    }
}

/// The parts of a mapping that the snapshot has, ascending.
fn runs<T: Copy + PartialEq>(vma: &Vma, table: &PageTable<T>) -> Vec<PageRange> {
    let hole = match vma.is_private_anonymous() || vma.is_shared_memory() {
        true => LONGEST_HOLE,
        // A page that is not there has the file's content, not zeroes.
        false => 0,
    };
    let mut runs: Vec<PageRange> = Vec::new();
    for (page, _) in table.range(vma.range) {
        match runs.last_mut() {
            Some(run) if page - run.end <= hole => run.end = page + PAGE_SIZE,
            _ => runs.push(PageRange::new(page, page + PAGE_SIZE)),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Backing, Protection};

    const START: u64 = 0x40_0000_0000;

    fn vma(pages: u64, backing: Backing) -> Vma {
        Vma {
            range: PageRange::new(START, START + pages * PAGE_SIZE),
            prot: Protection {
                read: true,
                write: true,
                exec: false,
            },
            shared: false,
            backing,
            flags: Vec::new(),
            build_id: None,
        }
    }

    fn file() -> Backing {
        Backing::File {
            path: "/no/such/file".into(),
            deleted: false,
            dev: (8, 1),
            inode: 5,
            offset: 0,
        }
    }

    /// Page ranges from the mapping's start, and whether they are stored.
    fn laid_out(vma: &Vma, pages: &[u64]) -> Vec<(u64, u64, bool)> {
        let mut table = PageTable::new();
        for page in pages {
            table.insert(START + page * PAGE_SIZE, ());
        }
        let page = |addr| (addr - START) / PAGE_SIZE;
        Layout::new(std::slice::from_ref(vma), &table)
            .segments
            .iter()
            .map(|s| (page(s.range.start), page(s.range.end), s.stored))
            .collect()
    }

    #[test]
    fn short_holes_of_anonymous_memory_are_stored_and_long_ones_are_not() {
        let anonymous = vma(10_000, Backing::Anonymous { name: None });
        assert_eq!(
            laid_out(&anonymous, &[5, 6, 100, 5000]),
            [
                (0, 5, false),
                (5, 101, true),
                (101, 5000, false),
                (5000, 5001, true),
                (5001, 10_000, false),
            ]
        );
        assert_eq!(laid_out(&anonymous, &[]), [(0, 10_000, false)]);
    }

    #[test]
    fn missing_pages_of_a_file_mapping_are_left_to_the_file() {
        assert_eq!(
            laid_out(&vma(8, file()), &[0, 1, 3]),
            [(0, 2, true), (2, 3, false), (3, 4, true), (4, 8, false)]
        );
    }

    #[test]
    fn what_the_program_wants_left_out_is_only_named() {
        let mut secret = vma(4, Backing::Heap);
        secret.flags = vec!["rd".into(), "dd".into()];
        assert_eq!(laid_out(&secret, &[0, 1]), [(0, 4, false)]);
    }

    #[test]
    fn flags_are_those_of_program_headers() {
        let layout = Layout::new(&[vma(1, Backing::Heap)], &PageTable::<()>::new());
        assert_eq!(layout.segments[0].flags, 6);
    }
}
