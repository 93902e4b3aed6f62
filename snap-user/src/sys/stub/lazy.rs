//! Memory of new processes that comes when it is touched.
//!
//! Whoever fills it must not be gone before it is done: pages that nobody gives any more would read as
//! zeroes. In a PID namespace of their own it is process 1, whose end is the end of all. Elsewhere it is their guard
//! (`guard.rs`), which goes on until nothing is missing, and ends them should ksnap end before.

use super::guard::{DONE, Wards};
use super::{Stub, StubCall, birth, init};
use crate::model::PageRange;
use crate::sys::pager::{PAGER_FLAGS, Piece, arm};
use crate::sys::ptrace::Tid;
use crate::sys::{Arrivals, Result, SysError, pidfd_getfd};
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::thread::JoinHandle;

/// What memory is filled from, and where.
#[derive(Debug)]
pub struct Lazy {
    /// A flat image.
    pub image: File,
    /// CRC-32C of each of its pages, by place; none where it is in memory.
    pub sums: Arc<[u32]>,
    /// Whole mappings that are filled when they are touched.
    pub ranges: Vec<PageRange>,
    /// Where their content is; what has none is zero.
    pub pieces: Vec<Piece>,
    /// What comes first of what nobody touches, in this order.
    pub first: Vec<PageRange>,
    /// Which pages of the image have come, if some are still on their way. Only a process 1 waits for them: what they
    /// are for has to end with whoever brings them, and all that it has forked meanwhile as well.
    pub arrivals: Option<Arc<Arrivals>>,
    /// For process 1, which has it by then.
    pub handed: Handed,
}

/// The descriptor by which process 1 fills memory: ksnap writes it into the copy of this that process 1 has.
#[derive(Debug, Default)]
pub struct Handed(AtomicI32);

impl Handed {
    /// In the copy of process 1: the descriptor, if there is one.
    pub(super) fn descriptor(&self) -> Option<RawFd> {
        match self.0.load(Ordering::Acquire) {
            0 => None,
            above => Some(above - 1),
        }
    }

    /// Where in process 1 which bytes have to be.
    pub(super) fn hand(&self, fd: RawFd) -> (u64, [u8; 4]) {
        ((&raw const self.0) as u64, (fd + 1).to_le_bytes())
    }
}

/// A process that lacks memory, and waits for it until somebody fills it.
#[derive(Debug)]
pub struct Lacking {
    pub(super) uffd: OwnedFd,
    pub(super) lazy: Arc<Lazy>,
}

impl Stub {
    /// Has memory come when it is touched: from process `init` of its namespace, which was told at its start what to
    /// fill, and does so as soon as it runs ([`Stub::run_init`]); or from whoever is given what is returned.
    ///
    /// # Errors
    /// EPERM without the right to serve faults of the kernel (`vm.unprivileged_userfaultfd`), or to follow
    /// forks (CAP_SYS_PTRACE): nothing has changed then.
    pub fn load_lazily(&mut self, lazy: &Arc<Lazy>, init: Option<Tid>) -> Result<Option<Lacking>> {
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
        let done = arm(uffd.as_fd(), &lazy.ranges).and_then(|()| match init {
            Some(init) => {
                let own = self.threads()[0].own;
                init::hand_over(init, own, fd as i32, &lazy.handed).map(|()| None)
            }
            None if lazy.arrivals.is_some() => Err(SysError::new(
                "fill",
                "memory that is still on its way",
                std::io::Error::other("it has no process 1 of its own"),
            )),
            None => Ok(Some(Lacking {
                uffd,
                lazy: Arc::clone(lazy),
            })),
        });
        self.run(&[close])?;
        done
    }

    /// Lets process 1 of its namespace fill the memory that it was given to fill.
    pub fn run_init(&mut self) -> Result<()> {
        if let Some(init) = self.init() {
            init::begin(init, self.threads()[0].own)?;
            self.init_runs = true;
        }
        Ok(())
    }
}

/// How the filling of memory ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Filling {
    Done,
    /// What it is filled from is not what it was.
    Damaged,
    Killed,
}

/// What there is to say of that.
const DAMAGED_IMAGE: &str = "the flat image that it comes from is damaged, and is used no more: restore again, which makes it anew from the snapshot";

/// Processes whose memory is still coming.
#[derive(Debug)]
pub struct Loading {
    /// Waits for whoever fills it. Should that be gone before all is there, they are ended.
    thread: JoinHandle<Filling>,
    filler: Tid,
}

impl Loading {
    /// `filler` says a word when all is there. What is `lacking` is held until then: as long as a descriptor of it is
    /// open, nobody reads zeroes, whoever was killed.
    pub(super) fn new(
        filler: Tid,
        mut said: UnixStream,
        wards: Wards,
        lacking: Vec<Lacking>,
    ) -> Self {
        let wait = move || {
            let mut word = [0];
            let end = match said.read_exact(&mut word) {
                Ok(()) if word[0] == DONE => Filling::Done,
                Ok(()) => Filling::Damaged,
                Err(_) => Filling::Killed,
            };
            if end != Filling::Done {
                wards.end();
            }
            drop(lacking);
            end
        };
        Self {
            thread: std::thread::spawn(wait),
            filler,
        }
    }

    /// Waits until nothing is missing: from then on they live without ksnap.
    pub(super) fn finish(self) -> Result<()> {
        let end = self.thread.join().unwrap_or(Filling::Killed);
        birth::bury(self.filler);
        let why = match end {
            Filling::Done => return Ok(()),
            Filling::Killed => "the process that fills it was killed",
            Filling::Damaged => DAMAGED_IMAGE,
        };
        Err(SysError::new(
            "fill",
            "the memory of new processes, which are ended",
            std::io::Error::other(why),
        ))
    }
}
