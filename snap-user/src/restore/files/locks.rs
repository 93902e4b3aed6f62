//! Locks: those of the open file, taken by ksnap, and those of the process, taken by itself.

use super::install::Room;
use super::make::Made;
use super::plan::FilesPlan;
use crate::model::{FileLock, LockKind, OpenFile};
use crate::sys::{self, Remote, fd as opened};
use std::os::fd::AsFd;

impl Made {
    /// Has process `pid` give back the locks that it is to have otherwise, by calls that a stopped thread of it runs: of
    /// several processes one may have had since what another one had then.
    ///
    /// # Errors
    /// The process is left in between.
    pub fn unlock_process(
        &self,
        remote: &mut Remote,
        pid: i32,
        plan: &FilesPlan,
    ) -> sys::Result<()> {
        if plan.lock.is_empty() {
            return Ok(());
        }
        let room = Room::new(remote, pid)?;
        let mut each = plan.lock.iter();
        let done = each.try_for_each(|fd| unlock(remote, &room, *fd));
        room.close(remote)?;
        done
    }
}

/// Takes the locks of an open file and gives back those that it should not have.
pub(super) fn of_file(fd: impl AsFd, want: &OpenFile, have: Option<&OpenFile>) -> sys::Result<()> {
    let of = |file: &OpenFile, kind: LockKind| -> Vec<FileLock> {
        file.locks
            .iter()
            .filter(|lock| lock.kind == kind)
            .copied()
            .collect()
    };
    let differ = |kind| match have {
        None => !of(want, kind).is_empty(),
        Some(have) => of(want, kind) != of(have, kind),
    };
    if differ(LockKind::Flock) {
        opened::lock_flock(
            &fd,
            of(want, LockKind::Flock).first().map(|lock| lock.write),
        )?;
    }
    if differ(LockKind::Ofd) {
        opened::unlock_ofd(&fd)?;
        for lock in of(want, LockKind::Ofd) {
            opened::lock_ofd(&fd, &lock)?;
        }
    }
    if differ(LockKind::Lease) {
        match of(want, LockKind::Lease).first() {
            Some(lease) => opened::take_lease(&fd, lease.write)?,
            None => opened::drop_lease(&fd)?,
        }
    }
    Ok(())
}

/// Lets the process take its locks on the file behind `fd`, and no others.
pub(super) fn of_process(
    remote: &mut Remote,
    room: &Room,
    fd: i32,
    want: &OpenFile,
) -> sys::Result<()> {
    unlock(remote, room, fd)?;
    for lock in want
        .locks
        .iter()
        .filter(|lock| lock.kind == LockKind::Posix)
    {
        set(remote, room, fd, &opened::flock_bytes(lock, false))?;
    }
    Ok(())
}

fn unlock(remote: &mut Remote, room: &Room, fd: i32) -> sys::Result<()> {
    let all = FileLock::default();
    set(remote, room, fd, &opened::flock_bytes(&all, true))
}

fn set(remote: &mut Remote, room: &Room, fd: i32, bytes: &[u8]) -> sys::Result<()> {
    room.write(0, bytes)?;
    let args = [fd as u64, libc::F_SETLK as u64, room.at(0), 0, 0, 0];
    remote
        .call("fcntl(F_SETLK)", libc::SYS_fcntl, args)
        .map(drop)
}
