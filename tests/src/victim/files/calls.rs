//! System calls on plain numbers, whose errors are sentences.

use super::super::fault::os_error;

pub type Done<T = ()> = Result<T, String>;

/// The result of a call, or its error.
pub fn must(call: &str, result: impl Into<i64>) -> Done<i32> {
    match result.into() {
        result @ 0.. => Ok(result as i32),
        _ => Err(os_error(call)),
    }
}

/// The two differ: an error that says so.
pub fn same<T: PartialEq + std::fmt::Debug>(what: &str, found: T, wanted: T) -> Done {
    match found == wanted {
        true => Ok(()),
        false => Err(format!("{what}: {found:?} instead of {wanted:?}")),
    }
}

pub fn open(path: &str, flags: i32) -> Done<i32> {
    let name = format!("{path}\0");
    // SAFETY: the name is live and ends with a zero.
    must(&format!("open {path}"), unsafe {
        libc::open(name.as_ptr().cast(), flags, 0o600)
    })
}

pub fn close(fd: i32) -> Done {
    // SAFETY: a call without pointers on a descriptor that only this victim uses.
    must(&format!("close {fd}"), unsafe { libc::close(fd) }).map(drop)
}

/// Puts a descriptor at a number of its own.
pub fn moved(fd: i32, number: i32, flags: i32) -> Done<i32> {
    // SAFETY: as above.
    must("dup3", unsafe { libc::dup3(fd, number, flags) })?;
    close(fd)?;
    Ok(number)
}

pub fn dup(fd: i32) -> Done<i32> {
    // SAFETY: as above.
    must("dup", unsafe { libc::dup(fd) })
}

pub fn is_open(fd: i32) -> bool {
    // SAFETY: as above.
    unsafe { libc::fcntl(fd, libc::F_GETFD) >= 0 }
}

/// Only the low bit of the descriptor's flags exists.
pub fn cloexec(fd: i32) -> Done<bool> {
    // SAFETY: as above.
    Ok(must("fcntl(F_GETFD)", unsafe { libc::fcntl(fd, libc::F_GETFD) })? & libc::FD_CLOEXEC != 0)
}

pub fn set_cloexec(fd: i32, on: bool) -> Done {
    // SAFETY: as above.
    must("fcntl(F_SETFD)", unsafe {
        libc::fcntl(fd, libc::F_SETFD, i32::from(on))
    })
    .map(drop)
}

pub fn flags(fd: i32) -> Done<i32> {
    // SAFETY: as above.
    must("fcntl(F_GETFL)", unsafe { libc::fcntl(fd, libc::F_GETFL) })
}

pub fn set_flags(fd: i32, flags: i32) -> Done {
    // SAFETY: as above.
    must("fcntl(F_SETFL)", unsafe {
        libc::fcntl(fd, libc::F_SETFL, flags)
    })
    .map(drop)
}

pub fn has_flag(fd: i32, flag: i32, on: bool) -> Done {
    same(
        &format!("flag {flag:#o} of descriptor {fd}"),
        flags(fd)? & flag != 0,
        on,
    )
}

pub fn seek(fd: i32, to: i64, whence: i32) -> Done<i64> {
    // SAFETY: as above.
    match unsafe { libc::lseek(fd, to, whence) } {
        at @ 0.. => Ok(at),
        _ => Err(os_error(&format!("lseek {fd}"))),
    }
}

pub fn position(fd: i32) -> Done<i64> {
    seek(fd, 0, libc::SEEK_CUR)
}

pub fn write(fd: i32, data: &[u8]) -> Done {
    // SAFETY: the data is live and as long as said.
    let wrote = unsafe { libc::write(fd, data.as_ptr().cast(), data.len()) };
    match wrote == data.len() as isize {
        true => Ok(()),
        false => Err(os_error(&format!("write to {fd} gave {wrote}"))),
    }
}

/// One read, of at most `most` bytes.
pub fn read(fd: i32, most: usize) -> Done<Vec<u8>> {
    let mut data = vec![0; most];
    // SAFETY: the buffer is live and as long as said.
    let got = unsafe { libc::read(fd, data.as_mut_ptr().cast(), most) };
    data.truncate(must(&format!("read from {fd}"), got as i64)? as usize);
    Ok(data)
}

/// Whether events are there at once.
pub fn ready(fd: i32, events: i16) -> Done<bool> {
    let mut poll = libc::pollfd {
        fd,
        events,
        revents: 0,
    };
    // SAFETY: `poll` is live.
    Ok(must("poll", unsafe { libc::poll(&mut poll, 1, 0) })? == 1 && poll.revents & events != 0)
}

pub fn folder() -> std::path::PathBuf {
    std::env::temp_dir()
}

pub fn in_folder(name: &str) -> String {
    folder().join(name).display().to_string()
}
