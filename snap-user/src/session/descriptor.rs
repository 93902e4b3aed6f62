//! A descriptor with its open file, for people and scripts.

use crate::model::{
    Descriptor, Detail, FileKind, FileLock, LockKind, OpenFile, ProcessState, Socket, SocketState,
    address_words,
};
use serde::Serialize;

/// A descriptor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct OpenDescriptor {
    /// Its number.
    pub fd: i32,
    /// Number of its open file in the process: the same for descriptors that share one.
    pub file: u32,
    /// What it is.
    pub kind: FileKind,
    /// Where `/proc/PID/fd/FD` points.
    pub link: String,
    /// The file has lost its name.
    pub deleted: bool,
    /// File position in bytes.
    pub position: u64,
    /// Open flags with the close-on-exec bit.
    pub flags: u32,
    /// Device and inode.
    pub identity: (u64, u64),
    /// What its kind has besides, in words; empty if nothing.
    pub detail: String,
}

impl OpenDescriptor {
    /// Puts the two together.
    pub fn new(descriptor: Descriptor, file: &OpenFile) -> Self {
        Self {
            fd: descriptor.fd,
            file: descriptor.file,
            kind: file.kind,
            link: file.link.clone(),
            deleted: file.deleted,
            position: file.position,
            flags: file.flags
                | if descriptor.cloexec {
                    libc::O_CLOEXEC as u32
                } else {
                    0
                },
            identity: file.identity,
            detail: words(file),
        }
    }

    /// All of a process.
    pub fn all(state: &ProcessState) -> Vec<Self> {
        state
            .open_files()
            .map(|(d, file)| Self::new(d, file))
            .collect()
    }
}

fn words(file: &OpenFile) -> String {
    let mut parts = Vec::new();
    match &file.detail {
        Detail::None | Detail::Regular(_) | Detail::Device(..) => {}
        Detail::Terminal(t) => {
            parts.push(format!("terminal of {} by {}", t.size[1], t.size[0]));
            parts.extend(t.master_of.map(|n| format!("master of /dev/pts/{n}")));
        }
        Detail::Pipe(pipe) => {
            let len = pipe.content.len() + pipe.unread as usize;
            if len > 0 {
                parts.push(format!("{len} bytes in it"));
            }
        }
        Detail::Eventfd(event) => {
            let kind = if event.semaphore {
                "semaphore"
            } else {
                "counter"
            };
            parts.push(format!("{kind} at {}", event.count));
        }
        Detail::Epoll(watches) => {
            let fds: Vec<String> = watches.iter().map(|w| w.fd.to_string()).collect();
            parts.push(format!("watches {}", list(&fds)));
        }
        Detail::Timerfd(timer) => {
            parts.push(match timer.value_ns {
                0 => "not set".to_owned(),
                ns => format!("expires in {ns} ns"),
            });
            if timer.interval_ns > 0 {
                parts.push(format!("every {} ns", timer.interval_ns));
            }
            if timer.ticks > 0 {
                parts.push(format!("{} expirations not read", timer.ticks));
            }
        }
        Detail::Signalfd(signals) => parts.push(format!("signals {signals:016x}")),
        Detail::Inotify(watches) => {
            let paths: Vec<String> = watches
                .iter()
                .map(|w| {
                    w.path
                        .clone()
                        .unwrap_or_else(|| format!("inode {}", w.inode))
                })
                .collect();
            parts.push(format!("watches {}", list(&paths)));
        }
        Detail::Fanotify(group) => parts.push(format!("{} marks", group.marks.len())),
        Detail::Pidfd(pid, _) => parts.push(format!("of process {pid}")),
        Detail::Memfd(memfd) => {
            parts.push(format!("{} bytes", memfd.size));
            if memfd.seals != 0 {
                parts.push(format!("seals {:#x}", memfd.seals));
            }
        }
        Detail::Socket(socket) => parts.push(socket_words(socket)),
    }
    parts.extend(file.locks.iter().map(lock_words));
    if let Some(owner) = file.owner {
        parts.push(format!("tells {}", owner.id));
    }
    parts.join(", ")
}

fn list(words: &[String]) -> String {
    const SHOWN: usize = 8;
    match words.len() {
        0 => "nothing".into(),
        n if n <= SHOWN => words.join(" "),
        n => format!("{} and {} more", words[..SHOWN].join(" "), n - SHOWN),
    }
}

fn lock_words(lock: &FileLock) -> String {
    let kind = match lock.kind {
        LockKind::Posix => "lock of the process",
        LockKind::Ofd => "lock of the open file",
        LockKind::Flock => "flock",
        LockKind::Lease => "lease",
    };
    let access = if lock.write { "exclusive" } else { "shared" };
    match (lock.start, lock.end) {
        (0, None) => format!("{access} {kind}"),
        (start, None) => format!("{access} {kind} from byte {start}"),
        (start, Some(end)) => format!("{access} {kind} on bytes {start} to {end}"),
    }
}

fn socket_words(socket: &Socket) -> String {
    let family = match socket.domain {
        libc::AF_UNIX => "unix",
        libc::AF_INET => "IPv4",
        libc::AF_INET6 => "IPv6",
        libc::AF_NETLINK => "netlink",
        libc::AF_PACKET => "packet",
        other => return format!("socket of family {other}"),
    };
    let ty = match (socket.ty, socket.protocol) {
        (_, libc::IPPROTO_TCP) => "TCP",
        (_, libc::IPPROTO_UDP) => "UDP",
        (libc::SOCK_STREAM, _) => "stream",
        (libc::SOCK_DGRAM, _) => "datagram",
        (libc::SOCK_SEQPACKET, _) => "seqpacket",
        (libc::SOCK_RAW, _) => "raw",
        _ => "socket",
    };
    let mut text = format!("{family} {ty}");
    let address = address_words;
    match socket.state {
        SocketState::Listening(backlog) => {
            text.push_str(&format!(
                " listening at {}, backlog {backlog}",
                address(&socket.local)
            ));
        }
        SocketState::Connected if socket.domain == libc::AF_UNIX => {
            text.push_str(
                &socket
                    .peer_inode
                    .map_or(String::new(), |i| format!(" with socket:[{i}]")),
            );
        }
        SocketState::Connected => {
            let (local, peer) = (address(&socket.local), address(&socket.peer));
            text.push_str(&format!(" from {local} to {peer}"));
        }
        SocketState::Idle if !socket.local.is_empty() => {
            text.push_str(&format!(" at {}", address(&socket.local)));
        }
        _ => {}
    }
    if !socket.queue.is_empty() {
        let bytes: usize = socket.queue.iter().map(|m| m.data.len()).sum();
        text.push_str(&format!(", {bytes} bytes not read"));
    }
    if let Some(kept) = &socket.connection {
        text.push_str(&format!(
            ", kept with {} bytes to send and {} not read",
            kept.send.len(),
            kept.receive.len()
        ));
    }
    text
}
