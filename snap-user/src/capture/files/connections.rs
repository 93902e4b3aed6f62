//! Taking the TCP connections of processes that are going to end, so that they can go on without them.
//!
//! From the moment that a connection is read, nothing may arrive for it any more: what the kernel acknowledged then
//! would be lost. So only processes that do not run on afterwards can have their connections taken, and their sockets
//! are silent from here until they are brought back. All processes of a tree are looked at at once: a connection may be
//! between two of them, or one that several have.

use super::{CaptureError, Result};
use crate::model::{Socket, SocketState};
use crate::sys::fd::socket::{self, tcp};
use crate::sys::proc::FdTable;
use crate::sys::{self, Custodian, PidFd, SysError, pidfd_getfd, pidfd_open, proc};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{SystemTime, UNIX_EPOCH};

/// Open files that a custodian needs beside the sockets and a pidfd of each process, about.
const OWN: usize = 8;

/// What there is of the connections of stopped processes.
#[derive(Debug, Default)]
pub struct Connections {
    /// Those that were taken, by their sockets' inodes.
    taken: HashMap<u64, Socket>,
    /// Why others of a process were not, a sentence each.
    lost: BTreeMap<i32, Vec<String>>,
}

impl Connections {
    /// The socket with this inode, with its connection if that was taken.
    pub(super) fn taken(&self, inode: u64) -> Option<&Socket> {
        self.taken.get(&inode)
    }

    /// Why connections of a process were not taken, a sentence each.
    pub(super) fn lost(&self, pid: i32) -> &[String] {
        self.lost.get(&pid).map_or(&[], Vec::as_slice)
    }
}

/// A socket whose connection can be taken.
struct Found {
    place: Place,
    fd: OwnedFd,
    socket: Socket,
}

/// Where a socket was found first.
#[derive(Clone, Copy)]
struct Place {
    /// The process, by its place among those that are looked at.
    member: usize,
    fd: i32,
    inode: u64,
}

/// Sockets that are silent, and who has them.
struct Silent {
    custodian: Custodian,
    time_ns: u64,
    /// In the order in which the custodian has them.
    sockets: Vec<(Place, Socket)>,
}

/// Takes the connections of these processes, which are stopped. Whoever has the sockets is given as well, if there are any:
/// unless that is told to keep them, they go on where they are.
///
/// # Errors
/// Nothing has changed: the connections may not be taken, or what they are cannot be found out.
pub fn take_connections(pids: &[i32]) -> Result<(Connections, Option<Custodian>)> {
    let mut taker = Taker::new(pids)?;
    let custodian = taker.take()?;
    Ok((taker.connections, custodian))
}

/// Looks at the processes.
struct Taker<'a> {
    pids: &'a [i32],
    /// The network of each: all go on in that of the first.
    networks: Vec<Option<String>>,
    processes: Vec<PidFd>,
    connections: Connections,
}

impl<'a> Taker<'a> {
    fn new(pids: &'a [i32]) -> Result<Self> {
        let open = |pid: &i32| pidfd_open(*pid).map_err(|e| CaptureError::from_sys(*pid, e));
        let network = |pid: &i32| proc::link(*pid, "ns/net").ok();
        Ok(Self {
            pids,
            networks: pids.iter().map(network).collect(),
            processes: pids.iter().map(open).collect::<Result<_>>()?,
            connections: Connections::default(),
        })
    }

    fn take(&mut self) -> Result<Option<Custodian>> {
        let found = self.find()?;
        let found = self.only_their_own(found)?;
        // Before anything changes.
        for one in &found {
            tcp::may_repair(&one.fd).map_err(|e| self.not_allowed(one.place.member, e))?;
        }
        test_delay();
        let Some(silent) = self.silence(found)? else {
            return Ok(None);
        };
        for ((place, mut socket), fd) in silent.sockets.into_iter().zip(silent.custodian.sockets())
        {
            let connection = tcp::capture(fd, silent.time_ns);
            let connection = connection.map_err(|e| self.not_allowed(place.member, e))?;
            socket.connection = Some(Box::new(connection));
            self.connections.taken.insert(place.inode, socket);
        }
        Ok(Some(silent.custodian))
    }

    fn failed(&self, member: usize, e: SysError) -> CaptureError {
        CaptureError::from_sys(self.pids[member], e)
    }

    /// What is denied here is not the process.
    fn not_allowed(&self, member: usize, e: SysError) -> CaptureError {
        match e.is_denied() {
            true => self.refused(member, e.to_string()),
            false => self.failed(member, e),
        }
    }

    fn refused(&self, member: usize, why: String) -> CaptureError {
        CaptureError::Refused {
            pid: self.pids[member],
            why,
        }
    }

    fn lose(&mut self, place: Place, why: &str) {
        let Place { member, fd, inode } = place;
        let lost = self.connections.lost.entry(self.pids[member]);
        lost.or_default().push(format!(
            "descriptor {fd} (socket:[{inode}]): its connection ends with the process: {why}"
        ));
    }

    /// All sockets of the processes, each once.
    fn sockets(&self) -> Result<Vec<Place>> {
        let mut all = Vec::new();
        let mut seen = BTreeSet::new();
        for (member, pid) in self.pids.iter().enumerate() {
            let failed = |e| self.failed(member, e);
            let table = FdTable::open(*pid).map_err(failed)?;
            for fd in table.numbers().map_err(failed)? {
                let link = table.link(fd).map_err(failed)?;
                let inode = link.strip_prefix("socket:[");
                let inode = inode.and_then(|rest| rest.strip_suffix(']')?.parse().ok());
                let place = inode.map(|inode| Place { member, fd, inode });
                all.extend(place.filter(|place| seen.insert(place.inode)));
            }
        }
        Ok(all)
    }

    fn get(&self, place: Place) -> Result<OwnedFd> {
        pidfd_getfd(&self.processes[place.member], place.fd)
            .map_err(|e| self.failed(place.member, e))
    }

    /// The sockets whose connections can be taken; why others that have one cannot is kept.
    fn find(&mut self) -> Result<Vec<Found>> {
        let mut sockets = Vec::new();
        for place in self.sockets()? {
            let taken = self.get(place)?;
            // One that tells nothing of itself is no connection of TCP.
            let socket = socket::glance(&taken).unwrap_or_default();
            match kind(&socket) {
                Kind::Tcp => sockets.push(place),
                Kind::Other(protocol) => self.lose(place, &format!("it is one of {protocol}")),
                Kind::None => {}
            }
        }
        // Each is held here, and by a copy that the custodian gets.
        let needed = 2 * sockets.len() + self.pids.len() + OWN;
        sys::may_open(needed).map_err(|e| {
            let count = sockets.len();
            let who = match self.pids.len() {
                1 => "it has",
                _ => "the tree has",
            };
            self.refused(0, format!(
                "{who} {count} TCP sockets, and their connections are taken all at once: {e}; or leave --tcp out"
            ))
        })?;
        let mut found = Vec::new();
        for place in sockets {
            let fd = self.get(place)?;
            match tcp::refuses_capture(&fd) {
                Ok(false) => {}
                Ok(true) if self.networks[place.member] != self.networks[0] => {
                    self.lose(
                        place,
                        "it is in another network than the first process of the tree",
                    );
                }
                Ok(true) => {
                    // It may have been on its way when it was looked at first.
                    let socket = socket::describe(&fd, place.inode);
                    let socket = socket.map_err(|e| self.failed(place.member, e))?;
                    found.push(Found { place, fd, socket });
                }
                Err(why) => self.lose(place, &why),
            }
        }
        Ok(found)
    }

    /// Those that no other process has as well; of the others it is kept why not.
    fn only_their_own(&mut self, mut found: Vec<Found>) -> Result<Vec<Found>> {
        if found.is_empty() {
            return Ok(found);
        }
        let inodes: Vec<u64> = found.iter().map(|one| one.place.inode).collect();
        let holders = proc::socket_holders(&inodes);
        for (other, e) in holders.unknown {
            let kin = self.pids.iter().position(|pid| is_kin(*pid, other));
            if let Some(member) = kin.filter(|_| !self.pids.contains(&other)) {
                return Err(self.refused(member, format!(
                    "whether process {other} has its connections as well cannot be seen ({e}): run ksnap as root, or leave --tcp out"
                )));
            }
        }
        let holders = holders.found.into_iter();
        let others = holders.filter(|(_, holder, _)| !self.pids.contains(holder));
        let others: HashMap<u64, i32> = others.map(|(inode, holder, _)| (inode, holder)).collect();
        found.retain(|one| {
            let other = others.get(&one.place.inode);
            if let Some(other) = other {
                self.lose(one.place, &format!("process {other} has it as well"));
            }
            other.is_none()
        });
        Ok(found)
    }

    /// Has a custodian hold the sockets, and makes them silent. Of those that end meanwhile it is kept why they are not
    /// taken; `None` when all have.
    fn silence(&mut self, found: Vec<Found>) -> Result<Option<Silent>> {
        let reuse = (libc::SOL_SOCKET, libc::SO_REUSEADDR);
        let held = found.into_iter().map(|one| {
            let mut options = one.socket.options.iter();
            let reuse = options.any(|o| (o.level, o.name) == reuse);
            ((one.place, one.socket), (one.fd, reuse))
        });
        let (mut sockets, mut held): (Vec<_>, Vec<_>) = held.unzip();
        while !sockets.is_empty() {
            let now = SystemTime::now().duration_since(UNIX_EPOCH);
            let time_ns = now.map_or(0, |since| since.as_nanos() as u64);
            let processes: Vec<_> = self.processes.iter().map(AsFd::as_fd).collect();
            let custodian = Custodian::over(&processes, held, time_ns);
            let custodian = custodian.map_err(|e| self.not_allowed(0, e))?;
            for ((place, _), socket) in sockets.iter().zip(custodian.sockets()) {
                tcp::silence(socket).map_err(|e| self.not_allowed(place.member, e))?;
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
            sockets.retain(|(place, _)| match ended.next().flatten() {
                None => true,
                Some(why) => {
                    self.lose(*place, &why);
                    false
                }
            });
        }
        Ok(None)
    }
}

/// What a socket has of a connection that may be taken.
enum Kind {
    /// It is a TCP socket.
    Tcp,
    /// A connection of another protocol.
    Other(&'static str),
    /// Nothing.
    None,
}

fn kind(socket: &Socket) -> Kind {
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
