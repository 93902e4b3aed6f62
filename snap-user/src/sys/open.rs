//! Opening files as another process would.

use super::{Result, SysError};
use rustix::fs::{Mode, OFlags, ResolveFlags};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;

/// Flags of an open file that also open(2) takes.
fn flags_for_open(flags: u32) -> OFlags {
    let path = libc::O_PATH as u32;
    let kept = match flags & path {
        0 => {
            (libc::O_ACCMODE
                | libc::O_APPEND
                | libc::O_DIRECT
                | libc::O_DIRECTORY
                | libc::O_NOFOLLOW
                | libc::O_SYNC
                | libc::O_NOATIME
                | libc::O_NONBLOCK
                | libc::O_NOCTTY) as u32
        }
        _ => path | (libc::O_DIRECTORY | libc::O_NOFOLLOW) as u32,
    };
    let terminal = if flags & path == 0 {
        libc::O_NOCTTY as u32
    } else {
        0
    };
    OFlags::from_bits_retain(flags & kept | terminal) | OFlags::CLOEXEC
}

/// Opens a path below the root of process `pid`, links followed inside it, with the access mode and status flags of
/// `flags` (`openat2(2)`, Linux 5.6). Never makes a controlling terminal.
pub fn open_in_root(pid: i32, path: impl AsRef<Path>, flags: u32) -> Result<OwnedFd> {
    let path = path.as_ref();
    let failed = |e: rustix::io::Errno| SysError::new("open", path.display(), e);
    let root = rustix::fs::open(
        format!("/proc/{pid}/root"),
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(failed)?;
    let flags = flags_for_open(flags);
    rustix::fs::openat2(root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT).map_err(failed)
}

/// Makes a file below the root of process `pid` if there is none at the path, and opens it.
pub fn create_in_root(pid: i32, path: &str, flags: u32, mode: u32) -> Result<OwnedFd> {
    made_in_root(pid, path, flags_for_open(flags) | OFlags::CREATE, mode)
}

/// Makes a file without a name in a folder below the root of process `pid` (`O_TMPFILE` in `open(2)`).
pub fn unnamed_in_root(pid: i32, folder: &str, flags: u32, mode: u32) -> Result<OwnedFd> {
    let folder = if folder.is_empty() { "/" } else { folder };
    // The kernel wants it open for writing; the access mode that the process had follows.
    let access = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
    let made = made_in_root(pid, folder, access, mode)?;
    open_own_link(made, flags)
}

fn made_in_root(pid: i32, path: &str, flags: OFlags, mode: u32) -> Result<OwnedFd> {
    let failed = |e: rustix::io::Errno| SysError::new("open", path, e);
    let root = rustix::fs::open(
        format!("/proc/{pid}/root"),
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(failed)?;
    let mode = Mode::from_raw_mode(mode);
    rustix::fs::openat2(root, path, flags, mode, ResolveFlags::IN_ROOT).map_err(failed)
}

/// Opens what a link of /proc refers to, with a file description of its own.
pub fn open_link(path: &str, flags: u32) -> Result<OwnedFd> {
    // Nobody may be at the other end of a pipe yet.
    let flags = flags_for_open(flags) | OFlags::NONBLOCK;
    rustix::fs::open(path, flags, Mode::empty()).map_err(|e| SysError::new("open", path, e))
}

/// Opens the file of a descriptor of this process once more, with other flags.
pub fn open_own_link(fd: impl AsFd, flags: u32) -> Result<OwnedFd> {
    open_link(&format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd()), flags)
}

/// A duplicate of a descriptor of this process that is known by its number.
///
/// # Errors
/// EBADF when there is none.
pub fn duplicate_number(fd: RawFd) -> Result<OwnedFd> {
    let failed = |e: std::io::Error| SysError::new("dup", format_args!("descriptor {fd}"), e);
    // SAFETY: a call without pointers, that tells whether the number is in use.
    if fd < 0 || unsafe { libc::fcntl(fd, libc::F_GETFD) } < 0 {
        return Err(failed(std::io::Error::from_raw_os_error(libc::EBADF)));
    }
    // SAFETY: open, as just seen, and borrowed for this call only.
    unsafe { BorrowedFd::borrow_raw(fd) }
        .try_clone_to_owned()
        .map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn below_a_root_with_the_flags_of_an_open_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "content").unwrap();
        let path = file.path().to_str().unwrap();
        let flags = (libc::O_RDWR | libc::O_APPEND | libc::O_LARGEFILE | libc::O_ASYNC) as u32;
        let opened = open_in_root(std::process::id() as i32, path, flags).unwrap();
        let found = rustix::fs::fcntl_getfl(&opened).unwrap();
        assert!(found.contains(OFlags::RDWR | OFlags::APPEND));
        let mut text = String::new();
        std::fs::File::from(opened)
            .read_to_string(&mut text)
            .unwrap();
        assert_eq!(text, "content");
        let folder = open_in_root(
            std::process::id() as i32,
            "/tmp",
            (libc::O_PATH | libc::O_DIRECTORY) as u32,
        );
        assert!(folder.is_ok());
    }

    #[test]
    fn a_number_that_is_not_open() {
        assert_eq!(duplicate_number(-1).unwrap_err().errno(), Some(libc::EBADF));
        assert_eq!(
            duplicate_number(1_000_000).unwrap_err().errno(),
            Some(libc::EBADF)
        );
    }
}
