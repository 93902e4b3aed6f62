//! Memory of a new process that comes when it is touched.
//!
//! Whoever fills it must not be gone before it is done: pages that nobody gives any more would read as
//! zeroes. In a PID namespace of its own it is process 1, whose end is the end of all. Elsewhere it is a
//! thread of ksnap's, which goes on until nothing is missing; until then the process is killed when ksnap
//! ends.

use super::{Stub, StubCall, init};
use crate::model::PageRange;
use crate::sys::file_map::Image;
use crate::sys::pager::{PAGER_FLAGS, Pager, Piece, arm};
use crate::sys::{Arrivals, Call, Result, SysError, inject, pidfd_getfd, proc};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::fs::File;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread::JoinHandle;

/// What memory is filled from, and where.
#[derive(Debug)]
pub struct Lazy {
    /// A flat image.
    pub image: File,
    /// Whole mappings that are filled when they are touched.
    pub ranges: Vec<PageRange>,
    /// Where their content is; what has none is zero.
    pub pieces: Vec<Piece>,
    /// Which pages of the image have come, if some are still on their way. Only a process 1 waits for them: what they
    /// are for has to end with whoever brings them, and all that it has forked meanwhile as well.
    pub arrivals: Option<Arc<Arrivals>>,
}

/// A thread that fills the memory of a process.
#[derive(Debug)]
pub struct Loading {
    thread: JoinHandle<()>,
}

impl Stub {
    /// Has memory filled as it is touched, from here on: by process 1 of its namespace, which was told at
    /// its start, or by a thread of this process, all of it as fast as it can.
    ///
    /// # Errors
    /// EPERM without the right to serve faults of the kernel (`vm.unprivileged_userfaultfd`), or to follow
    /// forks (CAP_SYS_PTRACE): nothing has changed then.
    pub fn load_lazily(&mut self, lazy: &Lazy) -> Result<()> {
        let make = StubCall::new(
            "userfaultfd",
            "its memory",
            libc::SYS_userfaultfd,
            [PAGER_FLAGS, 0, 0, 0, 0, 0],
        );
        let fd = self.run(&[make])?[0];
        let close = StubCall::new(
            "close",
            "its userfaultfd",
            libc::SYS_close,
            [fd as u64, 0, 0, 0, 0, 0],
        );
        let uffd = pidfd_getfd(self.pidfd(), fd as i32)?;
        let done = arm(uffd.as_fd(), &lazy.ranges).and_then(|()| match self.init() {
            Some(init) => {
                let own = self.threads()[0].own;
                init::hand_over(init, own, fd as i32)?;
                self.init_runs = true;
                Ok(())
            }
            None if lazy.arrivals.is_some() => Err(SysError::new(
                "fill",
                "memory that is still on its way",
                std::io::Error::other("it has no process 1 of its own"),
            )),
            None => {
                let mut pager = Pager::new(Image::new(&lazy.image, None)?);
                pager.adopt(uffd, &lazy.pieces);
                let thread = std::thread::spawn(move || fill(pager));
                self.loading = Some(Loading { thread });
                Ok(())
            }
        });
        self.run(&[close])?;
        done
    }
}

fn fill(mut pager: Pager) {
    /// A panic here must not leave a process without its memory: with ksnap it ends as well.
    struct Abort;
    impl Drop for Abort {
        fn drop(&mut self) {
            if std::thread::panicking() {
                std::process::abort();
            }
        }
    }
    let _abort = Abort;
    while !pager.is_done() {
        let own: Vec<_> = pager.descriptors().collect();
        let mut fds: Vec<PollFd<'_>> = own
            .iter()
            .map(|fd| PollFd::new(fd, PollFlags::IN))
            .collect();
        let _ = poll(&mut fds, Some(&Timespec::default()));
        pager.serve();
        pager.fill_some();
    }
}

impl Loading {
    /// Waits until nothing is missing, and lets the process live without ksnap.
    pub(super) fn finish(self, pid: i32, death_signal: i32) -> Result<()> {
        self.thread.join().expect("it aborts rather than panics");
        let call = Call {
            nr: libc::SYS_prctl,
            args: [
                libc::PR_SET_PDEATHSIG as u64,
                death_signal as u64,
                0,
                0,
                0,
                0,
            ],
        };
        match inject(pid, call) {
            // It has ended meanwhile.
            Err(e) if e.is_vanished() || !proc::is_alive(pid) => Ok(()),
            done => done.map(drop),
        }
    }
}
