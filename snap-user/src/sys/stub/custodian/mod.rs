//! Sockets of processes beyond their end: a child of ksnap has them, silent, so that nobody answers for them.
//!
//! The kernel answers by a reset what arrives for a connection that it does not know. So the socket of a connection that
//! is in a snapshot stays open in this child until the connection is brought back, or given up: by ending the child.
//! Before the processes have ended the same child is what undoes everything, should ksnap be killed in the middle.

mod child;
mod keepers;
mod protocol;
mod spare;
#[cfg(test)]
mod tests;

pub use keepers::{Keeper, Kept, custodians, end_custody, is_custodian};

use super::birth::{self, bury};
use crate::sys::fd::socket::tcp::{enter, hear_quietly, leave_quietly};
use crate::sys::ptrace::Tid;
use crate::sys::{Result, SysError, proc};
use protocol::{Word, arrange};
use spare::Instructions;
use std::io::PipeWriter;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

/// How long it is waited for its name: it takes that as soon as it runs, unless somebody has stopped it.
const NAMED: Duration = Duration::from_secs(10);
/// Its name in the list of processes.
const NAME: &std::ffi::CStr = c"ksnap-tcp";

/// A child of ksnap that has sockets of other processes. Unless it is told to keep them, they are the processes' again when
/// this is dropped.
#[derive(Debug)]
pub struct Custodian {
    child: Tid,
    tell: Option<PipeWriter>,
    /// The sockets, and whether their addresses may be used again (`SO_REUSEADDR`).
    sockets: Vec<(OwnedFd, bool)>,
}

impl Custodian {
    /// Takes sockets of these processes into custody, each with its `SO_REUSEADDR`. Nothing of them has changed when this
    /// returns; whatever is done to them is undone by the child if ksnap ends. `time_ns` is when, in nanoseconds since
    /// 1970: by that the snapshot is known again whose connections they are.
    pub fn over(
        processes: &[BorrowedFd<'_>],
        sockets: Vec<(OwnedFd, bool)>,
        time_ns: u64,
    ) -> Result<Self> {
        let pipe = |e| SysError::new("pipe", "this process", e);
        let (told, tell) = std::io::pipe().map_err(pipe)?;
        let (held, channel) = arrange(&told, processes, &sockets, time_ns)?;
        let keep: Vec<RawFd> = held.iter().map(AsRawFd::as_raw_fd).collect();
        let instructions = Instructions::new(&keep)?;
        Ok(Self {
            child: birth::helper(child::watch, channel, instructions.descriptors())?,
            tell: Some(tell),
            sockets,
        })
    }

    /// The child.
    pub fn pid(&self) -> Tid {
        self.child
    }

    /// The sockets, in the order in which they were given.
    pub fn sockets(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.sockets.iter().map(|(socket, _)| socket.as_fd())
    }

    /// Undoes everything, and gives the sockets back.
    pub fn release(mut self) -> Vec<(OwnedFd, bool)> {
        self.give_back();
        std::mem::take(&mut self.sockets)
    }

    /// The processes are about to be killed, however long that takes: if ksnap ends meanwhile, the child kills them and keeps
    /// the sockets. From here on they are in repair mode, in which a program could send nothing more by them.
    ///
    /// # Errors
    /// The child is gone. The sockets are the processes' again.
    pub fn intend(&mut self) -> Result<()> {
        let done = self.try_intend();
        if done.is_err() {
            // Before anybody lets them run.
            self.give_back();
        }
        done
    }

    fn try_intend(&mut self) -> Result<()> {
        for (socket, _) in &self.sockets {
            enter(socket)?;
        }
        let tell = self.tell.as_mut().expect("until it is told");
        Word::Intent.say(tell).map_err(gone)
    }

    /// The processes have been killed: the sockets stay open in the child, silent, until that is ended. Returns its id.
    ///
    /// # Errors
    /// The child is gone: the connections end with ksnap.
    pub fn keep(mut self) -> Result<Tid> {
        let mut tell = self.tell.take().expect("until it is told");
        match Word::Keep.say(&mut tell) {
            Ok(()) => {
                await_name(self.child);
                Ok(self.child)
            }
            Err(e) => {
                self.undo();
                bury(self.child);
                Err(gone(e))
            }
        }
    }

    fn give_back(&mut self) {
        let Some(mut tell) = self.tell.take() else {
            return;
        };
        self.undo();
        // One that is gone needs no word.
        let _ = Word::Undone.say(&mut tell);
        drop(tell);
        bury(self.child);
    }

    fn undo(&self) {
        for (socket, reuse) in &self.sockets {
            leave_quietly(socket.as_raw_fd(), i32::from(*reuse));
            hear_quietly(socket.as_raw_fd());
        }
    }
}

impl Drop for Custodian {
    fn drop(&mut self) {
        self.give_back();
    }
}

/// Waits until a child is found by its name, which it takes when it comes to run: somebody may look for it at once.
fn await_name(child: Tid) {
    let end = Instant::now() + NAMED;
    while !is_custodian(child) && proc::is_alive(child) && Instant::now() < end {
        std::thread::sleep(Duration::from_micros(100));
    }
}

fn gone(e: std::io::Error) -> SysError {
    SysError::new("write", "the process that was to hold the connections", e)
}
