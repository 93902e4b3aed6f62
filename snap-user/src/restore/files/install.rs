//! Handing open files to the process and putting them at their numbers.

use super::make::Made;
use super::plan::FilesPlan;
use crate::model::{Descriptor, PAGE_SIZE};
use crate::sys::{self, MOST_DESCRIPTORS, Remote, control_len, pidfd_getfd, send_descriptors};
use std::collections::BTreeSet;
use std::os::fd::AsFd;

/// A few pages in the process, mapped for a while.
pub(super) struct Room {
    pid: i32,
    start: u64,
}

const ROOM: u64 = PAGE_SIZE;

impl Room {
    pub(super) fn new(remote: &mut Remote, pid: i32) -> sys::Result<Self> {
        let start = remote.map_room(ROOM)?;
        Ok(Self { pid, start })
    }

    pub(super) fn at(&self, offset: u64) -> u64 {
        self.start + offset
    }

    pub(super) fn write(&self, offset: u64, bytes: &[u8]) -> sys::Result<()> {
        sys::write_bytes(self.pid, self.at(offset), bytes)
    }

    fn read(&self, offset: u64, bytes: &mut [u8]) -> sys::Result<()> {
        sys::read_bytes(self.pid, self.at(offset), bytes)
    }

    pub(super) fn close(self, remote: &mut Remote) -> sys::Result<()> {
        remote.unmap_room(self.start, ROOM)
    }
}

impl Made {
    /// Takes out watches, closes what is to be closed, and puts every wanted descriptor in place, by calls that a
    /// stopped thread of process `pid` runs.
    ///
    /// # Errors
    /// The process is left in between.
    pub fn install(
        &self,
        remote: &mut Remote,
        pid: i32,
        process: impl AsFd,
        plan: &FilesPlan,
    ) -> sys::Result<()> {
        for &(epoll, fd) in &plan.unwatch {
            let args = [epoll as u64, libc::EPOLL_CTL_DEL as u64, fd as u64, 0, 0, 0];
            match remote.call("epoll_ctl", libc::SYS_epoll_ctl, args) {
                Err(e) if !matches!(e.errno(), Some(libc::ENOENT | libc::EBADF)) => return Err(e),
                _ => {}
            }
        }
        close(remote, &plan.close)?;
        if !plan.install.is_empty() {
            let room = Room::new(remote, pid)?;
            let done = self.hand_over(remote, &room, process, plan);
            room.close(remote)?;
            done?;
        }
        for &(fd, cloexec) in &plan.cloexec {
            set_cloexec(remote, fd, cloexec)?;
        }
        Ok(())
    }

    fn hand_over(
        &self,
        remote: &mut Remote,
        room: &Room,
        process: impl AsFd,
        plan: &FilesPlan,
    ) -> sys::Result<()> {
        let args = [
            libc::AF_UNIX as u64,
            (libc::SOCK_STREAM | libc::SOCK_CLOEXEC) as u64,
            0,
            room.at(0),
            0,
            0,
        ];
        remote.call("socketpair", libc::SYS_socketpair, args)?;
        let mut ends = [0u8; 8];
        room.read(0, &mut ends)?;
        let (near, far) = (word(&ends, 0), word(&ends, 4));
        let ours = pidfd_getfd(process, far)?;
        close(remote, &[far])?;
        // Out of the way of all numbers that are wanted.
        let wanted: BTreeSet<i32> = plan.install.iter().map(|d| d.fd).collect();
        let high = wanted.last().map_or(0, |last| last + 1).max(near);
        let channel = move_up(remote, near, high, &wanted)?;
        for part in plan.install.chunks(MOST_DESCRIPTORS) {
            self.hand_over_part(remote, room, &ours, channel, high, part)?;
        }
        close(remote, &[channel])
    }

    fn hand_over_part(
        &self,
        remote: &mut Remote,
        room: &Room,
        ours: impl AsFd,
        channel: i32,
        high: i32,
        part: &[Descriptor],
    ) -> sys::Result<()> {
        let files: Vec<_> = part
            .iter()
            .filter_map(|d| self.file(d.file as usize))
            .collect();
        if files.len() != part.len() {
            return Err(sys::SysError::new(
                "sendmsg",
                "open files",
                std::io::Error::other("the plan installs a file that was not made"),
            ));
        }
        send_descriptors(ours, &files)?;
        // In the room: struct msghdr, struct iovec, one byte, the control message.
        const VECTOR: u64 = 64;
        const BYTE: u64 = 96;
        const CONTROL: u64 = 128;
        let space = control_len(part.len());
        let mut header = [0u64; 7];
        header[2] = room.at(VECTOR);
        header[3] = 1;
        header[4] = room.at(CONTROL);
        header[5] = space as u64;
        let bytes: Vec<u8> = header.iter().flat_map(|word| word.to_ne_bytes()).collect();
        room.write(0, &bytes)?;
        let vector: Vec<u8> = [room.at(BYTE), 1]
            .iter()
            .flat_map(|word| word.to_ne_bytes())
            .collect();
        room.write(VECTOR, &vector)?;
        let args = [
            channel as u64,
            room.at(0),
            libc::MSG_CMSG_CLOEXEC as u64,
            0,
            0,
            0,
        ];
        remote.call("recvmsg", libc::SYS_recvmsg, args)?;
        let mut control = vec![0u8; space];
        room.read(CONTROL, &mut control)?;
        let len = usize::from_ne_bytes(control[..8].try_into().expect("eight bytes"));
        let got = len.saturating_sub(16) / 4;
        if got != part.len() {
            return Err(sys::SysError::new(
                "recvmsg",
                format_args!("{got} of {} descriptors", part.len()),
                std::io::Error::from_raw_os_error(libc::EMFILE),
            ));
        }
        let mut pending: Vec<(i32, Descriptor)> = part
            .iter()
            .enumerate()
            .map(|(n, descriptor)| (word(&control, 16 + 4 * n), *descriptor))
            .collect();
        while let Some((number, wanted)) = pending.pop() {
            if number == wanted.fd {
                if !wanted.cloexec {
                    set_cloexec(remote, number, false)?;
                }
                continue;
            }
            // Another one waits at this number for its own.
            if let Some(other) = pending.iter_mut().find(|(at, _)| *at == wanted.fd) {
                let args = [
                    other.0 as u64,
                    libc::F_DUPFD_CLOEXEC as u64,
                    high as u64,
                    0,
                    0,
                    0,
                ];
                other.0 = remote.call("fcntl(F_DUPFD_CLOEXEC)", libc::SYS_fcntl, args)? as i32;
            }
            let flags = if wanted.cloexec { libc::O_CLOEXEC } else { 0 };
            let args = [number as u64, wanted.fd as u64, flags as u64, 0, 0, 0];
            remote.call("dup3", libc::SYS_dup3, args)?;
            close(remote, &[number])?;
        }
        Ok(())
    }
}

fn word(bytes: &[u8], at: usize) -> i32 {
    i32::from_ne_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

/// Moves a descriptor to a number that nobody wants: `high` or above, or below where the limit is lower.
fn move_up(remote: &mut Remote, fd: i32, high: i32, wanted: &BTreeSet<i32>) -> sys::Result<i32> {
    if !wanted.contains(&fd) {
        return Ok(fd);
    }
    let below = (0..high).rev().filter(|n| !wanted.contains(n));
    let mut last = None;
    for least in std::iter::once(high).chain(below) {
        let args = [
            fd as u64,
            libc::F_DUPFD_CLOEXEC as u64,
            least as u64,
            0,
            0,
            0,
        ];
        match remote.call("fcntl(F_DUPFD_CLOEXEC)", libc::SYS_fcntl, args) {
            Ok(new) if !wanted.contains(&(new as i32)) => {
                close(remote, &[fd])?;
                return Ok(new as i32);
            }
            Ok(new) => close(remote, &[new as i32])?,
            Err(e) if matches!(e.errno(), Some(libc::EINVAL | libc::EMFILE)) => last = Some(e),
            Err(e) => return Err(e),
        }
    }
    Err(last.unwrap_or_else(|| {
        let none = std::io::Error::from_raw_os_error(libc::EMFILE);
        sys::SysError::new(
            "fcntl(F_DUPFD_CLOEXEC)",
            format_args!("descriptor {fd}"),
            none,
        )
    }))
}

fn set_cloexec(remote: &mut Remote, fd: i32, on: bool) -> sys::Result<()> {
    let flag = if on { libc::FD_CLOEXEC } else { 0 };
    let args = [fd as u64, libc::F_SETFD as u64, flag as u64, 0, 0, 0];
    remote
        .call("fcntl(F_SETFD)", libc::SYS_fcntl, args)
        .map(drop)
}

/// Closes descriptors, ascending: runs of neighbours at once.
fn close(remote: &mut Remote, fds: &[i32]) -> sys::Result<()> {
    let mut rest = fds;
    while let Some(&first) = rest.first() {
        let run = rest
            .iter()
            .zip(first..)
            .take_while(|(fd, want)| *fd == want)
            .count();
        rest = &rest[run..];
        let last = first + run as i32 - 1;
        if run > 1 {
            let args = [first as u64, last as u64, 0, 0, 0, 0];
            // Not in kernels before 5.9.
            match remote.call("close_range", libc::SYS_close_range, args) {
                Ok(_) => continue,
                Err(e) if e.errno() == Some(libc::ENOSYS) => {}
                Err(e) => return Err(e),
            }
        }
        for fd in first..=last {
            // The number is free whatever a flush of the file says.
            let done = remote.call("close", libc::SYS_close, [fd as u64, 0, 0, 0, 0, 0]);
            if let Err(e) = done
                && e.errno() == Some(libc::EBADF)
            {
                return Err(e);
            }
        }
    }
    Ok(())
}
