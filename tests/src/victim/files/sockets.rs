//! Sockets with names of their own.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream};
use std::os::unix::net::{UnixDatagram, UnixStream};

use super::Held;
use super::calls::*;

/// Sets an option that is a number.
fn set(fd: i32, level: i32, name: i32, value: i32) -> Done {
    // SAFETY: the value is live and as long as said.
    must("setsockopt", unsafe {
        libc::setsockopt(fd, level, name, (&raw const value).cast(), 4)
    })
    .map(drop)
}

fn get(fd: i32, level: i32, name: i32) -> Done<i32> {
    let (mut value, mut len) = (0i32, 4u32);
    // SAFETY: both are live, and the value as long as said.
    must("getsockopt", unsafe {
        libc::getsockopt(fd, level, name, (&raw mut value).cast(), &mut len)
    })?;
    Ok(value)
}

fn socket(domain: i32, ty: i32, protocol: i32) -> Done<i32> {
    // SAFETY: a call without pointers.
    must("socket", unsafe { libc::socket(domain, ty, protocol) })
}

fn bind<T>(fd: i32, address: &T, len: usize) -> Done {
    // SAFETY: the address is live and at least as long as said.
    must("bind", unsafe {
        libc::bind(fd, (address as *const T).cast(), len as u32)
    })
    .map(drop)
}

fn listen(fd: i32, backlog: i32) -> Done {
    // SAFETY: a call without pointers.
    must("listen", unsafe { libc::listen(fd, backlog) }).map(drop)
}

fn accept(fd: i32) -> Done<i32> {
    // SAFETY: null for an address that is not wanted.
    must("accept", unsafe {
        libc::accept(fd, std::ptr::null_mut(), std::ptr::null_mut())
    })
}

/// `struct sockaddr_un` and its length; a name that begins with a zero is abstract.
fn unix_address(name: &[u8]) -> (libc::sockaddr_un, usize) {
    // SAFETY: zeroed is a valid address.
    let mut address: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    address.sun_family = libc::AF_UNIX as u16;
    for (to, from) in address.sun_path.iter_mut().zip(name) {
        *to = *from as libc::c_char;
    }
    let end = if name.first() == Some(&0) { 0 } else { 1 };
    (address, 2 + name.len() + end)
}

struct Named {
    path: String,
    hidden: Vec<u8>,
    datagrams: String,
    /// Listens all the time.
    stays: i32,
    /// These are closed by the change.
    closed: i32,
    abstract_one: i32,
    receiver: i32,
    stays_path: String,
}

pub fn unix_named() -> Done<Box<dyn Held>> {
    let held = Named {
        path: in_folder("listener"),
        stays_path: in_folder("stays"),
        hidden: format!("\0ksnap victim {}", std::process::id()).into_bytes(),
        datagrams: in_folder("datagrams"),
        stays: socket(libc::AF_UNIX, libc::SOCK_STREAM, 0)?,
        closed: moved(socket(libc::AF_UNIX, libc::SOCK_STREAM, 0)?, 60, 0)?,
        abstract_one: moved(
            socket(libc::AF_UNIX, libc::SOCK_SEQPACKET, 0)?,
            61,
            libc::O_CLOEXEC,
        )?,
        receiver: moved(socket(libc::AF_UNIX, libc::SOCK_DGRAM, 0)?, 62, 0)?,
    };
    for (fd, name) in [
        (held.stays, held.stays_path.as_bytes()),
        (held.closed, held.path.as_bytes()),
        (held.abstract_one, &held.hidden),
        (held.receiver, held.datagrams.as_bytes()),
    ] {
        let (address, len) = unix_address(name);
        bind(fd, &address, len)?;
    }
    listen(held.stays, 3)?;
    listen(held.closed, 17)?;
    listen(held.abstract_one, 5)?;
    set_flags(held.closed, libc::O_NONBLOCK)?;
    Ok(Box::new(held))
}

fn serves(listener: i32, path: &str) -> Done {
    let mut client = UnixStream::connect(path).map_err(|e| format!("connect to {path}: {e}"))?;
    client.write_all(b"hello").map_err(|e| e.to_string())?;
    let served = accept(listener)?;
    same("what the client said", read(served, 10)?, b"hello".to_vec())?;
    close(served)?;
    let mut rest = Vec::new();
    client.read_to_end(&mut rest).map_err(|e| e.to_string())?;
    Ok(())
}

impl Held for Named {
    fn change(&mut self) -> Done {
        close(self.closed)?;
        std::fs::remove_file(&self.path).map_err(|e| e.to_string())?;
        close(self.abstract_one)?;
        // Its name stays behind.
        close(self.receiver)
    }

    fn check(&mut self, changed: bool) -> Done {
        serves(self.stays, &self.stays_path)?;
        for fd in [self.closed, self.abstract_one, self.receiver] {
            same(&format!("descriptor {fd} is open"), is_open(fd), !changed)?;
        }
        if changed {
            return Ok(());
        }
        serves(self.closed, &self.path)?;
        has_flag(self.closed, libc::O_NONBLOCK, true)?;
        let client = socket(libc::AF_UNIX, libc::SOCK_SEQPACKET, 0)?;
        let (address, len) = unix_address(&self.hidden);
        // SAFETY: the address is live and as long as said.
        must("connect", unsafe {
            libc::connect(client, (&raw const address).cast(), len as u32)
        })?;
        write(client, b"hidden")?;
        let served = accept(self.abstract_one)?;
        same("a packet", read(served, 10)?, b"hidden".to_vec())?;
        close(served)?;
        close(client)?;
        let sender = UnixDatagram::unbound().map_err(|e| e.to_string())?;
        sender
            .send_to(b"to you", &self.datagrams)
            .map_err(|e| e.to_string())?;
        same("a datagram", read(self.receiver, 10)?, b"to you".to_vec())?;
        same("close on exec", cloexec(self.abstract_one)?, true)
    }
}

struct Inet {
    stays: i32,
    stays_at: u16,
    /// These are closed by the change.
    listener: i32,
    listener_at: u16,
    datagrams: i32,
    datagrams_at: u16,
    connected: i32,
    idle: i32,
    raw: i32,
    /// A connection with itself, both sides closed by the change.
    client: i32,
    served: i32,
}

fn loopback(port: u16) -> libc::sockaddr_in {
    libc::sockaddr_in {
        sin_family: libc::AF_INET as u16,
        sin_port: port.to_be(),
        sin_addr: libc::in_addr {
            s_addr: u32::from(Ipv4Addr::LOCALHOST).to_be(),
        },
        sin_zero: [0; 8],
    }
}

/// Binds to a free port, and tells which.
fn bound(fd: i32) -> Done<u16> {
    let mut address = loopback(0);
    bind(fd, &address, 16)?;
    let mut len = 16u32;
    // SAFETY: both are live, and the address as long as said.
    must("getsockname", unsafe {
        libc::getsockname(fd, (&raw mut address).cast(), &mut len)
    })?;
    Ok(u16::from_be(address.sin_port))
}

fn connect(fd: i32, port: u16) -> Done {
    let address = loopback(port);
    // SAFETY: the address is live and as long as said.
    must("connect", unsafe {
        libc::connect(fd, (&raw const address).cast(), 16)
    })
    .map(drop)
}

pub fn inet() -> Done<Box<dyn Held>> {
    let stream = || socket(libc::AF_INET, libc::SOCK_STREAM, 0);
    let stays = stream()?;
    let stays_at = bound(stays)?;
    listen(stays, 8)?;
    let listener = moved(stream()?, 60, libc::O_CLOEXEC)?;
    // As servers do that may have to start again: connections of the one before are still closing.
    set(listener, libc::SOL_SOCKET, libc::SO_REUSEADDR, 1)?;
    set(listener, libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1)?;
    set(listener, libc::IPPROTO_TCP, libc::TCP_NODELAY, 1)?;
    set(listener, libc::IPPROTO_TCP, libc::TCP_KEEPIDLE, 77)?;
    set(listener, libc::SOL_SOCKET, libc::SO_RCVBUF, 50_000)?;
    let listener_at = bound(listener)?;
    listen(listener, 9)?;
    let datagrams = moved(socket(libc::AF_INET, libc::SOCK_DGRAM, 0)?, 61, 0)?;
    set(datagrams, libc::IPPROTO_IP, libc::IP_TTL, 9)?;
    let datagrams_at = bound(datagrams)?;
    let connected = moved(socket(libc::AF_INET, libc::SOCK_DGRAM, 0)?, 62, 0)?;
    connect(connected, datagrams_at)?;
    let idle = moved(socket(libc::AF_INET6, libc::SOCK_STREAM, 0)?, 63, 0)?;
    set(idle, libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, 1)?;
    let raw = moved(
        socket(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP)?,
        64,
        0,
    )?;
    let client = moved(stream()?, 65, 0)?;
    connect(client, stays_at)?;
    let served = moved(accept(stays)?, 66, 0)?;
    Ok(Box::new(Inet {
        stays,
        stays_at,
        listener,
        listener_at,
        datagrams,
        datagrams_at,
        connected,
        idle,
        raw,
        client,
        served,
    }))
}

fn takes_a_connection(listener: i32, port: u16) -> Done {
    let at = SocketAddrV4::new(Ipv4Addr::LOCALHOST, port);
    let mut client = TcpStream::connect(at).map_err(|e| format!("connect to {at}: {e}"))?;
    let served = accept(listener)?;
    client.write_all(b"hello").map_err(|e| e.to_string())?;
    same("what the client said", read(served, 10)?, b"hello".to_vec())?;
    close(served)
}

impl Held for Inet {
    fn change(&mut self) -> Done {
        for fd in [
            self.listener,
            self.datagrams,
            self.connected,
            self.idle,
            self.raw,
            self.client,
            self.served,
        ] {
            close(fd)?;
        }
        // Another socket under the number of one that was idle.
        let late = moved(socket(libc::AF_INET, libc::SOCK_STREAM, 0)?, self.idle, 0)?;
        bound(late)?;
        listen(late, 1)
    }

    fn check(&mut self, changed: bool) -> Done {
        takes_a_connection(self.stays, self.stays_at)?;
        for fd in [
            self.listener,
            self.datagrams,
            self.connected,
            self.raw,
            self.client,
            self.served,
        ] {
            same(&format!("descriptor {fd} is open"), is_open(fd), !changed)?;
        }
        same(
            "the idle one listens",
            get(self.idle, libc::SOL_SOCKET, libc::SO_ACCEPTCONN)? == 1,
            changed,
        )?;
        if changed {
            return Ok(());
        }
        takes_a_connection(self.listener, self.listener_at)?;
        same(
            "keepalive",
            get(self.listener, libc::SOL_SOCKET, libc::SO_KEEPALIVE)?,
            1,
        )?;
        same(
            "nodelay",
            get(self.listener, libc::IPPROTO_TCP, libc::TCP_NODELAY)?,
            1,
        )?;
        same(
            "keepalive time",
            get(self.listener, libc::IPPROTO_TCP, libc::TCP_KEEPIDLE)?,
            77,
        )?;
        same(
            "buffer",
            get(self.listener, libc::SOL_SOCKET, libc::SO_RCVBUF)?,
            100_000,
        )?;
        same(
            "reuse of the address",
            get(self.listener, libc::SOL_SOCKET, libc::SO_REUSEADDR)?,
            1,
        )?;
        same("close on exec", cloexec(self.listener)?, true)?;
        write(self.connected, b"datagram")?;
        same(
            "a datagram",
            read(self.datagrams, 20)?,
            b"datagram".to_vec(),
        )?;
        same(
            "time to live",
            get(self.datagrams, libc::IPPROTO_IP, libc::IP_TTL)?,
            9,
        )?;
        same("its port", self.datagrams_at > 0, true)?;
        same(
            "only IPv6",
            get(self.idle, libc::IPPROTO_IPV6, libc::IPV6_V6ONLY)?,
            1,
        )?;
        same(
            "a raw socket",
            get(self.raw, libc::SOL_SOCKET, libc::SO_PROTOCOL)?,
            libc::IPPROTO_ICMP,
        )?;
        // Either it still is a connection, or the other side has closed it.
        for fd in [self.client, self.served] {
            if ready(fd, libc::POLLIN)? {
                same("the end of the connection", read(fd, 10)?, Vec::new())?;
            }
        }
        Ok(())
    }
}

struct Netlink {
    routes: i32,
    packets: i32,
}

pub fn netlink() -> Done<Box<dyn Held>> {
    let routes = moved(
        socket(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_ROUTE)?,
        60,
        0,
    )?;
    // SAFETY: zeroed is a valid address.
    let mut address: libc::sockaddr_nl = unsafe { std::mem::zeroed() };
    address.nl_family = libc::AF_NETLINK as u16;
    address.nl_groups = libc::RTMGRP_LINK as u32;
    bind(routes, &address, size_of_val(&address))?;
    set(routes, libc::SOL_NETLINK, libc::NETLINK_EXT_ACK, 1)?;
    let packets = moved(
        socket(libc::AF_PACKET, libc::SOCK_DGRAM, 0)?,
        61,
        libc::O_CLOEXEC,
    )?;
    set(packets, libc::SOL_PACKET, libc::PACKET_AUXDATA, 1)?;
    Ok(Box::new(Netlink { routes, packets }))
}

impl Held for Netlink {
    fn change(&mut self) -> Done {
        close(self.routes)?;
        close(self.packets)
    }

    fn check(&mut self, changed: bool) -> Done {
        same("routes is open", is_open(self.routes), !changed)?;
        same("packets is open", is_open(self.packets), !changed)?;
        if changed {
            return Ok(());
        }
        // SAFETY: zeroed is a valid address.
        let mut address: libc::sockaddr_nl = unsafe { std::mem::zeroed() };
        let mut len = size_of_val(&address) as u32;
        // SAFETY: both are live, and the address as long as said.
        must("getsockname", unsafe {
            libc::getsockname(self.routes, (&raw mut address).cast(), &mut len)
        })?;
        same("groups", address.nl_groups, libc::RTMGRP_LINK as u32)?;
        same("a number", address.nl_pid != 0, true)?;
        same(
            "extended errors",
            get(self.routes, libc::SOL_NETLINK, libc::NETLINK_EXT_ACK)?,
            1,
        )?;
        same(
            "auxiliary data",
            get(self.packets, libc::SOL_PACKET, libc::PACKET_AUXDATA)?,
            1,
        )?;
        same("close on exec", cloexec(self.packets)?, true)
    }
}
