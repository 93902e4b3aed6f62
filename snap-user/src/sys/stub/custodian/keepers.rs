//! Which custodian has a connection, and for which snapshot.

use super::{MARK, NAME};
use crate::model::address_words;
use crate::sys::fd::socket::tcp::ends;
use crate::sys::{
    PidFd, Result, SysError, monotonic_ns, pidfd_getfd, pidfd_kill, pidfd_open, proc,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

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

/// A process that has a connection in custody.
#[derive(Debug)]
pub struct Keeper {
    /// Its id.
    pub pid: i32,
    process: PidFd,
    /// When the connection was taken.
    time_ns: Option<u64>,
}

impl Keeper {
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

/// The custodians that have a connection between two addresses, of whichever snapshot. What may not be looked at is
/// passed over.
pub fn keepers(local: &[u8], peer: &[u8]) -> Vec<Keeper> {
    let custodians = proc::processes()
        .into_iter()
        .filter(|pid| is_custodian(*pid));
    custodians
        .filter_map(|pid| {
            let process = pidfd_open(pid).ok()?;
            let table = proc::FdTable::open(pid).ok()?;
            let links = table.numbers().ok()?.into_iter();
            let links: Vec<(i32, String)> = links
                .filter_map(|fd| Some((fd, table.link(fd).ok()?)))
                .collect();
            let has = |fd: i32| {
                let socket = pidfd_getfd(&process, fd).ok();
                socket
                    .and_then(ends)
                    .is_some_and(|(here, there)| here == local && there == peer)
            };
            let mut sockets = links.iter().filter(|(_, link)| link.starts_with("socket:"));
            if !sockets.any(|(fd, _)| has(*fd)) {
                return None;
            }
            let time_ns = links.iter().find_map(|(_, link)| {
                let mark = link.strip_prefix("/memfd:")?.strip_prefix(MARK)?;
                mark.split(' ').next()?.parse().ok()
            });
            // Its id may have been another one's by the time that the process was opened.
            is_custodian(pid).then_some(Keeper {
                pid,
                process,
                time_ns,
            })
        })
        .collect()
}

/// Ends the custodians of these connections, and returns when the sockets are closed, without a word.
///
/// # Errors
/// One of them has none, and all are as they were; or one cannot be ended.
pub fn end_custody(all: &[Kept<'_>]) -> Result<()> {
    let mut found: Vec<Keeper> = Vec::new();
    for one in all {
        let keepers = keepers(one.local, one.peer).into_iter();
        let Some(keeper) = keepers.into_iter().find(|k| k.is_of(one.time_ns)) else {
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
        if found.iter().all(|other| other.pid != keeper.pid) {
            found.push(keeper);
        }
    }
    found.into_iter().try_for_each(Keeper::end)
}

/// A process is one that holds connections for ksnap.
pub fn is_custodian(pid: i32) -> bool {
    proc::text(pid, "comm").is_ok_and(|comm| comm.trim_end().as_bytes() == NAME.to_bytes())
}
