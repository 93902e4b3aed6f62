//! The descriptor table of a process, and what each open file holds.
//!
//! Read while the process runs, and brought up to date in the stop: there the kernel says, or their links, which
//! descriptors are still the same, and only what may change without a system call of the process's own on the descriptor table is read
//! again (positions, counters, queues).

mod connections;
mod describe;
mod sharing;
mod update;
mod verdict;

pub use connections::{Connections, take_connections};
pub use verdict::{Verdict, losses, mapping_verdict, terminal_verdict, verdict};

use super::{CaptureError, Result};
use crate::model::{Descriptor, Detail, FileKind, OpenFile, Referent, Vma};
use crate::sys::proc::FdTable;
use crate::sys::{PidFd, pidfd_getfd, pidfd_open};
use describe::Paths;
use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;

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
    /// What was taken of the stopped process before it is looked at.
    connections: Arc<Connections>,
    /// What descriptors referred to when they were read, those that have no name in a file system.
    referents: HashMap<i32, Referent>,
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
            connections: Arc::default(),
            referents: HashMap::new(),
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
        self.referents.clear();
        Ok(())
    }

    /// What the kernel said of all descriptors just before they were read, and just after: of one that is the same in
    /// both, it can say in the stop whether it still is. Links of files that have a name are read all the same, since
    /// renaming a file changes nothing else.
    pub fn identify(&mut self, before: &[(i32, Referent)], after: &[(i32, Referent)]) {
        let after: HashMap<i32, Referent> = after.iter().copied().collect();
        let before: HashMap<i32, Referent> = before.iter().copied().collect();
        for (descriptor, link) in &self.descriptors {
            let fd = descriptor.fd;
            let referent = before.get(&fd).filter(|it| after.get(&fd) == Some(it));
            let Some(referent) = referent.filter(|_| !link.starts_with('/')) else {
                continue;
            };
            let file = self.files.get(descriptor.file as usize);
            if file.is_some_and(|file| file.identity.1 == referent.number) {
                self.referents.insert(fd, *referent);
            }
        }
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

    /// Descriptors and open files of the frozen process. `vmas` are its mappings; `now` is what the kernel says of all
    /// descriptors, where it can be asked.
    pub fn frozen(
        &mut self,
        vmas: &[Vma],
        now: Option<&[(i32, Referent)]>,
    ) -> Result<(Vec<Descriptor>, Vec<OpenFile>)> {
        let pid = self.table.pid();
        let now: Vec<(i32, Option<Referent>)> = match now {
            Some(now) => now.iter().map(|(fd, it)| (*fd, Some(*it))).collect(),
            None => {
                let numbers = self.table.numbers();
                let numbers = numbers.map_err(|e| CaptureError::from_sys(pid, e))?;
                numbers.into_iter().map(|fd| (fd, None)).collect()
            }
        };
        let known: HashMap<i32, usize> = self
            .descriptors
            .iter()
            .enumerate()
            .map(|(at, (descriptor, _))| (descriptor.fd, at))
            .collect();
        let mut same = Vec::with_capacity(now.len());
        let mut all_known = true;
        for (fd, referent) in now {
            let at = known.get(&fd).copied();
            let is_identified = referent.is_some() && self.referents.get(&fd) == referent.as_ref();
            let at = match is_identified {
                true => at,
                false => {
                    let Ok(link) = self.table.link(fd) else {
                        continue;
                    };
                    at.filter(|at| self.descriptors[*at].1 == link)
                }
            };
            match at {
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
        for file in &mut files {
            if file.kind == FileKind::Socket
                && let Some(taken) = self.connections.taken(file.identity.1)
            {
                file.detail = Detail::Socket(Box::new(taken.clone()));
            }
        }
        Ok((descriptors, files))
    }

    /// What was taken of the connections of the stopped process, for the next look at it.
    pub fn set_connections(&mut self, connections: Arc<Connections>) {
        self.connections = connections;
    }

    /// Why connections were not taken that were to be, a sentence each.
    pub(in crate::capture) fn lost_connections(&self) -> &[String] {
        self.connections.lost(self.table.pid())
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixStream;

    /// Of this process.
    fn files() -> Files {
        Files::read(std::process::id() as i32).expect("readable")
    }

    /// As the kernel would say it: the number is that of the socket's inode, the rest made up.
    fn referent(files: &Files, fd: i32, file: u64) -> (i32, Referent) {
        let referent = Referent {
            file,
            number: files.table.stat(fd).expect("open").identity.1,
            ..Referent::default()
        };
        (fd, referent)
    }

    fn numbers(files: &mut Files, now: Option<&[(i32, Referent)]>) -> Vec<i32> {
        let (descriptors, _) = files.frozen(&[], now).expect("readable");
        descriptors.iter().map(|descriptor| descriptor.fd).collect()
    }

    #[test]
    fn the_kernel_is_believed_where_a_descriptor_is_the_same_and_asked_by_its_link_else() {
        let (one, other) = UnixStream::pair().expect("sockets");
        // A number that no other test of this process gets when it is free again.
        let high = rustix::io::fcntl_dupfd_cloexec(&one, 500).expect("a number");
        drop(one);
        let one = high;
        let fd = one.as_raw_fd();
        let mut files = files();
        let said = [referent(&files, fd, 1)];
        files.identify(&said, &said);
        drop(one);
        assert_eq!(numbers(&mut files, Some(&said)), [fd], "believed");
        let replaced = [(
            fd,
            Referent {
                file: 2,
                ..said[0].1
            },
        )];
        assert_eq!(
            numbers(&mut files, Some(&replaced)),
            [0; 0],
            "its link is gone"
        );
        assert!(numbers(&mut files, None).contains(&other.as_raw_fd()));
    }

    #[test]
    fn what_changed_while_it_was_read_or_has_a_name_is_not_identified() {
        let (one, _other) = UnixStream::pair().expect("sockets");
        let file = tempfile::tempfile().expect("a file");
        let mut files = files();
        let fds = [one.as_raw_fd(), file.as_raw_fd()];
        let said = fds.map(|fd| referent(&files, fd, 1));
        let later = fds.map(|fd| referent(&files, fd, 2));
        files.identify(&said, &later);
        assert!(files.referents.is_empty());
        let strange = [(fds[0], Referent::default())];
        files.identify(&strange, &strange);
        assert!(files.referents.is_empty(), "of another inode");
        files.identify(&said, &said);
        assert_eq!(files.referents.keys().collect::<Vec<_>>(), [&fds[0]]);
        files.refresh().expect("readable");
        assert!(files.referents.is_empty());
    }
}
