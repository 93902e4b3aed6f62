//! Lists of system calls that a stub runs.

use super::graft::by_next_id;
use super::{Stub, StubThread, TRACED};
use crate::sys::arch::Registers;
use crate::sys::ptrace::{self, Event, Tid};
use crate::sys::{CloneArgs, Remote, Result, SysError, memory};
use std::io;
use std::time::{Duration, Instant};

/// How long an id that is taken is waited for, and from one look to the next.
const PATIENCE: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(2);

/// A system call to be run by the stub.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StubCall {
    /// The call, by the name of its manual page.
    pub name: &'static str,
    /// What it is called on, for the error.
    pub target: String,
    /// Its number.
    pub nr: i64,
    /// Its arguments.
    pub args: [u64; 6],
    /// The list goes on when it fails; its result says why.
    pub may_fail: bool,
}

impl StubCall {
    /// A call that must succeed.
    pub fn new(name: &'static str, target: impl Into<String>, nr: i64, args: [u64; 6]) -> Self {
        Self {
            name,
            target: target.into(),
            nr,
            args,
            may_fail: false,
        }
    }

    /// The same call, allowed to fail.
    pub fn or_not(self) -> Self {
        Self {
            may_fail: true,
            ..self
        }
    }
}

impl Stub {
    /// Copies bytes to where calls can refer to them. They stay until [`Stub::forget`].
    pub fn put(&mut self, bytes: &[u8]) -> Result<u64> {
        self.put_placed(bytes.len() as u64, |_| bytes.to_vec())
    }

    /// The same for arguments of clone3(2), which tell where they are themselves.
    pub(super) fn put_clone(&mut self, args: &CloneArgs) -> Result<u64> {
        self.put_placed(CloneArgs::LEN, |at| args.bytes_at(at))
    }

    fn put_placed(&mut self, len: u64, bytes: impl FnOnce(u64) -> Vec<u8>) -> Result<u64> {
        let at = self.area.reserve(len).ok_or_else(|| {
            SysError::new(
                "write",
                format_args!("process {}", self.pid()),
                io::Error::new(io::ErrorKind::OutOfMemory, "too many arguments at once"),
            )
        })?;
        memory::write_bytes(self.pid(), at, &bytes(at))?;
        Ok(at)
    }

    /// Room for what calls return.
    pub fn room(&mut self, len: usize) -> Result<u64> {
        self.put(&vec![0; len])
    }

    /// Gives up everything that [`Stub::put`] has copied.
    pub fn forget(&mut self) {
        self.area.forget();
    }

    /// Runs calls by the first thread, one after the other, and returns their results.
    ///
    /// # Errors
    /// The first call that fails and may not.
    pub fn run(&mut self, calls: &[StubCall]) -> Result<Vec<i64>> {
        self.run_by(0, calls)
    }

    /// The same by another thread, by its place in [`Stub::threads`].
    pub fn run_by(&mut self, thread: usize, calls: &[StubCall]) -> Result<Vec<i64>> {
        let mut results = Vec::with_capacity(calls.len());
        while results.len() < calls.len() {
            let rest = &calls[results.len()..];
            let some = &rest[..rest.len().min(self.area.most_calls())];
            let done = self.run_some(thread, some)?;
            let last = done.last().copied().unwrap_or(0);
            results.extend(done);
            let call = &calls[results.len() - 1];
            if is_error(last) && !call.may_fail {
                return Err(SysError::new(
                    call.name,
                    format_args!("{} (new process {})", call.target, self.pid()),
                    io::Error::from_raw_os_error(-last as i32),
                ));
            }
        }
        Ok(results)
    }

    /// Results up to the first failure.
    fn run_some(&mut self, thread: usize, calls: &[StubCall]) -> Result<Vec<i64>> {
        let StubThread { tid, own } = self.threads[thread];
        let tgid = self.threads[0].own;
        let list: Vec<u8> = calls
            .iter()
            .flat_map(|call| {
                let [a, b, c, d, e, f] = call.args;
                [call.nr as u64, a, b, c, d, e, f, 0]
            })
            .flat_map(u64::to_le_bytes)
            .collect();
        let at = self.area.calls();
        memory::write_bytes(self.pid(), at, &list)?;
        let regs = Registers {
            rsp: 0,
            ..ptrace::registers(tid)?
        };
        let regs = regs.with_batch(self.area.code(), at, calls.len() as u64, (tgid, own));
        ptrace::set_registers(tid, &regs)?;
        self.until_done(tid)?;
        let position = ptrace::registers(tid)?.batch_position();
        let done = (position.wrapping_sub(at) / 64).min(calls.len() as u64) as usize;
        let mut bytes = vec![0; done * 64];
        memory::read_bytes(self.pid(), at, &mut bytes)?;
        Ok(bytes
            .chunks_exact(64)
            .map(|slot| i64::from_le_bytes(slot[56..].try_into().expect("eight bytes")))
            .collect())
    }

    /// Lets a thread run its list, and takes in the threads that it makes.
    fn until_done(&mut self, tid: Tid) -> Result<()> {
        loop {
            ptrace::cont(tid, 0)?;
            match ptrace::wait(tid)? {
                Event::Signal(libc::SIGSTOP) => return Ok(()),
                Event::Clone => {
                    let child = ptrace::event_message(tid)? as Tid;
                    // Its own id is filled in by the caller, who has asked for it.
                    self.threads.push(StubThread {
                        tid: child,
                        own: child,
                    });
                    ptrace::wait_for_start(child)?;
                }
                Event::Exited(status) => {
                    return Err(self.lost(format_args!("wait status {status:#x}")));
                }
                Event::Signal(signal) => {
                    let at = ptrace::registers(tid).map_or(0, |regs| regs.ip());
                    return Err(self.lost(format_args!("signal {signal} at {at:#x}")));
                }
                Event::Stopped | Event::GroupStopped | Event::Syscall => {}
            }
        }
    }

    fn lost(&self, how: std::fmt::Arguments<'_>) -> SysError {
        SysError::new(
            "run system calls",
            format_args!("new process {}", self.pid()),
            io::Error::other(format!("it ended: {how}")),
        )
    }

    /// Makes threads by clone3(2) with these flags; `ids` are theirs in their own PID namespace, `None`
    /// for whichever the kernel gives. An id that is taken is waited for: most processes are short.
    ///
    /// # Errors
    /// EEXIST when one stays taken.
    pub fn make_threads(&mut self, flags: u64, ids: &[Option<i32>]) -> Result<()> {
        self.make_threads_within(flags, ids, PATIENCE)
    }

    /// The same with another patience.
    pub(super) fn make_threads_within(
        &mut self,
        flags: u64,
        ids: &[Option<i32>],
        patience: Duration,
    ) -> Result<()> {
        for some in ids.chunks(self.area.most_calls().min(256)) {
            let mut calls = Vec::with_capacity(some.len());
            for id in some {
                let args = CloneArgs {
                    flags,
                    exit_signal: 0,
                    id: *id,
                };
                let place = self.put_clone(&args)?;
                let call = [place, CloneArgs::SIZE, 0, 0, 0, 0];
                calls.push(StubCall::new("clone3", args.what(), libc::SYS_clone3, call));
            }
            let first = self.threads.len();
            let until = Instant::now() + patience;
            while self.threads.len() - first < calls.len() {
                let begin = self.threads.len();
                let done = self.run(&calls[begin - first..]);
                // Those that were made have the ids that they were to have.
                let made = self.threads[begin..].iter_mut().zip(&some[begin - first..]);
                for (n, (thread, id)) in made.enumerate() {
                    let told = || done.as_ref().ok().and_then(|results| results.get(n));
                    thread.own = id
                        .or_else(|| told().map(|own| *own as i32))
                        .unwrap_or(thread.tid);
                }
                match done {
                    Ok(_) => {}
                    Err(e) if e.is_denied() => match some[self.threads.len() - first] {
                        // ksnap may have a say in it where the process has none.
                        Some(id) => self.make_next_thread(flags, id)?,
                        None => return Err(e),
                    },
                    Err(e) if e.errno() == Some(libc::EEXIST) && Instant::now() < until => {
                        std::thread::sleep(PAUSE);
                    }
                    Err(e) => return Err(e),
                }
            }
            self.forget();
        }
        Ok(())
    }

    /// Makes a thread with an id that the process itself may not choose.
    fn make_next_thread(&mut self, flags: u64, id: i32) -> Result<()> {
        let args = CloneArgs {
            flags,
            exit_signal: 0,
            id: None,
        };
        let place = self.put_clone(&args)?;
        let (maker, insn) = (self.pid(), self.insn());
        let remote = |tid| Remote::with_options(tid, insn, TRACED);
        let make = || remote(maker)?.clone_from(place, &args);
        let tid = by_next_id(id, make, |wrong| remote(wrong)?.exit())?;
        self.threads.push(StubThread { tid, own: id });
        Ok(())
    }
}

fn is_error(result: i64) -> bool {
    (-4095..0).contains(&result)
}
