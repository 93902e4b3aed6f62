//! Where each kind of open file comes from, in a process that does not have it. Pure.

use super::plan::{Planner, Source};
use super::streams::other_end;
use super::{Finding, Matter};
use crate::model::{Detail, FileKind, Socket, SocketState};

impl Planner<'_> {
    /// Where a file that the process does not have comes from.
    pub(super) fn source(&mut self, at: usize) -> Source {
        let file = &self.wanted.files[at];
        let fd = self.first[at];
        match &file.detail {
            Detail::Terminal(terminal) if terminal.master_of.is_none() => self.terminal(at),
            Detail::Terminal(_)
            | Detail::Eventfd(_)
            | Detail::Epoll(_)
            | Detail::Timerfd(_)
            | Detail::Signalfd(_)
            | Detail::Pidfd(..) => Source::Make,
            Detail::Inotify(watches) => {
                for watch in watches.iter().filter(|w| w.path.is_none()) {
                    self.plan.notes.push(format!(
                        "descriptor {fd}: the file with inode {} is not watched any more, since its path is not known",
                        watch.inode
                    ));
                }
                Source::Make
            }
            Detail::Memfd(memfd) if memfd.left_out && self.same => {
                self.lose(at, "its content was too large to be saved")
            }
            Detail::Memfd(_) => Source::Make,
            Detail::Pipe(_) if file.kind == FileKind::Pipe => self.pipe(at),
            Detail::Socket(socket) => self.socket(at, socket),
            Detail::Fanotify(_) => self.lose(at, "a fanotify group cannot be made again"),
            Detail::None | Detail::Regular(_) | Detail::Device(..) | Detail::Pipe(_) => {
                match file.kind {
                    FileKind::Regular
                    | FileKind::Directory
                    | FileKind::CharDevice
                    | FileKind::BlockDevice
                    | FileKind::Symlink
                    | FileKind::Fifo => self.by_path(at),
                    kind => {
                        let kind = format!("{kind:?}").to_lowercase();
                        self.lose(
                            at,
                            &format!("a descriptor of kind {kind} cannot be made again"),
                        )
                    }
                }
            }
        }
    }

    /// A file that cannot be had: the process that runs on would miss it, a new one goes without.
    fn lose(&mut self, at: usize, why: &str) -> Source {
        let (fd, link) = (self.first[at], &self.wanted.files[at].link);
        match self.same {
            true => self.plan.refusals.push(format!(
                "descriptor {fd} ({link}) has been closed since: {why}"
            )),
            false => self
                .plan
                .notes
                .push(format!("descriptor {fd} ({link}) stays closed: {why}")),
        }
        Source::Lost
    }

    fn finding(&mut self, at: usize, path: &str, what: Matter) {
        let finding = Finding {
            fd: self.first[at],
            path: path.to_owned(),
            what,
        };
        // A file that merely changed is what every program meets that opens it again.
        let grown = self.wanted.files[at].flags & libc::O_APPEND as u32 != 0;
        match finding.what {
            Matter::Changed if self.same || grown || self.options.allow_changed => {
                self.plan.notes.push(finding.to_string());
            }
            _ => self.plan.refusals.push(finding.to_string()),
        }
        self.plan.findings.push(finding);
    }

    fn by_path(&mut self, at: usize) -> Source {
        let file = &self.wanted.files[at];
        let path = self.options.mapped(&file.link);
        let saved = self
            .wanted
            .saved
            .iter()
            .find(|saved| saved.identity == file.identity);
        let mode = saved.map(|saved| saved.content.mode & 0o7777);
        if let (true, Some(mode)) = (file.deleted, mode) {
            return Source::Unnamed(path, mode);
        }
        if file.deleted {
            self.finding(at, &path, Matter::Deleted);
            return Source::Lost;
        }
        let look = match self.world.look(&path) {
            Ok(look) => look,
            Err(why) => {
                if let Some(mode) = mode {
                    self.plan
                        .notes
                        .push(format!("{path} was not there any more, and is made again"));
                    return Source::Create(path, mode);
                }
                self.finding(at, &path, Matter::Missing(why));
                return Source::Lost;
            }
        };
        let moved = path != file.link;
        if self.same && !moved && mode.is_none() && look.identity != file.identity {
            self.finding(at, &path, Matter::Replaced);
            return Source::Lost;
        }
        if let (Detail::Regular(before), None) = (&file.detail, mode)
            && (before.size, before.mtime_ns) != (look.content.size, look.content.mtime_ns)
        {
            self.finding(at, &path, Matter::Changed);
        }
        Source::Path(path)
    }

    fn terminal(&mut self, at: usize) -> Source {
        // Its master is here, and is made with it.
        if other_end(&self.wanted.files, at).is_some() {
            return Source::Make;
        }
        if let (false, Some(own)) = (self.same, self.options.terminal) {
            return Source::Own(own);
        }
        self.by_path(at)
    }

    fn pipe(&mut self, at: usize) -> Source {
        let file = &self.wanted.files[at];
        // An end of it is in the process, or its other end is wanted as well.
        let mut live = self.live.files.iter();
        let here = live.position(|f| f.kind == FileKind::Pipe && f.identity == file.identity);
        if let Some(here) = here.filter(|_| self.same) {
            let lead = self.holders[here];
            self.plan.leads.insert(at as u32, lead);
            return Source::Make;
        }
        if other_end(&self.wanted.files, at).is_some() {
            return Source::Make;
        }
        if self.same
            && let Some(path) = self.world.pipe(file.identity)
        {
            return Source::Path(path);
        }
        let fd = self.first[at];
        let end = match file.is_readable() {
            true => "no one writes into it any more",
            false => "no one reads from it any more",
        };
        self.plan.notes.push(format!(
            "descriptor {fd} is a pipe with no other end: {end}"
        ));
        Source::Make
    }

    /// A connection whose other end is elsewhere.
    fn connection(&mut self, at: usize, socket: &Socket) {
        let fd = self.first[at];
        let gone = "was a connection, which is gone: the program finds it closed by the other side";
        let offer = match (&socket.connection, self.options.tcp) {
            (Some(_), true) => return self.going.push(at),
            // One connection has one owner: no copies of it.
            (Some(_), false) => "; ksnap restore --tcp, of this snapshot and once, goes on with it",
            (None, true) if socket.domain != libc::AF_UNIX => {
                "; only a snapshot by ksnap snap --kill --tcp has it to go on with"
            }
            (None, _) => "",
        };
        self.plan
            .notes
            .push(format!("descriptor {fd} {gone}{offer}"));
    }

    /// Refuses connections that cannot go on: all that were taken are looked for at once.
    pub(super) fn check_connections(&mut self) {
        let going = std::mem::take(&mut self.going);
        if going.is_empty() {
            return;
        }
        let files = self.wanted.files.iter().enumerate();
        let (places, sockets): (Vec<usize>, Vec<(&Socket, u64)>) = files
            .filter(|(_, file)| file.has_connection())
            .filter_map(|(at, file)| match &file.detail {
                Detail::Socket(socket) => Some((at, (&**socket, file.identity.1))),
                _ => None,
            })
            .unzip();
        let checked = places.into_iter().zip(self.world.connections(&sockets));
        for (at, checked) in checked.filter(|(at, _)| going.contains(at)) {
            if let Err(why) = checked {
                let fd = self.first[at];
                let refusal = format!("descriptor {fd}: its connection cannot go on: {why}");
                self.plan.refusals.push(refusal);
            }
        }
    }

    fn socket(&mut self, at: usize, socket: &Socket) -> Source {
        let fd = self.first[at];
        match (socket.domain, socket.state) {
            (libc::AF_UNIX, SocketState::Connected)
                if other_end(&self.wanted.files, at).is_some() =>
            {
                if socket.passed_descriptors > 0 {
                    self.plan.notes.push(format!(
                        "descriptor {fd}: {} descriptors on their way in it are lost",
                        socket.passed_descriptors
                    ));
                }
                Source::Make
            }
            (
                libc::AF_UNIX | libc::AF_INET | libc::AF_INET6,
                SocketState::Connected | SocketState::Other,
            ) if socket.ty != libc::SOCK_DGRAM || socket.domain == libc::AF_UNIX => {
                self.connection(at, socket);
                Source::Make
            }
            (
                libc::AF_UNIX | libc::AF_INET | libc::AF_INET6 | libc::AF_NETLINK | libc::AF_PACKET,
                _,
            ) => Source::Make,
            (libc::AF_ALG, _) => {
                self.lose(at, "a kernel crypto socket (AF_ALG) cannot be made again")
            }
            (libc::AF_VSOCK, _) => self.lose(at, "a connection of AF_VSOCK cannot be made again"),
            (family, _) => self.lose(
                at,
                &format!("a socket of family {family} cannot be made again"),
            ),
        }
    }
}
