//! Custody of sockets: given back, kept, and taken over.

use super::*;
use crate::sys::fd::socket::tcp::{capture, close_silently, ends, receivers_done, silence};
use crate::sys::{PidFd, pidfd_open, proc};
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command};
use std::time::Duration;

/// When all of these are taken.
const MOMENT: u64 = 1_234_567_890;

/// A process that sleeps, ended on drop.
struct Sleeper {
    child: Child,
    pidfd: PidFd,
}

impl Sleeper {
    fn start() -> Self {
        let child = Command::new("sleep").arg("1000").spawn().unwrap();
        let pidfd = pidfd_open(child.id() as i32).unwrap();
        Self { child, pidfd }
    }

    fn end(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let a = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (b, _) = listener.accept().unwrap();
    b.set_read_timeout(Some(Duration::from_millis(400)))
        .unwrap();
    (a, b)
}

/// What one end says, the other one hears.
fn talk(mut from: &TcpStream, mut to: &TcpStream) {
    to.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    from.write_all(b"hello").unwrap();
    let mut got = [0; 5];
    to.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"hello");
}

/// A silent socket of `process`, which may be taken; none where that is not allowed here.
fn custody(process: &PidFd, a: &TcpStream) -> Option<Custodian> {
    let socket = (OwnedFd::from(a.try_clone().unwrap()), false);
    let custodian = Custodian::over(&[process.as_fd()], vec![socket], MOMENT).unwrap();
    let taken = silence(a).and_then(|()| {
        receivers_done();
        capture(a, 0)
    });
    match taken {
        Ok(_) => Some(custodian),
        Err(e) => {
            assert!(e.to_string().contains("CAP_NET_ADMIN"), "{e}");
            crate::skip::without_root(&format!("the right to take connections ({e})"));
            None
        }
    }
}

/// Who has a connection between two addresses, of whichever snapshot.
fn keepers(local: &[u8], peer: &[u8]) -> Vec<Keeper> {
    let all = custodians().into_iter();
    all.filter(|keeper| keeper.has(local, peer)).collect()
}

/// Who has one end of a connection, for the snapshot that was made at [`MOMENT`].
fn kept(stream: &(Vec<u8>, Vec<u8>)) -> Kept<'_> {
    Kept {
        time_ns: MOMENT,
        local: &stream.0,
        peer: &stream.1,
    }
}

#[test]
fn a_socket_is_the_processs_again_unless_it_is_kept() {
    let process = Sleeper::start();
    let (a, b) = pair();
    let Some(custodian) = custody(&process.pidfd, &a) else {
        return;
    };
    drop(custodian);
    talk(&b, &a);
    talk(&a, &b);
}

#[test]
fn a_socket_is_the_processs_again_when_ksnap_ends_in_the_middle() {
    let process = Sleeper::start();
    let (a, b) = pair();
    let Some(mut custodian) = custody(&process.pidfd, &a) else {
        return;
    };
    // As the end of ksnap would leave it: in repair mode, and the pipe closed.
    close_silently(a.as_raw_fd());
    drop(custodian.tell.take());
    bury(custodian.child);
    talk(&b, &a);
}

#[test]
fn the_other_side_notices_nothing_while_a_socket_is_kept() {
    let mut process = Sleeper::start();
    let (a, mut b) = pair();
    // Memory that ksnap may have and its child shall not.
    let much = std::hint::black_box(vec![7u8; 64 << 20]);
    let Some(custodian) = custody(&process.pidfd, &a) else {
        return;
    };
    drop(much);
    let ends = ends(&a).unwrap();
    process.end();
    let keeper = custodian.keep().unwrap();
    drop(a);
    b.write_all(b"anybody there?").unwrap();
    let quiet = b.read(&mut [0; 8]).unwrap_err();
    assert_eq!(quiet.kind(), ErrorKind::WouldBlock);
    let found = keepers(&ends.0, &ends.1);
    assert_eq!(found.len(), 1);
    assert!(found[0].pid == keeper && found[0].is_of(MOMENT) && !found[0].is_of(MOMENT + 1));
    assert!(keepers(&ends.1, &ends.0).is_empty());
    // Not for another snapshot of it, nor another connection in the same socket's place.
    let other = Kept {
        time_ns: MOMENT + 1,
        ..kept(&ends)
    };
    let refused = end_custody(&[kept(&ends), other]).unwrap_err();
    assert!(refused.to_string().contains("127.0.0.1"), "{refused}");
    assert!(is_custodian(keeper));
    let held = || proc::status(keeper).unwrap().rss;
    let until = std::time::Instant::now() + Duration::from_secs(60);
    while held() > 48 << 20 {
        assert!(std::time::Instant::now() < until, "{} bytes", held());
        std::thread::yield_now();
    }
    end_custody(&[kept(&ends)]).unwrap();
    assert!(keepers(&ends.0, &ends.1).is_empty());
    bury(keeper);
    b.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let gone = b.read(&mut [0; 8]).unwrap_err();
    assert_eq!(gone.kind(), ErrorKind::ConnectionReset);
}

#[test]
fn one_look_finds_all_connections_that_a_custodian_has_and_ends_it_once() {
    let mut process = Sleeper::start();
    let pairs: Vec<(TcpStream, TcpStream)> = (0..20).map(|_| pair()).collect();
    // Without the right to take them nothing is to be seen here.
    let Some(first) = custody(&process.pidfd, &pairs[0].0) else {
        return;
    };
    drop(first);
    let sockets = pairs.iter().enumerate();
    let sockets = sockets.map(|(n, (a, _))| (OwnedFd::from(a.try_clone().unwrap()), n % 2 == 0));
    let custodian = Custodian::over(&[process.pidfd.as_fd()], sockets.collect(), MOMENT).unwrap();
    custodian
        .sockets()
        .for_each(|socket| silence(socket).unwrap());
    process.end();
    let all_ends: Vec<_> = pairs.iter().map(|(a, _)| ends(a).unwrap()).collect();
    let keeper = custodian.keep().unwrap();
    let found = custodians();
    let found: Vec<&Keeper> = found.iter().filter(|k| k.pid == keeper).collect();
    assert_eq!(found.len(), 1);
    assert!(
        all_ends
            .iter()
            .all(|(a, b)| found[0].has(a, b) && !found[0].has(b, a))
    );
    let all: Vec<Kept<'_>> = all_ends.iter().map(kept).collect();
    end_custody(&all).unwrap();
    // Until then it is a process that has ended.
    bury(keeper);
    assert!(!custodians().iter().any(|k| k.pid == keeper));
}

#[test]
fn what_ksnap_was_about_to_do_when_it_ended_is_done() {
    let mut process = Sleeper::start();
    let (mut a, mut b) = pair();
    let Some(mut custodian) = custody(&process.pidfd, &a) else {
        return;
    };
    custodian.intend().unwrap();
    // The program could not have the other side hear anything that is not in the snapshot.
    a.write_all(b"never").unwrap_err();
    drop(custodian.tell.take());
    let status = process.child.wait().unwrap();
    assert_eq!(status.signal(), Some(libc::SIGKILL));
    let ends = ends(&a).unwrap();
    drop(a);
    b.write_all(b"anybody there?").unwrap();
    let quiet = b.read(&mut [0; 8]).unwrap_err();
    assert_eq!(quiet.kind(), ErrorKind::WouldBlock);
    end_custody(&[kept(&ends)]).unwrap();
    bury(custodian.child);
}

#[test]
fn without_a_child_that_keeps_them_sockets_are_the_processs_again() {
    let process = Sleeper::start();
    let (a, b) = pair();
    let Some(mut custodian) = custody(&process.pidfd, &a) else {
        return;
    };
    // SAFETY: a system call without pointers, on a child of this process that nobody has waited for.
    assert_eq!(unsafe { libc::kill(custodian.child, libc::SIGKILL) }, 0);
    bury(custodian.child);
    custodian.intend().unwrap_err();
    talk(&a, &b);
}

#[test]
fn sockets_that_are_given_back_before_the_end_go_on() {
    let process = Sleeper::start();
    let (a, b) = pair();
    let Some(mut custodian) = custody(&process.pidfd, &a) else {
        return;
    };
    custodian.intend().unwrap();
    let back = custodian.release();
    assert_eq!(back.len(), 1);
    talk(&a, &b);
}
