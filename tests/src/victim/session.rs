//! `session [--rate 200]`: who holds the master of a terminal, the leader of a session that has it as its controlling
//! terminal, and a worker whose group is in the foreground there.
//!
//! Numbers go from the holder through the terminal to the worker and back, which only a reader in the foreground
//! gets; now and then Ctrl-C, of which the worker alone may hear. Leader and worker look at their session, its terminal
//! and the foreground all the time, and count signals that nobody has asked for, such as that of a terminal that hangs
//! up. What is on its way in the terminal may be lost: it is said again then.

use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

use anyhow::{Result, bail, ensure};
use serde_json::{Value, json};

use super::args::Args;
use super::fault::{broken, os_error};
use super::mem::Mapping;
use super::pace::{Pace, nap};
use super::page::PAGE;
use super::protocol::{Started, State};
use super::table::Table;
use super::tree::{fork, owned};
use super::workers::Workers;

/// Rounds between one Ctrl-C and the next.
const INTERRUPT: u64 = 8;
/// What Ctrl-C is on a terminal.
const CTRL_C: u8 = 3;
/// Milliseconds after which something is said again. No invariant.
const AGAIN: i32 = 200;
/// Signals that nobody asks for here.
const STRAYS: [i32; 6] = [
    libc::SIGHUP,
    libc::SIGCONT,
    libc::SIGTSTP,
    libc::SIGTTIN,
    libc::SIGTTOU,
    libc::SIGWINCH,
];
/// Private pages with known content.
const PAGES: usize = 16;

/// What one process sees, in shared memory.
#[repr(C)]
struct Seen {
    looks: AtomicU64,
    /// Process, parent, session, group, session of the terminal, group in its foreground.
    view: [AtomicU64; 6],
    /// Bit n for signal n that nobody asked for.
    strays: AtomicU64,
    interrupts: AtomicU64,
}

impl Seen {
    fn look(&self, side: RawFd) {
        // SAFETY: calls without pointers.
        let view = unsafe {
            [
                libc::getpid(),
                libc::getppid(),
                libc::getsid(0),
                libc::getpgid(0),
                libc::tcgetsid(side),
                libc::tcgetpgrp(side),
            ]
        };
        for (place, now) in self.view.iter().zip(view) {
            place.store(now as u64, Ordering::SeqCst);
        }
        // SAFETY: a constant path; the descriptor is closed at once.
        unsafe {
            match libc::open(c"/dev/tty".as_ptr(), libc::O_RDWR | libc::O_NOCTTY) {
                -1 => broken(os_error("open of /dev/tty")),
                fd => libc::close(fd),
            };
        }
        self.looks.fetch_add(1, Ordering::SeqCst);
    }

    fn view(&self) -> [i32; 6] {
        std::array::from_fn(|n| self.view[n].load(Ordering::SeqCst) as i32)
    }

    /// Has the handlers of this process count here.
    fn watch_signals(&'static self, interrupts: bool) {
        OWN.store(std::ptr::from_ref(self).cast_mut(), Ordering::SeqCst);
        let interrupt = match interrupts {
            true => count_interrupt as extern "C" fn(i32),
            false => count_stray,
        };
        let handlers = STRAYS.map(|signal| (signal, count_stray as extern "C" fn(i32)));
        for (signal, handler) in handlers.into_iter().chain([(libc::SIGINT, interrupt)]) {
            // SAFETY: zeroed, a sigaction is valid; the handlers touch atomics alone.
            unsafe {
                let mut action: libc::sigaction = std::mem::zeroed();
                action.sa_sigaction = handler as usize;
                action.sa_flags = libc::SA_RESTART;
                if libc::sigaction(signal, &action, std::ptr::null_mut()) != 0 {
                    broken(os_error("sigaction"));
                }
            }
        }
    }
}

/// Where the handlers of this process count.
static OWN: AtomicPtr<Seen> = AtomicPtr::new(std::ptr::null_mut());

extern "C" fn count_stray(signal: i32) {
    // SAFETY: set before the handler was, to memory that lives as long as the process.
    let own = unsafe { &*OWN.load(Ordering::SeqCst) };
    own.strays.fetch_or(1 << signal, Ordering::SeqCst);
}

extern "C" fn count_interrupt(_: i32) {
    // SAFETY: as above.
    let own = unsafe { &*OWN.load(Ordering::SeqCst) };
    own.interrupts.fetch_add(1, Ordering::SeqCst);
}

#[repr(C)]
struct Board {
    /// The worker is in the foreground.
    begun: AtomicU64,
    leader: Seen,
    worker: Seen,
}

struct Session {
    board: &'static Board,
    expected: [[i32; 6]; 2],
    counter: Arc<AtomicU64>,
    table: Table,
    workers: Workers,
    _memory: [Mapping; 2],
}

// SAFETY: the table is only read here, and its memory lives as long as the victim.
unsafe impl Sync for Session {}

/// Starts the victim.
pub fn start(args: &Args) -> Result<Started> {
    let rate: u64 = args.value("rate", 200)?;
    let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
    let shared = Mapping::with(PAGE, libc::PROT_READ | libc::PROT_WRITE, flags, -1)?;
    // SAFETY: a page of zeroes, large and aligned enough; unmapped only when the process ends.
    let board: &'static Board = unsafe { &*shared.at().cast::<Board>() };
    let private = Mapping::private(PAGES * PAGE)?;
    // SAFETY: the mapping has that many pages, and lives as long as the victim.
    let table = unsafe { Table::new(private.at(), PAGES, 0x7365) };
    let (master, side) = terminal()?;
    if fork()? == 0 {
        drop(master);
        lead(board, side.as_raw_fd());
    }
    drop(side);
    while board.leader.looks.load(Ordering::SeqCst) == 0 {
        nap(1);
    }
    let counter = Arc::new(AtomicU64::new(0));
    let mut holder = Holder {
        board,
        master,
        interrupts: 0,
    };
    holder.round(1);
    let expected = [board.leader.view(), board.worker.view()];
    let (leader, worker) = (expected[0][0], expected[1][0]);
    let own = std::process::id() as i32;
    ensure!(
        expected
            == [
                [leader, own, leader, leader, leader, worker],
                [worker, leader, leader, worker, leader, worker],
            ],
        "{expected:?}"
    );
    let mut workers = Workers::new();
    let done = Arc::clone(&counter);
    workers.spawn("holder", move |beat| {
        let mut pace = Pace::new(rate);
        for n in 2.. {
            holder.round(n);
            done.store(n, Ordering::SeqCst);
            beat.beat();
            pace.step();
        }
    })?;
    Ok(Started::new(Session {
        board,
        expected,
        counter,
        table,
        workers,
        _memory: [shared, private],
    }))
}

/// A new terminal that does not repeat what is typed: its master, and its other side.
fn terminal() -> Result<(OwnedFd, OwnedFd)> {
    let off = 0;
    // SAFETY: the path is constant, the request for unlocking reads one live int, the other takes flags in place of a
    // pointer, and the settings are a live structure that tcgetattr fills.
    unsafe {
        let master = libc::posix_openpt(libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC);
        if master < 0 || libc::ioctl(master, libc::TIOCSPTLCK, &off) != 0 {
            bail!(os_error("posix_openpt"));
        }
        let master = owned(master);
        let how = libc::O_RDWR | libc::O_NOCTTY;
        let side = libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, how);
        let mut settings: libc::termios = std::mem::zeroed();
        if side < 0 || libc::tcgetattr(side, &mut settings) != 0 {
            bail!(os_error("ioctl(TIOCGPTPEER)"));
        }
        settings.c_lflag &= !libc::ECHO;
        libc::tcsetattr(side, libc::TCSANOW, &settings);
        Ok((master, owned(side)))
    }
}

/// The leader of the session.
fn lead(board: &'static Board, side: RawFd) -> ! {
    board.leader.watch_signals(false);
    // SAFETY: calls without pointers.
    let worker = unsafe {
        if libc::setsid() < 0 || libc::ioctl(side, libc::TIOCSCTTY, 0) != 0 {
            broken(os_error("ioctl(TIOCSCTTY)"));
        }
        let worker = fork().unwrap_or_else(|error| broken(error));
        if worker == 0 {
            work(board, side);
        }
        if libc::setpgid(worker, worker) != 0 || libc::tcsetpgrp(side, worker) != 0 {
            broken(os_error("tcsetpgrp"));
        }
        worker
    };
    board.begun.store(worker as u64, Ordering::SeqCst);
    loop {
        board.leader.look(side);
        nap(2);
    }
}

/// The worker in the foreground: says each number back.
fn work(board: &'static Board, side: RawFd) -> ! {
    board.worker.watch_signals(true);
    while board.begun.load(Ordering::SeqCst) == 0 {
        nap(1);
    }
    let mut last = 0;
    loop {
        let mut line = [0u8; 64];
        // SAFETY: the buffer is valid for its length.
        let got = unsafe { libc::read(side, line.as_mut_ptr().cast(), line.len()) };
        if got < 1 {
            broken(os_error("the worker's terminal"));
        }
        let line = &line[..got as usize];
        let number = std::str::from_utf8(line)
            .ok()
            .and_then(|text| text.trim().parse().ok());
        match number {
            // The second: what was answered did not arrive.
            Some(n) if n == last + 1 || n == last => last = n,
            _ => broken(format_args!("the worker read {line:?} behind {last}")),
        }
        board.worker.look(side);
        say(side, format!("{last}\n").as_bytes());
    }
}

fn say(fd: RawFd, bytes: &[u8]) {
    // SAFETY: the buffer is valid for its length.
    if unsafe { libc::write(fd, bytes.as_ptr().cast(), bytes.len()) } != bytes.len() as isize {
        broken(os_error("write to the terminal"));
    }
}

/// The parent's part.
struct Holder {
    board: &'static Board,
    master: OwnedFd,
    /// How often Ctrl-C was said.
    interrupts: u64,
}

impl Holder {
    fn round(&mut self, n: u64) {
        loop {
            say(self.master.as_raw_fd(), format!("{n}\n").as_bytes());
            if self.is_answered(n) {
                break;
            }
        }
        if n.is_multiple_of(INTERRUPT) {
            self.interrupt();
        }
    }

    /// Whether the worker says this number; it may have said the one before twice.
    fn is_answered(&self, n: u64) -> bool {
        let fd = self.master.as_raw_fd();
        let mut said = Vec::new();
        loop {
            let mut ready = libc::pollfd {
                fd,
                events: libc::POLLIN,
                revents: 0,
            };
            let mut some = [0u8; 64];
            // SAFETY: a live structure, and a buffer that is valid for its length.
            let got = unsafe {
                match libc::poll(&mut ready, 1, AGAIN) {
                    1 => libc::read(fd, some.as_mut_ptr().cast(), some.len()),
                    _ => return false,
                }
            };
            if got < 1 {
                broken(os_error("the terminal's master"));
            }
            said.extend_from_slice(&some[..got as usize]);
            while let Some(end) = said.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = said.drain(..=end).collect();
                let text = String::from_utf8_lossy(&line);
                match text.trim().parse::<u64>() {
                    Ok(number) if number == n => return true,
                    Ok(number) if number < n => {}
                    _ => broken(format_args!("the terminal says {text:?} in round {n}")),
                }
            }
        }
    }

    /// Ctrl-C, which the worker must hear of.
    fn interrupt(&mut self) {
        let heard = || self.board.worker.interrupts.load(Ordering::SeqCst);
        let before = heard();
        'said: loop {
            say(self.master.as_raw_fd(), &[CTRL_C]);
            self.interrupts += 1;
            for _ in 0..AGAIN {
                if heard() > before {
                    break 'said;
                }
                nap(1);
            }
        }
        if heard() > self.interrupts {
            broken(format_args!(
                "the worker heard {} times of Ctrl-C, said {} times",
                heard(),
                self.interrupts
            ));
        }
    }
}

impl State for Session {
    fn counter(&self) -> u64 {
        self.counter.load(Ordering::SeqCst)
    }

    fn status(&self) -> Result<(), String> {
        self.workers.alive()
    }

    fn check(&self) -> Result<(), String> {
        let looks = || self.board.leader.looks.load(Ordering::SeqCst);
        let before = looks();
        self.workers.working()?;
        // One that began since.
        while looks() < before + 2 {
            nap(1);
        }
        let now = [self.board.leader.view(), self.board.worker.view()];
        if now != self.expected {
            return Err(format!("they saw {:?} and see {now:?}", self.expected));
        }
        for (who, seen) in [
            ("leader", &self.board.leader),
            ("worker", &self.board.worker),
        ] {
            let strays = seen.strays.load(Ordering::SeqCst);
            if strays != 0 {
                return Err(format!(
                    "the {who} got signals {strays:#x} that nobody sent"
                ));
            }
        }
        self.table.verify_all()
    }

    fn details(&self) -> Value {
        json!({
            "workers": self.workers.report(),
            "poke": self.table.poke(),
            "leader": self.expected[0][0],
            "worker": self.expected[1][0],
        })
    }
}
