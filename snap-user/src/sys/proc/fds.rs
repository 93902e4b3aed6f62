//! Descriptors: `/proc/PID/fd` and `/proc/PID/fdinfo`.

use super::{Result, SysError, bad, link, read};
use crate::model::{Resource, ResourceKind};
use std::os::unix::fs::{FileTypeExt, MetadataExt};

/// Every open descriptor and where its link points, ascending. One that closes meanwhile is left out.
pub fn descriptor_links(pid: i32) -> Result<Vec<(i32, String)>> {
    let path = format!("/proc/{pid}/fd");
    let entries = std::fs::read_dir(&path).map_err(|e| SysError::new("open", &path, e))?;
    let mut fds: Vec<(i32, String)> = entries
        .filter_map(|e| e.ok()?.file_name().to_str()?.parse().ok())
        .filter_map(|fd| Some((fd, link(pid, &format!("fd/{fd}")).ok()?)))
        .collect();
    fds.sort_unstable();
    Ok(fds)
}

/// Every open descriptor, ascending. One that closes meanwhile is left out.
pub fn descriptors(pid: i32) -> Result<Vec<Resource>> {
    let links = descriptor_links(pid)?;
    Ok(links
        .into_iter()
        .filter_map(|(fd, link)| describe(pid, fd, link).ok())
        .collect())
}

/// One open descriptor.
pub fn descriptor(pid: i32, fd: i32) -> Result<Resource> {
    describe(pid, fd, link(pid, &format!("fd/{fd}"))?)
}

fn describe(pid: i32, fd: i32, link: String) -> Result<Resource> {
    let path = format!("/proc/{pid}/fd/{fd}");
    let meta = std::fs::metadata(&path).map_err(|e| SysError::new("stat", &path, e))?;
    let (flags, position) = flags_and_position(pid, fd)?;
    let kind = kind(&link, &meta.file_type());
    Ok(Resource {
        fd,
        kind,
        link,
        position,
        flags,
        identity: (meta.dev(), meta.ino()),
    })
}

fn kind(link: &str, file: &std::fs::FileType) -> ResourceKind {
    if let Some(name) = link.strip_prefix("anon_inode:") {
        return match name.trim_matches(['[', ']']) {
            "eventpoll" => ResourceKind::Epoll,
            "eventfd" => ResourceKind::Eventfd,
            "timerfd" => ResourceKind::Timerfd,
            "signalfd" => ResourceKind::Signalfd,
            "inotify" | "inotify_fanotify" => ResourceKind::Inotify,
            "fanotify" => ResourceKind::Fanotify,
            "pidfd" => ResourceKind::Pidfd,
            "userfaultfd" => ResourceKind::Userfaultfd,
            "io_uring" => ResourceKind::IoUring,
            "perf_event" => ResourceKind::PerfEvent,
            name if name.starts_with("bpf") => ResourceKind::Bpf,
            _ => ResourceKind::Other,
        };
    }
    match file {
        _ if link.starts_with("/memfd:") => ResourceKind::Memfd,
        _ if link.starts_with("pidfd:") => ResourceKind::Pidfd,
        f if f.is_file() => ResourceKind::Regular,
        f if f.is_dir() => ResourceKind::Directory,
        f if f.is_socket() => ResourceKind::Socket,
        f if f.is_char_device() => ResourceKind::CharDevice,
        f if f.is_block_device() => ResourceKind::BlockDevice,
        f if f.is_fifo() && link.starts_with("pipe:") => ResourceKind::Pipe,
        f if f.is_fifo() => ResourceKind::Fifo,
        _ => ResourceKind::Other,
    }
}

/// Open flags and file position of a descriptor.
pub fn flags_and_position(pid: i32, fd: i32) -> Result<(u32, u64)> {
    let path = format!("/proc/{pid}/fdinfo/{fd}");
    let text = read(path.clone())?;
    let text = String::from_utf8_lossy(&text);
    let field = |name: &str| {
        text.lines()
            .find_map(|l| l.strip_prefix(name))
            .map(str::trim)
            .ok_or_else(|| bad(&path, name))
    };
    let position = field("pos:")?.parse().map_err(|_| bad(&path, "position"))?;
    let flags = u32::from_str_radix(field("flags:")?, 8).map_err(|_| bad(&path, "flags"))?;
    Ok((flags, position))
}

/// Brings the position and flags of a descriptor that has one up to date. Kinds without a position
/// keep what was read before the stop.
pub fn refresh_position(pid: i32, resource: &mut Resource) {
    let seekable = matches!(
        resource.kind,
        ResourceKind::Regular
            | ResourceKind::Directory
            | ResourceKind::BlockDevice
            | ResourceKind::Memfd
    );
    if seekable && let Ok((flags, position)) = flags_and_position(pid, resource.fd) {
        (resource.flags, resource.position) = (flags, position);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Seek, SeekFrom};
    use std::os::fd::AsRawFd;

    #[test]
    fn kinds_positions_and_flags() {
        let pid = std::process::id() as i32;
        let mut file = tempfile::tempfile().unwrap();
        file.seek(SeekFrom::Start(123)).unwrap();
        let (reader, _writer) = std::io::pipe().unwrap();
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let all = descriptors(pid).unwrap();
        let find = |fd: i32| all.iter().find(|r| r.fd == fd).unwrap();
        let regular = find(file.as_raw_fd());
        assert_eq!(
            (regular.kind, regular.position),
            (ResourceKind::Regular, 123)
        );
        assert_ne!(regular.flags & libc::O_CLOEXEC as u32, 0);
        assert_eq!(find(reader.as_raw_fd()).kind, ResourceKind::Pipe);
        assert_eq!(find(socket.as_raw_fd()).kind, ResourceKind::Socket);
    }
}
