//! Pages of a process that change, with what they were before. Independent of ksnap, which is what is measured.

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::HashMap;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;

const PAGE: usize = 4096;
/// Pages asked of the kernel at a time.
const PIECE: u64 = 512;
/// Bit of a pagemap entry: the page is in memory.
const PRESENT: u64 = 1 << 63;

type Page = [u8; PAGE];

/// Changed pages of one process.
pub struct Pages {
    pid: i32,
    before: HashMap<u64, Box<Page>>,
    changed: Vec<(Option<Box<Page>>, Box<Page>)>,
    most: usize,
}

/// The process stands still until this is dropped.
struct Stopped(Pid);

impl Stopped {
    fn stop(pid: i32) -> Result<Self> {
        let pid = Pid::from_raw(pid);
        kill(pid, Signal::SIGSTOP).with_context(|| format!("cannot stop process {pid}"))?;
        Ok(Self(pid))
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = kill(self.0, Signal::SIGCONT);
    }
}

impl Pages {
    /// Reads all of a process's memory; keeps at most so many changed pages.
    pub fn new(pid: i32, most: usize) -> Result<Self> {
        Ok(Self {
            pid,
            before: read(pid)?,
            changed: Vec::new(),
            most,
        })
    }

    /// Reads the memory again, and keeps what has changed, up to `most` pages in all.
    pub fn look(&mut self, most: usize) -> Result<()> {
        let now = read(self.pid)?;
        let mut addrs: Vec<u64> = now.keys().copied().collect();
        addrs.sort_unstable();
        // From another place each time: what lies lowest would be all there is.
        let first = self.changed.len() * 7919 % addrs.len().max(1);
        addrs.rotate_left(first);
        for addr in addrs {
            if self.changed.len() >= most.min(self.most) {
                break;
            }
            let before = self.before.get(&addr);
            if before != Some(&now[&addr]) {
                self.changed.push((before.cloned(), now[&addr].clone()));
            }
        }
        self.before = now;
        Ok(())
    }

    pub fn is_empty(&self) -> bool {
        self.changed.is_empty()
    }

    /// Writes them to a file: for each a byte that says whether it was there before, what it was, what it is.
    pub fn write(&self, path: &Path) -> Result<()> {
        let mut file = std::io::BufWriter::new(File::create(path)?);
        for (before, page) in &self.changed {
            file.write_all(&[u8::from(before.is_some())])?;
            if let Some(before) = before {
                file.write_all(&**before)?;
            }
            file.write_all(&**page)?;
        }
        Ok(file.flush()?)
    }
}

/// Writable memory of a process, page by page, while it stands still.
fn read(pid: i32) -> Result<HashMap<u64, Box<Page>>> {
    let _stopped = Stopped::stop(pid)?;
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let memory = File::open(format!("/proc/{pid}/mem"))?;
    let pagemap = File::open(format!("/proc/{pid}/pagemap"))?;
    let mut pages = HashMap::new();
    for line in maps.lines() {
        let mut fields = line.split_whitespace();
        let (Some(range), Some(access)) = (fields.next(), fields.next()) else {
            continue;
        };
        let name = fields.nth(3).unwrap_or_default();
        // Memory of devices is no memory.
        if !access.contains('w') || (name.starts_with("/dev/") && !name.starts_with("/dev/zero")) {
            continue;
        }
        let ends: Vec<u64> = range
            .split('-')
            .filter_map(|end| u64::from_str_radix(end, 16).ok())
            .collect();
        if let [start, end] = ends[..] {
            read_range(&memory, &pagemap, start, end, &mut pages)?;
        }
    }
    Ok(pages)
}

fn read_range(
    memory: &File,
    pagemap: &File,
    start: u64,
    end: u64,
    pages: &mut HashMap<u64, Box<Page>>,
) -> Result<()> {
    let size = PAGE as u64;
    let mut entries = [0; PIECE as usize * 8];
    for piece in (start..end).step_by((PIECE * size) as usize) {
        let count = PIECE.min((end - piece) / size) as usize;
        let entries = &mut entries[..count * 8];
        // The vsyscall page has no entries.
        if pagemap.read_exact_at(entries, piece / size * 8).is_err() {
            return Ok(());
        }
        for (entry, n) in entries.as_chunks::<8>().0.iter().zip(0..) {
            let addr = piece + n * size;
            let mut page = Box::new([0; PAGE]);
            let present = u64::from_le_bytes(*entry) & PRESENT != 0;
            if present && memory.read_exact_at(&mut *page, addr).is_ok() {
                pages.insert(addr, page);
            }
        }
    }
    Ok(())
}
