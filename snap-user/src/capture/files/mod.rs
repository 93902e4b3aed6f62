//! The descriptor table of a process, and what each open file holds.
//!
//! Read while the process runs, and brought up to date in the stop: there, links say which descriptors are still
//! the same, and only what may change without a system call of the process's own on the descriptor table is read
//! again (positions, counters, queues).

mod connections;
mod describe;
mod sharing;
mod update;
mod verdict;

pub use verdict::{Verdict, losses, mapping_verdict, terminal_verdict, verdict};

use super::{CaptureError, Result};
use crate::model::{Descriptor, FileKind, OpenFile, Vma};
use crate::sys::proc::FdTable;
use crate::sys::{PidFd, pidfd_getfd, pidfd_open};
use connections::Connections;
use describe::Paths;
use std::collections::HashMap;
use std::os::fd::OwnedFd;

/// More files than these are not asked for locks that they did not have before the stop.
const MANY_FILES: usize = 64;

/// Open files as last read.
#[derive(Debug)]
pub struct Files {
    table: FdTable,
    process: PidFd,
    /// Each descriptor with where its link points, as the kernel prints it.
    descriptors: Vec<(Descriptor, String)>,
    files: Vec<OpenFile>,
    paths: Paths,
    connections: Connections,
}

/// A descriptor just described: itself, its link, and its open file.
struct Found {
    fd: i32,
    cloexec: bool,
    link: String,
    file: OpenFile,
}

impl Files {
    /// Reads everything.
    pub fn read(pid: i32) -> Result<Self> {
        let sys = |e| CaptureError::from_sys(pid, e);
        let mut files = Self {
            table: FdTable::open(pid).map_err(sys)?,
            process: pidfd_open(pid).map_err(sys)?,
            descriptors: Vec::new(),
            files: Vec::new(),
            paths: Paths::default(),
            connections: Connections::default(),
        };
        files.refresh()?;
        Ok(files)
    }

    /// Reads everything again, while the process runs. A descriptor that closes meanwhile is left out.
    pub fn refresh(&mut self) -> Result<()> {
        let pid = self.table.pid();
        let numbers = self
            .table
            .numbers()
            .map_err(|e| CaptureError::from_sys(pid, e))?;
        let mut found = Vec::with_capacity(numbers.len());
        for fd in numbers {
            found.extend(self.describe(fd));
        }
        (self.descriptors, self.files) = sharing::joined(pid, found);
        Ok(())
    }

    /// Each descriptor with its open file, as last read.
    pub fn open_files(&self) -> impl Iterator<Item = (Descriptor, &OpenFile)> {
        self.descriptors
            .iter()
            .filter_map(|(d, _)| Some((*d, self.files.get(d.file as usize)?)))
    }

    /// The kinds of all open files.
    pub fn kinds(&self) -> impl Iterator<Item = FileKind> {
        self.files.iter().map(|file| file.kind)
    }

    /// Descriptors and open files of the frozen process. `vmas` are its mappings.
    pub fn frozen(&mut self, vmas: &[Vma]) -> Result<(Vec<Descriptor>, Vec<OpenFile>)> {
        let pid = self.table.pid();
        let numbers = self
            .table
            .numbers()
            .map_err(|e| CaptureError::from_sys(pid, e))?;
        let known: HashMap<i32, usize> = self
            .descriptors
            .iter()
            .enumerate()
            .map(|(at, (descriptor, _))| (descriptor.fd, at))
            .collect();
        let mut same = Vec::with_capacity(numbers.len());
        let mut all_known = true;
        for &fd in &numbers {
            let Ok(link) = self.table.link(fd) else {
                continue;
            };
            let at = known.get(&fd).copied();
            match at.filter(|at| self.descriptors[*at].1 == link) {
                Some(at) => same.push(self.descriptors[at].0),
                None => all_known = false,
            }
        }
        if !all_known {
            // Opened, or replaced, in the moment before the stop.
            self.refresh()?;
            same = self.descriptors.iter().map(|(d, _)| *d).collect();
        }
        let (descriptors, mut files) = self.compacted(same, vmas);
        if self.connections.wanted {
            let readers = first_descriptors(&descriptors, files.len());
            self.take_connections(&readers, &mut files)?;
        }
        Ok((descriptors, files))
    }

    /// Only the open files that `descriptors` refer to, each brought up to date.
    fn compacted(
        &self,
        mut descriptors: Vec<Descriptor>,
        vmas: &[Vma],
    ) -> (Vec<Descriptor>, Vec<OpenFile>) {
        // Not from /proc/locks, whose reader waits for all processors. Of many files, only those that had locks a
        // moment ago are asked for them again.
        let positioned = self.files.iter().filter(|file| file.is_positioned());
        let locked = positioned.count() <= MANY_FILES;
        let mut place: Vec<Option<u32>> = vec![None; self.files.len()];
        let mut files = Vec::with_capacity(self.files.len());
        for descriptor in &mut descriptors {
            let old = descriptor.file as usize;
            descriptor.file = *place[old].get_or_insert_with(|| {
                let mut file = self.files[old].clone();
                self.update(descriptor.fd, &mut file, locked);
                files.push(file);
                files.len() as u32 - 1
            });
        }
        let readers: Vec<i32> = first_descriptors(&descriptors, files.len());
        self.contents(&readers, &mut files, vmas);
        (descriptors, files)
    }

    /// A descriptor of ours for an open file of the process.
    fn take(&self, fd: i32) -> crate::sys::Result<OwnedFd> {
        pidfd_getfd(&self.process, fd)
    }
}

/// One descriptor of each open file.
fn first_descriptors(descriptors: &[Descriptor], files: usize) -> Vec<i32> {
    let mut first = vec![-1; files];
    for descriptor in descriptors.iter().rev() {
        first[descriptor.file as usize] = descriptor.fd;
    }
    first
}
