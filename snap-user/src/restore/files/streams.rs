//! Terminals, pipes and connections, and where their other ends are.

use crate::model::{Detail, FileKind, OpenFile, SocketState, Terminal};

/// Number of a pseudo-terminal, by a side that is not its master.
fn number(side: &Terminal, file: &OpenFile) -> Option<u32> {
    let by_link = || file.link.strip_prefix("/dev/pts/")?.parse().ok();
    side.number().or_else(by_link)
}

/// The one of these open files that is the other end of this terminal, pipe or socket, if any is: the master side of a
/// terminal, another open file of a pipe, what a socket is connected with.
pub(super) fn other_end(files: &[OpenFile], at: usize) -> Option<usize> {
    let file = &files[at];
    let is_it = |other: &OpenFile| match (&file.detail, &other.detail) {
        (Detail::Terminal(side), Detail::Terminal(master)) => {
            side.master_of.is_none()
                && master.master_of.is_some()
                && master.master_of == number(side, file)
        }
        (Detail::Socket(socket), _) => {
            other.kind == FileKind::Socket && Some(other.identity.1) == socket.peer_inode
        }
        _ => {
            file.kind == FileKind::Pipe
                && other.kind == file.kind
                && other.identity == file.identity
        }
    };
    let mut all = files.iter().enumerate();
    all.position(|(n, other)| n != at && is_it(other))
}

/// Whether one of these open files is a terminal, or one end of a pipe or connection, and none of the others is the other
/// end of it.
pub fn is_from_elsewhere(files: &[OpenFile], at: usize) -> bool {
    let file = &files[at];
    let has_other_end = match (&file.detail, file.kind) {
        // A master has its other end wherever that is.
        (Detail::Terminal(terminal), _) => terminal.master_of.is_none(),
        (_, FileKind::Pipe) => true,
        (Detail::Socket(socket), _) => socket.state == SocketState::Connected,
        _ => false,
    };
    has_other_end && other_end(files, at).is_none()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Pipe, Socket};

    fn file(kind: FileKind, inode: u64, detail: Detail) -> OpenFile {
        OpenFile {
            kind,
            link: "/dev/pts/4".into(),
            identity: (1, inode),
            detail,
            ..OpenFile::default()
        }
    }

    fn connected(inode: u64, peer: u64) -> OpenFile {
        let socket = Socket {
            state: SocketState::Connected,
            peer_inode: Some(peer),
            ..Socket::default()
        };
        file(FileKind::Socket, inode, Detail::Socket(Box::new(socket)))
    }

    fn terminal(master_of: Option<u32>) -> OpenFile {
        let terminal = Terminal {
            master_of,
            ..Terminal::default()
        };
        file(FileKind::CharDevice, 4, Detail::Terminal(terminal))
    }

    #[test]
    fn what_has_both_ends_here_is_not_from_elsewhere() {
        let pipe = || file(FileKind::Pipe, 9, Detail::Pipe(Pipe::default()));
        for pair in [
            [pipe(), pipe()],
            [connected(20, 21), connected(21, 20)],
            [terminal(None), terminal(Some(4))],
        ] {
            assert!(!is_from_elsewhere(&pair, 0), "{pair:?}");
            assert!(is_from_elsewhere(&pair[..1], 0), "{pair:?}");
            assert_eq!(other_end(&pair, 0), Some(1), "{pair:?}");
            assert_eq!(other_end(&pair[..1], 0), None, "{pair:?}");
        }
        let strange = [connected(20, 30), connected(21, 20)];
        assert!(is_from_elsewhere(&strange, 0));
        assert_eq!(other_end(&strange, 1), Some(0));
        // Opened by another name, it is told by its number.
        let mut by_name = terminal(None);
        by_name.link = "/dev/tty".into();
        let Detail::Terminal(side) = &mut by_name.detail else {
            unreachable!("made above")
        };
        side.device = (136, 4);
        assert_eq!(other_end(&[by_name, terminal(Some(4))], 0), Some(1));
        // A master has its other end wherever that is.
        assert!(!is_from_elsewhere(&[terminal(Some(4))], 0));
    }
}
