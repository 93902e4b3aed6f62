//! What of an open file can be brought back.

use crate::model::{Backing, Detail, FileKind, OpenFile, ProcessState, SocketState, Vma};
use serde::Serialize;

/// What can be brought back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "verdict", content = "why", rename_all = "kebab-case")]
pub enum Verdict {
    /// All of it.
    Whole,
    /// All but what this sentence says.
    Partly(String),
    /// Nothing, for this reason.
    Not(String),
}

/// Judges an open file of a state.
pub fn verdict(state: &ProcessState, file: &OpenFile) -> Verdict {
    let partly = |why: &str| Verdict::Partly(why.to_owned());
    let not = |why: &str| Verdict::Not(why.to_owned());
    match (&file.detail, file.kind) {
        (_, FileKind::IoUring) => not(
            "io_uring requests under way are not captured, and what they write later is not undone",
        ),
        (_, FileKind::PerfEvent) => not("the counters of a perf event are the kernel's alone"),
        (_, FileKind::Userfaultfd) => {
            not("the faults that a userfaultfd waits for are not captured")
        }
        (_, FileKind::Bpf) => not("eBPF programs and maps are not captured"),
        (Detail::Socket(socket), _) => socket_verdict(state, socket),
        (_, FileKind::Socket) => not("the kernel does not tell what kind of socket it is"),
        (Detail::Regular(_), _) if file.deleted => partly(
            "the file has no name any more: while a process holds it, it comes back; after that, its content is lost",
        ),
        (Detail::Pipe(pipe), _) if pipe.unread > 0 => Verdict::Partly(format!(
            "{} bytes of the pipe could not be read",
            pipe.unread
        )),
        (Detail::Memfd(memfd), _) if memfd.left_out => {
            partly("its content is too large to be saved where it is not mapped")
        }
        (Detail::Inotify(watches), _) if watches.iter().any(|watch| watch.path.is_none()) => {
            partly(
                "the path of a watched file is not known (needs CAP_DAC_READ_SEARCH), so that its watch is lost",
            )
        }
        (Detail::Inotify(_), _) => {
            partly("events that wait in it are lost when it has to be made again")
        }
        (Detail::Fanotify(_), _) => partly("while it is open, it stays; it is not made again"),
        (Detail::Pidfd(_, 0), _) => {
            partly("its process has ended: it stays while it is open, and is not made again")
        }
        (Detail::Terminal(terminal), _)
            if terminal
                .number()
                .is_some_and(|number| !has_master(state, number)) =>
        {
            partly(
                "its master belongs to another process: while open it stays as it is; in a new process, standard streams become ksnap's, and others are opened by their paths",
            )
        }
        (Detail::Device(major, _), FileKind::CharDevice) if *major != 1 => {
            partly("the state of a device behind its driver is not captured")
        }
        (_, FileKind::BlockDevice) => partly("the content of a block device is not captured"),
        (_, FileKind::Other) => not("ksnap does not know this kind"),
        _ => Verdict::Whole,
    }
}

/// Whether the master of this pseudo-terminal is among the open files.
fn has_master(state: &ProcessState, number: u32) -> bool {
    state.files.iter().any(|file| match &file.detail {
        Detail::Terminal(terminal) => terminal.master_of == Some(number),
        _ => false,
    })
}

/// The controlling terminal of a process, and what of it can be brought back where `all` has the open files; nothing for
/// a process without one.
pub fn terminal_verdict(state: &ProcessState, all: &ProcessState) -> Option<(String, Verdict)> {
    let (major, minor) = match state.attributes.terminal {
        0 => return None,
        encoded => crate::sys::fd::device_numbers(encoded),
    };
    Some(match (major, minor) {
        (136, number) => {
            let verdict = match has_master(all, number) {
                true => Verdict::Whole,
                false => Verdict::Not(
                    "its master belongs to another process: a new session goes on without one"
                        .into(),
                ),
            };
            (format!("/dev/pts/{number}"), verdict)
        }
        (major, minor) => (
            format!("device {major}:{minor}"),
            Verdict::Not("it is no pseudo-terminal: a new session goes on without one".into()),
        ),
    })
}

/// Judges a mapping.
pub fn mapping_verdict(vma: &Vma) -> Verdict {
    if vma.flags.iter().any(|flag| flag == "io" || flag == "pf") && !vma.is_special() {
        return Verdict::Not("device memory is not captured".into());
    }
    match &vma.backing {
        Backing::File { path, .. } if path.starts_with("anon_inode:") => {
            Verdict::Not("what the kernel and the program share there is not captured".into())
        }
        Backing::File { path, .. } if path == "/[aio]" => {
            Verdict::Partly("asynchronous requests under way are not captured".into())
        }
        Backing::File { path, deleted: true, .. }
            if !["/memfd:", "/dev/zero", "/SYSV", "/dev/shm/"].iter().any(|p| path.starts_with(p)) =>
        {
            Verdict::Partly(
                "its file has been deleted: it comes back as memory without a file, and a rollback does not map it again".into(),
            )
        }
        _ => Verdict::Whole,
    }
}

fn socket_verdict(state: &ProcessState, socket: &crate::model::Socket) -> Verdict {
    let partly = |why: &str| Verdict::Partly(why.to_owned());
    if socket.passed_descriptors > 0 {
        return Verdict::Partly(format!(
            "{} descriptors on their way in its queue are lost when it has to be made again",
            socket.passed_descriptors
        ));
    }
    match (socket.domain, socket.state) {
        _ if socket.connection.is_some() => Verdict::Whole,
        (libc::AF_UNIX, SocketState::Connected) => {
            let here = state.files.iter().any(|file| {
                file.kind == FileKind::Socket && Some(file.identity.1) == socket.peer_inode
            });
            match here {
                true => Verdict::Whole,
                false => partly(
                    "its other side belongs to another process: while open it stays as it is; made again, it is closed by the other side",
                ),
            }
        }
        (libc::AF_INET | libc::AF_INET6, SocketState::Connected | SocketState::Other)
            if socket.protocol == libc::IPPROTO_TCP =>
        {
            partly(
                "a connection: while open it stays as it is; made again, it is closed by the other side, unless snap --kill --tcp has taken it",
            )
        }
        (
            libc::AF_UNIX | libc::AF_INET | libc::AF_INET6,
            SocketState::Connected | SocketState::Other,
        ) => partly(
            "a connection: while open it stays as it is; made again, it is closed by the other side",
        ),
        (libc::AF_UNIX | libc::AF_INET | libc::AF_INET6, _) => Verdict::Whole,
        (libc::AF_NETLINK | libc::AF_PACKET, _) => {
            partly("messages that wait in it are lost when it has to be made again")
        }
        (libc::AF_ALG, _) => Verdict::Not(
            "the keys and state of a kernel crypto socket (AF_ALG) cannot be read".into(),
        ),
        (libc::AF_VSOCK, _) => {
            Verdict::Not("connections to the host or a guest (AF_VSOCK) are not captured".into())
        }
        (libc::AF_XDP, _) => Verdict::Not("the rings of an AF_XDP socket are not captured".into()),
        (family, _) => Verdict::Not(format!("sockets of family {family} are not captured")),
    }
}

/// What cannot be brought back at all, a sentence for each open file.
pub fn losses(state: &ProcessState) -> Vec<String> {
    let mut seen = vec![false; state.files.len()];
    let mut lost = Vec::new();
    for (descriptor, file) in state.open_files() {
        if !std::mem::replace(&mut seen[descriptor.file as usize], true)
            && let Verdict::Not(why) = verdict(state, file)
        {
            lost.push(format!(
                "descriptor {} ({}): {why}",
                descriptor.fd, file.link
            ));
        }
    }
    lost
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Terminal;

    fn side(device: (u32, u32), master_of: Option<u32>) -> OpenFile {
        OpenFile {
            kind: FileKind::CharDevice,
            detail: Detail::Terminal(Terminal {
                device,
                master_of,
                ..Terminal::default()
            }),
            ..OpenFile::default()
        }
    }

    fn on_pts_3(files: Vec<OpenFile>) -> ProcessState {
        let mut state = ProcessState {
            files,
            ..ProcessState::default()
        };
        state.attributes.terminal = 0x8803;
        state
    }

    #[test]
    fn a_terminal_is_whole_with_its_master() {
        let whole = on_pts_3(vec![side((136, 3), None), side((5, 2), Some(3))]);
        assert_eq!(verdict(&whole, &whole.files[0]), Verdict::Whole);
        let found = terminal_verdict(&whole, &whole).expect("it has one");
        assert_eq!(found, ("/dev/pts/3".into(), Verdict::Whole));
        let other = on_pts_3(vec![side((136, 3), None), side((5, 2), Some(4))]);
        assert!(matches!(
            verdict(&other, &other.files[0]),
            Verdict::Partly(_)
        ));
        let (name, found) = terminal_verdict(&other, &other).expect("it has one");
        assert!(name == "/dev/pts/3" && matches!(found, Verdict::Not(_)));
        let mut console = whole.clone();
        console.attributes.terminal = 0x0401;
        let (name, found) = terminal_verdict(&console, &console).expect("it has one");
        assert!(name == "device 4:1" && matches!(found, Verdict::Not(_)));
        console.attributes.terminal = 0;
        assert_eq!(terminal_verdict(&console, &console), None);
    }
}
