//! Which custodian has a connection, and for which snapshot.

use super::NAME;
use super::protocol::moment;
use crate::model::address_words;
use crate::sys::fd::socket::tcp::ends;
use crate::sys::{
    PidFd, Result, SysError, monotonic_ns, pidfd_getfd, pidfd_kill, pidfd_open, proc,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::collections::HashSet;

/// A connection that a custodian may have.
#[derive(Clone, Copy, Debug)]
pub struct Kept<'a> {
    /// When it was taken, as [`super::Custodian::over`] was told.
    pub time_ns: u64,
    /// Its address here.
    pub local: &'a [u8],
    /// Its address there.
    pub peer: &'a [u8],
}

/// A process that has connections in custody.
#[derive(Debug)]
pub struct Keeper {
    /// Its id.
    pub pid: i32,
    process: PidFd,
    /// When the connections were taken.
    time_ns: Option<u64>,
    /// Their addresses, here and there.
    connections: HashSet<(Vec<u8>, Vec<u8>)>,
}

impl Keeper {
    /// Looks at what a custodian has.
    fn look(pid: i32) -> Option<Self> {
        let process = pidfd_open(pid).ok()?;
        let table = proc::FdTable::open(pid).ok()?;
        let mut time_ns = None;
        let mut connections = HashSet::new();
        for fd in table.numbers().ok()? {
            let Ok(link) = table.link(fd) else {
                continue;
            };
            if link.starts_with("socket:") {
                let socket = pidfd_getfd(&process, fd).ok();
                connections.extend(socket.and_then(ends));
            }
            time_ns = time_ns.or_else(|| moment(&link));
        }
        // Its id may have been another one's by the time that the process was opened.
        is_custodian(pid).then_some(Self {
            pid,
            process,
            time_ns,
            connections,
        })
    }

    /// It has a connection between two addresses, of whichever snapshot.
    pub fn has(&self, local: &[u8], peer: &[u8]) -> bool {
        self.connections.contains(&(local.to_vec(), peer.to_vec()))
    }

    /// It has others than `is_one` says of their addresses here and there.
    pub fn has_others(&self, is_one: impl Fn(&[u8], &[u8]) -> bool) -> bool {
        let mut connections = self.connections.iter();
        connections.any(|(local, peer)| !is_one(local, peer))
    }

    /// It has the connection for the snapshot that was made of it then, and not for another one.
    pub fn is_of(&self, time_ns: u64) -> bool {
        self.time_ns == Some(time_ns)
    }

    /// Ends it, and returns when its sockets are closed, without a word.
    fn end(self) -> Result<()> {
        /// How long that may take.
        const LIMIT_NS: u64 = 10_000_000_000;
        match pidfd_kill(&self.process) {
            Err(e) if !e.is_vanished() => return Err(e),
            _ => {}
        }
        let until = monotonic_ns() + LIMIT_NS;
        loop {
            let left = until.saturating_sub(monotonic_ns());
            let limit = Timespec {
                tv_sec: (left / 1_000_000_000) as i64,
                tv_nsec: (left % 1_000_000_000) as i64,
            };
            match poll(
                &mut [PollFd::new(&self.process, PollFlags::IN)],
                Some(&limit),
            ) {
                Ok(0) => {
                    let late = std::io::Error::from(std::io::ErrorKind::TimedOut);
                    let who = format_args!("process {}, which holds the connections", self.pid);
                    return Err(SysError::new("wait for", who, late));
                }
                Ok(_) => return Ok(()),
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => {
                    return Err(SysError::new(
                        "poll",
                        format_args!("process {}", self.pid),
                        e,
                    ));
                }
            }
        }
    }
}

/// All custodians, of whichever snapshots, by one look at all processes. What may not be looked at is passed over.
pub fn custodians() -> Vec<Keeper> {
    let pids = proc::processes().into_iter();
    pids.filter(|pid| is_custodian(*pid))
        .filter_map(Keeper::look)
        .collect()
}

/// Ends the custodians of these connections, and returns when the sockets are closed, without a word.
///
/// # Errors
/// One of them has none, and all are as they were; or one cannot be ended.
pub fn end_custody(all: &[Kept<'_>]) -> Result<()> {
    let custodians = custodians();
    let mut needed = vec![false; custodians.len()];
    for one in all {
        let mut has = custodians.iter();
        let Some(keeper) = has.position(|k| k.has(one.local, one.peer) && k.is_of(one.time_ns))
        else {
            let why = "no process ksnap-tcp keeps it any more for this snapshot: restore without --tcp, and the program finds it closed";
            return Err(SysError::new(
                "take over",
                format_args!(
                    "the connection from {} to {}",
                    address_words(one.local),
                    address_words(one.peer)
                ),
                std::io::Error::other(why),
            ));
        };
        needed[keeper] = true;
    }
    let found = custodians.into_iter().zip(needed);
    found
        .filter(|(_, needed)| *needed)
        .try_for_each(|(keeper, _)| keeper.end())
}

/// A process is one that holds connections for ksnap.
pub fn is_custodian(pid: i32) -> bool {
    proc::text(pid, "comm").is_ok_and(|comm| comm.trim_end().as_bytes() == NAME.to_bytes())
}
