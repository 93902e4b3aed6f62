//! What is read again in the stop: positions, counters, and the contents of queues.

use super::{Files, describe};
use crate::model::{Backing, Detail, FileKind, OpenFile, Vma};
use crate::sys::fd as opened;
use std::collections::HashSet;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

/// Largest content of a memfd that is recorded, in bytes.
const LARGEST_MEMFD: u64 = 16 << 20;

impl Files {
    /// Brings an open file that descriptor `fd` refers to up to date. `locked`: it may have got locks since.
    pub(super) fn update(&self, fd: i32, file: &mut OpenFile, locked: bool) {
        let by_text = matches!(
            file.kind,
            FileKind::Eventfd | FileKind::Timerfd | FileKind::Epoll | FileKind::Signalfd
        );
        if !by_text && !file.is_positioned() {
            return;
        }
        if !by_text && !locked && file.locks.is_empty() && self.quick_update(fd, file).is_ok() {
            return;
        }
        let Ok(info) = self.table.info(fd) else {
            return;
        };
        file.position = info.position;
        file.flags = info.flags & !(libc::O_CLOEXEC as u32);
        if by_text {
            file.detail = self.in_text(fd, file.kind, info);
            return;
        }
        file.locks = info.locks;
        match &mut file.detail {
            Detail::Regular(known) if file.flags & libc::O_ACCMODE as u32 != 0 => {
                if let Ok(stat) = self.table.stat(fd) {
                    *known = describe::regular(&stat);
                }
            }
            Detail::Memfd(known) => {
                if let Ok(stat) = self.table.stat(fd) {
                    known.size = stat.size;
                }
            }
            _ => {}
        }
    }

    /// Position, flags and size by a descriptor of our own: a quarter of what the text costs.
    fn quick_update(&self, fd: i32, file: &mut OpenFile) -> crate::sys::Result<()> {
        let taken = self.take(fd)?;
        let now = opened::position_and_flags(&taken)?;
        (file.position, file.flags) = (now.0, now.1);
        match &mut file.detail {
            Detail::Regular(known) if file.flags & libc::O_ACCMODE as u32 != 0 => {
                *known = opened::content(&taken)?;
            }
            Detail::Memfd(known) => known.size = opened::content(&taken)?.size,
            _ => {}
        }
        Ok(())
    }

    /// Records what is in pipes, Unix sockets and memfds. `first` has a descriptor for each open file.
    pub(super) fn contents(&self, first: &[i32], files: &mut [OpenFile], vmas: &[Vma]) {
        let mut seen = HashSet::new();
        for (file, &fd) in files.iter_mut().zip(first) {
            let readable = file.is_readable();
            match &mut file.detail {
                Detail::Pipe(pipe) if readable && seen.insert(file.identity) => {
                    if let Ok(reader) = self.take(fd) {
                        pipe.content = opened::look_into(&reader).unwrap_or_default();
                        let waiting = opened::queued(&reader).unwrap_or(0) as usize;
                        pipe.unread = waiting.saturating_sub(pipe.content.len()) as u32;
                    }
                }
                Detail::Socket(socket) if socket.domain == libc::AF_UNIX => {
                    if let Ok(taken) = self.take(fd) {
                        self.queue(fd, &taken, socket);
                    }
                }
                Detail::Memfd(memfd) if seen.insert(file.identity) => {
                    memfd.mapped = mapped_bytes(vmas, file.identity.1) >= memfd.size;
                    memfd.left_out = !memfd.mapped && memfd.size > LARGEST_MEMFD;
                    if !memfd.mapped && !memfd.left_out {
                        memfd.content = self.memfd(fd, memfd.size).unwrap_or_default();
                    }
                }
                _ => {}
            }
        }
    }

    fn queue(&self, fd: i32, taken: impl AsFd, socket: &mut crate::model::Socket) {
        use crate::model::SocketState;
        if matches!(socket.state, SocketState::Listening(_)) {
            return;
        }
        let waiting = opened::queued(&taken).unwrap_or(0);
        let stream = socket.ty == libc::SOCK_STREAM;
        // An empty message has no bytes to be counted; a look into the queue finds it.
        if stream && waiting == 0 {
            return;
        }
        socket.queue = opened::socket::peek_messages(&taken, stream).unwrap_or_default();
        let seen: usize = socket.queue.iter().map(|m| m.data.len()).sum();
        socket.unread = (waiting as usize).saturating_sub(seen) as u32;
        if !socket.queue.is_empty() {
            let info = self.table.info(fd).ok();
            socket.passed_descriptors = info.map_or(0, |info| info.passed_descriptors);
        }
    }

    /// What a memfd holds, without the zeroes at its end.
    fn memfd(&self, fd: i32, size: u64) -> Option<Vec<u8>> {
        let path = format!("/proc/{}/fd/{fd}", self.table.pid());
        let file = std::fs::File::open(path).ok()?;
        let mut content = vec![0; size as usize];
        let mut len = 0;
        while len < content.len() {
            match file.read_at(&mut content[len..], len as u64).ok()? {
                0 => break,
                got => len += got,
            }
        }
        let end = content
            .iter()
            .rposition(|byte| *byte != 0)
            .map_or(0, |at| at + 1);
        content.truncate(end);
        Some(content)
    }
}

/// Bytes of a file that shared mappings cover from its start, whose content is captured as pages.
fn mapped_bytes(vmas: &[Vma], file: u64) -> u64 {
    let mut parts: Vec<(u64, u64)> = vmas
        .iter()
        .filter(|vma| vma.shared)
        .filter_map(|vma| match &vma.backing {
            Backing::File {
                inode,
                offset,
                path,
                ..
            } if *inode == file && path.starts_with("/memfd:") => {
                Some((*offset, offset + vma.range.len()))
            }
            _ => None,
        })
        .collect();
    parts.sort_unstable();
    parts
        .iter()
        .fold(0, |covered, (start, end)| match *start <= covered {
            true => covered.max(*end),
            false => covered,
        })
}
