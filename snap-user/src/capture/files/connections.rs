//! Taking the TCP connections of a process that is going to end, so that they can go on without it.
//!
//! From the moment that a connection is read, nothing may arrive for it any more: what the kernel acknowledged then
//! would be lost. So only a process that does not run on afterwards can have its connections taken, and their sockets
//! are silent from here until they are brought back.

use super::{CaptureError, Files, Result};
use crate::model::{Detail, OpenFile, Socket, SocketState};
use crate::sys::fd::socket::{self, tcp};
use crate::sys::{Custodian, proc};
use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::time::{SystemTime, UNIX_EPOCH};

/// Connections that are taken with the next look at the frozen process, if any are.
#[derive(Debug, Default)]
pub(super) struct Connections {
    pub(super) wanted: bool,
    /// Who has those that were taken.
    taken: Option<Custodian>,
    /// Why others were not, a sentence each.
    lost: Vec<String>,
}

/// A socket whose connection can be taken.
struct Found {
    at: usize,
    fd: OwnedFd,
    socket: Socket,
}

impl Files {
    /// Whether the next look at the frozen process takes its connections.
    pub fn want_connections(&mut self, wanted: bool) {
        self.connections = Connections {
            wanted,
            ..Connections::default()
        };
    }

    /// Who has the connections that were taken, and keeps them silent. Unless it is told to keep them, they go on.
    pub fn taken_connections(&mut self) -> Option<Custodian> {
        self.connections.taken.take()
    }

    /// Why connections were not taken that were to be, a sentence each.
    pub(in crate::capture) fn lost_connections(&mut self) -> Vec<String> {
        std::mem::take(&mut self.connections.lost)
    }

    /// Takes the connections of the frozen process. `first` has a descriptor for each open file.
    pub(super) fn take_connections(&mut self, first: &[i32], files: &mut [OpenFile]) -> Result<()> {
        let pid = self.table.pid();
        let mut found = self.find_connections(first, files)?;
        if found.is_empty() {
            return Ok(());
        }
        let reuse = (libc::SOL_SOCKET, libc::SO_REUSEADDR);
        let held = found.drain(..).map(|one| {
            let mut options = one.socket.options.iter();
            let reuse = options.any(|o| (o.level, o.name) == reuse);
            ((one.at, one.socket), (one.fd, reuse))
        });
        let (mut found, mut held): (Vec<_>, Vec<_>) = held.unzip();
        let failed = |e: crate::sys::SysError| match e.is_denied() {
            true => CaptureError::Refused {
                pid,
                why: e.to_string(),
            },
            false => CaptureError::from_sys(pid, e),
        };
        // Before anything changes.
        for (fd, _) in &held {
            tcp::may_repair(fd).map_err(failed)?;
        }
        test_delay();
        let (custodian, time_ns) = loop {
            let now = SystemTime::now().duration_since(UNIX_EPOCH);
            let time_ns = now.map_or(0, |since| since.as_nanos() as u64);
            let custodian = Custodian::over(&self.process, held, time_ns).map_err(failed)?;
            for socket in custodian.sockets() {
                tcp::silence(socket).map_err(failed)?;
            }
            tcp::receivers_done();
            let ended: Vec<_> = custodian.sockets().map(tcp::has_ended).collect();
            if ended.iter().all(Option::is_none) {
                break (custodian, time_ns);
            }
            // Those end with the process, and answer until then. All hear meanwhile, so the others are looked at again.
            let mut goes_on = ended.iter().map(Option::is_none);
            held = custodian.release();
            held.retain(|_| goes_on.next().unwrap_or(false));
            let mut ended = ended.into_iter();
            found.retain(|(at, _)| match ended.next().flatten() {
                None => true,
                Some(why) => {
                    let lost = not_taken(first[*at], &files[*at], &why);
                    self.connections.lost.push(lost);
                    false
                }
            });
            if found.is_empty() {
                return Ok(());
            }
        };
        let mut taken = Vec::with_capacity(found.len());
        for ((at, mut socket), fd) in found.into_iter().zip(custodian.sockets()) {
            let connection = tcp::capture(fd, time_ns).map_err(failed)?;
            socket.connection = Some(Box::new(connection));
            taken.push((at, socket));
        }
        for (at, socket) in taken {
            files[at].detail = Detail::Socket(Box::new(socket));
        }
        self.connections.taken = Some(custodian);
        Ok(())
    }

    /// The sockets whose connections can be taken; the others that have one are told.
    fn find_connections(&mut self, first: &[i32], files: &[OpenFile]) -> Result<Vec<Found>> {
        let mut found = Vec::new();
        let mut lost = Vec::new();
        for (at, file) in files.iter().enumerate() {
            let fd = first[at];
            let Detail::Socket(socket) = &file.detail else {
                continue;
            };
            if !matches!(socket.domain, libc::AF_INET | libc::AF_INET6) {
                continue;
            }
            let other_protocol = match socket.protocol {
                libc::IPPROTO_TCP if socket.ty == libc::SOCK_STREAM => None,
                libc::IPPROTO_MPTCP => Some("Multipath TCP"),
                libc::IPPROTO_SCTP => Some("SCTP"),
                _ => continue,
            };
            if let Some(protocol) = other_protocol {
                if socket.state == SocketState::Connected {
                    let why = format!("it is one of {protocol}");
                    lost.push(not_taken(fd, file, &why));
                }
                continue;
            }
            let of_process = |e| CaptureError::from_sys(self.table.pid(), e);
            let taken = self.take(fd).map_err(of_process)?;
            match tcp::refuses_capture(&taken) {
                Ok(false) => {}
                Ok(true) => {
                    // It may have been on its way when it was looked at last.
                    let socket = socket::describe(&taken, file.identity.1).map_err(of_process)?;
                    found.push(Found {
                        at,
                        fd: taken,
                        socket,
                    });
                }
                Err(why) => lost.push(not_taken(fd, file, &why)),
            }
        }
        let inodes: Vec<u64> = found.iter().map(|one| files[one.at].identity.1).collect();
        let others: HashMap<u64, i32> = match inodes.is_empty() {
            true => HashMap::new(),
            false => {
                let holders = proc::socket_holders(&inodes);
                let pid = self.table.pid();
                let mut unknown = holders.unknown.into_iter();
                if let Some((other, e)) = unknown.find(|(other, _)| is_kin(pid, *other)) {
                    return Err(CaptureError::Refused {
                        pid: self.table.pid(),
                        why: format!(
                            "whether process {other} has its connections as well cannot be seen ({e}): run ksnap as root, or leave --tcp out"
                        ),
                    });
                }
                let found = holders.found.into_iter();
                let others = found.filter(|(_, pid, _)| *pid != self.table.pid());
                others.map(|(inode, pid, _)| (inode, pid)).collect()
            }
        };
        found.retain(|one| {
            let file = &files[one.at];
            let other = others.get(&file.identity.1);
            if let Some(other) = other {
                let why = format!("process {other} has it as well");
                lost.push(not_taken(first[one.at], file, &why));
            }
            other.is_none()
        });
        self.connections.lost = lost;
        Ok(found)
    }
}

fn not_taken(fd: i32, file: &OpenFile, why: &str) -> String {
    format!(
        "descriptor {fd} ({}): its connection ends with the process: {why}",
        file.link
    )
}

/// Waits so many milliseconds between the look at connections and their silence as the environment variable
/// `KSNAP_TCP_DELAY_MS` says, in which a test ends one of them. Not in a release build.
#[cfg(debug_assertions)]
fn test_delay() {
    let delay = std::env::var("KSNAP_TCP_DELAY_MS").ok();
    if let Some(ms) = delay.and_then(|ms| ms.parse().ok()) {
        std::thread::sleep(std::time::Duration::from_millis(ms));
    }
}

/// Nothing, in a release build.
#[cfg(not(debug_assertions))]
fn test_delay() {}
/// Whether one of two processes may have got open sockets from the other by fork(2). Process 1 is the parent of all that
/// were left alone, and keeps no connections.
fn is_kin(pid: i32, other: i32) -> bool {
    let (Ok(one), Ok(two)) = (proc::stat(pid, None), proc::stat(other, None)) else {
        return false;
    };
    // 0: it began outside of this PID namespace, as others did (pid_namespaces(7)).
    let session = |pid| {
        let id = nix::unistd::getsid(Some(nix::unistd::Pid::from_raw(pid))).ok();
        id.filter(|id| id.as_raw() != 0)
    };
    let is_one = session(pid).is_some_and(|one| session(other) == Some(one));
    other != 1 && (one.ppid == other || two.ppid == pid || is_one)
}
