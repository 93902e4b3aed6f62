//! What is read of a process while it runs, so that the stop need not.

use super::attributes::Known;
use super::{CaptureError, Files, Result};
use crate::model::{Auxv, Backing, FileKind, Vma};
use crate::sys::proc;
use std::collections::HashMap;

/// State that changes seldom or costs much to read. Brought up to date before each stop.
#[derive(Debug)]
pub struct Live {
    pid: i32,
    /// Working directory.
    pub cwd: String,
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
    build_ids: HashMap<(u64, u64), Option<Vec<u8>>>,
    described: Vec<Vma>,
}

impl Live {
    /// Reads everything.
    pub fn read(pid: i32, probes: bool) -> Result<Self> {
        let sys = |e| CaptureError::from_sys(pid, e);
        let mut live = Self {
            pid,
            cwd: String::new(),
            probes,
            known: Known::default(),
            auxv: proc::auxv(pid).map_err(sys)?,
            files: Files::read(pid)?,
            is_elsewhere: proc::is_elsewhere(pid),
            flags: HashMap::new(),
            build_ids: HashMap::new(),
            described: Vec::new(),
        };
        live.refresh(&proc::maps(pid).map_err(sys)?)?;
        Ok(live)
    }

    /// Reads again what may have changed.
    pub fn refresh(&mut self, vmas: &[Vma]) -> Result<()> {
        let sys = |e| CaptureError::from_sys(self.pid, e);
        self.cwd = proc::link(self.pid, "cwd").map_err(sys)?;
        self.files.refresh()?;
        self.known.refresh(self.pid, self.probes)?;
        if self.described != vmas {
            // Flags of mappings cost a walk of the page tables: only when the mappings changed.
            self.flags = proc::vm_flags(self.pid).map_err(sys)?;
            self.described = vmas.to_vec();
        }
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
        Ok(())
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
