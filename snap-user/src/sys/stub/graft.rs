//! Stubs that a living process makes, and that are its children from their first moment on.

use super::birth::Child;
use super::{Stub, StubThread, TRACED, area};
use crate::model::PageRange;
use crate::sys::clone::{CLEAR_SIGHAND, CloneArgs};
use crate::sys::ptrace::{self, Options, Tid};
use crate::sys::{Frozen, Remote, Result, SysError, pidfd_open, with_next_id};
use std::io;
use std::time::Duration;

/// Attempts at an id that somebody else may take in between.
const ATTEMPTS: u32 = 50;
const PAUSE: Duration = Duration::from_millis(2);

impl Stub {
    /// Has a stopped thread of a living process make a child with this id. `insn` is a system call instruction of that
    /// process that a return follows. `avoid` is address space that must be free in the child.
    ///
    /// # Errors
    /// EEXIST when the id is taken, EPERM when neither the process nor ksnap may choose it.
    pub fn graft(maker: Tid, insn: u64, id: i32, avoid: &[PageRange]) -> Result<Self> {
        let args = |id| CloneArgs {
            flags: CLEAR_SIGHAND,
            exit_signal: libc::SIGCHLD as u64,
            id,
        };
        let mut remote = Remote::new(maker, insn)?;
        // Should ksnap die before the child is to die with it, it returns to nowhere: no signal of that is handled.
        remote.leave_stack();
        let remote = std::cell::RefCell::new(remote);
        let tid = with_id(
            Some(id),
            |id| remote.borrow_mut().clone_with(&args(id)),
            |wrong| {
                drop(Child(wrong));
                wait_for(&mut remote.borrow_mut(), wrong)
            },
        )?;
        // Ended when anything fails.
        let held = Child(tid);
        ptrace::set_options(tid, TRACED).or_else(|_| {
            // Suspending filters needs CAP_SYS_ADMIN.
            let options = Options {
                suspend_seccomp: false,
                ..TRACED
            };
            ptrace::set_options(tid, options)
        })?;
        drop(remote);
        let mut stub = Self {
            threads: vec![StubThread { tid, own: tid }],
            init: None,
            right_proc: true,
            pidfd: pidfd_open(tid)?,
            area: area::Area::default(),
            kernel: Vec::new(),
            init_runs: false,
            released: false,
            not_send: std::marker::PhantomData,
        };
        held.keep();
        let emptied = area::empty(tid, avoid)?;
        stub.area = emptied.area;
        stub.kernel = emptied.kernel;
        stub.clear()?;
        Ok(stub)
    }

    /// Holds it from here on as a rollback holds the others: it goes on with them, and stays stopped if ksnap dies.
    /// `stopped`: it is to stay so in any case.
    ///
    /// # Errors
    /// Nothing is left of it then.
    pub fn hold(mut self, stopped: bool) -> Result<Frozen> {
        // Whoever of its threads is let go of first takes this before anything else.
        self.stop_when_free()?;
        let threads: Vec<Tid> = self.threads.iter().map(|thread| thread.tid).collect();
        for tid in &threads {
            ptrace::set_options(*tid, Options::default())?;
        }
        self.released = true;
        Ok(Frozen::held(self.pid(), threads, stopped))
    }
}

/// Has a process wait for a child of it that has ended. That it has none of this id is no error: one that ignores the signal
/// of that never has any to wait for (`SA_NOCLDWAIT` in sigaction(2)).
pub fn wait_for(remote: &mut Remote, pid: i32) -> Result<()> {
    let options = libc::__WALL | libc::WNOHANG;
    let args = [pid as u64, 0, options as u64, 0, 0, 0];
    match remote.call("wait4", libc::SYS_wait4, args) {
        Ok(found) if found as i32 == pid => Ok(()),
        Err(e) if e.errno() == Some(libc::ECHILD) => Ok(()),
        Err(e) => Err(e),
        Ok(_) => Err(SysError::new(
            "wait4",
            format_args!("process {pid}"),
            io::Error::other("it has not ended"),
        )),
    }
}

/// Makes a process or thread with this id: by a call that chooses it, or, where whoever makes that call may not, by one
/// after ksnap has said which id comes next. `end` does away with one that has another id.
pub(super) fn with_id(
    id: Option<i32>,
    make: impl Fn(Option<i32>) -> Result<Tid>,
    end: impl Fn(Tid) -> Result<()>,
) -> Result<Tid> {
    match (make(id), id) {
        (Err(denied), Some(id)) if denied.is_denied() => {
            // The first call says which privilege it takes.
            let done = by_next_id(id, || make(None), end);
            done.map_err(|e| if e.is_denied() { denied } else { e })
        }
        (done, _) => done,
    }
}

/// The same where whoever makes it may not choose: attempts, until nobody has been quicker.
pub(super) fn by_next_id(
    id: i32,
    make: impl Fn() -> Result<Tid>,
    end: impl Fn(Tid) -> Result<()>,
) -> Result<Tid> {
    for _ in 0..ATTEMPTS {
        let made = with_next_id(id, &make)?;
        if made == id {
            return Ok(made);
        }
        end(made)?;
        std::thread::sleep(PAUSE);
    }
    Err(SysError::new(
        "clone3",
        format_args!("id {id}"),
        io::Error::from_raw_os_error(libc::EEXIST),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::{Freeze, Gadgets, Hold, proc};
    use std::process::{Child as Process, Command};

    /// A process that is held, and a return behind a system call instruction of it.
    fn held() -> (Process, Frozen, u64) {
        let process = Command::new("sleep").arg("1000").spawn().unwrap();
        let pid = process.id() as i32;
        let options = Freeze {
            hold: Hold::JobControl,
            timeout: Duration::from_secs(60),
        };
        // It may be on its way into its program.
        let found = || {
            let frozen = Frozen::freeze(pid, options).ok()?;
            let found = Gadgets::find(pid, &proc::maps(pid).ok()?).ok()??;
            Some((frozen, found.syscall_ret?))
        };
        let (frozen, insn) = loop {
            if let Some(found) = found() {
                break found;
            }
            std::thread::sleep(PAUSE);
        };
        (process, frozen, insn)
    }

    /// One that was somebody's a moment ago.
    fn free_id() -> i32 {
        let mut process = Command::new("true").spawn().unwrap();
        process.wait().unwrap();
        process.id() as i32
    }

    fn state_of(pid: i32) -> Option<char> {
        proc::stat(pid, None).ok().map(|stat| stat.state)
    }

    #[test]
    fn a_stub_is_the_child_of_who_lives_and_is_held_with_it() {
        if crate::sys::can_choose_next_id().is_err() {
            return crate::skip::without_root("the right to choose ids");
        }
        let (mut process, frozen, insn) = held();
        let (maker, id) = (frozen.pid(), free_id());
        let mut stub = Stub::graft(maker, insn, id, &[]).unwrap();
        let stat = proc::stat(id, None).unwrap();
        assert_eq!((stub.pid(), stat.ppid), (id, maker));
        let getppid = super::super::StubCall::new("getppid", "itself", libc::SYS_getppid, [0; 6]);
        assert_eq!(stub.run(&[getppid]).unwrap(), [i64::from(maker)]);
        // Dropped it is gone, and leaves what its parent has to wait for.
        drop(stub);
        assert_eq!(state_of(id), Some('Z'));
        wait_for(&mut Remote::new(maker, insn).unwrap(), id).unwrap();
        assert_eq!(state_of(id), None);
        // Where its tracer goes it stays stopped.
        let stub = Stub::graft(maker, insn, id, &[]).unwrap();
        stub.hold(false).unwrap().leave_stopped();
        let end = std::time::Instant::now() + Duration::from_secs(60);
        while state_of(id) != Some('T') {
            assert!(std::time::Instant::now() < end, "{:?}", state_of(id));
            std::thread::sleep(PAUSE);
        }
        // SAFETY: a system call without pointers, on a process that was made here.
        unsafe { libc::kill(id, libc::SIGKILL) };
        drop(frozen);
        process.kill().unwrap();
        process.wait().unwrap();
    }

    #[test]
    fn one_that_is_let_go_of_at_its_birth_ends() {
        let (mut process, frozen, insn) = held();
        let mut remote = Remote::new(frozen.pid(), insn).unwrap();
        remote.leave_stack();
        let args = CloneArgs {
            flags: CLEAR_SIGHAND,
            exit_signal: libc::SIGCHLD as u64,
            id: None,
        };
        let child = remote.clone_with(&args).unwrap();
        // As the kernel does for a tracer that dies.
        ptrace::detach(child).unwrap();
        let end = std::time::Instant::now() + Duration::from_secs(60);
        while state_of(child) != Some('Z') {
            assert!(std::time::Instant::now() < end, "{:?}", state_of(child));
            std::thread::sleep(PAUSE);
        }
        wait_for(&mut remote, child).unwrap();
        drop(remote);
        drop(frozen);
        process.kill().unwrap();
        process.wait().unwrap();
    }
}
