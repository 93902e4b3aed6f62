//! Sockets of a process beyond its end: a child of ksnap has them, silent, so that nobody answers for them.
//!
//! The kernel answers by a reset what arrives for a connection that it does not know. So the socket of a connection that
//! is in a snapshot stays open in this child until the connection is brought back, or given up: by ending the child.
//! Before the process has ended the same child is what undoes everything, should ksnap be killed in the middle.

use super::birth::{self, Parent, bury};
use super::init::close_all_but;
use crate::model::{Backing, PAGE_SIZE, PageRange, address_words};
use crate::sys::fd::memfd;
use crate::sys::fd::socket::tcp::{close_silently, ends, enter, hear_quietly, leave_quietly};
use crate::sys::ptrace::Tid;
use crate::sys::{
    PidFd, Result, ScratchMap, SysError, monotonic_ns, pidfd_getfd, pidfd_kill, pidfd_open, proc,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::io::{PipeWriter, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

/// Its name in the list of processes.
const NAME: &std::ffi::CStr = c"ksnap-tcp";
/// Tells it that ksnap is about to kill the process: should ksnap end, the child does that, and keeps the sockets.
const INTENT: u8 = b'i';
/// Tells it that the process has ended, and that it has the sockets from then on.
const KEEP: u8 = b'k';
/// Tells it that all has been undone.
const UNDONE: u8 = b'u';
/// What an empty memfd that it holds is called, before the moment that tells one snapshot from another.
const MARK: &str = "ksnap-tcp-";
/// How long the process may take to end that ksnap was killing when it was killed itself, in nanoseconds.
const LAST_MOMENT: i64 = 200_000_000;

/// A child of ksnap that has sockets of another process. Unless it is told to keep them, they are the process's again when
/// this is dropped.
#[derive(Debug)]
pub struct Custodian {
    child: Tid,
    tell: Option<PipeWriter>,
    /// The sockets, and whether their addresses may be used again (`SO_REUSEADDR`).
    sockets: Vec<(OwnedFd, bool)>,
}

impl Custodian {
    /// Takes sockets of this process into custody, each with its `SO_REUSEADDR`. Nothing of them has changed when this
    /// returns; whatever is done to them is undone by the child if ksnap ends. `time_ns` is when, in nanoseconds since
    /// 1970: by that the snapshot is known again whose connections they are.
    pub fn over(process: &PidFd, sockets: Vec<(OwnedFd, bool)>, time_ns: u64) -> Result<Self> {
        let pipe = |e| SysError::new("pipe", "this process", e);
        let (told, tell) = std::io::pipe().map_err(pipe)?;
        // The child knows descriptors by their numbers alone: those that may be used again lie behind its channel.
        let mut held: Vec<OwnedFd> = Vec::with_capacity(sockets.len() + OWN);
        let mut place = |fd: BorrowedFd<'_>| -> Result<RawFd> {
            let above = held.last().map_or(3, |last| last.as_raw_fd() + 1);
            let copy = rustix::io::fcntl_dupfd_cloexec(fd, above)
                .map_err(|e| SysError::new("fcntl(F_DUPFD)", "sockets of a process", e))?;
            held.push(copy);
            Ok(held[held.len() - 1].as_raw_fd())
        };
        for (socket, _) in sockets.iter().filter(|(_, reuse)| !reuse) {
            place(socket.as_fd())?;
        }
        let channel = place(told.as_fd())?;
        place(process.as_fd())?;
        place(memfd(&format!("{MARK}{time_ns}"))?.as_fd())?;
        for (socket, _) in sockets.iter().filter(|(_, reuse)| *reuse) {
            place(socket.as_fd())?;
        }
        let keep: Vec<RawFd> = held.iter().map(AsRawFd::as_raw_fd).collect();
        let told = Instructions::new(&keep)?;
        Ok(Self {
            child: birth::helper(watch, channel, told.descriptors())?,
            tell: Some(tell),
            sockets,
        })
    }

    /// The child.
    pub fn pid(&self) -> Tid {
        self.child
    }

    /// The sockets, in the order in which they were given.
    pub fn sockets(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.sockets.iter().map(|(socket, _)| socket.as_fd())
    }

    /// Undoes everything, and gives the sockets back.
    pub fn release(mut self) -> Vec<(OwnedFd, bool)> {
        self.give_back();
        std::mem::take(&mut self.sockets)
    }

    /// The process is about to be killed, however long that takes: if ksnap ends meanwhile, the child kills it and keeps
    /// the sockets. From here on they are in repair mode, in which the program could send nothing more by them.
    ///
    /// # Errors
    /// The child is gone.
    pub fn intend(&mut self) -> Result<()> {
        for (socket, _) in &self.sockets {
            enter(socket)?;
        }
        let tell = self.tell.as_mut().expect("until it is told");
        tell.write_all(&[INTENT]).map_err(gone)
    }

    /// The process has been killed: the sockets stay open in the child, silent, until that is ended. Returns its id.
    ///
    /// # Errors
    /// The child is gone: the connections end with ksnap.
    pub fn keep(mut self) -> Result<Tid> {
        let mut tell = self.tell.take().expect("until it is told");
        match tell.write_all(&[KEEP]) {
            Ok(()) => Ok(self.child),
            Err(e) => {
                self.undo();
                bury(self.child);
                Err(gone(e))
            }
        }
    }

    fn give_back(&mut self) {
        let Some(mut tell) = self.tell.take() else {
            return;
        };
        self.undo();
        // One that is gone needs no word.
        let _ = tell.write_all(&[UNDONE]);
        drop(tell);
        bury(self.child);
    }

    fn undo(&self) {
        for (socket, reuse) in &self.sockets {
            leave_quietly(socket.as_raw_fd(), i32::from(*reuse));
            hear_quietly(socket.as_raw_fd());
        }
    }
}

impl Drop for Custodian {
    fn drop(&mut self) {
        self.give_back();
    }
}

fn gone(e: std::io::Error) -> SysError {
    SysError::new("write", "the process that was to hold the connections", e)
}

/// What the child knows: the descriptors that are its own, and behind them the memory of ksnap that it has no use for.
/// In a mapping of its own, since that memory is where everything else lies.
struct Instructions {
    map: ScratchMap,
    descriptors: usize,
}

/// Smaller mappings stay.
const WORTH_DROPPING: u64 = 1 << 20;

impl Instructions {
    fn new(descriptors: &[RawFd]) -> Result<Self> {
        /// Mappings that a process may have between two looks.
        const MORE: usize = 64;
        let maps = proc::maps(std::process::id() as i32)?;
        let words = words_of(descriptors.len()) + 2 * (maps.len() + MORE) + 1;
        let mut map = ScratchMap::new((words as u64 * 8).div_ceil(PAGE_SIZE))?;
        let own = map.range();
        let here = 0u8;
        // SAFETY: gives the address of this thread's errno.
        let errno = unsafe { libc::__errno_location() } as u64;
        // The child goes on on this thread's stack, and with this thread's variables.
        let needed = [&raw const here as u64, errno, own.start];
        let spare = maps.iter().filter(|vma| {
            let range = vma.range;
            let plain = matches!(&vma.backing, Backing::Anonymous { .. } | Backing::Heap);
            plain
                && !vma.shared
                && vma.prot.write
                && range.len() >= WORTH_DROPPING
                && !needed.iter().any(|addr| range.contains(*addr))
        });
        let spare: Vec<PageRange> = spare.map(|vma| vma.range).collect();
        let all = map.words();
        for (at, fd) in descriptors.iter().enumerate() {
            all[at / 2] |= u64::from(*fd as u32) << (at % 2 * 32);
        }
        let mut at = words_of(descriptors.len());
        all[at] = spare.len() as u64;
        for range in spare {
            all[at + 1] = range.start;
            all[at + 2] = range.len();
            at += 2;
        }
        Ok(Self {
            map,
            descriptors: descriptors.len(),
        })
    }

    fn descriptors(&self) -> &[RawFd] {
        let start = self.map.range().start as *const RawFd;
        // SAFETY: as many were written there, in pairs to a word, the first in its lower half (little-endian, as the
        // architectures that ksnap runs on are); the mapping lives as long as this value.
        unsafe { std::slice::from_raw_parts(start, self.descriptors) }
    }
}

/// Words that so many descriptors take.
fn words_of(descriptors: usize) -> usize {
    descriptors.div_ceil(2)
}

/// Gives up the memory that stands behind `descriptors` in the [`Instructions`] of this child.
///
/// # Safety
/// They are those of [`Instructions::descriptors`], in a child that uses nothing but its stack from here on.
unsafe fn drop_memory(descriptors: &[RawFd]) {
    // SAFETY: the words lie behind the descriptors in the same mapping; the ranges are private mappings of ksnap that
    // this child has copies of, and uses nothing of.
    unsafe {
        let words = descriptors.as_ptr().cast::<u64>();
        let words = words.add(words_of(descriptors.len()));
        for n in 0..*words as usize {
            let (start, len) = (*words.add(2 * n + 1), *words.add(2 * n + 2));
            libc::madvise(
                start as *mut libc::c_void,
                len as usize,
                libc::MADV_DONTNEED,
            );
        }
    }
}

/// A connection that a custodian may have.
#[derive(Clone, Copy, Debug)]
pub struct Kept<'a> {
    /// When it was taken, as [`Custodian::over`] was told.
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
            let why = "no process ksnap-tcp keeps it any more for this snapshot";
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

/// Descriptors of the child that are no sockets, one behind the other: its channel, the process, its mark.
const OWN: usize = 3;

/// What the child does. Nothing here allocates: another thread of ksnap may have had the allocator's lock when this
/// copy of it was made, and will never give it back.
fn watch(parent: Parent) -> ! {
    let channel = parent.channel().unwrap_or(-1);
    let all = parent.keep();
    close_all_but(all);
    let split = all.iter().position(|fd| *fd == channel).unwrap_or(0);
    let process = all.get(split + 1).copied().unwrap_or(-1);
    let sockets = || {
        let own = all.iter().enumerate();
        let own = own.filter(|(n, _)| !(split..split + OWN).contains(n));
        own.map(|(n, fd)| (*fd, i32::from(n > split)))
    };
    let mut word = 0u8;
    // SAFETY: system calls; the byte and the structures are live locals, and the name is a constant.
    unsafe {
        // Whoever ends ksnap's whole session does not mean this one, which has its work to do first.
        libc::setsid();
        libc::prctl(libc::PR_SET_NAME, NAME.as_ptr());
        let mut told = libc::read(channel, (&raw mut word).cast(), 1);
        let intended = told == 1 && word == INTENT;
        if intended {
            told = libc::read(channel, (&raw mut word).cast(), 1);
        }
        if told == 1 && word == UNDONE {
            libc::_exit(0);
        }
        if told != 1 && intended {
            // ksnap is gone, and may not have come to it.
            let nothing = std::ptr::null::<libc::siginfo_t>();
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                process,
                libc::SIGKILL,
                nothing,
                0,
            );
        } else if told != 1 {
            // ksnap is gone, and the process runs.
            for (socket, reuse) in sockets() {
                leave_quietly(socket, reuse);
            }
            let mut end = libc::pollfd {
                fd: process,
                events: libc::POLLIN,
                revents: 0,
            };
            let moment = libc::timespec {
                tv_sec: 0,
                tv_nsec: LAST_MOMENT,
            };
            // Unless ksnap had just killed it.
            if libc::ppoll(&mut end, 1, &moment, std::ptr::null()) != 1 {
                for (socket, _) in sockets() {
                    hear_quietly(socket);
                }
                libc::_exit(0);
            }
        }
        for (socket, _) in sockets() {
            close_silently(socket);
        }
        libc::close(channel);
        libc::close(process);
        // Else what ksnap had at hand for a snapshot would be held for as long as the connections.
        drop_memory(all);
        // All signals are blocked: whoever wants the connections given up may ask for it as usual.
        let mut asked: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut asked);
        libc::sigaddset(&mut asked, libc::SIGTERM);
        libc::sigprocmask(libc::SIG_UNBLOCK, &asked, std::ptr::null_mut());
        loop {
            libc::pause();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::fd::socket::tcp::{capture, receivers_done, silence};
    use std::io::{ErrorKind, Read};
    use std::net::{Ipv4Addr, TcpListener, TcpStream};
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Child, Command};
    use std::time::Duration;

    /// When all of these are taken.
    const MOMENT: u64 = 1_234_567_890;

    fn sleeper() -> (Child, PidFd) {
        let child = Command::new("sleep").arg("1000").spawn().unwrap();
        let pidfd = pidfd_open(child.id() as i32).unwrap();
        (child, pidfd)
    }

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let a = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (b, _) = listener.accept().unwrap();
        b.set_read_timeout(Some(Duration::from_millis(400)))
            .unwrap();
        (a, b)
    }

    /// A silent socket of `process`, which may be taken; none where that is not allowed here.
    fn custody(process: &PidFd, a: &TcpStream) -> Option<Custodian> {
        let socket = (OwnedFd::from(a.try_clone().unwrap()), false);
        let custodian = Custodian::over(process, vec![socket], MOMENT).unwrap();
        silence(a).unwrap();
        receivers_done();
        match capture(a, 0) {
            Ok(_) => Some(custodian),
            Err(e) => {
                eprintln!("skipped: {e}");
                None
            }
        }
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
        let (mut process, pidfd) = sleeper();
        let (mut a, mut b) = pair();
        let Some(custodian) = custody(&pidfd, &a) else {
            return process.kill().unwrap();
        };
        drop(custodian);
        std::io::Write::write_all(&mut b, b"hello").unwrap();
        a.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let mut got = [0; 5];
        a.read_exact(&mut got).unwrap();
        std::io::Write::write_all(&mut a, &got).unwrap();
        b.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"hello");
        process.kill().unwrap();
        process.wait().unwrap();
    }

    #[test]
    fn a_socket_is_the_processs_again_when_ksnap_ends_in_the_middle() {
        let (mut process, pidfd) = sleeper();
        let (mut a, mut b) = pair();
        let Some(mut custodian) = custody(&pidfd, &a) else {
            return process.kill().unwrap();
        };
        // As the end of ksnap would leave it: in repair mode, and the pipe closed.
        close_silently(a.as_raw_fd());
        drop(custodian.tell.take());
        bury(custodian.child);
        std::io::Write::write_all(&mut b, b"hello").unwrap();
        a.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let mut got = [0; 5];
        a.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"hello");
        process.kill().unwrap();
        process.wait().unwrap();
    }

    #[test]
    fn the_other_side_notices_nothing_while_a_socket_is_kept() {
        let (mut process, pidfd) = sleeper();
        let (a, mut b) = pair();
        // Memory that ksnap may have and its child shall not.
        let much = std::hint::black_box(vec![7u8; 64 << 20]);
        let Some(custodian) = custody(&pidfd, &a) else {
            return process.kill().unwrap();
        };
        drop(much);
        let ends = ends(&a).unwrap();
        process.kill().unwrap();
        process.wait().unwrap();
        let keeper = custodian.keep().unwrap();
        drop(a);
        std::io::Write::write_all(&mut b, b"anybody there?").unwrap();
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
        let until = std::time::Instant::now() + Duration::from_secs(20);
        while held() > 48 << 20 {
            assert!(std::time::Instant::now() < until, "{} bytes", held());
            std::thread::yield_now();
        }
        end_custody(&[kept(&ends)]).unwrap();
        assert!(keepers(&ends.0, &ends.1).is_empty());
        bury(keeper);
        b.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let gone = b.read(&mut [0; 8]).unwrap_err();
        assert_eq!(gone.kind(), ErrorKind::ConnectionReset);
    }

    #[test]
    fn what_ksnap_was_about_to_do_when_it_ended_is_done() {
        let (mut process, pidfd) = sleeper();
        let (mut a, mut b) = pair();
        let Some(mut custodian) = custody(&pidfd, &a) else {
            return process.kill().unwrap();
        };
        custodian.intend().unwrap();
        // The program could not have the other side hear anything that is not in the snapshot.
        std::io::Write::write_all(&mut a, b"never").unwrap_err();
        drop(custodian.tell.take());
        let status = process.wait().unwrap();
        assert_eq!(status.signal(), Some(libc::SIGKILL));
        let ends = ends(&a).unwrap();
        drop(a);
        std::io::Write::write_all(&mut b, b"anybody there?").unwrap();
        let quiet = b.read(&mut [0; 8]).unwrap_err();
        assert_eq!(quiet.kind(), ErrorKind::WouldBlock);
        end_custody(&[kept(&ends)]).unwrap();
        bury(custodian.child);
    }

    #[test]
    fn sockets_that_are_given_back_before_the_end_go_on() {
        let (mut process, pidfd) = sleeper();
        let (mut a, mut b) = pair();
        let Some(mut custodian) = custody(&pidfd, &a) else {
            return process.kill().unwrap();
        };
        custodian.intend().unwrap();
        let back = custodian.release();
        assert_eq!(back.len(), 1);
        std::io::Write::write_all(&mut a, b"hello").unwrap();
        let mut got = [0; 5];
        b.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"hello");
        process.kill().unwrap();
        process.wait().unwrap();
    }
}
