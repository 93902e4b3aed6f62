//! Which pages are there, and which were written: `PAGEMAP_SCAN` (Linux 6.7) and the entries of
//! `/proc/PID/pagemap` (Documentation/admin-guide/mm/pagemap.rst).

use super::{Result, SysError};
use crate::model::{PAGE_SIZE, PageRange};
use rustix::fs::{FlockOperation, flock};
use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

/// What is known of each page of a range.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PageInfo {
    /// In memory.
    pub present: bool,
    /// In swap.
    pub swapped: bool,
    /// Page cache or shared memory, not the process's own copy.
    pub file: bool,
    /// The kernel's page of zeroes.
    pub zero: bool,
    /// Written since it was last protected; always set where nothing is protected.
    pub written: bool,
    /// In swap, or not there at all: the kernel shows both alike, and does not show us which.
    pub ambiguous: bool,
    /// The page of zeroes, or one that others have mapped too: entries show both alike. Only they set it.
    pub maybe_zero: bool,
    /// Written since soft-dirty was last cleared; never set on kernels without soft-dirty.
    pub soft_dirty: bool,
}

impl PageInfo {
    /// The page has content of its own: not a hole, not a clean file page, not the page of zeroes.
    pub fn is_own(&self) -> bool {
        (self.present && !self.file && !self.zero) || self.swapped
    }
}

/// Ranges with the same info, ascending.
pub type ScanResult = Vec<(PageRange, PageInfo)>;

const PAGE_IS_WRITTEN: u64 = 1 << 1;
const PAGE_IS_FILE: u64 = 1 << 2;
const PAGE_IS_PRESENT: u64 = 1 << 3;
const PAGE_IS_SWAPPED: u64 = 1 << 4;
const PAGE_IS_PFNZERO: u64 = 1 << 5;
const PAGE_IS_SOFT_DIRTY: u64 = 1 << 7;
const PAGE_IS_GUARD: u64 = 1 << 8;
const PM_SCAN_WP_MATCHING: u64 = 1;

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct PageRegion {
    start: u64,
    end: u64,
    categories: u64,
}

#[repr(C)]
struct PmScanArg {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

nix::ioctl_readwrite!(pagemap_scan, b'f', 16, PmScanArg);

const REGIONS: usize = 32 * 1024;

/// What kind of pages may be in a range. For pages of files, the kernel has to look at the page
/// itself, a cache miss each; page tables alone tell the rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MayHold {
    /// Private anonymous mappings only: no page is of a file.
    Anonymous,
    /// Anything.
    Files,
}

/// A process's page map.
pub struct Pagemap {
    file: File,
    pid: i32,
    regions: Vec<PageRegion>,
    /// Some swap space is in use, so that pages may be in it.
    swap: bool,
}

/// Whether there is swap space (`proc_swaps(5)`: a line of headings, then one for each).
fn has_swap() -> bool {
    std::fs::read_to_string("/proc/swaps").map_or(true, |text| text.lines().count() > 1)
}

/// Swap type of a mark that stands for a protected page without content (`SWP_PTE_MARKER` in
/// include/linux/swap.h: the last of the 32 types).
const MARKER: u64 = 31;

impl Pagemap {
    /// Opens the page map of a process.
    pub fn open(pid: i32) -> Result<Self> {
        let path = format!("/proc/{pid}/pagemap");
        let file = File::open(&path).map_err(|e| SysError::new("open", path, e))?;
        Ok(Self {
            file,
            pid,
            regions: Vec::new(),
            swap: has_swap(),
        })
    }

    /// The same, to look with from another thread.
    pub fn try_clone(&self) -> Result<Self> {
        let what = || format!("page map of process {}", self.pid);
        let file = self.file.try_clone();
        Ok(Self {
            file: file.map_err(|e| SysError::new("duplicate", what(), e))?,
            regions: Vec::new(),
            ..*self
        })
    }

    /// Whether there is swap space may have changed.
    pub fn look_for_swap(&mut self) {
        self.swap = has_swap();
    }

    /// What was found then.
    pub fn may_swap(&self) -> bool {
        self.swap
    }

    /// The same, where another one has looked.
    pub fn set_may_swap(&mut self, may_swap: bool) {
        self.swap = may_swap;
    }

    /// The kernel has `PAGEMAP_SCAN`.
    pub fn can_scan(&mut self) -> bool {
        self.scan(PageRange::new(0, 0), MayHold::Anonymous).is_ok()
    }

    /// Every page of `range` that is in memory or swapped, by `PAGEMAP_SCAN`.
    pub fn scan(&mut self, range: PageRange, holds: MayHold) -> Result<ScanResult> {
        self.run(range, holds, 0, 0, PAGE_IS_PRESENT | PAGE_IS_SWAPPED)
    }

    /// Every page of `range` that is there and was written since it was last protected; protects those
    /// again, each atomically with being reported.
    ///
    /// Holes stay as they are: protecting one takes a mark in a page table of its own, which costs the process
    /// 2 MiB for each GiB of address space that it only reserves. A page that comes to be in a hole is not
    /// protected, so it counts as written.
    pub fn scan_and_protect(&mut self, range: PageRange, holds: MayHold) -> Result<ScanResult> {
        let there = PAGE_IS_PRESENT | PAGE_IS_SWAPPED;
        self.run(range, holds, PM_SCAN_WP_MATCHING, PAGE_IS_WRITTEN, there)
    }

    fn run(
        &mut self,
        range: PageRange,
        holds: MayHold,
        flags: u64,
        all_of: u64,
        any_of: u64,
    ) -> Result<ScanResult> {
        let files = match holds {
            MayHold::Anonymous => 0,
            MayHold::Files => PAGE_IS_FILE,
        };
        let wanted = files
            | PAGE_IS_WRITTEN
            | PAGE_IS_PRESENT
            | PAGE_IS_SWAPPED
            | PAGE_IS_PFNZERO
            | PAGE_IS_SOFT_DIRTY;
        let mut found = Vec::new();
        self.walk(range, [flags, all_of, any_of, wanted], |r| {
            let has = |bit| r.categories & bit != 0;
            let info = PageInfo {
                present: has(PAGE_IS_PRESENT),
                swapped: has(PAGE_IS_SWAPPED),
                ambiguous: false,
                maybe_zero: false,
                file: has(PAGE_IS_FILE),
                zero: has(PAGE_IS_PFNZERO),
                written: has(PAGE_IS_WRITTEN),
                soft_dirty: has(PAGE_IS_SOFT_DIRTY),
            };
            found.push((
                PageRange {
                    start: r.start,
                    end: r.end,
                },
                info,
            ));
        })?;
        self.without_marks(found)
    }

    /// Guard pages (`MADV_GUARD_INSTALL`) of `range`. Linux 6.15; before, no error but EINVAL.
    pub fn guards(&mut self, range: PageRange) -> Result<Vec<PageRange>> {
        let mut found: Vec<PageRange> = Vec::new();
        self.walk(range, [0, 0, PAGE_IS_GUARD, PAGE_IS_GUARD], |r| {
            found.push(PageRange {
                start: r.start,
                end: r.end,
            });
        })?;
        Ok(found)
    }

    /// Hands over regions of pages: flags of the scan, categories of which a page has all, any, and those reported.
    fn walk(
        &mut self,
        range: PageRange,
        [flags, all_of, any_of, reported]: [u64; 4],
        mut found: impl FnMut(&PageRegion),
    ) -> Result<()> {
        self.regions.resize(REGIONS, PageRegion::default());
        // The kernel takes memory by this number, whatever it finds.
        let most = (range.len() / PAGE_SIZE + 1).min(REGIONS as u64);
        let mut start = range.start;
        loop {
            let mut arg = PmScanArg {
                size: size_of::<PmScanArg>() as u64,
                flags,
                start,
                end: range.end,
                walk_end: 0,
                vec: self.regions.as_mut_ptr() as u64,
                vec_len: most,
                max_pages: 0,
                category_inverted: 0,
                category_mask: all_of,
                category_anyof_mask: any_of,
                return_mask: reported,
            };
            // SAFETY: `arg` has the kernel's layout and size, and its vector is `regions`, which
            // lives across the call and has `vec_len` entries or more.
            let filled = unsafe { pagemap_scan(self.file.as_raw_fd(), &mut arg) }.map_err(|e| {
                SysError::new("PAGEMAP_SCAN", format_args!("process {}", self.pid), e)
            })?;
            self.regions[..filled as usize].iter().for_each(&mut found);
            // The walk stops early when the vector is full, and says where.
            if arg.walk_end >= range.end || arg.walk_end <= start {
                return Ok(());
            }
            start = arg.walk_end;
        }
    }

    /// Write-protecting a page that is not there leaves a mark in its place, which scans report as
    /// swapped. Takes marks out.
    fn without_marks(&self, found: ScanResult) -> Result<ScanResult> {
        if !found.iter().any(|(_, info)| info.swapped) {
            return Ok(found);
        }
        let mut sorted = Vec::with_capacity(found.len());
        for (range, info) in found {
            if !info.swapped {
                sorted.push((range, info));
            } else if self.swap {
                // The entries tell, to those who may see them.
                let entries = self.read_entries(range)?;
                sorted.extend(entries.into_iter().map(|(range, entry)| {
                    (
                        range,
                        PageInfo {
                            ambiguous: entry.ambiguous,
                            ..info
                        },
                    )
                }));
            }
        }
        Ok(sorted)
    }

    /// Every page of `range` that is in memory or swapped, from the map's entries: for kernels
    /// without `PAGEMAP_SCAN`. They do not tell the page of zeroes apart from one that others have mapped too.
    pub fn read_entries(&self, range: PageRange) -> Result<ScanResult> {
        const CHUNK: usize = 8192;
        let mut found: ScanResult = Vec::new();
        let mut bytes = vec![0u8; CHUNK * 8];
        let mut addr = range.start;
        while addr < range.end {
            let pages = ((range.end - addr) / PAGE_SIZE).min(CHUNK as u64) as usize;
            let part = &mut bytes[..pages * 8];
            self.file
                .read_exact_at(part, addr / PAGE_SIZE * 8)
                .map_err(|e| {
                    SysError::new("read", format_args!("page map of process {}", self.pid), e)
                })?;
            for entry in part
                .as_chunks::<8>()
                .0
                .iter()
                .map(|b| u64::from_le_bytes(*b))
            {
                let has = |bit: u32| entry >> bit & 1 != 0;
                // Bits 0-4 and 5-54: type and offset in swap, zero for those who may not see them.
                let (kind, place) = (entry & 0x1f, entry & ((1 << 55) - 1));
                let info = PageInfo {
                    present: has(63),
                    swapped: has(62) && self.swap && kind != MARKER,
                    ambiguous: has(62) && self.swap && place == 0,
                    file: has(61),
                    zero: false,
                    // 56: mapped once. The page of zeroes is not counted.
                    maybe_zero: has(63) && !has(61) && !has(56),
                    written: !has(57),
                    soft_dirty: has(55),
                };
                let page = PageRange {
                    start: addr,
                    end: addr + PAGE_SIZE,
                };
                addr += PAGE_SIZE;
                if !info.present && !info.swapped {
                    continue;
                }
                match found.last_mut() {
                    Some((last, same)) if last.end == page.start && *same == info => {
                        last.end = page.end;
                    }
                    _ => found.push((page, info)),
                }
            }
        }
        Ok(found)
    }
}

/// The soft-dirty bits of a process: one record, which whoever clears it takes from everybody else.
pub struct SoftDirtyBits {
    file: File,
    pid: i32,
}

impl SoftDirtyBits {
    /// Takes them for this ksnap alone, among those that see the same /proc. `None` when another one has them.
    pub fn take(pid: i32) -> Result<Option<Self>> {
        let path = format!("/proc/{pid}/clear_refs");
        let opened = File::options().write(true).open(&path);
        let file = opened.map_err(|e| SysError::new("open", &path, e))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Self { file, pid })),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(e) => Err(SysError::new("flock", path, e)),
        }
    }

    /// Another one may take them.
    pub fn let_go(&self) {
        let _ = flock(&self.file, FlockOperation::Unlock);
    }

    /// As [`clear_soft_dirty`].
    pub fn clear(&self) -> Result<()> {
        let written = (&self.file).write_all(b"4");
        written
            .map_err(|e| SysError::new("write", format_args!("/proc/{}/clear_refs", self.pid), e))
    }
}

/// Clears the soft-dirty bits of a process. Succeeds without any effect where the kernel was built
/// without `CONFIG_MEM_SOFT_DIRTY`: probe by a round trip.
pub fn clear_soft_dirty(pid: i32) -> Result<()> {
    let path = format!("/proc/{pid}/clear_refs");
    std::fs::write(&path, "4").map_err(|e| SysError::new("write", path, e))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::{ScratchMap, read_bytes};

    #[test]
    fn soft_dirty_bits_belong_to_one_at_a_time() {
        let mut child = std::process::Command::new("sleep")
            .arg("1000")
            .spawn()
            .unwrap();
        let pid = child.id() as i32;
        let bits = SoftDirtyBits::take(pid).unwrap().expect("nobody has them");
        assert!(SoftDirtyBits::take(pid).unwrap().is_none());
        bits.clear().unwrap();
        bits.let_go();
        assert!(SoftDirtyBits::take(pid).unwrap().is_some());
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn entries_tell_that_a_page_may_be_the_one_of_zeroes() {
        let me = std::process::id() as i32;
        let mut map = ScratchMap::new(3).unwrap();
        for n in 0..3 {
            map.write(n, 7);
        }
        // Thrown away and read again: the page of zeroes, which no write has put there.
        map.discard(1).unwrap();
        read_bytes(me, map.range().start + PAGE_SIZE, &mut [0]).unwrap();
        let pagemap = Pagemap::open(me).unwrap();
        let maybe: Vec<bool> = (0..3)
            .map(|n| {
                let start = map.range().start + n * PAGE_SIZE;
                let page = PageRange::new(start, start + PAGE_SIZE);
                let found = pagemap.read_entries(page).unwrap();
                assert!(found[0].1.present && found[0].1.is_own());
                found[0].1.maybe_zero
            })
            .collect();
        assert_eq!(maybe, [false, true, false]);
    }
}
