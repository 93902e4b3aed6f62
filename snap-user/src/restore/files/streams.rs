//! Files whose other end was somebody else's.

use crate::model::{Detail, FileKind, OpenFile, SocketState};

/// Whether one of these open files is a terminal, or one end of a pipe or connection, and none of the others is the other
/// end of it.
pub fn is_from_elsewhere(files: &[OpenFile], at: usize) -> bool {
    let file = &files[at];
    let others = || {
        let all = files.iter().enumerate();
        all.filter(|(n, _)| *n != at).map(|(_, f)| f)
    };
    match (&file.detail, file.kind) {
        (Detail::Terminal(terminal), _) => {
            let number = file.link.strip_prefix("/dev/pts/");
            let number = number.and_then(|n| n.parse::<u32>().ok());
            let is_master = |other: &OpenFile| matches!(&other.detail, Detail::Terminal(t) if t.master_of == number);
            terminal.master_of.is_none() && !(number.is_some() && others().any(is_master))
        }
        (_, FileKind::Pipe) => {
            !others().any(|o| o.kind == FileKind::Pipe && o.identity == file.identity)
        }
        (Detail::Socket(socket), _) if socket.state == SocketState::Connected => {
            let is_peer = |other: &OpenFile| {
                other.kind == FileKind::Socket && Some(other.identity.1) == socket.peer_inode
            };
            !others().any(is_peer)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Pipe, Socket, Terminal};

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
        }
        let strange = [connected(20, 30), connected(21, 20)];
        assert!(is_from_elsewhere(&strange, 0));
        // A master has its other end wherever that is.
        assert!(!is_from_elsewhere(&[terminal(Some(4))], 0));
    }
}
