use super::super::differing_options;
use super::*;
use crate::model::{Connection, Socket, SocketState};
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::time::Duration;

/// Both ends of a connection on the loopback device; none where this process may not take one.
fn pair(at: SocketAddr) -> Option<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind(at).unwrap();
    let a = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (b, _) = listener.accept().unwrap();
    for end in [&a, &b] {
        end.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    }
    match Repair::begin(a.as_fd()) {
        Ok(repair) => drop(repair),
        Err(e) => {
            assert!(e.to_string().contains("CAP_NET_ADMIN"), "{e}");
            crate::skip::without_root(&format!("the right to take connections ({e})"));
            return None;
        }
    }
    Some((a, b))
}

fn v4() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, 0).into()
}

/// Bytes that tell where they are from.
fn text(seed: u64, len: usize) -> Vec<u8> {
    let word = |at: usize| {
        (at as u64 + 1)
            .wrapping_mul(seed | 1)
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
    };
    (0..len).map(|at| (word(at) >> 56) as u8).collect()
}

/// Takes a connection away from its socket, which is gone when this returns. What takes its place keeps the kernel from
/// answering the other side meanwhile, which may send at any time: acknowledgements that were delayed, for one.
fn take(stream: TcpStream) -> (Socket, Connection, OwnedFd) {
    assert_eq!(refuses_capture(&stream), Ok(true));
    silence(&stream).unwrap();
    receivers_done();
    let taken = capture(&stream, 0).unwrap();
    let mut socket = Socket {
        domain: match stream.local_addr().unwrap() {
            SocketAddr::V4(_) => libc::AF_INET,
            SocketAddr::V6(_) => libc::AF_INET6,
        },
        ty: libc::SOCK_STREAM,
        protocol: libc::IPPROTO_TCP,
        state: SocketState::Connected,
        local: super::super::address(&stream, libc::getsockname).unwrap(),
        peer: super::super::address(&stream, libc::getpeername).unwrap_or_default(),
        ..Socket::default()
    };
    socket.options = differing_options(&stream, &socket);
    let shield = shield(socket.domain, &socket.local).unwrap();
    close_silently(stream.as_raw_fd());
    (socket, taken, shield)
}

/// Gives it to a new one.
fn give(socket: &Socket, taken: &Connection, shield: OwnedFd) -> TcpStream {
    let (made, failed) = prepare(socket.domain, &socket.local, &socket.options).unwrap();
    assert!(failed.is_empty(), "{failed:?}");
    establish(&made, &socket.peer, taken, 0).unwrap();
    drop(shield);
    let failed = wake(&made, taken, &socket.options);
    assert!(failed.is_empty(), "{failed:?}");
    let stream = TcpStream::from(made);
    stream.set_nonblocking(false).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    stream
}

fn expect(stream: &mut TcpStream, wanted: &[u8]) {
    let mut got = vec![0; wanted.len()];
    stream.read_exact(&mut got).unwrap();
    assert!(got == wanted, "{} bytes differ", wanted.len());
}

/// Bytes that were sent and have not arrived, as far as the sender knows.
fn unacknowledged(stream: &TcpStream) -> i32 {
    let mut bytes = 0;
    // SAFETY: SIOCOUTQ, the same as TIOCOUTQ (tcp(7)), writes one int, which is live.
    let r = unsafe { libc::ioctl(stream.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    assert_eq!(r, 0);
    bytes
}

/// Writes until nothing fits any more, and tells what was written.
fn fill(stream: &mut TcpStream, seed: u64) -> Vec<u8> {
    let all = text(seed, 64 << 20);
    stream.set_nonblocking(true).unwrap();
    let mut len = 0;
    let end = loop {
        match stream.write(&all[len..]) {
            Ok(n) => len += n,
            Err(e) => break e,
        }
    };
    assert_eq!(end.kind(), ErrorKind::WouldBlock);
    stream.set_nonblocking(false).unwrap();
    all[..len].to_vec()
}

#[test]
fn a_connection_goes_on_in_another_socket_with_what_was_in_its_queues() {
    for at in [v4(), (Ipv6Addr::LOCALHOST, 0).into()] {
        let Some((mut a, mut b)) = pair(at) else {
            return;
        };
        a.set_nodelay(true).unwrap();
        b.write_all(b"not read yet").unwrap();
        a.write_all(b"first ").unwrap();
        expect(&mut b, b"first ");
        // The other side's bytes are on their way for no longer than a moment.
        while super::super::super::queued(&a).unwrap() < 12 {
            std::thread::yield_now();
        }
        let (socket, taken, shield) = take(a);
        assert_eq!(taken.receive, b"not read yet");
        let mut a = give(&socket, &taken, shield);
        expect(&mut a, b"not read yet");
        assert!(a.nodelay().unwrap());
        for round in 0..20u8 {
            a.write_all(&[round; 100]).unwrap();
            expect(&mut b, &[round; 100]);
            b.write_all(&[!round; 3000]).unwrap();
            expect(&mut a, &[!round; 3000]);
        }
        drop(a);
        assert_eq!(b.read(&mut [0; 8]).unwrap(), 0, "it ends as any other");
    }
}

#[test]
fn full_queues_of_both_directions_come_back_twice_in_a_row() {
    let Some((mut a, mut b)) = pair(v4()) else {
        return;
    };
    let (to_b, to_a) = (fill(&mut a, 3), fill(&mut b, 5));
    assert!(to_b.len() > 100_000 && to_a.len() > 100_000);
    for _ in 0..2 {
        let (socket, taken, shield) = take(a);
        assert!(!taken.send.is_empty() && !taken.receive.is_empty());
        assert!(to_b.ends_with(&taken.send) && to_a.starts_with(&taken.receive));
        a = give(&socket, &taken, shield);
    }
    let reader = std::thread::spawn(move || {
        expect(&mut b, &to_b);
        b
    });
    expect(&mut a, &to_a);
    let mut b = reader.join().unwrap();
    a.write_all(b"and on").unwrap();
    expect(&mut b, b"and on");
}

#[test]
fn what_was_on_its_way_arrives_once() {
    let Some((mut a, mut b)) = pair(v4()) else {
        return;
    };
    silence(&b).unwrap();
    receivers_done();
    let lost = text(11, 5000);
    a.write_all(&lost).unwrap();
    let (socket, taken, shield) = take(a);
    assert_eq!(taken.send.len(), 5000);
    hear(&b).unwrap();
    let mut a = give(&socket, &taken, shield);
    a.write_all(b"and more").unwrap();
    expect(&mut b, &lost);
    expect(&mut b, b"and more");
    // Had it been received before its sender was taken, the same.
    a.write_all(b"once").unwrap();
    silence(&a).unwrap();
    receivers_done();
    expect(&mut b, b"once");
    hear(&a).unwrap();
    let (socket, taken, shield) = take(a);
    let mut a = give(&socket, &taken, shield);
    a.write_all(b" again").unwrap();
    expect(&mut b, b" again");
}

#[test]
fn what_the_old_socket_sent_behind_its_capture_is_no_harm() {
    let Some((mut a, mut b)) = pair(v4()) else {
        return;
    };
    let sent = fill(&mut a, 13);
    silence(&a).unwrap();
    receivers_done();
    let taken = capture(&a, 0).unwrap();
    // As the kernel's own timers would, by a window that opens: now more is on its way than was known then.
    hear(&a).unwrap();
    let acknowledged = sent.len() - taken.send.len();
    expect(&mut b, &sent[..acknowledged + taken.send.len() / 2]);
    let (socket, _, shield) = take(a);
    let mut a = give(&socket, &taken, shield);
    expect(&mut b, &sent[acknowledged + taken.send.len() / 2..]);
    a.write_all(b"and on").unwrap();
    expect(&mut b, b"and on");
}

#[test]
fn a_side_that_has_ended_its_stream_goes_on_receiving() {
    let Some((mut a, mut b)) = pair(v4()) else {
        return;
    };
    a.write_all(b"last words").unwrap();
    a.shutdown(Shutdown::Write).unwrap();
    expect(&mut b, b"last words");
    assert_eq!(b.read(&mut [0; 8]).unwrap(), 0);
    let (socket, taken, shield) = take(a);
    assert!(taken.is_ending);
    let mut a = give(&socket, &taken, shield);
    b.write_all(b"an answer").unwrap();
    expect(&mut a, b"an answer");
    // Nor was the end lost that the other side has not seen yet.
    let Some((mut c, mut d)) = pair(v4()) else {
        return;
    };
    let much = fill(&mut c, 7);
    c.shutdown(Shutdown::Write).unwrap();
    let (socket, taken, shield) = take(c);
    let mut c = give(&socket, &taken, shield);
    expect(&mut d, &much);
    assert_eq!(d.read(&mut [0; 8]).unwrap(), 0);
    d.write_all(b"heard").unwrap();
    expect(&mut c, b"heard");
}

#[test]
fn a_silent_socket_hears_nothing_and_what_was_sent_meanwhile_comes_later() {
    let Some((mut a, mut b)) = pair(v4()) else {
        return;
    };
    silence(&a).unwrap();
    receivers_done();
    b.write_all(b"into the dark").unwrap();
    let brief = Some(Duration::from_millis(50));
    a.set_read_timeout(brief).unwrap();
    assert_eq!(
        a.read(&mut [0; 8]).unwrap_err().kind(),
        ErrorKind::WouldBlock
    );
    assert_eq!(
        refuses_capture(&a).unwrap_err(),
        "it has a packet filter of its own"
    );
    hear(&a).unwrap();
    hear(&a).unwrap();
    a.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    expect(&mut a, b"into the dark");
}

#[test]
fn a_capture_leaves_the_socket_as_it_was() {
    let Some((mut a, mut b)) = pair(v4()) else {
        return;
    };
    let reuse = (libc::SOL_SOCKET, libc::SO_REUSEADDR);
    for on in [0, 1] {
        set_int(&a, reuse.0, reuse.1, on).unwrap();
        a.write_all(b"before ").unwrap();
        capture(&a, 0).unwrap();
        assert_eq!(super::super::int(&a, reuse.0, reuse.1).unwrap(), on);
        a.write_all(b"after").unwrap();
        expect(&mut b, b"before after");
    }
}

#[test]
fn what_closes_silently_is_not_missed_where_a_shield_is() {
    let Some((a, mut b)) = pair(v4()) else {
        return;
    };
    let local = super::super::address(&a, libc::getsockname).unwrap();
    let shield: OwnedFd = shield(libc::AF_INET, &local).unwrap();
    silence(&a).unwrap();
    close_silently(a.as_raw_fd());
    drop(a);
    b.write_all(b"anybody there?").unwrap();
    b.set_read_timeout(Some(Duration::from_millis(300)))
        .unwrap();
    assert_eq!(
        b.read(&mut [0; 8]).unwrap_err().kind(),
        ErrorKind::WouldBlock
    );
    drop(shield);
    // What is sent again, at ever longer intervals, meets nobody now.
    b.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    assert_eq!(
        b.read(&mut [0; 8]).unwrap_err().kind(),
        ErrorKind::ConnectionReset
    );
}

#[test]
fn what_cannot_be_taken_is_named() {
    let listener = TcpListener::bind(v4()).unwrap();
    assert_eq!(refuses_capture(&listener), Ok(false));
    let Some((a, b)) = pair(v4()) else {
        return;
    };
    drop(a);
    while info(&b).unwrap().state == ESTABLISHED {
        std::thread::yield_now();
    }
    assert!(refuses_capture(&b).unwrap_err().contains("CLOSE_WAIT"));
}

#[test]
fn an_end_that_arrives_before_the_silence_is_not_taken_for_the_programs_own() {
    let Some((a, mut b)) = pair(v4()) else {
        return;
    };
    assert_eq!(refuses_capture(&a), Ok(true));
    b.write_all(b"ABC").unwrap();
    drop(b);
    while info(&a).unwrap().state == ESTABLISHED {
        std::thread::yield_now();
    }
    silence(&a).unwrap();
    receivers_done();
    assert!(has_ended(&a).unwrap().contains("CLOSE_WAIT"));
    let refused = capture(&a, 0).unwrap_err().to_string();
    assert!(refused.contains("CLOSE_WAIT"), "{refused}");
    // Nor is a reset an end of a stream.
    let Some((mut a, b)) = pair(v4()) else {
        return;
    };
    a.write_all(b"not read").unwrap();
    drop(b);
    while info(&a).unwrap().state == ESTABLISHED {
        std::thread::yield_now();
    }
    silence(&a).unwrap();
    assert!(has_ended(&a).is_some());
    assert!(capture(&a, 0).is_err());
}

#[test]
fn one_whose_other_side_is_gone_ends_without_an_error() {
    let Some((mut a, b)) = pair(v4()) else {
        return;
    };
    a.write_all(b"not read").unwrap();
    a.shutdown(Shutdown::Write).unwrap();
    let (socket, taken, shield) = take(a);
    assert!(taken.is_ending);
    // With what it has not read it ends by a reset, which nobody hears.
    drop(b);
    let mut a = give(&socket, &taken, shield);
    match a.read(&mut [0; 8]) {
        Ok(0) => {}
        Err(e) if e.kind() == ErrorKind::ConnectionReset => {}
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_behind_urgent_data_is_not_passed_over() {
    let Some((mut a, mut b)) = pair(v4()) else {
        return;
    };
    b.write_all(b"abc").unwrap();
    // SAFETY: the byte is live.
    let sent = unsafe { libc::send(b.as_raw_fd(), b"!".as_ptr().cast(), 1, libc::MSG_OOB) };
    assert_eq!(sent, 1);
    b.write_all(b"def").unwrap();
    // What is behind urgent data is not counted as received: that it is shows at the other side.
    let end = std::time::Instant::now() + Duration::from_secs(60);
    while unacknowledged(&b) > 0 {
        assert!(std::time::Instant::now() < end, "it does not arrive");
        std::thread::yield_now();
    }
    silence(&a).unwrap();
    receivers_done();
    let refused = capture(&a, 0).unwrap_err().to_string();
    assert!(refused.contains("3 bytes of 7"), "{refused}");
    assert!(refused.contains("127.0.0.1"), "{refused}");
    assert_eq!(
        super::super::int(&a, libc::SOL_SOCKET, libc::SO_OOBINLINE).unwrap(),
        0
    );
    // Once the program has read it, nothing is in the way.
    hear(&a).unwrap();
    expect(&mut a, b"abc");
    expect(&mut a, b"d");
    let (_, taken, _) = take(a);
    assert_eq!(taken.receive, b"ef");
}

#[test]
fn a_closed_window_is_open_in_custody() {
    let Some((a, _b)) = pair(v4()) else {
        return;
    };
    silence(&a).unwrap();
    receivers_done();
    enter(&a).unwrap();
    let window = || super::super::option(&a, libc::IPPROTO_TCP, TCP_REPAIR_WINDOW, 20).unwrap();
    let word = |at: usize| u32::from_ne_bytes(window()[at * 4..][..4].try_into().unwrap());
    let mut closed = window();
    closed[4..12].fill(0);
    let raw = a.as_raw_fd();
    assert_eq!(set(raw, libc::IPPROTO_TCP, TCP_REPAIR_WINDOW, &closed), 0);
    assert_eq!((word(1), word(2)), (0, 0));
    close_silently(raw);
    assert_eq!((word(1), word(2)), (64 << 10, 64 << 10));
}

#[test]
fn an_address_of_another_machine_cannot_be_had() {
    if pair(v4()).is_none() {
        return;
    }
    let mut address = (libc::AF_INET as u16).to_ne_bytes().to_vec();
    // 192.0.2.1 is for documentation alone (RFC 5737).
    address.extend([0x1f, 0x90, 192, 0, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0]);
    let error = prepare(libc::AF_INET, &address, &[]).unwrap_err();
    assert_eq!(error.errno(), Some(libc::EADDRNOTAVAIL), "{error}");
}

#[test]
fn clocks_of_time_stamps_only_go_ahead() {
    let resume = super::resume::later;
    assert_eq!(resume(1000, 5_000_000), 2004 & !1);
    assert_eq!(resume(1001, 5_000_000), 1_006_001);
    assert_eq!(resume(u32::MAX - 1, 0), 998);
}
