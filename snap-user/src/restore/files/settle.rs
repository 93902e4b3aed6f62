//! Setting what open files hold: positions, flags, counters, queues, watches, locks.

use super::install::Room;
use super::make::Made;
use super::plan::FilesPlan;
use super::{locks, sockets};
use crate::model::{Detail, FileKind, OpenFile, ProcessState};
use crate::sys::{self, Remote, fd as opened};
use std::os::fd::BorrowedFd;

impl Made {
    /// Sets what the wanted open files hold, after all descriptors are in place and memory is written. Some of it by
    /// calls that a stopped thread of process `pid` runs. Gives what could not be set, a sentence each.
    ///
    /// # Errors
    /// The process is left in between.
    pub fn settle(
        &self,
        remote: &mut Remote,
        pid: i32,
        plan: &FilesPlan,
        wanted: &ProcessState,
        live: &ProcessState,
    ) -> sys::Result<Vec<String>> {
        let mut notes = self.settle_files(plan, wanted, live)?;
        notes.extend(self.settle_process(remote, pid, plan, wanted, wanted)?);
        Ok(notes)
    }

    /// The part of [`Made::settle`] that ksnap does itself, whichever process has the files.
    ///
    /// # Errors
    /// The files are left in between.
    pub fn settle_files(
        &self,
        plan: &FilesPlan,
        wanted: &ProcessState,
        live: &ProcessState,
    ) -> sys::Result<Vec<String>> {
        let mut notes = Vec::new();
        let setting = |at: &u32| {
            Some(Setting {
                made: self,
                wanted,
                live,
                want: &wanted.files[*at as usize],
                have: plan.kept.get(at).map(|have| &live.files[*have as usize]),
                file: self.file(*at as usize)?,
            })
        };
        let all: Vec<Setting<'_>> = plan.settle.iter().filter_map(setting).collect();
        for one in &all {
            if let Some(have) = one.have {
                locks::give_back(one.file, one.want, have)?;
            }
            one.content(&mut notes)?;
            one.common()?;
        }
        for one in &all {
            locks::take(one.file, one.want, one.have, &mut notes)?;
        }
        for file in plan.flush.iter().filter_map(|at| self.file(*at as usize)) {
            opened::flush_terminal(file)?;
        }
        for &at in &plan.settle {
            // Only now: nothing can be sent through a direction that is shut down.
            if let (Detail::Socket(want), Some(file)) =
                (&wanted.files[at as usize].detail, self.file(at as usize))
                && want.shutdown != 0
                && want.peer_inode.is_some()
            {
                opened::socket::shut_down(file, want.shutdown)?;
            }
        }
        Ok(notes)
    }

    /// The part of [`Made::settle`] that a process has to do itself. `wanted` is what the plan was made for, `own` has
    /// the locks of this process. Locks that it is not to have it has given back before ([`Made::unlock_process`]).
    ///
    /// # Errors
    /// The process is left in between.
    pub fn settle_process(
        &self,
        remote: &mut Remote,
        pid: i32,
        plan: &FilesPlan,
        wanted: &ProcessState,
        own: &ProcessState,
    ) -> sys::Result<Vec<String>> {
        let mut notes = Vec::new();
        let asynchronous = |at: u32| {
            let flags = wanted.files[at as usize].flags;
            (flags & libc::O_ASYNC as u32 != 0).then_some(flags)
        };
        for at in &plan.settle {
            // The kernel remembers the number under which it was asked for.
            if let Some(flags) = asynchronous(*at)
                && let Some(fd) = wanted
                    .descriptors
                    .iter()
                    .find(|d| d.file == *at)
                    .map(|d| d.fd)
            {
                let args = [fd as u64, libc::F_SETFL as u64, u64::from(flags), 0, 0, 0];
                remote.call("fcntl(F_SETFL)", libc::SYS_fcntl, args)?;
            }
        }
        if plan.watch.is_empty() && plan.lock.is_empty() {
            return Ok(notes);
        }
        let room = Room::new(remote, pid)?;
        let done = within(remote, &room, plan, own, &mut notes);
        room.close(remote)?;
        done.map(|()| notes)
    }
}

/// What only the process itself can do.
fn within(
    remote: &mut Remote,
    room: &Room,
    plan: &FilesPlan,
    wanted: &ProcessState,
    notes: &mut Vec<String>,
) -> sys::Result<()> {
    for one in &plan.watch {
        // `struct epoll_event` is packed on x86-64.
        let mut event = one.watch.events.to_ne_bytes().to_vec();
        event.extend_from_slice(&one.watch.data.to_ne_bytes());
        room.write(0, &event)?;
        let how = if one.change {
            libc::EPOLL_CTL_MOD
        } else {
            libc::EPOLL_CTL_ADD
        };
        let args = [
            one.epoll as u64,
            how as u64,
            one.watch.fd as u64,
            room.at(0),
            0,
            0,
        ];
        if let Err(e) = remote.call("epoll_ctl", libc::SYS_epoll_ctl, args) {
            // What the descriptor is now cannot be watched.
            match e.errno() {
                Some(libc::EPERM | libc::EEXIST | libc::ENOENT) => notes.push(format!(
                    "descriptor {}: it does not watch descriptor {} ({})",
                    one.epoll, one.watch.fd, e.source
                )),
                _ => return Err(e),
            }
        }
    }
    for &fd in &plan.lock {
        let Some((_, want)) = wanted.open_files().find(|(d, _)| d.fd == fd) else {
            continue;
        };
        locks::of_process(remote, room, fd, want, notes)?;
    }
    Ok(())
}

struct Setting<'a> {
    made: &'a Made,
    wanted: &'a ProcessState,
    live: &'a ProcessState,
    want: &'a OpenFile,
    have: Option<&'a OpenFile>,
    file: BorrowedFd<'a>,
}

impl Setting<'_> {
    fn had(&self) -> Option<&Detail> {
        self.have.map(|have| &have.detail)
    }

    /// What its kind holds.
    fn content(&self, notes: &mut Vec<String>) -> sys::Result<()> {
        match &self.want.detail {
            Detail::Eventfd(event) => opened::set_eventfd(self.file, event.count),
            Detail::Signalfd(signals) => opened::signalfd(Some(self.file), *signals).map(drop),
            Detail::Timerfd(timer) => opened::set_timerfd(self.file, timer),
            Detail::Terminal(terminal) => opened::set_terminal(self.file, terminal),
            Detail::Pipe(_) => self.pipe(notes),
            Detail::Memfd(memfd) => opened::set_memfd(self.file, memfd),
            Detail::Socket(_) => self.socket(notes),
            _ => Ok(()),
        }
    }

    /// What all open files have, locks aside.
    fn common(&self) -> sys::Result<()> {
        let path_only = self.want.flags & libc::O_PATH as u32 != 0;
        if path_only {
            return Ok(());
        }
        if self.want.is_positioned() && self.have.is_none_or(|h| h.position != self.want.position) {
            opened::set_position(self.file, self.want.position)?;
        }
        if self.have.is_none_or(|have| have.flags != self.want.flags) {
            opened::set_status_flags(self.file, self.want.flags & !(libc::O_ASYNC as u32))?;
        }
        match (self.want.owner, self.have.and_then(|have| have.owner)) {
            (want, have) if want == have => Ok(()),
            (Some(mut owner), _) => {
                owner.id = *self.made.pids.get(&owner.id).unwrap_or(&owner.id);
                opened::set_owner(self.file, owner)
            }
            (None, _) => opened::set_owner(self.file, crate::model::Owner::default()),
        }
    }

    fn has_both_ends(&self, state: &ProcessState) -> bool {
        let end = |ok: fn(&OpenFile) -> bool| {
            state.files.iter().any(|file| {
                (file.kind, file.identity) == (self.want.kind, self.want.identity) && ok(file)
            })
        };
        end(OpenFile::is_readable) && end(OpenFile::is_writable)
    }

    /// The content of a pipe belongs to the process where it has both ends; else to others as well.
    fn pipe(&self, notes: &mut Vec<String>) -> sys::Result<()> {
        let Detail::Pipe(want) = &self.want.detail else {
            return Ok(());
        };
        if self.want.kind == FileKind::Pipe
            && self.had().is_none_or(|had| capacity(had) != want.capacity)
        {
            // Too much in it, or above the limit: it holds less at a time, no more.
            let _ = opened::set_capacity(self.file, want.capacity);
        }
        let first = |ok: fn(&OpenFile) -> bool| {
            (0..self.wanted.files.len()).find(|at| {
                let file = &self.wanted.files[*at];
                file.identity == self.want.identity && file.kind == self.want.kind && ok(file)
            })
        };
        // Once for each pipe: with its first reader, which has the content.
        let reader = first(OpenFile::is_readable);
        if reader.is_none_or(|at| !std::ptr::eq(&self.wanted.files[at], self.want)) {
            return Ok(());
        }
        if self.had().is_some_and(|had| content(had) == want.content) {
            return Ok(());
        }
        if self.have.is_some() && !self.has_both_ends(self.wanted) && !self.has_both_ends(self.live)
        {
            notes.extend((!want.content.is_empty()).then(|| {
                format!(
                    "{} comes from another process: what the program has read since is not in it again",
                    self.want.link
                )
            }));
            return Ok(());
        }
        let writer = sys::open_own_link(self.file, libc::O_WRONLY as u32)?;
        opened::fill(self.file, &writer, &want.content)
    }

    fn socket(&self, notes: &mut Vec<String>) -> sys::Result<()> {
        let Detail::Socket(want) = &self.want.detail else {
            return Ok(());
        };
        let have = match self.had() {
            Some(Detail::Socket(have)) => Some(have),
            _ => None,
        };
        let peer = self.wanted.files.iter().position(|other| {
            other.kind == FileKind::Socket && Some(other.identity.1) == want.peer_inode
        });
        // A socket that is made alone has its options since before it was bound.
        if have.is_some() || peer.is_some() {
            let mut differing = (**want).clone();
            differing
                .options
                .retain(|option| have.is_none_or(|have| !have.options.contains(option)));
            let mut failed = Vec::new();
            sockets::set_options(self.file, &differing, &mut failed);
            notes.extend(
                failed
                    .into_iter()
                    .map(|why| format!("{}: {why}", self.want.link)),
            );
        }
        let Some(peer) = peer else {
            return Ok(());
        };
        let fresh = have.is_none();
        let same = have.is_some_and(|have| have.queue == want.queue && have.unread == want.unread);
        if same || (fresh && want.queue.is_empty()) {
            return Ok(());
        }
        if want.unread > 0
            || want.passed_descriptors > 0
            || have.is_some_and(|h| h.passed_descriptors > 0)
        {
            notes.push(format!(
                "{}: its queue holds descriptors or more than can be put back, and stays as it is",
                self.want.link
            ));
            return Ok(());
        }
        opened::socket::drain(self.file)?;
        let sender = match self.made.file(peer) {
            Some(sender) => sender,
            None => {
                notes.push(format!("{}: its queue stays as it is", self.want.link));
                return Ok(());
            }
        };
        for message in &want.queue {
            sockets::send_all(sender, &message.data)?;
        }
        Ok(())
    }
}

fn capacity(detail: &Detail) -> u32 {
    match detail {
        Detail::Pipe(pipe) => pipe.capacity,
        _ => 0,
    }
}

fn content(detail: &Detail) -> &[u8] {
    match detail {
        Detail::Pipe(pipe) => &pipe.content,
        _ => &[],
    }
}
