//! `fcntl(2)`, `flock(2)` and positions.

use super::{Result, SysError, check, name};
use crate::model::{FileLock, Owner, Regular};
use std::os::fd::{AsFd, AsRawFd};

/// `struct f_owner_ex` (`fcntl(2)`).
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct OwnerEx {
    who: libc::c_int,
    id: libc::pid_t,
}

const F_SETOWN_EX: libc::c_int = 15;
const F_GETOWN_EX: libc::c_int = 16;
const F_SETSIG: libc::c_int = 10;
const F_GETSIG: libc::c_int = 11;

/// Who is told of input and output; `None` for nobody by the usual signal.
pub fn owner(fd: impl AsFd) -> Result<Option<Owner>> {
    let raw = fd.as_fd().as_raw_fd();
    let mut found = OwnerEx::default();
    // SAFETY: `found` is a live `struct f_owner_ex`, which the call fills.
    let r = unsafe { libc::fcntl(raw, F_GETOWN_EX, &mut found) };
    check("fcntl(F_GETOWN_EX)", &fd, r)?;
    // SAFETY: a call without pointers.
    let r = unsafe { libc::fcntl(raw, F_GETSIG) };
    let signal = check("fcntl(F_GETSIG)", &fd, r)? as i32;
    let (who, id) = (found.who, found.id);
    Ok((id != 0 || signal != 0).then_some(Owner { who, id, signal }))
}

/// Sets who is told of input and output.
pub fn set_owner(fd: impl AsFd, owner: Owner) -> Result<()> {
    let raw = fd.as_fd().as_raw_fd();
    if owner.id != 0 {
        let (who, id) = (owner.who, owner.id);
        let wanted = OwnerEx { who, id };
        // SAFETY: `wanted` is a live `struct f_owner_ex`, which the call reads.
        let r = unsafe { libc::fcntl(raw, F_SETOWN_EX, &wanted) };
        check("fcntl(F_SETOWN_EX)", &fd, r)?;
    }
    // SAFETY: a call without pointers.
    let r = unsafe { libc::fcntl(raw, F_SETSIG, owner.signal) };
    check("fcntl(F_SETSIG)", &fd, r).map(drop)
}

/// Seals of a memfd (`F_SEAL_*`).
pub fn seals(fd: impl AsFd) -> Result<u32> {
    // SAFETY: a call without pointers.
    let r = unsafe { libc::fcntl(fd.as_fd().as_raw_fd(), libc::F_GET_SEALS) };
    check("fcntl(F_GET_SEALS)", &fd, r).map(|seals| seals as u32)
}

/// Adds seals to a memfd.
pub fn add_seals(fd: impl AsFd, seals: u32) -> Result<()> {
    // SAFETY: a call without pointers.
    let r = unsafe { libc::fcntl(fd.as_fd().as_raw_fd(), libc::F_ADD_SEALS, seals) };
    check("fcntl(F_ADD_SEALS)", &fd, r).map(drop)
}

/// Sets status flags (`O_APPEND`, `O_NONBLOCK`, `O_DIRECT`, `O_NOATIME`; others are ignored by the kernel).
pub fn set_status_flags(fd: impl AsFd, flags: u32) -> Result<()> {
    // SAFETY: a call without pointers.
    let r = unsafe { libc::fcntl(fd.as_fd().as_raw_fd(), libc::F_SETFL, flags) };
    check("fcntl(F_SETFL)", &fd, r).map(drop)
}

/// Sets the file position, in bytes.
pub fn set_position(fd: impl AsFd, position: u64) -> Result<()> {
    rustix::fs::seek(&fd, rustix::fs::SeekFrom::Start(position))
        .map(drop)
        .map_err(|e| SysError::new("lseek", name(&fd), e))
}

/// File position in bytes, and access mode and status flags.
pub fn position_and_flags(fd: impl AsFd) -> Result<(u64, u32)> {
    let position = rustix::fs::seek(&fd, rustix::fs::SeekFrom::Current(0))
        .map_err(|e| SysError::new("lseek", name(&fd), e))?;
    // SAFETY: a call without pointers.
    let flags = unsafe { libc::fcntl(fd.as_fd().as_raw_fd(), libc::F_GETFL) };
    let flags = check("fcntl(F_GETFL)", &fd, flags)?;
    Ok((position, flags as u32))
}

/// Size and time of change of a file.
pub fn content(fd: impl AsFd) -> Result<Regular> {
    let stat = rustix::fs::fstat(&fd).map_err(|e| SysError::new("fstat", name(&fd), e))?;
    Ok(Regular {
        size: stat.st_size as u64,
        mtime_ns: stat.st_mtime as i64 * 1_000_000_000 + stat.st_mtime_nsec as i64,
        mode: stat.st_mode,
    })
}

/// A `struct flock` for a lock.
fn flock_of(lock: &FileLock) -> libc::flock {
    libc::flock {
        l_type: match lock.write {
            true => libc::F_WRLCK as i16,
            false => libc::F_RDLCK as i16,
        },
        l_whence: libc::SEEK_SET as i16,
        l_start: lock.start as i64,
        l_len: lock
            .end
            .map_or(0, |end| end.saturating_sub(lock.start) as i64),
        l_pid: 0,
    }
}

/// Takes a lock that belongs to the open file (`F_OFD_SETLK`), without waiting.
pub fn lock_ofd(fd: impl AsFd, lock: &FileLock) -> Result<()> {
    let wanted = flock_of(lock);
    // SAFETY: `wanted` is a live `struct flock`, which the call reads.
    let r = unsafe { libc::fcntl(fd.as_fd().as_raw_fd(), libc::F_OFD_SETLK, &wanted) };
    check("fcntl(F_OFD_SETLK)", &fd, r).map(drop)
}

/// Gives a lock back that belongs to the open file.
pub fn unlock_ofd(fd: impl AsFd, lock: &FileLock) -> Result<()> {
    let held = libc::flock {
        l_type: libc::F_UNLCK as i16,
        ..flock_of(lock)
    };
    // SAFETY: `held` is a live `struct flock`, which the call reads.
    let r = unsafe { libc::fcntl(fd.as_fd().as_raw_fd(), libc::F_OFD_SETLK, &held) };
    check("fcntl(F_OFD_SETLK)", &fd, r).map(drop)
}

/// The bytes of a `struct flock` that takes a lock, or gives it back.
pub fn flock_bytes(lock: &FileLock, unlock: bool) -> Vec<u8> {
    let mut flock = flock_of(lock);
    if unlock {
        flock.l_type = libc::F_UNLCK as i16;
    }
    // Two numbers of 16 bits, padding to 8 bytes, two of 64 bits, one of 32 bits, padding.
    let mut bytes = Vec::with_capacity(size_of::<libc::flock>());
    bytes.extend_from_slice(&flock.l_type.to_ne_bytes());
    bytes.extend_from_slice(&flock.l_whence.to_ne_bytes());
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(&flock.l_start.to_ne_bytes());
    bytes.extend_from_slice(&flock.l_len.to_ne_bytes());
    bytes.extend_from_slice(&flock.l_pid.to_ne_bytes());
    bytes.resize(size_of::<libc::flock>(), 0);
    bytes
}

/// Takes the lock of the whole file that belongs to the open file, without waiting; `None` gives it back.
pub fn lock_flock(fd: impl AsFd, write: Option<bool>) -> Result<()> {
    let operation = match write {
        Some(true) => libc::LOCK_EX,
        Some(false) => libc::LOCK_SH,
        None => libc::LOCK_UN,
    };
    // SAFETY: a call without pointers.
    let r = unsafe { libc::flock(fd.as_fd().as_raw_fd(), operation | libc::LOCK_NB) };
    check("flock", &fd, r).map(drop)
}

/// Takes a lease.
pub fn take_lease(fd: impl AsFd, write: bool) -> Result<()> {
    const F_SETLEASE: libc::c_int = 1024;
    let kind = if write { libc::F_WRLCK } else { libc::F_RDLCK };
    // SAFETY: a call without pointers.
    let r = unsafe { libc::fcntl(fd.as_fd().as_raw_fd(), F_SETLEASE, kind) };
    check("fcntl(F_SETLEASE)", &fd, r).map(drop)
}

/// Gives a lease back.
pub fn drop_lease(fd: impl AsFd) -> Result<()> {
    const F_SETLEASE: libc::c_int = 1024;
    // SAFETY: a call without pointers.
    let r = unsafe { libc::fcntl(fd.as_fd().as_raw_fd(), F_SETLEASE, libc::F_UNLCK) };
    check("fcntl(F_SETLEASE)", &fd, r).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::LockKind;

    #[test]
    fn locks_of_the_open_file_come_and_go() {
        let file = tempfile::tempfile().unwrap();
        let locks = || {
            let table = crate::sys::proc::FdTable::open(std::process::id() as i32).unwrap();
            table.info(file.as_raw_fd()).unwrap().locks
        };
        let lock = FileLock {
            kind: LockKind::Ofd,
            write: true,
            start: 10,
            end: Some(20),
        };
        lock_ofd(&file, &lock).unwrap();
        assert_eq!(locks(), [lock]);
        unlock_ofd(&file, &lock).unwrap();
        lock_flock(&file, Some(false)).unwrap();
        assert_eq!(
            locks(),
            [FileLock {
                kind: LockKind::Flock,
                ..FileLock::default()
            }]
        );
        lock_flock(&file, None).unwrap();
        assert_eq!(locks(), []);
    }

    #[test]
    fn a_lock_as_bytes_is_what_the_kernel_takes() {
        let file = tempfile::tempfile().unwrap();
        let lock = FileLock {
            kind: LockKind::Ofd,
            write: true,
            start: 7,
            end: None,
        };
        let bytes = flock_bytes(&lock, false);
        // SAFETY: the bytes are those of a whole `struct flock`, read unaligned.
        let flock: libc::flock = unsafe { bytes.as_ptr().cast::<libc::flock>().read_unaligned() };
        assert_eq!(
            (flock.l_start, flock.l_len, i32::from(flock.l_type)),
            (7, 0, libc::F_WRLCK)
        );
        // SAFETY: `flock` is live.
        let r = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &flock) };
        assert_eq!(r, 0);
    }
}
