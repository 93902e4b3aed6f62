//! Paths of files that the kernel names by handle (`open_by_handle_at(2)`).

use super::proc::FileHandle;
use super::{Result, SysError};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// The path of the file with this handle on a file system that process `pid` has mounted. `device` is the file
/// system's number as `/proc/PID/fdinfo` prints it: the major number above 20 bits of the minor one.
///
/// # Errors
/// EPERM without `CAP_DAC_READ_SEARCH`, ESTALE when the file is gone, ENOENT when it is not mounted.
pub fn path_of_handle(pid: i32, device: u64, handle: &FileHandle) -> Result<String> {
    let failed = |e: std::io::Error| {
        SysError::new(
            "open_by_handle_at",
            format_args!("a file on device {device:x}"),
            e,
        )
    };
    let mount = mount_point(pid, device)
        .ok_or_else(|| failed(std::io::Error::from_raw_os_error(libc::ENOENT)))?;
    let mount = std::fs::File::open(format!("/proc/{pid}/root{mount}")).map_err(failed)?;
    // `struct file_handle`: length, type, then the bytes.
    let mut raw = Vec::with_capacity(8 + handle.bytes.len());
    raw.extend_from_slice(&(handle.bytes.len() as u32).to_ne_bytes());
    raw.extend_from_slice(&handle.ty.to_ne_bytes());
    raw.extend_from_slice(&handle.bytes);
    let flags = libc::O_PATH | libc::O_CLOEXEC;
    // SAFETY: the buffer is a whole `struct file_handle`, whose length it says; a new descriptor is nobody else's.
    let file = unsafe {
        let fd = libc::syscall(
            libc::SYS_open_by_handle_at,
            mount.as_raw_fd(),
            raw.as_ptr(),
            flags,
        );
        match fd {
            -1 => return Err(failed(std::io::Error::last_os_error())),
            fd => OwnedFd::from_raw_fd(fd as i32),
        }
    };
    let link = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).map_err(failed)?;
    Ok(link.to_string_lossy().into_owned())
}

/// Where the file system is mounted for the process (`proc_pid_mountinfo(5)`), at its root if possible.
fn mount_point(pid: i32, device: u64) -> Option<String> {
    let wanted = format!("{}:{}", device >> 20, device & 0xf_ffff);
    let text = std::fs::read_to_string(format!("/proc/{pid}/mountinfo")).ok()?;
    let mut found = None;
    for line in text.lines() {
        let words: Vec<&str> = line.split(' ').take(5).collect();
        if let [_, _, dev, root, point] = words[..]
            && dev == wanted
            && (found.is_none() || root == "/")
        {
            found = Some(unescaped(point));
        }
    }
    found
}

/// Blanks and backslashes are printed as three octal digits.
pub(super) fn unescaped(text: &str) -> String {
    let mut out = Vec::new();
    let mut bytes = text.as_bytes();
    while let Some((first, rest)) = bytes.split_first() {
        let octal = rest.get(..3).and_then(|d| std::str::from_utf8(d).ok());
        match octal.and_then(|d| u8::from_str_radix(d, 8).ok()) {
            Some(byte) if *first == b'\\' => {
                out.push(byte);
                bytes = &rest[3..];
            }
            _ => {
                out.push(*first);
                bytes = rest;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_of_mount_points() {
        assert_eq!(unescaped(r"/a\040b\134c"), r"/a b\c");
        assert_eq!(unescaped("/plain"), "/plain");
    }

    #[test]
    fn the_root_is_mounted() {
        use std::os::unix::fs::MetadataExt;
        let dev = std::fs::metadata("/").unwrap().dev();
        let device = u64::from(rustix::fs::major(dev)) << 20 | u64::from(rustix::fs::minor(dev));
        assert!(mount_point(std::process::id() as i32, device).is_some());
    }
}
