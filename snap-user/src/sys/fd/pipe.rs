//! Pipes: their capacity, and their content without taking it out (`tee(2)`).

use super::{Result, SysError, check, name};
use rustix::pipe::{PipeFlags, SpliceFlags};
use std::os::fd::{AsFd, AsRawFd};

/// Bytes that fit into a pipe.
pub fn capacity(fd: impl AsFd) -> Result<u32> {
    rustix::pipe::fcntl_getpipe_size(&fd)
        .map(|size| size as u32)
        .map_err(|e| SysError::new("fcntl(F_GETPIPE_SZ)", name(&fd), e))
}

/// Makes a pipe hold so many bytes.
///
/// # Errors
/// EPERM above `/proc/sys/fs/pipe-max-size` without `CAP_SYS_RESOURCE`; EBUSY below what is in it.
pub fn set_capacity(fd: impl AsFd, capacity: u32) -> Result<()> {
    rustix::pipe::fcntl_setpipe_size(&fd, capacity as usize)
        .map(drop)
        .map_err(|e| SysError::new("fcntl(F_SETPIPE_SZ)", name(&fd), e))
}

/// Bytes that can be read at once from a pipe or socket (`FIONREAD`).
pub fn queued(fd: impl AsFd) -> Result<u32> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: FIONREAD writes one int, which is live.
    let r = unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), libc::FIONREAD, &mut bytes) };
    check("ioctl(FIONREAD)", &fd, r)?;
    Ok(bytes.max(0) as u32)
}

/// A copy of what is in a pipe, oldest first. `reader` is open for reading; nothing is taken out of it.
pub fn look_into(reader: impl AsFd) -> Result<Vec<u8>> {
    let failed = |call, e| SysError::new(call, name(&reader), e);
    let waiting = queued(&reader)? as usize;
    if waiting == 0 {
        return Ok(Vec::new());
    }
    let (out, into) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)
        .map_err(|e| failed("pipe", e))?;
    // As many places for buffers as the other one has: each may hold few bytes.
    let wanted = capacity(&reader)?;
    if capacity(&into)? < wanted {
        let _ = set_capacity(&into, wanted);
    }
    match rustix::pipe::tee(&reader, &into, waiting, SpliceFlags::NONBLOCK) {
        Ok(_) => {}
        Err(rustix::io::Errno::AGAIN) => return Ok(Vec::new()),
        Err(e) => return Err(failed("tee", e)),
    }
    drop(into);
    let mut content = vec![0; waiting];
    let mut len = 0;
    while len < content.len() {
        match rustix::io::read(&out, &mut content[len..]) {
            Ok(0) => break,
            Ok(got) => len += got,
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(failed("read", e)),
        }
    }
    content.truncate(len);
    Ok(content)
}

/// Makes `content` all that is in a pipe: what was there is thrown away. Both ends must be at hand; the flags
/// of neither are touched.
///
/// # Errors
/// EAGAIN when it does not fit.
pub fn fill(reader: impl AsFd, writer: impl AsFd, content: &[u8]) -> Result<()> {
    let failed = |call, e| SysError::new(call, name(&reader), e);
    // Through pipes of our own and splice(2): its flag for not waiting is the call's, not the open file's.
    let sink = std::fs::File::options()
        .write(true)
        .open("/dev/null")
        .map_err(|e| SysError::new("open", "/dev/null", e))?;
    loop {
        let waiting = queued(&reader)? as usize;
        if waiting == 0 {
            break;
        }
        match rustix::pipe::splice(&reader, None, &sink, None, waiting, SpliceFlags::NONBLOCK) {
            Ok(0) | Err(rustix::io::Errno::AGAIN) => break,
            Ok(_) => {}
            Err(e) => return Err(failed("splice", e)),
        }
    }
    let (out, into) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)
        .map_err(|e| failed("pipe", e))?;
    let mut rest = content;
    while !rest.is_empty() {
        let piece = rest.len().min(16 << 10);
        let put = rustix::io::write(&into, &rest[..piece]).map_err(|e| failed("write", e))?;
        let mut left = put;
        while left > 0 {
            match rustix::pipe::splice(&out, None, &writer, None, left, SpliceFlags::NONBLOCK) {
                Ok(moved) => left -= moved,
                Err(e) => return Err(failed("splice", e)),
            }
        }
        rest = &rest[put..];
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looking_takes_nothing_and_filling_replaces() {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        assert_eq!(look_into(&reader).unwrap(), b"");
        rustix::io::write(&writer, b"hello").unwrap();
        rustix::io::write(&writer, b", world").unwrap();
        for _ in 0..3 {
            assert_eq!(look_into(&reader).unwrap(), b"hello, world");
        }
        fill(&reader, &writer, b"something else").unwrap();
        assert_eq!(look_into(&reader).unwrap(), b"something else");
        let mut buffer = [0; 64];
        let got = rustix::io::read(&reader, &mut buffer).unwrap();
        assert_eq!(&buffer[..got], b"something else");
        fill(&reader, &writer, b"").unwrap();
        assert_eq!(queued(&reader).unwrap(), 0);
    }

    #[test]
    fn a_full_pipe_of_another_size() {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        set_capacity(&writer, 256 << 10).unwrap();
        let full: Vec<u8> = (0..256usize << 10).map(|n| (n * 7 % 251) as u8).collect();
        rustix::io::write(&writer, &full).unwrap();
        assert_eq!(look_into(&reader).unwrap(), full);
        let (other, into) = rustix::pipe::pipe().unwrap();
        set_capacity(&into, capacity(&reader).unwrap()).unwrap();
        fill(&other, &into, &full).unwrap();
        assert_eq!(look_into(&other).unwrap(), full);
    }
}
