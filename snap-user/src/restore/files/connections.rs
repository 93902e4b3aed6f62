//! TCP connections that go on in other sockets than they were in.
//!
//! A socket that is going to have one is made with all others, and belongs to the process, but has no more than the
//! address of this side. Only when nothing else is left to be done does it get the connection: from the moment that the
//! socket which has it until then is closed there is no way back.

use super::make::Made;
use super::sockets;
use crate::model::{Connection, Detail, ProcessState, Socket, address_words};
use crate::sys::{self, Keeper, Kept, SysError, fd::socket::tcp, proc};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::{SystemTime, UNIX_EPOCH};

/// Why connections cannot go on in this network, each where it cannot. Nothing has changed when this returns, and nothing
/// is sent. With each socket the inode of the one that had its connection.
pub(super) fn check(all: &[(&Socket, u64)]) -> Vec<Result<(), String>> {
    let inodes: Vec<u64> = all.iter().map(|(_, inode)| *inode).collect();
    // What all processes have is looked for once, however many connections there are.
    let around = Around {
        holders: proc::socket_holders(&inodes).found,
        custodians: sys::custodians(),
    };
    let each = all.iter();
    each.map(|(socket, inode)| around.check(socket, *inode, all))
        .collect()
}

/// Who has sockets.
struct Around {
    /// Inode, process, and its descriptor.
    holders: Vec<(u64, i32, i32)>,
    custodians: Vec<Keeper>,
}

impl Around {
    /// A connection can go on if a custodian has it for this snapshot: then nothing has happened on it since.
    fn check(&self, socket: &Socket, inode: u64, all: &[(&Socket, u64)]) -> Result<(), String> {
        let (here, there) = (address_words(&socket.local), address_words(&socket.peer));
        let Some(connection) = &socket.connection else {
            return Err("the snapshot does not have it".to_owned());
        };
        if let Some(pid) = self.other_owner(socket, inode) {
            return Err(format!("process {pid} has it"));
        }
        let probe = tcp::prepare(socket.domain, &socket.local, &[]);
        let (probe, _) = probe.map_err(|e| match e.errno() {
            Some(libc::EADDRNOTAVAIL) => format!(
                "its address here, {here}, is not one of this machine's (ip addr add gives it the address, and nsenter --net starts ksnap in a network namespace that has it)"
            ),
            _ => e.to_string(),
        })?;
        let has = |keeper: &&Keeper| keeper.has(&socket.local, &socket.peer);
        let keepers: Vec<&Keeper> = self.custodians.iter().filter(has).collect();
        let keeper = keepers.iter().find(|k| k.is_of(connection.time_ns));
        let is_one = |local: &[u8], peer: &[u8]| {
            let mut all = all.iter();
            all.any(|(one, _)| one.local == local && one.peer == peer)
        };
        if let Some(keeper) = keeper.filter(|keeper| keeper.has_others(is_one)) {
            return Err(format!(
                "process {} (ksnap-tcp) keeps connections of other processes with it, which would be lost: bring the whole tree back",
                keeper.pid
            ));
        }
        let is_kept = keeper.is_some();
        match tcp::connect_silently(&probe, &socket.peer) {
            // Where one is connected by this, it is closed without a word.
            Ok(()) if is_kept => Ok(()),
            Err(e) if e.errno() == Some(libc::EADDRNOTAVAIL) && is_kept => Ok(()),
            Err(e) if e.errno() != Some(libc::EADDRNOTAVAIL) => Err(e.to_string()),
            done => Err(match (keepers.first(), done) {
                (Some(other), Err(_)) => format!(
                    "process {} (ksnap-tcp) keeps it for another snapshot: bring that one back, the latest of them; to kill that process loses the connection",
                    other.pid
                ),
                (None, Err(_)) => format!(
                    "there is a connection from {here} to {there} already, which another process has (ss -tnp shows it): it went on from another snapshot, or is a new one"
                ),
                // A custodian of another network keeps another connection between the same addresses.
                (_, Ok(())) => "no process ksnap-tcp of this network keeps it: it went on already, or was given up, or has ended meanwhile; without --tcp the program finds it closed".to_owned(),
            }),
        }
    }

    /// A process that has the socket of the connection, and is no custodian.
    fn other_owner(&self, socket: &Socket, inode: u64) -> Option<i32> {
        let holders = self.holders.iter().filter(|(of, ..)| *of == inode);
        let mut others = holders.filter(|(_, pid, _)| !self.is_custodian(*pid));
        let other = others.find(|(_, pid, fd)| {
            let looked = sys::pidfd_open(*pid).and_then(|process| sys::pidfd_getfd(process, *fd));
            // The number may be another socket's by now. One that cannot be looked at counts as it.
            match looked.map(tcp::ends) {
                Ok(Some((local, peer))) => local == socket.local && peer == socket.peer,
                Ok(None) => false,
                // Closed since.
                Err(e) => !e.is_vanished() && e.errno() != Some(libc::EBADF),
            }
        });
        other.map(|(_, pid, _)| *pid)
    }

    fn is_custodian(&self, pid: i32) -> bool {
        self.custodians.iter().any(|keeper| keeper.pid == pid) || sys::is_custodian(pid)
    }
}

fn now_ns() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |since| since.as_nanos() as u64)
}

/// A socket that is going to have the connection, and what of its options could not be set, a sentence each.
pub(super) fn prepare(wanted: &Socket) -> sys::Result<(OwnedFd, Vec<String>)> {
    let made = tcp::prepare(wanted.domain, &wanted.local, &wanted.options);
    let (made, failed) = made.map_err(|e| SysError {
        target: format!("{} ({})", e.target, address_words(&wanted.local)),
        ..e
    })?;
    let failed = failed
        .iter()
        .map(|(option, e)| sockets::not_set(option, e))
        .collect();
    Ok((made, failed))
}

/// A connection, and the socket that gets it.
struct Going<'a> {
    socket: BorrowedFd<'a>,
    wanted: &'a Socket,
    connection: &'a Connection,
}

impl Made {
    /// Gives the connections of `wanted` to the sockets made for them, in the network of process `pid`: the last thing
    /// to be done before that runs. What waits in queues goes out, and the other sides are answered again. Gives what
    /// could not be put back of them, a sentence each.
    ///
    /// # Errors
    /// A connection that no custodian has any more: all are where they were. One that another socket has, or memory that
    /// lacks: the connections are lost, and the other sides may hear that they are.
    pub fn go_on(&self, pid: i32, wanted: &ProcessState) -> sys::Result<Vec<String>> {
        let going: Vec<Going<'_>> = self
            .connections
            .iter()
            .filter_map(|at| {
                let file = &wanted.files[*at];
                let Detail::Socket(socket) = &file.detail else {
                    return None;
                };
                Some(Going {
                    socket: self.file(*at)?,
                    wanted: socket,
                    connection: socket.connection.as_ref()?,
                })
            })
            .collect();
        match going.is_empty() {
            true => Ok(Vec::new()),
            false => sys::in_network_of(pid, || all_go_on(&going))?,
        }
    }
}

fn all_go_on(going: &[Going<'_>]) -> sys::Result<Vec<String>> {
    // Between the end of the old socket and the new one's beginning the kernel would answer by a reset.
    let mut shields = Vec::new();
    let mut shielded: Vec<&[u8]> = Vec::new();
    for one in going {
        if !shielded.contains(&&one.wanted.local[..]) {
            shields.push(tcp::shield(one.wanted.domain, &one.wanted.local)?);
            shielded.push(&one.wanted.local);
        }
    }
    let kept: Vec<Kept<'_>> = going
        .iter()
        .map(|one| Kept {
            time_ns: one.connection.time_ns,
            local: &one.wanted.local,
            peer: &one.wanted.peer,
        })
        .collect();
    sys::end_custody(&kept)?;
    let now = now_ns();
    for one in going {
        tcp::establish(one.socket, &one.wanted.peer, one.connection, now).map_err(|e| {
            SysError {
                target: format!(
                    "{}, which is to have the connection from {} to {}",
                    e.target,
                    address_words(&one.wanted.local),
                    address_words(&one.wanted.peer)
                ),
                ..e
            }
        })?;
    }
    drop(shields);
    // They have no other place by now: what fails for one keeps none from going on.
    let notes = going.iter().flat_map(|one| {
        let failed = tcp::wake(one.socket, one.connection, &one.wanted.options).into_iter();
        failed.map(|e| {
            format!(
                "the connection from {} to {}: {e}",
                address_words(&one.wanted.local),
                address_words(&one.wanted.peer)
            )
        })
    });
    Ok(notes.collect())
}
