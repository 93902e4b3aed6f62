//! What is read of a process while it runs, so that the stop need not.

use super::attributes::Known;
use super::{CaptureError, Files, Result};
use crate::model::{
    Auxv, Backing, FileKind, MappedFile, MemoryAttributes, MemoryPolicy, PageRange, Referent, Vma,
};
use crate::sys::{Frozen, Pagemap, monotonic_ns, proc};
use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;

/// How long attributes of mappings are believed where nobody tells of changes, in nanoseconds.
const FRESH: u64 = 1_000_000_000;

/// State that changes seldom or costs much to read. Brought up to date before each stop.
#[derive(Debug)]
pub struct Live {
    pid: i32,
    /// The probes tell what no file of /proc shows.
    pub probes: bool,
    /// Auxiliary vector; changes with an exec only.
    pub auxv: Auxv,
    /// Descriptors and open files.
    pub files: Files,
    pub(super) known: Known,
    /// It has a PID namespace of its own, and other ids there.
    pub(super) is_elsewhere: bool,
    flags: HashMap<u64, Vec<String>>,
    /// Protection keys by mapping.
    keys: HashMap<u64, u32>,
    policies: HashMap<u64, MemoryPolicy>,
    guards: Vec<PageRange>,
    /// When mappings were looked at.
    described_ns: u64,
    stale: bool,
    build_ids: HashMap<(u64, u64), Option<Vec<u8>>>,
    /// Files behind private mappings.
    pub(super) mapped: Vec<MappedFile>,
    described: Vec<Vma>,
}

impl Live {
    /// Reads everything.
    pub fn read(pid: i32, probes: bool) -> Result<Self> {
        let sys = |e| CaptureError::from_sys(pid, e);
        let mut live = Self {
            pid,
            probes,
            known: Known::default(),
            auxv: proc::auxv(pid).map_err(sys)?,
            files: Files::read(pid)?,
            is_elsewhere: proc::is_elsewhere(pid),
            flags: HashMap::new(),
            keys: HashMap::new(),
            policies: HashMap::new(),
            guards: Vec::new(),
            described_ns: 0,
            stale: true,
            build_ids: HashMap::new(),
            mapped: Vec::new(),
            described: Vec::new(),
        };
        live.refresh(&proc::maps(pid).map_err(sys)?, &|| None)?;
        Ok(live)
    }

    /// Reads again what may have changed. `referents` tells what descriptors refer to, where the kernel can be asked.
    pub fn refresh(
        &mut self,
        vmas: &[Vma],
        referents: &dyn Fn() -> Option<Vec<(i32, Referent)>>,
    ) -> Result<()> {
        let before = referents();
        self.files.refresh()?;
        if let Some(before) = before {
            self.files
                .identify(&before, &referents().unwrap_or_default());
        }
        self.known.refresh(self.pid, self.probes, vmas)?;
        self.look(vmas)?;
        for vma in vmas.iter().filter(|v| v.prot.exec) {
            if let Backing::File {
                path, dev, inode, ..
            } = &vma.backing
            {
                let dev = u64::from(dev.0) << 32 | u64::from(dev.1);
                let path = format!("/proc/{}/root{path}", self.pid);
                self.build_ids
                    .entry((dev, *inode))
                    .or_insert_with(|| proc::build_id(&path));
            }
        }
        self.mapped = mapped_files(self.pid, vmas);
        Ok(())
    }

    /// Has the frozen process tell what only it can, where the probes do not: all of it, or what a short stop has
    /// `time` for. It runs for that, and the kernel writes into its memory: before any of it is copied.
    pub fn ask(&mut self, frozen: &Frozen, vmas: &[Vma], time: bool) {
        if !self.probes {
            self.known.ask(frozen, vmas, time);
        }
    }

    /// Looks at the attributes of mappings again, if they may have changed.
    pub fn look(&mut self, vmas: &[Vma]) -> Result<()> {
        let sys = |e| CaptureError::from_sys(self.pid, e);
        let now = monotonic_ns();
        // Without the probes nobody tells when only the attributes of mappings change.
        let aged = !self.probes && now - self.described_ns > FRESH;
        if self.described != vmas || self.stale || aged {
            // Flags of mappings cost a walk of the page tables: only when something changed.
            (self.flags, self.keys) = proc::vm_flags(self.pid).map_err(sys)?;
            if self.described_ns == 0 || self.stale || !self.policies.is_empty() {
                // A second walk, for what hardly any process has.
                self.policies = proc::memory_policies(self.pid).unwrap_or_default();
            }
            self.guards = guards(self.pid, vmas);
            self.described = vmas.to_vec();
            self.described_ns = now;
            self.stale = false;
        }
        Ok(())
    }

    /// Something about mappings has changed that their list may not show.
    pub fn look_again(&mut self) {
        self.stale = true;
    }

    /// Attributes of memory by address.
    pub(super) fn memory(&self, vmas: &[Vma]) -> MemoryAttributes {
        MemoryAttributes {
            guards: self.guards.clone(),
            keys: by_range(vmas, &self.keys),
            policies: by_range(vmas, &self.policies),
        }
    }

    /// Something may write into the process's memory through pages that it has pinned, which no page
    /// table shows: io_uring, or asynchronous I/O.
    pub fn has_pinned_writers(&self) -> bool {
        let ring = |kind| kind == FileKind::IoUring;
        let aio = |v: &Vma| matches!(&v.backing, Backing::File { path, .. } if path == "/[aio]");
        self.files.kinds().any(ring) || self.described.iter().any(aio)
    }

    /// Adds flags and build ids to mappings that were read without.
    pub(super) fn describe(&self, vmas: &mut [Vma]) {
        for vma in vmas {
            if let Some(flags) = self.flags.get(&vma.range.start) {
                vma.flags.clone_from(flags);
            }
            match &vma.backing {
                Backing::File { dev, inode, .. } => {
                    let dev = u64::from(dev.0) << 32 | u64::from(dev.1);
                    vma.build_id = self.build_ids.get(&(dev, *inode)).cloned().flatten();
                }
                // Not in a snapshot: its build id tells later which one it was.
                Backing::Special(name) if name == "vdso" => {
                    vma.build_id = proc::own_vdso().map(|(_, id)| id.clone());
                }
                _ => {}
            }
        }
    }
}

/// Guard pages of anonymous memory. Kernels that have them and cannot show them are those of Linux 6.13 and 6.14.
fn guards(pid: i32, vmas: &[Vma]) -> Vec<PageRange> {
    let Ok(mut pagemap) = Pagemap::open(pid) else {
        return Vec::new();
    };
    let anonymous = vmas.iter().filter(|v| !v.is_special() && !v.shared);
    let mut found: Vec<PageRange> = Vec::new();
    for vma in anonymous {
        match pagemap.guards(vma.range) {
            Ok(guards) => found.extend(guards),
            Err(e) => {
                tracing::debug!("no guard pages: {e}");
                break;
            }
        }
    }
    found
}

/// The files that are mapped privately and have a name, each once.
fn mapped_files(pid: i32, vmas: &[Vma]) -> Vec<MappedFile> {
    let mut found: Vec<MappedFile> = Vec::new();
    for vma in vmas.iter().filter(|vma| !vma.shared) {
        let Backing::File {
            path,
            deleted: false,
            dev,
            inode,
            ..
        } = &vma.backing
        else {
            continue;
        };
        if found
            .iter()
            .any(|file| (file.dev, file.inode) == (*dev, *inode))
        {
            continue;
        }
        // Another file that has its name now is not the one that is mapped.
        let meta = std::fs::metadata(format!("/proc/{pid}/root{path}"));
        if let Some(meta) = meta
            .ok()
            .filter(|meta| meta.is_file() && meta.ino() == *inode)
        {
            found.push(MappedFile {
                dev: *dev,
                inode: *inode,
                size: meta.len(),
                mtime_ns: meta.mtime() * 1_000_000_000 + meta.mtime_nsec(),
            });
        }
    }
    found
}

/// What is known by the first address of a mapping, with all of its addresses.
fn by_range<T: Clone>(vmas: &[Vma], known: &HashMap<u64, T>) -> Vec<(PageRange, T)> {
    let mut found: Vec<(PageRange, T)> = vmas
        .iter()
        .filter_map(|vma| Some((vma.range, known.get(&vma.range.start)?.clone())))
        .collect();
    found.sort_unstable_by_key(|(range, _)| range.start);
    found
}
