//! Starting the process: fork with a chosen id, in ksnap's PID namespace or in one of its own.

use super::{Lazy, StubThread, TRACED, init};
use crate::sys::clone::{CLEAR_SIGHAND, CloneArgs};
use crate::sys::ptrace::{self, Event, Tid};
use crate::sys::{Gadgets, PidFd, Remote, Result, SysError, pidfd_open, proc};
use std::io::Read;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

/// How a process is to be started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Birth<'a> {
    /// Its id in its PID namespace; `None` for whichever the kernel gives.
    pub pid: Option<i32>,
    /// Give it a PID namespace of its own, below a process 1 that reaps what is orphaned there and ends
    /// with the exit code of the process.
    pub namespace: bool,
    /// A user namespace around that, in which ksnap's user and group are what they are here, and nobody else is anybody.
    /// There an ordinary user may choose ids.
    pub users: bool,
    /// A network namespace of its own, with a loopback device that is up.
    pub network: bool,
    /// Namespaces that it enters, and its children with it: neither of users nor of mounts nor of PIDs.
    pub enters: &'a [RawFd],
}

/// Process 1 of a PID namespace.
#[derive(Debug)]
pub(super) struct Init {
    pub(super) tid: Tid,
    pub(super) pidfd: PidFd,
}

/// A started process: stopped, traced, a copy of ksnap.
pub(super) struct Born {
    pub(super) thread: StubThread,
    pub(super) init: Option<Init>,
    /// It sees a /proc with the ids that it knows.
    pub(super) right_proc: bool,
    pub(super) pidfd: PidFd,
}

/// Starts a child that is no process of a snapshot, and tells it the descriptors that it is to keep; `channel` is one
/// of them.
pub(super) fn helper(child: fn(Parent) -> !, channel: RawFd, keep: &[RawFd]) -> Result<Tid> {
    let args = CloneArgs {
        flags: CLEAR_SIGHAND,
        exit_signal: libc::SIGCHLD as u64,
        id: None,
    };
    fork(&args, child, (Some(channel), &[]), keep)
}

/// Goes on as two processes: `None` in the child, which has all signals blocked, and must not return to whoever called
/// this. Unlike those that `fork` makes it may allocate: the C library sees to it that no other thread has the
/// allocator's lock meanwhile.
pub(super) fn split() -> Result<Option<Tid>> {
    // SAFETY: the signal sets are live locals; the child has a copy of all memory, and an allocator that works.
    let made = unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        let mut old: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &all, &mut old);
        let made = libc::fork();
        let error = std::io::Error::last_os_error();
        if made != 0 {
            libc::pthread_sigmask(libc::SIG_SETMASK, &old, std::ptr::null_mut());
        }
        match made {
            -1 => Err(error),
            0 => Ok(None),
            child => Ok(Some(child)),
        }
    };
    made.map_err(|e| SysError::new("fork", "this process", e))
}

/// Forks this process. The child runs `child` with all signals blocked, and nothing else of this
/// program: `child` must confine itself to system calls.
fn fork(
    args: &CloneArgs,
    child: fn(Parent) -> !,
    (channel, lazy): (Option<RawFd>, &[Arc<Lazy>]),
    keep: &[RawFd],
) -> Result<Tid> {
    // The address must not move between the two steps.
    let mut bytes = args.bytes_at(0);
    let address = bytes.as_ptr() as u64;
    bytes.copy_from_slice(&args.bytes_at(address));
    // SAFETY: the arguments lie in a live buffer, with a null stack as fork has it; the child has a copy
    // of all memory, calls only functions that make system calls, and never returns from here. The
    // signal sets are live locals.
    let result = unsafe {
        let parent = Parent {
            pid: libc::getpid(),
            channel,
            lazy: (lazy.as_ptr(), lazy.len()),
            keep: (keep.as_ptr(), keep.len()),
        };
        let mut all: libc::sigset_t = std::mem::zeroed();
        let mut old: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &all, &mut old);
        let result = libc::syscall(libc::SYS_clone3, address, CloneArgs::SIZE);
        if result == 0 {
            child(parent);
        }
        let error = std::io::Error::last_os_error();
        libc::pthread_sigmask(libc::SIG_SETMASK, &old, std::ptr::null_mut());
        match result {
            -1 => Err(error),
            pid => Ok(pid as Tid),
        }
    };
    result.map_err(|e| SysError::new("clone3", args.what(), e))
}

/// What a child knows of its parent.
#[derive(Clone, Copy)]
pub(super) struct Parent {
    pid: i32,
    /// The end of a pipe on which the child is told, or tells.
    channel: Option<RawFd>,
    /// For process 1: what it is to fill memory from. The child has a copy at the same address.
    lazy: (*const Arc<Lazy>, usize),
    /// For a helper: its descriptors. The child has a copy at the same address.
    keep: (*const RawFd, usize),
}

/// What process 1 of a namespace tells when it is ready: with a /proc of its own, or without.
pub(super) const OWN_PROC: u8 = b'p';
pub(super) const NO_PROC: u8 = b'-';

impl Parent {
    pub(super) fn lazy(&self) -> &[Arc<Lazy>] {
        // SAFETY: the caller of `fork` had a slice of this length, and the child has a copy of all memory.
        unsafe { std::slice::from_raw_parts(self.lazy.0, self.lazy.1) }
    }

    /// Where it is told, or where it tells, if anywhere.
    pub(super) fn channel(&self) -> Option<RawFd> {
        self.channel
    }

    /// The descriptors that the child was told to keep, in the order in which it was.
    pub(super) fn keep(&self) -> &[RawFd] {
        // SAFETY: the caller of `fork` had a slice of this length, and the child has a copy of all memory.
        unsafe { std::slice::from_raw_parts(self.keep.0, self.keep.1) }
    }

    /// The child ends with its parent from here on, until that has become its tracer.
    pub(super) fn end_with(self) {
        // SAFETY: system calls; the byte is a live constant.
        unsafe {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            // In a new PID namespace the parent has no id.
            let now = libc::getppid();
            if now != self.pid && now != 0 {
                libc::_exit(0);
            }
        }
    }

    pub(super) fn tell(self, word: u8) {
        if let Some(channel) = self.channel {
            // SAFETY: a system call; the byte is a live local.
            unsafe { libc::write(channel, (&raw const word).cast(), 1) };
        }
    }
}

/// What a new process does until its tracer has it.
fn wait_for_tracer(parent: Parent) -> ! {
    parent.end_with();
    loop {
        // SAFETY: a system call without arguments.
        unsafe { libc::pause() };
    }
}

/// Becomes the tracer of a child and stops it.
fn hold(pid: Tid) -> Result<()> {
    // Suspending filters needs CAP_SYS_ADMIN.
    ptrace::seize(pid, TRACED).or_else(|_| {
        let options = ptrace::Options {
            suspend_seccomp: false,
            ..TRACED
        };
        ptrace::seize(pid, options)
    })?;
    ptrace::interrupt(pid)?;
    loop {
        match ptrace::wait(pid)? {
            Event::Stopped => return Ok(()),
            Event::Exited(_) => {
                let gone = std::io::Error::from_raw_os_error(libc::ESRCH);
                return Err(SysError::new("start", format_args!("process {pid}"), gone));
            }
            _ => ptrace::cont(pid, 0)?,
        }
    }
}

/// Starts a process.
pub(super) fn start(birth: Birth<'_>, lazy: &[Arc<Lazy>]) -> Result<Born> {
    let network = match birth.network {
        true => libc::CLONE_NEWNET as u64,
        false => 0,
    };
    let own = CloneArgs {
        flags: CLEAR_SIGHAND | network,
        exit_signal: libc::SIGCHLD as u64,
        id: birth.pid,
    };
    if !birth.namespace {
        let pid = fork(&own, wait_for_tracer, (None, &[]), &[])?;
        let child = Child(pid);
        hold(pid)?;
        let pidfd = pidfd_open(pid)?;
        child.keep();
        return Ok(Born {
            thread: StubThread { tid: pid, own: pid },
            init: None,
            right_proc: true,
            pidfd,
        });
    }
    let users = match birth.users {
        true => libc::CLONE_NEWUSER,
        false => 0,
    };
    let namespaces = (libc::CLONE_NEWPID | libc::CLONE_NEWNS | users) as u64;
    let args = CloneArgs {
        flags: CLEAR_SIGHAND | namespaces,
        id: None,
        ..own
    };
    let pipe = |e| SysError::new("pipe", "this process", e);
    let (mut ready, told) = std::io::pipe().map_err(pipe)?;
    let init = fork(&args, init::run, (Some(told.as_raw_fd()), lazy), &[])?;
    // Killed if anything fails below, and all of its namespace with it.
    let child = Child(init);
    drop(told);
    if birth.users {
        map_own_user(init)?;
    }
    // It runs on where it is stopped now when all is done: what it asks for at its start must be behind it.
    let mut word = [0];
    ready.read_exact(&mut word).map_err(pipe)?;
    hold(init)?;
    let maps = proc::maps(init)?;
    let insn = Gadgets::find_syscall(init, &maps)?.ok_or_else(|| {
        SysError::new(
            "start",
            format_args!("process {init}"),
            std::io::Error::other("no system call instruction in it"),
        )
    })?;
    let tid = Remote::with_options(init, insn, TRACED)?.clone_with(&own)?;
    let thread = StubThread {
        tid,
        own: proc::own_id(tid, tid)?,
    };
    let pidfd = pidfd_open(tid)?;
    let init = Init {
        tid: init,
        pidfd: pidfd_open(init)?,
    };
    child.keep();
    Ok(Born {
        thread,
        init: Some(init),
        right_proc: word[0] == OWN_PROC,
        pidfd,
    })
}

/// Gives the user namespace of a process its only user and group: this process's (user_namespaces(7)).
fn map_own_user(pid: Tid) -> Result<()> {
    let (user, group) = (rustix::process::geteuid(), rustix::process::getegid());
    let one = |id: u32| format!("{id} {id} 1\n");
    // Whoever may not set groups may not leave any either.
    proc::write(pid, "setgroups", "deny")?;
    proc::write(pid, "uid_map", &one(user.as_raw()))?;
    proc::write(pid, "gid_map", &one(group.as_raw()))
}

/// A child that is killed unless it is kept.
pub(super) struct Child(pub(super) Tid);

impl Child {
    pub(super) fn keep(self) {
        std::mem::forget(self);
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        end(self.0);
    }
}

/// Waits for the end of a killed child or tracee.
pub(super) fn bury(tid: Tid) {
    loop {
        match ptrace::wait(tid) {
            Ok(Event::Exited(_)) => return,
            Ok(_) => {
                let _ = ptrace::cont(tid, 0);
            }
            Err(e) if e.errno() == Some(libc::EINTR) => {}
            Err(_) => return,
        }
    }
}

/// Waits for the end of a tracee that has been killed, so that its parent is told of it. Where another thread of it
/// executed a program in that moment (execve(2)), there is no end to wait for: whoever has its id then is not traced.
pub(super) fn bury_killed(tid: Tid) {
    let own = nix::unistd::gettid().as_raw();
    while proc::status(tid).is_ok_and(|status| status.tracer == own) {
        ptrace::meet_end(tid);
        std::thread::sleep(Duration::from_micros(100));
    }
}

/// Kills a child and waits for its end, unless that has been met before. Process 1 of a PID namespace ends after all
/// others there, and those of them that this thread traces end only when it meets their ends.
pub(super) fn end(pid: Tid) {
    if matches!(ptrace::try_wait(pid), Ok(Some(Event::Exited(_))) | Err(_)) {
        return;
    }
    // SAFETY: a system call without pointers, on a child that has not been waited for.
    unsafe { libc::kill(pid, libc::SIGKILL) };
    loop {
        match ptrace::try_wait(pid) {
            Ok(Some(Event::Exited(_))) | Err(_) => return,
            Ok(Some(_)) => drop(ptrace::cont(pid, 0)),
            // Its end comes among those of all others.
            Ok(None) => match ptrace::meet_any_end() {
                Some(met) if met != pid => {}
                _ => return,
            },
        }
    }
}
