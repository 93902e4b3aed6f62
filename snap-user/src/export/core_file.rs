//! An ELF core file of a snapshot, written as a stream: only headers, notes and one piece of memory at a time
//! are held.

use super::error::ExportError;
use super::notes;
use super::segments::{Layout, Segment};
use super::sparse::Sparse;
use crate::image::PageSource;
use crate::model::{PAGE_SIZE, PageRange, PageTable, ProcessState};
use object::elf;
use object::endian::LittleEndian;
use object::write::elf::{Encoder, FileHeader, FileHeaderLayout, ProgramHeader};
use std::fs::File;

/// Pages asked for at a time: enough for reads in large pieces, 128 KiB of addresses.
const BATCH: usize = 16 << 10;

/// A core file that was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Core {
    /// Memory segments.
    pub segments: u64,
    /// Pages in it: those of the snapshot, and first ones of mapped ELF files.
    pub pages: u64,
    /// Length of the file.
    pub bytes: u64,
    /// Bytes that were written; the rest are holes, and read as zeroes.
    pub written: u64,
}

/// Writes a process as a core file into an empty regular file. `machine` is ELF's `e_machine`, `table` has the
/// pages that `source` can give.
///
/// # Errors
/// When pages cannot be read or the file cannot be written, and when the process has no thread.
pub fn write_core<S: PageSource, T: Copy + PartialEq>(
    state: &ProcessState,
    machine: u16,
    table: &PageTable<T>,
    source: &S,
    file: &File,
) -> Result<Core, ExportError<S::Error>> {
    let format = |why: String| ExportError::Format { why };
    if state.threads.is_empty() {
        return Err(format("it has no thread".into()));
    }
    let layout = Layout::new(&state.vmas, table);
    let notes = notes::notes(state, machine);
    let (head, placed, len) = headers(&layout.segments, &notes, machine).map_err(format)?;
    let mut out = Sparse::new(file);
    let write = ExportError::write;
    out.bytes(0, &head).map_err(write("write"))?;
    let mut pages = layout.extra.len() as u64;
    for (segment, offset) in &placed {
        let place = |addr: u64| offset + (addr - segment.range.start);
        let extra = layout.extra.range(segment.range.start..segment.range.end);
        for (addr, page) in extra {
            out.page(place(*addr), page).map_err(write("write"))?;
        }
        pages += copy(segment.range, table, source, &mut |addr, page| {
            out.page(place(addr), page)
        })?;
    }
    let written = out.finish(len).map_err(write("write"))?;
    Ok(Core {
        segments: layout.segments.len() as u64,
        pages,
        bytes: len,
        written,
    })
}

/// Hands the pages of a range over in pieces; says how many there were.
fn copy<S: PageSource, T: Copy + PartialEq>(
    range: PageRange,
    table: &PageTable<T>,
    source: &S,
    each: &mut dyn FnMut(u64, &crate::model::Page) -> std::io::Result<()>,
) -> Result<u64, ExportError<S::Error>> {
    let mut addrs = table.range(range).map(|(addr, _)| addr).peekable();
    let mut pages = 0;
    let mut failed = None;
    while addrs.peek().is_some() {
        let piece: Vec<u64> = addrs.by_ref().take(BATCH).collect();
        source
            .read_pages(&piece, &mut |addr, page| {
                if failed.is_none() {
                    failed = each(addr, page).err();
                    pages += 1;
                }
            })
            .map_err(ExportError::Pages)?;
        if let Some(error) = failed {
            return Err(ExportError::write("write")(error));
        }
    }
    Ok(pages)
}

type Placed<'a> = Vec<(&'a Segment, u64)>;

/// Everything before the memory; the stored segments with their places; the length of the whole file.
fn headers<'a>(
    segments: &'a [Segment],
    notes: &[u8],
    machine: u16,
) -> Result<(Vec<u8>, Placed<'a>, u64), String> {
    let encoder = Encoder::new(LittleEndian, true, elf::Machine(machine));
    let count = u32::try_from(segments.len() + 1).map_err(|_| "too many mappings".to_owned())?;
    // A count that does not fit the file header is in the first section header instead.
    let sections = u32::from(count >= elf::PN_XNUM.into());
    let programs = encoder.file_header_size();
    let sections_at = programs + u64::from(count) * encoder.program_header_size();
    let notes_at = sections_at + u64::from(sections) * encoder.section_header_size();
    let memory_at = (notes_at + notes.len() as u64).next_multiple_of(PAGE_SIZE);
    let layout = FileHeaderLayout {
        e_phoff: programs,
        segment_num: count,
        e_shoff: if sections == 0 { 0 } else { sections_at },
        section_num: sections,
        shstrtab_index: 0,
    };
    let mut head = Vec::with_capacity(memory_at as usize);
    encoder
        .file_header(
            &mut head,
            &FileHeader {
                e_type: elf::ET_CORE,
                e_machine: elf::Machine(machine),
                ..FileHeader::default()
            },
            &layout,
        )
        .map_err(|error| error.to_string())?;
    encoder.program_header(
        &mut head,
        &ProgramHeader {
            p_type: elf::PT_NOTE,
            p_flags: elf::ProgramFlags(0),
            p_offset: notes_at,
            p_vaddr: 0,
            p_paddr: 0,
            p_filesz: notes.len() as u64,
            p_memsz: 0,
            p_align: 4,
        },
    );
    let mut at = memory_at;
    let mut placed = Vec::new();
    for segment in segments {
        let stored = if segment.stored {
            segment.range.len()
        } else {
            0
        };
        encoder.program_header(
            &mut head,
            &ProgramHeader {
                p_type: elf::PT_LOAD,
                p_flags: elf::ProgramFlags(segment.flags),
                p_offset: at,
                p_vaddr: segment.range.start,
                p_paddr: 0,
                p_filesz: stored,
                p_memsz: segment.range.len(),
                p_align: PAGE_SIZE,
            },
        );
        if segment.stored {
            placed.push((segment, at));
        }
        at += stored;
    }
    if sections > 0 {
        encoder.null_section_header(&mut head, &layout);
    }
    head.extend_from_slice(notes);
    Ok((head, placed, at))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Backing, Page, Protection, ThreadState, Vma};
    use object::read::elf::{FileHeader as _, ProgramHeader as _};
    use std::convert::Infallible;
    use std::io::Read;

    const START: u64 = 0x10_0000_0000;

    /// Each page holds its own number.
    struct Numbered<'a>(&'a PageTable<()>);

    fn numbered(addr: u64) -> Page {
        let mut page = [0; PAGE_SIZE as usize];
        page[4000..4008].copy_from_slice(&addr.to_le_bytes());
        page
    }

    impl PageSource for Numbered<'_> {
        type Error = Infallible;

        fn read_page(&self, addr: u64, page: &mut Page) -> Result<bool, Infallible> {
            *page = numbered(addr);
            Ok(self.0.get(addr).is_some())
        }

        fn read_pages(
            &self,
            addrs: &[u64],
            each: &mut dyn FnMut(u64, &Page),
        ) -> Result<(), Infallible> {
            // In whatever order.
            addrs
                .iter()
                .rev()
                .for_each(|addr| each(*addr, &numbered(*addr)));
            Ok(())
        }
    }

    /// One-page mappings, each second one with content.
    fn state(mappings: u64) -> (ProcessState, PageTable<()>) {
        let mut table = PageTable::new();
        let vma = |n: u64| Vma {
            range: PageRange::covering(START + 2 * n * PAGE_SIZE, PAGE_SIZE),
            prot: Protection::default(),
            shared: false,
            backing: Backing::Anonymous { name: None },
            flags: Vec::new(),
            build_id: None,
        };
        let vmas: Vec<Vma> = (0..mappings).map(vma).collect();
        for vma in vmas.iter().step_by(2) {
            table.insert(vma.range.start, ());
        }
        let state = ProcessState {
            vmas,
            threads: vec![ThreadState {
                gp: vec![0; 216],
                ..ThreadState::default()
            }],
            ..ProcessState::default()
        };
        (state, table)
    }

    fn read_back(mappings: u64) {
        let (state, table) = state(mappings);
        let mut file = tempfile::tempfile().expect("a temporary file");
        let core = write_core(&state, 62, &table, &Numbered(&table), &file).expect("written");
        assert_eq!(
            (core.segments, core.pages),
            (mappings, mappings.div_ceil(2))
        );
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).expect("read");
        assert_eq!(bytes.len() as u64, core.bytes);
        let header = elf::FileHeader64::<LittleEndian>::parse(&*bytes).expect("an ELF header");
        assert_eq!(header.e_type(LittleEndian), elf::ET_CORE);
        let programs = header
            .program_headers(LittleEndian, &*bytes)
            .expect("program headers");
        assert_eq!(programs.len() as u64, mappings + 1);
        assert_eq!(programs[0].p_type(LittleEndian), elf::PT_NOTE);
        for (n, program) in (0u64..).zip(&programs[1..]) {
            let addr = START + 2 * n * PAGE_SIZE;
            assert_eq!(program.p_vaddr(LittleEndian), addr);
            assert_eq!(program.p_memsz(LittleEndian), PAGE_SIZE);
            let data = program.data(LittleEndian, &*bytes).expect("content");
            match n % 2 {
                0 => assert!(data == numbered(addr)),
                _ => assert!(data.is_empty()),
            }
        }
    }

    #[test]
    fn segments_beyond_what_the_file_header_can_count_read_back() {
        read_back(3);
        // The largest number that fits the file header, the first that does not, and many more.
        read_back(65_533);
        read_back(65_534);
        read_back(70_000);
    }

    #[test]
    fn a_process_without_threads_is_refused() {
        let (mut state, table) = state(1);
        state.threads.clear();
        let file = tempfile::tempfile().expect("a temporary file");
        let refused = write_core(&state, 62, &table, &Numbered(&table), &file);
        assert!(matches!(refused, Err(ExportError::Format { .. })));
    }
}
