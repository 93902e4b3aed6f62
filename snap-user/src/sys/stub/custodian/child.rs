//! What the child does that has the sockets.

use super::spare::drop_memory;
use super::{INTENT, NAME, OWN, UNDONE};
use crate::sys::fd::socket::tcp::{close_silently, hear_quietly, leave_quietly};
use crate::sys::stub::birth::Parent;
use crate::sys::stub::init::close_all_but;

/// How long the process may take to end that ksnap was killing when it was killed itself, in nanoseconds.
const LAST_MOMENT: i64 = 200_000_000;

/// What the child does. Nothing here allocates: another thread of ksnap may have had the allocator's lock when this
/// copy of it was made, and will never give it back.
pub(super) fn watch(parent: Parent) -> ! {
    let channel = parent.channel().unwrap_or(-1);
    let all = parent.keep();
    close_all_but(all);
    let split = all.iter().position(|fd| *fd == channel).unwrap_or(0);
    let process = all.get(split + 1).copied().unwrap_or(-1);
    let sockets = || {
        let own = all.iter().enumerate();
        let own = own.filter(|(n, _)| !(split..split + OWN).contains(n));
        own.map(|(n, fd)| (*fd, i32::from(n > split)))
    };
    let mut word = 0u8;
    // SAFETY: system calls; the byte and the structures are live locals, and the name is a constant.
    unsafe {
        // Whoever ends ksnap's whole session does not mean this one, which has its work to do first.
        libc::setsid();
        libc::prctl(libc::PR_SET_NAME, NAME.as_ptr());
        let mut told = libc::read(channel, (&raw mut word).cast(), 1);
        let intended = told == 1 && word == INTENT;
        if intended {
            told = libc::read(channel, (&raw mut word).cast(), 1);
        }
        if told == 1 && word == UNDONE {
            libc::_exit(0);
        }
        if told != 1 && intended {
            // ksnap is gone, and may not have come to it.
            let nothing = std::ptr::null::<libc::siginfo_t>();
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                process,
                libc::SIGKILL,
                nothing,
                0,
            );
        } else if told != 1 {
            // ksnap is gone, and the process runs.
            for (socket, reuse) in sockets() {
                leave_quietly(socket, reuse);
            }
            let mut end = libc::pollfd {
                fd: process,
                events: libc::POLLIN,
                revents: 0,
            };
            let moment = libc::timespec {
                tv_sec: 0,
                tv_nsec: LAST_MOMENT,
            };
            // Unless ksnap had just killed it.
            if libc::ppoll(&mut end, 1, &moment, std::ptr::null()) != 1 {
                for (socket, _) in sockets() {
                    hear_quietly(socket);
                }
                libc::_exit(0);
            }
        }
        for (socket, _) in sockets() {
            close_silently(socket);
        }
        libc::close(channel);
        libc::close(process);
        // Else what ksnap had at hand for a snapshot would be held for as long as the connections.
        drop_memory(all);
        // All signals are blocked: whoever wants the connections given up may ask for it as usual.
        let mut asked: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut asked);
        libc::sigaddset(&mut asked, libc::SIGTERM);
        libc::sigprocmask(libc::SIG_UNBLOCK, &asked, std::ptr::null_mut());
        loop {
            libc::pause();
        }
    }
}
