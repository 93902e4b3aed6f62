//! Memory of processes that are brought back: what is written before the first instruction, and what
//! comes when it is touched.

use super::{Result, SessionError};
use crate::model::{PAGE_SIZE, PageRange, PageSet, ProcessState, Vma, page_down};
use crate::restore::DESCRIPTOR;
use crate::restore::revive::Entered;
use crate::restore::revive::{NewPlan, Newborn, Origin};
use crate::store::Flat;
use crate::sys::arch::Registers;
use crate::sys::{self, Arrivals, Handed, Image, Lazy, Piece};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::AddAssign;
use std::sync::Arc;

/// Fewer pages than these are not worth waiting for one by one.
const FEW_PAGES: u64 = 2048;
/// Pages of a mapping from which it is filled as it is touched.
const LARGE: u64 = 512;
/// Bytes written in one go.
const AT_ONCE: u64 = 4 << 20;

/// Pages of shared memory that are written: by device and inode, their places in it.
pub(super) type Written = BTreeMap<(u64, u64), PageSet>;

/// Where the content of a new process's memory comes from.
pub(super) struct Memory {
    image: Image,
    /// Written before the first instruction, ascending.
    eager: Vec<Piece>,
    /// What is touched first and holds nothing: made before it could be waited for.
    blank: PageSet,
    /// What shared mappings of files hold: their content as it was.
    files: Vec<Piece>,
    /// What segments of System V shared memory hold, by their ids.
    segments: Vec<(i32, Vec<Piece>)>,
    /// What comes later, if anything does.
    pub(super) lazy: Option<Arc<Lazy>>,
}

/// Pages of a new process.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Filled {
    /// Written before its first instruction.
    pub(super) pages: u64,
    /// Come later.
    pub(super) lazy_pages: u64,
}

impl AddAssign for Filled {
    fn add_assign(&mut self, other: Self) {
        self.pages += other.pages;
        self.lazy_pages += other.lazy_pages;
    }
}

impl Memory {
    /// Decides what comes when, of an image of which `arrivals` tells what is there unless all of it is. `written` is
    /// shared memory that is written for others, or another mapping, already. `first` tells what comes before all
    /// else that nobody touches.
    ///
    /// # Errors
    /// [`SessionError::DamagedImage`] where what is written before the first instruction is not what it was.
    pub(super) fn new(
        flat: &Flat,
        arrivals: Option<Arc<Arrivals>>,
        state: &ProcessState,
        planned: &NewPlan,
        first: &dyn Fn() -> Vec<PageRange>,
        all_at_once: bool,
        written: &mut Written,
    ) -> Result<Self> {
        let image = Image::new(&flat.file, &flat.sums, arrivals.clone())?;
        // Of others only if this one comes to be.
        let mut shared = written.clone();
        let mut found = Vec::new();
        let mut eager = Vec::new();
        let mut files = Vec::new();
        let mut segments = Vec::new();
        let mut ranges = Vec::new();
        for mapping in &planned.mappings {
            if matches!(mapping.origin, Origin::Kernel(_) | Origin::Former) {
                continue;
            }
            let mut pieces = within(flat, mapping.vma.range);
            if let Origin::Shared(at, offset) = mapping.origin {
                let written = shared.entry(planned.objects[at].identity).or_default();
                pieces = once(&pieces, mapping.vma.range.start, offset, written);
            }
            let may_wait = mapping.origin == Origin::Anonymous && may_wait(&mapping.vma);
            if let Origin::Segment(id) = mapping.origin {
                segments.push((id, pieces));
            } else if mapping.vma.shared && matches!(mapping.origin, Origin::File(_)) {
                files.extend(pieces);
            } else if may_wait && pages_in(&pieces) >= LARGE {
                ranges.push(mapping.vma.range);
                found.extend(pieces);
            } else {
                eager.extend(pieces);
            }
        }
        let at_once = all_at_once || pages_in(&found) < FEW_PAGES;
        if at_once {
            eager.append(&mut found);
            ranges.clear();
        }
        // Who fills memory ends the process if the rest of the image does not come, also where it has its memory.
        let mut blank = PageSet::new();
        let lazy = if at_once && arrivals.is_none() {
            None
        } else {
            let touched = touched_first(state);
            let (now, later) = split(&found, &touched);
            let held: PageSet = found.iter().map(|piece| piece.range).collect();
            let comes_late: PageSet = ranges.iter().copied().collect();
            blank = touched.intersect(&comes_late).subtract(&held);
            eager.extend(now);
            let fail = |e| sys::SysError::new("dup", "a flat image", e);
            Some(Arc::new(Lazy {
                image: flat.file.try_clone().map_err(fail)?,
                sums: Arc::clone(&flat.sums),
                ranges,
                pieces: later,
                first: first(),
                arrivals,
                handed: Handed::default(),
            }))
        };
        eager.sort_unstable_by_key(|p| p.range.start);
        let at_once = eager.iter().chain(&files);
        let at_once = at_once.chain(segments.iter().flat_map(|(_, pieces)| pieces));
        if !at_once.into_iter().all(|piece| image.is_whole(piece)) {
            return Err(SessionError::DamagedImage);
        }
        *written = shared;
        Ok(Self {
            image,
            eager,
            blank,
            files,
            segments,
            lazy,
        })
    }

    /// Waits until all has come that is written before the first instruction.
    pub(super) fn wait_for_first(&self) -> Result<()> {
        let segments = self.segments.iter().flat_map(|(_, pieces)| pieces);
        self.wait_for(self.eager.iter().chain(&self.files).chain(segments))
    }

    fn wait_for<'a>(&self, pieces: impl IntoIterator<Item = &'a Piece>) -> Result<()> {
        match self.image.wait_for(pieces) {
            true => Ok(()),
            false => Err(SessionError::Remote(
                "memory that was on its way does not come any more".into(),
            )),
        }
    }

    /// Writes what comes first, and sees to it that the rest comes: by process `init` of its namespace, where it has one of
    /// its own. Files and segments that are mapped shared, and are not what they were, are put back only if `change_files`: others may have
    /// them as well. The segments `in_use` never are. Tells what differs, a sentence each.
    pub(super) fn fill(
        &self,
        newborn: &mut Newborn,
        init: Option<i32>,
        change_files: bool,
        in_use: &SegmentsInUse,
        notes: &mut Vec<String>,
    ) -> Result<Filled> {
        let mut written = self.write(newborn.pid(), &self.eager)?;
        let segments = self.segments.iter();
        let (used, free): (Vec<_>, Vec<_>) = segments.partition(|(id, _)| in_use.0.contains(id));
        let pieces = used.into_iter().flat_map(|(_, pieces)| pieces);
        let in_use = self.differing(newborn.pid(), pieces)?;
        if !in_use.is_empty() {
            notes.push(format!(
                "the content of segments of System V shared memory has changed since ({} pages), and stays as it is: other processes are attached to them",
                pages_in(&in_use)
            ));
        }
        let free = free.into_iter().flat_map(|(_, pieces)| pieces);
        let differing = self.differing(newborn.pid(), self.files.iter().chain(free))?;
        if !differing.is_empty() {
            let what = match change_files {
                true => "has been put back",
                false => "stays as it is: others may have it as well",
            };
            notes.push(format!(
                "the content of files and segments that it has mapped shared has changed since ({} pages), and {what}",
                pages_in(&differing)
            ));
        }
        if change_files {
            written += self.write(newborn.pid(), &differing)?;
        }
        let mut lazy_pages = 0;
        if let Some(lazy) = &self.lazy {
            for page in self.blank.iter() {
                let page = PageRange::new(page, page + PAGE_SIZE);
                sys::write_ranges(newborn.pid(), &[page], &[0; PAGE_SIZE as usize])?;
            }
            if newborn.load_lazily(lazy, init)? {
                lazy_pages = pages_in(&lazy.pieces);
            } else if lazy.arrivals.is_some() {
                return Err(SessionError::Remote(
                    "its memory cannot come behind its first instruction: userfaultfd(2) is not allowed there. Clone it without --lazy".into(),
                ));
            } else {
                if !lazy.pieces.iter().all(|piece| self.image.is_whole(piece)) {
                    return Err(SessionError::DamagedImage);
                }
                written += self.write(newborn.pid(), &lazy.pieces)?;
            }
        }
        Ok(Filled {
            pages: written,
            lazy_pages,
        })
    }

    /// Pages of these pieces whose content is not what it was.
    fn differing<'a>(
        &self,
        pid: i32,
        pieces: impl IntoIterator<Item = &'a Piece>,
    ) -> Result<Vec<Piece>> {
        let mut found = Vec::new();
        let mut buffer = Vec::new();
        for piece in pieces {
            let mut at = piece.range.start;
            while at < piece.range.end {
                let part = PageRange::new(at, piece.range.end.min(at + AT_ONCE));
                let offset = piece.offset + (at - piece.range.start);
                let then = &self.image.bytes()[offset as usize..][..part.len() as usize];
                buffer.resize(then.len(), 0);
                // Beyond the end of a file that is shorter now there is nothing to write to.
                let gone = sys::read_ranges(pid, &[part], &mut buffer)?;
                let gone = PageSet::from_pages(gone.iter().map(|fault| fault.addr).collect());
                differing_pages(part, offset, (&buffer, then), &gone, &mut found);
                at = part.end;
            }
        }
        Ok(found)
    }

    fn write(&self, pid: i32, pieces: &[Piece]) -> Result<u64> {
        let mut pages = 0;
        for piece in pieces {
            let mut at = piece.range.start;
            while at < piece.range.end {
                let end = piece.range.end.min(at + AT_ONCE);
                let from = (piece.offset + (at - piece.range.start)) as usize;
                let range = PageRange::new(at, end);
                let bytes = &self.image.bytes()[from..from + range.len() as usize];
                sys::write_ranges(pid, &[range], bytes)?;
                pages += range.pages();
                at = end;
            }
        }
        Ok(pages)
    }
}

/// Makes something of an image; where that is damaged, of another one, which is asked for once more.
pub(super) fn from_image<T>(
    image: &mut dyn FnMut() -> Result<Flat>,
    make: &mut dyn FnMut(&Flat) -> Result<T>,
) -> Result<T> {
    match make(&image()?) {
        Err(SessionError::DamagedImage) => {
            tracing::warn!("the flat image of a snapshot is damaged, and is made anew");
            make(&image()?)
        }
        made => made,
    }
}

/// Segments of System V shared memory that processes are attached to, other than those that are brought back.
pub(super) struct SegmentsInUse(BTreeSet<i32>);

impl SegmentsInUse {
    /// Those of all segments of these processes, none of which has been started.
    pub(super) fn of<'a>(
        all: impl IntoIterator<Item = &'a Memory>,
        entered: &Entered,
    ) -> Result<Self> {
        let segments = all.into_iter().flat_map(|memory| &memory.segments);
        let ids: BTreeSet<i32> = segments.map(|(id, _)| *id).collect();
        if ids.is_empty() {
            return Ok(Self(ids));
        }
        let used = |id: &i32| sys::attached_to_segment(*id) > 0;
        let used = || ids.into_iter().filter(used).collect();
        Ok(Self(entered.inside("ipc", used)?))
    }
}

/// Those of a mapping's pieces that are not written yet, which are so from here on. The mapping begins at `start` with
/// the memory's byte `offset`.
fn once(pieces: &[Piece], start: u64, offset: u64, written: &mut PageSet) -> Vec<Piece> {
    let moved = |piece: &Piece, from: u64, to: u64| {
        let PageRange { start, end } = piece.range;
        Piece {
            range: PageRange::new(start - from + to, end - from + to),
            ..*piece
        }
    };
    let in_memory: Vec<Piece> = pieces.iter().map(|p| moved(p, start, offset)).collect();
    let (_, new) = split(&in_memory, written);
    *written = written.union(&new.iter().map(|p| p.range).collect());
    new.iter().map(|p| moved(p, offset, start)).collect()
}

fn pages_in(pieces: &[Piece]) -> u64 {
    pieces.iter().map(|p| p.range.pages()).sum()
}

/// Adds the pages of a range that are not what they were, neighbours as one piece.
fn differing_pages(
    range: PageRange,
    offset: u64,
    (now, then): (&[u8], &[u8]),
    gone: &PageSet,
    found: &mut Vec<Piece>,
) {
    let page = PAGE_SIZE as usize;
    for ((addr, now), then) in range
        .iter()
        .zip(now.chunks_exact(page))
        .zip(then.chunks_exact(page))
    {
        if now == then || gone.contains(addr) {
            continue;
        }
        let offset = offset + (addr - range.start);
        match found.last_mut() {
            Some(last) if last.range.end == addr && last.offset + last.range.len() == offset => {
                last.range.end += PAGE_SIZE;
            }
            _ => found.push(Piece {
                range: PageRange::new(addr, addr + PAGE_SIZE),
                offset,
            }),
        }
    }
}

/// Nothing but the process itself needs all of it to be there.
fn may_wait(vma: &Vma) -> bool {
    !vma.flags.iter().any(|f| f == "lo" || f == "ht")
}

/// The parts of the image within a range.
fn within(flat: &Flat, range: PageRange) -> Vec<Piece> {
    let first = flat.pieces.partition_point(|p| p.range.end <= range.start);
    flat.pieces[first..]
        .iter()
        .map_while(|piece| {
            let part = piece.range.intersect(&range)?;
            Some(Piece {
                range: part,
                offset: piece.offset + (part.start - piece.range.start),
            })
        })
        .collect()
}

/// Pages that the kernel, ksnap or the first instructions touch. Before somebody fills memory, nothing else may be.
fn touched_first(state: &ProcessState) -> PageSet {
    /// Around the stack pointer, where frames are.
    const NEAR: u64 = 16 * PAGE_SIZE;
    let mut ranges = Vec::new();
    let mut add = |addr: u64, before: u64, after: u64| {
        ranges.push(PageRange::covering(
            page_down(addr.saturating_sub(before)),
            before + after,
        ));
    };
    for thread in &state.threads {
        if let Some(rseq) = thread.rseq {
            add(rseq.addr, 0, u64::from(rseq.size));
        }
        if let Some(list) = thread.robust_list {
            add(list.head, 128, 128);
        }
        if let Some(regs) = Registers::from_prstatus(&thread.gp) {
            add(regs.sp(), PAGE_SIZE, NEAR);
            add(regs.ip(), 0, 16);
            // A thread's descriptor, in which its id is looked for.
            add(regs.fs_base, PAGE_SIZE, DESCRIPTOR);
        }
    }
    PageSet::from_ranges(ranges)
}

/// What lies in a set, and what does not.
fn split(pieces: &[Piece], set: &PageSet) -> (Vec<Piece>, Vec<Piece>) {
    let whole: PageSet = pieces.iter().map(|p| p.range).collect();
    let part = |wanted: &PageSet| {
        let mut out = Vec::new();
        let mut next = 0;
        for piece in pieces {
            while next > 0 && wanted.ranges()[next - 1].end > piece.range.start {
                next -= 1;
            }
            for range in &wanted.ranges()[next..] {
                if range.start >= piece.range.end {
                    break;
                }
                next += 1;
                if let Some(range) = range.intersect(&piece.range) {
                    out.push(Piece {
                        range,
                        offset: piece.offset + (range.start - piece.range.start),
                    });
                }
            }
        }
        out
    };
    (part(&whole.intersect(set)), part(&whole.subtract(set)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const P: u64 = PAGE_SIZE;

    fn piece(start: u64, end: u64, offset: u64) -> Piece {
        Piece {
            range: PageRange::new(start * P, end * P),
            offset: offset * P,
        }
    }

    #[test]
    fn pieces_are_split_with_their_content() {
        let pieces = [piece(10, 20, 1), piece(20, 30, 50), piece(40, 41, 90)];
        let set = PageSet::from_ranges(vec![
            PageRange::new(0, 11 * P),
            PageRange::new(18 * P, 22 * P),
        ]);
        let (now, later) = split(&pieces, &set);
        assert_eq!(now, [piece(10, 11, 1), piece(18, 20, 9), piece(20, 22, 50)]);
        assert_eq!(
            later,
            [piece(11, 18, 2), piece(22, 30, 52), piece(40, 41, 90)]
        );
    }

    #[test]
    fn what_several_mappings_share_is_written_once() {
        let mut written = PageSet::new();
        let first = [piece(10, 12, 1), piece(14, 15, 3)];
        assert_eq!(once(&first, 10 * P, 2 * P, &mut written), first);
        // The same memory elsewhere, from its beginning on: pages 0 and 1 are new, 4 and 5 were not in the first image.
        let second = once(&[piece(40, 47, 20)], 40 * P, 0, &mut written);
        assert_eq!(second, [piece(40, 42, 20), piece(44, 46, 24)]);
        let all = PageSet::from_ranges(vec![PageRange::new(0, 7 * P)]);
        assert_eq!(written, all);
    }

    #[test]
    fn neighbours_that_differ_are_one_piece_and_what_is_gone_is_none() {
        let range = PageRange::new(10 * P, 15 * P);
        let then = vec![0; 5 * P as usize];
        let mut now = then.clone();
        for page in [0, 1, 3, 4] {
            now[page * P as usize + 7] = 1;
        }
        let gone = PageSet::from_ranges(vec![PageRange::new(14 * P, 15 * P)]);
        let mut found = Vec::new();
        differing_pages(range, 100 * P, (&now, &then), &gone, &mut found);
        assert_eq!(found, [piece(10, 12, 100), piece(13, 14, 103)]);
    }
}
