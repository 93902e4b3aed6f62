//! `session [--rate 200] [--rollbacks]`: who holds the master of a terminal, the leader of a session that has it as its controlling
//! terminal, and a worker whose group is in the foreground there.
//!
//! Numbers go from the holder through the terminal to the worker and back, which only a reader in the foreground
//! gets; now and then Ctrl-C, of which the worker alone may hear. Leader and worker look at their session, its terminal
//! and the foreground all the time, and count signals that nobody has asked for, such as that of a terminal that hangs
//! up. What is on its way in the terminal may be lost: it is said again then.

mod seen;

use std::io::ErrorKind;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Result, bail, ensure};
use serde_json::{Value, json};

use self::seen::Seen;
use super::args::Args;
use super::family::{Memory, fork, owned};
use super::fault::{broken, os_error};
use super::pace::{Pace, nap};
use super::protocol::{Started, State};
use super::workers::{PATIENCE, Workers};

/// Rounds between one Ctrl-C and the next.
const INTERRUPT: u64 = 8;
/// What Ctrl-C is on a terminal.
const CTRL_C: u8 = 3;
/// Milliseconds after which something is said again. No invariant.
const AGAIN: i32 = 200;
#[repr(C)]
struct Board {
    /// The worker is in the foreground.
    begun: AtomicU64,
    /// How often the leader has looked.
    looks: AtomicU64,
    leader: Seen,
    worker: Seen,
}

impl Board {
    /// Waits until the leader has looked so often.
    fn await_looks(&self, leader: i32, count: u64) -> Result<(), String> {
        let looks = || self.looks.load(Ordering::SeqCst);
        for _ in 0..PATIENCE {
            if looks() >= count {
                return Ok(());
            }
            nap(1);
        }
        Err(format!(
            "the leader (process {leader}) is stuck: it has looked {} times, not {count}",
            looks()
        ))
    }
}

struct Session {
    memory: Memory<Board>,
    expected: [[i32; 6]; 2],
    counter: Arc<AtomicU64>,
    workers: Workers,
}

/// Starts the victim.
pub fn start(args: &Args) -> Result<Started> {
    let rate: u64 = args.value("rate", 200)?;
    let rollbacks = args.rollbacks()?;
    // SAFETY: a board is atomics alone, and the victim has it until the process ends.
    let memory = unsafe { Memory::<Board>::new(0x7365) }?;
    let board = memory.board;
    let (master, side) = terminal()?;
    let leader = fork()?;
    if leader == 0 {
        drop(master);
        lead(board, side.as_raw_fd(), rollbacks);
    }
    drop(side);
    board.await_looks(leader, 1).map_err(anyhow::Error::msg)?;
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
        memory,
        expected,
        counter,
        workers,
    }))
}

/// A new terminal that does not repeat what is typed: its master, and its other side.
fn terminal() -> Result<(OwnedFd, OwnedFd)> {
    let off = 0;
    // SAFETY: the path is constant, the request for unlocking reads one live int, the other takes flags in place of a
    // pointer, and the settings are a live structure that tcgetattr fills.
    unsafe {
        // Ctrl-C throws away what waits to be read, also between poll(2) and read(2), which must not wait for it then.
        let how = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC | libc::O_NONBLOCK;
        let master = libc::posix_openpt(how);
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
fn lead(board: &'static Board, side: RawFd, rollbacks: bool) -> ! {
    board.leader.watch_signals(false, rollbacks);
    // SAFETY: calls without pointers.
    let worker = unsafe {
        if libc::setsid() < 0 || libc::ioctl(side, libc::TIOCSCTTY, 0) != 0 {
            broken(os_error("ioctl(TIOCSCTTY)"));
        }
        let worker = fork().unwrap_or_else(|error| broken(error));
        if worker == 0 {
            work(board, side, rollbacks);
        }
        if libc::setpgid(worker, worker) != 0 || libc::tcsetpgrp(side, worker) != 0 {
            broken(os_error("tcsetpgrp"));
        }
        worker
    };
    board.begun.store(worker as u64, Ordering::SeqCst);
    loop {
        board.leader.look(side);
        board.looks.fetch_add(1, Ordering::SeqCst);
        nap(2);
    }
}

/// The worker in the foreground: says each number back.
fn work(board: &'static Board, side: RawFd, rollbacks: bool) -> ! {
    board.worker.watch_signals(true, rollbacks);
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
            if got < 0 && std::io::Error::last_os_error().kind() == ErrorKind::WouldBlock {
                continue;
            }
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
                    // The end of a line whose number came when somebody still waited for that one.
                    _ if text.trim().is_empty() => {}
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
        let board = self.memory.board;
        let before = board.looks.load(Ordering::SeqCst);
        self.workers.working()?;
        // One that began since.
        board.await_looks(self.expected[0][0], before + 2)?;
        let now = [board.leader.view(), board.worker.view()];
        if now != self.expected {
            return Err(format!("they saw {:?} and see {now:?}", self.expected));
        }
        for (who, seen) in [("leader", &board.leader), ("worker", &board.worker)] {
            let strays = seen.strays.load(Ordering::SeqCst);
            if strays != 0 {
                return Err(format!(
                    "the {who} got signals {strays:#x} that nobody sent"
                ));
            }
        }
        self.memory.table.verify_all()
    }

    fn details(&self) -> Value {
        json!({
            "workers": self.workers.report(),
            "poke": self.memory.table.poke(),
            "leader": self.expected[0][0],
            "worker": self.expected[1][0],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_end_without_its_number_is_passed_over() {
        let (master, side) = terminal().unwrap();
        // SAFETY: atomics alone, for which zeroes are valid.
        let board: Board = unsafe { std::mem::zeroed() };
        let holder = Holder {
            board: Box::leak(Box::new(board)),
            master,
            interrupts: 0,
        };
        say(side.as_raw_fd(), b"7");
        assert!(!holder.is_answered(7), "its line has no end");
        say(side.as_raw_fd(), b"\n7\n");
        assert!(holder.is_answered(7));
    }
}
