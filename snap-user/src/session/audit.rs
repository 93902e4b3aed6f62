//! Comparing all of a process's memory, as it was in the stop, with what the chain gives back for it.

use super::{AuditPage, Result};
use crate::capture::{compared, compared_pages, irreplaceable, without_files};
use crate::image::PageSource;
use crate::model::{Backing, PAGE_SIZE, Page, PageSet, PageTable, Vma};
use crate::store::Snapshot;
use crate::sys;
use crate::track::Survey;
use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use xxhash_rust::xxh3::xxh3_128;

/// Pages compared at a time.
const BATCH: usize = 2048;

/// The memory of a process as it was when it was stopped: a hash of each page.
pub struct Memory {
    hashes: PageTable<u128>,
    covered: PageSet,
}

impl Memory {
    /// Reads a stopped process. `survey` is a look at all of its page tables, `known` are the pages that the chain
    /// holds so far.
    pub fn read(pid: i32, vmas: &[Vma], survey: &Survey, known: &PageSet) -> Result<Self> {
        let tracked = vmas.iter().filter(|v| !v.shared && !v.is_special());
        let covered: PageSet = tracked.chain(compared(vmas)).map(|v| v.range).collect();
        let irreplaceable = irreplaceable(vmas);
        let covered = covered.union(&irreplaceable);
        let there = survey.own.union(&compared_pages(pid, vmas));
        let there = there.union(&irreplaceable);
        let pages: Vec<u64> = there.union(&known.intersect(&covered)).iter().collect();
        let mut hashes = PageTable::new();
        for batch in pages.chunks(BATCH) {
            let mut live = vec![0u8; batch.len() * PAGE_SIZE as usize];
            // A page that cannot be read (behind the end of a file) reads as zeroes, as it does when captured.
            sys::read_pages(pid, batch, &mut live)?;
            for (&addr, content) in batch
                .iter()
                .zip(live.as_chunks::<{ PAGE_SIZE as usize }>().0)
            {
                hashes.insert(addr, xxh3_128(content));
            }
        }
        Ok(Self { hashes, covered })
    }

    /// The pages of it that are not as `snapshot` gives them back.
    pub fn compare(&self, pid: i32, snapshot: &Snapshot, vmas: &[Vma]) -> Result<Vec<AuditPage>> {
        let table = snapshot.page_table()?;
        let stored = PageSet::from_pages(table.iter().map(|(addr, _)| addr).collect());
        // Contents of files are not in the process's memory.
        let stored = without_files(&stored);
        let read = PageSet::from_pages(self.hashes.iter().map(|(addr, _)| addr).collect());
        let mut wrong: Vec<u64> = stored.subtract(&self.covered).iter().collect();
        wrong.extend(stored.intersect(&self.covered).subtract(&read).iter());
        let mut files = Files::new(pid, vmas);
        let pages: Vec<u64> = read.iter().collect();
        for batch in pages.chunks(BATCH) {
            let mut held: BTreeMap<u64, u128> = BTreeMap::new();
            snapshot.read_pages(batch, &mut |addr, page| {
                held.insert(addr, xxh3_128(page));
            })?;
            for &addr in batch {
                // Nothing is stored for a page without content of its own. The survey may count one in
                // all the same: in a file mapping a page in swap and a mere mark look alike.
                let given = held.get(&addr).copied();
                let given = given.unwrap_or_else(|| {
                    xxh3_128(&files.page(addr).unwrap_or([0; PAGE_SIZE as usize]))
                });
                if self.hashes.get(addr) != Some(given) {
                    wrong.push(addr);
                }
            }
        }
        // Memory that another process has mapped too goes on changing while this one is stopped.
        wrong.retain(|addr| !is_written_by_others(pid, vmas, *addr));
        wrong.sort_unstable();
        let named = |addr| AuditPage {
            addr,
            mapping: name(vmas, addr),
        };
        Ok(wrong.into_iter().map(named).collect())
    }
}

/// The files behind private mappings, each opened when it is first asked for.
struct Files<'a> {
    pid: i32,
    vmas: &'a [Vma],
    open: BTreeMap<u64, Option<File>>,
}

impl<'a> Files<'a> {
    fn new(pid: i32, vmas: &'a [Vma]) -> Self {
        let open = BTreeMap::new();
        Self { pid, vmas, open }
    }

    /// What the file has for a page: zeroes behind its end. `None` where no file is, or none that can be read.
    fn page(&mut self, addr: u64) -> Option<Page> {
        let mut private = self.vmas.iter().filter(|v| !v.shared);
        let vma = private.find(|v| v.range.contains(addr))?;
        // All that a shared one holds is stored, and all of a file that has no name any more.
        let Backing::File {
            path,
            deleted: false,
            offset,
            ..
        } = &vma.backing
        else {
            return None;
        };
        let file = self.open.entry(vma.range.start).or_insert_with(|| {
            let range = vma.range;
            // Works for a file without a name too, where the caller is privileged.
            let map = format!(
                "/proc/{}/map_files/{:x}-{:x}",
                self.pid, range.start, range.end
            );
            let named = || File::open(format!("/proc/{}/root{path}", self.pid));
            File::open(map).or_else(|_| named()).ok()
        });
        let mut page = [0; PAGE_SIZE as usize];
        let mut got = 0;
        while got < page.len() {
            let at = addr - vma.range.start + offset + got as u64;
            match file.as_ref()?.read_at(&mut page[got..], at) {
                Ok(0) => break,
                Ok(more) => got += more,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(_) => return None,
            }
        }
        Some(page)
    }
}

fn is_written_by_others(pid: i32, vmas: &[Vma], addr: u64) -> bool {
    let Some(vma) = vmas.iter().find(|v| v.shared && v.range.contains(addr)) else {
        return false;
    };
    let Backing::File { dev, inode, .. } = vma.backing else {
        return false;
    };
    sys::proc::processes()
        .into_iter()
        .filter(|other| *other != pid)
        .any(|other| {
            sys::proc::maps(other).is_ok_and(|maps| {
                maps.iter().any(|v| match v.backing {
                    Backing::File {
                        dev: d, inode: i, ..
                    } => (d, i) == (dev, inode),
                    _ => false,
                })
            })
        })
}

fn name(vmas: &[Vma], addr: u64) -> String {
    let Some(vma) = vmas.iter().find(|v| v.range.contains(addr)) else {
        return "unmapped".into();
    };
    let what = match &vma.backing {
        Backing::Anonymous { name } => name.clone().unwrap_or_else(|| "anonymous".into()),
        Backing::Heap => "heap".into(),
        Backing::Stack => "stack".into(),
        Backing::Special(name) => name.clone(),
        Backing::File { path, .. } => path.clone(),
    };
    format!("{} {what}", if vma.shared { "shared" } else { "private" })
}
