//! TCP connections that go on in other sockets than they were in.
//!
//! A socket that is going to have one is made with all others, and belongs to the process, but has no more than the
//! address of this side. Only when nothing else is left to be done does it get the connection: from the moment that the
//! socket which has it until then is closed there is no way back.

use super::make::Made;
use super::sockets;
use crate::model::{Connection, Detail, ProcessState, Socket, address_words};
use crate::sys::{self, SysError, fd::socket::tcp, proc};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::{SystemTime, UNIX_EPOCH};

/// Why the connection of a socket cannot go on in this network, where it cannot. Nothing has changed when this returns,
/// and nothing is sent. `inode` is that of the socket that had the connection.
pub(super) fn check(socket: &Socket, inode: u64) -> Result<(), String> {
    let (here, there) = (address_words(&socket.local), address_words(&socket.peer));
    let holders = proc::socket_holders(&[inode]);
    if let Some((_, pid)) = holders.iter().find(|(_, pid)| !sys::is_custodian(*pid)) {
        return Err(format!("process {pid} has it"));
    }
    let probe = tcp::prepare(socket.domain, &socket.local, &[]);
    let (probe, _) = probe.map_err(|e| match e.errno() {
        Some(libc::EADDRNOTAVAIL) => format!(
            "its address here, {here}, is not one of this machine's (ip addr add gives it the address, and nsenter --net starts ksnap in a network namespace that has it)"
        ),
        _ => e.to_string(),
    })?;
    match tcp::connect_silently(&probe, &socket.peer) {
        // It is closed without a word.
        Ok(()) => Ok(()),
        Err(e) if e.errno() == Some(libc::EADDRNOTAVAIL) && !holders.is_empty() => Ok(()),
        Err(e) if e.errno() == Some(libc::EADDRNOTAVAIL) => Err(format!(
            "there is a connection from {here} to {there} already, which another process has (ss -tnp shows it): it went on from another snapshot, or is a new one"
        )),
        Err(e) => Err(e.to_string()),
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

/// A connection, the socket that gets it, and the inode of the one that had it.
struct Going<'a> {
    socket: BorrowedFd<'a>,
    wanted: &'a Socket,
    connection: &'a Connection,
    inode: u64,
}

impl Made {
    /// Gives the connections of `wanted` to the sockets made for them, in the network of process `pid`: the last thing
    /// to be done before that runs. What waits in queues goes out, and the other sides are answered again.
    ///
    /// # Errors
    /// A connection that another socket has, or memory that lacks. The connections are lost, and the other sides may hear
    /// that they are.
    pub fn go_on(&self, pid: i32, wanted: &ProcessState) -> sys::Result<()> {
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
                    inode: file.identity.1,
                })
            })
            .collect();
        match going.is_empty() {
            true => Ok(()),
            false => sys::in_network_of(pid, || all_go_on(&going))?,
        }
    }
}

fn all_go_on(going: &[Going<'_>]) -> sys::Result<()> {
    // Between the end of the old socket and the new one's beginning the kernel would answer by a reset.
    let mut shields = Vec::new();
    let mut shielded: Vec<&[u8]> = Vec::new();
    for one in going {
        if !shielded.contains(&&one.wanted.local[..]) {
            shields.push(tcp::shield(one.wanted.domain, &one.wanted.local)?);
            shielded.push(&one.wanted.local);
        }
    }
    let inodes: Vec<u64> = going.iter().map(|one| one.inode).collect();
    sys::end_custody(&inodes)?;
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
    for one in going {
        tcp::wake(one.socket, one.connection, &one.wanted.options)?;
    }
    Ok(())
}
