//! Which live open file is a wanted one, and whether it is as it should be.

use crate::model::{Detail, FileKind, LockKind, OpenFile, SocketState};

/// Kinds whose identity is their own, and not one that all of their kind share.
pub(super) fn has_own_identity(file: &OpenFile) -> bool {
    !matches!(
        file.detail,
        Detail::Epoll(_)
            | Detail::Timerfd(_)
            | Detail::Signalfd(_)
            | Detail::Inotify(_)
            | Detail::Fanotify(_)
            | Detail::Pidfd(..)
    ) && !matches!(
        file.kind,
        FileKind::IoUring
            | FileKind::PerfEvent
            | FileKind::Userfaultfd
            | FileKind::Bpf
            | FileKind::Other
    )
}

/// Flags that fcntl(2) cannot change.
const FIXED: u32 =
    !(libc::O_APPEND | libc::O_ASYNC | libc::O_DIRECT | libc::O_NOATIME | libc::O_NONBLOCK) as u32;

/// Whether a live open file is, or can be made, the wanted one.
pub(super) fn is_same(want: &OpenFile, have: &OpenFile) -> bool {
    if want.kind != have.kind
        || want.identity != have.identity
        || want.flags & FIXED != have.flags & FIXED
    {
        return false;
    }
    match (&want.detail, &have.detail) {
        (Detail::Eventfd(a), Detail::Eventfd(b)) => a.semaphore == b.semaphore && a.id == b.id,
        (Detail::Timerfd(a), Detail::Timerfd(b)) => a.clock == b.clock,
        (Detail::Inotify(a), Detail::Inotify(b)) => a == b,
        (Detail::Pidfd(a, _), Detail::Pidfd(b, _)) => a == b || *b == -1,
        (Detail::Memfd(a), Detail::Memfd(b)) => b.seals & !a.seals == 0,
        (Detail::Socket(a), Detail::Socket(b)) => {
            let was_idle = a.state == SocketState::Idle;
            match was_idle || matches!(a.state, SocketState::Listening(_)) {
                // What it became since cannot be undone.
                true => {
                    std::mem::discriminant(&a.state) == std::mem::discriminant(&b.state)
                        && (!was_idle || a.local == b.local)
                }
                false => true,
            }
        }
        _ => true,
    }
}

/// Whether state that can be set differs, watches and locks of the process aside.
pub(super) fn differs(want: &OpenFile, have: &OpenFile) -> bool {
    let position = want.is_positioned() && want.position != have.position;
    let locks = |file: &OpenFile| {
        let mut locks: Vec<_> = file
            .locks
            .iter()
            .filter(|l| l.kind != LockKind::Posix)
            .copied()
            .collect();
        locks.sort_unstable();
        locks
    };
    let detail = match (&want.detail, &have.detail) {
        (Detail::Eventfd(a), Detail::Eventfd(b)) => a.count != b.count,
        (Detail::Timerfd(a), Detail::Timerfd(b)) => a != b,
        (Detail::Signalfd(a), Detail::Signalfd(b)) => a != b,
        (Detail::Terminal(a), Detail::Terminal(b)) => a != b,
        (Detail::Pipe(a), Detail::Pipe(b)) => {
            a.capacity != b.capacity || a.content != b.content || a.unread != b.unread
        }
        (Detail::Memfd(a), Detail::Memfd(b)) => {
            a.size != b.size
                || a.seals != b.seals
                || (!a.left_out && !a.mapped && (b.left_out || b.mapped || a.content != b.content))
        }
        (Detail::Socket(a), Detail::Socket(b)) => {
            a.options != b.options || a.queue != b.queue || a.state != b.state
        }
        _ => false,
    };
    position
        || detail
        || want.flags != have.flags
        || want.owner != have.owner
        || locks(want) != locks(have)
}
