//! Taking the TCP connections of a process that is going to end, so that they can go on without it.
//!
//! From the moment that a connection is read, nothing may arrive for it any more: what the kernel acknowledged then
//! would be lost. So only a process that does not run on afterwards can have its connections taken, and their sockets
//! are silent from here until they are brought back.

use super::{CaptureError, Files, Result};
use crate::model::{Detail, OpenFile, Socket, SocketState};
use crate::sys::fd::socket::{self, tcp};
use crate::sys::{self, Custodian, SysError, proc};
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

/// Sockets that are silent, and who has them.
struct Silent {
    custodian: Custodian,
    time_ns: u64,
    /// Places of the open files, in the order in which the custodian has the sockets.
    sockets: Vec<(usize, Socket)>,
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
        let mut lost = Vec::new();
        let taken = self.try_take(first, files, &mut lost);
        self.connections.lost = lost;
        self.connections.taken = taken?;
        Ok(())
    }

    fn try_take(
        &self,
        first: &[i32],
        files: &mut [OpenFile],
        lost: &mut Vec<String>,
    ) -> Result<Option<Custodian>> {
        let found = self.find_connections(first, files, lost)?;
        let found = self.only_its_own(found, first, files, lost)?;
        // Before anything changes.
        for one in &found {
            tcp::may_repair(&one.fd).map_err(|e| self.not_allowed(e))?;
        }
        test_delay();
        let Some(silent) = self.silence(found, first, files, lost)? else {
            return Ok(None);
        };
        let mut taken = Vec::with_capacity(silent.sockets.len());
        for ((at, mut socket), fd) in silent.sockets.into_iter().zip(silent.custodian.sockets()) {
            let connection = tcp::capture(fd, silent.time_ns).map_err(|e| self.not_allowed(e))?;
            socket.connection = Some(Box::new(connection));
            taken.push((at, socket));
        }
        for (at, socket) in taken {
            files[at].detail = Detail::Socket(Box::new(socket));
        }
        Ok(Some(silent.custodian))
    }

    fn failed(&self, e: SysError) -> CaptureError {
        CaptureError::from_sys(self.table.pid(), e)
    }

    /// What is denied here is not the process.
    fn not_allowed(&self, e: SysError) -> CaptureError {
        match e.is_denied() {
            true => self.refused(e.to_string()),
            false => self.failed(e),
        }
    }

    fn refused(&self, why: String) -> CaptureError {
        CaptureError::Refused {
            pid: self.table.pid(),
            why,
        }
    }

    /// The sockets whose connections can be taken; why others that have one cannot is added to `lost`.
    fn find_connections(
        &self,
        first: &[i32],
        files: &[OpenFile],
        lost: &mut Vec<String>,
    ) -> Result<Vec<Found>> {
        let mut sockets = Vec::new();
        for (at, file) in files.iter().enumerate() {
            match kind(file) {
                Kind::Tcp => sockets.push(at),
                Kind::Other(protocol) => {
                    let why = format!("it is one of {protocol}");
                    lost.push(not_taken(first[at], file, &why));
                }
                Kind::None => {}
            }
        }
        // Each is held here, and by a copy that the custodian gets.
        sys::may_open(2 * sockets.len()).map_err(|e| {
            let count = sockets.len();
            self.refused(format!(
                "it has {count} TCP sockets, and their connections are taken all at once: {e}; or leave --tcp out"
            ))
        })?;
        let mut found = Vec::new();
        for at in sockets {
            let (fd, file) = (first[at], &files[at]);
            let taken = self.take(fd).map_err(|e| self.failed(e))?;
            match tcp::refuses_capture(&taken) {
                Ok(false) => {}
                Ok(true) => {
                    // It may have been on its way when it was looked at last.
                    let socket = socket::describe(&taken, file.identity.1);
                    found.push(Found {
                        at,
                        fd: taken,
                        socket: socket.map_err(|e| self.failed(e))?,
                    });
                }
                Err(why) => lost.push(not_taken(fd, file, &why)),
            }
        }
        Ok(found)
    }

    /// Those that no other process has as well; the others are added to `lost`.
    fn only_its_own(
        &self,
        mut found: Vec<Found>,
        first: &[i32],
        files: &[OpenFile],
        lost: &mut Vec<String>,
    ) -> Result<Vec<Found>> {
        if found.is_empty() {
            return Ok(found);
        }
        let pid = self.table.pid();
        let inodes: Vec<u64> = found.iter().map(|one| files[one.at].identity.1).collect();
        let holders = proc::socket_holders(&inodes);
        let mut unknown = holders.unknown.into_iter();
        if let Some((other, e)) = unknown.find(|(other, _)| is_kin(pid, *other)) {
            return Err(self.refused(format!(
                "whether process {other} has its connections as well cannot be seen ({e}): run ksnap as root, or leave --tcp out"
            )));
        }
        let holders = holders.found.into_iter();
        let others = holders.filter(|(_, holder, _)| *holder != pid);
        let others: HashMap<u64, i32> = others.map(|(inode, holder, _)| (inode, holder)).collect();
        found.retain(|one| {
            let file = &files[one.at];
            let other = others.get(&file.identity.1);
            if let Some(other) = other {
                let why = format!("process {other} has it as well");
                lost.push(not_taken(first[one.at], file, &why));
            }
            other.is_none()
        });
        Ok(found)
    }

    /// Has a custodian hold the sockets, and makes them silent. Those that end meanwhile are added to `lost`; `None` when
    /// all have.
    fn silence(
        &self,
        found: Vec<Found>,
        first: &[i32],
        files: &[OpenFile],
        lost: &mut Vec<String>,
    ) -> Result<Option<Silent>> {
        let reuse = (libc::SOL_SOCKET, libc::SO_REUSEADDR);
        let held = found.into_iter().map(|one| {
            let mut options = one.socket.options.iter();
            let reuse = options.any(|o| (o.level, o.name) == reuse);
            ((one.at, one.socket), (one.fd, reuse))
        });
        let (mut sockets, mut held): (Vec<_>, Vec<_>) = held.unzip();
        while !sockets.is_empty() {
            let now = SystemTime::now().duration_since(UNIX_EPOCH);
            let time_ns = now.map_or(0, |since| since.as_nanos() as u64);
            let custodian = Custodian::over(&self.process, held, time_ns);
            let custodian = custodian.map_err(|e| self.not_allowed(e))?;
            for socket in custodian.sockets() {
                tcp::silence(socket).map_err(|e| self.not_allowed(e))?;
            }
            tcp::receivers_done();
            let ended: Vec<_> = custodian.sockets().map(tcp::has_ended).collect();
            if ended.iter().all(Option::is_none) {
                return Ok(Some(Silent {
                    custodian,
                    time_ns,
                    sockets,
                }));
            }
            // Those end with the process, and answer until then. All hear meanwhile, so the others are looked at again.
            let mut goes_on = ended.iter().map(Option::is_none);
            held = custodian.release();
            held.retain(|_| goes_on.next().unwrap_or(false));
            let mut ended = ended.into_iter();
            sockets.retain(|(at, _)| match ended.next().flatten() {
                None => true,
                Some(why) => {
                    lost.push(not_taken(first[*at], &files[*at], &why));
                    false
                }
            });
        }
        Ok(None)
    }
}

/// What a file has of a connection that may be taken.
enum Kind {
    /// It is a TCP socket.
    Tcp,
    /// A connection of another protocol.
    Other(&'static str),
    /// Nothing.
    None,
}

fn kind(file: &OpenFile) -> Kind {
    let Detail::Socket(socket) = &file.detail else {
        return Kind::None;
    };
    let is_connected = socket.state == SocketState::Connected;
    match (socket.domain, socket.protocol) {
        (libc::AF_INET | libc::AF_INET6, libc::IPPROTO_TCP) if socket.ty == libc::SOCK_STREAM => {
            Kind::Tcp
        }
        (libc::AF_INET | libc::AF_INET6, libc::IPPROTO_MPTCP) if is_connected => {
            Kind::Other("Multipath TCP")
        }
        (libc::AF_INET | libc::AF_INET6, libc::IPPROTO_SCTP) if is_connected => Kind::Other("SCTP"),
        _ => Kind::None,
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
