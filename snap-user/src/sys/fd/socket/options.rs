//! Options of sockets: which ones there are, and which differ from a fresh socket's.

use super::{make, option};
use crate::model::{Socket, SocketOption};
use std::cell::RefCell;
use std::collections::HashMap;
use std::os::fd::AsFd;

/// Longest value of an option that is recorded here, in bytes.
const LONGEST: usize = 64;
/// In the kernel since 5.14: which buffer sizes were set by the program (bit 0 for sending, 1 for receiving).
const SO_BUF_LOCK: i32 = 72;
const TCP_FASTOPEN: i32 = 23;

const SOCKET: &[i32] = &[
    libc::SO_REUSEADDR,
    libc::SO_REUSEPORT,
    libc::SO_KEEPALIVE,
    libc::SO_BROADCAST,
    libc::SO_DONTROUTE,
    libc::SO_OOBINLINE,
    libc::SO_LINGER,
    libc::SO_PRIORITY,
    libc::SO_MARK,
    libc::SO_RCVLOWAT,
    libc::SO_RCVTIMEO,
    libc::SO_SNDTIMEO,
    libc::SO_PASSCRED,
    libc::SO_PASSSEC,
    libc::SO_TIMESTAMP,
    libc::SO_TIMESTAMPNS,
    libc::SO_RXQ_OVFL,
    libc::SO_BINDTODEVICE,
    libc::SO_BUSY_POLL,
    libc::SO_MAX_PACING_RATE,
    libc::SO_PEEK_OFF,
    libc::SO_SELECT_ERR_QUEUE,
    libc::SO_ZEROCOPY,
    libc::SO_NO_CHECK,
    SO_BUF_LOCK,
];
const TCP: &[i32] = &[
    libc::TCP_NODELAY,
    libc::TCP_CORK,
    libc::TCP_KEEPIDLE,
    libc::TCP_KEEPINTVL,
    libc::TCP_KEEPCNT,
    libc::TCP_SYNCNT,
    libc::TCP_LINGER2,
    libc::TCP_DEFER_ACCEPT,
    libc::TCP_CONGESTION,
    libc::TCP_USER_TIMEOUT,
    libc::TCP_NOTSENT_LOWAT,
    libc::TCP_WINDOW_CLAMP,
    TCP_FASTOPEN,
];
const IP: &[i32] = &[
    libc::IP_TOS,
    libc::IP_TTL,
    libc::IP_RECVTOS,
    libc::IP_RECVTTL,
    libc::IP_PKTINFO,
    libc::IP_FREEBIND,
    libc::IP_TRANSPARENT,
    libc::IP_MTU_DISCOVER,
    libc::IP_RECVERR,
    libc::IP_BIND_ADDRESS_NO_PORT,
    libc::IP_RECVORIGDSTADDR,
];
const IPV6: &[i32] = &[
    libc::IPV6_V6ONLY,
    libc::IPV6_UNICAST_HOPS,
    libc::IPV6_RECVPKTINFO,
    libc::IPV6_RECVHOPLIMIT,
    libc::IPV6_TCLASS,
    libc::IPV6_RECVTCLASS,
    libc::IPV6_RECVERR,
    libc::IPV6_MTU_DISCOVER,
    libc::IPV6_FREEBIND,
    libc::IPV6_TRANSPARENT,
];
/// Not for streams.
const IP_GROUPS: &[i32] = &[libc::IP_MULTICAST_TTL, libc::IP_MULTICAST_LOOP];
const IPV6_GROUPS: &[i32] = &[libc::IPV6_MULTICAST_HOPS, libc::IPV6_MULTICAST_LOOP];
const NETLINK: &[i32] = &[
    libc::NETLINK_PKTINFO,
    libc::NETLINK_BROADCAST_ERROR,
    libc::NETLINK_NO_ENOBUFS,
    libc::NETLINK_LISTEN_ALL_NSID,
    libc::NETLINK_LIST_MEMBERSHIPS,
    libc::NETLINK_CAP_ACK,
    libc::NETLINK_EXT_ACK,
    libc::NETLINK_GET_STRICT_CHK,
];
const PACKET: &[i32] = &[
    libc::PACKET_AUXDATA,
    libc::PACKET_ORIGDEV,
    libc::PACKET_VERSION,
    libc::PACKET_RESERVE,
    libc::PACKET_LOSS,
    libc::PACKET_VNET_HDR,
    libc::PACKET_TIMESTAMP,
];

/// Level and numbers of the options that a kind of socket has.
fn known((domain, ty, protocol): (i32, i32, i32)) -> Vec<(i32, &'static [i32])> {
    let mut levels = vec![(libc::SOL_SOCKET, SOCKET)];
    match domain {
        libc::AF_INET => levels.push((libc::IPPROTO_IP, IP)),
        libc::AF_INET6 => {
            levels.push((libc::IPPROTO_IPV6, IPV6));
            levels.push((libc::IPPROTO_IP, IP));
        }
        libc::AF_NETLINK => levels.push((libc::SOL_NETLINK, NETLINK)),
        libc::AF_PACKET => levels.push((libc::SOL_PACKET, PACKET)),
        _ => {}
    }
    if ty != libc::SOCK_STREAM {
        match domain {
            libc::AF_INET => levels.push((libc::IPPROTO_IP, IP_GROUPS)),
            libc::AF_INET6 => levels.push((libc::IPPROTO_IPV6, IPV6_GROUPS)),
            _ => {}
        }
    }
    if protocol == libc::IPPROTO_TCP && matches!(domain, libc::AF_INET | libc::AF_INET6) {
        levels.push((libc::IPPROTO_TCP, TCP));
    }
    levels
}

fn all(fd: impl AsFd, kind: (i32, i32, i32)) -> Vec<SocketOption> {
    let mut found = Vec::new();
    for (level, names) in known(kind) {
        for &name in names {
            if let Ok(value) = option(&fd, level, name, LONGEST) {
                found.push(SocketOption { level, name, value });
            }
        }
    }
    found
}

thread_local! {
    /// Options of a fresh socket of each kind.
    static FRESH: RefCell<HashMap<(i32, i32, i32), Vec<SocketOption>>> = RefCell::default();
}

/// Options of a socket that differ from those of a fresh one of its kind, and buffer sizes that the program set.
pub fn differing_options(fd: impl AsFd, socket: &Socket) -> Vec<SocketOption> {
    let kind = (socket.domain, socket.ty, socket.protocol);
    FRESH.with_borrow_mut(|fresh| {
        let usual = fresh.entry(kind).or_insert_with(|| {
            let made = make::socket(kind.0, kind.1, kind.2);
            made.map_or(Vec::new(), |made| all(made, kind))
        });
        let mut found = all(&fd, kind);
        found.retain(|option| !usual.contains(option));
        let set = |bit: u8| {
            found.iter().any(|o| {
                (o.level, o.name) == (libc::SOL_SOCKET, SO_BUF_LOCK)
                    && o.value.first().is_some_and(|v| v & bit != 0)
            })
        };
        let sizes = [(1, libc::SO_SNDBUF), (2, libc::SO_RCVBUF)];
        let sizes = sizes.map(|(bit, name)| (set(bit), name));
        for (_, name) in sizes.into_iter().filter(|(set, _)| *set) {
            if let Ok(value) = option(&fd, libc::SOL_SOCKET, name, 4) {
                found.push(SocketOption {
                    level: libc::SOL_SOCKET,
                    name,
                    value,
                });
            }
        }
        found
    })
}
