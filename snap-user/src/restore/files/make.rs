//! Making the open files that are not there, in ksnap's own table.

use super::plan::{FilesPlan, Source};
use super::streams::other_end;
use super::{Options, connections, sockets};
use crate::model::{Detail, FileKind, OpenFile, ProcessState, SocketState, Terminal};
use crate::sys::{self, SysError, fd as opened};
use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;

/// Open files in ksnap's own table, by the index of the wanted one.
#[derive(Debug)]
pub struct Made {
    pub(super) held: Vec<Option<OwnedFd>>,
    /// What could not be made quite as it was, a sentence each.
    pub notes: Vec<String>,
    /// Processes that were made anew, by the ids that they had.
    pub(super) pids: HashMap<i32, i32>,
    /// Sockets that are going to have connections, by the index of the wanted one.
    pub(super) connections: Vec<usize>,
}

impl Made {
    /// Open files that ksnap has already.
    ///
    /// # Errors
    /// Where it may not have more descriptors.
    pub fn of<'a>(files: impl Iterator<Item = &'a Arc<OwnedFd>>) -> sys::Result<Self> {
        let dup = |file: &'a Arc<OwnedFd>| file.try_clone().map(Some);
        let held = files.map(dup).collect::<std::io::Result<_>>();
        Ok(Self {
            held: held.map_err(|e| SysError::new("dup", "an open file", e))?,
            notes: Vec::new(),
            pids: HashMap::new(),
            connections: Vec::new(),
        })
    }

    /// The open file with this index, where ksnap holds it.
    pub fn file(&self, at: usize) -> Option<BorrowedFd<'_>> {
        self.held.get(at)?.as_ref().map(AsFd::as_fd)
    }
}

/// A process that has files which a plan keeps: its id, and a pidfd of it.
pub type Owner<'a> = (i32, BorrowedFd<'a>);

/// Makes what the plan says, in the network namespace and below the root of the first of the processes that the plan is
/// for; names of sockets are made where they are in ksnap's own root. With an error, nothing of the processes has been
/// touched.
///
/// # Errors
/// More than this program may have open; else those of the calls that make the files: a path that cannot be opened, an
/// address in use, the name of a socket in a folder that is another one for the process.
pub fn make(
    plan: &FilesPlan,
    wanted: &ProcessState,
    owners: &[Owner<'_>],
    options: &Options,
) -> sys::Result<Made> {
    let pid = owners[0].0;
    let all = plan.sources.iter();
    let needed = all.filter(|source| !matches!(source, Source::Lost | Source::Live(_)));
    sys::may_open(needed.count())?;
    let mut maker = Maker {
        plan,
        wanted,
        owners,
        pid,
        options,
        made: Made {
            held: wanted.files.iter().map(|_| None).collect(),
            notes: Vec::new(),
            pids: options.pids.clone(),
            connections: Vec::new(),
        },
    };
    for at in 0..wanted.files.len() {
        if maker.made.held[at].is_some() {
            continue;
        }
        match &plan.sources[at] {
            Source::Live(held) => {
                let needed = plan.settle.contains(&(at as u32))
                    || plan.install.iter().any(|d| d.file as usize == at);
                if needed {
                    maker.made.held[at] = Some(sys::pidfd_getfd(owners[held.member].1, held.fd)?);
                }
            }
            Source::Path(path) => {
                maker.made.held[at] = Some(open(pid, path, &wanted.files[at])?);
            }
            Source::Create(path, mode) => {
                let file = &wanted.files[at];
                maker.made.held[at] = Some(sys::create_in_root(pid, path, file.flags, *mode)?);
            }
            Source::Unnamed(path, mode) => {
                let folder = path.rsplit_once('/').map_or("/", |(folder, _)| folder);
                let file = &wanted.files[at];
                maker.made.held[at] = Some(sys::unnamed_in_root(pid, folder, file.flags, *mode)?);
            }
            Source::Own(own) => maker.made.held[at] = Some(duplicate(*own)?),
            Source::Make => maker.make(at)?,
            Source::Lost => {}
        }
    }
    Ok(maker.made)
}

fn duplicate(own: RawFd) -> sys::Result<OwnedFd> {
    sys::duplicate_number(own)
}

/// Opens a path as the file was open.
fn open(pid: i32, path: &str, file: &OpenFile) -> sys::Result<OwnedFd> {
    if file.kind == FileKind::Pipe {
        // A link of /proc, which is no path below the process's root.
        return sys::open_link(path, file.flags);
    }
    if file.kind == FileKind::Fifo && file.flags & libc::O_ACCMODE as u32 == libc::O_WRONLY as u32 {
        // Nobody may read from it yet: opening it for both never waits and never fails.
        let _both = sys::open_in_root(pid, path, (libc::O_RDWR | libc::O_NONBLOCK) as u32)?;
        return sys::open_in_root(pid, path, file.flags | libc::O_NONBLOCK as u32);
    }
    let nonblock = match file.kind {
        FileKind::Fifo | FileKind::CharDevice => libc::O_NONBLOCK as u32,
        _ => 0,
    };
    sys::open_in_root(pid, path, file.flags | nonblock)
}

struct Maker<'a> {
    plan: &'a FilesPlan,
    wanted: &'a ProcessState,
    owners: &'a [Owner<'a>],
    pid: i32,
    options: &'a Options,
    made: Made,
}

impl Maker<'_> {
    fn make(&mut self, at: usize) -> sys::Result<()> {
        let file = &self.wanted.files[at];
        let made = match &file.detail {
            Detail::Pipe(_) => return self.pipe(at),
            Detail::Terminal(terminal) => return self.terminal(at, terminal),
            Detail::Socket(socket) => {
                if socket.state == SocketState::Connected
                    && let Some(other) = self.peer(at, socket.peer_inode)
                {
                    let (a, b) = opened::socket::pair(socket.ty)?;
                    self.made.held[at] = Some(a);
                    self.made.held[other] = Some(b);
                    return Ok(());
                }
                let goes_on = self.options.tcp && file.has_connection();
                let made = sys::in_network_of(self.pid, || match goes_on {
                    true => connections::prepare(socket),
                    false => sockets::make(socket, self.pid),
                })?;
                let (made, notes) = made?;
                if goes_on {
                    self.made.connections.push(at);
                }
                let fd = self.descriptor(at);
                let named = notes
                    .into_iter()
                    .map(|note| format!("descriptor {fd}: {note}"));
                self.made.notes.extend(named);
                made
            }
            Detail::Eventfd(event) => opened::eventfd(event.semaphore)?,
            Detail::Epoll(_) => opened::epoll()?,
            Detail::Timerfd(timer) => opened::timerfd(timer.clock)?,
            Detail::Signalfd(signals) => match opened::signalfd(None, *signals)? {
                Some(new) => new,
                None => return Ok(()),
            },
            Detail::Memfd(memfd) => opened::memfd(&memfd.name)?,
            Detail::Pidfd(pid, start) => {
                let made = self.options.pids.get(pid);
                let now = *made.unwrap_or(pid);
                let same = |stat: sys::proc::Stat| made.is_some() || stat.start_time == *start;
                match sys::proc::stat(now, None).is_ok_and(same) {
                    true => sys::pidfd_open(now)?,
                    false => sys::ended_pidfd()?,
                }
            }
            Detail::Inotify(watches) => {
                let instance = opened::inotify()?;
                for watch in watches {
                    let Some(path) = &watch.path else { continue };
                    let path = self.options.mapped(path);
                    if let Err(e) =
                        opened::inotify_watch(&instance, self.pid, &path, watch.wd, watch.mask)
                    {
                        let fd = self.descriptor(at);
                        self.made.notes.push(format!(
                            "descriptor {fd}: {path} is not watched any more ({e})"
                        ));
                    }
                }
                instance
            }
            Detail::None | Detail::Regular(_) | Detail::Device(..) | Detail::Fanotify(_) => {
                return Err(SysError::new(
                    "make",
                    &file.link,
                    std::io::Error::from(std::io::ErrorKind::Unsupported),
                ));
            }
        };
        self.made.held[at] = Some(made);
        Ok(())
    }

    fn descriptor(&self, at: usize) -> i32 {
        let mut all = self.wanted.descriptors.iter();
        all.find(|d| d.file as usize == at).map_or(-1, |d| d.fd)
    }

    /// The wanted socket that this one is connected with, if it is to be made too.
    fn peer(&self, at: usize, inode: Option<u64>) -> Option<usize> {
        let inode = inode?;
        (0..self.wanted.files.len()).find(|other| {
            *other != at
                && self.wanted.files[*other].kind == FileKind::Socket
                && self.wanted.files[*other].identity.1 == inode
                && self.plan.sources[*other] == Source::Make
                && self.made.held[*other].is_none()
        })
    }

    /// All ends of a pipe that are to be made. An end that the process still has leads to the others.
    fn pipe(&mut self, at: usize) -> sys::Result<()> {
        let (kind, identity) = (self.wanted.files[at].kind, self.wanted.files[at].identity);
        let ends: Vec<usize> = (0..self.wanted.files.len())
            .filter(|n| {
                let file = &self.wanted.files[*n];
                (file.kind, file.identity) == (kind, identity)
                    && self.plan.sources[*n] == Source::Make
                    && self.made.held[*n].is_none()
            })
            .collect();
        let lead = self.plan.leads.get(&(at as u32));
        let (reader, writer) = match lead {
            Some(held) => {
                let link = format!("/proc/{}/fd/{}", self.owners[held.member].0, held.fd);
                (
                    sys::open_link(&link, libc::O_RDONLY as u32)?,
                    sys::open_link(&link, libc::O_WRONLY as u32)?,
                )
            }
            None => opened::pipe()?,
        };
        let mut new = match lead {
            Some(_) => (None, None),
            None => (reader.try_clone().ok(), writer.try_clone().ok()),
        };
        for n in ends {
            let flags = self.wanted.files[n].flags;
            let writes = flags & libc::O_ACCMODE as u32 == libc::O_WRONLY as u32;
            let both = flags & libc::O_ACCMODE as u32 == libc::O_RDWR as u32;
            let (own, end) = match writes {
                true => (&mut new.1, &writer),
                false => (&mut new.0, &reader),
            };
            // Each an open file of its own: the first reader and the first writer are the new pipe's, others are
            // opened through them.
            self.made.held[n] = Some(match own.take().filter(|_| !both) {
                Some(own) => own,
                None => sys::open_own_link(end, flags)?,
            });
        }
        Ok(())
    }

    /// Both sides of a pseudo-terminal.
    fn terminal(&mut self, at: usize, terminal: &Terminal) -> sys::Result<()> {
        let master = match terminal.master_of {
            Some(_) => Some(at),
            None => other_end(&self.wanted.files, at),
        };
        let Some(master) = master else {
            return Err(SysError::new(
                "open",
                &self.wanted.files[at].link,
                std::io::Error::from(std::io::ErrorKind::NotFound),
            ));
        };
        if self.made.held[master].is_none()
            && let Source::Own(own) = self.plan.sources[master]
        {
            // What a user gives in its place may be none.
            let own = duplicate(own)?;
            self.made.held[master] = opened::master_of(&own).is_ok().then_some(own);
        }
        if self.made.held[master].is_none() {
            let flags = self.wanted.files[master].flags;
            let made = sys::open_in_root(self.pid, "/dev/ptmx", flags)?;
            opened::unlock_master(&made)?;
            let number = opened::master_of(&made)?;
            let old = match &self.wanted.files[master].detail {
                Detail::Terminal(t) => t.master_of.unwrap_or(number),
                _ => number,
            };
            if number != old {
                self.made.notes.push(format!(
                    "the terminal that was /dev/pts/{old} is /dev/pts/{number} now"
                ));
            }
            self.made.held[master] = Some(made);
        }
        if master != at
            && let Some(held) = &self.made.held[master]
        {
            let side = opened::open_other_side(held, self.wanted.files[at].flags)?;
            self.made.held[at] = Some(side);
        }
        Ok(())
    }
}
