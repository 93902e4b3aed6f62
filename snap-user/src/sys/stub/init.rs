//! Process 1 of a PID namespace that new processes get: reaps what is orphaned there, fills the memory
//! of the processes as it is touched, and ends with the exit code of the first.
//!
//! The kernel ends a PID namespace with its process 1. So whoever lives there can rely on it for memory
//! that is not there yet: there is no moment at which the one is gone and the other goes on.

use super::birth::{NO_PROC, OWN_PROC, Parent};
use super::lazy::Handed;
use super::{AT_ONCE, Lazy, SOON, TRACED};
use crate::sys::arrivals::Heard;
use crate::sys::file_map::Image;
use crate::sys::pager::Pager;
use crate::sys::ptrace::{self, Event, Tid};
use crate::sys::{Gadgets, Remote, Result, SysError, proc, write_bytes};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};

/// What ksnap writes into the copy of this that process 1 has: the process to end with. It is the signal to begin.
static ORDER: AtomicI32 = AtomicI32::new(0);

const LATER: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 10_000_000,
};

/// What the process runs, from its birth on.
pub(super) fn run(parent: Parent) -> ! {
    parent.end_with();
    // SAFETY: a system call with a constant string.
    unsafe { libc::prctl(libc::PR_SET_NAME, c"ksnap-init".as_ptr()) };
    parent.tell(if mount_proc() { OWN_PROC } else { NO_PROC });
    let main = loop {
        match ORDER.load(Ordering::Acquire) {
            0 => nap(),
            main => break main,
        }
    };
    if parent
        .lazy()
        .iter()
        .any(|lazy| lazy.handed.descriptor().is_some())
    {
        page(parent.lazy(), main);
    }
    close_all_but(&[]);
    loop {
        if let Reaped::Main(status) = reap(main, 0) {
            end_as(status);
        }
    }
}

fn nap() {
    let moment = libc::timespec {
        tv_sec: 0,
        tv_nsec: 1_000_000,
    };
    // SAFETY: a system call with a live local.
    unsafe { libc::nanosleep(&moment, std::ptr::null_mut()) };
}

/// Mounts the /proc of this PID namespace, for nobody else to see: programs look themselves up in it by
/// the ids that they know.
fn mount_proc() -> bool {
    let none = std::ptr::null();
    let flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
    // SAFETY: system calls with constant strings; the child has its own mount namespace.
    unsafe {
        libc::mount(
            none,
            c"/".as_ptr(),
            none,
            libc::MS_REC | libc::MS_SLAVE,
            none.cast(),
        ) == 0
            && libc::mount(
                c"proc".as_ptr(),
                c"/proc".as_ptr(),
                c"proc".as_ptr(),
                flags,
                none.cast(),
            ) == 0
    }
}

/// Whose end was met.
enum Reaped {
    Nobody,
    Other,
    /// The process's, with its wait status.
    Main(i32),
}

/// Waits for one that has ended.
fn reap(main: i32, options: i32) -> Reaped {
    let mut status = 0;
    // SAFETY: a system call; the status is a live local.
    match unsafe { libc::waitpid(-1, &mut status, libc::__WALL | options) } {
        ended if ended == main => Reaped::Main(status),
        1.. => Reaped::Other,
        _ => Reaped::Nobody,
    }
}

/// Ends as the process did, in the way of a shell.
fn end_as(status: i32) -> ! {
    let code = match libc::WIFEXITED(status) {
        true => libc::WEXITSTATUS(status),
        false => 128 + libc::WTERMSIG(status),
    };
    // SAFETY: ends the process, and its namespace with it.
    unsafe { libc::_exit(code) }
}

/// Or whoever reads what ksnap or the process writes would wait for the end of this one as well. `keep` is ascending.
pub(super) fn close_all_but(keep: &[RawFd]) {
    let mut next = 0;
    for fd in keep.iter().map(|fd| *fd as u32).chain([u32::MAX]) {
        if fd > next {
            // SAFETY: a system call without pointers; nothing here uses the descriptors that go.
            unsafe { libc::syscall(libc::SYS_close_range, next, fd - 1, 0) };
        }
        next = fd.saturating_add(1);
    }
}

fn page(lazy: &[Arc<Lazy>], main: i32) -> ! {
    // What is still on its way, until all has come: of one process at most.
    let mut coming = lazy.iter().find_map(|lazy| lazy.arrivals.as_ref());
    let on_its_way = coming;
    let break_off = || {
        if let Some(arrivals) = on_its_way {
            arrivals.break_off();
        }
    };
    let fail = || {
        break_off();
        // SAFETY: ends all others of the namespace, and the process, and the namespace with it. Before what it has open
        // is closed, which lets go of all who wait for memory.
        unsafe {
            libc::kill(-1, libc::SIGKILL);
            libc::_exit(1)
        }
    };
    let mut pager = Pager::default();
    for one in lazy {
        let Some(uffd) = one.handed.descriptor() else {
            continue;
        };
        let Ok(image) = Image::new(&one.image, &one.sums, one.arrivals.clone()) else {
            fail()
        };
        // SAFETY: put there by ksnap for this process to own.
        let uffd = unsafe { OwnedFd::from_raw_fd(uffd) };
        pager.adopt(uffd, image, &one.pieces, &one.first);
    }
    // SAFETY: system calls; the set is a live local. All signals are blocked already.
    let signals = unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, libc::SIGCHLD);
        libc::sigaddset(&mut set, libc::SIGUSR1);
        let fd = libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
        if fd < 0 {
            fail()
        }
        OwnedFd::from_raw_fd(fd)
    };
    let mut keep = vec![signals.as_raw_fd()];
    keep.extend(pager.descriptors().map(|fd| fd.as_raw_fd()));
    keep.extend(pager.images());
    let pipes = coming.iter().flat_map(|arrivals| arrivals.descriptors());
    keep.extend(pipes.map(|fd| fd.as_raw_fd()));
    keep.sort_unstable();
    close_all_but(&keep);
    let mut filling = false;
    // There is something to fill that nobody has asked for.
    let mut more = true;
    loop {
        let mut fds = vec![PollFd::new(&signals, PollFlags::IN)];
        let pipe = coming.map(|arrivals| arrivals.descriptor());
        fds.extend(pipe.iter().map(|fd| PollFd::new(fd, PollFlags::IN)));
        let own: Vec<_> = pager.descriptors().collect();
        fds.extend(own.iter().map(|fd| PollFd::new(fd, PollFlags::IN)));
        let timeout = match filling && !pager.is_done() {
            true if more => Some(&AT_ONCE),
            _ if pager.is_to_be_tried_again() => Some(&SOON),
            // Only of what somebody waits for it is told that it has come.
            true => Some(&LATER),
            false => None,
        };
        let _ = poll(&mut fds, timeout);
        match coming.map(|arrivals| arrivals.hear()) {
            None | Some(Heard::More) => {}
            Some(Heard::All) => coming = None,
            // What has not come would read as zeroes.
            Some(Heard::Lost) => fail(),
        }
        while let Some(signal) = next_signal(&signals) {
            filling |= signal == libc::SIGUSR1;
        }
        loop {
            match reap(main, libc::WNOHANG) {
                Reaped::Nobody => break,
                Reaped::Other => {}
                Reaped::Main(status) => {
                    if libc::WIFSIGNALED(status) {
                        break_off();
                    }
                    end_as(status);
                }
            }
        }
        pager.serve();
        more = !filling || pager.fill_some();
        if pager.is_damaged() {
            // Rather than with memory of something else. The next restore makes the image anew.
            fail();
        }
    }
}

fn next_signal(signals: &OwnedFd) -> Option<i32> {
    // SAFETY: zeroed, the structure is valid; the kernel fills it, and its length is given.
    unsafe {
        let mut info: libc::signalfd_siginfo = std::mem::zeroed();
        let len = size_of_val(&info);
        let got = libc::read(signals.as_raw_fd(), (&raw mut info).cast(), len);
        (got == len as isize).then_some(info.ssi_signo as i32)
    }
}

/// Hands a userfaultfd of a process to process 1.
pub(super) fn hand_over(init: Tid, own: i32, fd: RawFd, to: &Handed) -> Result<()> {
    let mut remote = remote(init)?;
    let process = remote.call(
        "pidfd_open",
        libc::SYS_pidfd_open,
        [own as u64, 0, 0, 0, 0, 0],
    )?;
    let args = [process, fd as u64, 0, 0, 0, 0];
    let fd = remote.call("pidfd_getfd", libc::SYS_pidfd_getfd, args)?;
    remote.call("close", libc::SYS_close, [process, 0, 0, 0, 0, 0])?;
    drop(remote);
    let (place, bytes) = to.hand(fd as i32);
    write_bytes(init, place, &bytes)
}

/// Lets it run, to end with this process.
pub(super) fn begin(init: Tid, own_main: i32) -> Result<()> {
    order(init, own_main)?;
    ptrace::cont(init, 0)
}

fn order(init: Tid, own_main: i32) -> Result<()> {
    write_bytes(init, (&raw const ORDER) as u64, &own_main.to_le_bytes())
}

fn remote(init: Tid) -> Result<Remote> {
    let insn = Gadgets::find_syscall(init, &proc::maps(init)?)?.unwrap_or(0);
    Remote::with_options(init, insn, TRACED)
}

/// Asks process 1 of a new process's namespace to fill all of its memory, touched or not.
pub fn fill_all(init: i32) -> Result<()> {
    // SAFETY: a system call without pointers.
    match unsafe { libc::kill(init, libc::SIGUSR1) } {
        0 => Ok(()),
        _ => Err(SysError::last("kill", format_args!("process {init}"))),
    }
}

/// Lets process 1 live without ksnap.
pub(super) fn set_free(init: Tid, own_main: i32, runs: bool) -> Result<()> {
    if runs {
        ptrace::interrupt(init)?;
        while !matches!(ptrace::wait(init)?, Event::Stopped | Event::Exited(_)) {
            ptrace::cont(init, 0)?;
        }
    } else {
        order(init, own_main)?;
    }
    let args = [libc::PR_SET_PDEATHSIG as u64, 0, 0, 0, 0, 0];
    remote(init)?.call("prctl", libc::SYS_prctl, args)?;
    ptrace::detach(init)
}
