//! `tree [--rate 200] [--mib 0]`: a parent, a child, a grandchild in a session of its own, and two children that have ended, one
//! by a signal, and that nobody waits for.
//!
//! Numbers go round: parent → pipe → child → memory file with a shared position → socket pair → parent, and from the
//! child on to the grandchild through another pipe. None may be lost or come twice, whatever was on its way. All of
//! them write what they see of themselves (ids, parent, session, group) into memory that they share. With `--mib` each of
//! the three has so much private memory, at which it and a child of it look for each check.

use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Result, bail, ensure};
use serde_json::{Value, json};

use super::args::Args;
use super::family::{Memory, fork, owned};
use super::fault::{broken, must, os_error};
use super::pace::{Pace, nap};
use super::private::Private;
use super::protocol::{Started, State};
use super::workers::{PATIENCE, Workers};

/// Numbers before the memory file begins anew.
const ROUND: u64 = 512;
/// Exit code of one child that nobody waits for.
const CODE: i32 = 7;
/// What the other one ended by: Rust programs ignore it from their start on.
const SIGNAL: i32 = libc::SIGPIPE;

/// What one process sees of itself, in shared memory.
#[repr(C)]
struct Seen {
    rounds: AtomicU64,
    ids: [AtomicU64; 4],
    /// How often it has looked at its private memory.
    looked: AtomicU64,
}

impl Seen {
    fn look(&self, n: u64) {
        for (place, id) in self.ids.iter().zip(own_ids()) {
            place.store(id as u64, Ordering::SeqCst);
        }
        self.rounds.store(n, Ordering::SeqCst);
    }

    /// Looks at the private memory as often as the parent has asked for that.
    fn look_at(&self, private: &mut Option<Private>, asked: &AtomicU64) {
        let asked = asked.load(Ordering::SeqCst);
        if self.looked.load(Ordering::SeqCst) != asked {
            if let Some(private) = private {
                must(private.check());
            }
            self.looked.store(asked, Ordering::SeqCst);
        }
    }

    fn ids(&self) -> [i32; 4] {
        std::array::from_fn(|n| self.ids[n].load(Ordering::SeqCst) as i32)
    }
}

/// Process, parent, session, group.
fn own_ids() -> [i32; 4] {
    // SAFETY: calls without pointers.
    unsafe {
        [
            libc::getpid(),
            libc::getppid(),
            libc::getsid(0),
            libc::getpgid(0),
        ]
    }
}

#[repr(C)]
struct Board {
    child: Seen,
    grandchild: Seen,
    /// How often they are to have looked at their private memory.
    asked: AtomicU64,
}

struct Tree {
    memory: Memory<Board>,
    private: Mutex<Option<Private>>,
    expected: [[i32; 4]; 2],
    ended: [Ended; 2],
    counter: Arc<AtomicU64>,
    workers: Workers,
}

/// Starts the victim.
pub fn start(args: &Args) -> Result<Started> {
    let rate: u64 = args.value("rate", 200)?;
    let mib: usize = args.value("mib", 0)?;
    // SAFETY: a board is atomics alone, and the victim has it until the process ends.
    let memory = unsafe { Memory::<Board>::new(0x7472) }?;
    let board = memory.board;
    let (down, onward) = (pipe()?, pipe()?);
    let (near, far) = pair()?;
    let file = memory_file()?;
    let ended = [
        Ended::child(libc::CLD_EXITED, CODE)?,
        Ended::child(libc::CLD_KILLED, SIGNAL)?,
    ];
    let child = fork()?;
    if child == 0 {
        let grandchild = fork().unwrap_or_else(|error| broken(error));
        if grandchild == 0 {
            // SAFETY: a call without pointers.
            unsafe { libc::setsid() };
            last(board, must(Private::new(mib, 3)), onward.0.as_raw_fd());
        }
        drop((down.1, onward.0, near));
        middle(
            board,
            must(Private::new(mib, 2)),
            down.0.as_raw_fd(),
            file.as_raw_fd(),
            far.as_raw_fd(),
            onward.1.as_raw_fd(),
        );
    }
    drop((down.0, onward.0, onward.1, far));
    let private = Mutex::new(Private::new(mib, 1)?);
    let counter = Arc::new(AtomicU64::new(0));
    // One round, so that all are there.
    round(1, down.1.as_raw_fd(), near.as_raw_fd(), file.as_raw_fd());
    while board.grandchild.rounds.load(Ordering::SeqCst) == 0 {
        std::thread::yield_now();
    }
    let expected = [board.child.ids(), board.grandchild.ids()];
    let [pid, _, session, group] = own_ids();
    ensure!(
        expected[0][1..] == [pid, session, group],
        "child: {expected:?}"
    );
    let own = expected[1][0];
    ensure!(
        expected[1][1..] == [expected[0][0], own, own],
        "grandchild: {expected:?}"
    );
    let mut workers = Workers::new();
    let done = Arc::clone(&counter);
    workers.spawn("sender", move |beat| {
        let mut pace = Pace::new(rate);
        for n in 2.. {
            round(n, down.1.as_raw_fd(), near.as_raw_fd(), file.as_raw_fd());
            done.store(n, Ordering::SeqCst);
            beat.beat();
            pace.step();
        }
    })?;
    Ok(Started::new(Tree {
        memory,
        private,
        expected,
        ended,
        counter,
        workers,
    }))
}

fn pipe() -> Result<(OwnedFd, OwnedFd)> {
    let mut ends = [0; 2];
    // SAFETY: the array is valid for writing.
    match unsafe { libc::pipe(ends.as_mut_ptr()) } {
        0 => Ok((owned(ends[0]), owned(ends[1]))),
        _ => bail!(os_error("pipe")),
    }
}

fn pair() -> Result<(OwnedFd, OwnedFd)> {
    let mut ends = [0; 2];
    // SAFETY: the array is valid for writing.
    let made =
        unsafe { libc::socketpair(libc::AF_UNIX, libc::SOCK_SEQPACKET, 0, ends.as_mut_ptr()) };
    match made {
        0 => Ok((owned(ends[0]), owned(ends[1]))),
        _ => bail!(os_error("socketpair")),
    }
}

fn memory_file() -> Result<OwnedFd> {
    // SAFETY: a constant name.
    match unsafe { libc::memfd_create(c"rounds".as_ptr(), 0) } {
        -1 => bail!(os_error("memfd_create")),
        fd => Ok(owned(fd)),
    }
}

/// A child that has ended, and how waitid(2) tells it.
#[derive(Clone, Copy)]
struct Ended {
    child: i32,
    how: i32,
    status: i32,
}

impl Ended {
    /// Makes a child that ends like this.
    fn child(how: i32, status: i32) -> Result<Self> {
        match fork()? {
            // SAFETY: ends the child, by the signal if it is to; calls without pointers.
            0 => unsafe {
                if how == libc::CLD_KILLED {
                    libc::signal(status, libc::SIG_DFL);
                    libc::raise(status);
                }
                libc::_exit(status)
            },
            child => {
                let ended = Self { child, how, status };
                ended.check().map_err(anyhow::Error::msg)?;
                Ok(ended)
            }
        }
    }

    /// Looks at the child, which stays as it is. Blocks until it has ended.
    fn check(&self) -> Result<(), String> {
        let Self { child, how, status } = *self;
        // SAFETY: zeroed, a siginfo_t is valid, and the call fills it.
        let info = unsafe {
            let mut info: libc::siginfo_t = std::mem::zeroed();
            let options = libc::WEXITED | libc::WNOWAIT;
            if libc::waitid(libc::P_PID, child as libc::id_t, &mut info, options) != 0 {
                return Err(os_error("waitid of the child that has ended"));
            }
            (info.si_code, info.si_status(), info.si_pid())
        };
        match info == (how, status, child) {
            true => Ok(()),
            false => Err(format!(
                "child {child} ended otherwise than by {how}, {status}: {info:?}"
            )),
        }
    }
}

fn send(fd: RawFd, n: u64, what: &str) {
    let bytes = n.to_ne_bytes();
    // SAFETY: the buffer is valid for its length.
    if unsafe { libc::write(fd, bytes.as_ptr().cast(), bytes.len()) } != bytes.len() as isize {
        broken(os_error(what));
    }
}

fn receive(fd: RawFd, n: u64, what: &str) {
    let mut bytes = [0u8; 8];
    // SAFETY: the buffer is valid for its length.
    let got = unsafe { libc::read(fd, bytes.as_mut_ptr().cast(), bytes.len()) };
    if got < 0 {
        broken(os_error(what));
    }
    let number = u64::from_ne_bytes(bytes);
    if got != bytes.len() as isize || number != n {
        broken(format_args!("{what}: {got} bytes, {number} instead of {n}"));
    }
}

/// The child: passes each number on, in three ways.
fn middle(
    board: &Board,
    mut private: Option<Private>,
    from: RawFd,
    file: RawFd,
    to: RawFd,
    onward: RawFd,
) -> ! {
    for n in 1.. {
        receive(from, n, "the child's pipe");
        board.child.look(n);
        board.child.look_at(&mut private, &board.asked);
        send(onward, n, "write to the grandchild");
        send(file, n, "write to the memory file");
        send(to, n, "write to the socket");
    }
    unreachable!("numbers do not end")
}

/// The grandchild.
fn last(board: &Board, mut private: Option<Private>, from: RawFd) -> ! {
    for n in 1.. {
        receive(from, n, "the grandchild's pipe");
        board.grandchild.look(n);
        board.grandchild.look_at(&mut private, &board.asked);
    }
    unreachable!("numbers do not end")
}

/// The parent's part of one round.
fn round(n: u64, down: RawFd, back: RawFd, file: RawFd) {
    send(down, n, "write to the child");
    receive(back, n, "the socket");
    // The child has written into the file through a position that is this process's as well.
    let at = (n - 1) % ROUND * 8;
    let mut bytes = [0u8; 8];
    // SAFETY: calls with numbers, and a buffer that is valid for its length.
    let (position, got) = unsafe {
        let position = libc::lseek(file, 0, libc::SEEK_CUR);
        let got = libc::pread(file, bytes.as_mut_ptr().cast(), 8, at as i64);
        if n.is_multiple_of(ROUND) {
            libc::lseek(file, 0, libc::SEEK_SET);
        }
        (position, got)
    };
    if (position as u64, got, u64::from_ne_bytes(bytes)) != (at + 8, 8, n) {
        broken(format_args!(
            "the memory file: position {position}, {got} bytes, {} instead of {n}",
            u64::from_ne_bytes(bytes)
        ));
    }
}

impl Tree {
    /// All of them look at theirs.
    fn look_at_private_memory(&self) -> Result<(), String> {
        let mut private = self.private.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(private) = private.as_mut() else {
            return Ok(());
        };
        let board = self.memory.board;
        let asked = board.asked.fetch_add(1, Ordering::SeqCst) + 1;
        private.check()?;
        let has_looked = |one: &Seen| one.looked.load(Ordering::SeqCst) == asked;
        for _ in 0..PATIENCE {
            if has_looked(&board.child) && has_looked(&board.grandchild) {
                return Ok(());
            }
            nap(1);
        }
        Err("the others do not look at their private memory".into())
    }
}

impl State for Tree {
    fn counter(&self) -> u64 {
        self.counter.load(Ordering::SeqCst)
    }

    fn status(&self) -> Result<(), String> {
        self.workers.alive()
    }

    fn check(&self) -> Result<(), String> {
        self.workers.working()?;
        let board = self.memory.board;
        let now = [board.child.ids(), board.grandchild.ids()];
        if now != self.expected {
            return Err(format!("ids were {:?} and are {now:?}", self.expected));
        }
        self.ended.iter().try_for_each(Ended::check)?;
        self.look_at_private_memory()?;
        self.memory.table.verify_all()
    }

    fn details(&self) -> Value {
        json!({
            "workers": self.workers.report(),
            "poke": self.memory.table.poke(),
            "child": self.expected[0][0],
            "grandchild": self.expected[1][0],
            "ended": self.ended.map(|one| one.child),
        })
    }
}
