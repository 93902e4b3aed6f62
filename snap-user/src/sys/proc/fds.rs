//! Descriptors: `/proc/PID/fd` and `/proc/PID/fdinfo`.

use super::fdinfo::FdInfo;
use super::{Result, SysError};
use rustix::fs::{AtFlags, Mode, OFlags, RawDir, SeekFrom};
use std::collections::HashMap;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;

/// The descriptor table of a process, its two folders held open: a look costs no walk along their paths.
#[derive(Debug)]
pub struct FdTable {
    pid: i32,
    links: OwnedFd,
    infos: OwnedFd,
}

/// What `stat(2)` says of an open file.
#[derive(Clone, Copy, Debug, Default)]
pub struct FdStat {
    /// Device and inode.
    pub identity: (u64, u64),
    /// Type and permissions.
    pub mode: u32,
    /// Names that it has.
    pub links: u64,
    /// For a device, its number: major and minor.
    pub device: (u32, u32),
    /// Bytes.
    pub size: u64,
    /// Last change of its content, nanoseconds since 1970.
    pub mtime_ns: i64,
}

/// The kernel gives texts like these in pieces of a page at most.
const PAGE: usize = 4096;

/// Who has sockets with these inodes open, this process aside.
#[derive(Debug, Default)]
pub struct SocketHolders {
    /// Inode, process, and its descriptor.
    pub found: Vec<(u64, i32, i32)>,
    /// Processes whose descriptors could not be looked at, and why.
    pub unknown: Vec<(i32, SysError)>,
}

/// Looks once at all processes for who has sockets with these inodes open.
pub fn socket_holders(inodes: &[u64]) -> SocketHolders {
    let own = std::process::id() as i32;
    let mut holders = SocketHolders::default();
    let names: HashMap<String, u64> = inodes
        .iter()
        .map(|inode| (format!("socket:[{inode}]"), *inode))
        .collect();
    for pid in super::processes().into_iter().filter(|pid| *pid != own) {
        let looked = FdTable::open(pid).and_then(|table| {
            for fd in table.numbers()? {
                let link = match table.link(fd) {
                    Err(e) if e.is_vanished() => continue,
                    link => link?,
                };
                let inode = names.get(&link);
                holders.found.extend(inode.map(|inode| (*inode, pid, fd)));
            }
            Ok(())
        });
        match looked {
            // One that has ended has nothing open any more.
            Err(e) if !e.is_vanished() && super::is_alive(pid) => holders.unknown.push((pid, e)),
            _ => {}
        }
    }
    holders
}

impl FdTable {
    /// Opens the folders.
    pub fn open(pid: i32) -> Result<Self> {
        let folder = |name: &str| {
            let path = format!("/proc/{pid}/{name}");
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            rustix::fs::open(&path, flags, Mode::empty())
                .map_err(|e| SysError::new("open", path, e))
        };
        Ok(Self {
            pid,
            links: folder("fd")?,
            infos: folder("fdinfo")?,
        })
    }

    /// The process.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    fn failed(&self, call: &'static str, fd: i32, e: rustix::io::Errno) -> SysError {
        SysError::new(call, format_args!("/proc/{}/fd/{fd}", self.pid), e)
    }

    /// Numbers of all open descriptors, ascending.
    pub fn numbers(&self) -> Result<Vec<i32>> {
        let failed = |e| SysError::new("getdents64", format_args!("/proc/{}/fd", self.pid), e);
        rustix::fs::seek(&self.links, SeekFrom::Start(0)).map_err(failed)?;
        let mut buffer = [MaybeUninit::uninit(); 16 << 10];
        let mut entries = RawDir::new(&self.links, &mut buffer);
        let mut fds = Vec::new();
        while let Some(entry) = entries.next() {
            let name = entry.map_err(failed)?;
            fds.extend(
                name.file_name()
                    .to_str()
                    .ok()
                    .and_then(|n| n.parse::<i32>().ok()),
            );
        }
        fds.sort_unstable();
        Ok(fds)
    }

    /// Where the link of a descriptor points.
    pub fn link(&self, fd: i32) -> Result<String> {
        let mut buffer = itoa(fd);
        rustix::fs::readlinkat(&self.links, name(&mut buffer), Vec::with_capacity(64))
            .map(|link| String::from_utf8_lossy(link.as_bytes()).into_owned())
            .map_err(|e| self.failed("readlink", fd, e))
    }

    /// What stat(2) says of the open file.
    pub fn stat(&self, fd: i32) -> Result<FdStat> {
        let mut buffer = itoa(fd);
        let stat = rustix::fs::statat(&self.links, name(&mut buffer), AtFlags::empty())
            .map_err(|e| self.failed("stat", fd, e))?;
        Ok(FdStat {
            identity: (stat.st_dev, stat.st_ino),
            mode: stat.st_mode,
            links: stat.st_nlink,
            device: (
                rustix::fs::major(stat.st_rdev),
                rustix::fs::minor(stat.st_rdev),
            ),
            size: stat.st_size as u64,
            mtime_ns: stat.st_mtime as i64 * 1_000_000_000 + stat.st_mtime_nsec as i64,
        })
    }

    /// What `/proc/PID/fdinfo/FD` says.
    pub fn info(&self, fd: i32) -> Result<FdInfo> {
        let mut buffer = itoa(fd);
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.infos, name(&mut buffer), flags, Mode::empty())
            .map_err(|e| self.failed("open", fd, e))?;
        let mut text = vec![0; 1024];
        let mut len = 0;
        loop {
            match rustix::io::read(&file, &mut text[len..]) {
                Ok(0) => break,
                Ok(got) => len += got,
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(self.failed("read", fd, e)),
            }
            if len == text.len() {
                text.resize(len * 4, 0);
            } else if len < PAGE {
                // Text of less than a page comes at once.
                break;
            }
        }
        FdInfo::parse(&String::from_utf8_lossy(&text[..len])).ok_or_else(|| {
            super::bad(
                &format!("/proc/{}/fdinfo/{fd}", self.pid),
                "position or flags",
            )
        })
    }
}

/// A number as a C string in a buffer of its own: these run thousands of times in a stop.
fn itoa(number: i32) -> [u8; 12] {
    use std::io::Write;
    let mut buffer = [0; 12];
    let _ = write!(&mut buffer[..], "{number}");
    buffer
}

fn name(buffer: &mut [u8; 12]) -> &std::ffi::CStr {
    std::ffi::CStr::from_bytes_until_nul(buffer).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Seek, Write};
    use std::os::fd::AsRawFd;

    #[test]
    fn numbers_links_stat_and_info_of_an_open_file() {
        let table = FdTable::open(std::process::id() as i32).unwrap();
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&[7; 500]).unwrap();
        file.seek(std::io::SeekFrom::Start(123)).unwrap();
        let fd = file.as_raw_fd();
        for _ in 0..2 {
            assert!(table.numbers().unwrap().contains(&fd));
        }
        assert_eq!(table.link(fd).unwrap(), file.path().to_str().unwrap());
        let stat = table.stat(fd).unwrap();
        assert_eq!((stat.size, stat.links), (500, 1));
        let info = table.info(fd).unwrap();
        assert_eq!(info.position, 123);
        assert_ne!(info.flags & libc::O_CLOEXEC as u32, 0);
        drop(file);
        assert!(table.info(fd).is_err() || table.link(fd).is_err());
    }

    #[test]
    fn a_long_list_of_watches_is_read_whole() {
        use rustix::event::epoll;
        let poll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
        let watched: Vec<_> = (0..200)
            .map(|n| {
                let event =
                    rustix::event::eventfd(n, rustix::event::EventfdFlags::CLOEXEC).unwrap();
                let data = epoll::EventData::new_u64(u64::from(n) << 40);
                epoll::add(&poll, &event, data, epoll::EventFlags::IN).unwrap();
                event
            })
            .collect();
        let table = FdTable::open(std::process::id() as i32).unwrap();
        let info = table.info(poll.as_raw_fd()).unwrap();
        assert_eq!(info.epoll.len(), watched.len());
        for (n, event) in watched.iter().enumerate() {
            let fd = event.as_raw_fd();
            let watch = info.epoll.iter().find(|w| w.fd == fd).unwrap();
            assert_eq!(watch.data, (n as u64) << 40);
            let count = table.info(fd).unwrap().eventfd.unwrap();
            assert_eq!((count.count, count.semaphore), (n as u64, false));
        }
    }
}
