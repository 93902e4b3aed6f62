//! Carrying the steps out.

use super::plan::{Action, Arg, StatePlan, Step};
use super::timers::{self, MOST_TIMERS};
use crate::model::{Limit, PAGE_SIZE, PosixTimer, page_up};
use crate::sys::ptrace::{self, Tid};
use crate::sys::{self, PR_TIMER_CREATE_RESTORE_IDS, Remote, SysError, proc};

/// Who carries steps out.
pub trait Runner {
    /// Has thread `tid` run a system call. `out` is filled with what is then in the memory of the last
    /// argument that has any.
    ///
    /// # Errors
    /// That of the call.
    fn call(&mut self, tid: Tid, nr: i64, args: &[Arg], out: Option<&mut [u8]>)
    -> sys::Result<u64>;

    /// Does something to the process or one of its threads from outside.
    ///
    /// # Errors
    /// That of the call made for it.
    fn about(&mut self, tid: Tid, action: &Action) -> sys::Result<()>;

    /// The resource limits that the process has now.
    ///
    /// # Errors
    /// That of reading them.
    fn limits(&mut self) -> sys::Result<Vec<Limit>>;
}

/// Carries a plan out. What could not be put back, and need not be, is told, a sentence each.
///
/// # Errors
/// The first essential step that failed. The process is then neither what it was nor what it shall be.
pub fn apply(plan: &StatePlan, runner: &mut dyn Runner) -> sys::Result<Vec<String>> {
    let mut notes = Vec::new();
    for step in &plan.steps {
        match carry_out(step, runner) {
            Ok(()) => {}
            Err(e) if step.essential => {
                return Err(SysError::new(
                    e.call,
                    format_args!("{} ({})", e.target, step.what),
                    e.source,
                ));
            }
            Err(e) => {
                let Step { tid, what, .. } = step;
                notes.push(format!("thread {tid}: {what} stays different: {e}"));
            }
        }
    }
    Ok(notes)
}

fn carry_out(step: &Step, runner: &mut dyn Runner) -> sys::Result<()> {
    let tid = step.tid;
    match &step.action {
        Action::Call(nr, args) => runner.call(tid, *nr, args, None).map(drop),
        Action::MakeTimer(timer) => make_timer(tid, timer, runner),
        Action::Limit(number, to) => limit(tid, *number, *to, runner),
        Action::SoftLimit(number, soft) => {
            let Some(Limit { hard, .. }) = runner.limits()?.get(*number).copied() else {
                return Ok(());
            };
            let to = Limit {
                soft: hard.min(*soft),
                hard,
            };
            limit(tid, *number, to, runner)
        }
        _ => runner.about(tid, &step.action),
    }
}

fn limit(tid: Tid, number: usize, to: Limit, runner: &mut dyn Runner) -> sys::Result<()> {
    match runner.about(tid, &Action::Limit(number, to)) {
        // Of another user's process; it may do so itself.
        Err(e) if e.is_denied() => limit_itself(tid, number, to, runner),
        done => done,
    }
}

fn limit_itself(tid: Tid, number: usize, to: Limit, runner: &mut dyn Runner) -> sys::Result<()> {
    let bytes = [to.soft, to.hard]
        .iter()
        .flat_map(|w| w.to_ne_bytes())
        .collect();
    let args = [
        Arg::Value(0),
        Arg::Value(number as u64),
        Arg::Bytes(bytes),
        Arg::Value(0),
    ];
    runner.call(tid, libc::SYS_prlimit64, &args, None).map(drop)
}

/// Makes a timer with the id that it had. Newer kernels take it as an argument; others count up, and
/// those on the way are deleted again.
fn make_timer(tid: Tid, timer: &PosixTimer, runner: &mut dyn Runner) -> sys::Result<()> {
    let restore_ids = |on: u64| {
        let args = [PR_TIMER_CREATE_RESTORE_IDS, on, 0, 0, 0].map(Arg::Value);
        (libc::SYS_prctl, args)
    };
    let (nr, on) = restore_ids(1);
    let chosen = runner.call(tid, nr, &on, None).is_ok();
    let made = (0..MOST_TIMERS).find_map(|_| {
        match create(tid, timer, runner) {
            Ok(id) if id == timer.id => Some(Ok(())),
            Ok(id) => {
                let args = [Arg::Value(id as u64)];
                let gone = runner.call(tid, libc::SYS_timer_delete, &args, None);
                // Counted past it.
                match gone {
                    Ok(_) if id < timer.id && !chosen => None,
                    Ok(_) => Some(Err(taken(tid, timer))),
                    Err(e) => Some(Err(e)),
                }
            }
            Err(e) => Some(Err(e)),
        }
    });
    if chosen {
        let (nr, off) = restore_ids(0);
        runner.call(tid, nr, &off, None)?;
    }
    made.unwrap_or_else(|| Err(taken(tid, timer)))?;
    let [id, flags, value] = timers::settings(timer);
    let args = [id, flags, value, Arg::Value(0)];
    runner
        .call(tid, libc::SYS_timer_settime, &args, None)
        .map(drop)
}

fn create(tid: Tid, timer: &PosixTimer, runner: &mut dyn Runner) -> sys::Result<i32> {
    let args = [
        Arg::Value(timer.clock as u64),
        Arg::Bytes(timers::event(timer)),
        Arg::Bytes(timer.id.to_ne_bytes().to_vec()),
    ];
    let mut id = [0; 4];
    runner.call(tid, libc::SYS_timer_create, &args, Some(&mut id))?;
    Ok(i32::from_ne_bytes(id))
}

fn taken(tid: Tid, timer: &PosixTimer) -> SysError {
    SysError::new(
        "timer_create",
        format_args!("thread {tid}, timer {}", timer.id),
        std::io::Error::new(
            std::io::ErrorKind::AlreadyExists,
            "the kernel does not give it its id again",
        ),
    )
}

/// A process whose threads are all stopped, and that stays so if its tracer dies.
pub struct Held {
    pid: i32,
    insn: u64,
    /// How its threads are traced.
    traced: ptrace::Options,
    /// The thread that ran the last call.
    remote: Option<(Tid, Remote)>,
    /// Memory borrowed from it.
    room: Option<Room>,
}

/// Memory borrowed from a process.
struct Room {
    at: u64,
    len: u64,
    /// What was there, of memory that was not mapped for this.
    held: Option<Vec<u8>>,
}

/// What a signal handler or an interrupted function may still need below a stack pointer (System V ABI, 3.2.2), and
/// more.
const BELOW_STACK: u64 = 1024;

impl Held {
    /// Takes a process held by this thread. `insn` is the address of a system call instruction in its code.
    pub fn new(pid: i32, insn: u64) -> Self {
        Self::traced(pid, insn, ptrace::Options::default())
    }

    /// The same for a process that is traced with these options, and killed if its tracer dies.
    pub fn traced(pid: i32, insn: u64, traced: ptrace::Options) -> Self {
        Self {
            pid,
            insn,
            traced,
            remote: None,
            room: None,
        }
    }

    fn thread(&mut self, tid: Tid) -> sys::Result<&mut Remote> {
        if self.remote.as_ref().is_none_or(|(now, _)| *now != tid) {
            // The one before gets its registers back first.
            self.remote = None;
            let mut remote = Remote::with_options(tid, self.insn, self.traced)?;
            // The kernel refuses to change an alternate stack to a thread that is on it.
            remote.leave_stack();
            self.remote = Some((tid, remote));
        }
        let (_, remote) = self.remote.as_mut().expect("just made");
        Ok(remote)
    }

    /// Address of borrowed memory of at least `len` bytes.
    fn room(&mut self, tid: Tid, len: u64) -> sys::Result<u64> {
        if let Some(room) = &self.room {
            if room.len >= len {
                return Ok(room.at);
            }
            self.give_back(tid)?;
        }
        let pages = page_up(len.max(PAGE_SIZE));
        let room = match self.thread(tid)?.map_room(pages) {
            Ok(at) => Room {
                at,
                len: pages,
                held: None,
            },
            // Its address space is as large as its limit allows, which is what is to be changed.
            Err(e) if e.errno() == Some(libc::ENOMEM) => self.below_stack(tid, len).ok_or(e)?,
            Err(e) => return Err(e),
        };
        let at = room.at;
        self.room = Some(room);
        Ok(at)
    }

    /// Memory that the thread's functions do not use, while it is stopped.
    fn below_stack(&mut self, tid: Tid, len: u64) -> Option<Room> {
        let sp = self.thread(tid).ok()?.saved_stack();
        let at = (sp.checked_sub(BELOW_STACK + len)?) & !15;
        let mut held = vec![0; len as usize];
        sys::read_bytes(self.pid, at, &mut held).ok()?;
        sys::write_bytes(self.pid, at, &held).ok()?;
        Some(Room {
            at,
            len,
            held: Some(held),
        })
    }

    fn give_back(&mut self, tid: Tid) -> sys::Result<()> {
        match self.room.take() {
            Some(Room {
                at,
                held: Some(held),
                ..
            }) => sys::write_bytes(self.pid, at, &held),
            Some(Room { at, len, .. }) => self.thread(tid)?.unmap_room(at, len),
            None => Ok(()),
        }
    }

    /// Gives back what was borrowed: registers, and memory by a call of thread `tid`.
    ///
    /// # Errors
    /// That of the call; the memory then stays mapped.
    pub fn finish(mut self, tid: Tid) -> sys::Result<()> {
        self.give_back(tid)
    }
}

impl Runner for Held {
    fn call(
        &mut self,
        tid: Tid,
        nr: i64,
        args: &[Arg],
        out: Option<&mut [u8]>,
    ) -> sys::Result<u64> {
        const ALIGNED: u64 = 16;
        let need: u64 = args
            .iter()
            .map(|arg| arg.len().next_multiple_of(ALIGNED))
            .sum();
        let mut at = match need {
            0 => 0,
            need => self.room(tid, need)?,
        };
        let mut words = [0u64; 6];
        let mut last = 0;
        for (word, arg) in words.iter_mut().zip(args) {
            if let Arg::Value(value) = arg {
                *word = *value;
                continue;
            }
            sys::write_bytes(self.pid, at, &arg.placed(at))?;
            (*word, last) = (at, at);
            at += arg.len().next_multiple_of(ALIGNED);
        }
        let name = sys::arch::syscall_name(nr as u64).unwrap_or("system call");
        let result = self.thread(tid)?.call(name, nr, words)?;
        if let Some(out) = out {
            sys::read_bytes(self.pid, last, out)?;
        }
        Ok(result)
    }

    fn about(&mut self, tid: Tid, action: &Action) -> sys::Result<()> {
        match action {
            Action::Limit(number, to) => sys::set_limit(self.pid, *number, *to),
            Action::Schedule(to) => sys::set_scheduling(tid, to),
            Action::Affinity(to) => sys::set_affinity(tid, to),
            Action::IoPriority(to) => sys::set_io_priority(tid, *to),
            Action::Dispatch(to) => ptrace::set_syscall_dispatch(tid, to),
            Action::File(name, content) => proc::write(self.pid, name, content),
            Action::Call(..) | Action::MakeTimer(_) | Action::SoftLimit(..) => {
                unreachable!("done by other means")
            }
        }
    }

    fn limits(&mut self) -> sys::Result<Vec<Limit>> {
        sys::limits(self.pid)
    }
}

impl Arg {
    /// Bytes of memory that it takes.
    pub(in crate::restore) fn len(&self) -> u64 {
        match self {
            Self::Value(_) => 0,
            Self::Bytes(bytes) | Self::Pointing { bytes, .. } => bytes.len().max(1) as u64,
        }
    }

    /// Its bytes as they are at an address.
    pub(in crate::restore) fn placed(&self, at: u64) -> Vec<u8> {
        match self {
            Self::Value(_) => Vec::new(),
            Self::Bytes(bytes) => bytes.clone(),
            Self::Pointing {
                bytes,
                pointer_at,
                to,
            } => {
                let mut bytes = bytes.clone();
                let pointer = at + *to as u64;
                bytes[*pointer_at..pointer_at + 8].copy_from_slice(&pointer.to_ne_bytes());
                bytes
            }
        }
    }
}
