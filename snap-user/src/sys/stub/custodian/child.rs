//! What the child does that has the sockets. Nothing here allocates: another thread of ksnap may have had the allocator's
//! lock when this copy of it was made, and will never give it back.

use super::NAME;
use super::protocol::{Arranged, Told, hear};
use super::spare::drop_memory;
use crate::sys::fd::socket::tcp::{close_silently, hear_quietly, leave_quietly};
use crate::sys::stub::birth::Parent;
use crate::sys::stub::init::close_all_but;

/// How long a process may take to end that ksnap was killing when it was killed itself, in nanoseconds.
const LAST_MOMENT: i64 = 200_000_000;

/// What the child does.
pub(super) fn watch(parent: Parent) -> ! {
    let channel = parent.channel().unwrap_or(-1);
    let all = parent.keep();
    close_all_but(all);
    let held = Arranged::of(all, channel);
    stand_apart();
    match hear(|| byte(channel)) {
        Told::Undone => exit(),
        Told::Keep => {}
        Told::LostIntending => held.processes().for_each(kill),
        Told::Lost => {
            for (socket, reuse) in held.sockets() {
                leave_quietly(socket, reuse);
            }
            // Unless ksnap had just killed them.
            if !held.processes().all(ends_soon) {
                for (socket, _) in held.sockets() {
                    hear_quietly(socket);
                }
                exit();
            }
        }
    }
    for (socket, _) in held.sockets() {
        close_silently(socket);
    }
    close(channel);
    held.processes().for_each(close);
    // SAFETY: `all` is what ksnap put before its spare memory in its instructions, and from here on this child uses
    // nothing but its stack.
    // Else what ksnap had at hand for a snapshot would be held for as long as the connections.
    unsafe { drop_memory(all) };
    wait_for_the_end()
}

/// Whoever ends ksnap's whole session does not mean this one, which has its work to do first.
fn stand_apart() {
    // SAFETY: a system call without arguments, and one that reads a constant that ends with a zero.
    unsafe {
        libc::setsid();
        libc::prctl(libc::PR_SET_NAME, NAME.as_ptr());
    }
}

/// The next byte from a pipe, if there is one before its other end is closed.
fn byte(channel: i32) -> Option<u8> {
    let mut byte = 0u8;
    // SAFETY: the byte is a live local, and no more than one is written.
    let got = unsafe { libc::read(channel, (&raw mut byte).cast(), 1) };
    (got == 1).then_some(byte)
}

fn kill(process: i32) {
    let nothing = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: a system call that reads no memory: without a siginfo_t the kernel makes one.
    unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            process,
            libc::SIGKILL,
            nothing,
            0,
        );
    }
}

/// Whether a process ends within the last moment.
fn ends_soon(process: i32) -> bool {
    let mut end = libc::pollfd {
        fd: process,
        events: libc::POLLIN,
        revents: 0,
    };
    let moment = libc::timespec {
        tv_sec: 0,
        tv_nsec: LAST_MOMENT,
    };
    // SAFETY: one structure, as said, and the time are live locals; no set of signals is given.
    unsafe { libc::ppoll(&mut end, 1, &moment, std::ptr::null()) == 1 }
}

fn close(fd: i32) {
    // SAFETY: a descriptor of this child's own table that nothing here uses again.
    unsafe { libc::close(fd) };
}

fn exit() -> ! {
    // SAFETY: ends this child without running anything of the program that it is a copy of.
    unsafe { libc::_exit(0) }
}

/// All signals are blocked: whoever wants the connections given up may ask for it as usual.
fn wait_for_the_end() -> ! {
    // SAFETY: the set is a live local that is made empty before it is used; nothing is installed for the signal, so that it
    // ends this child.
    unsafe {
        let mut asked: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut asked);
        libc::sigaddset(&mut asked, libc::SIGTERM);
        libc::sigprocmask(libc::SIG_UNBLOCK, &asked, std::ptr::null_mut());
    }
    loop {
        // SAFETY: a system call without arguments.
        unsafe { libc::pause() };
    }
}
