//! Locks: those of the open file, taken by ksnap, and those of the process, taken by itself.

use super::install::Room;
use crate::model::{FileLock, LockKind, OpenFile};
use crate::sys::{self, Remote, fd as opened};
use std::os::fd::AsFd;

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
    let all = FileLock::default();
    let mut set = |bytes: &[u8]| -> sys::Result<()> {
        room.write(0, bytes)?;
        let args = [fd as u64, libc::F_SETLK as u64, room.at(0), 0, 0, 0];
        remote
            .call("fcntl(F_SETLK)", libc::SYS_fcntl, args)
            .map(drop)
    };
    set(&opened::flock_bytes(&all, true))?;
    for lock in want
        .locks
        .iter()
        .filter(|lock| lock.kind == LockKind::Posix)
    {
        set(&opened::flock_bytes(lock, false))?;
    }
    Ok(())
}
