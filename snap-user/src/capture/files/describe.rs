//! One descriptor, in full.

use super::{Files, Found};
use crate::model::{Detail, FileKind, InotifyWatch, Memfd, OpenFile, Pipe, Regular, Timerfd};
use crate::sys::proc::{self, FdInfo, FdStat, FileHandle};
use crate::sys::{self, fd as opened};
use std::cell::RefCell;
use std::collections::HashMap;

/// Major device numbers of terminals: virtual consoles, `/dev/tty` and `/dev/ptmx`, serial lines, and the other
/// sides of pseudo-terminals (`Documentation/admin-guide/devices.txt`).
const TERMINALS: [u32; 12] = [4, 5, 136, 137, 138, 139, 140, 141, 142, 143, 204, 229];

/// Paths of watched files, as found by their handles.
#[derive(Debug, Default)]
pub(super) struct Paths(RefCell<HashMap<(u64, FileHandle), Option<String>>>);

impl Paths {
    fn find(&self, pid: i32, device: u64, handle: FileHandle) -> Option<String> {
        let mut known = self.0.borrow_mut();
        known
            .entry((device, handle))
            .or_insert_with_key(|(device, handle)| sys::path_of_handle(pid, *device, handle).ok())
            .clone()
    }
}

impl Files {
    /// What a descriptor is and holds, the contents of queues aside; `None` when it has closed meanwhile.
    pub(super) fn describe(&self, fd: i32) -> Option<Found> {
        let link = self.table.link(fd).ok()?;
        let stat = self.table.stat(fd).ok()?;
        let info = self.table.info(fd).ok()?;
        let kind = kind(&link, stat.mode);
        let (name, deleted) = self.name(&link, kind, &stat);
        let cloexec = info.flags & libc::O_CLOEXEC as u32 != 0;
        let mut file = OpenFile {
            kind,
            link: name,
            deleted,
            position: info.position,
            flags: info.flags & !(libc::O_CLOEXEC as u32),
            identity: stat.identity,
            owner: None,
            locks: info.locks.clone(),
            detail: Detail::None,
        };
        if file.flags & libc::O_PATH as u32 == 0 {
            self.detail(fd, &mut file, &stat, info);
        }
        Some(Found {
            fd,
            cloexec,
            link,
            file,
        })
    }

    /// The link without its mark, and whether the file has lost its name.
    fn name(&self, link: &str, kind: FileKind, stat: &FdStat) -> (String, bool) {
        let Some(name) = link.strip_suffix(" (deleted)") else {
            return (link.to_owned(), false);
        };
        // A name may end so by itself.
        let pid = self.table.pid();
        let own = || std::fs::symlink_metadata(format!("/proc/{pid}/root{link}")).is_ok();
        match kind != FileKind::Memfd && stat.links > 0 && own() {
            true => (link.to_owned(), false),
            false => (name.to_owned(), true),
        }
    }

    fn detail(&self, fd: i32, file: &mut OpenFile, stat: &FdStat, info: FdInfo) {
        let asynchronous = file.flags & libc::O_ASYNC as u32 != 0;
        if asynchronous && let Ok(taken) = self.take(fd) {
            file.owner = opened::owner(taken).ok().flatten();
        }
        file.detail = match file.kind {
            FileKind::Regular => Detail::Regular(regular(stat)),
            FileKind::CharDevice => {
                let device = || Detail::Device(stat.device.0, stat.device.1);
                let terminal = TERMINALS.contains(&stat.device.0).then(|| {
                    let taken = self.take(fd).ok()?;
                    opened::terminal(taken, stat.device).ok()?
                });
                terminal.flatten().map_or_else(device, Detail::Terminal)
            }
            FileKind::BlockDevice => Detail::Device(stat.device.0, stat.device.1),
            FileKind::Pipe | FileKind::Fifo => {
                let capacity = self.take(fd).and_then(opened::capacity).unwrap_or(0);
                Detail::Pipe(Pipe {
                    capacity,
                    ..Pipe::default()
                })
            }
            FileKind::Socket => match self.take(fd) {
                Ok(taken) => {
                    file.owner = file.owner.or_else(|| opened::owner(&taken).ok().flatten());
                    let look = || opened::socket::describe(&taken, stat.identity.1);
                    // A Unix socket is told of in its own network only.
                    let pid = self.table.pid();
                    let elsewhere = |_| sys::in_network_of(pid, look).and_then(|found| found);
                    match look().or_else(elsewhere) {
                        Ok(socket) => Detail::Socket(Box::new(socket)),
                        Err(_) => Detail::None,
                    }
                }
                Err(_) => Detail::None,
            },
            FileKind::Memfd => {
                let name = file.link.strip_prefix("/memfd:").unwrap_or(&file.link);
                Detail::Memfd(Memfd {
                    name: name.to_owned(),
                    size: stat.size,
                    seals: self.take(fd).and_then(opened::seals).unwrap_or(0),
                    ..Memfd::default()
                })
            }
            FileKind::Epoll
            | FileKind::Eventfd
            | FileKind::Timerfd
            | FileKind::Signalfd
            | FileKind::Inotify
            | FileKind::Fanotify
            | FileKind::Pidfd => self.in_text(fd, file.kind, info),
            _ => Detail::None,
        };
    }

    /// Kinds of which the kernel tells all in text.
    pub(super) fn in_text(&self, fd: i32, kind: FileKind, info: FdInfo) -> Detail {
        let pid = self.table.pid();
        match kind {
            FileKind::Epoll => Detail::Epoll(info.epoll),
            FileKind::Eventfd => info.eventfd.map_or(Detail::None, Detail::Eventfd),
            FileKind::Signalfd => info.signalfd.map_or(Detail::None, Detail::Signalfd),
            FileKind::Fanotify => info.fanotify.map_or(Detail::None, Detail::Fanotify),
            FileKind::Timerfd => self.timer(fd, info).map_or(Detail::None, Detail::Timerfd),
            FileKind::Pidfd => info.pidfd.map_or(Detail::None, |process| {
                let start = proc::stat(process, None).map_or(0, |stat| stat.start_time);
                Detail::Pidfd(process, start)
            }),
            FileKind::Inotify => {
                let find = |(watch, handle): (InotifyWatch, FileHandle)| InotifyWatch {
                    path: self.paths.find(pid, watch.device, handle),
                    ..watch
                };
                Detail::Inotify(info.inotify.into_iter().map(find).collect())
            }
            _ => Detail::None,
        }
    }

    /// A periodic timer that has expired and was not read since stands still in the text: asked for the time that is
    /// left, the kernel counts what has expired meanwhile and sets it going again, as a read does.
    fn timer(&self, fd: i32, info: FdInfo) -> Option<Timerfd> {
        let mut timer = info.timerfd?;
        if timer.value_ns == 0 && timer.interval_ns > 0 && timer.ticks > 0 {
            let asked = self.take(fd).and_then(opened::ask_timerfd);
            if asked.is_ok()
                && let Some(counted) = self.table.info(fd).ok().and_then(|info| info.timerfd)
            {
                timer = counted;
            }
            if timer.value_ns == 0 {
                timer.value_ns = timer.interval_ns;
            }
        }
        if timer.settime_flags & libc::TFD_TIMER_ABSTIME as u32 != 0 && timer.value_ns != 0 {
            timer.expires_ns = Some(sys::clock_ns(timer.clock) as u64 + timer.value_ns);
        }
        Some(timer)
    }
}

pub(super) fn regular(stat: &FdStat) -> Regular {
    Regular {
        size: stat.size,
        mtime_ns: stat.mtime_ns,
        mode: stat.mode,
    }
}

fn kind(link: &str, mode: u32) -> FileKind {
    if let Some(name) = link.strip_prefix("anon_inode:") {
        return match name.trim_matches(['[', ']']) {
            "eventpoll" => FileKind::Epoll,
            "eventfd" => FileKind::Eventfd,
            "timerfd" => FileKind::Timerfd,
            "signalfd" => FileKind::Signalfd,
            "inotify" => FileKind::Inotify,
            "fanotify" => FileKind::Fanotify,
            "pidfd" => FileKind::Pidfd,
            "userfaultfd" => FileKind::Userfaultfd,
            "io_uring" => FileKind::IoUring,
            "perf_event" => FileKind::PerfEvent,
            name if name.starts_with("bpf") => FileKind::Bpf,
            _ => FileKind::Other,
        };
    }
    match mode & libc::S_IFMT {
        _ if link.starts_with("/memfd:") => FileKind::Memfd,
        _ if link.starts_with("pidfd:") => FileKind::Pidfd,
        libc::S_IFREG => FileKind::Regular,
        libc::S_IFDIR => FileKind::Directory,
        libc::S_IFLNK => FileKind::Symlink,
        libc::S_IFSOCK => FileKind::Socket,
        libc::S_IFCHR => FileKind::CharDevice,
        libc::S_IFBLK => FileKind::BlockDevice,
        libc::S_IFIFO if link.starts_with("pipe:") => FileKind::Pipe,
        libc::S_IFIFO => FileKind::Fifo,
        _ => FileKind::Other,
    }
}
